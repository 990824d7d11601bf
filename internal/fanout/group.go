package fanout

import (
	"sync/atomic"

	"weir/internal/stream"
)

// group is the players of one stream in one format at one shard. Its goroutine
// owns all fields but the atomic ones.
type group struct {
	key     groupKey
	cursor  *stream.Cursor // all before it was sent to the healthy players
	healthy []*Session     // have got all up to next, and their sockets take more
	waiting []*Session     // for the first join point
	opening opening

	next    atomic.Uint64 // sequence number that cursor stands before
	members atomic.Int64  // sessions of the group, chased ones included; closedGroup once dropped
}

// opening is what players get that join now: the beginning of the format and the
// stream from a join point up to the group's place.
type opening struct {
	from  uint64
	bytes []byte // grows by appending; players may hold shorter slices of it
	idle  int    // flushes since somebody joined
}

// idleFlushes is how many flushes an opening is kept up to date for nobody.
const idleFlushes = 2

func newGroup(key groupKey) *group {
	s := key.stream
	end := s.End()
	g := &group{key: key, cursor: s.At(end, s.Headers())}
	g.next.Store(end)
	return g
}

// add puts a player among the healthy ones.
func (g *group) add(p *Session) {
	p.at = len(g.healthy)
	g.healthy = append(g.healthy, p)
}

// wait puts a player among those that wait for a join point.
func (g *group) wait(p *Session) {
	p.at = len(g.waiting)
	g.waiting = append(g.waiting, p)
}

// remove takes a player out of whichever list it is in.
func (g *group) remove(p *Session) {
	for _, list := range []*[]*Session{&g.healthy, &g.waiting} {
		l := *list
		if p.at >= 0 && p.at < len(l) && l[p.at] == p {
			last := len(l) - 1
			l[p.at] = l[last]
			l[p.at].at = p.at
			l[last] = nil
			*list = l[:last]
			p.at = -1
			return
		}
	}
}

// extend keeps the opening up to date while players join.
func (g *group) extend(block []byte) {
	if g.opening.bytes == nil {
		return
	}
	if g.opening.idle++; g.opening.idle > idleFlushes {
		g.opening = opening{}
		return
	}
	g.opening.bytes = append(g.opening.bytes, block...)
}

// leave takes a member away. Safe for concurrent use.
func (g *group) leave() { g.members.Add(-1) }

// closedGroup is the number of members of a group that was dropped.
const closedGroup = -1 << 32

// close makes sure that nobody is in the group. Only its shard adds members, so
// that none can come meanwhile.
func (g *group) close() bool { return g.members.CompareAndSwap(0, closedGroup) }
