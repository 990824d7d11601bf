package discovery

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"
)

// probeTimeout bounds the question whether an owner is alive. It is what a publisher
// waits for at most that is refused because of one whose machine does not answer.
const probeTimeout = 300 * time.Millisecond

// pulse is what is found out about an owner by connecting to it.
type pulse string

const (
	pulseAlive   pulse = "alive"   // something listens at one of its addresses
	pulseRefused pulse = "refused" // its machine says that nothing does, at any of them
	pulseSilent  pulse = "silent"  // there was no answer, or only from some
)

// feel asks an owner for a connection at each of its addresses at once. A process that
// is killed has its sockets closed by its machine, which refuses connections from then
// on; one that is frozen still listens.
func feel(ctx context.Context, dial func(ctx context.Context, network, addr string) (net.Conn, error), a Addr) pulse {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	asked := 0
	answers := make(chan error, 2)
	for _, addr := range []string{a.RTMP, a.HTTP} {
		if addr == "" {
			continue
		}
		asked++
		go func() { // it ends with ctx
			c, err := dial(ctx, "tcp", addr)
			if err == nil {
				c.Close()
			}
			answers <- err
		}()
	}
	found := pulseRefused
	for range asked {
		switch err := <-answers; {
		case err == nil:
			found = pulseAlive
			cancel()
		case found == pulseRefused && !errors.Is(err, syscall.ECONNREFUSED):
			found = pulseSilent
		}
	}
	return found
}

// dead reports whether the owner of a lease that is in this node's way is dead, as far
// as can be told: its machine refuses connections, or it neither answers nor sends
// heartbeats to a directory that hears those of this node. The directory is asked only
// if heard. An owner that is alive all the same, but cut off, has lost the stream to a
// later epoch, as if its lease had run out.
func (h *Holder) dead(ctx context.Context, l Lease, heard bool) bool {
	if h.cfg.Dial == nil {
		return false
	}
	p := feel(ctx, h.cfg.Dial, l.Addr)
	dead := p == pulseRefused || p == pulseSilent && heard && h.missing(ctx, l.Node)
	if dead && ctx.Err() == nil {
		h.met.dead.Inc()
		h.log.Warn("the owner of a stream is dead", "stream", l.Stream, "node", l.Node, "epoch", l.Epoch, "connections", string(p))
		return true
	}
	return false
}

// missing reports whether the directory lists this node and not the other.
func (h *Holder) missing(ctx context.Context, node string) bool {
	self := false
	for q := (NodeQuery{Role: RoleOrigin}); ; {
		page, next, err := h.resolver.Nodes(ctx, q)
		if err != nil {
			return false
		}
		for _, n := range page {
			if n.ID == node {
				return false
			}
			self = self || n.ID == h.cfg.Self.Node && n.Instance == h.cfg.Self.Instance
		}
		if q.After = next; next == "" {
			return self
		}
	}
}
