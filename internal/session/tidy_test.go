package session

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Memory is given back once players have stopped to join, if they were many, and not
// more often than once in a minute.
func TestMemoryIsGivenBackAfterJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var freed atomic.Int64
		d := &tidy{free: func() { freed.Add(1) }}
		after := func(joins int, each, wait time.Duration, want int64) {
			t.Helper()
			for range joins {
				time.Sleep(each)
				d.joined()
			}
			time.Sleep(wait)
			if synctest.Wait(); freed.Load() != want {
				t.Errorf("%d joins, each after %v, and %v later: given back %d times, want %d", joins, each, wait, freed.Load(), want)
			}
		}
		after(tidyJoins-1, time.Millisecond, time.Hour, 0)
		after(1, 0, 999*time.Millisecond, 0)
		after(0, 0, time.Millisecond, 1)
		after(0, 0, time.Hour, 1)
		after(1000, 100*time.Millisecond, 999*time.Millisecond, 1) // they go on and on
		after(0, 0, time.Millisecond, 2)
		after(500, time.Millisecond, 59*time.Second, 2) // too soon
		after(0, 0, time.Second, 3)
		after(tidyJoins, time.Minute, 0, 3)
		d.close()
		after(1000, time.Millisecond, time.Hour, 3)
	})
}
