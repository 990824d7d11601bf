package discovery

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// asked is a Finder whose answers the test gives.
type asked struct {
	mu     sync.Mutex
	count  int
	answer func(ctx context.Context, stream string) (Lease, error)
}

func (a *asked) Lookup(ctx context.Context, stream string) (Lease, error) {
	a.mu.Lock()
	a.count++
	f := a.answer
	a.mu.Unlock()
	return f(ctx, stream)
}

func (a *asked) will(f func(context.Context, string) (Lease, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = f
}

func (a *asked) wantCount(t *testing.T, want int) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.count != want {
		t.Errorf("the directory was asked %d times, want %d", a.count, want)
	}
}

func always(l Lease, err error) func(context.Context, string) (Lease, error) {
	return func(_ context.Context, stream string) (Lease, error) { l.Stream = stream; return l, err }
}

func TestResolverCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &asked{}
		r := NewResolver(a, DefaultConfig(), nil, nil)
		old, next := Lease{Node: "a", Epoch: 5, Addr: addrA}, Lease{Node: "b", Epoch: 6, Addr: addrB}

		// That nobody has it is asked again each time.
		a.will(always(Lease{}, ErrNotFound))
		wantOwner(t, r, demo, "")
		wantOwner(t, r, demo, "")
		a.wantCount(t, 2)

		// An owner is asked for once a second.
		a.will(always(old, nil))
		wantOwner(t, r, demo, "a")
		a.will(always(next, nil))
		time.Sleep(time.Second - 1)
		wantOwner(t, r, demo, "a")
		a.wantCount(t, 3)
		time.Sleep(time.Nanosecond)
		wantOwner(t, r, demo, "b")
		a.wantCount(t, 4)

		// A directory that is behind does not lead back to an earlier owner,
		// except where the later one has failed.
		a.will(always(old, nil))
		time.Sleep(time.Second)
		wantOwner(t, r, demo, "b")
		r.Doubt(demo)
		wantOwner(t, r, demo, "a")
		a.wantCount(t, 6)

		// With the directory gone the last owner serves on, also in doubt.
		a.will(always(Lease{}, fmt.Errorf("%w: cut", ErrUnavailable)))
		r.Doubt(demo)
		wantOwner(t, r, demo, "a")
		time.Sleep(time.Hour - 1)
		wantOwner(t, r, demo, "a")
		if _, err := r.Lookup(t.Context(), "v/live/new"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("unknown stream: %v", err)
		}
		time.Sleep(time.Nanosecond)
		if _, err := r.Lookup(t.Context(), demo); !errors.Is(err, ErrUnavailable) {
			t.Errorf("after stale_for: %v", err)
		}

		// What was learned elsewhere counts, unless a later owner is known.
		r.Learn(Lease{Stream: demo, Node: "b", Epoch: 9})
		r.Learn(Lease{Stream: demo, Node: "a", Epoch: 8})
		wantOwner(t, r, demo, "b")
		// And an end is an end: nothing stale remains.
		time.Sleep(time.Second)
		a.will(always(Lease{}, ErrNotFound))
		wantOwner(t, r, demo, "")
		a.will(always(Lease{}, ErrUnavailable))
		if _, err := r.Lookup(t.Context(), demo); !errors.Is(err, ErrUnavailable) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestResolverAsksOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		a := &asked{}
		a.will(func(ctx context.Context, stream string) (Lease, error) {
			select {
			case <-release:
				return Lease{Stream: stream, Node: "a", Epoch: 1}, nil
			case <-ctx.Done():
				return Lease{}, ctx.Err()
			}
		})
		r := NewResolver(a, DefaultConfig(), nil, nil)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := r.Lookup(ctx, demo); !errors.Is(err, context.Canceled) {
				t.Errorf("first caller: %v", err)
			}
		})
		synctest.Wait()
		for range 1000 {
			wg.Go(func() {
				if l, err := r.Lookup(t.Context(), demo); err != nil || l.Node != "a" {
					t.Errorf("one of many: %+v, %v", l, err)
				}
			})
		}
		hasty, stop := context.WithTimeout(t.Context(), time.Millisecond)
		defer stop()
		if _, err := r.Lookup(hasty, demo); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("caller in a hurry: %v", err)
		}
		synctest.Wait()
		a.wantCount(t, 1)
		// The one who asks leaves: another goes on, and again only one.
		cancel()
		synctest.Wait()
		a.wantCount(t, 2)
		close(release)
		wg.Wait()
		a.wantCount(t, 2)
	})
}

func TestResolverIsBoundedByBytes(t *testing.T) {
	a := &asked{}
	a.will(always(Lease{Node: "a", Epoch: 1, Addr: addrA}, nil))
	cfg := DefaultConfig()
	cfg.CacheSize = 64 << 10
	r := NewResolver(a, cfg, nil, nil)
	for i := range 10_000 {
		wantOwner(t, r, fmt.Sprintf("v/live/%d", i), "a")
		if i%100 == 0 {
			r.Doubt(fmt.Sprintf("v/live/%d", i))
			r.Learn(Lease{Stream: "v/live/0", Node: "b", Epoch: uint64(i)})
		}
	}
	var sum int64
	for _, e := range r.entries.Values() {
		sum += e.size()
	}
	if sum != r.bytes || r.bytes > 64<<10 || r.entries.Len() < 50 {
		t.Errorf("%d entries, %d bytes counted, %d in fact", r.entries.Len(), r.bytes, sum)
	}
	a.wantCount(t, 10_000)
	wantOwner(t, r, "v/live/9999", "a")
	a.wantCount(t, 10_000)
}

// A directory that is frozen costs one caller in each heartbeat its timeout, and
// nobody else anything.
func TestResolverDoesNotWaitForTheSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		frozen := func(ctx context.Context, _ string) (Lease, error) {
			select {
			case <-time.After(cfg.Timeout):
				return Lease{}, fmt.Errorf("%w: timeout", ErrUnavailable)
			case <-ctx.Done():
				return Lease{}, context.Cause(ctx)
			}
		}
		a := &asked{}
		r := NewResolver(a, cfg, nil, nil)
		a.will(always(Lease{Node: "a", Epoch: 1, Addr: addrA}, nil))
		wantOwner(t, r, demo, "a")
		time.Sleep(time.Minute)
		a.will(frozen)
		f := func(stream string, took time.Duration, asked int) {
			t.Helper()
			begun := time.Now()
			if l, err := r.Lookup(t.Context(), stream); !errors.Is(err, ErrUnavailable) && (stream != demo || err != nil || l.Node != "a") {
				t.Errorf("Lookup(%s) = %+v, %v", stream, l, err)
			}
			if d := time.Since(begun); d != took {
				t.Errorf("Lookup(%s) took %v, want %v", stream, d, took)
			}
			a.wantCount(t, asked)
		}
		f("v/live/1", cfg.Timeout, 2)
		f("v/live/1", 0, 2)
		f(demo, 0, 2)
		time.Sleep(cfg.Heartbeat - 1)
		f("v/live/2", 0, 2)
		time.Sleep(time.Nanosecond)
		// One probes, briefly; the others do not wait for it.
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := r.Lookup(t.Context(), "v/live/3"); !errors.Is(err, ErrUnavailable) {
				t.Errorf("the probe: %v", err)
			}
		})
		synctest.Wait()
		f("v/live/4", 0, 3)
		f(demo, 0, 3)
		begun := time.Now()
		wg.Wait()
		if d := time.Since(begun); d != inVain {
			t.Errorf("the probe took %v, want %v", d, inVain)
		}
		f("v/live/4", 0, 3)
		// A prober that gives up leaves the probe to the next.
		time.Sleep(cfg.Heartbeat)
		hasty, stop := context.WithTimeout(t.Context(), time.Millisecond)
		defer stop()
		if _, err := r.Lookup(hasty, "v/live/5"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("caller in a hurry: %v", err)
		}
		// And the directory is back with the first answer.
		a.will(always(Lease{Node: "b", Epoch: 2}, nil))
		wantOwner(t, r, "v/live/5", "b")
		wantOwner(t, r, "v/live/6", "b")
		a.wantCount(t, 6)

		// One that needs longer than a probe waits is found to be there, too.
		a.will(frozen)
		f("v/live/7", cfg.Timeout, 7)
		a.will(func(ctx context.Context, stream string) (Lease, error) {
			select {
			case <-time.After(2 * inVain):
				return Lease{Stream: stream, Node: "c", Epoch: 1}, nil
			case <-ctx.Done():
				return Lease{}, context.Cause(ctx)
			}
		})
		for range patientProbe - 1 {
			time.Sleep(cfg.Heartbeat)
			if l, err := r.Lookup(t.Context(), "v/live/7"); !errors.Is(err, ErrUnavailable) {
				t.Errorf("a brief probe: %+v, %v", l, err)
			}
		}
		time.Sleep(cfg.Heartbeat)
		wantOwner(t, r, "v/live/7", "c")
		wantOwner(t, r, "v/live/8", "c")

		// One that fails at once is asked each time.
		a.will(always(Lease{}, ErrUnavailable))
		f("v/live/9", 0, 17)
		f("v/live/9", 0, 18)
	})
}

// An origin knows of a silent directory by its heartbeats, before any lookup.
func TestHolderDoesNotWaitForTheSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		mustClaim(t, m, claimBy(selfB, demo))
		a := startHolder(t, m, selfA)
		synctest.Wait()
		a.wire.freeze(time.Second)
		time.Sleep(3 * time.Second)
		for range 40 {
			begun := time.Now()
			if _, err := a.Lookup(t.Context(), demo); !errors.Is(err, ErrUnavailable) || time.Since(begun) != 0 {
				t.Errorf("after %v: %v", time.Since(begun), err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		a.wire.freeze(0)
		renewed := claimBy(selfB, demo)
		time.Sleep(2 * time.Second)
		mustClaim(t, m, renewed)
		wantOwner(t, a, demo, "b")
	})
}

func TestResolverSurvivesAPanic(t *testing.T) {
	a := &asked{}
	a.will(func(context.Context, string) (Lease, error) { panic("finder") })
	r := NewResolver(a, DefaultConfig(), nil, nil)
	func() {
		defer func() { _ = recover() }()
		_, _ = r.Lookup(t.Context(), demo)
	}()
	a.will(always(Lease{Node: "a", Epoch: 1}, nil))
	wantOwner(t, r, demo, "a") // and does not wait for ever
}

func TestCachedLookupDoesNotAllocate(t *testing.T) {
	a := &asked{}
	a.will(always(Lease{Node: "a", Epoch: 1}, nil))
	r := NewResolver(a, DefaultConfig(), nil, nil)
	wantOwner(t, r, demo, "a")
	if n := testing.AllocsPerRun(1000, func() { _, _ = r.Lookup(context.Background(), demo) }); n != 0 {
		t.Errorf("%v allocations per lookup", n)
	}
}

func BenchmarkResolverLookup(b *testing.B) {
	a := &asked{}
	a.will(always(Lease{Node: "a", Epoch: 1}, nil))
	cfg := DefaultConfig()
	cfg.CacheTTL = time.Hour
	r := NewResolver(a, cfg, nil, nil)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = r.Lookup(b.Context(), demo)
	}
}
