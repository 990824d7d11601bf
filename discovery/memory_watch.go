package discovery

import (
	"context"
	"maps"
	"sync"
	"time"
)

// Watch implements Watcher. The changes of the last feedBytes are remembered for
// watchers that come back.
func (m *Memory) Watch(ctx context.Context, q WatchQuery, tell func([]Event) error) error {
	if err := q.check(); err != nil {
		return err
	}
	return m.feed.watch(ctx, q, func(tell func([]Event) error) error { return m.snapshot(ctx, q.Role, tell) }, tell)
}

// snapshot tells all leases, bans and nodes. What changes during the walk may be told as
// it was before or after.
func (m *Memory) snapshot(ctx context.Context, role Role, tell func([]Event) error) error {
	now := time.Now()
	if err := walk(ctx, &m.mu, m.streams, tell, func(l *Lease) (e Event, ok bool) {
		own := *l
		return Event{Lease: &own}, now.Before(l.Expires)
	}); err != nil {
		return err
	}
	if err := walk(ctx, &m.mu, m.kicks, tell, func(k *kickRecord) (e Event, ok bool) {
		return Event{Kicked: &k.Kicked}, k.Banned(now)
	}); err != nil {
		return err
	}
	return walk(ctx, &m.mu, m.nodes, tell, func(n *Node) (e Event, ok bool) {
		return Event{Node: n}, n.alive(now) && (role == "" || n.Role == role)
	})
}

// walk tells of a whole map in pieces, without the lock while telling.
func walk[V any](ctx context.Context, mu *sync.RWMutex, all map[string]*V, tell func([]Event) error, event func(*V) (Event, bool)) error {
	buf := make([]Event, 0, eventsAtOnce)
	flush := func() error {
		mu.RUnlock()
		defer mu.RLock()
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		err := tell(buf)
		buf = buf[:0]
		return err
	}
	mu.RLock()
	defer mu.RUnlock()
	for _, v := range all {
		if e, ok := event(v); ok {
			buf = append(buf, e)
		}
		// As in page: writers may have the lock between two steps.
		if len(buf) == cap(buf) {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if len(buf) == 0 {
		return nil
	}
	return flush()
}

// The functions below expect mu to be held for writing.

// tell has watchers told of a lease.
func (m *Memory) tell(l Lease) { m.feed.add(Event{Lease: &l}) }

// tellLoadEvery is how often watchers are told of a node for its load alone.
const tellLoadEvery = 2 * time.Second

// tellNode has watchers told of a node, if they need to know.
func (m *Memory) tellNode(n *Node) {
	old := m.toldNodes[n.ID]
	if old != nil && old.Role != n.Role { // who watches one role may know it under the other
		m.feed.add(Event{Left: n.ID})
	}
	if old == nil || n.differs(old) || n.Seen.Sub(old.Seen) >= tellLoadEvery && !maps.Equal(n.Load, old.Load) {
		m.toldNodes[n.ID] = n
		m.feed.add(Event{Node: n})
	}
}

// dropNode forgets a node.
func (m *Memory) dropNode(id string) {
	delete(m.nodes, id)
	delete(m.toldNodes, id)
	delete(m.twins, id)
	m.feed.add(Event{Left: id})
}

// differs reports whether anything but the load and the time differ.
func (n *Node) differs(o *Node) bool {
	return n.Instance != o.Instance || n.Role != o.Role || n.Addr != o.Addr || n.State != o.State ||
		n.Version != o.Version || n.TTL != o.TTL || !maps.Equal(n.Labels, o.Labels)
}
