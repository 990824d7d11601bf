package discovery

import (
	"context"
	"errors"
	"maps"
	"slices"
)

// doubt notes that a claim or a release of a stream has failed that may have been
// carried out, or not: the directory may have the stream as one of this node, which
// an engine whose leases end together (etcd) would keep for as long as the node has
// others. mu is not held.
func (h *Holder) doubt(stream string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.doubts[stream] = struct{}{}
}

// settleDoubts gives back what the directory has as this node's and the node does not
// hold, of the streams that are in doubt.
func (h *Holder) settleDoubts(ctx context.Context) {
	h.mu.Lock()
	streams := slices.Collect(maps.Keys(h.doubts))
	h.mu.Unlock()
	for _, stream := range streams {
		done := h.tryBegin(stream)
		if done == nil {
			continue // the call under way may settle it
		}
		settled := h.settleDoubt(ctx, stream)
		done()
		if !settled {
			return // the directory is away
		}
	}
}

// settleDoubt expects the stream to be busy. It reports whether the directory has
// answered.
func (h *Holder) settleDoubt(ctx context.Context, stream string) bool {
	h.mu.Lock()
	held := h.held[stream] != nil
	h.mu.Unlock()
	if !held {
		l, err := h.dir.Lookup(ctx, stream)
		switch {
		case err != nil && !errors.Is(err, ErrNotFound):
			return false
		case err == nil && l.Node == h.cfg.Self.Node && l.Instance == h.cfg.Self.Instance:
			if err := h.dir.Release(ctx, l); err != nil && !errors.As(err, new(*ConflictError)) {
				return false
			}
			h.log.Info("stream given back that nobody publishes here", "stream", stream, "epoch", l.Epoch)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.doubts, stream)
	return true
}
