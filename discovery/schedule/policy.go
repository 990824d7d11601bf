package schedule

import (
	"math"
	"math/rand/v2"

	"github.com/cespare/xxhash/v2"
)

// policy orders nodes of s that are equally good otherwise: it sets the score of
// each. The lowest is the best; equal scores are ordered by the nodes' ids. There
// is at least one candidate, and none is over the soft limit.
type policy interface {
	score(q *query, s *Scheduler, cs []candidate)
}

// PolicyName names a policy in the configuration.
type PolicyName string

// The policies.
const (
	RoundRobin PolicyName = "round_robin" // the node that was chosen longest ago
	LeastLoad  PolicyName = "least_load"  // the less loaded of two that are taken at random
	Pack       PolicyName = "pack"        // the node that was chosen last, until it is full
	MostUsed   PolicyName = "most_used"   // the most loaded that is not full
	Random     PolicyName = "random"      // any
	Weighted   PolicyName = "weighted"    // any, by weight
	Hash       PolicyName = "hash"        // the same node for the same stream, while it has room
)

// Choices implements configs.Chooser.
func (PolicyName) Choices() []string {
	return []string{
		string(RoundRobin), string(LeastLoad), string(Pack), string(MostUsed), string(Random), string(Weighted), string(Hash),
	}
}

func newPolicy(name PolicyName, seed uint64) policy {
	r := rand.New(rand.NewPCG(seed, hashOf(string(name))))
	switch name {
	case RoundRobin:
		return roundRobin{}
	case Pack:
		return pack{}
	case MostUsed:
		return mostUsed{}
	case Random:
		return random{r}
	case Weighted:
		return weighted{r}
	case Hash:
		return boundedHash{}
	default:
		return leastLoad{r}
	}
}

// roundRobin remembers for each node when it was chosen, not which comes next: the
// candidates of two requests may differ.
type roundRobin struct{}

func (roundRobin) score(_ *query, s *Scheduler, cs []candidate) {
	for i := range cs {
		cs[i].score = float64(s.nodes[cs[i].index].lastPick)
	}
}

// leastLoad takes the better of two, because the best of all would be that of
// everybody who asks on the same numbers. The others follow by load.
type leastLoad struct{ *rand.Rand }

func (p leastLoad) score(_ *query, _ *Scheduler, cs []candidate) {
	// Loads of candidates are below the soft limit, which is at most 1.
	const later = 2
	for i := range cs {
		cs[i].score = cs[i].load + later
	}
	a, b := p.IntN(len(cs)), 0
	if len(cs) > 1 {
		b = (a + 1 + p.IntN(len(cs)-1)) % len(cs)
	}
	cs[a].score, cs[b].score = cs[a].load, cs[b].load
}

type pack struct{}

func (pack) score(_ *query, s *Scheduler, cs []candidate) {
	for i := range cs {
		cs[i].score = -float64(s.nodes[cs[i].index].lastPick)
	}
}

type mostUsed struct{}

func (mostUsed) score(_ *query, s *Scheduler, cs []candidate) {
	for i := range cs {
		cs[i].score = -cs[i].load
	}
}

type random struct{ *rand.Rand }

func (p random) score(_ *query, s *Scheduler, cs []candidate) {
	for i := range cs {
		cs[i].score = p.Float64()
	}
}

// weighted: the smallest of exponential variables with the weights as rates is each
// of them with its share of the weights, and so are those after it.
type weighted struct{ *rand.Rand }

func (p weighted) score(_ *query, s *Scheduler, cs []candidate) {
	for i := range cs {
		cs[i].score = p.ExpFloat64() / s.about[cs[i].index].weight()
	}
}

// boundedHash is rendezvous hashing with bounded load: nodes that are busier than
// a quarter over the mean come last, so that a stream with a crowd spreads, to the
// same further nodes for each of its players.
type boundedHash struct{}

const loadBound = 1.25

func (boundedHash) score(q *query, s *Scheduler, cs []candidate) {
	mean := 0.0
	for i := range cs {
		mean += cs[i].load
	}
	mean /= float64(len(cs))
	stream := q.Stream
	if stream == "" {
		stream = q.Client.String()
	}
	h := hashOf(stream)
	for i := range cs {
		cs[i].score = 1 - float64(mix(h^s.nodes[cs[i].index].hash)>>11)/(1<<53)
		// A little over the mean is nothing when all are idle.
		if cs[i].load > mean*loadBound+1e-3 {
			cs[i].score++
		}
	}
}

func hashOf(s string) uint64 { return xxhash.Sum64String(s) }

// mix is the finaliser of splitmix64: it spreads the bits of x.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// binding is how the sessions of a vhost are placed.
type binding struct {
	groups, tiers []word
	name          PolicyName
	policy        policy
}

// newBinding returns what b says, and general where it says nothing.
func (s *Scheduler) newBinding(b, general Binding, seed uint64) *binding {
	if len(b.Groups) == 0 {
		b.Groups = general.Groups
	}
	if len(b.Tiers) == 0 {
		b.Tiers = general.Tiers
	}
	if b.Policy == "" {
		b.Policy = general.Policy
	}
	out := &binding{name: b.Policy, policy: newPolicy(b.Policy, seed)}
	for _, g := range b.Groups {
		out.groups = append(out.groups, s.words.of(g))
	}
	for _, t := range b.Tiers {
		out.tiers = append(out.tiers, s.words.of(t))
	}
	return out
}

// infinite reports whether x cannot be computed with.
func infinite(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) }
