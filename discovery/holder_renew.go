package discovery

import (
	"context"
	"time"
)

func (h *Holder) renewals(ctx context.Context) {
	every := h.cfg.Config.LeaseTTL / 3
	timer := time.NewTimer(jittered(every))
	defer timer.Stop()
	hurry := 0 // attempts to reach the directory after a frost
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.thaw:
			hurry = thawAttempts
			timer.Reset(0)
		case <-h.wake:
			// A directory that is away is not asked more often because of it:
			// the renewal in time carries the mark.
			h.mu.Lock()
			away := h.leases != nil
			h.mu.Unlock()
			if !away {
				h.renew(ctx, true)
			}
		case <-timer.C:
			ok := h.renew(ctx, false)
			if ok {
				h.settleDoubts(ctx)
			}
			if !ok && hurry > 0 {
				hurry--
				timer.Reset(thawPause)
				continue
			}
			hurry = 0
			timer.Reset(jittered(every))
		}
	}
}

// renew prolongs all leases, or the dirty ones only, and settles those lost. It
// reports whether the directory has answered for all.
func (h *Holder) renew(ctx context.Context, dirtyOnly bool) bool {
	r := Renewal{
		Node: h.cfg.Self.Node, Instance: h.cfg.Self.Instance, Addr: h.cfg.Self.Addr, TTL: h.cfg.Config.LeaseTTL,
	}
	h.mu.Lock()
	for stream, e := range h.held {
		if dirtyOnly && !e.dirty {
			continue
		}
		e.dirty = false
		r.Leases = append(r.Leases, Held{Stream: stream, Epoch: e.lease.Epoch, Idle: e.lease.Idle, Publisher: e.lease.Publisher})
	}
	if len(r.Leases) == 0 {
		h.mu.Unlock()
		return true
	}
	h.renewing++
	h.mu.Unlock()

	// The directory bounds each of its calls; this bounds them all.
	bounded, cancel := context.WithTimeoutCause(ctx, h.cfg.Config.LeaseTTL, ErrUnavailable)
	asked := time.Now()
	lost, err := h.dir.Renew(bounded, r)
	cancel()

	h.mu.Lock()
	h.renewing--
	if err == nil {
		for _, l := range r.Leases {
			if e := h.held[l.Stream]; e != nil && e.lease.Epoch == l.Epoch {
				e.lease.Expires = asked.Add(r.TTL)
			}
		}
	}
	h.mu.Unlock()
	if ctx.Err() != nil {
		return false
	}
	h.reached(err)
	for _, l := range lost {
		h.settle(ctx, l)
	}
	return err == nil
}

// settle handles one lease that was not renewed.
func (h *Holder) settle(ctx context.Context, l Lost) {
	done := h.tryBegin(l.Stream)
	if done == nil {
		return // a claim or release is under way and decides; else the next renewal says so again
	}
	now := h.resettle(ctx, l)
	done()
	h.resolver.followers.deliver()
	if now != nil { // after done: OnLost may release the stream
		h.tellLost(l.Stream, *now)
	}
}

// resettle is settle with the stream busy. It returns the owner if it was lost.
func (h *Holder) resettle(ctx context.Context, l Lost) (now *Lease) {
	h.mu.Lock()
	e := h.held[l.Stream]
	if e == nil || e.lease.Epoch != l.Epoch {
		h.mu.Unlock()
		return nil // released or claimed anew while the renewal was under way
	}
	if l.Now != nil && l.Now.Node == h.cfg.Self.Node && l.Now.Instance == h.cfg.Self.Instance {
		// A claim of ours was granted, but its answer was lost: the epoch in
		// force is the one that everybody else sees.
		e.lease.Epoch = l.Now.Epoch
		h.resolver.followers.note(e.lease, 0)
		h.epochs.see(l.Now.Epoch, time.Now())
		h.markDirty(e)
		h.mu.Unlock()
		return nil
	}
	idle, publisher := e.lease.Idle, e.lease.Publisher
	h.mu.Unlock()
	if l.Kicked != nil {
		h.kicked(*l.Kicked)
		return nil
	}
	if l.Now != nil {
		if h.drop(l.Stream, *l.Now) {
			return l.Now
		}
		return nil
	}
	// Nobody has it, but others may have seen a later epoch: ask for a new one.
	lease, now, err := h.claim(ctx, l.Stream, ClaimOptions{Publisher: publisher})
	switch {
	case err == nil:
		h.log.Info("stream claimed again", "stream", l.Stream, "epoch", lease.Epoch, "old_epoch", l.Epoch)
		if idle {
			h.SetIdle(l.Stream, true)
		}
	case now == nil && ctx.Err() == nil:
		h.log.Warn("stream could not be claimed again", "stream", l.Stream, "err", err)
	}
	return now
}

// heard notes how a heartbeat went. While heartbeats wait in vain, no lookup has
// to find out for itself that the directory is silent.
func (h *Holder) heard(err error, sent time.Time) {
	h.mu.Lock()
	h.beat = err
	h.mu.Unlock()
	h.resolver.heard(err, sent)
}

// reached notes how a claim or renewal went, and logs when that changes.
func (h *Holder) reached(err error) {
	h.mu.Lock()
	was, now := failure(h.leases), failure(err)
	h.leases = err
	h.mu.Unlock()
	switch {
	case now == was:
	case now == "":
		h.log.Info("directory is back")
	case now == failureRefused:
		h.log.Warn("directory refuses claims and renewals", "err", err)
	default:
		h.log.Warn("directory lost: leases cannot be renewed", "err", err)
	}
}

// How a stop of this process is noticed, and what is done then.
const (
	frostLook = 100 * time.Millisecond // how often the clock is looked at
	frostLeap = time.Second            // a look that late means that the process was stopped
	// Connections of before the stop may be dead, which a first call finds out.
	thawPause    = 100 * time.Millisecond
	thawAttempts = 5
)

// feelFrost has the leases renewed at once when this process goes on after it was
// stopped (SIGSTOP, a suspended machine): they may have run out meanwhile, and
// others may have the streams.
func (h *Holder) feelFrost(ctx context.Context) {
	tick := time.NewTicker(frostLook)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// The wall clock as well: the other one stands still while a machine sleeps.
		now := time.Now()
		if now.Sub(last) >= frostLeap || now.Round(0).Sub(last.Round(0)) >= frostLeap {
			h.log.Warn("this node was stopped for a while: leases are renewed now", "for", now.Round(0).Sub(last.Round(0)))
			select {
			case h.thaw <- struct{}{}:
			default:
			}
		}
		last = now
	}
}

// watched compares what the directory tells with what is held here.
func (h *Holder) watched(ctx context.Context, events []Event) {
	for i := range events {
		switch e := &events[i]; {
		case e.Lease != nil:
			l := e.Lease
			h.mu.Lock()
			own := h.held[l.Stream]
			lost := own != nil && l.Epoch > own.lease.Epoch
			var epoch uint64
			if lost {
				epoch = own.lease.Epoch
			}
			h.mu.Unlock()
			if lost {
				now := *l
				h.settle(ctx, Lost{Stream: l.Stream, Epoch: epoch, Now: &now})
			}
		case e.Kicked != nil:
			h.kicked(*e.Kicked)
		case e.Ended != nil:
			h.mu.Lock()
			if own := h.held[e.Ended.Stream]; own != nil && own.lease.Epoch <= e.Ended.Epoch {
				h.markDirty(own) // the renewal restores it, or claims it anew
			}
			h.mu.Unlock()
		}
	}
}
