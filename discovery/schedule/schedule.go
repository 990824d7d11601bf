// Package schedule chooses the node that a session should go to. It is pure:
// nodes and requests go in, a ranked choice comes out; there is no network, no
// file and no clock but the one that is given.
//
// A decision has three stages, each behind a small interface. A filter says why a
// node cannot take the session. A preference puts those that remain into classes:
// the region of the client, the price of its traffic, whether it carries the
// stream. A policy orders the nodes of the best class. Nodes over the soft limit
// come after all others, the least loaded first.
//
// What was decided counts before it is seen: each choice reserves the bit rate of
// its session at the node, until the node's reports show the session, so that a
// crowd is not sent to one node on numbers of a second ago.
package schedule

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Action is what a session does.
type Action string

// The actions of sessions.
const (
	Play    Action = "play"
	Publish Action = "publish"
)

// Node is what is known of a node. Scheduler.Update takes it.
type Node struct {
	ID       string
	Instance string // another one is another run: its reservations are void
	Role     string // "edge" or "origin"
	State    string // only a node that is "up" takes sessions
	// Where it is reached, each as host:port or empty.
	RTMP, HTTP, API string
	// What it says of itself.
	Region, Group, Tier string
	Cost                float64 // of a gigabyte, in any currency; 0: not known
	Weight              float64 // its share under the policy weighted; 0: as its capacity
	// Load is the node's effective load: 1 is all that it can take. It is valid if
	// Reported is set.
	Load     float64
	Reported bool
	Capacity float64 // bits per second it can send; 0: not known
	Egress   float64 // bits per second it sends
	Sessions float64 // players and publishers
	Seen     time.Time
}

// Request asks for a node.
type Request struct {
	Action Action
	// Stream is the key of the stream, vhost/app/name, or empty if it is not known.
	Stream string
	Vhost  string // of the stream; empty: the part of Stream before its first slash
	// NodeRole is the role of the node wanted; empty: the one that the configuration
	// has for the action.
	NodeRole string
	Client   netip.Addr // of the player or encoder; may be invalid
	Region   string     // of the client; empty: found from Client
	Exclude  []string   // ids of nodes that must not be chosen
	Protocol string     // "rtmp" or "http": the address that the node must have; empty: any
	Family   Family     // of the IP address that the node must have; 0: any, or a name
	// BitRate of the session in bits per second; 0: the mean of all sessions.
	BitRate float64
	Owner   string // id of the node that owns the stream, if one does
	Limit   int    // nodes wanted at most, from 1 to MaxChoice; 0 stands for DefaultChoice
	Peek    bool   // only look: reserve nothing, keep no record
}

// The number of nodes in an answer.
const (
	DefaultChoice = 3
	MaxChoice     = 16
)

// Choice is the answer to a request: nodes in the order in which they should be
// tried. Only the first has the session's bit rate reserved.
type Choice struct {
	Nodes []Chosen
	// Decision has the reasons. Its maps and lists are its own.
	Decision Decision
}

// Chosen is one node of a choice.
type Chosen struct {
	*Facts
	Load float64 // effective, with what is reserved, before this choice
}

// Locator says in which region an address is; empty if it does not know. It is
// called for each request and must be quick and safe for concurrent use.
type Locator interface {
	Region(addr netip.Addr) string
}

// ErrNoNode says that no node can take the session. It arrives wrapped.
var ErrNoNode = errors.New("no node can take the session")

// Scheduler decides. It holds the nodes, what is reserved at them, and the last
// decisions. Safe for concurrent use: decisions are made one after the other.
type Scheduler struct {
	// Static.
	cfg     Config
	locate  Locator
	filters []filter
	prefs   []preference
	general *binding
	vhosts  map[string]*binding

	mu       sync.Mutex // guards all below
	words    words
	nodes    []node  // in the order of their ids
	about    []about // of the same node as nodes
	said     []said  // likewise; never changed, because records keep it
	byID     map[string]int
	byName   map[string]int // by the id in lower case
	meanRate float64        // bits per second of a session, over all nodes; 0: not known
	picks    uint64         // decisions so far that chose a node
	queries  uint64         // decisions so far
	expired  time.Time
	carriers carriers
	records  records
	// Of the decision that is made.
	able    []candidate
	reasons []Reason // by index of nodes
	top     []int32
}

// candidate is a node that can take the session.
type candidate struct {
	load  float64 // effective, with what is reserved
	class uint64  // the lower the better; preferences make it
	score float64 // within its class, the lower the better; the policy makes it
	index int32   // of the node
}

// New returns a scheduler without nodes. cfg must be valid. locate may be nil.
// The same seed makes the same choices from the same input.
func New(cfg Config, locate Locator, seed uint64) *Scheduler {
	s := &Scheduler{
		cfg: cfg, locate: locate, byID: make(map[string]int), words: newWords(),
		filters: []filter{
			stateFilter{}, reportFilter{}, roleFilter{}, excludeFilter{}, groupFilter{}, tierFilter{}, addressFilter{}, hardFilter{cfg.HardLimit},
		},
		vhosts:   make(map[string]*binding, len(cfg.Vhosts)),
		carriers: newCarriers(),
		records:  records{keep: keptDecisions},
	}
	s.general = s.newBinding(cfg.Binding, Binding{}, seed)
	for name, b := range cfg.Vhosts {
		s.vhosts[name] = s.newBinding(b, cfg.Binding, seed^hashOf(name))
	}
	for _, name := range cfg.Prefer {
		s.prefs = append(s.prefs, s.newPreference(name))
	}
	return s
}

// Decide chooses nodes for a session. The error is ErrNoNode if there is none; the
// choice then has the decision with the reasons. why asks for the reasons in an
// answer that has nodes; without it the Decision is the head alone.
func (s *Scheduler) Decide(now time.Time, r Request, why bool) (Choice, error) {
	q := query{Request: r, now: now, oldest: now.Add(-s.cfg.ReportTTL).UnixNano(), speaks: wanted(r.Protocol), family: protocols(r.Family)}
	if q.Vhost == "" {
		q.Vhost, _, _ = strings.Cut(r.Stream, "/")
	}
	if q.NodeRole == "" {
		q.NodeRole = s.cfg.roleFor(r.Action)
	}
	if q.Region == "" && s.locate != nil && r.Client.IsValid() {
		q.Region = s.locate.Region(r.Client.Unmap())
	}
	q.binding = s.general
	if b := s.vhosts[q.Vhost]; b != nil {
		q.binding = b
	}
	limit := r.Limit
	if limit <= 0 {
		limit = DefaultChoice
	}
	limit = min(limit, MaxChoice)

	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.expired) >= expireEvery {
		s.expire(now)
	}
	s.prepare(&q)
	s.filter(&q)
	best := s.prefer(&q)
	s.score(&q, best)
	first := s.first(limit)

	choice := Choice{Nodes: make([]Chosen, len(first))}
	for i, at := range first {
		c := &s.able[at]
		choice.Nodes[i] = Chosen{s.about[c.index].facts, c.load}
	}
	var rec *record
	if !r.Peek {
		rec = s.records.next()
	} else if why || len(first) == 0 {
		rec = &record{}
	}
	if rec != nil {
		s.fill(rec, &q, first)
		choice.Decision = rec.decision(why || len(first) == 0)
	}
	if len(first) == 0 {
		return choice, fmt.Errorf("%w: %s", ErrNoNode, choice.Decision.summary())
	}
	if !r.Peek {
		s.reserve(&q, int(s.able[first[0]].index))
	}
	return choice, nil
}

// prepare marks the nodes that the query excludes or prefers, and looks its words
// up.
func (s *Scheduler) prepare(q *query) {
	s.queries++
	q.number = s.queries
	q.region, q.role = s.words.known(q.Region), s.words.known(q.NodeRole)
	for _, id := range q.Exclude {
		if i, ok := s.byID[id]; ok {
			s.nodes[i].excluded = q.number
		}
	}
	switch {
	case q.Action == Publish:
		if i, ok := s.byID[q.Owner]; ok {
			s.nodes[i].carries = q.number
		}
	case q.Stream != "":
		for _, c := range s.carriers.of(hashOf(q.Stream)) {
			if i, ok := s.byID[c.id]; ok && q.now.Sub(c.at) < carriedFor {
				s.nodes[i].carries = q.number
			}
		}
	}
}

// reserve counts the session that goes to a node.
func (s *Scheduler) reserve(q *query, index int) {
	n, a := &s.nodes[index], &s.about[index]
	s.picks++
	n.lastPick = s.picks
	a.reserved.add(q.now, s.rate(q.BitRate))
	n.reserved = a.reserved.bits / a.capacity(&s.cfg)
	if q.Action == Play && q.Stream != "" {
		s.carriers.add(hashOf(q.Stream), a.ID, q.now)
	}
}

// rate returns the bit rate to reserve for a session that asks for one.
func (s *Scheduler) rate(asked float64) float64 {
	switch {
	case asked > 0:
		return min(asked, maxRate)
	case s.meanRate > 0:
		return min(s.meanRate, maxRate)
	}
	return float64(s.cfg.DefaultBitRate)
}

// maxRate bounds what one session can reserve: 1 Gbit/s.
const maxRate = 1e9

// filter fills able and reasons.
func (s *Scheduler) filter(q *query) {
	s.able, s.reasons = s.able[:0], slices.Grow(s.reasons[:0], len(s.nodes))[:len(s.nodes)]
	for _, f := range s.filters {
		f.reject(q, s.nodes, s.reasons)
	}
	for i, why := range s.reasons {
		if why != able {
			continue
		}
		n := &s.nodes[i]
		c := candidate{load: n.load + n.reserved, index: int32(i)}
		if n.over || c.load >= s.cfg.SoftLimit {
			c.class = overSoft
		}
		s.able = append(s.able, c)
	}
}

// prefer puts candidates into classes and those of the best class to the front. It
// returns their number.
func (s *Scheduler) prefer(q *query) int {
	for _, p := range s.prefs {
		p.classify(q, s.nodes, s.able)
	}
	lowest := ^uint64(0)
	for i := range s.able {
		lowest = min(lowest, s.able[i].class)
	}
	best := 0
	for i := range s.able {
		if s.able[i].class == lowest {
			if i != best {
				s.able[i], s.able[best] = s.able[best], s.able[i]
			}
			best++
		}
	}
	return best
}

// score has the policy order the best class. All others, and all that are over the
// soft limit, are ordered by load.
func (s *Scheduler) score(q *query, best int) {
	for i := range s.able {
		s.able[i].score = s.able[i].load
	}
	if best > 0 && s.able[0].class>>(16*len(s.prefs)) == 0 {
		q.binding.policy.score(q, s, s.able[:best])
	}
}

// overSoft is the first of the classes; preferences push it up by 16 bits each.
const overSoft = 1

// first returns the places of the best candidates in able, in their order.
func (s *Scheduler) first(limit int) []int32 {
	top := s.top[:0]
	for i := range int32(len(s.able)) {
		switch {
		case len(top) < limit:
			top = append(top, i)
		case s.before(i, top[limit-1]):
			top[limit-1] = i
		default:
			continue
		}
		for j := len(top) - 1; j > 0 && s.before(top[j], top[j-1]); j-- {
			top[j], top[j-1] = top[j-1], top[j]
		}
	}
	s.top = top
	return top
}

func (s *Scheduler) before(i, j int32) bool {
	a, b := &s.able[i], &s.able[j]
	switch {
	case a.class != b.class:
		return a.class < b.class
	case a.score != b.score:
		return a.score < b.score
	}
	return a.index < b.index // by id
}
