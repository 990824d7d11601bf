// Package dirtest is the suite of tests that every engine of the directory has to
// pass, so that nodes need not know which one there is.
package dirtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/discovery"
)

// Engine is what the suite tests.
type Engine interface {
	discovery.Engine
	discovery.Watcher
}

const demo = "__defaultVhost__/live/demo"

var (
	addrA = discovery.Addr{RTMP: "10.0.0.1:1935", HTTP: "10.0.0.1:8080", API: "10.0.0.1:9090"}
	addrB = discovery.Addr{RTMP: "10.0.0.2:1935", HTTP: "10.0.0.2:8080", API: "10.0.0.2:9090"}
	selfA = discovery.Self{Node: "a", Instance: "a1", Addr: addrA}
	selfB = discovery.Self{Node: "b", Instance: "b1", Addr: addrB}
)

// ttl of leases in the suite: the shortest that all engines keep.
const ttl = 2 * time.Second

// Run runs the suite, with that number of races for one name. open returns an empty
// engine, which runs until the test ends.
func Run(t *testing.T, races int, open func(t *testing.T) Engine) {
	for _, c := range []struct {
		name string
		f    func(*testing.T, Engine)
	}{
		{"life of an ownership", life},
		{"taking over", takingOver},
		{"owners found dead", dead},
		{"what is restored", restored},
		{"later epoch wins", laterEpoch},
		{"claims that say what they held", held},
		{"nodes", nodes},
		{"a lease ends with its TTL", expiry},
		{"listings", listings},
		{"watching", watching},
		{"kicks and bans", kicks},
		{"mistakes", mistakes},
		{"rivals", func(t *testing.T, d Engine) { Rivals(t, races, d, d) }},
	} {
		t.Run(c.name, func(t *testing.T) { t.Parallel(); c.f(t, open(t)) })
	}
}

func claimBy(s discovery.Self, stream string) discovery.Claim {
	return discovery.Claim{Stream: stream, Node: s.Node, Instance: s.Instance, Addr: s.Addr, TTL: time.Minute}
}

func renewalBy(s discovery.Self, leases ...discovery.Lease) discovery.Renewal {
	r := discovery.Renewal{Node: s.Node, Instance: s.Instance, Addr: s.Addr, TTL: time.Minute}
	for _, l := range leases {
		r.Leases = append(r.Leases, discovery.Held{Stream: l.Stream, Epoch: l.Epoch, Idle: l.Idle, Publisher: l.Publisher})
	}
	return r
}

func mustClaim(t *testing.T, d discovery.Leases, c discovery.Claim) discovery.Lease {
	t.Helper()
	l, err := d.Claim(t.Context(), c)
	if err != nil {
		t.Fatalf("Claim(%s by %s): %v", c.Stream, c.Node, err)
	}
	if l.Stream != c.Stream || l.Node != c.Node || l.Instance != c.Instance || l.Addr != c.Addr || l.Epoch == 0 || l.Idle || !l.Expires.After(time.Now()) {
		t.Fatalf("Claim(%s by %s) = %+v", c.Stream, c.Node, l)
	}
	return l
}

func wantConflict(t *testing.T, err error, owner string) {
	t.Helper()
	var c *discovery.ConflictError
	if !errors.As(err, &c) || c.Lease.Node != owner {
		t.Fatalf("got %v, want a conflict with %s", err, owner)
	}
}

// wantLost renews and compares what was lost: "" for nothing, "none" for a lease
// that nobody has now, or the owner.
func wantLost(t *testing.T, d discovery.Leases, r discovery.Renewal, want ...string) {
	t.Helper()
	lost, err := d.Renew(t.Context(), r)
	if err != nil {
		t.Fatalf("Renew: %v", err)
	}
	var got []string
	for _, l := range lost {
		switch {
		case l.Now == nil:
			got = append(got, "none")
		default:
			got = append(got, l.Now.Node)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Fatalf("Renew lost %+v to %v, want %v", lost, got, want)
	}
}

func wantOwner(t *testing.T, d discovery.Finder, stream, node string) discovery.Lease {
	t.Helper()
	l, err := d.Lookup(t.Context(), stream)
	switch {
	case node == "" && !errors.Is(err, discovery.ErrNotFound):
		t.Fatalf("Lookup(%s) = %+v, %v; want not found", stream, l, err)
	case node != "" && (err != nil || l.Node != node || l.Stream != stream):
		t.Fatalf("Lookup(%s) = %+v, %v; want owner %s", stream, l, err, node)
	}
	return l
}

func mustRelease(t *testing.T, d discovery.Leases, l discovery.Lease) {
	t.Helper()
	if err := d.Release(t.Context(), l); err != nil {
		t.Fatalf("Release: %v", err)
	}
}

func life(t *testing.T, d Engine) {
	wantOwner(t, d, demo, "")
	a := mustClaim(t, d, claimBy(selfA, demo))
	if again := mustClaim(t, d, claimBy(selfA, demo)); again.Epoch != a.Epoch {
		t.Errorf("claim of the holder has epoch %d, want %d", again.Epoch, a.Epoch)
	}
	wantLost(t, d, renewalBy(selfA, a))
	_, err := d.Claim(t.Context(), claimBy(selfB, demo))
	wantConflict(t, err, "a")
	if l := wantOwner(t, d, demo, "a"); l.Epoch != a.Epoch || l.Addr != addrA || l.Instance != "a1" || l.Idle {
		t.Errorf("owner %+v", l)
	}
	moved := renewalBy(selfA, a)
	moved.Addr = addrB
	wantLost(t, d, moved)
	if l := wantOwner(t, d, demo, "a"); l.Addr != addrB {
		t.Errorf("the owner has moved, its address is %+v", l.Addr)
	}
	wantConflict(t, d.Release(t.Context(), discovery.Lease{Stream: demo, Node: "b", Epoch: a.Epoch}), "a")
	wantConflict(t, d.Release(t.Context(), discovery.Lease{Stream: demo, Node: "a", Epoch: a.Epoch - 1}), "a")
	mustRelease(t, d, a)
	wantOwner(t, d, demo, "")
	mustRelease(t, d, a)
	b := mustClaim(t, d, claimBy(selfB, demo))
	if b.Epoch <= a.Epoch {
		t.Errorf("epoch went from %d to %d", a.Epoch, b.Epoch)
	}
	wantLost(t, d, renewalBy(selfA, a), "b")
	if now := uint64(time.Now().Add(time.Minute).UnixMicro()); b.Epoch > now {
		t.Errorf("epoch %d is far from the clock", b.Epoch)
	}
}

func takingOver(t *testing.T, d Engine) {
	n := 0
	f := func(name string, prepare func(discovery.Lease), change func(*discovery.Claim), taken bool) {
		t.Helper()
		n++
		stream := fmt.Sprintf("v/live/%d", n)
		a := mustClaim(t, d, claimBy(selfA, stream))
		if prepare != nil {
			prepare(a)
		}
		c := claimBy(selfB, stream)
		if change != nil {
			change(&c)
		}
		got, err := d.Claim(t.Context(), c)
		if !taken {
			wantConflict(t, err, "a")
			return
		}
		if err != nil || got.Epoch <= a.Epoch {
			t.Fatalf("%s: %+v, %v; want an epoch above %d", name, got, err, a.Epoch)
		}
		wantLost(t, d, renewalBy(selfA, a), c.Node)
		if l := wantOwner(t, d, stream, c.Node); l.Epoch != got.Epoch || l.Idle {
			t.Errorf("%s: owner is %+v", name, l)
		}
	}
	idle := func(a discovery.Lease) { a.Idle = true; wantLost(t, d, renewalBy(selfA, a)) }
	f("another node", nil, nil, false)
	f("replace", nil, func(c *discovery.Claim) { c.Replace = true }, true)
	f("idle", idle, nil, true)
	f("idle and live again", func(a discovery.Lease) { idle(a); wantLost(t, d, renewalBy(selfA, a)) }, nil, false)
	f("idle and claimed again", func(a discovery.Lease) { idle(a); mustClaim(t, d, claimBy(selfA, a.Stream)) }, nil, false)
	known := func(a discovery.Lease) {
		c := claimBy(selfA, a.Stream)
		c.Publisher = "p1"
		if a = mustClaim(t, d, c); a.Publisher != "p1" {
			t.Errorf("claimed for p1: %+v", a)
		}
		idle(a)
		wantLost(t, d, renewalBy(selfA, a)) // live again
	}
	f("another publisher", known, func(c *discovery.Claim) { c.Publisher = "p2" }, false)
	f("the same publisher", known, func(c *discovery.Claim) { c.Publisher = "p1" }, true)
	f("the publisher of the last renewal", func(a discovery.Lease) {
		known(a)
		a.Publisher = "p2"
		wantLost(t, d, renewalBy(selfA, a))
		if l := wantOwner(t, d, a.Stream, "a"); l.Publisher != "p2" {
			t.Errorf("renewed for p2: %+v", l)
		}
	}, func(c *discovery.Claim) { c.Publisher = "p2" }, true)
	f("the publisher before it", func(a discovery.Lease) {
		known(a)
		wantLost(t, d, renewalBy(selfA, a)) // of none that can prove it
	}, func(c *discovery.Claim) { c.Publisher = "p1" }, false)
	f("restarted node", nil, func(c *discovery.Claim) { c.Node, c.Instance, c.Addr = "a", "a2", addrA }, true)
}

func restored(t *testing.T, d Engine) {
	now := uint64(time.Now().UnixMicro())
	// Unknown leases come back with their epochs: this is how lost data are restored.
	l := discovery.Lease{Stream: demo, Epoch: now - 1e6, Idle: true}
	wantLost(t, d, renewalBy(selfA, l))
	if got := wantOwner(t, d, demo, "a"); got.Epoch != l.Epoch || !got.Idle || got.Addr != addrA {
		t.Errorf("restored as %+v", got)
	}
	// But not what is older than an ownership that has ended, nor what was released.
	b := mustClaim(t, d, claimBy(selfB, demo)) // it is idle
	mustRelease(t, d, b)
	wantLost(t, d, renewalBy(selfA, l), "none")
	wantLost(t, d, renewalBy(selfB, b), "none")
	// Nor what no clock could have given.
	for _, epoch := range []uint64{0, now * 2} {
		wantLost(t, d, renewalBy(selfA, discovery.Lease{Stream: "v/live/odd", Epoch: epoch}), "none")
	}
	wantOwner(t, d, demo, "")
	if next := mustClaim(t, d, claimBy(selfA, demo)); next.Epoch <= b.Epoch {
		t.Errorf("epoch %d after %d", next.Epoch, b.Epoch)
	}
	// A clock that is ahead is followed.
	ahead := discovery.Lease{Stream: "v/live/ahead", Epoch: now + 3600e6}
	wantLost(t, d, renewalBy(selfA, ahead))
	c := claimBy(selfB, ahead.Stream)
	c.Replace = true
	if l := mustClaim(t, d, c); l.Epoch <= ahead.Epoch {
		t.Errorf("epoch %d after %d", l.Epoch, ahead.Epoch)
	}
	// Many at once.
	var many []discovery.Lease
	for i := range 500 {
		many = append(many, discovery.Lease{Stream: fmt.Sprintf("v/many/%d", i), Epoch: now})
	}
	wantLost(t, d, renewalBy(selfB, many...))
	many[7].Idle = true
	wantLost(t, d, renewalBy(selfB, many...))
	for i, l := range many {
		if got := wantOwner(t, d, l.Stream, "b"); got.Epoch != now || got.Idle != (i == 7) {
			t.Fatalf("restored as %+v", got)
		}
	}
}

func laterEpoch(t *testing.T, d Engine) {
	// Both took the name while the directory was away.
	now := uint64(time.Now().UnixMicro())
	early, late := discovery.Lease{Stream: demo, Epoch: now}, discovery.Lease{Stream: demo, Epoch: now + 1}
	wantLost(t, d, renewalBy(selfA, early))
	wantLost(t, d, renewalBy(selfB, late))
	wantLost(t, d, renewalBy(selfA, early), "b")
	if l := wantOwner(t, d, demo, "b"); l.Epoch != late.Epoch {
		t.Errorf("owner %+v", l)
	}
}

func held(t *testing.T, d Engine) {
	now := uint64(time.Now().UnixMicro())
	c := claimBy(selfA, demo)
	c.Held = now
	if l := mustClaim(t, d, c); l.Epoch != now {
		t.Errorf("a held epoch %d became %d", now, l.Epoch)
	}
	c = claimBy(selfB, demo)
	c.Held = now - 1
	_, err := d.Claim(t.Context(), c)
	wantConflict(t, err, "a")
	c.Held = now + 1
	if l := mustClaim(t, d, c); l.Epoch != now+1 {
		t.Errorf("a later held epoch %d became %d", now+1, l.Epoch)
	}
}

func beat(t *testing.T, d Engine, n discovery.Node) {
	t.Helper()
	if err := d.Heartbeat(t.Context(), n); err != nil {
		t.Fatalf("Heartbeat: %v", err)
	}
}

// wantNodes waits until the nodes listed are these: an engine may answer from a copy
// that is as far behind as its watch.
func wantNodes(t *testing.T, d Engine, q discovery.NodeQuery, want ...string) {
	t.Helper()
	eventually(t, 10*time.Second, fmt.Sprintf("the nodes %v", want), func() bool {
		page, _, err := d.Nodes(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		return slices.EqualFunc(page, want, func(n discovery.Node, id string) bool { return n.ID == id })
	})
}

// wantNode waits until the node is listed as ok wants it.
func wantNode(t *testing.T, d Engine, id, what string, ok func(n discovery.Node) bool) {
	t.Helper()
	eventually(t, 10*time.Second, "node "+id+" "+what, func() bool {
		page, _, err := d.Nodes(t.Context(), discovery.NodeQuery{})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(page, func(n discovery.Node) bool { return n.ID == id })
		return i >= 0 && ok(page[i])
	})
}

func nodes(t *testing.T, d Engine) {
	a := discovery.Node{
		ID: "a", Instance: "a1", Role: discovery.RoleOrigin, State: discovery.StateUp, Addr: addrA, Version: "1",
		Load: map[string]float64{"cpu": 0.5}, Labels: map[string]string{"region": "eu"}, TTL: time.Minute,
	}
	e := discovery.Node{ID: "e", Role: discovery.RoleEdge, State: discovery.StateStarting, TTL: time.Minute}
	beat(t, d, a)
	beat(t, d, e)
	beat(t, d, a)
	wantNodes(t, d, discovery.NodeQuery{}, "a", "e")
	wantNode(t, d, "a", "as it says it is", func(n discovery.Node) bool {
		return !n.Differs(a) && n.Load["cpu"] == 0.5 && time.Since(n.Seen) < time.Minute
	})
	wantNodes(t, d, discovery.NodeQuery{Role: discovery.RoleEdge}, "e")
	wantNodes(t, d, discovery.NodeQuery{After: "a"}, "e")
	if _, next, _ := d.Nodes(t.Context(), discovery.NodeQuery{Limit: 1}); next != "a" {
		t.Errorf("the page ends at %q", next)
	}
	a.State = discovery.StateDraining
	beat(t, d, a)
	wantNode(t, d, "a", "draining", func(n discovery.Node) bool { return n.State == discovery.StateDraining })
	wantNodes(t, d, discovery.NodeQuery{}, "a", "e")
	// A node that was restarted frees its streams, and one that leaves, too.
	l := mustClaim(t, d, claimBy(selfA, demo))
	other := mustClaim(t, d, claimBy(selfB, "v/live/other"))
	a.Instance = "a2"
	beat(t, d, a)
	wantOwner(t, d, demo, "")
	wantLost(t, d, renewalBy(selfA, l), "none")
	c := claimBy(selfA, demo)
	c.Instance = "a2"
	mustClaim(t, d, c)
	bye := func(id, instance string) {
		t.Helper()
		if err := d.Goodbye(t.Context(), id, instance); err != nil {
			t.Fatalf("Goodbye: %v", err)
		}
	}
	bye("a", "a1") // the run before says so late
	wantOwner(t, d, demo, "a")
	wantNodes(t, d, discovery.NodeQuery{}, "a", "e")
	bye("a", "a2")
	wantOwner(t, d, demo, "")
	wantNodes(t, d, discovery.NodeQuery{}, "e")
	wantOwner(t, d, other.Stream, "b")
	bye("b", "") // which has sent no heartbeat
	wantOwner(t, d, other.Stream, "")
	bye("nobody", "x")
	bye("e", "")
	wantNodes(t, d, discovery.NodeQuery{})
}

// eventually waits for what takes an engine's own time.
func eventually(t *testing.T, d time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !f(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, d)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
}

func expiry(t *testing.T, d Engine) {
	c := claimBy(selfA, demo)
	c.TTL = ttl
	a := mustClaim(t, d, c)
	n := discovery.Node{ID: "a", Instance: "a1", Role: discovery.RoleOrigin, State: discovery.StateUp, TTL: ttl}
	beat(t, d, n)
	begun := time.Now()
	for time.Since(begun) < 2*ttl { // while it renews
		r := renewalBy(selfA, a)
		r.TTL = ttl
		wantLost(t, d, r)
		beat(t, d, n)
		wantOwner(t, d, demo, "a")
		select {
		case <-time.After(ttl / 4):
		case <-t.Context().Done():
		}
	}
	eventually(t, 30*time.Second, "the lease ends", func() bool {
		_, err := d.Lookup(t.Context(), demo)
		return errors.Is(err, discovery.ErrNotFound)
	})
	eventually(t, 30*time.Second, "the node is gone", func() bool {
		page, _, err := d.Nodes(t.Context(), discovery.NodeQuery{})
		return err == nil && len(page) == 0
	})
	// It may come back as it was, as long as nobody else came between.
	wantLost(t, d, renewalBy(selfA, a))
	if l := wantOwner(t, d, demo, "a"); l.Epoch != a.Epoch {
		t.Errorf("restored with epoch %d, want %d", l.Epoch, a.Epoch)
	}
}

func listings(t *testing.T, d Engine) {
	var all []string
	for _, s := range []discovery.Self{selfA, selfB} {
		for i := range 10 {
			for _, v := range []string{"v", "w"} {
				stream := fmt.Sprintf("%s/live/%s%d", v, s.Node, i)
				mustClaim(t, d, claimBy(s, stream))
				all = append(all, stream)
			}
		}
	}
	slices.Sort(all)
	f := func(q discovery.StreamQuery, match func(string) bool) {
		t.Helper()
		var got []string
		for {
			page, next, err := d.Streams(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range page {
				got = append(got, l.Stream)
			}
			if q.After = next; next == "" {
				break
			}
			if len(page) != q.Limit {
				t.Fatalf("a page of %d, want %d", len(page), q.Limit)
			}
		}
		want := slices.DeleteFunc(slices.Clone(all), func(s string) bool { return !match(s) })
		if !slices.Equal(got, want) {
			t.Errorf("%+v: %v, want %v", q, got, want)
		}
	}
	f(discovery.StreamQuery{}, func(string) bool { return true })
	f(discovery.StreamQuery{Limit: 7}, func(string) bool { return true })
	f(discovery.StreamQuery{Limit: 5}, func(string) bool { return true })
	f(discovery.StreamQuery{Limit: 4, Prefix: "w/"}, func(s string) bool { return s[0] == 'w' })
	f(discovery.StreamQuery{Limit: 3, Node: "b"}, func(s string) bool { return strings.Contains(s, "/b") })
	f(discovery.StreamQuery{Limit: 3, Prefix: "v/live/b3", Node: "b"}, func(s string) bool { return s == "v/live/b3" })
	f(discovery.StreamQuery{After: "v/zzz", Prefix: "v/"}, func(string) bool { return false })
}

// watcher collects what a watch tells, in words.
type watcher struct {
	mu   sync.Mutex
	got  []string
	mark string
}

func (w *watcher) tell(events []discovery.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range events {
		switch {
		case e.Reset:
			w.got = append(w.got, "reset")
		case e.Lease != nil:
			w.got = append(w.got, fmt.Sprintf("%s %s %d %s idle=%v", e.Lease.Stream, e.Lease.Node, e.Lease.Epoch, e.Lease.Addr.RTMP, e.Lease.Idle))
		case e.Ended != nil:
			w.got = append(w.got, fmt.Sprintf("ended %s %d", e.Ended.Stream, e.Ended.Epoch))
		case e.Kicked != nil:
			w.got = append(w.got, fmt.Sprintf("kicked %s %d banned=%v %s", e.Kicked.Stream, e.Kicked.Epoch, e.Kicked.Banned(time.Now()), e.Kicked.Reason))
		case e.Node != nil:
			w.got = append(w.got, fmt.Sprintf("node %s %s", e.Node.ID, e.Node.State))
		case e.Left != "":
			w.got = append(w.got, "left "+e.Left)
		case e.Synced != "":
			w.mark = e.Synced
		}
	}
	return nil
}

// want waits for what is told, and takes it away.
func (w *watcher) want(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for end := time.Now().Add(20 * time.Second); ; {
		w.mu.Lock()
		got = slices.Clone(w.got)
		w.mu.Unlock()
		if len(got) >= len(want) || time.Now().After(end) {
			break
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
	w.mu.Lock()
	w.got = w.got[len(got):]
	w.mu.Unlock()
	if !slices.Equal(got, want) {
		t.Fatalf("told %q, want %q", got, want)
	}
}

// watch watches from the last mark on until stop.
func (w *watcher) watch(t *testing.T, d discovery.Watcher) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	w.mu.Lock()
	q := discovery.WatchQuery{Since: w.mark, Role: discovery.RoleOrigin}
	w.mu.Unlock()
	go func() { done <- d.Watch(ctx, q, w.tell) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch: %v", err)
		}
	}
}

func watching(t *testing.T, d Engine) {
	say := func(l discovery.Lease) string {
		return fmt.Sprintf("%s %s %d %s idle=%v", l.Stream, l.Node, l.Epoch, l.Addr.RTMP, l.Idle)
	}
	n := discovery.Node{ID: "a", Instance: "a1", Role: discovery.RoleOrigin, State: discovery.StateUp, TTL: time.Minute}
	a := mustClaim(t, d, claimBy(selfA, demo))
	beat(t, d, n)
	beat(t, d, discovery.Node{ID: "e", Role: discovery.RoleEdge, State: discovery.StateUp, TTL: time.Minute})
	var w watcher
	stop := w.watch(t, d)
	w.want(t, "reset", say(a), "node a up")
	wantLost(t, d, renewalBy(selfA, a))
	a.Idle = true
	wantLost(t, d, renewalBy(selfA, a))
	w.want(t, say(a))
	b := mustClaim(t, d, claimBy(selfB, demo))
	w.want(t, say(b))
	mustRelease(t, d, b)
	w.want(t, fmt.Sprintf("ended %s %d", demo, b.Epoch))
	n.State = discovery.StateDraining
	beat(t, d, n)
	w.want(t, "node a draining")
	// Marks are told although nothing happens, and are good to go on from.
	w.mu.Lock()
	w.mark = ""
	w.mu.Unlock()
	eventually(t, 20*time.Second, "a beat", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.mark != "" })
	stop()
	c := mustClaim(t, d, claimBy(selfA, demo))
	if err := d.Goodbye(t.Context(), "a", "a1"); err != nil {
		t.Fatal(err)
	}
	stop = w.watch(t, d)
	eventually(t, 20*time.Second, "what was missed", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.got) == 3 })
	w.mu.Lock()
	slices.Sort(w.got) // of a goodbye, either may come first
	w.mu.Unlock()
	w.want(t, say(c), fmt.Sprintf("ended %s %d", demo, c.Epoch), "left a")
	stop()
	w.mu.Lock()
	w.mark = "nonsense-1"
	w.mu.Unlock()
	stop = w.watch(t, d)
	w.want(t, "reset")
	stop()
}

func mistakes(t *testing.T, d Engine) {
	ctx := t.Context()
	want := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, discovery.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", what, err)
		}
	}
	_, err := d.Claim(ctx, discovery.Claim{Stream: "x", Node: "a", Addr: addrA})
	want("claim", err)
	_, err = d.Renew(ctx, discovery.Renewal{Node: "a", Addr: addrA, Leases: []discovery.Held{{Stream: "x"}}})
	want("renew", err)
	want("release", d.Release(ctx, discovery.Lease{Stream: "x"}))
	_, err = d.Lookup(ctx, "x")
	want("look up", err)
	_, err = d.Kick(ctx, discovery.Kick{Stream: "x"})
	want("kick", err)
	_, err = d.Kick(ctx, discovery.Kick{Stream: demo, Ban: -time.Second})
	want("kick with a ban that has ended before", err)
	_, err = d.Kick(ctx, discovery.Kick{Stream: demo, Ban: time.Second, Reason: "a\nb"})
	want("kick for two lines", err)
	want("heartbeat", d.Heartbeat(ctx, discovery.Node{ID: "a"}))
	want("goodbye", d.Goodbye(ctx, "no id", ""))
	_, _, err = d.Streams(ctx, discovery.StreamQuery{Limit: -1})
	want("streams", err)
	_, _, err = d.Nodes(ctx, discovery.NodeQuery{Limit: discovery.MaxPage + 1})
	want("nodes", err)
	want("watch", d.Watch(ctx, discovery.WatchQuery{Role: "king"}, nil))
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := d.Watch(gone, discovery.WatchQuery{}, func([]discovery.Event) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a watch that nobody wants: %v", err)
	}
}
