// Package upgrade has a node go on as another program while it runs, or says why
// not, and remembers how the last time went.
package upgrade

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// Result is the word for how an upgrade went, as in metrics.
type Result string

// The results.
const (
	Upgraded Result = "upgraded"
	Failed   Result = "failed"
)

// Attempt is one upgrade. It goes from the program before to the one after it.
type Attempt struct {
	At time.Time `json:"at"`
	// From and To are versions; To is empty until the next program has said its own.
	From string `json:"from"`
	To   string `json:"to,omitempty"`
	// Result is empty while it is under way.
	Result Result `json:"result,omitempty"`
	// Seconds is how long it took.
	Seconds float64 `json:"seconds,omitempty"`
	// Error is why it failed.
	Error string `json:"error,omitempty"`
}

// Status is which program runs.
type Status struct {
	// Version is that of the program that answers.
	Version string `json:"version"`
	// Running says that an upgrade is under way.
	Running bool `json:"running"`
	// Last is the last upgrade, the one under way included; nil if there was none.
	Last *Attempt `json:"last,omitempty"`
}

// Options are what a Node is made of.
type Options struct {
	// Version is that of this program.
	Version string
	// Last is the upgrade by which this program runs; nil if it was started.
	Last *Attempt
	// Refused, if not nil, is why this node cannot be upgraded.
	Refused error
	// Do puts another program in this one's place, which it does not return from, or
	// returns why it did not. It fills in a.To as soon as it knows it. Required
	// unless Refused is set.
	Do  func(ctx context.Context, a *Attempt) error
	Log *slog.Logger
	Set *metrics.Set
}

// Node upgrades a node, once at a time. Safe for concurrent use.
type Node struct {
	// Static.
	opt Options

	asked chan struct{} // holds a token for an upgrade that is to begin

	mu   sync.Mutex
	last *Attempt // guarded by mu; replaced, never changed
}

// New returns a Node. If it runs by an upgrade that is told in one line of the log.
func New(o Options) *Node {
	n := &Node{opt: o, asked: make(chan struct{}, 1)}
	for _, r := range []Result{Upgraded, Failed} {
		n.counter(r)
	}
	if o.Last != nil {
		done := *o.Last
		done.To, done.Result, done.Seconds = o.Version, Upgraded, time.Since(done.At).Seconds()
		n.last = &done
		n.counter(Upgraded).Inc()
		o.Log.Info("upgraded", "from", done.From, "to", done.To, "after", time.Since(done.At).Round(time.Millisecond).String())
	}
	return n
}

func (n *Node) counter(r Result) *metrics.Counter {
	return n.opt.Set.GetOrCreateCounter(fmt.Sprintf("weir_upgrades_total{result=%q}", r))
}

// Status returns which program runs, and how the last upgrade went.
func (n *Node) Status() Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	return Status{Version: n.opt.Version, Running: n.running(), Last: n.last}
}

// running reports whether an upgrade is under way. n.mu is held.
func (n *Node) running() bool { return n.last != nil && n.last.Result == "" }

// errRunning refuses an upgrade beside another one.
var errRunning = errors.New("an upgrade is under way already")

// Start begins an upgrade, which Serve carries out, or says why it does not. why is
// for the log.
func (n *Node) Start(why string) (Status, error) {
	if n.opt.Refused != nil {
		n.opt.Log.Error("upgrade refused", "cause", why, "err", n.opt.Refused)
		return n.Status(), n.opt.Refused
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running() {
		return Status{Version: n.opt.Version, Running: true, Last: n.last}, errRunning
	}
	n.last = &Attempt{At: time.Now(), From: n.opt.Version}
	n.opt.Log.Info("upgrade begins", "cause", why)
	n.asked <- struct{}{} // has room: no other is under way
	return Status{Version: n.opt.Version, Running: true, Last: n.last}, nil
}

// Serve carries out what was started, and begins an upgrade whenever signals gets
// something, until ctx ends. It returns nil.
func (n *Node) Serve(ctx context.Context, signals <-chan struct{}) error {
	for {
		select {
		case <-signals:
			_, _ = n.Start("SIGUSR2") // it is in the log
		case <-n.asked:
			n.run(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// run carries out one upgrade. If it returns, it has failed.
func (n *Node) run(ctx context.Context) {
	n.mu.Lock()
	a := *n.last
	n.mu.Unlock()
	err := n.opt.Do(ctx, &a)
	a.Result, a.Error, a.Seconds = Failed, err.Error(), time.Since(a.At).Seconds()
	n.counter(Failed).Inc()
	n.opt.Log.Error("upgrade failed, the program before goes on", "to", a.To, "err", err)
	n.mu.Lock()
	n.last = &a
	n.mu.Unlock()
}
