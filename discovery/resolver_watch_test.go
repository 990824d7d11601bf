package discovery

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// finderOf counts lookups at a directory that is watched.
type finderOf struct {
	*optic
	asked asked
}

func (f *finderOf) Lookup(ctx context.Context, stream string) (Lease, error) {
	return f.asked.Lookup(ctx, stream)
}

func (f *finderOf) Nodes(ctx context.Context, q NodeQuery) ([]Node, string, error) {
	if err := f.err(); err != nil {
		return nil, "", err
	}
	f.cable.mu.Lock()
	e := f.Directory.(Engine)
	f.cable.mu.Unlock()
	return e.Nodes(ctx, q)
}

// watchOf starts a Resolver that watches m. Lookups it makes go to m as well.
func watchOf(t *testing.T, m *Memory, cfg Config) (*Resolver, *finderOf) {
	t.Helper()
	f := &finderOf{optic: &optic{cable: &cable{Directory: m}}}
	f.asked.will(func(ctx context.Context, stream string) (Lease, error) { return f.cable.Lookup(ctx, stream) })
	r := NewResolver(f, cfg, nil, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	wg.Go(func() { _ = m.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r, f
}

func TestLookupsInStepNeedNoCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		first := mustClaim(t, m, claimBy(selfA, demo))
		r, f := watchOf(t, m, DefaultConfig())
		var c told
		defer r.Follow(demo, c.tell)()
		synctest.Wait()
		if !r.InStep() {
			t.Fatal("not in step")
		}
		c.want(t, fmt.Sprintf("a %d at 10.0.0.1:1935", first.Epoch))

		// The owner is known for as long as it renews, and nobody asks.
		for range 100 {
			mustRenew(t, m, renewalBy(selfA, first))
			time.Sleep(time.Second)
			if l := wantOwner(t, r, demo, "a"); !l.Expires.After(time.Now()) {
				t.Errorf("it has expired: %+v", l)
			}
		}
		f.asked.wantCount(t, 0)

		// A new owner is known at once, and so is the end.
		b := claimBy(selfB, demo)
		b.Replace = true
		second := mustClaim(t, m, b)
		synctest.Wait()
		wantOwner(t, r, demo, "b")
		f.asked.wantCount(t, 0)
		if err := m.Release(t.Context(), second); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		c.want(t, fmt.Sprintf("b %d at 10.0.0.2:1935", second.Epoch), fmt.Sprintf("ended %d", second.Epoch))
		// That there is no owner is confirmed, each time.
		wantOwner(t, r, demo, "")
		wantOwner(t, r, demo, "")
		f.asked.wantCount(t, 2)

		// Doubt is asked about, once.
		mustClaim(t, m, claimBy(selfA, demo))
		synctest.Wait()
		wantOwner(t, r, demo, "a")
		r.Doubt(demo)
		wantOwner(t, r, demo, "a")
		wantOwner(t, r, demo, "a")
		f.asked.wantCount(t, 3)
		// What is learned elsewhere counts for a while, against an earlier epoch.
		r.Learn(Lease{Stream: demo, Node: "b", Epoch: second.Epoch + 1<<40})
		wantOwner(t, r, demo, "b")
		time.Sleep(time.Second)
		wantOwner(t, r, demo, "a")
		f.asked.wantCount(t, 3)
	})
}

// A player that comes right behind a publisher finds the stream although the watch
// has not told of it yet.
func TestFreshStreamsAreFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := &finderOf{optic: &optic{cable: &cable{Directory: m}}}
		r := NewResolver(f, DefaultConfig(), nil, nil)
		if err := r.apply([]Event{{Reset: true}, {Synced: "x-1"}}); err != nil { // and nothing more
			t.Fatal(err)
		}
		// The answer to one who came before is on its way when the stream begins.
		release := make(chan struct{})
		f.asked.will(func(ctx context.Context, stream string) (Lease, error) {
			l, err := m.Lookup(ctx, stream)
			<-release
			return l, err
		})
		var wg sync.WaitGroup
		wg.Go(func() { wantOwner(t, r, demo, "") })
		synctest.Wait()
		mustClaim(t, m, claimBy(selfA, demo))
		for range 10 {
			wg.Go(func() { wantOwner(t, r, demo, "a") })
		}
		synctest.Wait()
		close(release)
		wg.Wait()
		f.asked.wantCount(t, 2)
	})
}

// Names that nobody has cost the directory a bounded number of calls.
func TestConfirmationsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, f := watchOf(t, newMemory(), DefaultConfig())
		time.Sleep(time.Second / 2)
		for i := range 5 * ConfirmRate {
			wantOwner(t, r, fmt.Sprintf("v/live/%d", i), "")
		}
		f.asked.wantCount(t, ConfirmRate)
		time.Sleep(time.Second / 2)
		for i := range ConfirmRate {
			wantOwner(t, r, fmt.Sprintf("v/live/%d", i), "")
		}
		f.asked.wantCount(t, ConfirmRate*3/2)
	})
}

func TestWatchIsBroken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		long := claimBy(selfA, demo)
		long.TTL = time.Minute
		mustClaim(t, m, long)
		if err := m.Heartbeat(t.Context(), Node{ID: "a", Role: RoleOrigin, State: StateUp, TTL: time.Minute}); err != nil {
			t.Fatal(err)
		}
		r, f := watchOf(t, m, DefaultConfig())
		synctest.Wait()
		nodes := func(want int) {
			t.Helper()
			if page, _, err := r.Nodes(t.Context(), NodeQuery{Role: RoleOrigin}); err != nil || len(page) != want {
				t.Errorf("Nodes = %+v, %v; want %d", page, err, want)
			}
		}
		nodes(1)

		// With the directory gone, what was known is found, and no more.
		f.cut(true)
		synctest.Wait()
		if r.InStep() {
			t.Error("in step without a watch")
		}
		for range 10 {
			wantOwner(t, r, demo, "a")
			nodes(1)
			time.Sleep(time.Second)
		}
		if _, err := r.Lookup(t.Context(), "v/live/new"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Lookup of a stream that is not known: %v", err)
		}
		// Attempts are spread and not frequent.
		f.optic.mu.Lock()
		tries := len(f.begun)
		f.optic.mu.Unlock()
		if tries < 5 || tries > 20 {
			t.Errorf("%d attempts in 10 s", tries)
		}

		// It is back: what was missed is made good.
		if err := m.Goodbye(t.Context(), "a", ""); err != nil {
			t.Fatal(err)
		}
		late := mustClaim(t, m, claimBy(selfB, "v/live/late"))
		f.cut(false)
		time.Sleep(longestPause + firstPause)
		if !r.InStep() {
			t.Fatal("the directory is back and not watched")
		}
		calls := f.asked.count
		wantOwner(t, r, "v/live/late", "b")
		nodes(0)
		f.asked.wantCount(t, calls)
		wantOwner(t, r, demo, "")

		// Another directory takes its place, which knows nothing: neither does the copy.
		var c told
		defer r.Follow("v/live/late", c.tell)()
		f.cut(true)
		f.cable.mu.Lock()
		f.Directory = newMemory()
		f.cable.mu.Unlock()
		f.cut(false)
		time.Sleep(longestPause + firstPause)
		wantOwner(t, r, "v/live/late", "")
		c.want(t, fmt.Sprintf("b %d at 10.0.0.2:1935", late.Epoch), fmt.Sprintf("ended %d", late.Epoch))
		if r.mirror.bytes != 0 || len(r.mirror.streams)+len(r.mirror.owners)+len(r.mirror.nodes) != 0 {
			t.Errorf("left in the copy: %+v", r.mirror)
		}
		// And after stale_for nothing is known at all.
		mustClaim(t, m, claimBy(selfA, demo))
		f.cut(true)
		time.Sleep(DefaultConfig().StaleFor + time.Minute)
		if l, err := r.Lookup(t.Context(), demo); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Lookup after stale_for = %+v, %v", l, err)
		}
	})
}

// A watch that stands still without breaking is not believed.
func TestStalledWatchIsNotBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &asked{}
		a.will(always(Lease{Node: "b", Epoch: 6}, nil))
		r := NewResolver(a, DefaultConfig(), nil, nil)
		err := r.apply([]Event{{Reset: true}, {Lease: &Lease{Stream: demo, Node: "a", Epoch: 5}}, {Synced: "x-1"}})
		if err != nil {
			t.Fatal(err)
		}
		wantOwner(t, r, demo, "a")
		time.Sleep(watchSilence)
		wantOwner(t, r, demo, "b")
		a.wantCount(t, 1)
		// What comes after the pause may have been waiting for as long.
		if err := r.apply([]Event{{Synced: "x-2"}}); !errors.Is(err, ErrUnavailable) || r.InStep() {
			t.Errorf("events after a pause: %v", err)
		}
	})
}

// A directory that is larger than map_size is asked instead, within that memory.
func TestCopyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		for i := range 1000 {
			mustClaim(t, m, claimBy(selfA, fmt.Sprintf("v/live/%d", i)))
		}
		cfg := DefaultConfig()
		cfg.MapSize = 64 << 10
		r, f := watchOf(t, m, cfg)
		synctest.Wait()
		if r.InStep() || r.mapped() != 0 {
			t.Errorf("%d streams are copied", r.mapped())
		}
		wantOwner(t, r, "v/live/7", "a")
		f.asked.wantCount(t, 1)
		time.Sleep(2 * ttl) // the leases end
		time.Sleep(cannotPause)
		if !r.InStep() {
			t.Error("a directory that is small again is not copied")
		}
		cfg.MapSize = 0
		off, _ := watchOf(t, m, cfg)
		synctest.Wait()
		if off.InStep() {
			t.Error("watches although map_size is 0")
		}
	})
}

// many returns a Resolver with a copy of n streams of 100 origins.
func many(tb testing.TB, n int) (r *Resolver, keys []string) {
	tb.Helper()
	a := &asked{}
	a.will(always(Lease{}, errors.New("nobody should ask")))
	r = NewResolver(a, DefaultConfig(), nil, nil)
	if err := r.apply([]Event{{Reset: true}}); err != nil {
		tb.Fatal(err)
	}
	for i := range n {
		key := fmt.Sprintf("__defaultVhost__/live/stream-%08d", i)
		l := Lease{
			Stream: key, Node: fmt.Sprintf("origin-%d", i%100), Instance: fmt.Sprintf("instance-%07d", i%100), Epoch: uint64(i) + 1,
			Addr: Addr{RTMP: fmt.Sprintf("10.0.0.%d:1935", i%100), HTTP: fmt.Sprintf("10.0.0.%d:8080", i%100), API: fmt.Sprintf("10.0.0.%d:9090", i%100)},
		}
		if err := r.apply([]Event{{Lease: &l}}); err != nil {
			tb.Fatal(err)
		}
		keys = append(keys, key)
	}
	if err := r.apply([]Event{{Synced: "x-1"}}); err != nil {
		tb.Fatal(err)
	}
	r.mirror.heard = time.Now().Add(time.Hour) // in step for as long as the test takes
	return r, keys
}

func TestCopyTakesLittleMemory(t *testing.T) {
	const n = 100_000
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := heap()
	r, keys := many(t, n)
	took := float64(heap()-before) / n
	t.Logf("%.0f bytes for a stream, counted as %d", took, r.mirror.bytes/n)
	runtime.KeepAlive(keys)
	if took > 1000 {
		t.Errorf("%.0f bytes for a stream, want less than 1000", took)
	}
	// What is counted, and bounded by map_size, is about what is there, without the
	// keys that this test keeps.
	if counted := float64(r.mirror.bytes) / n; counted < (took-64)/1.5 || counted > took*1.5 {
		t.Errorf("%.0f bytes are counted for a stream, it takes %.0f", counted, took)
	}
}

func TestMappedLookupDoesNotAllocate(t *testing.T) {
	r, keys := many(t, 100)
	if n := testing.AllocsPerRun(1000, func() { _, _ = r.Lookup(context.Background(), keys[7]) }); n != 0 {
		t.Errorf("%v allocations per lookup", n)
	}
}

// The lookup of an edge or origin in a copy of 100 000 streams.
func BenchmarkMappedLookup(b *testing.B) {
	r, keys := many(b, 100_000)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i += 7919
		if _, err := r.Lookup(b.Context(), keys[i%len(keys)]); err != nil {
			b.Fatal(err)
		}
	}
}

// The same while others look up and the directory tells of changes.
func BenchmarkMappedLookupContended(b *testing.B) {
	r, keys := many(b, 100_000)
	ctx := b.Context()
	b.RunParallel(func(pb *testing.PB) {
		i := 0
		for pb.Next() {
			i += 7919
			if i%100 == 0 {
				_ = r.apply([]Event{{Lease: &Lease{Stream: keys[i%len(keys)], Node: "other", Epoch: 1 << 50}}})
			}
			_, _ = r.Lookup(ctx, keys[i%len(keys)])
		}
	})
}
