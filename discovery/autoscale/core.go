// Package autoscale decides when a group of edges needs a machine more or less, and
// has a driver start and stop it. Core decides; it has no I/O and no clock of its
// own. Scaler feeds it and carries out what it says.
//
// Sessions are long: a machine that is stopped takes them along, and one that is
// started helps late. So the load has to be wrong for a time before anything is
// done, one thing is done at a time, and a machine is stopped only when its sessions
// have left it or their time is over.
package autoscale

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Node is what is known of a node of the group.
type Node struct {
	ID       string
	Up       bool // it takes sessions
	Draining bool
	Reported bool    // Load and Sessions are known
	Load     float64 // effective
	Capacity float64 // bits per second; 0: not known, which counts as that of the others
	Sessions float64
	Cost     float64 // of a gigabyte
}

// Kind is what is to be done.
type Kind string

// The kinds of actions.
const (
	Start   Kind = "start"   // a machine more; Node is empty
	Drain   Kind = "drain"   // Node takes no new sessions and lets its own go by the deadline
	Undrain Kind = "undrain" // Node is needed after all
	Stop    Kind = "stop"    // the machine of Node, which has no sessions left, or no time
)

// Action is one thing to be done.
type Action struct {
	Kind     Kind          `json:"action"`
	Node     string        `json:"node,omitempty"`
	Deadline time.Duration `json:"-"` // of a drain
	Reason   string        `json:"reason"`
}

// String returns the action for people, with its node and its reason.
func (a Action) String() string {
	if a.Node == "" {
		return fmt.Sprintf("%s (%s)", a.Kind, a.Reason)
	}
	return fmt.Sprintf("%s %s (%s)", a.Kind, a.Node, a.Reason)
}

// Core decides for one group. It is not safe for concurrent use.
type Core struct {
	cfg Config

	began                 time.Time // first step
	overSince, underSince time.Time // zero: the mean is not over, not under
	last                  time.Time // action that changed the number of nodes
	starting              time.Time // a machine was asked for then and has not come; zero: none
	known                 map[string]bool
	draining              string // node that we drain; empty: none
	drainedAt             time.Time
	stopping              string // node that we stopped and that is still seen
	stoppedAt             time.Time
	retryAt               time.Time // after an action that failed
	undo                  func()
}

// NewCore returns the core of a group. cfg must be valid.
func NewCore(cfg Config) *Core { return &Core{cfg: cfg} }

// state is what the nodes are together.
type state struct {
	up    []Node  // that take sessions and have reported
	mean  float64 // load, weighted by capacity
	total float64 // load, in nodes of mean capacity
}

func (c *Core) look(nodes []Node) (s state) {
	capacity, known := 0.0, 0
	for _, n := range nodes {
		if !n.Up || !n.Reported || n.ID == c.stopping {
			continue
		}
		s.up = append(s.up, n)
		if n.Capacity > 0 {
			capacity, known = capacity+n.Capacity, known+1
		}
	}
	if known > 0 {
		capacity /= float64(known)
	} else {
		capacity = 1
	}
	weights := 0.0
	for _, n := range s.up {
		weight := 1.0
		if n.Capacity > 0 {
			weight = n.Capacity / capacity
		}
		s.total, weights = s.total+n.Load*weight, weights+weight
	}
	if weights > 0 {
		s.mean = s.total / weights
	}
	return s
}

// Step takes the nodes of the group as they are now and returns what is to be done,
// if anything. If that fails, tell it by Failed before the next step.
func (c *Core) Step(now time.Time, nodes []Node) (Action, bool) {
	c.undo = nil
	if c.began.IsZero() {
		c.began = now
	}
	c.arrivals(now, nodes)
	s := c.look(nodes)
	c.since(&c.overSince, len(s.up) > 0 && s.mean > c.cfg.ScaleOut, now)
	c.since(&c.underSince, len(s.up) > 0 && s.mean < c.cfg.ScaleIn, now)
	if now.Before(c.retryAt) || now.Sub(c.began) < c.cfg.Settle {
		return Action{}, false
	}
	over := !c.overSince.IsZero() && now.Sub(c.overSince) >= c.cfg.OutAfter
	if c.draining != "" {
		return c.whileDraining(now, nodes, s, over)
	}
	if !c.starting.IsZero() || c.stopping != "" {
		return Action{}, false // one thing at a time
	}
	count := len(s.up)
	if count < c.cfg.Min {
		return c.start(now, fmt.Sprintf("%d nodes, at least %d", count, c.cfg.Min)), true
	}
	if !c.last.IsZero() && now.Sub(c.last) < c.cfg.CoolDown {
		return Action{}, false
	}
	switch {
	case over && count < c.cfg.Max:
		return c.start(now, fmt.Sprintf("mean load %.2f over %.2f for %v", s.mean, c.cfg.ScaleOut, now.Sub(c.overSince))), true
	case !c.underSince.IsZero() && now.Sub(c.underSince) >= c.cfg.InAfter && count > c.cfg.Min && c.headroom(s):
		return c.drain(now, s), true
	}
	return Action{}, false
}

// since keeps when a condition began.
func (c *Core) since(at *time.Time, holds bool, now time.Time) {
	switch {
	case !holds:
		*at = time.Time{}
	case at.IsZero():
		*at = now
	}
}

// arrivals looks for what was asked for: a machine that has come, one that has gone.
func (c *Core) arrivals(now time.Time, nodes []Node) {
	seen := make(map[string]bool, len(nodes))
	came := false
	for _, n := range nodes {
		if n.Up && n.Reported {
			came = came || c.known != nil && !c.known[n.ID]
		} else if c.known == nil || !c.known[n.ID] {
			continue // it comes when it takes sessions
		}
		seen[n.ID] = true
	}
	c.known = seen
	if !c.starting.IsZero() && (came || now.Sub(c.starting) >= c.cfg.WarmUp) {
		c.starting = time.Time{}
		c.overSince = time.Time{} // its load has to show first
	}
	gone := func(id string) bool { return !slices.ContainsFunc(nodes, func(n Node) bool { return n.ID == id }) }
	if c.stopping != "" && (gone(c.stopping) || now.Sub(c.stoppedAt) >= c.cfg.WarmUp) {
		c.stopping = ""
	}
	if c.draining != "" && gone(c.draining) {
		c.draining = ""
	}
}

// headroom reports whether the others carry the load below scale_out without the
// node that is drained, and without one more that dies.
func (c *Core) headroom(s state) bool {
	left := float64(len(s.up) - 2)
	return left > 0 && s.total/left <= c.cfg.ScaleOut
}

func (c *Core) start(now time.Time, reason string) Action {
	last, starting := c.last, c.starting
	c.last, c.starting = now, now
	c.undo = func() { c.last, c.starting = last, starting }
	return Action{Kind: Start, Reason: reason}
}

// drain picks the node that is cheapest to drain: with the fewest sessions, then with
// the dearest traffic.
func (c *Core) drain(now time.Time, s state) Action {
	n := slices.MinFunc(s.up, func(a, b Node) int {
		return cmp.Or(cmp.Compare(a.Sessions, b.Sessions), cmp.Compare(b.Cost, a.Cost), cmp.Compare(b.ID, a.ID))
	})
	last := c.last
	c.last, c.draining, c.drainedAt = now, n.ID, now
	c.undo = func() { c.last, c.draining = last, "" }
	return Action{
		Kind: Drain, Node: n.ID, Deadline: c.cfg.DrainDeadline,
		Reason: fmt.Sprintf("mean load %.2f under %.2f for %v", s.mean, c.cfg.ScaleIn, now.Sub(c.underSince)),
	}
}

func (c *Core) whileDraining(now time.Time, nodes []Node, s state, over bool) (Action, bool) {
	id := c.draining
	n := nodes[slices.IndexFunc(nodes, func(n Node) bool { return n.ID == id })]
	waited := now.Sub(c.drainedAt)
	late := waited >= c.cfg.DrainDeadline
	switch {
	case over && !late && n.Sessions > 0:
		// The machine is still there: that is the quickest help.
		last := c.last
		c.last, c.draining, c.overSince = now, "", time.Time{}
		c.undo = func() { c.last, c.draining = last, id }
		return Action{Kind: Undrain, Node: id, Reason: fmt.Sprintf("mean load %.2f over %.2f", s.mean, c.cfg.ScaleOut)}, true
	case n.Draining && n.Reported && n.Sessions == 0, late:
		reason := "no sessions left"
		if n.Sessions > 0 || !n.Reported {
			reason = fmt.Sprintf("deadline, %.0f sessions left", n.Sessions)
		}
		last := c.last
		c.last, c.draining, c.stopping, c.stoppedAt = now, "", id, now
		c.undo = func() { c.last, c.draining, c.stopping = last, id, "" }
		return Action{Kind: Stop, Node: id, Reason: reason}, true
	}
	return Action{}, false
}

// Failed takes the action of the last step back: it could not be carried out. It is
// tried again after cfg.Retry if it is still needed.
func (c *Core) Failed(now time.Time) {
	if c.undo != nil {
		c.undo()
		c.undo = nil
	}
	c.retryAt = now.Add(c.cfg.Retry)
}
