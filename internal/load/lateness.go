package load

import (
	"math/bits"
	"sync"
	"time"
)

// Delays collects how late the rounds of a fan-out were. Safe for concurrent use.
// The zero value is ready.
type Delays struct {
	mu    sync.Mutex
	slots [delaySlots]delaySlot // guarded by mu; a ring over time
}

// delaySlot counts the delays of one part of the time.
type delaySlot struct {
	number int64 // of the part, in slotTime since 1970
	total  int
	counts [delayBuckets]int // by the size of the delay
}

const (
	slotTime   = 250 * time.Millisecond
	delaySlots = 8 // two seconds

	// Buckets are eighths of powers of two of 64 µs: a value is known to 12 %.
	delayUnit    = 64 * time.Microsecond
	perOctave    = 8
	delayBuckets = 21 * perOctave // up to more than a minute
)

// Observe notes that a round was late by d at now. Negative delays count as none.
func (d *Delays) Observe(now time.Time, late time.Duration) {
	number := now.UnixNano() / int64(slotTime)
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &d.slots[number%delaySlots]
	if s.number != number {
		*s = delaySlot{number: number}
	}
	s.counts[bucketOf(late)]++
	s.total++
}

// P99 returns the delay that 99 of 100 rounds of the two seconds before now were not
// above, to an eighth; 0 if there were none. Of fewer than 100 rounds it is the
// longest delay.
func (d *Delays) P99(now time.Time) time.Duration {
	number := now.UnixNano() / int64(slotTime)
	var counts [delayBuckets]int
	total := 0
	d.mu.Lock()
	for i := range d.slots {
		s := &d.slots[i]
		if age := number - s.number; age < 0 || age >= delaySlots {
			continue
		}
		total += s.total
		for b, n := range s.counts {
			counts[b] += n
		}
	}
	d.mu.Unlock()
	above := total / 100 // that may be above
	for b := delayBuckets - 1; b > 0; b-- {
		if above -= counts[b]; above < 0 {
			return boundOf(b)
		}
	}
	return 0
}

// bucketOf returns the bucket of a delay: the first is for those below delayUnit.
func bucketOf(late time.Duration) int {
	if late < delayUnit {
		return 0
	}
	n := uint64(late) * perOctave / uint64(delayUnit) // at least perOctave
	octave := bits.Len64(n) - 4                       // of 8..15 it is 0
	return min(1+octave*perOctave+int(n>>octave)-perOctave, delayBuckets-1)
}

// boundOf returns the upper bound of a bucket above the first.
func boundOf(bucket int) time.Duration {
	octave, eighth := (bucket-1)/perOctave, (bucket-1)%perOctave
	return delayUnit / perOctave * time.Duration(perOctave+eighth+1) << octave
}
