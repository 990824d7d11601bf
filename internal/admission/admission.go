// Package admission decides which newcomers a node lets in, and asks players to leave
// when it is full: so that overload is bent by and not broken by.
//
// A Gate stands at the door. Over the hard limit of the node's load it lets in no more
// players; below it, it lets sessions in at a rate, so that a storm of joins is smoothed
// out instead of dropped. Publishers and other nodes come before players, and players of
// tenants over their quota come last. A Shedder asks players to leave, a few at a time,
// as long as the node is full.
package admission

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/internal/load"
	"weir/internal/session"
)

// GateOptions are what a Gate is made of.
type GateOptions struct {
	Config Config // valid
	// Processes is the number of processes that share the rate; 0 means one.
	Processes int
	// Status returns what is known of the node's load.
	Status func() load.Status
	// KeepNodes says that other nodes that pull are always served: what they ask for is
	// nowhere else.
	KeepNodes bool
	// TakePublishers says that publishers are let in although the node is full; at an
	// edge, where they cost little and its players are asked to leave.
	TakePublishers bool
	// Returns reports whether a publisher comes back to a stream that is here; nil:
	// never.
	Returns func(n session.Newcomer) bool
	Set     *metrics.Set
}

// Gate decides about newcomers. Safe for concurrent use.
type Gate struct {
	// Static.
	opt     GateOptions
	bucket  *bucket
	viewers *viewers
	waited  *metrics.Histogram
	waiting *metrics.Counter // goes down as well
}

// NewGate returns a gate.
func NewGate(o GateOptions) *Gate {
	n := max(o.Processes, 1)
	return &Gate{
		opt:     o,
		bucket:  newBucket(o.Config.Rate/float64(n), max(o.Config.Burst/n, 1)),
		viewers: newViewers(),
		waited:  o.Set.NewHistogram("weir_admission_wait_seconds"),
		waiting: o.Set.NewCounter("weir_admission_waiting"),
	}
}

// Admit lets a newcomer in, when it is its turn, or returns a *session.Refusal. It
// implements session.Options.Admit.
func (g *Gate) Admit(ctx context.Context, n session.Newcomer) error {
	status := g.opt.Status()
	if n.Kind == session.KindHLS {
		if !g.viewers.here(time.Now(), viewer{n.Remote.Addr(), n.Target.Key.String()}, !status.Hard) && status.Hard {
			return full()
		}
		return nil
	}
	if err := g.overload(status, n); err != nil || n.Leaving {
		return err
	}
	return g.turn(ctx, n)
}

// overload refuses those whom the node's load leaves no room for.
func (g *Gate) overload(status load.Status, n session.Newcomer) error {
	switch {
	case !status.Hard && !(status.Soft && n.OverQuota):
		return nil
	case n.Kind == session.KindPublish && (g.opt.TakePublishers || g.opt.Returns != nil && g.opt.Returns(n)):
		return nil
	case n.Kind == session.KindPlay && n.Peer.Node != "" && g.opt.KeepNodes:
		return nil
	case !status.Hard:
		return &session.Refusal{Code: session.Overload, Text: "This node is busy, and this vhost has more players than its quota.", RetryAfter: spread(5 * time.Second)}
	}
	return full()
}

// full is what newcomers get over the hard limit.
func full() error {
	return &session.Refusal{Code: session.Overload, Text: "This node is full.", RetryAfter: spread(5 * time.Second)}
}

// spread returns a time between d and twice as long, so that those who are refused
// together do not come back together.
func spread(d time.Duration) time.Duration { return d + rand.N(d) }

// turn waits until the rate has a place.
func (g *Gate) turn(ctx context.Context, n session.Newcomer) error {
	now := time.Now()
	if n.Kind == session.KindPublish || n.Peer.Node != "" {
		g.bucket.force(now)
		return nil
	}
	patience := g.opt.Config.MaxWait
	if n.OverQuota {
		patience = 0
	}
	wait, ok := g.bucket.take(now, patience)
	switch {
	case !ok:
		return &session.Refusal{
			Code: session.Overload, RetryAfter: wait + spread(time.Second),
			Text: fmt.Sprintf("Too many players come at once (admission.rate): a place is free in %v.", wait.Round(100*time.Millisecond)),
		}
	case wait == 0:
		return nil
	}
	g.waiting.Inc()
	defer g.waiting.Dec()
	g.waited.Update(wait.Seconds())
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
