package fanout

import (
	"sync"
	"time"
)

// debts count what is kept for players that do not take it: the bytes that their
// goroutines are writing. They are bounded over all players of an engine, so that
// many that are stuck at a time, by accident or on purpose, cannot have the
// memory of the others. Safe for concurrent use.
type debts struct {
	most int64 // static; 0 is no bound

	mu   sync.Mutex
	held int64              // guarded by mu; bytes
	of   map[*Session]*debt // guarded by mu
}

// debt is what is kept for one player.
type debt struct {
	bytes    int64     // its alone
	block    *shared   // which it has a part of, nil for none
	progress time.Time // when the player last took something
}

// shared is the memory of a block that is kept for several players, counted once.
type shared struct {
	bytes int64
	users int // guarded by debts.mu
}

// chaserCost is the memory of a player's goroutine besides the bytes that it writes.
const chaserCost = 8 << 10

// owe notes that so many bytes, and a block, are kept for a player from now on. If
// that is more than may be it forgets and returns the players that have taken
// nothing for the longest time, for the caller to end; s may be among them.
func (d *debts) owe(s *Session, bytes int, block *shared) (over []*Session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(s)
	d.of[s] = &debt{bytes: int64(bytes) + chaserCost, block: block, progress: time.Now()}
	d.held += int64(bytes) + chaserCost
	if block != nil {
		if block.users++; block.users == 1 {
			d.held += block.bytes
		}
	}
	return d.bound()
}

// oweMore is owe for so many bytes more, if anything is kept for the player.
func (d *debts) oweMore(s *Session, bytes int) (over []*Session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if debt := d.of[s]; debt != nil {
		debt.bytes += int64(bytes)
		d.held += int64(bytes)
	}
	return d.bound()
}

// bound forgets and returns players until the others are within the bound. d.mu is
// held.
func (d *debts) bound() (over []*Session) {
	for d.most > 0 && d.held > d.most && len(d.of) > 0 {
		var last *Session
		for s, debt := range d.of {
			if last == nil || debt.progress.Before(d.of[last].progress) {
				last = s
			}
		}
		d.forget(last) // its goroutine lets go of it as soon as it is ended
		over = append(over, last)
	}
	return over
}

// progressed notes that a player has taken something.
func (d *debts) progressed(s *Session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if debt := d.of[s]; debt != nil {
		debt.progress = time.Now()
	}
}

// paid notes that nothing is kept for a player any more.
func (d *debts) paid(s *Session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(s)
}

func (d *debts) forget(s *Session) { // d.mu is held
	debt := d.of[s]
	if debt == nil {
		return
	}
	delete(d.of, s)
	d.held -= debt.bytes
	if b := debt.block; b != nil {
		if b.users--; b.users == 0 {
			d.held -= b.bytes
		}
	}
}

// sum returns for how many players bytes are kept, and how many.
func (d *debts) sum() (players int, bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.of), d.held
}
