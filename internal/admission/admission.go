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
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/discovery"
	"weir/internal/load"
	"weir/internal/session"
	"weir/internal/ticket"
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
	// Node is the id of this node. Placer is who knows better ones; nil: nobody. Secret
	// is the cluster's, for hop tickets.
	Node   string
	Placer Placer
	Secret string
	// Returns reports whether a publisher is one of a stream that there is already, here
	// or at an owner that may be dead: the load of such a one is no new load of the
	// cluster, and it may have nowhere else to go. nil: never. It is asked while the
	// node is busy.
	Returns func(ctx context.Context, n session.Newcomer) bool
	Set     *metrics.Set
}

// Gate decides about newcomers. Safe for concurrent use.
type Gate struct {
	// Static.
	opt     GateOptions
	bucket  *bucket
	viewers *viewers
	others  *elsewhere
	key     ticket.Key
	sent    *metrics.Counter
	waited  *metrics.Histogram
	waiting *metrics.Counter // goes down as well
	shed    *metrics.Counter

	mu   sync.Mutex
	full time.Time // guarded by mu; since when viewers could be asked to leave; zero: they cannot
}

// NewGate returns a gate.
func NewGate(o GateOptions) *Gate {
	n := max(o.Processes, 1)
	return &Gate{
		opt:     o,
		bucket:  newBucket(o.Config.Rate/float64(n), max(o.Config.Burst/n, 1)),
		viewers: newViewers(),
		others:  &elsewhere{placer: o.Placer, self: o.Node, pause: map[discovery.Role]time.Time{}},
		key:     ticket.NewKey(o.Secret),
		sent:    o.Set.NewCounter("weir_load_redirects_total"),
		waited:  o.Set.NewHistogram("weir_admission_wait_seconds"),
		waiting: o.Set.NewCounter("weir_admission_waiting"),
		shed:    o.Set.NewCounter("weir_shed_viewers_total"),
	}
}

// Admit lets a newcomer in, when it is its turn, or returns a *session.Redirect to a
// better node or a *session.Refusal. It implements session.Options.Admit.
func (g *Gate) Admit(ctx context.Context, n session.Newcomer) error {
	status := g.opt.Status()
	if n.Kind == session.KindHLS {
		return g.admitViewer(ctx, status, n)
	}
	if n.Kind == session.KindPublish && status.Soft && g.opt.Returns != nil && g.opt.Returns(ctx, n) {
		return g.turn(ctx, n)
	}
	refusal := g.overload(status, n)
	if r := g.redirect(ctx, status, n, refusal != nil); r != nil {
		return r
	}
	if refusal != nil {
		return refusal
	}
	if n.Leaving {
		return nil
	}
	return g.turn(ctx, n)
}

// admitViewer decides about a playlist. What was decided about a viewer holds as long as
// it asks: a player that asks for each playlist where it began is sent to the same node
// again. One that is here may be asked to leave a node that is full, by a redirect: with
// a chance that makes it a share of ShedRate of them in a second.
func (g *Gate) admitViewer(ctx context.Context, status load.Status, n session.Newcomer) error {
	w, now := viewer{n.Remote.Addr(), n.Target.Key.String()}, time.Now()
	known, ok := g.viewers.find(now, w)
	switch {
	case ok && known.to == nil && !g.sheds(now, status, now.Sub(known.at)):
		return nil
	case ok && known.to == nil:
		r := g.redirect(ctx, status, n, true)
		if r != nil {
			g.shed.Inc()
			g.viewers.enter(now, w, r)
		}
		return r
	case ok && status.Soft:
		return g.send(n, known.node, *known.to, known.hops)
	}
	refusal := g.overload(status, n)
	if r := g.redirect(ctx, status, n, refusal != nil); r != nil {
		g.viewers.enter(now, w, r)
		return r
	}
	if refusal == nil {
		g.viewers.enter(now, w, nil)
	}
	return refusal
}

// sheds decides whether a viewer that has asked before that long is asked to leave.
func (g *Gate) sheds(now time.Time, status load.Status, ago time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case !status.Shed:
		g.full = time.Time{}
		return false
	case g.full.IsZero():
		g.full = now
	}
	return now.Sub(g.full) >= g.opt.Config.ShedAfter && rand.Float64() < g.opt.Config.ShedRate*ago.Seconds()
}

// Stays reports whether a newcomer is a viewer of HLS that is here and whose time to go
// elsewhere, in a drain, has not come: past reports whether a share of the drain's time,
// from 0 to 1, is over. Viewers have shares that are spread evenly.
func (g *Gate) Stays(n session.Newcomer, past func(share float64) bool) bool {
	if n.Kind != session.KindHLS {
		return false
	}
	w := viewer{n.Remote.Addr(), n.Target.Key.String()}
	known, ok := g.viewers.find(time.Now(), w)
	return ok && known.to == nil && !past(w.share())
}

// mostHops is how often a client is sent on: from where it came to a better node, and
// once more from there.
const mostHops = 2

// redirect returns where a newcomer is better served, nil if it is to stay. must says
// that it would be refused else.
func (g *Gate) redirect(ctx context.Context, status load.Status, n session.Newcomer, must bool) error {
	if !status.Soft && !must || n.Secure || n.Protocol == "ws-flv" { // browsers follow no redirect of a WebSocket
		return nil
	}
	node := n.Peer.Node != ""
	switch {
	case n.Kind == session.KindPublish && node && !g.opt.TakePublishers: // an edge that forwards; encoders follow nobody
	case n.Kind == session.KindPublish && must && !g.opt.TakePublishers: // but they can be told
	case n.Kind == session.KindPublish, node: // pulls go where the stream is
		return nil
	case n.Protocol == "rtmp" && !must && !n.Leaving: // most players follow no 302: it is the last resort
		return nil
	}
	hops := 0
	if t, err := g.key.Read(n.Ticket, n.Target.Key.String(), time.Now()); err == nil {
		if t.Node == g.opt.Node && !must { // it was chosen for this client
			return nil
		}
		hops = t.Hops
	}
	if hops >= mostHops {
		return nil
	}
	below := status.Effective
	if must || n.Leaving {
		below = 0
	}
	other, ok := g.others.find(ctx, n, below)
	if !ok {
		return nil
	}
	return g.send(n, other.ID, session.Redirect{RTMP: other.Addr.RTMP, HTTP: other.Addr.HTTP}, hops+1)
}

// sentTo is a redirect with what its ticket says, for the memory of viewers.
type sentTo struct {
	session.Redirect
	node string
	hops int
}

func (s *sentTo) Error() string { return s.Redirect.Error() }

// Unwrap makes it a *session.Redirect for errors.As.
func (s *sentTo) Unwrap() error { return &s.Redirect }

// send returns the redirect with a new ticket.
func (g *Gate) send(n session.Newcomer, node string, to session.Redirect, hops int) error {
	to.Ticket = g.key.Sign(n.Target.Key.String(), ticket.Ticket{Node: node, Hops: hops, Expires: time.Now().Add(ticket.Life)})
	g.sent.Inc()
	return &sentTo{Redirect: to, node: node, hops: hops}
}

// overload refuses those whom the node's load leaves no room for.
func (g *Gate) overload(status load.Status, n session.Newcomer) error {
	switch {
	case !status.Hard && !(status.Soft && n.OverQuota):
		return nil
	case n.Kind == session.KindPublish && g.opt.TakePublishers:
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
