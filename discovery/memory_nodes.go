package discovery

import (
	"context"
	"fmt"
	"maps"
	"time"
)

// Heartbeat implements Members.
func (m *Memory) Heartbeat(_ context.Context, n Node) error {
	if err := n.check(); err != nil {
		return fmt.Errorf("take heartbeat: %w", err)
	}
	n.Load, n.Labels = maps.Clone(n.Load), maps.Clone(n.Labels)
	if n.TTL == 0 {
		n.TTL = m.cfg.NodeTTL
	}
	n.TTL = min(n.TTL, m.cfg.MaxLeaseTTL)

	m.mu.Lock()
	n.Seen = time.Now()
	old := m.nodes[n.ID]
	if old == nil && len(m.nodes) >= m.cfg.MaxNodes {
		m.sweepNodes(n.Seen)
		if len(m.nodes) >= m.cfg.MaxNodes {
			m.mu.Unlock()
			return fmt.Errorf("take heartbeat of node %s: %w: %d nodes", n.ID, ErrFull, m.cfg.MaxNodes)
		}
	}
	m.nodes[n.ID] = &n
	m.tellNode(&n)
	restarted := old == nil || old.Instance != n.Instance
	var areTwins, sayTwins bool
	if restarted && old != nil {
		areTwins, sayTwins = m.twins.beat(old, &n)
	}
	m.mu.Unlock()
	if restarted {
		// Whoever listens at that address now, the run before it is dead, and its
		// streams need not wait for their TTL. A second node that was given the
		// same id by mistake has another address and keeps its own.
		m.endLeases("node restarted", func(l *Lease) bool {
			return l.Node == n.ID && l.Instance != n.Instance && l.Addr == n.Addr
		})
	}
	switch {
	case areTwins:
		m.met.twinBeats.Inc()
		if sayTwins {
			m.log.Warn("two nodes have the same id", "node", n.ID, "address", n.Addr.main(), "other", old.Addr.main(), "role", n.Role)
		}
	case restarted || old.State != n.State:
		m.log.Info("node state changed", "node", n.ID, "role", n.Role, "state", n.State, "version", n.Version)
	}
	return nil
}

// Goodbye implements Members.
func (m *Memory) Goodbye(_ context.Context, id, instance string) error {
	if err := checkID("id", id); err != nil {
		return fmt.Errorf("take goodbye: %w", err)
	}
	m.mu.Lock()
	n := m.nodes[id]
	gone := n != nil && (instance == "" || n.Instance == instance)
	if gone {
		m.dropNode(id)
	}
	m.mu.Unlock()
	ended := m.endLeases("node left", func(l *Lease) bool {
		return l.Node == id && (instance == "" || l.Instance == instance)
	})
	if gone {
		m.log.Info("node left", "node", id, "leases", ended)
	}
	return nil
}
