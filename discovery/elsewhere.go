package discovery

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Elsewhere finds other nodes that take new sessions, for a node that turns some
// away. Safe for concurrent use.
type Elsewhere struct {
	// Static.
	dir  nodeLister // nil: no other node is ever known
	self string

	mu    sync.Mutex
	turn  int // guarded by mu
	known map[Role]*neighbours
}

// nodeLister is a directory that lists its nodes. Peers do not.
type nodeLister interface {
	Nodes(ctx context.Context, q NodeQuery) ([]Node, string, error)
}

// neighbours is the last list of a role's nodes. It is guarded by Elsewhere.mu but
// while asking is not nil, when the asker fills it in.
type neighbours struct {
	list   []Node
	at     time.Time     // of the last question
	got    time.Time     // of the last answer
	asking chan struct{} // closed when the answer is there; nil if nobody asks
}

// neighboursFor is how long a list of nodes is used. A node that has begun to
// drain is named for as long at most.
const neighboursFor = 500 * time.Millisecond

// A list that is not older than neighboursStale serves while a newer one is asked for,
// and instead of it when the answer takes longer than neighboursPatience: a client that
// is sent elsewhere does not wait for a slow directory.
const (
	neighboursStale    = 10 * time.Second
	neighboursPatience = 100 * time.Millisecond
)

// NewElsewhere returns an Elsewhere of the node self, which is never found. A dir
// that is nil or cannot list nodes finds none.
func NewElsewhere(dir Directory, self string) *Elsewhere {
	l, _ := dir.(nodeLister)
	return &Elsewhere{dir: l, self: self, turn: rand.IntN(1 << 20), known: map[Role]*neighbours{}}
}

// Node returns a node of the role that is up, has an address for RTMP and is
// neither this one nor one of those left out: a different one each time. It
// reports false if there is none, or none is known before ctx ends.
func (e *Elsewhere) Node(ctx context.Context, role Role, except ...string) (Node, bool) {
	if e.dir == nil {
		return Node{}, false
	}
	list := e.nodes(ctx, role)
	e.mu.Lock()
	defer e.mu.Unlock()
	for range list {
		e.turn++
		if n := list[e.turn%len(list)]; !slices.Contains(except, n.ID) {
			return n, true
		}
	}
	return Node{}, false
}

// ByLoad returns the nodes that Node chooses from, in the order of ByLoad.
func (e *Elsewhere) ByLoad(ctx context.Context, role Role) []Node {
	if e.dir == nil {
		return nil
	}
	return ByLoad(slices.Clone(e.nodes(ctx, role)))
}

// nodes returns the other nodes of a role that are up. Of many callers one asks; the
// others wait only if there is no list to do with.
func (e *Elsewhere) nodes(ctx context.Context, role Role) []Node {
	e.mu.Lock()
	k := e.known[role]
	if k == nil {
		k = &neighbours{}
		e.known[role] = k
	}
	if time.Since(k.at) < neighboursFor {
		defer e.mu.Unlock()
		return k.list
	}
	serves := len(k.list) > 0 && time.Since(k.got) < neighboursStale
	if wait := k.asking; wait != nil {
		if serves {
			defer e.mu.Unlock()
			return k.list
		}
		e.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		return k.list
	}
	done := make(chan struct{})
	k.asking = done
	e.mu.Unlock()
	if serves {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, neighboursPatience)
		defer cancel()
	}
	list, _, err := e.dir.Nodes(ctx, NodeQuery{Role: role})
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil { // else the last list, for when the directory is away
		k.got = time.Now()
		k.list = slices.DeleteFunc(list, func(n Node) bool {
			return n.State != StateUp || n.ID == e.self || n.Addr.RTMP == ""
		})
	}
	k.at, k.asking = time.Now(), nil
	close(done)
	return k.list
}
