package fanout

import (
	"math/bits"
	"time"
)

// way is one of two by which a large block is sent to many players.
type way uint8

const (
	byRing  way = iota // copies, with one system call for many players where there is a ring
	byPages            // the same pages for all, with a system call for each
)

// ways chooses by which way blocks are sent for which both can be had. What is cheaper is
// the machine's: what copying costs there, and what entering the kernel does. So it is
// measured, all the time, for blocks of about a size. It belongs to the shard's goroutine;
// the zero value is ready.
type ways [sizes]struct {
	cost  [2]float64 // by way, ns per byte: the least of late; 0 if it is not known
	sends int        // blocks
}

const (
	// eitherBytes is from which size on there is a choice. Shorter blocks go by the ring
	// where there is one: by the clock pages seem cheaper for them, too, on machines where they
	// take as much processor time, or more.
	eitherBytes = 32 << 10
	// sizes of blocks are told apart by powers of two from eitherBytes on.
	sizes = 4
	// otherEvery is how many blocks there are to one that goes the dearer way.
	otherEvery = 16
	// So many blocks at first go both ways in turn.
	firstLooks = 8
	// One player in so many may be slow for what a block took to count.
	fewSlow = 16
	// A cost that is not reached again is forgotten by so much with each block. What is
	// measured is more than it costs whenever the processor is wanted elsewhere.
	forgetting = 1.01
)

func sizeClass(bytes int) int { return min(max(0, bits.Len(uint(bytes/eitherBytes))-1), sizes-1) }

// choose returns the way for a block of so many bytes.
func (w *ways) choose(bytes int) way {
	c := &w[sizeClass(bytes)]
	if c.sends++; c.sends <= firstLooks {
		return way(c.sends % 2)
	}
	cheap, dear := byRing, byPages
	if c.cost[byPages] < c.cost[byRing] {
		cheap, dear = dear, cheap
	}
	if c.sends%otherEvery == 0 {
		return dear
	}
	return cheap
}

// took notes what sending a block to so many players took, of whom whole have taken all
// of it. Where many have not, what it took says little: a full socket costs next to nothing.
func (w *ways) took(by way, bytes, players, whole int, d time.Duration) {
	if whole < players-players/fewSlow {
		return
	}
	cost := &w[sizeClass(bytes)].cost[by]
	now := float64(max(d, 1)) / float64(bytes) / float64(players)
	if *cost > 0 {
		now = min(now, *cost*forgetting)
	}
	*cost = now
}
