package edge

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// epochs remembers for each stream the latest ownership that this worker has shown
// to players or has heard of. What is of an earlier one is not shown any more. Safe
// for concurrent use.
type epochs struct {
	mu     sync.Mutex
	latest map[string]*latest // guarded by mu
}

type latest struct {
	epoch uint64
	shown uint64    // the latest of which frames were shown
	users int       // relays; it is kept as long as there are any
	at    time.Time // when it was heard of, or the last user left
}

// Without a user an epoch is remembered for keepEpoch, and no more than maxEpochs
// are: nobody is left who would see the stream go back.
const (
	keepEpoch = time.Minute
	maxEpochs = 16384
)

func newEpochs() *epochs { return &epochs{latest: map[string]*latest{}} }

// of returns the latest epoch of a stream, 0 if none is known.
func (e *epochs) of(key string) uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l := e.find(key); l != nil {
		return l.epoch
	}
	return 0
}

// show is note for an ownership of which something is shown now.
func (e *epochs) show(key string, epoch uint64) {
	e.note(key, epoch)
	e.mu.Lock()
	defer e.mu.Unlock()
	if l := e.find(key); l != nil && epoch <= l.epoch {
		l.shown = max(l.shown, epoch)
	}
}

// shown returns the latest epoch of which something was shown, 0 for none.
func (e *epochs) shown(key string) uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l := e.find(key); l != nil {
		return l.shown
	}
	return 0
}

// find returns the entry of a key unless it is over. mu is held.
func (e *epochs) find(key string) *latest {
	l := e.latest[key]
	if l != nil && l.users == 0 && time.Since(l.at) > keepEpoch {
		delete(e.latest, key)
		return nil
	}
	return l
}

// note enters an ownership that was shown or heard of, and reports whether it is
// later than all before. One broken clock must not lock a stream out for ever: an
// epoch more than a year ahead is not believed.
func (e *epochs) note(key string, epoch uint64) bool {
	if epoch == 0 || epoch > uint64(time.Now().AddDate(1, 0, 0).UnixMicro()) {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.enter(key)
	l.at = time.Now()
	if epoch <= l.epoch {
		return false
	}
	l.epoch = epoch
	return true
}

// enter returns the entry of a key, a new one if there is none. mu is held.
func (e *epochs) enter(key string) *latest {
	l := e.find(key)
	if l == nil {
		if len(e.latest) >= maxEpochs {
			e.shrink()
		}
		l = &latest{at: time.Now()}
		e.latest[key] = l
	}
	return l
}

// shrink makes room: it drops the oldest of some that nobody uses. mu is held.
func (e *epochs) shrink() {
	var oldest string
	looked := 0
	for key, l := range e.latest { // in no order
		if l.users == 0 && (oldest == "" || l.at.Before(e.latest[oldest].at)) {
			oldest = key
		}
		if looked++; looked >= 16 && oldest != "" {
			break
		}
	}
	delete(e.latest, oldest)
}

// use keeps what is known of a stream until leave.
func (e *epochs) use(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.enter(key).users++
}

func (e *epochs) leave(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.latest[key]
	l.users, l.at = l.users-1, time.Now()
}

// forget lets a stream begin anew with whatever there is.
func (e *epochs) forget(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l := e.latest[key]; l != nil {
		l.epoch, l.shown = 0, 0
	}
}

// errOlder says that a source is of an ownership that a later one has ended.
var errOlder = errors.New("it is of an earlier owner of the stream")

// notOlder returns an error, and counts and logs it, if what is had from a source
// is of an earlier ownership than the latest one. A source that knows no epochs,
// as an SRS, is taken unless the owner is known, whose epoch named is.
func (e *Edge) notOlder(key, from string, epoch, named uint64) error {
	return e.notBefore(e.epochs.of(key), key, from, epoch, named)
}

// notBack is notOlder for what a node sends that follows the stream's ownership
// itself: its log may still begin with frames of the earlier owner, which whoever has
// seen none of the later one's may see.
func (e *Edge) notBack(key, from string, epoch uint64) error {
	return e.notBefore(e.epochs.shown(key), key, from, epoch, epoch)
}

func (e *Edge) notBefore(last uint64, key, from string, epoch, named uint64) error {
	if epoch >= last || epoch == 0 && named == 0 {
		return nil
	}
	e.metrics.older.Inc()
	e.log.Info("source refused: a later owner is known", "stream", key, "from", from, "epoch", epoch, "latest", last)
	return fmt.Errorf("%w: epoch %d of %s, latest %d", errOlder, epoch, from, last)
}
