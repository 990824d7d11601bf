package discovery

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// RemoteEngine is an engine whose data are elsewhere, such as in etcd.
type RemoteEngine interface {
	Engine
	Watcher
	// Ready returns an error that wraps ErrUnavailable while the data cannot be reached.
	Ready(ctx context.Context) error
	// Close closes the connections. Calls under way fail.
	Close() error
}

// Hub is a RemoteEngine for a Server of many nodes: it watches once for all who
// watch it, and lists nodes from its copy. While its own watch is broken, those of
// others end, so that nobody takes an old copy for a new one. Run must run. Safe
// for concurrent use.
type Hub struct {
	RemoteEngine
	// Static.
	log  *slog.Logger
	set  *metrics.Set
	feed *feed

	mu      sync.RWMutex // guards all below
	streams map[string]*hubLease
	nodes   map[string]*hubNode
	bans    kicks
	round   uint32 // of the snapshot being told, as in mirror
	mark    string
	// whole and caughtUp are those of mirror.
	whole, caughtUp bool
	heard           time.Time
}

type hubLease struct {
	Lease
	round uint32
}

type hubNode struct {
	Node
	round uint32
}

// NewHub returns a hub of e. log and set may be nil; one Hub to a set.
func NewHub(e RemoteEngine, log *slog.Logger, set *metrics.Set) *Hub {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if set == nil {
		set = metrics.NewSet()
	}
	h := &Hub{RemoteEngine: e, log: log, set: set, feed: newFeed(), streams: make(map[string]*hubLease), nodes: make(map[string]*hubNode), bans: make(kicks)}
	set.NewGauge(`weir_discovery_leases`, func() float64 { h.mu.RLock(); defer h.mu.RUnlock(); return float64(len(h.streams)) })
	set.NewGauge(`weir_discovery_nodes`, func() float64 { h.mu.RLock(); defer h.mu.RUnlock(); return float64(len(h.nodes)) })
	return h
}

// Metrics returns the set that the hub reports to.
func (h *Hub) Metrics() *metrics.Set { return h.set }

// Run runs the engine and keeps the copy until ctx ends.
func (h *Hub) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { h.follow(ctx) })
	defer wg.Wait()
	return h.RemoteEngine.Run(ctx)
}

// follow watches the engine.
func (h *Hub) follow(ctx context.Context) {
	was := ""
	for pause := firstPause; ; {
		h.mu.RLock()
		since := h.mark
		h.mu.RUnlock()
		err := h.RemoteEngine.Watch(ctx, WatchQuery{Since: since}, func(events []Event) error {
			err := h.apply(events)
			if h.inStep() && was != "" {
				h.log.Info("the engine is watched again")
				was, pause = "", firstPause
			}
			return err
		})
		h.mu.Lock()
		h.caughtUp = false
		h.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
		if now := failure(err); now != was {
			h.log.Warn("the engine is not watched", "err", err)
			was = now
		}
		select {
		case <-time.After(firstPause/10 + rand.N(pause)):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, longestPause)
	}
}

func (h *Hub) inStep() bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.caughtUp && time.Since(h.heard) < watchSilence
}

// apply takes events of the engine over, and has watchers told of what is new.
func (h *Hub) apply(events []Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if h.caughtUp && now.Sub(h.heard) >= watchSilence {
		return errWatchSilent // as in mirror
	}
	h.heard = now
	for _, e := range events {
		switch {
		case e.Reset:
			h.round++
			h.whole, h.caughtUp, h.mark = false, false, ""
			clear(h.bans) // those in force are told again
		case e.Lease != nil:
			old := h.streams[e.Lease.Stream]
			h.streams[e.Lease.Stream] = &hubLease{*e.Lease, h.round}
			if old == nil || !sameOwnership(old.Lease, *e.Lease) || old.Idle != e.Lease.Idle || old.Publisher != e.Lease.Publisher {
				h.feed.add(Event{Lease: e.Lease})
			}
		case e.Ended != nil:
			if old := h.streams[e.Ended.Stream]; old != nil && old.Epoch <= e.Ended.Epoch {
				h.endStream(old)
			}
		case e.Kicked != nil:
			h.bans.sweep(0, now)
			if h.bans.put(*e.Kicked, now); !e.Kicked.Banned(now) {
				delete(h.bans, e.Kicked.Stream)
			}
			h.feed.add(Event{Kicked: e.Kicked})
		case e.Node != nil:
			old := h.nodes[e.Node.ID]
			h.nodes[e.Node.ID] = &hubNode{*e.Node, h.round}
			if old != nil && old.Role != e.Node.Role {
				h.feed.add(Event{Left: e.Node.ID})
			}
			if old == nil || e.Node.differs(&old.Node) || !maps.Equal(e.Node.Load, old.Load) {
				h.feed.add(Event{Node: e.Node})
			}
		case e.Left != "":
			h.dropNode(e.Left)
		case e.Synced != "":
			if !h.whole {
				h.sweep()
			}
			h.mark, h.whole, h.caughtUp = e.Synced, true, true
		}
	}
	return nil
}

// sweep drops what the last snapshot did not tell. It expects mu to be held.
func (h *Hub) sweep() {
	for _, l := range h.streams {
		if l.round != h.round {
			h.endStream(l)
		}
	}
	for id, n := range h.nodes {
		if n.round != h.round {
			h.dropNode(id)
		}
	}
}

// endStream expects mu to be held.
func (h *Hub) endStream(l *hubLease) {
	delete(h.streams, l.Stream)
	h.feed.add(Event{Ended: &End{l.Stream, l.Epoch}})
}

// dropNode expects mu to be held.
func (h *Hub) dropNode(id string) {
	if h.nodes[id] != nil {
		delete(h.nodes, id)
		h.feed.add(Event{Left: id})
	}
}

var errHubBehind = fmt.Errorf("watch the directory: %w: this server does not see its engine", ErrUnavailable)

// Watch implements Watcher from the copy.
func (h *Hub) Watch(ctx context.Context, q WatchQuery, tell func([]Event) error) error {
	if err := q.check(); err != nil {
		return err
	}
	if !h.inStep() {
		return errHubBehind
	}
	return h.feed.watch(ctx, q, func(tell func([]Event) error) error {
		if err := walk(ctx, &h.mu, h.streams, tell, func(l *hubLease) (Event, bool) {
			own := l.Lease
			return Event{Lease: &own}, true
		}); err != nil {
			return err
		}
		now := time.Now()
		if err := walk(ctx, &h.mu, h.bans, tell, func(k *kickRecord) (Event, bool) {
			return Event{Kicked: &k.Kicked}, k.Banned(now)
		}); err != nil {
			return err
		}
		return walk(ctx, &h.mu, h.nodes, tell, func(n *hubNode) (Event, bool) {
			own := n.Node
			return Event{Node: &own}, q.Role == "" || n.Role == q.Role
		})
	}, func(events []Event) error {
		if n := len(events); n > 0 && events[n-1].Synced != "" && !h.inStep() {
			return errHubBehind
		}
		return tell(events)
	})
}

// Nodes lists nodes from the copy, or where that is not in step from the engine.
func (h *Hub) Nodes(ctx context.Context, q NodeQuery) ([]Node, string, error) {
	limit, err := pageLimit(q.Limit)
	if err != nil {
		return nil, "", fmt.Errorf("list nodes: %w", err)
	}
	if !h.inStep() {
		return h.RemoteEngine.Nodes(ctx, q)
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	var page []Node
	for _, id := range slices.Sorted(maps.Keys(h.nodes)) {
		n := h.nodes[id].Node
		if id <= q.After || q.Role != "" && n.Role != q.Role {
			continue
		}
		if len(page) == limit {
			return page, page[limit-1].ID, nil
		}
		page = append(page, n)
	}
	return page, "", nil
}
