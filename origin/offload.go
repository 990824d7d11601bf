package origin

import (
	"context"
	"time"

	"weir/internal/load"
	"weir/internal/session"
)

// offloadLook is how often the load is looked at.
const offloadLook = 250 * time.Millisecond

// Offload moves streams to less loaded origins while this one is over its soft limit,
// one in each publish.move_every, until ctx ends. It returns nil.
func (o *Origin) Offload(ctx context.Context, status func() load.Status) error {
	every := o.cfg.Publish.MoveEvery
	if every == 0 {
		return nil
	}
	tick := time.NewTicker(offloadLook)
	defer tick.Stop()
	next := time.Time{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			if s := status(); s.Soft && !now.Before(next) {
				o.offload(ctx, s.Effective)
				next = now.Add(every) // the load needs time to show what it was good for
			}
		}
	}
}

// offload moves one stream, if there is an origin with much less load.
func (o *Origin) offload(ctx context.Context, load float64) {
	for _, p := range o.movable(moveOverload) {
		to, err := o.target(ctx, p, "", false)
		if err != nil || to.load+muchLess >= load {
			return
		}
		if _, _, err := p.ask(to, moveOverload); err == nil {
			return
		}
	}
}

// Drainable are the sessions of an origin as a drain sees them: those of its door, and
// publishers, who are asked to go to another origin. It implements drain.Sessions.
type Drainable struct {
	*session.Server
	Origin *Origin
}

// Movable returns the ids of the players, and of the publishers, that can be told to go
// elsewhere and have not been told yet.
func (d Drainable) Movable() []string {
	ids := d.Server.Movable()
	for _, p := range d.Origin.movable(moveDrain) {
		if id := p.session(); id != "" {
			ids = append(ids, id)
		}
	}
	return ids
}

// Move tells one so. It reports whether there was one that understood it.
func (d Drainable) Move(id string) bool {
	if d.Server.Move(id) {
		return true
	}
	for _, p := range d.Origin.movable(moveDrain) {
		if p.session() != id {
			continue
		}
		to, err := d.Origin.target(context.Background(), p, "", true)
		if err != nil {
			return false
		}
		_, _, err = p.ask(to, moveDrain)
		return err == nil
	}
	return false
}

// session returns the id of the publisher's session, "" if it is away.
func (p *publication) session() string {
	p.o.mu.Lock()
	defer p.o.mu.Unlock()
	if p.publisher == nil {
		return ""
	}
	return p.publisher.ID()
}
