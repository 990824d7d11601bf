package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weir/discovery"
)

// nodeRecord is the value of an n/ key.
type nodeRecord struct {
	Instance string         `json:"instance,omitempty"`
	Role     discovery.Role `json:"role"`
	discovery.Addr
	State   discovery.State    `json:"state"`
	Load    map[string]float64 `json:"load,omitempty"`
	Labels  map[string]string  `json:"labels,omitempty"`
	Version string             `json:"version,omitempty"`
	TTLms   int64              `json:"ttl_ms"`
	At      int64              `json:"at"` // when it was written, in milliseconds since 1970
}

// writeLoadEvery is how often a node is written for its load alone.
const writeLoadEvery = 2 * time.Second

// nodeOf reads an n/ key. A node is alive while its key is there.
func nodeOf(id string, value []byte) (discovery.Node, nodeRecord, error) {
	var r nodeRecord
	if err := json.Unmarshal(value, &r); err != nil {
		return discovery.Node{}, r, fmt.Errorf("read node %s in etcd: %w", id, err)
	}
	n := discovery.Node{
		ID: id, Instance: r.Instance, Role: r.Role, Addr: r.Addr, State: r.State, Load: r.Load, Labels: r.Labels, Version: r.Version,
		TTL: time.Duration(r.TTLms) * time.Millisecond, Seen: time.Now(),
	}
	if err := n.Check(); err != nil {
		return discovery.Node{}, r, fmt.Errorf("read node %s in etcd: %w", id, err)
	}
	return n, r, nil
}

// Heartbeat implements discovery.Members. What a node says is written when it has
// changed, for its load alone every two seconds at most.
func (d *Directory) Heartbeat(ctx context.Context, n discovery.Node) error {
	if err := n.Check(); err != nil {
		return fmt.Errorf("take heartbeat: %w", err)
	}
	ctx, cancel := d.bound(ctx)
	defer cancel()
	err := retry(ctx, func() error { return d.heartbeat(ctx, n) })
	switch {
	case errors.Is(err, discovery.ErrFull):
		return fmt.Errorf("take heartbeat of node %s: %w", n.ID, err)
	case err != nil:
		return fmt.Errorf("take heartbeat of node %s: %w", n.ID, d.wrap(ctx, err))
	}
	return nil
}

func (d *Directory) heartbeat(ctx context.Context, n discovery.Node) error {
	n.TTL = d.nodeTTL(n.TTL)
	lease := d.leaseID("node", n.ID, n.Instance)
	if err := d.prolong(ctx, lease, n.TTL, 0); err != nil {
		return err
	}
	got, err := d.cli.Get(ctx, d.nodeKey(n.ID))
	if err != nil {
		return err
	}
	now := time.Now()
	var rev int64
	var old discovery.Node
	var when nodeRecord
	if kv := first(got.Kvs); kv != nil {
		rev = kv.ModRevision
		if old, when, err = nodeOf(n.ID, kv.Value); err == nil && clientv3.LeaseID(kv.Lease) == lease && !n.Differs(old) &&
			(maps.Equal(n.Load, old.Load) || now.Sub(time.UnixMilli(when.At)).Abs() < writeLoadEvery) {
			return nil
		}
	}
	if rev == 0 && d.limits.MaxNodes > 0 {
		r, err := d.cli.Get(ctx, d.nodeKey(""), clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return err
		}
		if r.Count >= int64(d.limits.MaxNodes) { // some may come between this and the write
			return fmt.Errorf("%w: %d nodes", discovery.ErrFull, d.limits.MaxNodes)
		}
	}
	value, err := json.Marshal(nodeRecord{n.Instance, n.Role, n.Addr, n.State, n.Load, n.Labels, n.Version, n.TTL.Milliseconds(), now.UnixMilli()})
	if err != nil {
		return err
	}
	r, err := d.cli.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(d.nodeKey(n.ID)), "=", rev)).
		Then(clientv3.OpPut(d.nodeKey(n.ID), string(value), clientv3.WithLease(lease))).Commit()
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		d.dead(lease)
		return errChanged
	case err != nil:
		return err
	case !r.Succeeded:
		return errChanged
	}
	if rev == 0 || old.Instance != n.Instance || old.State != n.State {
		d.log.Info("node state changed", "node", n.ID, "role", n.Role, "state", n.State, "version", n.Version)
	}
	if rev != 0 && old.Instance != n.Instance && old.Addr == n.Addr {
		// Whoever listens at that address now, the run before it is dead, and its
		// streams need not wait for their TTL.
		return d.endStreams(ctx, n.ID, old.Instance, "node restarted")
	}
	return nil
}

// endStreams ends all leases of one instance of a node.
func (d *Directory) endStreams(ctx context.Context, node, instance, cause string) error {
	id := d.leaseID("streams", node, instance)
	r, err := d.cli.TimeToLive(ctx, id, clientv3.WithAttachedKeys())
	if err != nil {
		return err
	}
	for _, key := range r.Keys {
		stream := strings.TrimPrefix(string(key), d.streamKey(""))
		err := retry(ctx, func() error {
			s, err := d.slot(ctx, stream)
			if err != nil || s.lease == nil || s.lease.Node != node || s.lease.Instance != instance {
				return err
			}
			if err := d.remove(ctx, s); err != nil {
				return err
			}
			d.changed(cause, discovery.Lease{Stream: stream, Epoch: s.lease.Epoch}, s.lease)
			return nil
		})
		if err != nil {
			return err
		}
	}
	d.dead(id)
	if _, err := d.cli.Revoke(ctx, id); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return err
	}
	return nil
}

// Goodbye implements discovery.Members.
func (d *Directory) Goodbye(ctx context.Context, id, instance string) error {
	if err := (discovery.Lease{Stream: "v/a/n", Node: id, Instance: instance, Addr: discovery.Addr{RTMP: "h:1"}}).Check(); err != nil {
		return fmt.Errorf("take goodbye: %w", err)
	}
	ctx, cancel := d.bound(ctx)
	defer cancel()
	if err := d.goodbye(ctx, id, instance); err != nil {
		return fmt.Errorf("take goodbye of node %s: %w", id, d.wrap(ctx, err))
	}
	return nil
}

func (d *Directory) goodbye(ctx context.Context, id, instance string) error {
	got, err := d.cli.Get(ctx, d.nodeKey(id))
	if err != nil {
		return err
	}
	instances := map[string]bool{}
	if kv := first(got.Kvs); kv != nil {
		n, _, err := nodeOf(id, kv.Value)
		if err != nil || instance == "" || n.Instance == instance {
			instances[n.Instance] = true
			if _, err := d.cli.Delete(ctx, d.nodeKey(id)); err != nil {
				return err
			}
			d.log.Info("node left", "node", id)
		}
	}
	if instance != "" {
		instances = map[string]bool{instance: true}
	} else {
		for after := ""; ; {
			page, next, err := d.Streams(ctx, discovery.StreamQuery{Node: id, After: after})
			if err != nil {
				return err
			}
			for _, l := range page {
				instances[l.Instance] = true
			}
			if after = next; next == "" {
				break
			}
		}
	}
	for i := range instances {
		if err := d.endStreams(ctx, id, i, "node left"); err != nil {
			return err
		}
	}
	return nil
}

// Nodes implements discovery.Engine.
func (d *Directory) Nodes(ctx context.Context, q discovery.NodeQuery) ([]discovery.Node, string, error) {
	limit, err := discovery.PageLimit(q.Limit)
	if err != nil {
		return nil, "", fmt.Errorf("list nodes: %w", err)
	}
	ctx, cancel := d.bound(ctx)
	defer cancel()
	base := d.nodeKey("")
	from, end := base, clientv3.GetPrefixRangeEnd(base)
	if q.After != "" {
		from = base + q.After + "\x00"
	}
	var page []discovery.Node
	for {
		r, err := d.cli.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(int64(discovery.MaxPage)))
		if err != nil {
			return nil, "", fmt.Errorf("list nodes: %w", d.wrap(ctx, err))
		}
		for _, kv := range r.Kvs {
			n, _, err := nodeOf(strings.TrimPrefix(string(kv.Key), base), kv.Value)
			if err != nil || q.Role != "" && n.Role != q.Role {
				continue
			}
			if len(page) == limit {
				return page, page[limit-1].ID, nil
			}
			page = append(page, n)
		}
		if !r.More || len(r.Kvs) == 0 {
			return page, "", nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}
