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
	for id, l := range g.sessions {
		stays := s.opt.NodesStay && l.peer.Node != ""
		if l.isPlayer() && l.playing.Load() != nil && !l.told.Load() && !stays {
			ids = append(ids, id)
		}
	}
	return ids
}

// Move ends a player's session at the boundary of a tag, after telling it to
// connect again, as far as its protocol has words for that: an RTMP 302 for nodes,
// a ReconnectRequest for RTMP players that advertised it, close code 1012 over
// WebSocket. It reports whether there was such a player.
func (s *Server) Move(id string) bool {
	l := s.ledger.find(id)
	if l == nil {
		return false
	}
	session := l.playing.Load()
	if session == nil || l.told.Swap(true) {
		return false
	}
	if l.goodbye != nil {
		if b := l.goodbye(); len(b) > 0 {
			session.Inject(b)
		}
	}
	session.EndGently(fanout.Moved)
	return true
}

// Cut ends the sessions that a drain has left at its deadline and returns how many.
func (s *Server) Cut() int {
	g := s.ledger
	g.mu.Lock()
	all := make([]*live, 0, len(g.sessions))
	for _, l := range g.sessions {
		if l.protocol != protoPull && l.why.Load() == nil {
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
func (s *Server) goodbyeRTMP(c *rtmp.ServerConn, req *rtmp.Request, t vhost.Target, peer Peer) []byte {
	ctx, cancel := context.WithTimeout(s.ctx, whereTimeout)
	defer cancel()
	var r *Redirect
	known := errors.As(s.admitted(ctx, KindPlay, t, peer), &r) && r.RTMP != ""
	switch {
	case peer.Node != "" && known:
		return rtmp.RedirectNotice(r.rtmpURL(t), c.OutChunkSize())
	case peer.Node != "": // it looks elsewhere by itself as soon as the connection is lost
		return nil
	case req.CapsEx&rtmp.CapsReconnect != 0 && known:
		return rtmp.ReconnectNotice(r.appURL(t), c.OutChunkSize())
	}
	return rtmp.StatusNotice(c.StreamID(), rtmp.StatusMoved(), c.OutChunkSize())
}

// turnedAway is what a publisher is told that is not admitted: encoders do not
// follow redirects, so the sentence names the other node.
func turnedAway(err error, t vhost.Target) error {
	var r *Redirect
	if !errors.As(err, &r) {
		return err
	}
	if r.RTMP == "" {
		return &Refusal{Code: Draining, Text: "This node takes no new publishers.", Err: err}
	}
	return &Refusal{Code: Draining, Text: fmt.Sprintf("This node takes no new publishers; publish to %s.", r.appURL(t)), Err: err}
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
