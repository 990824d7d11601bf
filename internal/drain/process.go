// Package drain takes a node out of service without a stampede: nothing new is
// let in, the players that are there are moved one by one, spread evenly over
// the time that there is, and what is left at the deadline is cut.
//
// A Node holds what was asked of a node and tells its processes, over and over,
// so that a worker that was started meanwhile learns it too; a Process carries it
// out where the sessions are. Neither knows what a session is.
package drain

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// Order is what a process is to do. It is a value; its JSON is what a supervisor
// tells its workers.
type Order struct {
	// Since is when the drain began, and Until when what is left is cut.
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
	// Publishers is when those that publish are cut, if that is later than Until.
	Publishers time.Time `json:"publishers,omitzero"`
	// KickRate is how many players this process moves per second; 0 spreads them
	// over the time.
	KickRate float64 `json:"kick_rate,omitempty"`
}

func (o Order) equal(p Order) bool {
	return o.Since.Equal(p.Since) && o.Until.Equal(p.Until) && o.Publishers.Equal(p.Publishers) && o.KickRate == p.KickRate
}

// hastened returns o with the earlier of its deadlines and those of another order, which
// may be nil.
func (o Order) hastened(by *Order) *Order {
	switch {
	case by == nil:
	case by.Until.Before(o.Until):
		o = *by
	case by.Until.Before(o.Publishers):
		o.Publishers = by.Until
	}
	return &o
}

// Progress is how far one process, or all of a node, has come.
type Progress struct {
	// Players and Publishers are the sessions that are left.
	Players    int `json:"players"`
	Publishers int `json:"publishers"`
	// Moved counts the sessions that were told to go elsewhere, and Cut those that
	// were cut at the deadline.
	Moved int `json:"moved"`
	Cut   int `json:"cut"`
}

func (p Progress) left() int { return p.Players + p.Publishers }

// Add returns the sum of two.
func (p Progress) Add(q Progress) Progress {
	return Progress{p.Players + q.Players, p.Publishers + q.Publishers, p.Moved + q.Moved, p.Cut + q.Cut}
}

// Sessions are the sessions of a process. *session.Server is one.
type Sessions interface {
	// Census counts those that a drain has to do with.
	Census() (players, publishers int)
	// Movable returns the ids of those that can be told to go elsewhere and have
	// not been told yet.
	Movable() []string
	// Move tells one so. It reports whether there was one.
	Move(id string) bool
	// Cut ends all that are left, or all players, and returns how many.
	Cut(publishers bool) int
}

// Process carries out orders where the sessions are. Safe for concurrent use.
type Process struct {
	// Static.
	sessions Sessions
	log      *slog.Logger
	met      processMetrics

	mu      sync.Mutex
	final   bool          // guarded by mu; the process retires: order may only be hastened
	drained bool          // guarded by mu; the node drains
	order   *Order        // guarded by mu; nil: serve
	moved   int           // guarded by mu; of this drain
	cut     int           // guarded by mu
	said    int           // guarded by mu; moved and cut, as the last answer of Apply had them
	heard   int           // guarded by mu; said before: whoever asks again has that answer
	changed chan struct{} // guarded by mu; closed and replaced with order
}

type processMetrics struct{ moved, cut *metrics.Counter }

// NewProcess returns a process that serves. Run must run for orders to be carried
// out.
func NewProcess(s Sessions, log *slog.Logger, set *metrics.Set) *Process {
	p := &Process{
		sessions: s, log: log, changed: make(chan struct{}),
		met: processMetrics{
			moved: set.NewCounter("weir_drain_moved_total"),
			cut:   set.NewCounter("weir_drain_cut_total"),
		},
	}
	return p
}

// Draining reports whether new sessions are to be turned away. They are not by a process
// that only retires: who has been accepted by it has nowhere else to go, and is moved
// with the others.
func (p *Process) Draining() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.drained
}

// Apply makes an order the one in force, nil to serve again, and returns how far
// the process has come. The order in force may be given again.
func (p *Process) Apply(o *Order) Progress {
	players, publishers := p.sessions.Census() // before what is counted: nobody is gone and not counted
	p.mu.Lock()
	defer p.mu.Unlock()
	if o != nil && !p.drained {
		p.moved, p.cut, p.said = 0, 0, 0
	}
	p.drained = o != nil
	p.enforce(o)
	p.heard, p.said = p.said, p.moved+p.cut
	return Progress{Players: players, Publishers: publishers, Moved: p.moved, Cut: p.cut}
}

// Untold returns how many sessions of the node's drain have been moved or cut that whoever
// gives the orders may not know of yet; 0 if the node does not drain. An answer of Apply
// counts as known when it is called again.
func (p *Process) Untold() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.drained {
		return 0
	}
	return p.moved + p.cut - p.heard
}

// enforce makes an order the one in force. p.mu is held.
func (p *Process) enforce(o *Order) {
	if p.final {
		o = p.order.hastened(o)
	}
	if same := o == nil && p.order == nil || o != nil && p.order != nil && o.equal(*p.order); !same {
		p.order = o
		close(p.changed)
		p.changed = make(chan struct{})
	}
}

// Retire gives the last order: nothing takes it back, only an earlier deadline
// counts.
func (p *Process) Retire(o Order) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enforce(&o)
	p.final = true
}

// Past reports whether a share, from 0 to 1, of the time in which players are moved is
// over; false if the process serves.
func (p *Process) Past(share float64) bool {
	o, _ := p.inForce()
	if o == nil {
		return false
	}
	return !time.Now().Before(o.Since.Add(time.Duration(share * float64(o.gone().Sub(o.Since)))))
}

// inForce returns the order, and what is closed when there is another.
func (p *Process) inForce() (*Order, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.order, p.changed
}

// Run carries out orders until ctx ends. It returns nil.
func (p *Process) Run(ctx context.Context) error {
	for {
		o, changed := p.inForce()
		if o == nil {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		p.carryOut(ctx, *o, changed)
		if ctx.Err() != nil {
			return nil
		}
	}
}

// lookAgain is how often a drain looks for players that can be moved when there
// are none, and cuts what has come since the deadline: a session may have been on
// its way in.
const lookAgain = 200 * time.Millisecond

// carryOut moves players until the order changes.
func (p *Process) carryOut(ctx context.Context, o Order, changed <-chan struct{}) {
	until := func(t time.Time) bool { // false: there is another order, or none
		timer := time.NewTimer(time.Until(t))
		defer timer.Stop()
		select {
		case <-timer.C:
			return true
		case <-changed:
		case <-ctx.Done():
		}
		return false
	}
	var list []string // whom to move, in random order
	slot := time.Now()
	for {
		now := time.Now()
		if !now.Before(o.Until) {
			p.end(!now.Before(o.Publishers))
			if !until(now.Add(lookAgain)) {
				return
			}
			continue
		}
		if len(list) == 0 {
			list = p.sessions.Movable()
			rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		}
		if len(list) == 0 {
			at := now.Add(lookAgain)
			if at.After(o.Until) {
				at = o.Until
			}
			if !until(at) {
				return
			}
			slot = at
			continue
		}
		// One player leaves in each slot, at a random moment of it: the rate is even,
		// and the clients do not come in step.
		gap := o.gap(slot, len(list))
		if at := slot.Add(rand.N(gap)); at.Before(o.Until) {
			if !until(at) {
				return
			}
		} else {
			list = nil // the rate is too small for the deadline
			if !until(o.Until) {
				return
			}
			continue
		}
		if slot = slot.Add(gap); time.Since(slot) > gap {
			slot = time.Now().Add(-gap) // the machine is busy: no burst to make up for it
		}
		for len(list) > 0 { // those who have left by themselves leave no hole
			id := list[len(list)-1]
			list = list[:len(list)-1]
			if p.sessions.Move(id) {
				p.mu.Lock()
				p.moved++
				p.mu.Unlock()
				p.met.moved.Inc()
				break
			}
		}
	}
}

// leaving is what of a drain's time is left for the last players to be gone: a
// tenth, at most this.
const leaving = 2 * time.Second

// gap returns how long each of n players' slots is, from begin on.
func (o Order) gap(begin time.Time, n int) time.Duration {
	if o.KickRate > 0 {
		return max(time.Duration(float64(time.Second)/o.KickRate), time.Microsecond)
	}
	return max(o.gone().Sub(begin)/time.Duration(n), time.Microsecond)
}

// gone is when the last player should have been moved.
func (o Order) gone() time.Time { return o.Until.Add(-min(o.Until.Sub(o.Since)/10, leaving)) }

// end cuts what is left.
func (p *Process) end(publishers bool) {
	p.mu.Lock() // for Apply
	n := p.sessions.Cut(publishers)
	p.cut += n
	p.mu.Unlock()
	if n > 0 {
		p.met.cut.Add(n)
		p.log.Warn("sessions cut at the end of the drain", "sessions", n)
	}
}
