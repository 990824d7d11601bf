package session

import (
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

// tidy gives memory back to the system after many players have joined: each join
// takes several times the memory that a player needs from then on, and Go would keep
// most of it for minutes. That costs two collections. Safe for concurrent use.
type tidy struct {
	free func() // static; gives the memory back

	mu     sync.Mutex
	joins  int         // guarded by mu; since the last time
	timer  *time.Timer // guarded by mu; nil before the first time; runs after enough joins
	last   time.Time   // guarded by mu; when it was done last
	closed bool        // guarded by mu
	busy   sync.WaitGroup
}

const (
	tidyJoins = 200         // that are worth a collection
	tidyQuiet = time.Second // without a join before it
	tidyEvery = time.Minute // at most
)

func newTidy() *tidy {
	return &tidy{free: func() {
		runtime.GC() // pools let go of what the joins used only with the second one
		debug.FreeOSMemory()
	}}
}

// joined counts a join.
func (d *tidy) joined() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.joins++; d.joins < tidyJoins || d.closed {
		return
	}
	wait := tidyQuiet
	if !d.last.IsZero() {
		wait = max(wait, time.Until(d.last.Add(tidyEvery)))
	}
	if d.timer == nil {
		d.timer = time.AfterFunc(wait, d.do)
	} else {
		d.timer.Reset(wait)
	}
}

func (d *tidy) do() {
	d.mu.Lock()
	if d.closed || d.joins < tidyJoins { // a timer that was reset while it fired
		d.mu.Unlock()
		return
	}
	d.joins, d.last = 0, time.Now()
	d.busy.Add(1)
	d.mu.Unlock()
	defer d.busy.Done()
	d.free()
}

// close ends it.
func (d *tidy) close() {
	d.mu.Lock()
	d.closed = true
	if d.timer != nil {
		d.timer.Stop()
	}
	d.mu.Unlock()
	d.busy.Wait()
}
