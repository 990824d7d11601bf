package drain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// State is where a node is.
type State string

// The states of a node.
const (
	Serving  State = "serving"  // takes new sessions
	Draining State = "draining" // takes none, and has some
	Drained  State = "drained"  // takes none, and has none
)

// Status is how far a node's drain has come.
type Status struct {
	State State `json:"state"`
	// Since is when the drain began, and Deadline when what is left is cut; not
	// set while the node serves.
	Since    time.Time `json:"since,omitzero"`
	Deadline time.Time `json:"deadline,omitzero"`
	// KickRate is what was asked for, in sessions per second; 0: even.
	KickRate float64 `json:"kick_rate,omitzero"`
	// Began is the number of sessions at the beginning.
	Began int `json:"began"`
	Progress
	// Rate is how many sessions per second leave, over the last seconds.
	Rate float64 `json:"rate"`
	// Estimate is in how many seconds the last session will have left at that
	// rate, and at most the time to the deadline; 0 while the node serves.
	Estimate float64 `json:"estimate_seconds"`
}

// Options are what a Node is made of. All but Set are required.
type Options struct {
	Config Config
	// Apply carries an order, nil to serve again, to all processes of the node and
	// returns how far they have come. The order's rate is that of the node. After an
	// error it is called again soon.
	Apply func(ctx context.Context, o *Order) (Progress, error)
	// Announce tells the world what Draining says now, before any session is
	// touched. It has to be brief.
	Announce func(ctx context.Context)
	Log      *slog.Logger
	Set      *metrics.Set
}

// Node drains a node and takes it back. Safe for concurrent use.
type Node struct {
	// Static.
	opt Options

	mu      sync.Mutex
	cfg     Config        // guarded by mu
	order   *Order        // guarded by mu; nil: serving
	told    bool          // guarded by mu; order is announced
	owed    bool          // guarded by mu; not all processes know the order
	began   int           // guarded by mu; -1 until the first answer
	seen    Progress      // guarded by mu; the last answer
	trace   []sample      // guarded by mu; of the last seconds
	logged  time.Time     // guarded by mu
	changed chan struct{} // guarded by mu; closed and replaced with order and with seen
	wake    chan struct{} // capacity 1: the order has changed
}

// sample is what was left at a moment.
type sample struct {
	at   time.Time
	left int
}

// NewNode returns a node that serves. Run must run for it to drain.
func NewNode(o Options) *Node {
	n := &Node{opt: o, cfg: o.Config, changed: make(chan struct{}), wake: make(chan struct{}, 1)}
	if o.Set != nil {
		o.Set.NewGauge("weir_draining", func() float64 {
			if n.Draining() {
				return 1
			}
			return 0
		})
	}
	return n
}

// ErrBadOrder says that a deadline or a rate is out of its range.
var ErrBadOrder = errors.New("bad order to drain")

// Start drains the node: within deadline from now on, at kickRate sessions per
// second (0: evenly). nil takes the configuration's. A node that drains already
// goes on with the new deadline and rate. why is for the log.
func (n *Node) Start(deadline *time.Duration, kickRate *float64, why string) (Status, error) {
	n.mu.Lock()
	d, rate := n.cfg.Deadline, n.cfg.KickRate
	n.mu.Unlock()
	if deadline != nil {
		d = *deadline
	}
	if kickRate != nil {
		rate = *kickRate
	}
	if err := (&Config{Deadline: d, KickRate: rate}).Validate(); err != nil {
		return n.Status(), fmt.Errorf("%w: %w", ErrBadOrder, err)
	}
	now := time.Now()
	n.mu.Lock()
	o := &Order{Since: now, Until: now.Add(d), KickRate: rate}
	if n.order != nil {
		o.Since = n.order.Since
	} else {
		n.began, n.trace, n.told, n.seen = -1, nil, false, Progress{}
	}
	n.order = o
	n.change()
	n.mu.Unlock()
	n.opt.Log.Info("drain started", "cause", why, "deadline", d.String(), "kick_rate", rate)
	n.poke()
	return n.Status(), nil
}

// Undrain takes a drain back. Sessions that were told to go stay told.
func (n *Node) Undrain() Status {
	n.mu.Lock()
	was := n.order != nil
	n.order, n.told = nil, false
	n.change()
	n.mu.Unlock()
	if was {
		n.opt.Log.Info("drain taken back")
		n.poke()
	}
	return n.Status()
}

// SetConfig makes another configuration count for drains to come.
func (n *Node) SetConfig(c Config) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cfg = c
}

func (n *Node) poke() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// change tells those who wait. n.mu is held.
func (n *Node) change() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// Draining reports whether the node takes no new sessions.
func (n *Node) Draining() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.order != nil
}

// CheckReady returns an error while the node drains, for its readiness.
func (n *Node) CheckReady(context.Context) error {
	if s := n.Status(); s.State != Serving {
		return fmt.Errorf("%s: %d sessions left", s.State, s.left())
	}
	return nil
}

// Status returns how far the node is.
func (n *Node) Status() Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status(time.Now())
}

func (n *Node) status(now time.Time) Status {
	if n.order == nil {
		return Status{State: Serving}
	}
	s := Status{
		State: Draining, Since: n.order.Since, Deadline: n.order.Until, KickRate: n.order.KickRate,
		Began: max(n.began, 0), Progress: n.seen,
	}
	if n.began >= 0 && n.seen.left() == 0 {
		s.State = Drained
		return s
	}
	if k := len(n.trace); k > 1 {
		first, last := n.trace[0], n.trace[k-1]
		if d := last.at.Sub(first.at); d > 0 {
			s.Rate = max(0, float64(first.left-last.left)/d.Seconds())
		}
	}
	s.Estimate = max(0, n.order.Until.Sub(now).Seconds())
	if s.Rate > 0 && s.Publishers == 0 { // publishers stay to the deadline
		s.Estimate = min(s.Estimate, float64(s.Players)/s.Rate)
	}
	return s
}

// Wait returns when the node is drained, with nil, or serves again, or when ctx
// ends.
func (n *Node) Wait(ctx context.Context) error {
	for {
		n.mu.Lock()
		state, changed := n.status(time.Now()).State, n.changed
		n.mu.Unlock()
		switch state {
		case Drained:
			return nil
		case Serving:
			return errors.New("the drain was taken back")
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// EndAfter waits until terminate is closed, drains the node, and calls finish when
// it is drained. If the drain is taken back meanwhile the node stays. It returns nil
// then or when ctx ends; a nil terminate is never closed.
func (n *Node) EndAfter(ctx context.Context, terminate <-chan struct{}, finish func()) error {
	select {
	case <-terminate:
	case <-ctx.Done():
		return nil
	}
	if _, err := n.Start(nil, nil, "SIGTERM"); err != nil {
		return err
	}
	if n.Wait(ctx) == nil {
		finish()
	}
	return nil
}

// Intervals of Run: between two questions to the processes, between two lines of
// the log, and what the rate is taken over.
const (
	askEvery = 250 * time.Millisecond
	logEvery = time.Second
	rateOver = 5 * time.Second
)

// Run tells the processes what was asked until ctx ends. It returns nil.
func (n *Node) Run(ctx context.Context) error {
	ticker := time.NewTicker(askEvery)
	defer ticker.Stop()
	for {
		n.mu.Lock()
		idle := n.order == nil && !n.owed
		n.mu.Unlock()
		tick := ticker.C
		if idle {
			tick = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.wake:
		case <-tick:
		}
		n.round(ctx)
	}
}

// round announces what is new and asks the processes once.
func (n *Node) round(ctx context.Context) {
	n.mu.Lock()
	o, told := n.order, n.told
	n.told = true
	n.mu.Unlock()
	if !told {
		n.opt.Announce(ctx)
	}
	p, err := n.opt.Apply(ctx, o)
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.owed = err != nil
	if o == nil || n.order != o || ctx.Err() != nil {
		return
	}
	if err != nil {
		if now.Sub(n.logged) >= logEvery {
			n.logged = now
			n.opt.Log.Warn("a process does not answer while the node drains", "err", err)
		}
		return
	}
	before := n.status(now).State
	n.seen = p
	if n.began < 0 {
		n.began = p.left()
	}
	n.trace = append(n.trace, sample{now, p.left()})
	for len(n.trace) > 2 && now.Sub(n.trace[0].at) > rateOver {
		n.trace = n.trace[1:]
	}
	s := n.status(now)
	switch {
	case s.State == Drained && before != Drained:
		n.opt.Log.Info("drained", "after", now.Sub(o.Since).Round(time.Millisecond).String(), "moved", p.Moved, "cut", p.Cut)
	case s.State == Draining && now.Sub(n.logged) >= logEvery:
		n.logged = now
		n.opt.Log.Info("draining", "players", p.Players, "publishers", p.Publishers, "moved", p.Moved,
			"rate", fmt.Sprintf("%.1f", s.Rate), "estimate", fmt.Sprintf("%.0fs", s.Estimate))
	}
	n.change()
}
