package discovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func TestOwnershipThroughItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		wantOwner(t, m, demo, "")

		// a gets the stream, and keeps its epoch however often it claims.
		a := mustClaim(t, m, claimBy(selfA, demo))
		time.Sleep(ttl - 1)
		if again := mustClaim(t, m, claimBy(selfA, demo)); again.Epoch != a.Epoch {
			t.Errorf("claim of the holder has epoch %d, want %d", again.Epoch, a.Epoch)
		}

		// b cannot have it while a renews, whatever time passes.
		for range 3 {
			time.Sleep(ttl - 1)
			if lost := mustRenew(t, m, renewalBy(selfA, a)); len(lost) != 0 {
				t.Fatalf("renewal lost %+v", lost)
			}
			_, err := m.Claim(t.Context(), claimBy(selfB, demo))
			if l := mustConflict(t, err, "a"); l.Epoch != a.Epoch || l.Addr != addrA {
				t.Errorf("conflict carries %+v", l)
			}
		}

		// The lease ends with its TTL, to the nanosecond.
		time.Sleep(ttl - 1)
		wantOwner(t, m, demo, "a")
		time.Sleep(time.Nanosecond)
		wantOwner(t, m, demo, "")

		// The next ownership is b's, with a larger epoch, and a learns of it.
		b := mustClaim(t, m, claimBy(selfB, demo))
		if b.Epoch <= a.Epoch {
			t.Errorf("epoch went from %d to %d", a.Epoch, b.Epoch)
		}
		lost := mustRenew(t, m, renewalBy(selfA, a))
		if len(lost) != 1 || lost[0].Stream != demo || lost[0].Epoch != a.Epoch || lost[0].Now == nil || lost[0].Now.Node != "b" {
			t.Errorf("renewal of the old owner lost %+v", lost)
		}

		// Only the holder can release, and only its own epoch.
		mustConflict(t, m.Release(t.Context(), a), "b")
		mustConflict(t, m.Release(t.Context(), Lease{Stream: demo, Node: "b", Epoch: a.Epoch}), "b")
		if err := m.Release(t.Context(), b); err != nil {
			t.Errorf("Release: %v", err)
		}
		wantOwner(t, m, demo, "")
		if err := m.Release(t.Context(), b); err != nil {
			t.Errorf("second Release: %v", err)
		}
		if c := mustClaim(t, m, claimBy(selfB, demo)); c.Epoch <= b.Epoch {
			t.Errorf("after a release the epoch went from %d to %d", b.Epoch, c.Epoch)
		}
	})
}

func TestTakingOver(t *testing.T) {
	f := func(name string, prepare func(*Memory, Lease), c Claim, taken bool) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			first := claimBy(selfA, demo)
			first.Publisher = "alice"
			a := mustClaim(t, m, first)
			if prepare != nil {
				prepare(m, a)
			}
			got, err := m.Claim(t.Context(), c)
			if !taken {
				mustConflict(t, err, "a")
				return
			}
			if err != nil || got.Epoch <= a.Epoch {
				t.Fatalf("%s: got %+v, %v; want an epoch above %d", name, got, err, a.Epoch)
			}
			lost := mustRenew(t, m, renewalBy(selfA, a))
			if len(lost) != 1 || lost[0].Now == nil || lost[0].Now.Epoch != got.Epoch {
				t.Errorf("%s: the old owner's renewal lost %+v", name, lost)
			}
			if l := wantOwner(t, m, demo, c.Node); l.Epoch != got.Epoch {
				t.Errorf("%s: owner is %+v", name, l)
			}
		})
	}
	replace := claimBy(selfB, demo)
	replace.Replace = true
	restarted := claimBy(selfA, demo)
	restarted.Instance = "a2"
	idle := func(m *Memory, a Lease) { a.Idle = true; mustRenew(t, m, renewalBy(selfA, a)) }
	live := func(m *Memory, a Lease) { idle(m, a); mustRenew(t, m, renewalBy(selfA, a)) }

	as := func(publisher string) Claim {
		c := claimBy(selfB, demo)
		c.Publisher = publisher
		return c
	}
	// Restored by the owner, with its publisher.
	restored := func(m *Memory, a Lease) {
		m.mu.Lock()
		delete(m.streams, demo)
		m.mu.Unlock()
		mustRenew(t, m, renewalBy(selfA, a))
	}
	f("the same publisher", nil, as("alice"), true)
	f("another publisher", nil, as("carol"), false)
	f("the same publisher, restored", restored, as("alice"), true)
	f("another publisher, restored", restored, as("carol"), false)
	f("another node", nil, claimBy(selfB, demo), false)
	f("replace", nil, replace, true)
	f("idle", idle, claimBy(selfB, demo), true)
	f("idle and live again", live, claimBy(selfB, demo), false)
	f("restarted node", nil, restarted, true)
}

func TestRestartedDirectoryIsRestoredByRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := newMemory()
		a := mustClaim(t, before, claimBy(selfA, demo))
		other := mustClaim(t, before, claimBy(selfA, "v/live/other"))
		time.Sleep(time.Second)

		m := newMemory()
		// Already before any renewal, epochs go on above those of the last run.
		if l := mustClaim(t, m, claimBy(selfB, "v/live/other")); l.Epoch <= other.Epoch {
			t.Errorf("the restarted directory gave epoch %d after %d", l.Epoch, other.Epoch)
		}
		lost := mustRenew(t, m, renewalBy(selfA, a, other))
		if len(lost) != 1 || lost[0].Stream != "v/live/other" || lost[0].Now.Node != "b" {
			t.Errorf("renewal lost %+v, want only what b has now", lost)
		}
		if l := wantOwner(t, m, demo, "a"); l.Epoch != a.Epoch {
			t.Errorf("restored with epoch %d, want %d", l.Epoch, a.Epoch)
		}

		// A node whose clock is ahead lifts the epochs of all that follows.
		ahead := Lease{Stream: "v/live/ahead", Epoch: a.Epoch + 1e12}
		if lost := mustRenew(t, m, renewalBy(selfA, ahead)); len(lost) != 0 {
			t.Errorf("renewal lost %+v", lost)
		}
		if l := mustClaim(t, m, claimBy(selfB, "v/live/new")); l.Epoch <= ahead.Epoch {
			t.Errorf("epoch %d was given out after %d was seen", l.Epoch, ahead.Epoch)
		}
	})
}

func TestWhatCannotBeRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(func(c *MemoryConfig) { c.MaxStreams = 3 })
		lostBy := func(s Self, l Lease, want bool, why string) {
			t.Helper()
			lost := mustRenew(t, m, renewalBy(s, l))
			if got := len(lost) == 1; got != want {
				t.Errorf("%s: lost is %v, want %v", why, got, want)
			} else if got && lost[0].Now != nil {
				t.Errorf("%s: lost to %+v, want nobody", why, lost[0].Now)
			}
		}
		a := mustClaim(t, m, claimBy(selfA, demo))
		time.Sleep(ttl)
		lostBy(selfA, a, false, "expired, nobody came between")
		if err := m.Release(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		lostBy(selfA, a, true, "a renewal that arrives after the release")

		b := mustClaim(t, m, claimBy(selfB, demo))
		time.Sleep(ttl)
		lostBy(selfA, a, true, "b's ownership came between")
		lostBy(selfB, b, false, "b was the last")

		// Also when the name is not remembered any more.
		time.Sleep(ttl)
		m.sweep()
		time.Sleep(endedFor)
		m.sweep()
		if len(m.ended) != 0 {
			t.Fatalf("%d ended leases are remembered", len(m.ended))
		}
		lostBy(selfB, b, true, "forgotten")
		for i := range 10 { // more than are remembered
			l := mustClaim(t, m, claimBy(selfA, fmt.Sprintf("v/live/%d", i)))
			if err := m.Release(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			if len(m.ended) > 3 {
				t.Fatalf("%d ended leases are remembered, at most 3", len(m.ended))
			}
			lostBy(selfA, l, true, "released")
		}
		lostBy(selfA, Lease{Stream: "v/live/x", Epoch: uint64(time.Now().AddDate(1, 0, 0).UnixMicro()) + 1}, true, "an epoch of the far future")
		lostBy(selfA, Lease{Stream: "v/live/x", Epoch: 0}, true, "no epoch")
		time.Sleep(time.Second)
		lostBy(selfA, Lease{Stream: "v/live/x", Epoch: uint64(time.Now().UnixMicro())}, false, "a new one")
	})
}

func TestLaterEpochWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := mustClaim(t, m, claimBy(selfA, demo))
		time.Sleep(time.Second)
		provisional := Lease{Stream: demo, Epoch: uint64(time.Now().UnixMicro())}
		if lost := mustRenew(t, m, renewalBy(selfB, provisional)); len(lost) != 0 {
			t.Fatalf("the later epoch lost: %+v", lost)
		}
		if lost := mustRenew(t, m, renewalBy(selfA, a)); len(lost) != 1 || lost[0].Now.Node != "b" {
			t.Errorf("the earlier epoch lost %+v", lost)
		}
		// A far-off epoch wins nothing.
		if lost := mustRenew(t, m, renewalBy(selfA, Lease{Stream: demo, Epoch: 1 << 62})); len(lost) != 1 {
			t.Error("an epoch of the far future took the stream")
		}
	})
}

func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(func(c *MemoryConfig) { c.MaxStreams, c.MaxNodes = 2, 2 })
		one := mustClaim(t, m, claimBy(selfA, "v/live/1"))
		mustClaim(t, m, claimBy(selfA, "v/live/2"))
		if _, err := m.Claim(t.Context(), claimBy(selfA, "v/live/3")); !errors.Is(err, ErrFull) {
			t.Errorf("third claim: %v", err)
		}
		if lost := mustRenew(t, m, renewalBy(selfA, Lease{Stream: "v/live/3", Epoch: one.Epoch})); len(lost) != 1 {
			t.Error("a third lease was restored")
		}
		time.Sleep(ttl) // nobody sweeps, yet there is room
		mustClaim(t, m, claimBy(selfA, "v/live/3"))

		node := func(id string) error {
			return m.Heartbeat(t.Context(), Node{ID: id, Role: RoleEdge, State: StateUp})
		}
		if err := errors.Join(node("1"), node("2"), node("2")); err != nil {
			t.Errorf("two nodes: %v", err)
		}
		if err := node("3"); !errors.Is(err, ErrFull) {
			t.Errorf("third node: %v", err)
		}
		time.Sleep(ttl)
		if err := node("3"); err != nil {
			t.Errorf("third node after the others fell silent: %v", err)
		}

		// No wish for a TTL goes beyond the limit.
		long := claimBy(selfA, "v/live/4")
		long.TTL = time.Hour
		if l := mustClaim(t, m, long); time.Until(l.Expires) != time.Minute {
			t.Errorf("lease for %v", time.Until(l.Expires))
		}
	})
}

func TestNodesComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error)
		go func() { ran <- m.Run(ctx) }()

		load := map[string]float64{"cpu": 0.5}
		beat := func(id, instance string, role Role) {
			t.Helper()
			if err := m.Heartbeat(ctx, Node{ID: id, Instance: instance, Role: role, State: StateUp, Load: load}); err != nil {
				t.Fatal(err)
			}
		}
		ids := func(q NodeQuery) (ids []string) {
			t.Helper()
			nodes, _, err := m.Nodes(ctx, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range nodes {
				ids = append(ids, n.ID)
			}
			return ids
		}
		beat("b", "b1", RoleOrigin)
		beat("e", "e1", RoleEdge)
		load["cpu"] = 0.9
		if nodes, _, _ := m.Nodes(ctx, NodeQuery{}); nodes[0].Load["cpu"] != 0.5 {
			t.Error("the directory shares the load with its caller")
		}
		nodeTTL := DefaultServerConfig().NodeTTL
		time.Sleep(nodeTTL - 1)
		beat("e", "e1", RoleEdge)
		if got := ids(NodeQuery{}); !slices.Equal(got, []string{"b", "e"}) {
			t.Errorf("nodes %v", got)
		}
		if got := ids(NodeQuery{Role: RoleEdge}); !slices.Equal(got, []string{"e"}) {
			t.Errorf("edges %v", got)
		}
		time.Sleep(time.Nanosecond)
		if got := ids(NodeQuery{}); !slices.Equal(got, []string{"e"}) {
			t.Errorf("nodes after b fell silent: %v", got)
		}
		time.Sleep(nodeTTL + sweepEvery)
		m.mu.RLock()
		if len(m.nodes) != 0 {
			t.Errorf("%d nodes are left after the sweep", len(m.nodes))
		}
		m.mu.RUnlock()

		// A goodbye ends the leases of that instance only.
		beat("a", "a2", RoleOrigin)
		old := mustClaim(t, m, claimBy(selfA, "v/live/old"))
		restarted := selfA
		restarted.Instance = "a2"
		mustClaim(t, m, claimBy(restarted, "v/live/new"))
		mustClaim(t, m, claimBy(selfB, "v/live/b"))
		if err := m.Goodbye(ctx, "a", "a1"); err != nil {
			t.Fatal(err)
		}
		wantOwner(t, m, "v/live/old", "")
		wantOwner(t, m, "v/live/new", "a")
		wantOwner(t, m, "v/live/b", "b")
		if lost := mustRenew(t, m, renewalBy(selfA, old)); len(lost) != 1 {
			t.Error("a late renewal brought back a lease after the goodbye")
		}
		if got := ids(NodeQuery{}); !slices.Equal(got, []string{"a"}) {
			t.Errorf("nodes %v: the goodbye of another instance removed the node", got)
		}
		if err := m.Goodbye(ctx, "a", ""); err != nil {
			t.Fatal(err)
		}
		wantOwner(t, m, "v/live/new", "")
		if got := ids(NodeQuery{}); len(got) != 0 {
			t.Errorf("nodes %v", got)
		}
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestSweepGivesMemoryBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		for i := range 1000 {
			c := claimBy(selfA, fmt.Sprintf("v/live/%d", i))
			if i%2 == 0 {
				c.TTL = time.Minute
			}
			mustClaim(t, m, c)
		}
		time.Sleep(ttl)
		m.sweep()
		if len(m.streams) != 500 {
			t.Errorf("%d leases are kept, want 500", len(m.streams))
		}
		if n := m.countLeases(); n != 500 {
			t.Errorf("%d leases are counted, want 500", n)
		}
	})
}

func TestStreamPages(t *testing.T) {
	m := newMemory()
	for i := range 25 {
		for _, vhost := range []string{"v", "w"} {
			s := selfA
			if i%2 == 1 {
				s = selfB
			}
			mustClaim(t, m, claimBy(s, fmt.Sprintf("%s/live/%02d", vhost, i)))
		}
	}
	f := func(q StreamQuery, want int) {
		t.Helper()
		var all []string
		pages := 0
		for {
			page, next, err := m.Streams(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			if q.Limit > 0 && len(page) > q.Limit {
				t.Fatalf("page of %d, limit %d", len(page), q.Limit)
			}
			for _, l := range page {
				all = append(all, l.Stream)
				if !strings.HasPrefix(l.Stream, q.Prefix) || q.Node != "" && l.Node != q.Node {
					t.Errorf("%+v does not match %+v", l, q)
				}
			}
			pages++
			if next == "" {
				break
			}
			if len(page) != q.Limit {
				t.Errorf("page of %d before the last, limit %d", len(page), q.Limit)
			}
			q.After = next
		}
		if !slices.IsSorted(all) || len(slices.Compact(slices.Clone(all))) != want || len(all) != want {
			t.Errorf("%+v lists %v, want %d in order", q, all, want)
		}
	}
	f(StreamQuery{}, 50)
	f(StreamQuery{Limit: 1}, 50)
	f(StreamQuery{Limit: 7}, 50)
	f(StreamQuery{Limit: 25}, 50)
	f(StreamQuery{Limit: 50}, 50)
	f(StreamQuery{Prefix: "w/", Limit: 4}, 25)
	f(StreamQuery{Prefix: "w/", Node: "a", Limit: 3}, 13)
	f(StreamQuery{Prefix: "x/"}, 0)
	for _, limit := range []int{-1, MaxPage + 1} {
		if _, _, err := m.Streams(t.Context(), StreamQuery{Limit: limit}); !errors.Is(err, ErrInvalid) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}

func TestTwoNodesRaceForOneName(t *testing.T) {
	m := newMemory()
	for i := range 1000 {
		stream := fmt.Sprintf("v/live/%d", i)
		var wg sync.WaitGroup
		var errs [2]error
		var leases [2]Lease
		start := make(chan struct{})
		for j, s := range []Self{selfA, selfB} {
			wg.Go(func() {
				<-start
				leases[j], errs[j] = m.Claim(t.Context(), claimBy(s, stream))
			})
		}
		close(start)
		wg.Wait()
		won := 0
		if errs[0] != nil {
			won = 1
		}
		if errs[won] != nil || errs[1-won] == nil {
			t.Fatalf("race %d: errors %v", i, errs)
		}
		if l := mustConflict(t, errs[1-won], leases[won].Node); l.Epoch != leases[won].Epoch {
			t.Fatalf("race %d: the loser was told of epoch %d, the winner has %d", i, l.Epoch, leases[won].Epoch)
		}
	}
}

// Readers, writers, listings and the sweep at once, for the race detector and for
// the walks that give the lock away in between.
func TestEverythingAtOnce(t *testing.T) {
	m := newMemory(func(c *MemoryConfig) { c.LeaseTTL = time.Millisecond })
	var wg sync.WaitGroup
	for w := range 4 {
		self := Self{Node: fmt.Sprint("n", w), Instance: "1", Addr: addrA}
		wg.Go(func() {
			for i := range 2000 {
				stream := fmt.Sprintf("v/live/%d", (i*7+w)%1500)
				if l, err := m.Claim(context.Background(), claimBy(self, stream)); err == nil && i%3 == 0 {
					_ = m.Release(context.Background(), l)
				} else if err == nil && i%3 == 1 {
					_, _ = m.Renew(context.Background(), renewalBy(self, l))
				}
				_, _ = m.Lookup(context.Background(), stream)
				switch {
				case i%200 == 0:
					m.sweep()
				case i%200 == 50:
					_, _, _ = m.Streams(context.Background(), StreamQuery{Limit: 10})
				case i%200 == 100:
					_ = m.Goodbye(context.Background(), self.Node, "1")
				}
			}
		})
	}
	wg.Wait()
}

// The model: for each stream one owner at a time, and every new ownership has a
// larger epoch than all before it, whatever happens in between.
func TestEpochsOnlyGrow(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory(func(c *MemoryConfig) { c.MaxStreams = 4 })
			type owner struct {
				node  string
				epoch uint64
			}
			highest := map[string]owner{}
			believes := map[string]map[string]Lease{"a": {}, "b": {}, "c": {}} // by node and stream
			saw := func(stream, node string, epoch uint64) {
				h := highest[stream]
				if epoch < h.epoch || epoch == h.epoch && node != h.node {
					rt.Fatalf("%s: epoch %d of %s after %d of %s", stream, epoch, node, h.epoch, h.node)
				}
				highest[stream] = owner{node, epoch}
			}
			for range rapid.IntRange(1, 60).Draw(rt, "steps") {
				node := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "node")
				stream := rapid.SampledFrom([]string{"v/x/1", "v/x/2", "v/x/3", "v/x/4", "v/x/5", "v/x/6"}).Draw(rt, "stream")
				self := Self{node, "1", addrA}
				switch rapid.SampledFrom([]string{"claim", "claim", "renew", "release", "sleep", "sweep", "forget"}).Draw(rt, "act") {
				case "claim":
					c := claimBy(self, stream)
					c.Replace = rapid.Bool().Draw(rt, "replace")
					c.Held = believes[node][stream].Epoch
					if l, err := m.Claim(t.Context(), c); err == nil {
						saw(stream, node, l.Epoch)
						believes[node][stream] = l
					}
				case "renew":
					var all []Lease
					for _, l := range believes[node] {
						l.Idle = rapid.Bool().Draw(rt, "idle")
						all = append(all, l)
					}
					lost := mustRenew(t, m, renewalBy(self, all...))
					for _, l := range lost {
						delete(believes[node], l.Stream)
						if l.Now != nil {
							saw(l.Stream, l.Now.Node, l.Now.Epoch)
						}
					}
					for s, l := range believes[node] {
						saw(s, node, l.Epoch)
					}
				case "release":
					_ = m.Release(t.Context(), believes[node][stream])
				case "sleep":
					time.Sleep(time.Duration(rapid.IntRange(0, 6000).Draw(rt, "ms")) * time.Millisecond)
				case "sweep":
					m.sweep()
				case "forget":
					time.Sleep(endedFor)
					m.sweep()
				}
				for s := range highest {
					if l, err := m.Lookup(t.Context(), s); err == nil {
						saw(s, l.Node, l.Epoch)
					}
				}
			}
		})
	})
}

func TestHundredThousandStreams(t *testing.T) {
	const n = 100_000
	m := newMemory()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range n {
		// As they come off the wire: no string is shared.
		mustClaim(t, m, Claim{
			Stream: fmt.Sprintf("__defaultVhost__/live/stream-%06d", i), Node: fmt.Sprint("origin-", i%10), Instance: NewInstance(),
			Addr: Addr{fmt.Sprintf("192.168.100.%d:19350", i%10), fmt.Sprintf("192.168.100.%d:18080", i%10), fmt.Sprintf("192.168.100.%d:19090", i%10)},
		})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n
	t.Logf("%d bytes per stream", per)
	if per >= 1024 {
		t.Errorf("%d bytes per stream, want less than 1 KiB", per)
	}
	runtime.KeepAlive(m)
}

func TestLookupDoesNotAllocate(t *testing.T) {
	m := newMemory()
	mustClaim(t, m, claimBy(selfA, demo))
	if n := testing.AllocsPerRun(1000, func() { _, _ = m.Lookup(context.Background(), demo) }); n != 0 {
		t.Errorf("%v allocations per lookup", n)
	}
}

func BenchmarkMemoryLookup(b *testing.B) {
	m := newMemory()
	keys := make([]string, 100_000)
	for i := range keys {
		keys[i] = fmt.Sprintf("v/live/%d", i)
		if _, err := m.Claim(b.Context(), claimBy(selfA, keys[i])); err != nil {
			b.Fatal(err)
		}
	}
	m.cfg.MaxStreams = len(keys)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		_, _ = m.Lookup(b.Context(), keys[i%len(keys)])
		i++
	}
}

func BenchmarkMemoryRenew1000(b *testing.B) {
	m := newMemory()
	var leases []Lease
	for i := range 1000 {
		l, err := m.Claim(b.Context(), claimBy(selfA, fmt.Sprintf("v/live/%d", i)))
		if err != nil {
			b.Fatal(err)
		}
		leases = append(leases, l)
	}
	r := renewalBy(selfA, leases...)
	b.ReportAllocs()
	for b.Loop() {
		if lost, err := m.Renew(b.Context(), r); err != nil || len(lost) > 0 {
			b.Fatal(lost, err)
		}
	}
}

// One line for each change of an owner, and none for renewals.
func TestOwnershipChangesAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		m := NewMemory(DefaultServerConfig().Memory(), slog.New(slog.NewTextHandler(&log, nil)), nil)
		a := mustClaim(t, m, claimBy(selfA, demo))
		mustClaim(t, m, claimBy(selfA, demo))
		mustRenew(t, m, renewalBy(selfA, a))
		replace := claimBy(selfB, demo)
		replace.Replace = true
		b := mustClaim(t, m, replace)
		mustRenew(t, m, renewalBy(selfA, a))
		if err := m.Release(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		mustClaim(t, m, claimBy(selfA, demo))
		time.Sleep(ttl)
		m.sweep()
		var causes []string
		for line := range strings.Lines(log.String()) {
			_, after, _ := strings.Cut(line, "cause=")
			cause, _, _ := strings.Cut(after, " ")
			causes = append(causes, cause)
		}
		if want := []string{"claimed", "replaced", "released", "claimed", "expired"}; !slices.Equal(causes, want) {
			t.Errorf("logged %v, want %v:\n%s", causes, want, &log)
		}
	})
}

// A node that comes back after a crash frees what its dead run held: nobody waits
// for the TTL. A stranger with the same id by mistake takes nothing away.
func TestRestartedNodeFreesItsStreams(t *testing.T) {
	m := newMemory()
	ctx := t.Context()
	beat := func(s Self) {
		t.Helper()
		if err := m.Heartbeat(ctx, Node{ID: s.Node, Instance: s.Instance, Role: RoleOrigin, Addr: s.Addr, State: StateUp}); err != nil {
			t.Fatal(err)
		}
	}
	beat(selfA)
	first := mustClaim(t, m, claimBy(selfA, "v/live/one"))

	twin := Self{Node: "a", Instance: "twin", Addr: addrB}
	beat(twin)
	if l, err := m.Lookup(ctx, "v/live/one"); err != nil || l.Epoch != first.Epoch {
		t.Errorf("after a node with the same id and another address: %+v, %v", l, err)
	}

	restarted := Self{Node: "a", Instance: "a2", Addr: addrA}
	beat(restarted)
	if l, err := m.Lookup(ctx, "v/live/one"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after the restart the stream is still owned: %+v, %v", l, err)
	}
	if l := mustClaim(t, m, claimBy(selfB, "v/live/one")); l.Epoch <= first.Epoch {
		t.Errorf("epoch %d after %d", l.Epoch, first.Epoch)
	}
}
