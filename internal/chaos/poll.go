package chaos

import (
	"context"
	"net"
	"strings"
	"time"

	"weir/internal/chaos/model"
)

// pollEvery is how often nodes are asked for what they have.
const pollEvery = 150 * time.Millisecond

// poller asks a node for what it has, and notes what changes.
type poller struct {
	// Static.
	node  *process
	known map[string]bool   // streams of the history
	peers map[string]string // nodes by their address

	// Of run's goroutine.
	life  int
	owned map[string]model.Own
	pulls map[[2]string]int
	deaf  bool // as was last noted
}

func (p *poller) run(ctx context.Context) {
	for ctx.Err() == nil {
		if pid, life := p.node.pid(); pid != 0 {
			if life != p.life {
				p.life, p.owned, p.pulls, p.deaf = life, map[string]model.Own{}, map[[2]string]int{}, false
			}
			err := p.poll(ctx)
			switch {
			case ctx.Err() != nil:
			case err != nil && !p.deaf:
				p.deaf = p.node.note(p.life, model.Event{Kind: model.KindDeaf, Node: p.node.name, Text: err.Error()})
			case err == nil && p.deaf:
				p.deaf = !p.node.note(p.life, model.Event{Kind: model.KindHears, Node: p.node.name})
			}
		}
		rest(ctx, pollEvery)
	}
}

// The parts of the admin API (docs/admin-api.md) that are looked at.
type (
	streamList struct {
		Streams []struct {
			Key       string `json:"key"`
			State     string `json:"state"`
			Epoch     uint64 `json:"epoch"`
			Publisher *struct {
				Remote string `json:"remote"`
			} `json:"publisher"`
		} `json:"streams"`
	}
	sessionList struct {
		Sessions []struct {
			Kind   string `json:"kind"`
			Stream string `json:"stream"`
			Remote string `json:"remote"`
		} `json:"sessions"`
	}
)

func (p *poller) poll(ctx context.Context) error {
	ready := p.node.ask(ctx, p.node.health, nil)
	if p.node.role != "origin" {
		return ready
	}
	var streams streamList
	if err := p.node.ask(ctx, "/api/v1/streams", &streams); err != nil {
		return err
	}
	owned := map[string]model.Own{}
	for _, s := range streams.Streams {
		if name := p.nameOf(s.Key); name != "" {
			own := model.Own{Epoch: s.Epoch, Live: s.State == "live" && s.Publisher != nil}
			if s.Publisher != nil {
				own.From = s.Publisher.Remote
			}
			owned[name] = own
		}
	}
	var sessions sessionList
	if err := p.node.ask(ctx, "/api/v1/sessions", &sessions); err != nil {
		return err
	}
	pulls := map[[2]string]int{}
	for _, s := range sessions.Sessions {
		host, _, _ := net.SplitHostPort(s.Remote)
		if peer, name := p.peers[host], p.nameOf(s.Stream); s.Kind == "play" && peer != "" && name != "" {
			pulls[[2]string{name, peer}]++
		}
	}
	p.tell(owned, pulls)
	return ready
}

// nameOf returns the name of a stream by its key, "" if it is none of ours.
func (p *poller) nameOf(key string) string {
	name := key[strings.LastIndexByte(key, '/')+1:]
	if p.known[name] {
		return name
	}
	return ""
}

func (p *poller) tell(owned map[string]model.Own, pulls map[[2]string]int) {
	for name := range p.owned {
		if _, ok := owned[name]; !ok {
			p.node.note(p.life, model.Event{Kind: model.KindOwn, Node: p.node.name, Stream: name})
		}
	}
	for name, own := range owned {
		if old, ok := p.owned[name]; !ok || old != own {
			p.node.note(p.life, model.Event{Kind: model.KindOwn, Node: p.node.name, Stream: name, Own: &own})
		}
	}
	for what := range p.pulls {
		if _, ok := pulls[what]; !ok {
			p.node.note(p.life, model.Event{Kind: model.KindPulls, Node: p.node.name, Stream: what[0], Peer: what[1]})
		}
	}
	for what, n := range pulls {
		if p.pulls[what] != n {
			p.node.note(p.life, model.Event{Kind: model.KindPulls, Node: p.node.name, Stream: what[0], Peer: what[1], Count: n})
		}
	}
	p.owned, p.pulls = owned, pulls
}
