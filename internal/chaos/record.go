package chaos

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"weir/internal/chaos/model"
)

// recorder writes the history and has it judged as it grows. Safe for concurrent
// use.
type recorder struct {
	// Static.
	begun time.Time
	broke chan struct{} // closed with the first violation

	mu sync.Mutex
	// Guarded by mu.
	out   *bufio.Writer
	model model.Model
	found []report
	ended bool // nothing is noted any more
	tell  func(model.Violation)
	// past is the last events, the newest last; frames are in it by their runs.
	past []model.Event
}

// pastEvents is how many events are kept for a report.
const pastEvents = 20_000

func newRecorder(out io.Writer, tell func(model.Violation)) *recorder {
	return &recorder{begun: time.Now(), broke: make(chan struct{}), out: bufio.NewWriterSize(out, 256<<10), tell: tell}
}

// ms is the time of the run.
func (r *recorder) ms() int64 { return time.Since(r.begun).Milliseconds() }

// event notes an event that happens now.
func (r *recorder) event(e model.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.T = r.ms() // under the lock, so that events are in the order of their times
	r.add(e)
}

// at notes an event with the time that it has.
func (r *recorder) at(e model.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(e)
}

// add is for who holds the lock.
func (r *recorder) add(e model.Event) {
	if r.ended {
		return
	}
	fmt.Fprintln(r.out, e) // an error stays in out until close
	if len(r.past) >= 2*pastEvents {
		r.past = append(r.past[:0], r.past[pastEvents:]...)
	}
	r.past = append(r.past, e)
	r.judged(r.model.Apply(e))
}

// around returns the last events that may have to do with a violation. For who
// holds the lock.
func (r *recorder) around(v model.Violation) []model.Event {
	var found []model.Event
	for _, e := range slices.Backward(r.past) {
		if len(found) < reportEvents && concerns(e, v) {
			found = append(found, e)
		}
	}
	slices.Reverse(found)
	return found
}

// concerns reports whether an event may have to do with a violation: faults do,
// and what happened to its connection, its stream or its node.
func concerns(e model.Event, v model.Violation) bool {
	switch e.Kind {
	case model.KindFault, model.KindHeal, model.KindUp, model.KindDown, model.KindLag, model.KindCalm, model.KindStorm:
		return true
	case model.KindOwn, model.KindPublishing, model.KindUnpublished, model.KindPulls:
		return e.Stream == v.Stream
	case model.KindDeaf, model.KindLeft:
		return e.Node == v.Node
	case model.KindHop:
		return false
	}
	return v.Conn != 0 && e.Conn == v.Conn
}

func (r *recorder) judged(found []model.Violation) {
	for _, v := range found {
		if len(r.found) == 0 {
			close(r.broke)
		}
		if len(r.found) < reports {
			r.found = append(r.found, report{v, r.around(v)})
		}
		r.tell(v)
	}
}

// report is a violation with the events before it that may have to do with it.
type report struct {
	model.Violation
	before []model.Event
}

// Of how many violations the events are kept, and how many of each.
const (
	reports      = 3
	reportEvents = 25
)

// close judges the whole, and writes what is not yet written. Later events are
// not noted: the end of the cluster is no part of the history.
func (r *recorder) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.judged(r.model.Finish())
	r.ended = true
	if err := r.out.Flush(); err != nil {
		return fmt.Errorf("write history: %w", err)
	}
	return nil
}
