package edge

import (
	"errors"
	"testing"
	"time"

	"weir/discovery"
	"weir/internal/session"
)

// An edge that is full or drains sends clients to another edge, leaves nodes to
// their own upstreams, and serves viewers of HLS for whom there is nothing else.
func TestTurnAway(t *testing.T) {
	dir := newRemote()
	e := startEdge(t, "edge-1", quick(), dir).edge
	f := func(kind, node, want string) {
		t.Helper()
		err := e.TurnAway(t.Context(), session.Newcomer{Kind: kind, Peer: session.Peer{Node: node}})
		got := "served"
		var to *session.Redirect
		var no *session.Refusal
		switch {
		case errors.As(err, &to):
			got = to.RTMP + " " + to.HTTP
		case errors.As(err, &no):
			got = string(no.Code)
		}
		if got != want {
			t.Errorf("%s of node %q: %s, want %s", kind, node, got, want)
		}
	}
	f(session.KindPlay, "", "draining")
	f(session.KindPublish, "", "draining")
	f(session.KindHLS, "", "served")

	if err := dir.Heartbeat(t.Context(), discovery.Node{
		ID: "edge-2", Instance: "1", Role: discovery.RoleEdge, State: discovery.StateUp, TTL: time.Minute,
		Addr: discovery.Addr{RTMP: "two:1935", HTTP: "two:8080"},
	}); err != nil {
		t.Fatal(err)
	}
	e = startEdge(t, "edge-3", quick(), dir).edge // has asked nobody yet
	f(session.KindPlay, "", "two:1935 two:8080")
	f(session.KindPublish, "", "two:1935 two:8080")
	f(session.KindHLS, "", "two:1935 two:8080")
	f(session.KindPlay, "tier-2", "draining")
	f(session.KindPublish, "tier-2", "draining")
}
