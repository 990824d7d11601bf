package hls

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/hashicorp/golang-lru/v2/simplelru"

	"weir/internal/units"
)

// CacheConfig is the HLS cache section of an edge.
type CacheConfig struct {
	// The memory of the cache, playlists and segments of all streams together, per worker; what
	// was asked for longest ago goes first. At least four times max_object_bytes.
	MaxBytes units.Bytes `yaml:"max_bytes"`
	// The largest playlist or segment that is taken from upstream, from 64KiB to 1GiB. A larger
	// one is an error.
	MaxObjectBytes units.Bytes `yaml:"max_object_bytes"`
	// PlaylistTTL is how long a playlist is answered from the cache before it is
	// fetched again, at most as long as upstream permits; from 0s to 10s.
	PlaylistTTL time.Duration `yaml:"playlist_ttl"`
	// NegativeTTL is how long it is remembered that upstream does not have
	// something, from 0s to 10s. It is also the pause between attempts while a
	// stale playlist is being answered.
	NegativeTTL time.Duration `yaml:"negative_ttl"`
	// StaleFor is how long the last playlist is still answered while upstream
	// fails, from 0s to 1m.
	StaleFor time.Duration `yaml:"stale_for"`
	// How long one fetch from upstream may take, from 100ms to 1m. A fetch goes on until then
	// even if nobody waits for it any more.
	FetchTimeout time.Duration `yaml:"fetch_timeout"`
	// The number of fetches that run at the same time, from 1 to 10000; beyond it a request for
	// something that is neither cached nor being fetched is refused.
	MaxFetches int `yaml:"max_fetches"`
}

// DefaultCacheConfig returns the values that hold where a configuration says
// nothing.
func DefaultCacheConfig() CacheConfig {
	return CacheConfig{
		MaxBytes:       256 * units.MiB,
		MaxObjectBytes: 32 * units.MiB,
		PlaylistTTL:    500 * time.Millisecond,
		NegativeTTL:    500 * time.Millisecond,
		StaleFor:       6 * time.Second,
		FetchTimeout:   15 * time.Second,
		MaxFetches:     256,
	}
}

// Validate reports every value that is out of range; each message begins with
// its key.
func (c CacheConfig) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.MaxObjectBytes >= 64*units.KiB && c.MaxObjectBytes <= units.GiB,
		"max_object_bytes: must be between 64KiB and 1GiB, is %v", c.MaxObjectBytes)
	check(c.MaxBytes >= 4*c.MaxObjectBytes,
		"max_bytes: must be at least four times max_object_bytes (%v), is %v", c.MaxObjectBytes, c.MaxBytes)
	check(c.PlaylistTTL >= 0 && c.PlaylistTTL <= 10*time.Second,
		"playlist_ttl: must be between 0s and 10s, is %v", c.PlaylistTTL)
	check(c.NegativeTTL >= 0 && c.NegativeTTL <= 10*time.Second,
		"negative_ttl: must be between 0s and 10s, is %v", c.NegativeTTL)
	check(c.StaleFor >= 0 && c.StaleFor <= time.Minute,
		"stale_for: must be between 0s and 1m, is %v", c.StaleFor)
	check(c.FetchTimeout >= 100*time.Millisecond && c.FetchTimeout <= time.Minute,
		"fetch_timeout: must be between 100ms and 1m, is %v", c.FetchTimeout)
	check(c.MaxFetches >= 1 && c.MaxFetches <= 10000,
		"max_fetches: must be between 1 and 10000, is %d", c.MaxFetches)
	return errors.Join(errs...)
}

// Errors of a Cache.
var (
	// ErrCacheBusy means that CacheConfig.MaxFetches are running.
	ErrCacheBusy = errors.New("too many fetches from upstream")
	// ErrCacheClosed means that the cache was closed.
	ErrCacheClosed = errors.New("cache is closed")
	// ErrTooLarge means that upstream sent more than CacheConfig.MaxObjectBytes.
	ErrTooLarge = errors.New("object is too large")
)

// Fetch gets one object from wherever a cache is filled from: an upstream node
// or a sibling process. uri is what was given to Cache.Get. A status below 500
// is an answer, whatever it says; an error and a status from 500 on are
// failures. Status, ContentType, CacheControl and Body count. It should not read
// a body beyond the limit of the configuration, and must return when ctx is
// done.
type Fetch func(ctx context.Context, uri string) (Object, error)

// Cache keeps copies of what another node serves, so that upstream is asked once
// however many ask here. It is safe for concurrent use.
//
// Segments stay until others need their place; playlists for a moment; answers
// such as 404 for a shorter one; failures not at all.
type Cache struct {
	// Fixed at construction.
	config CacheConfig
	fetch  Fetch
	ctx    context.Context // of all fetches
	cancel context.CancelFunc

	hits, misses, collapsed, stale *metrics.Counter
	failed, bytes                  *metrics.Counter

	fetches sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	closed  bool
	entries *simplelru.LRU[string, *cached]
	size    int64 // of all entries, bytes
	flights map[string]*flight
}

// cached is guarded by the cache's mu; its object is immutable.
type cached struct {
	object  Object
	expires time.Time
	stale   time.Time // until when it may be answered while upstream fails
	size    int64
}

// flight is a fetch that is under way. object and err are written before done
// is closed.
type flight struct {
	done   chan struct{}
	object Object
	err    error
}

// entryOverhead is what an entry costs in bytes beside its body and key.
const entryOverhead = 512

// NewCache returns an empty cache that is filled by fetch. config must be valid;
// set may be nil. Close it.
func NewCache(config CacheConfig, fetch Fetch, set *metrics.Set) *Cache {
	if set == nil {
		set = metrics.NewSet()
	}
	entries, err := simplelru.NewLRU[string, *cached](math.MaxInt, nil) // bounded by bytes instead
	if err != nil {
		panic(err) // only for a size that is not positive
	}
	ctx, cancel := context.WithCancel(context.Background())
	counter := func(result string) *metrics.Counter {
		return set.GetOrCreateCounter(`weir_hls_cache_requests_total{result="` + result + `"}`)
	}
	c := &Cache{
		config: config, fetch: fetch, ctx: ctx, cancel: cancel,
		hits: counter("hit"), misses: counter("miss"), collapsed: counter("collapsed"), stale: counter("stale"),
		failed:  set.GetOrCreateCounter("weir_hls_cache_fetch_errors_total"),
		bytes:   set.GetOrCreateCounter("weir_hls_cache_fetched_bytes_total"),
		entries: entries,
		flights: make(map[string]*flight),
	}
	return c
}

// Close ends all fetches, waits for them, and lets go of everything. Requests
// that wait get ErrCacheClosed.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.fetches.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries.Purge()
	c.size = 0
}

// Size returns how many bytes the cache keeps, overhead included.
func (c *Cache) Size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.size
}

// Get returns the object of a URI (see Request.URI), from memory or from
// upstream. ctx bounds the caller's waiting, not the fetch, which others may
// wait for as well. The error wraps the cause: of ctx, of the fetch, ErrTooLarge,
// ErrCacheBusy or ErrCacheClosed.
func (c *Cache) Get(ctx context.Context, uri string) (Object, error) {
	now := time.Now()
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return Object{}, fmt.Errorf("get %s: %w", uri, ErrCacheClosed)
	}
	entry, _ := c.entries.Get(uri)
	if entry != nil && now.Before(entry.expires) {
		c.mu.Unlock()
		c.hits.Inc()
		return entry.object, nil
	}
	f := c.flights[uri]
	switch {
	case f != nil:
		c.collapsed.Inc()
	case len(c.flights) >= c.config.MaxFetches:
		c.mu.Unlock()
		c.failed.Inc()
		if entry != nil && now.Before(entry.stale) {
			c.stale.Inc()
			return entry.object, nil
		}
		return Object{}, fmt.Errorf("get %s: %w", uri, ErrCacheBusy)
	default:
		c.misses.Inc()
		f = &flight{done: make(chan struct{})}
		c.flights[uri] = f
		c.fetches.Go(func() { c.run(uri, f) })
	}
	c.mu.Unlock()

	select {
	case <-f.done:
		return f.object, f.err
	case <-ctx.Done():
		return Object{}, fmt.Errorf("get %s: %w", uri, context.Cause(ctx))
	}
}

// run fetches one object for everybody who waits for it.
func (c *Cache) run(uri string, f *flight) {
	ctx, cancel := context.WithTimeout(c.ctx, c.config.FetchTimeout)
	defer cancel()
	o, err := c.fetch(ctx, uri)
	if err == nil && int64(len(o.Body)) > int64(c.config.MaxObjectBytes) {
		err = fmt.Errorf("%d bytes: %w", len(o.Body), ErrTooLarge)
	}
	if err != nil && c.ctx.Err() != nil {
		err = ErrCacheClosed
	}
	if err != nil {
		err = fmt.Errorf("fetch %s: %w", uri, err)
	} else {
		c.bytes.Add(len(o.Body))
		o = NewObject(o.Status, o.ContentType, o.CacheControl, o.Body)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil || o.Status >= 500 {
		c.failed.Inc()
		if entry, ok := c.entries.Peek(uri); ok && time.Now().Before(entry.stale) {
			c.stale.Inc()
			o, err = entry.object, nil
			entry.expires = time.Now().Add(c.config.NegativeTTL)
		}
	} else {
		c.keep(uri, o)
	}
	f.object, f.err = o, err
	delete(c.flights, uri)
	close(f.done)
}

// keep stores an answer for as long as its kind is kept. mu is held.
func (c *Cache) keep(uri string, o Object) {
	now := time.Now()
	e := &cached{object: o, size: int64(cap(o.Body)) + int64(len(uri)) + entryOverhead}
	path, _, _ := strings.Cut(uri, "?")
	switch {
	case o.Status != 200:
		e.expires = now.Add(c.config.NegativeTTL)
	case strings.HasSuffix(path, PlaylistExt):
		e.expires = now.Add(min(c.config.PlaylistTTL, maxAge(o.CacheControl)))
		e.stale = now.Add(c.config.StaleFor)
	default:
		e.expires = now.Add(maxAge(o.CacheControl))
		if strings.Contains(o.CacheControl, "immutable") {
			e.expires = now.AddDate(100, 0, 0)
		}
	}
	if old, ok := c.entries.Peek(uri); ok {
		c.size -= old.size
		c.entries.Remove(uri)
	}
	if c.closed || !e.expires.After(now) && !e.stale.After(now) {
		return
	}
	c.entries.Add(uri, e)
	c.size += e.size
	for c.size > int64(c.config.MaxBytes) {
		_, oldest, ok := c.entries.RemoveOldest()
		if !ok {
			return
		}
		c.size -= oldest.size
	}
}
