package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"weir/internal/fanout"
	"weir/internal/rtmp"
	"weir/internal/vhost"
)

// Census returns the number of sessions, without the pulls by which the workers of
// a node serve each other. It implements drain.Sessions, as the methods below do.
func (s *Server) Census() (players, publishers int) {
	g := s.ledger
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.playing, len(g.sessions) - g.pulls - g.playing
}

// Movable returns the ids of the players that play and were not told to go
// elsewhere yet.
func (s *Server) Movable() []string {
	g := s.ledger
	g.mu.Lock()
	defer g.mu.Unlock()
	var ids []string
	for _, l := range g.sessions {
		stays := s.opt.NodesStay && l.node != ""
		if l.isPlayer() && l.playing.Load() != nil && !l.told.Load() && !stays {
			ids = append(ids, g.id(l))
		}
	}
	return ids
}

// Move ends a player's session at the boundary of a tag, after telling it to
// connect again, as far as its protocol has words for that: an RTMP 302 for nodes,
// a ReconnectRequest for RTMP players that advertised it, close code 1012 over
// WebSocket. It reports whether there was such a player.
func (s *Server) Move(id string) bool { return s.leave(id, fanout.Moved) }

// Sheddable returns the ids of the players that can be asked to leave a node that is
// full: those of vhosts over their quota first, as many as are over it, and apart from
// that in no order. Other nodes are not asked: many players are behind them. It
// implements admission.Sessions, as Shed does.
func (s *Server) Sheddable() []string {
	g := s.ledger
	g.mu.Lock()
	defer g.mu.Unlock()
	over := map[string]int{} // players over the quota, by vhost
	var first, ids []string
	for _, l := range g.sessions {
		if !l.isPlayer() || l.node != "" || l.playing.Load() == nil || l.told.Load() {
			continue
		}
		name, quota := l.vhost.Name, l.vhost.Config.Play.Quota
		if _, ok := over[name]; !ok && quota > 0 {
			over[name] = g.vhosts[name] - quota
		}
		if over[name] > 0 {
			over[name]--
			first = append(first, g.id(l))
		} else {
			ids = append(ids, g.id(l))
		}
	}
	return append(first, ids...)
}

// Shed is Move for a node that is full: reason and words are others.
func (s *Server) Shed(id string) bool { return s.leave(id, fanout.Overload) }

// leave is Move for a reason.
func (s *Server) leave(id string, why fanout.Reason) bool {
	l := s.ledger.find(id)
	if l == nil {
		return false
	}
	session := l.playing.Load()
	if session == nil || l.told.Swap(true) {
		return false
	}
	if l.goodbye != nil {
		if b := l.goodbye(why); len(b) > 0 {
			session.Inject(b)
		}
	}
	session.EndGently(why)
	return true
}

// Cut ends the sessions that a drain has left at its deadline, or those of players, and
// returns how many.
func (s *Server) Cut(publishers bool) int {
	g := s.ledger
	g.mu.Lock()
	all := make([]*live, 0, len(g.sessions))
	for _, l := range g.sessions {
		if l.protocol != protoPull && l.why.Load() == nil && (publishers || l.kind == KindPlay) {
			all = append(all, l)
		}
	}
	g.mu.Unlock()
	for _, l := range all {
		l.end(string(fanout.Drained))
	}
	return len(all)
}

// whereTimeout bounds the question where a player that is moved should go.
const whereTimeout = time.Second

// goodbyeRTMP is what an RTMP player is told that is moved.
func (s *Server) goodbyeRTMP(c *rtmp.ServerConn, req *rtmp.Request, n Newcomer, why fanout.Reason) []byte {
	t, peer := n.Target, n.Peer
	n.Leaving = true
	ctx, cancel := context.WithTimeout(s.ctx, whereTimeout)
	defer cancel()
	var r *Redirect
	known := errors.As(s.admitted(ctx, n), &r) && r.RTMP != ""
	switch {
	case peer.Node != "" && known:
		return rtmp.RedirectNotice(r.rtmpURL(t), c.OutChunkSize())
	case peer.Node != "": // it looks elsewhere by itself as soon as the connection is lost
		return nil
	case req.CapsEx&rtmp.CapsReconnect != 0 && known:
		return rtmp.ReconnectNotice(r.appURL(t), c.OutChunkSize())
	}
	status := rtmp.StatusMoved()
	if why == fanout.Overload {
		status = rtmp.StatusOverloaded()
	}
	return rtmp.StatusNotice(c.StreamID(), status, c.OutChunkSize())
}

// turnedAway is what a publisher is told that is not admitted: encoders do not
// follow redirects, so the sentence names the other node.
func turnedAway(err error, t vhost.Target) error {
	var r *Redirect
	if !errors.As(err, &r) {
		return err
	}
	code := Draining
	if r.Ticket != "" { // only load gives tickets
		code = Overload
	}
	if r.RTMP == "" {
		return &Refusal{Code: code, Text: "This node takes no new publishers.", Err: err}
	}
	return &Refusal{Code: code, Text: fmt.Sprintf("This node takes no new publishers; publish to %s.", r.appURL(t)), Err: err}
}

// appURL returns the tcUrl of a redirect, with the vhost if the host does not say
// it.
func (r *Redirect) appURL(t vhost.Target) string {
	u := "rtmp://" + r.RTMP + "/" + t.Key.App
	if v := t.Key.Vhost; v != vhost.DefaultName {
		u += "?vhost=" + v
	}
	return u
}
