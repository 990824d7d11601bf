package hls

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/internal/units"
)

// upstream answers fetches as a test says, and counts them.
type upstream struct {
	fetches atomic.Int32
	running atomic.Int32

	mu    sync.Mutex
	reply func(ctx context.Context, uri string) (Object, error) // guarded by mu
}

func (u *upstream) fetch(ctx context.Context, uri string) (Object, error) {
	u.fetches.Add(1)
	u.running.Add(1)
	defer u.running.Add(-1)
	u.mu.Lock()
	reply := u.reply
	u.mu.Unlock()
	return reply(ctx, uri)
}

func (u *upstream) says(reply func(ctx context.Context, uri string) (Object, error)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reply = reply
}

// saysObject answers with the object after a second.
func (u *upstream) saysObject(o Object) {
	u.says(func(ctx context.Context, _ string) (Object, error) {
		select {
		case <-time.After(time.Second):
			return o, nil
		case <-ctx.Done():
			return Object{}, ctx.Err()
		}
	})
}

func playlistOf(text string) Object { return playlistObject(2, []byte(text)) }

func segmentOf(n int) Object { return NewObject(200, SegmentType, segmentCaching, body(n)) }

// inBubble runs a test of a cache with a clock of its own.
func inBubble(t *testing.T, config CacheConfig, test func(t *testing.T, c *Cache, u *upstream, set *metrics.Set)) {
	t.Helper()
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		u, set := &upstream{}, metrics.NewSet()
		c := NewCache(config, u.fetch, set)
		defer c.Close()
		test(t, c, u, set)
	})
}

func mustGet(t *testing.T, c *Cache, uri string) Object {
	t.Helper()
	o, err := c.Get(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func requests(set *metrics.Set, result string) uint64 {
	return set.GetOrCreateCounter(`weir_hls_cache_requests_total{result="` + result + `"}`).Get()
}

// A thousand viewers ask for the same segment at once: upstream is asked once.
func TestOneFetchForAll(t *testing.T) {
	inBubble(t, DefaultCacheConfig(), func(t *testing.T, c *Cache, u *upstream, set *metrics.Set) {
		u.saysObject(segmentOf(1000))
		var viewers sync.WaitGroup
		var served atomic.Int32
		for range 1000 {
			viewers.Go(func() {
				if o, err := c.Get(t.Context(), "/live/a-1-1.ts"); err == nil && len(o.Body) == 1000 && o.ETag != "" {
					served.Add(1)
				}
			})
		}
		viewers.Wait()
		mustGet(t, c, "/live/a-1-1.ts")
		if n := u.fetches.Load(); n != 1 || served.Load() != 1000 {
			t.Errorf("%d fetches, %d viewers served", n, served.Load())
		}
		if h, m, l := requests(set, "hit"), requests(set, "miss"), requests(set, "collapsed"); h != 1 || m != 1 || l != 999 {
			t.Errorf("%d hits, %d misses, %d collapsed", h, m, l)
		}
		time.Sleep(48 * time.Hour)
		mustGet(t, c, "/live/a-1-1.ts")
		if n := u.fetches.Load(); n != 1 {
			t.Error("an immutable segment was fetched again")
		}
	})
}

// The first viewer goes away; the others who came meanwhile are served.
func TestFetchOutlivesItsFirstViewer(t *testing.T) {
	inBubble(t, DefaultCacheConfig(), func(t *testing.T, c *Cache, u *upstream, _ *metrics.Set) {
		u.saysObject(segmentOf(10))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := c.Get(ctx, "/live/a-1-1.ts"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
		mustGet(t, c, "/live/a-1-1.ts")
		if n := u.fetches.Load(); n != 1 {
			t.Errorf("%d fetches", n)
		}
	})
}

// Upstream never answers: the fetch ends after its timeout, and Close ends one
// sooner.
func TestFetchIsBounded(t *testing.T) {
	config := DefaultCacheConfig()
	inBubble(t, config, func(t *testing.T, c *Cache, u *upstream, _ *metrics.Set) {
		u.says(func(ctx context.Context, _ string) (Object, error) {
			<-ctx.Done()
			return Object{}, ctx.Err()
		})
		begin := time.Now()
		if _, err := c.Get(t.Context(), "/live/a.m3u8"); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != config.FetchTimeout {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		failed := make(chan error, 1)
		go func() {
			_, err := c.Get(t.Context(), "/live/a.m3u8")
			failed <- err
		}()
		synctest.Wait()
		c.Close()
		if err := <-failed; !errors.Is(err, ErrCacheClosed) {
			t.Errorf("error of a waiting request is %v", err)
		}
		if _, err := c.Get(t.Context(), "/live/a.m3u8"); !errors.Is(err, ErrCacheClosed) {
			t.Errorf("error of a late request is %v", err)
		}
		if u.running.Load() != 0 {
			t.Error("a fetch is still running after Close")
		}
	})
}

func TestPlaylistsAreKeptForAMoment(t *testing.T) {
	config := DefaultCacheConfig()
	inBubble(t, config, func(t *testing.T, c *Cache, u *upstream, set *metrics.Set) {
		const uri = "/live/a.m3u8?vhost=v"
		u.says(func(context.Context, string) (Object, error) { return playlistOf("one"), nil })
		mustGet(t, c, uri)
		u.says(func(context.Context, string) (Object, error) { return playlistOf("two"), nil })
		time.Sleep(config.PlaylistTTL - 1)
		if o := mustGet(t, c, uri); string(o.Body) != "one" {
			t.Errorf("within its time the playlist is %q", o.Body)
		}
		time.Sleep(time.Nanosecond)
		if o := mustGet(t, c, uri); string(o.Body) != "two" {
			t.Errorf("after its time the playlist is %q", o.Body)
		}

		// Upstream fails: the last one is good for a while, and upstream is asked
		// again only now and then.
		down := errors.New("connection refused")
		u.says(func(context.Context, string) (Object, error) { return Object{}, down })
		before := u.fetches.Load()
		begin := time.Now()
		for time.Since(begin) < config.StaleFor-config.PlaylistTTL {
			time.Sleep(config.PlaylistTTL / 10)
			if o, err := c.Get(t.Context(), uri); err != nil || string(o.Body) != "two" {
				t.Fatalf("after %v: %q, %v", time.Since(begin), o.Body, err)
			}
		}
		if n := u.fetches.Load() - before; n > 12 {
			t.Errorf("%d fetches while upstream was down", n)
		}
		if requests(set, "stale") == 0 {
			t.Error("no stale answer was counted")
		}
		time.Sleep(2 * config.PlaylistTTL)
		if _, err := c.Get(t.Context(), uri); !errors.Is(err, down) {
			t.Errorf("in the end the error is %v", err)
		}

		// An answer of upstream, even a 404, ends it.
		u.says(func(context.Context, string) (Object, error) { return NotFound("no such stream"), nil })
		if o := mustGet(t, c, uri); o.Status != 404 {
			t.Errorf("status is %d", o.Status)
		}
	})
}

func TestWhatIsNotKept(t *testing.T) {
	for _, test := range []struct {
		name    string
		reply   Object
		err     error
		keptFor time.Duration
	}{
		{"not found", NotFound("no"), nil, DefaultCacheConfig().NegativeTTL},
		{"server error", NewObject(503, textType, "", nil), nil, 0},
		{"failure", Object{}, errors.New("broken pipe"), 0},
		{"not to be stored", NewObject(200, SegmentType, "no-store", nil), nil, 0},
		{"without a word on caching", NewObject(200, SegmentType, "", nil), nil, 0},
		{"for ten seconds", NewObject(200, SegmentType, "public, max-age=10", nil), nil, 10 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, DefaultCacheConfig(), func(t *testing.T, c *Cache, u *upstream, _ *metrics.Set) {
				u.says(func(context.Context, string) (Object, error) { return test.reply, test.err })
				ask := func() {
					o, err := c.Get(t.Context(), "/live/a-1-1.ts")
					if !errors.Is(err, test.err) || err == nil && o.Status != test.reply.Status {
						t.Errorf("%+v, %v", o, err)
					}
				}
				ask()
				if test.keptFor > 0 {
					time.Sleep(test.keptFor - 1)
					ask()
					if n := u.fetches.Load(); n != 1 {
						t.Errorf("%d fetches within its time", n)
					}
					time.Sleep(time.Nanosecond)
				}
				ask()
				if n := u.fetches.Load(); n != 2 {
					t.Errorf("%d fetches in all, want 2", n)
				}
			})
		})
	}
}

func TestCacheIsBounded(t *testing.T) {
	config := DefaultCacheConfig()
	config.MaxObjectBytes, config.MaxBytes, config.MaxFetches = 100*units.KiB, units.MiB, 3
	inBubble(t, config, func(t *testing.T, c *Cache, u *upstream, set *metrics.Set) {
		u.says(func(context.Context, string) (Object, error) { return segmentOf(100 << 10), nil })
		for i := range 100 {
			mustGet(t, c, "/live/hot-1-1.ts")
			mustGet(t, c, fmt.Sprintf("/live/a-1-%d.ts", i))
			if got := c.Size(); got > int64(config.MaxBytes) {
				t.Fatalf("%d bytes are kept", got)
			}
		}
		if n := u.fetches.Load(); n != 101 {
			t.Errorf("%d fetches; what is asked for all the time must stay", n)
		}

		// Names that do not exist take room as well.
		u.says(func(context.Context, string) (Object, error) { return NotFound("no"), nil })
		for i := range 5000 {
			mustGet(t, c, fmt.Sprintf("/live/b-1-%d.ts", i))
		}
		if got, n := c.Size(), c.entries.Len(); got > int64(config.MaxBytes) || n > 2048 {
			t.Errorf("%d entries, %d bytes are kept", n, got)
		}

		u.says(func(context.Context, string) (Object, error) { return segmentOf(100<<10 + 1), nil })
		if _, err := c.Get(t.Context(), "/live/c-1-1.ts"); !errors.Is(err, ErrTooLarge) {
			t.Errorf("error is %v", err)
		}

		u.saysObject(segmentOf(1))
		var viewers sync.WaitGroup
		for i := range 3 {
			viewers.Go(func() { mustGet(t, c, fmt.Sprintf("/live/d-1-%d.ts", i)) })
		}
		synctest.Wait()
		if _, err := c.Get(t.Context(), "/live/d-1-3.ts"); !errors.Is(err, ErrCacheBusy) {
			t.Errorf("error is %v", err)
		}
		viewers.Wait()
		mustGet(t, c, "/live/d-1-3.ts")

		// The accounting ends where it began.
		var sum int64
		for _, e := range c.entries.Values() {
			sum += e.size
		}
		if got := c.Size(); got != sum {
			t.Errorf("size is %d, the entries have %d", got, sum)
		}
	})
}

func TestMaxAge(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"":                              0,
		"max-age=5":                     5 * time.Second,
		"public, Max-Age=86400, foo=1":  86400 * time.Second,
		"max-age=5, no-store":           0,
		"no-cache, max-age=5":           0,
		"private, max-age=5":            0,
		"max-age=-1":                    0,
		"max-age=99999999999999999999s": 0,
	} {
		if got := maxAge(value); got != want {
			t.Errorf("maxAge(%q) = %v, want %v", value, got, want)
		}
	}
}
