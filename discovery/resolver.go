package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"
	"unsafe"

	"github.com/VictoriaMetrics/metrics"
	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Resolver finds owners through a cache. An owner that was found is used for
// CacheTTL without asking; then it is asked for again, by one caller for all who
// want it. While the directory is unavailable, what was found in the last
// StaleFor is still used. That nobody owns a stream is never kept.
//
// While Run follows a directory that is a Watcher, there is a copy of all of it, and
// a stream that is in it is found there without a call. That a stream is not in it
// is confirmed by the directory, so that who comes right after a publisher finds
// it; beyond ConfirmRate such calls a second the copy is believed. While the watch
// is broken it is as described above, and what was in the copy counts as found when
// the watch broke.
//
// A directory that lets a lookup wait in vain is not asked for one Heartbeat, and
// then by one caller alone until it answers, who mostly does not wait for long
// either; the others get at once what they would get after the timeout. Safe for concurrent use.
type Resolver struct {
	// Static.
	finder   Finder
	ttl      time.Duration
	staleFor time.Duration
	pause    time.Duration // after a lookup in vain
	maxBytes int64
	met      resolverMetrics

	watcher Watcher // nil: there is none
	log     *slog.Logger
	// told is called after each change of the copy, without locks and from Run,
	// with what was told; may be nil.
	told func([]Event)
	// kicked is called for each kick that is told, as told is; may be nil.
	kicked func(Kicked)

	followers followers // has a lock of its own, which may be taken under mu

	mu      sync.Mutex // guards all below
	entries *simplelru.LRU[string, resolved]
	bytes   int64 // of entries
	asking  map[string]*question
	silent  bool      // the last lookup that ended waited in vain
	resume  time.Time // if silent: not before this is the directory asked again
	probing bool      // if silent: somebody asks already
	probes  uint      // since the directory is silent
	mirror  mirror
	// confirms is how many calls may be made now to confirm what the copy says,
	// and counted is up to when that has been counted.
	confirms float64
	counted  time.Time
}

// ConfirmRate is how many calls a second a Resolver makes to have the directory
// confirm that a stream that is not in its copy has no owner.
const ConfirmRate = 1000

// inVain is how long a lookup must have waited to make the directory count as
// silent. One that fails sooner, as where nobody listens, costs nobody's patience.
const inVain = 100 * time.Millisecond

// patientProbe is which of the probes of a silent directory, counted from 1, waits
// for as long as it takes, for one that is slow but there. The others wait for
// inVain.
const patientProbe = 8

// errSilent is what a lookup fails with that was not made.
var errSilent = fmt.Errorf("%w: it did not answer a moment ago", ErrUnavailable)

type resolved struct {
	lease Lease
	at    time.Time // when it was found
	fresh bool      // false: ask before the next use
}

// question is a lookup under way. The fields beside done may be read once done
// is closed.
type question struct {
	done  chan struct{}
	lease Lease
	err   error
	// abandoned: the asker gave up, so the answer says nothing.
	abandoned bool
	probe     bool // of a silent directory; static
	brief     bool // wait for inVain at most; static
}

type resolverMetrics struct{ mapped, fresh, asked, stale *metrics.Counter }

// NewResolver returns an empty cache in front of finder with cache_ttl,
// stale_for, cache_size and map_size of cfg. log and
// set may be nil. Run fills the copy.
func NewResolver(finder Finder, cfg Config, log *slog.Logger, set *metrics.Set) *Resolver {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if set == nil {
		set = metrics.NewSet()
	}
	r := &Resolver{
		finder: finder, ttl: cfg.CacheTTL, staleFor: cfg.StaleFor, pause: cfg.Heartbeat, maxBytes: int64(cfg.CacheSize),
		mirror: newMirror(int64(cfg.MapSize)), log: log,
		met: resolverMetrics{
			mapped: set.GetOrCreateCounter(`weir_discovery_resolved_total{from="map"}`),
			fresh:  set.GetOrCreateCounter(`weir_discovery_resolved_total{from="cache"}`),
			asked:  set.GetOrCreateCounter(`weir_discovery_resolved_total{from="directory"}`),
			stale:  set.GetOrCreateCounter(`weir_discovery_resolved_total{from="stale_cache"}`),
		},
		asking: make(map[string]*question),
	}
	if w, ok := finder.(Watcher); ok && cfg.MapSize > 0 {
		r.watcher = w
	}
	set.GetOrCreateGauge(`weir_discovery_map_in_step`, func() float64 {
		if r.InStep() {
			return 1
		}
		return 0
	})
	set.GetOrCreateGauge(`weir_discovery_map_streams`, func() float64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		return float64(len(r.mirror.streams))
	})
	// The bound is ours, in bytes. NewLRU fails only for a size below one.
	r.entries, _ = simplelru.NewLRU(math.MaxInt, func(_ string, e resolved) { r.bytes -= e.size() })
	return r
}

// size is the memory of an entry in bytes: the strings, the entry itself, and
// about twice that again for the list element and the map slot.
func (e resolved) size() int64 {
	l := &e.lease
	return int64(len(l.Stream)+len(l.Node)+len(l.Instance)+len(l.Addr.RTMP)+len(l.Addr.HTTP)+len(l.Addr.API)) +
		3*int64(unsafe.Sizeof(e))
}

// Lookup implements Finder. A lease out of the cache may have expired meanwhile.
func (r *Resolver) Lookup(ctx context.Context, stream string) (Lease, error) {
	for joined := false; ; {
		r.mu.Lock()
		now := time.Now()
		inStep := r.mirror.inStep(now)
		e, ok := r.entries.Get(stream)
		if inStep {
			l, mapped := r.mirror.lease(stream)
			if mapped && (!ok || l.Epoch > e.lease.Epoch || now.Sub(e.at) >= r.ttl || sameOwnership(l, e.lease) && e.fresh) {
				r.mu.Unlock()
				r.met.mapped.Inc()
				return l, nil
			}
		}
		if ok && e.fresh && now.Sub(e.at) < r.ttl {
			r.mu.Unlock()
			r.met.fresh.Inc()
			return e.lease, nil
		}
		if q := r.asking[stream]; q != nil {
			r.mu.Unlock()
			select {
			case <-q.done:
			case <-ctx.Done():
				return Lease{}, context.Cause(ctx)
			}
			if q.abandoned {
				continue // somebody else must ask, perhaps this caller
			}
			if !joined && errors.Is(q.err, ErrNotFound) {
				// The answer may be older than this caller, and the stream not.
				joined = true
				continue
			}
			return q.lease, q.err
		}
		if inStep && !r.mayConfirm(now) {
			l, mapped := r.mirror.lease(stream)
			r.mu.Unlock()
			r.met.mapped.Inc()
			if !mapped {
				return Lease{}, fmt.Errorf("look up stream %s: %w", stream, ErrNotFound)
			}
			return l, nil
		}
		if r.silent && (r.probing || time.Now().Before(r.resume)) {
			q := question{}
			r.fallBack(&q, stream, fmt.Errorf("look up stream %s: %w", stream, errSilent))
			r.mu.Unlock()
			return q.lease, q.err
		}
		q := &question{done: make(chan struct{})}
		if r.silent {
			r.probes++
			r.probing, q.probe, q.brief = true, true, r.probes%patientProbe != 0
		} else {
			r.probes = 0
		}
		r.asking[stream] = q
		r.mu.Unlock()
		r.ask(ctx, stream, q)
		r.followers.deliver() // now that a follower may look the stream up
		return q.lease, q.err
	}
}

// ask answers q for all who wait for it.
func (r *Resolver) ask(ctx context.Context, stream string, q *question) {
	answered := false
	defer func() {
		r.mu.Lock()
		// Also when the finder panicked: nobody may wait for ever.
		q.abandoned = !answered || q.err != nil && ctx.Err() != nil
		delete(r.asking, stream)
		if q.probe {
			r.probing = false
		}
		r.mu.Unlock()
		close(q.done)
	}()
	begun := time.Now()
	asOf := r.followers.latest(stream)
	asking := ctx
	if q.brief {
		var cancel context.CancelFunc
		asking, cancel = context.WithTimeout(ctx, inVain)
		defer cancel()
	}
	lease, err := r.finder.Lookup(asking, stream)
	if err != nil && asking.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("look up stream %s: %w", stream, errSilent)
	}
	answered = true
	r.met.asked.Inc()

	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil && ctx.Err() != nil: // the caller gave up, which says nothing
	case errors.Is(err, ErrUnavailable) && time.Since(begun) >= inVain:
		r.silent, r.resume = true, time.Now().Add(r.pause)
	default:
		r.silent = false
	}
	old, known := r.last(stream)
	switch {
	case err == nil && known && old.fresh && lease.Epoch != 0 && lease.Epoch < old.lease.Epoch:
		// The directory is behind what is known here: do not go back to an
		// earlier owner, unless the later one has failed.
		r.met.stale.Inc()
		q.lease = old.lease
	case err == nil:
		if known && old.fresh {
			asOf = 0 // no doubt, no way back
		}
		r.put(lease, asOf)
		q.lease = lease
	case errors.Is(err, ErrUnavailable):
		r.fallBack(q, stream, err)
	default:
		if errors.Is(err, ErrNotFound) {
			r.entries.Remove(stream)
			r.followers.end(stream, asOf)
		}
		q.err = err
	}
}

// fallBack answers q, which the directory did not, with what was found lately or
// else with err. It expects mu to be held.
func (r *Resolver) fallBack(q *question, stream string, err error) {
	if e, ok := r.last(stream); ok {
		r.met.stale.Inc()
		q.lease = e.lease
		return
	}
	q.err = err
}

// last returns what was found of a stream, or was in the copy, within the last
// StaleFor. It expects mu to be held.
func (r *Resolver) last(stream string) (resolved, bool) {
	now := time.Now()
	e, ok := r.entries.Peek(stream)
	ok = ok && now.Sub(e.at) < r.staleFor
	if l, mapped := r.mirror.lease(stream); mapped && now.Sub(r.mirror.heard) < r.staleFor {
		if !ok || l.Epoch > e.lease.Epoch {
			return resolved{lease: l, at: r.mirror.heard, fresh: true}, true
		}
	}
	return e, ok
}

// mayConfirm reports whether the directory may be asked for what the copy should
// know. It expects mu to be held.
func (r *Resolver) mayConfirm(now time.Time) bool {
	r.confirms = min(ConfirmRate, r.confirms+ConfirmRate*now.Sub(r.counted).Seconds())
	r.counted = now
	if r.confirms < 1 {
		return false
	}
	r.confirms--
	return true
}

// heard notes how another call to the directory, begun at that time, has ended.
// After one that waited in vain the directory counts as silent for as long as the
// next of such calls may take.
func (r *Resolver) heard(err error, begun time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	took := time.Since(begun)
	switch {
	case !errors.Is(err, ErrUnavailable):
		r.silent = false
	case took >= inVain:
		r.silent, r.resume = true, time.Now().Add(r.pause+took)
	}
}

// known returns what is in the cache, however old.
func (r *Resolver) known(stream string) (Lease, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.entries.Peek(stream)
	if l, mapped := r.mirror.lease(stream); mapped && (!ok || l.Epoch >= e.lease.Epoch) {
		return l, true
	}
	return e.lease, ok
}

// Learn puts an owner into the cache that was learned elsewhere, unless a later
// one is known.
func (r *Resolver) Learn(l Lease) {
	r.learn(l)
	r.followers.deliver()
}

// learn is Learn; the caller lets the followers be told.
func (r *Resolver) learn(l Lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.last(l.Stream); ok && l.Epoch < old.lease.Epoch {
		return
	}
	r.put(l, 0)
}

// Follow calls f with each change of the stream's ownership that the Resolver
// learns: from an answer of the directory to any caller's Lookup, or by Learn. It
// asks nothing itself.
//
// f gets the owner's lease when its epoch, node, instance or address differ from
// what f was told last, or a Lease of nothing but Stream and the ended Epoch when
// the directory has said that nobody owns the stream any more. What is known at
// the moment is told before Follow returns. Epochs grow from call to call, except
// where the later owner was doubted and the directory names an earlier one: compare
// them. Of changes that come faster than f returns only the last is told. That the
// directory is unavailable is no change.
//
// f is called from the goroutine that learned of the change, one call at a time,
// without locks; it must not block, and may call the Resolver. After stop no call
// begins; one under way in another goroutine may still go on. stop may be called
// more than once.
func (r *Resolver) Follow(stream string, f func(Lease)) (stop func()) {
	stop = r.follow(stream, f)
	r.followers.deliver()
	return stop
}

// follow is Follow; the caller lets the followers be told.
func (r *Resolver) follow(stream string, f func(Lease)) (stop func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.last(stream); ok {
		return r.followers.add(stream, f, &e.lease)
	}
	return r.followers.add(stream, f, nil)
}

// OnKicked has f called for each kick of a stream that the directory tells of, and for
// the bans that there are when it is watched anew. f is called from Run, without
// locks, and must not block. Call it before Run.
func (r *Resolver) OnKicked(f func(Kicked)) { r.kicked = f }

// Doubt makes the next Lookup of the stream ask the directory: the owner did not
// answer, or has not got the stream. What is known stays for the case that the
// directory is unavailable, but no longer counts against an earlier epoch.
func (r *Resolver) Doubt(stream string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, cached := r.entries.Peek(stream)
	if l, mapped := r.mirror.lease(stream); mapped && (!cached || l.Epoch >= e.lease.Epoch) {
		r.put(l, 0)
		e, cached = r.entries.Peek(stream)
	}
	if cached {
		e.fresh = false
		r.entries.Add(stream, e) // replaces the value; the size stays
	}
}

// put expects mu to be held. Followers may be led back from epochs up to overrule.
func (r *Resolver) put(l Lease, overrule uint64) {
	r.followers.note(l, overrule)
	e := resolved{lease: l, at: time.Now(), fresh: true}
	r.entries.Remove(l.Stream)
	r.entries.Add(l.Stream, e)
	r.bytes += e.size()
	for r.bytes > r.maxBytes {
		r.entries.RemoveOldest()
	}
}
