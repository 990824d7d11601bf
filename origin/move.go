package origin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"weir/discovery"
	"weir/internal/admin"
	"weir/internal/session"
)

// Causes for which streams are moved, as in logs and metrics.
const (
	moveAPI      = "api"
	moveDrain    = "drain"
	moveOverload = "overload"
)

// Errors of Move.
var (
	errNoOrigin  = errors.New("no other origin is known that can take the stream")
	errStays     = errors.New("the publisher understands no request to go elsewhere")
	errAskedThat = errors.New("the publisher has just been asked to go elsewhere")
)

const (
	// askedFor is how long a publisher that was asked to go elsewhere may take for it.
	// As long its name may be claimed by another node, and by who comes here again.
	askedFor = 10 * time.Second
	// settled is how long a stream is left where it is after it has come, or was not
	// taken elsewhere, whatever the load: it is not to go to and fro.
	settled = 10 * time.Second
	// wayward is the same for an encoder that was asked to go, in a drain, too: one that
	// comes back is not interrupted over and over.
	wayward = 10 * time.Minute
	// targetTimeout bounds the question where a stream should go.
	targetTimeout = time.Second
	// muchLess is how much less loaded an origin has to be for an overloaded one to send
	// streams there.
	muchLess = 0.05
)

// target is an origin that streams can go to.
type target struct {
	id   string
	addr discovery.Addr
	load float64
}

// placer chooses nodes for sessions; *discovery.Client is one.
type placer interface {
	Place(ctx context.Context, q discovery.PlaceQuery) (discovery.Placement, error)
}

// target returns the origin that a stream should go to: the one that is named, or the
// one that the scheduler chooses, or the least loaded: without a scheduler, or if it has
// none and the stream must go all the same.
func (o *Origin) target(ctx context.Context, p *publication, named string, must bool) (target, error) {
	ctx, cancel := context.WithTimeout(ctx, targetTimeout)
	defer cancel()
	if named != "" {
		for _, n := range o.others.ByLoad(ctx, discovery.RoleOrigin) {
			if n.ID == named {
				return targetOf(&n), nil
			}
		}
		return target{}, fmt.Errorf("%w: %s is none that is up", errNoOrigin, named)
	}
	if o.placer != nil {
		place, err := o.placer.Place(ctx, discovery.PlaceQuery{
			Role: session.KindPublish, NodeRole: discovery.RoleOrigin, Stream: p.key, Exclude: []string{o.node},
			Protocol: "rtmp", BitRate: float64(p.stream.Stats().Bitrate), Limit: 1,
		})
		switch {
		case err == nil:
			n := place.Nodes[0]
			return target{n.ID, n.Addr, n.Load}, nil
		case errors.Is(err, discovery.ErrNoNode) && !must:
			return target{}, fmt.Errorf("%w: %w", errNoOrigin, err)
		}
	}
	if nodes := o.others.ByLoad(ctx, discovery.RoleOrigin); len(nodes) > 0 {
		return targetOf(&nodes[0]), nil
	}
	return target{}, errNoOrigin
}

func targetOf(n *discovery.Node) target {
	load, known := n.Load[discovery.LoadEffective]
	if !known {
		load = 1
	}
	return target{n.ID, n.Addr, load}
}

// Move asks the publisher of a stream to go to another origin: to the one that is
// named, or else to the one with the least load. It returns when the publisher has
// left, or has not for a while; what became of it is in the result. An error says why
// it was not asked.
func (o *Origin) Move(ctx context.Context, key, named string) (admin.Moved, error) {
	o.mu.Lock()
	p := o.streams[key]
	o.mu.Unlock()
	if p == nil {
		return admin.Moved{}, admin.ErrNoStream
	}
	to, err := o.target(ctx, p, named, true)
	if err != nil {
		return admin.Moved{}, err
	}
	way, gone, err := p.ask(to, moveAPI)
	if err != nil {
		return admin.Moved{}, err
	}
	m := admin.Moved{Stream: key, To: to.id, Way: string(way)}
	timer := time.NewTimer(o.askedFor)
	defer timer.Stop()
	select {
	case <-gone:
		m.Left = true
	case <-timer.C:
	case <-ctx.Done():
	}
	return m, nil
}

// way returns how a publisher is asked to go to another origin.
func (o *Origin) way(s *session.Publisher) session.Way {
	if w := s.Way(); w != session.ByGoAway || o.cfg.Publish.GoAway {
		return w
	}
	return session.Stays
}

// ask asks the publisher of a publication to go to another origin. gone is closed when
// it has let go of the stream.
func (p *publication) ask(to target, cause string) (way session.Way, gone <-chan struct{}, err error) {
	o := p.o
	o.mu.Lock()
	s := p.publisher
	switch {
	case s == nil || p.writer == nil || p.ended:
		err = admin.ErrNoStream
	case o.way(s) == session.Stays:
		err = errStays
	case p.asked != nil:
		err = errAskedThat
	}
	if err != nil {
		o.mu.Unlock()
		return session.Stays, nil, err
	}
	way, gone = o.way(s), p.gone
	// If it does not go the name is its own again.
	var timer *time.Timer
	timer = time.AfterFunc(o.askedFor, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if p.asked == timer && p.publisher == s && !p.ended {
			p.stays(to)
		}
	})
	p.asked, p.settles = timer, time.Now().Add(settled)
	if way != session.ByRedirect { // there is no secret that it would be known by elsewhere
		p.wayward = time.Now().Add(wayward)
		o.owner.SetIdle(p.key, true)
	}
	o.mu.Unlock()
	o.log.Info("publisher asked to go to another origin", "stream", p.key, "session", s.ID(), "to", to.id, "way", string(way), "cause", cause)
	o.set.GetOrCreateCounter(fmt.Sprintf("weir_moves_asked_total{cause=%q,way=%q}", cause, way)).Inc()
	if err := s.Ask(&session.Redirect{RTMP: to.addr.RTMP, HTTP: to.addr.HTTP}); err != nil {
		o.log.Debug("publisher cannot be asked to go", "stream", p.key, "err", err) // its session ends by itself
	}
	return way, gone, nil
}

// stays ends the time of the publisher, which was asked to go and has not. o.mu is held.
func (p *publication) stays(to target) {
	o, s := p.o, p.publisher
	p.asked = nil
	s.Stay()
	o.owner.SetIdle(p.key, false)
	o.set.GetOrCreateCounter("weir_moves_failed_total").Inc()
	o.log.Warn("publisher has not gone to another origin", "stream", p.key, "session", s.ID(), "to", to.id)
}

// answered ends the time of a publisher that was asked to go and has left, and reports
// whether there was one. o.mu is held.
func (p *publication) answered() bool {
	if p.asked == nil {
		return false
	}
	p.asked.Stop()
	p.asked = nil
	return true
}

// movable returns the publications whose publishers can be asked to go and have not been
// lately, those of other nodes first and then by bit rate, the highest first.
func (o *Origin) movable(cause string) []*publication {
	type candidate struct {
		*publication
		forwarded bool
		rate      uint64
	}
	var list []candidate
	now := time.Now()
	o.mu.Lock()
	for _, p := range o.streams {
		s := p.publisher
		switch {
		case s == nil, p.writer == nil, p.ended, p.asked != nil, o.way(s) == session.Stays:
		case now.Before(p.wayward), cause == moveOverload && now.Before(p.settles):
		default:
			list = append(list, candidate{p, o.way(s) == session.ByRedirect, 0})
		}
	}
	o.mu.Unlock()
	for i := range list {
		list[i].rate = list[i].stream.Stats().Bitrate
	}
	slices.SortFunc(list, func(a, b candidate) int {
		switch {
		case a.forwarded != b.forwarded && a.forwarded:
			return -1
		case a.forwarded != b.forwarded:
			return 1
		}
		return cmp.Compare(b.rate, a.rate)
	})
	all := make([]*publication, len(list))
	for i, c := range list {
		all[i] = c.publication
	}
	return all
}
