package origin

import (
	"errors"
	"testing"
	"time"

	"weir/discovery"
	"weir/internal/session"
	"weir/internal/vhost"
)

// An origin that drains sends publishers to another origin and players to an edge,
// and serves the streams that it has to nodes and to viewers of HLS.
func TestTurnAway(t *testing.T) {
	dir := newMemory()
	s := start(t, "a", quick(), dir)
	s.origin.SetDirectory(dir)
	s.mustPublish("mine")
	target := func(name string) vhost.Target {
		v, err := s.origin.Vhosts().Find(vhost.DefaultName)
		if err != nil {
			t.Fatal(err)
		}
		return vhost.Target{Key: vhost.Key{Vhost: v.Name, App: "live", Name: name}, Vhost: v}
	}
	f := func(kind, stream, node, want string) {
		t.Helper()
		err := s.origin.TurnAway(t.Context(), session.Newcomer{Kind: kind, Target: target(stream), Peer: session.Peer{Node: node}})
		got := "served"
		var to *session.Redirect
		var no *session.Refusal
		switch {
		case errors.As(err, &to):
			got = to.RTMP
		case errors.As(err, &no):
			got = string(no.Code)
		}
		if got != want {
			t.Errorf("%s of %s by node %q: %s, want %s", kind, stream, node, got, want)
		}
	}
	f(session.KindPublish, "new", "", "draining")
	f(session.KindPublish, "new", "edge", "draining")
	f(session.KindPlay, "mine", "", "draining")
	f(session.KindPlay, "mine", "edge", "served")
	f(session.KindPlay, "other", "", "served") // by a redirect to its owner, or 404
	f(session.KindHLS, "mine", "", "served")

	for _, n := range []discovery.Node{
		{ID: "b", Role: discovery.RoleOrigin, Addr: discovery.Addr{RTMP: "origin:1935"}},
		{ID: "e", Role: discovery.RoleEdge, Addr: discovery.Addr{RTMP: "edge:1935"}},
	} {
		n.Instance, n.State, n.TTL = "1", discovery.StateUp, time.Minute
		if err := dir.Heartbeat(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	s.origin.SetDirectory(dir) // forgets that there was nobody
	f(session.KindPublish, "new", "", "origin:1935")
	f(session.KindPublish, "new", "edge", "origin:1935")
	f(session.KindPublish, "mine", "", "origin:1935")
	f(session.KindPlay, "mine", "", "edge:1935")
}

// A publisher that was lost may come back to its stream, but an edge has other
// origins for it.
func TestALostPublisherComesBackToADrainingOrigin(t *testing.T) {
	s := start(t, "a", quick(), newMemory())
	c := s.mustPublish("mine")
	c.Close()
	eventually(t, "the publisher is gone", func() error {
		s.origin.mu.Lock()
		defer s.origin.mu.Unlock()
		for _, p := range s.origin.streams {
			if p.publisher != nil {
				return errors.New("it is there")
			}
		}
		return nil
	})
	v, err := s.origin.Vhosts().Find(vhost.DefaultName)
	if err != nil {
		t.Fatal(err)
	}
	n := session.Newcomer{Kind: session.KindPublish, Target: vhost.Target{Key: vhost.Key{Vhost: v.Name, App: "live", Name: "mine"}, Vhost: v}}
	if err := s.origin.TurnAway(t.Context(), n); err != nil {
		t.Errorf("turned away: %v", err)
	}
	n.Peer.Node = "edge"
	if err := s.origin.TurnAway(t.Context(), n); err == nil {
		t.Error("an edge's publisher is let in")
	}
}

// An encoder that was asked to go, and whose URL leads here, comes back to a draining
// origin while its first connection is open: OBS gives up for ever if it is refused then.
func TestAnAskedEncoderComesBackToADrainingOrigin(t *testing.T) {
	a, _ := pair(t)
	e := a.mustEncode("mine", goesAway)
	a.awaitState("mine", "live")
	v, err := a.origin.Vhosts().Find(vhost.DefaultName)
	if err != nil {
		t.Fatal(err)
	}
	n := session.Newcomer{Kind: session.KindPublish, Target: vhost.Target{Key: vhost.Key{Vhost: v.Name, App: "live", Name: "mine"}, Vhost: v}}
	if err := a.origin.TurnAway(t.Context(), n); err == nil {
		t.Error("a second publisher is let in")
	}
	done := a.move("mine", "b")
	e.mustHear(t, "32")
	if err := a.origin.TurnAway(t.Context(), n); err != nil {
		t.Errorf("turned away: %v", err)
	}
	e.Close()
	if m, err := (<-done)(); err != nil || !m.Left {
		t.Errorf("%+v, %v", m, err)
	}
}

// A publisher of a stream that there is already is no new load: it waits for it here,
// or has another owner, dead or not.
func TestReturns(t *testing.T) {
	dir := newMemory()
	s := start(t, "a", quick(), dir)
	s.mustPublish("mine")
	if _, err := dir.Claim(t.Context(), discovery.Claim{
		Stream: key + "other", Node: "b", Instance: "1", TTL: time.Minute, Addr: discovery.Addr{RTMP: "b.example:1935"},
	}); err != nil {
		t.Fatal(err)
	}
	v, err := s.origin.Vhosts().Find(vhost.DefaultName)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"mine": true, "other": true, "new": false} {
		n := session.Newcomer{Kind: session.KindPublish, Target: vhost.Target{Key: vhost.Key{Vhost: v.Name, App: "live", Name: name}, Vhost: v}}
		if got := s.origin.Returns(t.Context(), n); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
