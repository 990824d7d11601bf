package edge

import (
	"weir/internal/session"
)

// drainable are the sessions of a worker as a drain sees them: those of its door, and
// publishers that other edges forward to this one, which have other upstreams. It
// implements drain.Sessions.
type drainable struct {
	*session.Server
	edge *Edge
}

// Movable returns the ids of the players, and of the publishers, that can be told to go
// elsewhere and have not been told yet.
func (d drainable) Movable() []string {
	ids := d.Server.Movable()
	d.edge.mu.Lock()
	defer d.edge.mu.Unlock()
	for f := range d.edge.forwards {
		if f.p.Way() == session.ByRedirect && !f.p.Asked() {
			ids = append(ids, f.p.ID())
		}
	}
	return ids
}

// Move tells one so. It reports whether there was one. The edge that forwards a
// publisher notices the end of the connection and goes on with its next upstream, from
// the newest key frame on: it is not told which, because it knows its tier, and this
// one does not.
func (d drainable) Move(id string) bool {
	if d.Server.Move(id) {
		return true
	}
	d.edge.mu.Lock()
	defer d.edge.mu.Unlock()
	for f := range d.edge.forwards {
		if f.p.ID() == id && f.p.Way() == session.ByRedirect {
			return f.p.Dismiss()
		}
	}
	return false
}
