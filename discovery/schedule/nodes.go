package schedule

import (
	"math"
	"slices"
	"strings"
	"time"
)

// node is what a decision looks at, for all nodes, and so it is small and they lie
// in one piece.
type node struct {
	load     float64 // reported
	reserved float64 // share of the capacity that is reserved
	seen     int64   // nanoseconds since 1970
	hash     uint64  // of the id
	lastPick uint64  // Scheduler.picks when it was chosen last
	carries  uint64  // number of the last query for a stream that it carries
	excluded uint64  // number of the last query that excluded it
	region   word
	group    word
	tier     word
	role     word
	cost     uint16 // in thousandths
	state    Reason // able, or why it takes no sessions
	speaks   protocols
	// over is set by a report at or over the soft limit and cleared by one below it
	// by the hysteresis.
	over bool
}

// about is all else.
type about struct {
	Node
	facts    *Facts
	reserved reservations
}

// said is what a record keeps of a report.
type said struct {
	facts            *Facts
	load             float64
	egress, sessions float32
}

func (a *about) capacity(c *Config) float64 {
	if a.Capacity > 0 {
		return a.Capacity
	}
	return float64(c.DefaultCapacity)
}

// weight is the weight that the node has been given, or else its capacity in
// Gbit/s, or else 1.
func (a *about) weight() float64 {
	switch {
	case a.Weight > 0:
		return a.Weight
	case a.Capacity > 0:
		return a.Capacity / 1e9
	}
	return 1
}

// Facts are what changes seldom of a node, as Node has it. They are shared and never
// changed.
type Facts struct {
	ID       string  `json:"id"`
	Role     string  `json:"role"`
	RTMP     string  `json:"rtmp,omitempty"`
	HTTP     string  `json:"http,omitempty"`
	API      string  `json:"api,omitempty"`
	Region   string  `json:"region,omitempty"`
	Group    string  `json:"group,omitempty"`
	Tier     string  `json:"tier,omitempty"`
	Cost     float64 `json:"cost,omitempty"`
	Weight   float64 `json:"weight,omitempty"`
	Capacity float64 `json:"capacity_bps,omitempty"`
}

func (n *Node) factsOf() Facts {
	return Facts{n.ID, n.Role, n.RTMP, n.HTTP, n.API, n.Region, n.Group, n.Tier, n.Cost, n.Weight, n.Capacity}
}

// Update tells all nodes that there are. A node that is not among them is gone. A
// report is a node whose Seen or Instance differs from before. Nodes of other
// roles than edge and origin are left out.
func (s *Scheduler) Update(now time.Time, nodes []Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	order := make([]int, 0, len(nodes))
	for i := range nodes {
		if role := nodes[i].Role; role == "edge" || role == "origin" {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(i, j int) int { return strings.Compare(nodes[i].ID, nodes[j].ID) })
	order = slices.CompactFunc(order, func(i, j int) bool { return nodes[i].ID == nodes[j].ID })

	next, more, all := make([]node, len(order)), make([]about, len(order)), make([]said, len(order))
	same := len(order) == len(s.nodes)
	var egress, sessions float64
	for to, from := range order {
		in := &nodes[from]
		if old, ok := s.byID[in.ID]; ok {
			next[to], more[to] = s.nodes[old], s.about[old]
			same = same && old == to
		} else {
			next[to].hash = hashOf(in.ID)
			same = false
		}
		s.report(&next[to], &more[to], in)
		all[to] = said{more[to].facts, in.Load, float32(in.Egress), float32(in.Sessions)}
		if in.Reported && in.Sessions >= 1 {
			egress, sessions = egress+in.Egress, sessions+in.Sessions
		}
	}
	s.nodes, s.about, s.said, s.meanRate = next, more, all, 0
	if !same {
		s.byID, s.byName = make(map[string]int, len(order)), make(map[string]int, len(order))
		for i := range more {
			s.byID[more[i].ID] = i
			s.byName[strings.ToLower(more[i].ID)] = i
		}
	}
	if sessions >= 10 {
		s.meanRate = egress / sessions
	}
	s.expire(now)
}

// report takes what a node says now.
func (s *Scheduler) report(n *node, a *about, in *Node) {
	switch {
	case a.facts == nil:
	case in.Instance != a.Instance:
		a.reserved, n.over = reservations{}, false
	case !in.Seen.Equal(a.Seen):
		a.reserved.shown(in.Seen, in.Sessions-a.Sessions)
	case in.Reported == a.Reported && in.State == a.State:
		return
	}
	a.Node = *in
	if facts := in.factsOf(); a.facts == nil || *a.facts != facts {
		a.facts = &facts
		n.region, n.group, n.tier, n.role = s.words.of(in.Region), s.words.of(in.Group), s.words.of(in.Tier), s.words.of(in.Role)
		n.cost = uint16(min(math.MaxUint16, math.Round(max(0, in.Cost)*1000)))
		n.speaks = speaks(in)
	}
	n.load, n.seen, n.state = in.Load, in.Seen.UnixNano(), able
	switch {
	case in.State == "draining":
		n.state = Draining
	case in.State != "up":
		n.state = Starting
	case !in.Reported:
		n.state = NoReport
	}
	n.over = in.Load >= s.cfg.SoftLimit || n.over && in.Load > s.cfg.SoftLimit-s.cfg.Hysteresis
	n.reserved = a.reserved.bits / a.capacity(&s.cfg)
}

// Node returns what is known of a node, by its id in lower case; nil if there is
// none.
func (s *Scheduler) Node(id string) *Facts {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, ok := s.byName[id]; ok {
		return s.about[i].facts
	}
	return nil
}

// expireEvery is how often sessions that did not come are looked for.
const expireEvery = 50 * time.Millisecond

func (s *Scheduler) expire(now time.Time) {
	s.expired = now
	for i := range s.about {
		a := &s.about[i]
		if a.reserved.expire(now) {
			s.nodes[i].reserved = a.reserved.bits / a.capacity(&s.cfg)
		}
	}
}

// word stands for a string that nodes have in common: the name of a region, group,
// tier or role.
type word uint16

const (
	wordNone word = iota // ""
	wordEdge
	wordOrigin
	wordStrange = math.MaxUint16 // one of too many, or that nobody has said
)

// words numbers strings. Those that are gone keep their numbers: a cluster has few.
type words map[string]word

func newWords() words { return words{"": wordNone, "edge": wordEdge, "origin": wordOrigin} }

func (w words) of(s string) word {
	x, ok := w[s]
	if !ok {
		if len(w) >= wordStrange {
			return wordStrange
		}
		x = word(len(w))
		w[s] = x
	}
	return x
}

func (w words) known(s string) word {
	if x, ok := w[s]; ok {
		return x
	}
	return wordStrange
}
