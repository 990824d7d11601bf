package admission

import (
	"sync"
	"time"
)

// bucket lets sessions in at a rate. It keeps when the next place is free if all come
// in order: the generic cell rate algorithm (ITU-T I.371). Safe for concurrent use.
type bucket struct {
	gap   time.Duration // between two sessions; 0: there is no limit
	ahead time.Duration // how far the places given may be before their time

	mu   sync.Mutex
	next time.Time // guarded by mu; when the place after the last one given is due
}

func newBucket(rate float64, burst int) *bucket {
	b := &bucket{}
	if rate > 0 {
		b.gap = max(time.Duration(float64(time.Second)/rate), 1)
		b.ahead = time.Duration(burst-1) * b.gap
	}
	return b
}

// take gives a place to one who is patient for so long, and returns how long it has to
// wait for it, or that there is none: then wait is how long it would have been.
func (b *bucket) take(now time.Time, patience time.Duration) (wait time.Duration, ok bool) {
	if b.gap == 0 {
		return 0, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next.Before(now) {
		b.next = now
	}
	wait = max(0, b.next.Add(-b.ahead).Sub(now))
	if wait > patience {
		return wait, false
	}
	b.next = b.next.Add(b.gap)
	return wait, true
}

// force gives a place at once, whatever the rate. It makes the others wait.
func (b *bucket) force(now time.Time) {
	if b.gap == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next.Before(now) {
		b.next = now
	}
	b.next = b.next.Add(b.gap)
}
