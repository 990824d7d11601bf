package discovery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// optic is a cable that carries watches, too, and breaks them when it is cut.
type optic struct {
	*cable
	mu      sync.Mutex
	watches []context.CancelCauseFunc // of those under way
	begun   []time.Time               // when each of all watches began
	since   []string                  // and from where
}

func (o *optic) Watch(ctx context.Context, q WatchQuery, tell func([]Event) error) error {
	o.mu.Lock()
	o.begun, o.since = append(o.begun, time.Now()), append(o.since, q.Since)
	o.mu.Unlock()
	if err := o.err(); err != nil { // which may take its time
		return err
	}
	o.mu.Lock()
	if err := o.cable.broken(); err != nil { // since
		o.mu.Unlock()
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	o.watches = append(o.watches, cancel)
	o.mu.Unlock()
	o.cable.mu.Lock()
	w := o.Directory.(Watcher)
	o.cable.mu.Unlock()
	return w.Watch(ctx, q, tell)
}

// cut cuts everything, or mends it.
func (o *optic) cut(cut bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.setCut(cut)
	if cut {
		for _, cancel := range o.watches {
			cancel(errCut)
		}
		o.watches = nil
	}
}

// copyOf is a watcher that keeps what it is told.
type copyOf struct {
	streams map[string]Lease
	nodes   map[string]Node
	mark    string
	resets  int
	synced  func() // called at each mark, may be nil
}

func newCopy() *copyOf { return &copyOf{streams: map[string]Lease{}, nodes: map[string]Node{}} }

func (c *copyOf) tell(events []Event) error {
	for _, e := range events {
		switch {
		case e.Reset:
			c.resets++
			clear(c.streams)
			clear(c.nodes)
		case e.Lease != nil:
			c.streams[e.Lease.Stream] = *e.Lease
		case e.Ended != nil:
			delete(c.streams, e.Ended.Stream)
		case e.Node != nil:
			c.nodes[e.Node.ID] = *e.Node
		case e.Left != "":
			delete(c.nodes, e.Left)
		case e.Synced != "":
			c.mark = e.Synced
			if c.synced != nil {
				c.synced()
			}
		}
	}
	return nil
}

// catchUp watches until everything of now has been told.
func (c *copyOf) catchUp(t *testing.T, w Watcher, role Role) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.synced = cancel
	if err := w.Watch(ctx, WatchQuery{Since: c.mark, Role: role}, c.tell); !errors.Is(err, context.Canceled) {
		t.Fatalf("Watch: %v", err)
	}
}

// wantSame compares the copy with the directory.
func (c *copyOf) wantSame(t *testing.T, m *Memory) {
	t.Helper()
	page, _, err := m.Streams(t.Context(), StreamQuery{})
	if err != nil {
		t.Fatal(err)
	}
	if len(page) != len(c.streams) {
		t.Errorf("the copy has %d streams, the directory %d", len(c.streams), len(page))
	}
	for _, l := range page {
		if got := c.streams[l.Stream]; !sameOwnership(got, l) || got.Idle != l.Idle {
			t.Errorf("the copy has %+v, the directory %+v", got, l)
		}
	}
	nodes, _, err := m.Nodes(t.Context(), NodeQuery{})
	if err != nil {
		t.Fatal(err)
	}
	if len(nodes) != len(c.nodes) {
		t.Errorf("the copy has %d nodes, the directory %d", len(c.nodes), len(nodes))
	}
	for _, n := range nodes {
		if got := c.nodes[n.ID]; n.differs(&got) {
			t.Errorf("the copy has %+v, the directory %+v", got, n)
		}
	}
}

func TestWatchTellsWhatChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() { _ = m.Run(ctx) })
		first := mustClaim(t, m, claimBy(selfA, demo))

		var mu sync.Mutex
		var got []string
		wg.Go(func() {
			err := m.Watch(ctx, WatchQuery{Role: RoleOrigin}, func(events []Event) error {
				mu.Lock()
				defer mu.Unlock()
				for _, e := range events {
					switch {
					case e.Reset:
						got = append(got, "reset")
					case e.Lease != nil:
						got = append(got, fmt.Sprintf("%s %s idle=%v", e.Lease.Node, e.Lease.Addr.RTMP, e.Lease.Idle))
					case e.Ended != nil:
						got = append(got, "ended "+e.Ended.Stream)
					case e.Node != nil:
						got = append(got, fmt.Sprintf("node %s %s %v", e.Node.ID, e.Node.State, e.Node.Load["cpu"]))
					case e.Left != "":
						got = append(got, "left "+e.Left)
					}
				}
				return nil
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Watch: %v", err)
			}
		})
		want := func(want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("told %q, want %q", got, want)
			}
			got = nil
		}
		want("reset", "a 10.0.0.1:1935 idle=false")

		// What only prolongs is not told.
		mustRenew(t, m, renewalBy(selfA, first))
		mustClaim(t, m, claimBy(selfA, demo))
		want()
		first.Idle = true
		mustRenew(t, m, renewalBy(selfA, first))
		want("a 10.0.0.1:1935 idle=true")
		mustClaim(t, m, claimBy(selfA, demo))
		want("a 10.0.0.1:1935 idle=false")
		moved := renewalBy(selfA, first)
		moved.Addr, moved.Leases[0].Idle = addrB, false
		mustRenew(t, m, moved)
		want("a 10.0.0.2:1935 idle=false")
		c := claimBy(selfB, demo)
		c.Replace = true
		l := mustClaim(t, m, c)
		want("b 10.0.0.2:1935 idle=false")
		if err := m.Release(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		want("ended " + demo)
		mustClaim(t, m, claimBy(selfB, demo))
		want("b 10.0.0.2:1935 idle=false")
		time.Sleep(ttl + sweepEvery)
		want("ended " + demo)

		beat := func(state State, role Role, cpu float64) {
			t.Helper()
			if err := m.Heartbeat(t.Context(), Node{ID: "a", Instance: "1", Role: role, State: state, Addr: addrA, Load: map[string]float64{"cpu": cpu}}); err != nil {
				t.Fatal(err)
			}
		}
		beat(StateUp, RoleOrigin, 0.1)
		want("node a up 0.1")
		beat(StateUp, RoleOrigin, 0.2)
		want() // too soon for the load alone
		beat(StateDraining, RoleOrigin, 0.3)
		want("node a draining 0.3")
		time.Sleep(tellLoadEvery)
		beat(StateDraining, RoleOrigin, 0.3)
		want()
		beat(StateDraining, RoleOrigin, 0.4)
		want("node a draining 0.4")
		beat(StateUp, RoleEdge, 0.4) // an origin that has become an edge
		want("left a")
		beat(StateUp, RoleOrigin, 0.4)
		want("left a", "node a up 0.4")
		time.Sleep(ttl + sweepEvery)
		want("left a")
		beat(StateUp, RoleOrigin, 0.5)
		if err := m.Goodbye(t.Context(), "a", "1"); err != nil {
			t.Fatal(err)
		}
		want("node a up 0.5", "left a")
	})
}

// A watcher that comes back is told what it has missed, if that is remembered, and
// else everything.
func TestWatchGoesOn(t *testing.T) {
	m := newMemory()
	c := newCopy()
	mustClaim(t, m, claimBy(selfA, demo))
	c.catchUp(t, m, "")
	mustClaim(t, m, claimBy(selfA, "v/live/2"))
	c.catchUp(t, m, "")
	c.wantSame(t, m)
	if c.resets != 1 {
		t.Errorf("%d snapshots, want 1", c.resets)
	}
	// Another directory, or nonsense, is no place to go on from.
	other := newMemory()
	mustClaim(t, other, claimBy(selfB, demo))
	c.catchUp(t, other, "")
	c.wantSame(t, other)
	for _, mark := range []string{"x", other.feed.id, other.feed.mark(1 << 40), other.feed.id + "--1"} {
		c.mark = mark
		c.catchUp(t, other, "")
	}
	c.wantSame(t, other)
	if c.resets != 6 {
		t.Errorf("%d snapshots, want 6", c.resets)
	}
	// The log is bounded, and who was away for too long starts over.
	l := mustClaim(t, other, claimBy(selfB, demo))
	flood(t, other, l)
	if other.feed.bytes > feedBytes || len(other.feed.log) > 20_000 {
		t.Errorf("the log has %d entries of %d bytes", len(other.feed.log), other.feed.bytes)
	}
	c.catchUp(t, other, "")
	c.wantSame(t, other)
	if c.resets != 7 {
		t.Errorf("%d snapshots, want 7", c.resets)
	}
	for _, q := range []WatchQuery{{Role: "king"}, {Since: strings.Repeat("x", MaxMarkLen+1)}} {
		if err := m.Watch(t.Context(), q, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("Watch(%+v): %v", q, err)
		}
	}
}

// flood makes more changes than the log holds.
func flood(t *testing.T, m *Memory, l Lease) {
	t.Helper()
	r := Renewal{Node: l.Node, Instance: l.Instance, Addr: l.Addr}
	for i := range 20_000 {
		r.Leases = append(r.Leases, Held{Stream: l.Stream, Epoch: l.Epoch, Idle: i%2 == 0})
	}
	mustRenew(t, m, r)
}

// One who takes events more slowly than they come is told everything anew, and in
// the end to go.
func TestSlowWatchersStartOver(t *testing.T) {
	m := newMemory()
	l := mustClaim(t, m, claimBy(selfA, demo))
	resets := 0
	err := m.Watch(t.Context(), WatchQuery{}, func(events []Event) error {
		for _, e := range events {
			if e.Reset {
				resets++
			}
		}
		flood(t, m, l)
		return nil
	})
	if !errors.Is(err, ErrUnavailable) || resets != 4 {
		t.Errorf("after %d snapshots: %v", resets, err)
	}
}

// Whatever happens while watchers come and go, what they are told adds up to what
// the directory has.
func TestCopiesAreTrue(t *testing.T) {
	m := newMemory()
	stop := make(chan struct{})
	var changes, readers sync.WaitGroup
	for i := range 4 {
		rnd := rand.New(rand.NewPCG(1, uint64(i)))
		changes.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				self := Self{Node: fmt.Sprint("n", rnd.IntN(3)), Instance: "1", Addr: addrA}
				stream := fmt.Sprintf("v/live/%d", rnd.IntN(500))
				switch rnd.IntN(8) {
				case 0, 1, 2:
					c := claimBy(self, stream)
					c.Replace = rnd.IntN(2) == 0
					_, _ = m.Claim(context.Background(), c)
				case 3, 4:
					if l, err := m.Lookup(context.Background(), stream); err == nil {
						_ = m.Release(context.Background(), l)
					}
				case 5:
					if l, err := m.Lookup(context.Background(), stream); err == nil {
						l.Idle = !l.Idle
						_, _ = m.Renew(context.Background(), renewalBy(self, l))
					}
				case 6:
					_ = m.Heartbeat(context.Background(), Node{ID: self.Node, Instance: fmt.Sprint(rnd.IntN(2)), Role: RoleOrigin, State: StateUp})
				case 7:
					if rnd.IntN(20) == 0 {
						_ = m.Goodbye(context.Background(), self.Node, "")
					}
				}
			}
		})
	}
	copies := make([]*copyOf, 4)
	for i := range copies {
		copies[i] = newCopy()
		readers.Go(func() {
			for n := range 100 {
				if n%10 == 0 {
					copies[i].mark = ""
				}
				copies[i].catchUp(t, m, "")
			}
		})
	}
	readers.Wait()
	close(stop)
	changes.Wait()
	for _, c := range copies {
		c.catchUp(t, m, "")
		c.wantSame(t, m)
	}
}

func FuzzParseEvent(f *testing.F) {
	for _, e := range []Event{
		{Reset: true}, {Lease: &Lease{Stream: demo, Node: "a", Epoch: 5, Addr: addrA, Idle: true}}, {Ended: &End{demo, 5}},
		{Kicked: &Kicked{Stream: demo, Epoch: 6, Until: time.Now().Add(time.Hour), Reason: "spam"}},
		{Node: &Node{ID: "a", Role: RoleEdge, State: StateUp, Load: map[string]float64{"cpu": 1}}}, {Left: "a"}, {Synced: "x-1"},
	} {
		line, err := e.line()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line)
	}
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"later":1}`))
	f.Add([]byte(`{"reset":true,"left":"a"}`))
	f.Add([]byte(`{"lease":{"stream":"v/a/n","node":"","epoch":1}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := parseEvent(line)
		if err != nil {
			return
		}
		again, err := e.line()
		if err != nil {
			t.Fatal(err)
		}
		e2, err := parseEvent(again)
		if err != nil {
			t.Fatalf("%s became %s: %v", line, again, err)
		}
		switch {
		case e.Lease != nil:
			if !sameOwnership(*e.Lease, *e2.Lease) || e.Lease.Idle != e2.Lease.Idle {
				t.Errorf("%s became %s", line, again)
			}
		case e.Node != nil:
			if e.Node.differs(e2.Node) || !maps.Equal(e.Node.Load, e2.Node.Load) {
				t.Errorf("%s became %s", line, again)
			}
		case e.Ended != nil:
			if *e.Ended != *e2.Ended {
				t.Errorf("%s became %s", line, again)
			}
		case e.Kicked != nil:
			k, k2 := *e.Kicked, *e2.Kicked
			k.Until, k2.Until = time.Time{}, time.Time{}
			if k != k2 {
				t.Errorf("%s became %s", line, again)
			}
		default:
			if e != e2 {
				t.Errorf("%s became %s", line, again)
			}
		}
	})
}
