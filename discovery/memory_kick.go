package discovery

import (
	"context"
	"fmt"
	"time"
)

// Kick implements Kicker.
func (m *Memory) Kick(_ context.Context, k Kick) (Kicked, error) {
	if err := k.check(); err != nil {
		return Kicked{}, fmt.Errorf("kick stream: %w", err)
	}
	done, changes, err := m.kick(k)
	m.logChanges(changes)
	if err != nil {
		return Kicked{}, fmt.Errorf("kick stream %s: %w", k.Stream, err)
	}
	m.log.Info("stream kicked", "stream", k.Stream, "node", done.Owner, "epoch", done.Epoch, "ban", k.Ban.String(), "reason", k.Reason)
	return done, nil
}

func (m *Memory) kick(k Kick) (Kicked, []change, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	cur, changes := m.current(k.Stream, now)
	switch was := m.kicks[k.Stream]; {
	case cur == nil && k.Ban == 0 && m.kicks.ban(k.Stream, now) == nil:
		return Kicked{}, changes, ErrNotFound
	case was == nil && len(m.kicks) >= m.cfg.MaxStreams:
		return Kicked{}, changes, fmt.Errorf("%w: %d kicks and bans", ErrFull, len(m.kicks))
	}
	done := Kicked{Stream: k.Stream, Epoch: m.epochs.next(now), Until: now.Add(k.Ban), Reason: k.Reason}
	m.kicks.put(done, now)
	told := done
	m.feed.add(Event{Kicked: &told}) // before the end: the owner is to know why
	if cur != nil {
		done.Owner = cur.Node
		changes = append(changes, m.end(cur, "kicked", now))
	}
	m.ended[k.Stream] = ended{epoch: done.Epoch, at: now, released: true}
	m.met.kicked.Inc()
	return done, changes, nil
}
