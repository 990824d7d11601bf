// Package repeat keeps what happens over and over from filling the log: the first of
// its kind has a line, and the next line, later, says how many there were.
package repeat

import (
	"sync"
	"time"
)

// Filter says which events are worth a line of the log: of each kind K the first, and
// then one in Every, which stands for those between. The zero value is ready. Safe for
// concurrent use; its memory is bounded by Max.
type Filter[K comparable] struct {
	// Fixed before the first use.

	// Every is how long a kind is silent after a line; 0 means a minute.
	Every time.Duration
	// Max is how many kinds are told apart at a time; 0 means 1000. What comes beyond
	// them counts as one more kind, until others have been silent for long enough.
	Max int

	mu    sync.Mutex
	kinds map[K]*entry // guarded by mu; at most Max
	rest  entry        // guarded by mu; of the kinds beyond
	swept time.Time    // guarded by mu; when room was last made
}

// entry is what is known of a kind.
type entry struct {
	said     time.Time // the last line; zero for none
	unlogged int       // events since
}

// sweepEvery is how often room is made for new kinds, which looks at all of them.
const sweepEvery = time.Second

// Due notes an event and returns how many events a line about it stands for, this one
// among them, and since when: the time of the line before, zero if there is none. n is 0
// if no line is due. Events whose kind does not come again are told by no line: count
// them elsewhere.
func (f *Filter[K]) Due(kind K, now time.Time) (n int, since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.entry(kind, now)
	e.unlogged++
	if !e.said.IsZero() && now.Sub(e.said) < f.every() {
		return 0, time.Time{}
	}
	n, since = e.unlogged, e.said
	*e = entry{said: now}
	return n, since
}

// entry returns the entry of a kind, a new one if there is room.
func (f *Filter[K]) entry(kind K, now time.Time) *entry {
	if e := f.kinds[kind]; e != nil {
		return e
	}
	limit := f.Max
	if limit == 0 {
		limit = 1000
	}
	if len(f.kinds) >= limit && now.Sub(f.swept) >= sweepEvery {
		f.swept = now
		for k, old := range f.kinds {
			if now.Sub(old.said) >= f.every() {
				delete(f.kinds, k)
			}
		}
	}
	if len(f.kinds) >= limit {
		return &f.rest
	}
	if f.kinds == nil {
		f.kinds = make(map[K]*entry)
	}
	e := &entry{}
	f.kinds[kind] = e
	return e
}

func (f *Filter[K]) every() time.Duration {
	if f.Every == 0 {
		return time.Minute
	}
	return f.Every
}
