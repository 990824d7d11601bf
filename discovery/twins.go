package discovery

import (
	"cmp"
	"time"
)

// twins notices nodes that were given the same id by mistake: instances whose heartbeats
// come by turns. A node that starts again is none, because the run before it is silent
// from then on. Not safe for concurrent use.
type twins map[string]*twin

// twin is what is known of an id that has had more than one instance.
type twin struct {
	seen  map[string]time.Time // last heartbeats of the instances before the newest, within the TTL
	turns int                  // how often one of them came back
	said  time.Time
}

const (
	// twinTurns is how often an instance has to come back after another one: a heartbeat
	// of the run before may be late once, which makes two turns.
	twinTurns = 3
	// sayTwinsEvery is how often it is said of an id that two nodes have it.
	sayTwinsEvery = time.Minute
)

// beat takes a heartbeat after that of another instance, old, of the same id. It reports
// whether they are twins, and whether it is time to say so.
func (t twins) beat(old, n *Node) (are, say bool) {
	w := t[n.ID]
	if w == nil {
		w = &twin{seen: make(map[string]time.Time)}
		t[n.ID] = w
	}
	w.seen[old.Instance] = old.Seen
	for instance, at := range w.seen {
		if !n.Seen.Before(at.Add(n.TTL)) {
			delete(w.seen, instance)
		}
	}
	_, back := w.seen[n.Instance]
	delete(w.seen, n.Instance)
	switch {
	case back:
		w.turns++
	case len(w.seen) <= 1: // of the twins of before one is left at most
		w.turns = 0
	}
	are = w.turns >= twinTurns
	if say = are && (w.said.IsZero() || n.Seen.Sub(w.said) >= sayTwinsEvery); say {
		w.said = n.Seen
	}
	return are, say
}

// main returns the address that a person knows the node by.
func (a Addr) main() string { return cmp.Or(a.RTMP, a.HTTP, a.API) }
