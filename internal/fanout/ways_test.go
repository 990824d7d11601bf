package fanout

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestWays: large blocks go the way that is cheaper here, also when that changes, and when
// what is measured is often far more than it costs.
func TestWays(t *testing.T) {
	const players = 100
	var w ways
	r := rand.New(rand.NewPCG(1, 2))
	// send sends blocks of a size, at a cost for each player by each way, and returns the
	// share that went by pages.
	send := func(bytes, blocks int, ring, pages time.Duration) float64 {
		n := 0
		for range blocks {
			by, cost := byRing, ring
			if w.choose(bytes) == byPages {
				by, cost = byPages, pages
				n++
			}
			late := 1 + 4*max(0, r.Float64()-0.5) // every other time the processor was elsewhere
			w.took(by, bytes, players, players-players/fewSlow, time.Duration(float64(players*cost)*late))
		}
		return float64(n) / float64(blocks)
	}
	between := func(what string, got, low, high float64) {
		t.Helper()
		if got < low || got > high {
			t.Errorf("%s: %.2f went by pages, want %.2f to %.2f", what, got, low, high)
		}
	}
	const us = time.Microsecond
	between("nothing is known", send(40<<10, firstLooks, 8*us, 6*us), 0.5, 0.5)
	between("pages are cheaper", send(40<<10, 1000, 8*us, 6*us), 0.85, 0.95)
	between("of another size", send(100<<10, 1000, 8*us, 12*us), 0.05, 0.15)
	between("until it is seen that it has changed", send(40<<10, 200, 7*us, 9*us), 0.05, 0.4)
	between("the ring is cheaper now", send(40<<10, 1000, 7*us, 9*us), 0.05, 0.15)
	for range 100 { // most sockets are full: that it took nothing says nothing of the way
		w.took(byPages, 40<<10, players, players/2, 1)
	}
	between("although many were slow", send(40<<10, 1000, 7*us, 9*us), 0.05, 0.15)
	between("which holds for all of about a size", send(50<<10, 1000, 7*us, 9*us), 0.05, 0.15)
}

func TestSizeClass(t *testing.T) {
	for bytes, want := range map[int]int{1: 0, eitherBytes: 0, 2*eitherBytes - 1: 0, 2 * eitherBytes: 1, 200 << 10: 2, 1 << 30: sizes - 1} {
		if got := sizeClass(bytes); got != want {
			t.Errorf("%d bytes are of size %d, want %d", bytes, got, want)
		}
	}
}
