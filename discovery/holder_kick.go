package discovery

import (
	"context"
	"fmt"
	"time"
)

// kickedFor is how long a kick is remembered here at least: claims that began before
// it are answered by then.
const kickedFor = time.Minute

// kicked learns of a kick, and ends what is held of its stream.
func (h *Holder) kicked(k Kicked) {
	now := time.Now()
	h.mu.Lock()
	h.epochs.see(k.Epoch, now)
	h.kicks.sweep(kickedFor, now)
	h.kicks.put(k, now)
	e := h.held[k.Stream]
	over := e != nil && (e.lease.Epoch <= k.Epoch || !e.granted && k.Banned(now))
	if over {
		delete(h.held, k.Stream)
		h.resolver.followers.end(k.Stream, e.lease.Epoch)
	}
	h.mu.Unlock()
	if !over {
		return
	}
	h.resolver.followers.deliver()
	h.met.kicked.Inc()
	h.log.Info("publisher is ended by an operator", "stream", k.Stream, "epoch", e.lease.Epoch, "ban", max(0, time.Until(k.Until)).Round(time.Second).String(), "reason", k.Reason)
	if h.cfg.OnKicked != nil {
		h.cfg.OnKicked(k)
	}
}

// Kick implements Kicker. Where origins share no directory, it is for the streams of
// this node alone: the error is ErrInvalid, with the owner's name, for others; a ban
// holds at this node.
func (h *Holder) Kick(ctx context.Context, k Kick) (Kicked, error) {
	if d, ok := h.dir.(Kicker); ok {
		done, err := d.Kick(ctx, k)
		if err == nil {
			h.kicked(done)
		}
		return done, err
	}
	if err := k.check(); err != nil {
		return Kicked{}, fmt.Errorf("kick stream: %w", err)
	}
	now := time.Now()
	done := Kicked{Stream: k.Stream, Until: now.Add(k.Ban), Reason: k.Reason}
	h.mu.Lock()
	if e := h.held[k.Stream]; e != nil {
		done.Epoch, done.Owner = e.lease.Epoch, e.lease.Node
	}
	ban := h.kicks.ban(k.Stream, now)
	h.mu.Unlock()
	if done.Owner == "" {
		other, err := h.resolver.Lookup(ctx, k.Stream)
		switch {
		case err == nil:
			return Kicked{}, fmt.Errorf("kick stream %s: %w: its owner is node %s, which shares no directory with this one: kick it there", k.Stream, ErrInvalid, other.Node)
		case k.Ban == 0 && ban == nil:
			return Kicked{}, fmt.Errorf("kick stream %s: %w", k.Stream, ErrNotFound)
		}
	}
	h.kicked(done)
	return done, nil
}
