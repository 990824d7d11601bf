package edge

import (
	"context"

	"weir/discovery"
	"weir/internal/session"
)

// TurnAway returns what a newcomer is told that this node does not take: where
// another edge is, if one is known. It returns nil for those who are served all
// the same: viewers of HLS for whom there is nothing else, because they may be here
// already.
//
// Other nodes are not sent to an edge by an edge, which does not know their tier:
// they have upstreams of their own to go on with.
func (e *Edge) TurnAway(ctx context.Context, n session.Newcomer) error {
	if n.Peer.Node == "" {
		if other, ok := e.others.Node(ctx, discovery.RoleEdge); ok {
			return &session.Redirect{RTMP: other.Addr.RTMP, HTTP: other.Addr.HTTP}
		}
	}
	if n.Kind == session.KindHLS {
		return nil
	}
	return &session.Refusal{Code: session.Draining, Text: "This node is being taken out of service."}
}
