package admission

import (
	"context"
	"errors"
	"sync"
	"time"

	"weir/discovery"
	"weir/internal/session"
)

// Placer chooses nodes for sessions; *discovery.Client is one.
type Placer interface {
	Place(ctx context.Context, q discovery.PlaceQuery) (discovery.Placement, error)
}

// elsewhere finds better nodes. A scheduler that does not answer, or has none, is left
// alone for a moment. Safe for concurrent use.
type elsewhere struct {
	placer Placer // nil: no other node is ever known
	self   string

	mu    sync.Mutex
	pause map[discovery.Role]time.Time // guarded by mu; until when it is not asked
}

const (
	placeTimeout = 500 * time.Millisecond
	pauseFailed  = time.Second
	pauseNone    = 500 * time.Millisecond
	// much is how much less loaded a node has to be to be worth the way.
	much = 0.05
)

// find returns a node that takes a newcomer, less loaded than below if that is not 0.
func (e *elsewhere) find(ctx context.Context, n session.Newcomer, below float64) (discovery.Placed, bool) {
	if e.placer == nil {
		return discovery.Placed{}, false
	}
	q := discovery.PlaceQuery{
		Role: n.Kind, NodeRole: discovery.RoleEdge, Stream: n.Target.Key.String(), IP: n.Remote.Addr(),
		Exclude: []string{e.self}, Protocol: "http", Limit: 1,
	}
	switch {
	case n.Kind == session.KindPublish:
		q.NodeRole, q.Protocol = discovery.RoleOrigin, "rtmp"
	case n.Kind == session.KindHLS:
		q.Role = session.KindPlay
	case n.Protocol == "rtmp":
		q.Protocol = "rtmp"
	}
	e.mu.Lock()
	paused := time.Now().Before(e.pause[q.NodeRole])
	e.mu.Unlock()
	if paused {
		return discovery.Placed{}, false
	}
	ctx, cancel := context.WithTimeout(ctx, placeTimeout)
	defer cancel()
	p, err := e.placer.Place(ctx, q)
	if err == nil && (below == 0 || p.Nodes[0].Load+much < below) {
		return p.Nodes[0], true
	}
	pause := pauseNone
	if err != nil && !errors.Is(err, discovery.ErrNoNode) {
		pause = pauseFailed
	}
	e.mu.Lock()
	e.pause[q.NodeRole] = time.Now().Add(pause)
	e.mu.Unlock()
	return discovery.Placed{}, false
}
