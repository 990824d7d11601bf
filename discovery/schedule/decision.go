package schedule

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// keptDecisions is how many decisions a scheduler remembers. A decision over n
// nodes takes about 60n bytes.
const keptDecisions = 1000

// Decision is what was decided and why.
type Decision struct {
	// Number counts decisions from 1; 0 if this one was not kept.
	Number   uint64     `json:"number,omitempty"`
	Time     time.Time  `json:"time"`
	Action   Action     `json:"role"`
	NodeRole string     `json:"node_role"`
	Stream   string     `json:"stream,omitempty"`
	Vhost    string     `json:"vhost,omitempty"`
	Client   netip.Addr `json:"ip,omitzero"`
	Region   string     `json:"region,omitempty"` // of the client
	Protocol string     `json:"protocol,omitempty"`
	Exclude  []string   `json:"exclude,omitempty"`
	BitRate  float64    `json:"bit_rate,omitempty"` // as it was asked for
	Owner    string     `json:"owner,omitempty"`
	Policy   PolicyName `json:"policy"`
	Chosen   []string   `json:"chosen"` // ids, the best first
	// Filtered counts the nodes that could not take the session, by reason.
	Filtered map[Reason]int `json:"filtered,omitempty"`
	// Candidates are all nodes, by id.
	Candidates []Considered `json:"candidates,omitempty"`
}

// Considered is one node in a decision.
type Considered struct {
	Facts
	Filtered Reason `json:"filtered,omitempty"` // why it was not a candidate
	// Reported is the load in its last report, Reserved what was added to it for
	// sessions that have not been reported.
	Reported float64 `json:"reported"`
	Reserved float64 `json:"reserved"`
	Egress   float64 `json:"egress_bps,omitempty"`
	Sessions float64 `json:"sessions,omitempty"`
	OverSoft bool    `json:"over_soft_limit,omitempty"`
	// Classes are what the preferences said, in their order; 0 is the best.
	Classes []uint16 `json:"classes,omitempty"`
	Score   float64  `json:"score"` // of the policy; the lowest is the best
}

// Decisions returns up to limit of the last decisions with a number over after, the
// oldest first. It ends before that when the nodes in them are more than maxNodes,
// but has at least one if there is one.
func (s *Scheduler) Decisions(after uint64, limit, maxNodes int) []Decision {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := max(after+1, s.records.oldest())
	var out []Decision
	nodes := 0
	for number := first; number <= s.records.last && len(out) < limit; number++ {
		r := s.records.at(number)
		if nodes += len(r.said); nodes > maxNodes && len(out) > 0 {
			break
		}
		out = append(out, r.decision(true))
	}
	return out
}

// LastDecision returns the number of the last decision that is kept, or 0.
func (s *Scheduler) LastDecision() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records.last
}

// records is a ring of the last decisions. Its memory is used again.
type records struct {
	keep int
	ring []*record
	last uint64 // number of the last one
}

// record is a decision as it is kept.
type record struct {
	number  uint64
	query   query
	policy  PolicyName
	chosen  []string
	prefs   int
	said    []said      // of all nodes; shared by the decisions between two updates
	reasons []Reason    // of the same
	able    []candidate // their index is one of said
}

func (r *records) next() *record {
	r.last++
	at := int((r.last - 1) % uint64(r.keep))
	if at == len(r.ring) {
		r.ring = append(r.ring, &record{})
	}
	rec := r.ring[at]
	rec.number = r.last
	return rec
}

func (r *records) oldest() uint64 { return r.last - uint64(len(r.ring)) + 1 }

func (r *records) at(number uint64) *record { return r.ring[(number-1)%uint64(r.keep)] }

// fill writes the decision that was just made into rec.
func (s *Scheduler) fill(rec *record, q *query, first []int32) {
	rec.query, rec.policy, rec.prefs = *q, q.binding.name, len(s.prefs)
	rec.query.Exclude = slices.Clone(q.Exclude)
	rec.chosen = rec.chosen[:0]
	for _, at := range first {
		rec.chosen = append(rec.chosen, s.about[s.able[at].index].ID)
	}
	rec.said = s.said
	rec.reasons = append(rec.reasons[:0], s.reasons...)
	rec.able = append(rec.able[:0], s.able...)
}

// decision returns a copy that belongs to the caller; all is false for one without
// its nodes.
func (r *record) decision(all bool) Decision {
	q := &r.query
	d := Decision{
		Number: r.number, Time: q.now, Action: q.Action, NodeRole: q.NodeRole, Stream: q.Stream, Vhost: q.Vhost, Client: q.Client,
		Region: q.Region, Protocol: q.Protocol, BitRate: q.BitRate, Owner: q.Owner, Policy: r.policy,
	}
	if !all {
		return d
	}
	d.Exclude, d.Chosen = slices.Clone(q.Exclude), append([]string{}, r.chosen...)
	d.Candidates = make([]Considered, len(r.said))
	for i := range r.said {
		n := &r.said[i]
		d.Candidates[i] = Considered{
			Facts: *n.facts, Filtered: r.reasons[i], Reported: short(n.load), Egress: short(float64(n.egress)), Sessions: short(float64(n.sessions)),
		}
		if why := r.reasons[i]; why != able {
			if d.Filtered == nil {
				d.Filtered = make(map[Reason]int)
			}
			d.Filtered[why]++
		}
	}
	for i := range r.able {
		n := &r.able[i]
		c := &d.Candidates[n.index]
		c.Reserved, c.Score = short(n.load-r.said[n.index].load), short(n.score)
		c.OverSoft = n.class>>(16*r.prefs) != 0
		for p := r.prefs - 1; p >= 0; p-- {
			c.Classes = append(c.Classes, uint16(n.class>>(16*p)))
		}
	}
	return d
}

// short rounds to six digits: more are noise in a record.
func short(x float64) float64 {
	y, err := strconv.ParseFloat(strconv.FormatFloat(x, 'g', 6, 64), 64)
	if err != nil {
		return x
	}
	return y
}

// summary says why there was no node, in one line.
func (d *Decision) summary() string {
	if len(d.Candidates) == 0 {
		return "no node is known"
	}
	reasons := make([]string, 0, len(d.Filtered))
	for why, n := range d.Filtered {
		reasons = append(reasons, fmt.Sprintf("%d %s", n, why))
	}
	slices.Sort(reasons)
	return strings.Join(reasons, ", ")
}
