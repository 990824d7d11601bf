package origin

import (
	"context"

	"weir/discovery"
	"weir/internal/session"
)

// TurnAway returns what a newcomer is told that this node does not take, nil if it
// is served all the same. Streams that are here are served to other nodes, and to
// viewers of HLS, as long as they are here; players are sent to an edge. A new
// publisher is sent to another origin; one that comes back to its stream is let in.
func (o *Origin) TurnAway(ctx context.Context, n session.Newcomer) error {
	live, back := o.stands(n)
	role := discovery.RoleOrigin
	switch {
	case n.Kind == session.KindPublish && back && n.Peer.Node == "": // an edge has other origins for it
		return nil
	case n.Kind == session.KindPublish:
	case n.Peer.Node != "" || n.Kind == session.KindHLS || !live:
		return nil // the role knows where it is, if anywhere
	default:
		role = discovery.RoleEdge
	}
	if other, ok := o.others.Node(ctx, role); ok {
		return &session.Redirect{RTMP: other.Addr.RTMP, HTTP: other.Addr.HTTP}
	}
	return &session.Refusal{Code: session.Draining, Text: "This node is being taken out of service."}
}

// stands says whether the stream of a newcomer is live here, and whether it waits for
// its publisher, or for another connection of one that was asked to go.
func (o *Origin) stands(n session.Newcomer) (live, back bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.streams[n.Target.Key.String()]
	live = p != nil && p.shown && !p.ended
	return live, live && (p.publisher == nil || p.asked != nil)
}

// Returns reports whether a publisher is one of a stream that there is already: it
// waits for it here, or the directory knows an owner, who may be dead. Which of them
// gets the stream is decided by the claim.
func (o *Origin) Returns(ctx context.Context, n session.Newcomer) bool {
	if _, back := o.stands(n); back {
		return true
	}
	_, err := o.owner.Lookup(ctx, n.Target.Key.String())
	return err == nil
}
