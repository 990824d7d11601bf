package schedule

import (
	"math"
	"testing"
	"time"
)

// A reservation counts until a report shows its session, and then the part of it
// that the report's rates do not have, until the next one; or for 10 s; and no
// longer than its node's run.
func TestReservations(t *testing.T) {
	s := New(configured(nil), nil, 1)
	sessions, instance := 10.0, "i"
	seen := t0
	report := func(at time.Duration, more float64) {
		sessions += more
		seen = t0.Add(at)
		s.Update(seen, []Node{edge("a", 0.1, func(n *Node) { n.Sessions, n.Seen, n.Instance = sessions, seen, instance })})
	}
	place := func(at time.Duration, n int) {
		t.Helper()
		for range n {
			if _, err := s.Decide(t0.Add(at), Request{Action: Play, BitRate: 1e6}, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := func(at time.Duration, n float64) {
		t.Helper()
		c, err := s.Decide(t0.Add(at), Request{Action: Play, Peek: true}, false)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Nodes[0].Load - 0.1; math.Abs(got-n*1e-3) > 1e-9 {
			t.Errorf("at %v: %.4f is reserved, want %v sessions of 0.001", at, got, n)
		}
	}
	const ms = time.Millisecond
	report(0, 0)
	place(100*ms, 5)
	want(100*ms, 5)
	report(1000*ms, 3) // three have come
	want(1000*ms, 2.3) // a tenth of their rates is missing in this report
	report(2000*ms, 0)
	want(2000*ms, 2)
	place(2100*ms, 1)
	s.Update(t0.Add(2500*ms), []Node{edge("a", 0.1, func(n *Node) { n.Sessions, n.Seen = sessions, seen })})
	want(2500*ms, 3) // the same report again changes nothing
	for at := 3000 * ms; at <= 10_000*ms; at += 1000 * ms {
		report(at, -1) // sessions leave
	}
	want(10_099*ms, 3)
	want(10_150*ms, 1) // two of the first have not come within 10 s
	report(11_000*ms, 0)
	want(12_099*ms, 1)
	want(12_150*ms, 0)
	// More sessions than were reserved settle only what is there.
	place(12_200*ms, 2)
	report(13_000*ms, 50)
	want(13_000*ms, 0.4)
	report(14_000*ms, 0)
	want(14_000*ms, 0)
	// What was reserved after a report is not shown by it.
	place(14_500*ms, 1)
	seen = t0.Add(14_400 * ms)
	s.Update(t0.Add(14_600*ms), []Node{edge("a", 0.1, func(n *Node) { n.Sessions, n.Seen = sessions+1, seen })})
	sessions++
	report(15_400*ms, 0)
	want(15_400*ms, 1)
	// A node that was restarted has none of it.
	instance = "j"
	report(15_500*ms, 0)
	want(15_500*ms, 0)
}

// Without a bit rate in the request the mean of all sessions is reserved, or what
// is configured if there are none.
func TestBitRateOfASession(t *testing.T) {
	f := func(nodes []Node, asked, want float64) {
		t.Helper()
		s := New(configured(nil), nil, 1)
		s.Update(t0, nodes)
		if _, err := s.Decide(t0, Request{Action: Play, BitRate: asked}, false); err != nil {
			t.Fatal(err)
		}
		bits := 0.0
		for _, n := range s.about {
			bits += n.reserved.bits
		}
		if bits != want {
			t.Errorf("%v bit/s are reserved, want %v", bits, want)
		}
	}
	busy := func(n *Node) { n.Egress, n.Sessions = 300e6, 100 }
	f([]Node{edge("a", 0.1)}, 0, 2e6)
	f([]Node{edge("a", 0.1, busy), edge("b", 0.1, busy)}, 0, 3e6)
	f([]Node{edge("a", 0.1, busy)}, 5e6, 5e6)
	f([]Node{edge("a", 0.1, busy)}, 1e15, 1e9)
}
