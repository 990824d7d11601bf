package schedule

import (
	"math"
	"slices"
	"time"
)

// preference is the stage between filters and policy: it puts candidates into
// classes of its own, 0 being the best, and adds them to their class with refine.
type preference interface {
	classify(q *query, nodes []node, cs []candidate)
}

// refine puts a candidate into a class within the class that it has.
func (c *candidate) refine(class uint16) { c.class = c.class<<16 | uint64(class) }

// PreferenceName names a preference in the configuration.
type PreferenceName string

// The preferences.
const (
	PreferRegion PreferenceName = "region" // nodes in the client's region, then those near it
	PreferCost   PreferenceName = "cost"   // nodes whose traffic costs least
	PreferStream PreferenceName = "stream" // nodes that carry the stream, or its owner
)

// Choices implements configs.Chooser.
func (PreferenceName) Choices() []string {
	return []string{string(PreferRegion), string(PreferCost), string(PreferStream)}
}

func (s *Scheduler) newPreference(name PreferenceName) preference {
	switch name {
	case PreferCost:
		return costPreference{}
	case PreferStream:
		return streamPreference{s.cfg.StreamSlack}
	default:
		near := make(map[word][]word, len(s.cfg.Near))
		for region, others := range s.cfg.Near {
			for _, o := range others {
				near[s.words.of(region)] = append(near[s.words.of(region)], s.words.of(o))
			}
		}
		return regionPreference{near}
	}
}

// regionPreference: the client's region, those near it in their order, the others.
// Without a region of the client all are equal.
type regionPreference struct{ near map[word][]word }

func (p regionPreference) classify(q *query, nodes []node, cs []candidate) {
	near := p.near[q.region]
	for i := range cs {
		region := nodes[cs[i].index].region
		switch {
		case q.region == wordNone, region == q.region && region != wordStrange:
			cs[i].refine(0)
		case region != wordNone && slices.Contains(near, region):
			cs[i].refine(uint16(1 + slices.Index(near, region)))
		default:
			cs[i].refine(math.MaxUint16)
		}
	}
}

// costPreference: the price in thousandths, up to 65.535.
type costPreference struct{}

func (costPreference) classify(_ *query, nodes []node, cs []candidate) {
	for i := range cs {
		cs[i].refine(nodes[cs[i].index].cost)
	}
}

// streamPreference: for a publisher the owner of the stream, so that one who comes
// back meets the node that keeps its name. For a player the nodes that others of
// this stream were sent to, as long as they are not busier than the least busy by
// more than slack: each further node is one more pull from the origin.
type streamPreference struct{ slack float64 }

func (p streamPreference) classify(q *query, nodes []node, cs []candidate) {
	most := leastOfBest(cs) + p.slack
	if q.Action == Publish {
		most = math.Inf(1)
	}
	for i := range cs {
		if nodes[cs[i].index].carries == q.number && cs[i].load <= most {
			cs[i].refine(0)
		} else {
			cs[i].refine(1)
		}
	}
}

// leastOfBest returns the least load of the best class so far.
func leastOfBest(cs []candidate) float64 {
	least, class := 0.0, ^uint64(0)
	for i := range cs {
		if c := &cs[i]; c.class < class || c.class == class && c.load < least {
			least, class = c.load, c.class
		}
	}
	return least
}

// carriers remembers to which nodes the players of a stream were sent of late.
// Streams are known by their hash: a collision prefers a node without need.
type carriers struct {
	streams map[uint64]*carrier
	swept   time.Time
}

type carrier struct {
	nodes []carrying
}

type carrying struct {
	id string
	at time.Time
}

const (
	carriedFor   = time.Minute // after the last player was sent there
	maxCarried   = 64          // nodes of one stream
	maxStreams   = 100_000     // about 100 bytes each, and 40 for each node
	carriedSweep = 10 * time.Second
)

func newCarriers() carriers { return carriers{streams: make(map[uint64]*carrier)} }

func (c *carriers) of(stream uint64) []carrying {
	if s := c.streams[stream]; s != nil {
		return s.nodes
	}
	return nil
}

func (c *carriers) add(stream uint64, id string, now time.Time) {
	if now.Sub(c.swept) >= carriedSweep {
		c.sweep(now)
	}
	s := c.streams[stream]
	if s == nil {
		if len(c.streams) >= maxStreams {
			return
		}
		s = &carrier{}
		c.streams[stream] = s
	}
	oldest := 0
	for i := range s.nodes {
		if s.nodes[i].id == id {
			s.nodes[i].at = now
			return
		}
		if s.nodes[i].at.Before(s.nodes[oldest].at) {
			oldest = i
		}
	}
	if len(s.nodes) == maxCarried {
		s.nodes[oldest] = carrying{id, now}
		return
	}
	s.nodes = append(s.nodes, carrying{id, now})
}

func (c *carriers) sweep(now time.Time) {
	c.swept = now
	for key, s := range c.streams {
		s.nodes = slices.DeleteFunc(s.nodes, func(n carrying) bool { return now.Sub(n.at) >= carriedFor })
		if len(s.nodes) == 0 {
			delete(c.streams, key)
		}
	}
}
