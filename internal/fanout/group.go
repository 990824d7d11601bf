package fanout

import (
	"sync/atomic"
	"time"

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

	told uint64 // of cursor.Skipped, what the healthy players were told

	next    atomic.Uint64 // entry behind the last that was sent
	members atomic.Int64  // sessions of the group, chased ones included; closedGroup once dropped
}

// opening is what players get that join now: the beginning of the format and the
// stream from a join point up to the group's place. It is kept up to date while
// players join.
type opening struct {
	block
	from uint64
	used time.Time // when a player last joined
}

// openingIdle is how long an opening is kept for nobody: crowds come faster, and for one
// player a second it is made anew at the price of keeping it.
const openingIdle = 200 * time.Millisecond

func newGroup(key groupKey) *group {
	g := &group{key: key, cursor: key.stream.Tail()}
	g.cursor.Hold()
	g.next.Store(g.cursor.Seq())
	return g
}

// add puts a player among the healthy ones.
func (g *group) add(p *Session) {
	p.at = int32(len(g.healthy))
	g.healthy = append(g.healthy, p)
}

// wait puts a player among those that wait for a join point.
func (g *group) wait(p *Session) {
	p.at = int32(len(g.waiting))
	g.waiting = append(g.waiting, p)
}

// remove takes a player out of whichever list it is in.
func (g *group) remove(p *Session) {
	for _, list := range []*[]*Session{&g.healthy, &g.waiting} {
		l := *list
		if p.at >= 0 && int(p.at) < len(l) && l[p.at] == p {
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

// extend keeps the opening up to date.
func (g *group) extend(b *block) {
	switch {
	case g.opening.bytes == nil:
	case b.lost > 0:
		g.opening = opening{}
	default:
		g.opening.extend(b)
	}
}

// leave takes a member away and reports whether it was the last. Safe for
// concurrent use.
func (g *group) leave() (last bool) { return g.members.Add(-1) == 0 }

// closedGroup is the number of members of a group that was dropped.
const closedGroup = -1 << 32

// close makes sure that nobody is in the group. Only its shard adds members, so
// that none can come meanwhile.
func (g *group) close() bool { return g.members.CompareAndSwap(0, closedGroup) }
