package model

import (
	"fmt"
	"maps"
	"slices"
)

// Violation is a promise that was broken.
type Violation struct {
	Rule Rule
	T    int64 // when, in ms since the run began
	// Stream, Node and Conn are what it is about, if it is about one.
	Stream, Node string
	Conn         int
	Text         string
}

// String returns the rule, when it was broken in seconds since the run began, and how.
func (v Violation) String() string {
	return fmt.Sprintf("%s at %.3f s: %s", v.Rule, float64(v.T)/1000, v.Text)
}

// Model judges a history. The zero value is ready for its first event. Not safe
// for concurrent use.
type Model struct {
	setup  Setup
	now    int64
	found  []Violation
	counts Counts

	nodes   map[string]*node
	faults  map[int]Fault
	streams map[string]*stream
	players map[int]*player
	calm    *calm // not nil in a calm
	lags    []span
}

// Counts is how much there was to judge.
type Counts struct {
	Frames, Plays, Publishes, Faults, Calms, Hops int
	ByNode, ByProtocol                            map[string]int // frames, play requests
	// Waits are how long players at edges waited for the first frame of a publisher
	// that came back, from when it was let in, in ms.
	Waits []int64
}

type span struct{ from, to int64 }

type node struct {
	role     string
	up       bool
	deaf     string // why it does not answer, "" while it does
	deafened int64  // since when
	suffers  int    // faults on it
	since    int64  // begin of the oldest of these
	excused  []span
	owned    map[string]Own
}

type stream struct {
	Stream
	epochs    map[uint64]string // which node had it
	publisher int               // connection that publishes; 0: none
	incs      map[int]*incarnation
	byLocal   map[string]int     // incarnation by the address of its publisher
	last      int64              // when a publisher was there last
	hops      map[string][]int64 // times of the last redirects, by the node that follows
	returns   []step             // of contested streams
	doubled   int64              // since when two nodes have its publisher
	pulls     map[string]*pulls  // by the node that pulls
}

type incarnation struct {
	least, most uint64 // of its epochs; 0: not known
	begun       int64  // when it was let in; 0: not yet
}

// step is a player's change from one incarnation back to an earlier one.
type step struct {
	t        int64
	conn     int
	from, to int
}

type player struct {
	stream string
	node   string
	asked  int64
	answered,
	framed bool
	lines  [2]line // audio, video
	newest int     // incarnation
	fresh  int64   // when it got a frame that was new to it
}

// line is what a player has seen of a kind.
type line struct {
	begun bool
	inc   int
	seq   int
	stamp uint32
}

type calm struct {
	from       int64
	players    map[int]bool // played at its begin
	publishers map[string]bool
}

// Apply judges the next event and returns what it breaks.
func (m *Model) Apply(e Event) []Violation {
	before := len(m.found)
	m.now = max(m.now, e.T)
	if e.Kind == KindSetup {
		m.begin(e)
		return nil
	}
	if m.nodes == nil {
		m.begin(Event{Setup: &Setup{}})
	}
	m.apply(e)
	return m.found[before:]
}

func (m *Model) begin(e Event) {
	m.setup = *e.Setup
	m.nodes, m.faults = map[string]*node{}, map[int]Fault{}
	m.streams, m.players = map[string]*stream{}, map[int]*player{}
	m.counts = Counts{ByNode: map[string]int{}, ByProtocol: map[string]int{}}
	for name, n := range m.setup.Nodes {
		m.nodes[name] = &node{role: n.Role, owned: map[string]Own{}}
	}
	for name, s := range m.setup.Streams {
		m.streams[name] = &stream{Stream: s, epochs: map[uint64]string{}, incs: map[int]*incarnation{}, byLocal: map[string]int{}, pulls: map[string]*pulls{}, hops: map[string][]int64{}}
	}
}

func (m *Model) apply(e Event) {
	n, s := m.nodes[e.Node], m.streams[e.Stream]
	if e.Node != "" && n == nil || e.Stream != "" && s == nil {
		m.breach(RuleHistory, e, "node %q or stream %q is not in the setup", e.Node, e.Stream)
		return
	}
	switch e.Kind {
	case KindUp:
		n.up = true
	case KindDown:
		m.down(e, n)
	case KindFault:
		m.fault(e)
	case KindHeal:
		m.heal(e)
	case KindLag:
		m.lags = append(m.lags, span{e.T - int64(e.Count), e.T + m.setup.Bounds.Recovery})
	case KindOwn:
		m.own(e, n, s)
	case KindPulls:
		m.pulled(e, s)
	case KindHop:
		m.hop(e, s)
	case KindDeaf:
		if n.deaf == "" {
			n.deaf, n.deafened = e.Text, e.T
		}
	case KindHears:
		n.deaf = ""
	case KindPublish, KindPublishing, KindUnpublished:
		m.publish(e, s)
	case KindPlay:
		m.counts.Plays++
		m.players[e.Conn] = &player{stream: e.Stream, node: e.Node, asked: e.T}
		m.counts.ByProtocol[e.Ask.Protocol]++
	case KindPlaying, KindRun, KindDamaged, KindEnd:
		p := m.players[e.Conn]
		if p == nil {
			m.breach(RuleHistory, e, "connection %d is not known", e.Conn)
			return
		}
		m.play(e, p)
	case KindCalm:
		m.calmBegins(e)
	case KindStorm:
		m.calmEnds(e)
	case KindLeft:
		m.left(e)
	default:
		m.breach(RuleHistory, e, "an event %q is not known", e.Kind)
	}
}

func (m *Model) breach(r Rule, e Event, format string, args ...any) {
	m.found = append(m.found, Violation{
		Rule: r, T: e.T, Stream: e.Stream, Node: e.Node, Conn: e.Conn, Text: fmt.Sprintf(format, args...),
	})
}

func (m *Model) down(e Event, n *node) {
	n.up, n.deaf = false, ""
	clear(n.owned)
	for _, s := range m.streams {
		for _, p := range s.pulls {
			delete(p.from, e.Node)
		}
	}
	if n.suffers == 0 {
		m.breach(RuleDied, e, "%s has ended though nothing was done to it: %s", e.Node, e.Text)
	}
}

func (m *Model) fault(e Event) {
	m.counts.Faults++
	m.faults[e.Fault.ID] = *e.Fault
	for _, name := range e.Fault.On {
		if n := m.nodes[name]; n != nil {
			if n.suffers++; n.suffers == 1 {
				n.since = e.T
			}
		}
	}
}

func (m *Model) heal(e Event) {
	f, ok := m.faults[e.Fault.ID]
	if !ok {
		m.breach(RuleHistory, e, "fault %d is not known", e.Fault.ID)
		return
	}
	delete(m.faults, f.ID)
	for _, name := range f.On {
		if n := m.nodes[name]; n != nil {
			if n.suffers--; n.suffers == 0 {
				n.excused = append(n.excused, span{n.since, m.recovered(n.since, e.T)})
			}
		}
	}
}

// recovered is when a node has recovered from faults: TCP sends again about as
// long after an outage as the outage lasted.
func (m *Model) recovered(from, to int64) int64 { return to + (to - from) + m.setup.Bounds.Recovery }

// inOrder returns how many ms of a time a node was in order.
func (m *Model) inOrder(name string, from, to int64) int64 {
	spans := slices.Clone(m.lags)
	if n := m.nodes[name]; n != nil {
		spans = append(spans, n.excused...)
		if n.suffers > 0 {
			spans = append(spans, span{n.since, to})
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return int(a.from - b.from) })
	sum, at := int64(0), from
	for _, s := range spans {
		if s.from > at {
			sum += max(0, min(s.from, to)-at)
		}
		at = max(at, s.to)
	}
	return sum + max(0, to-at)
}

// excused reports whether what happens to a node now may be due to a fault.
func (m *Model) excused(name string, now int64) bool { return m.inOrder(name, now-1, now) == 0 }

func (m *Model) lagged(from, to int64) bool {
	return slices.ContainsFunc(m.lags, func(s span) bool { return s.from < to && from < s.to })
}

// Counts returns how much was judged so far.
func (m *Model) Counts() Counts { return m.counts }

// Wait returns that wait than which a share of all are no longer.
func (c *Counts) Wait(share float64) int64 {
	if len(c.Waits) == 0 {
		return 0
	}
	slices.Sort(c.Waits)
	return c.Waits[int(share*float64(len(c.Waits)-1)+0.5)]
}

// Violations returns all that was found so far.
func (m *Model) Violations() []Violation { return m.found }

// Finish judges what can be judged only at the end, and returns what it adds.
func (m *Model) Finish() []Violation {
	before := len(m.found)
	for _, name := range slices.Sorted(maps.Keys(m.streams)) {
		m.judgeReturns(name, m.streams[name])
	}
	return m.found[before:]
}

// Void returns why the history proves nothing, or "".
func (m *Model) Void() string {
	b, c := m.setup.Bounds, m.counts
	short := func(what string, got, want int) string {
		if got >= want {
			return ""
		}
		return fmt.Sprintf("%d %s are less than %d; ", got, what, want)
	}
	why := short("frames", c.Frames, b.MinFrames) + short("play requests", c.Plays, b.MinPlays) +
		short("calms", c.Calms, b.MinCalms) + short("faults", c.Faults, b.MinFaults)
	if b.MinFrames > 0 {
		for _, name := range slices.Sorted(maps.Keys(m.nodes)) {
			if m.nodes[name].role == "edge" && c.ByNode[name] == 0 {
				why += "no player got a frame from " + name + "; "
			}
		}
	}
	if len(why) > 0 {
		why = why[:len(why)-2]
	}
	return why
}
