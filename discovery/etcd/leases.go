package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"weir/discovery"
)

// leaseRecord is the value of an s/ key.
type leaseRecord struct {
	Node     string `json:"node"`
	Instance string `json:"instance,omitempty"`
	Epoch    uint64 `json:"epoch"`
	discovery.Addr
	Publisher string `json:"publisher,omitempty"`
	Idle      bool   `json:"idle,omitempty"`
	TTLms     int64  `json:"ttl_ms"`
}

func leaseOf(stream string, value []byte) (discovery.Lease, error) {
	var r leaseRecord
	if err := json.Unmarshal(value, &r); err != nil {
		return discovery.Lease{}, fmt.Errorf("read the lease of %s in etcd: %w", stream, err)
	}
	l := discovery.Lease{
		Stream: stream, Node: r.Node, Instance: r.Instance, Epoch: r.Epoch, Addr: r.Addr, Publisher: r.Publisher, Idle: r.Idle,
		Expires: time.Now().Add(time.Duration(r.TTLms) * time.Millisecond),
	}
	if err := l.Check(); err != nil {
		return discovery.Lease{}, fmt.Errorf("read the lease of %s in etcd: %w", stream, err)
	}
	return l, nil
}

// epochRecord is the value of an e/ key.
type epochRecord struct {
	Epoch    uint64 `json:"epoch"`
	Released bool   `json:"released,omitempty"` // the epoch itself cannot come back either
}

// slot is what etcd has of one stream, and at which revisions.
type slot struct {
	lease    *discovery.Lease // in force; nil: none
	last     epochRecord
	kicked   *discovery.Kicked // nil: none that counts
	leaseRev int64
	epochRev int64
	kickRev  int64
}

// slot reads what etcd has of a stream, in one step.
func (d *Directory) slot(ctx context.Context, stream string) (slot, error) {
	r, err := d.cli.Txn(ctx).Then(clientv3.OpGet(d.streamKey(stream)), clientv3.OpGet(d.epochKey(stream)), clientv3.OpGet(d.kickKey(stream))).Commit()
	if err != nil {
		return slot{}, err
	}
	var s slot
	if kv := first(r.Responses[0].GetResponseRange().Kvs); kv != nil {
		s.leaseRev = kv.ModRevision
		l, err := leaseOf(stream, kv.Value)
		if err != nil {
			return slot{}, err
		}
		s.lease = &l
	}
	if kv := first(r.Responses[1].GetResponseRange().Kvs); kv != nil {
		s.epochRev = kv.ModRevision
		if err := json.Unmarshal(kv.Value, &s.last); err != nil {
			return slot{}, fmt.Errorf("read the epoch of %s in etcd: %w", stream, err)
		}
	}
	if kv := first(r.Responses[2].GetResponseRange().Kvs); kv != nil {
		s.kickRev = kv.ModRevision
		k, err := kickedOf(stream, kv.Value)
		if err != nil {
			return slot{}, err
		}
		s.kicked = &k
	}
	return s, nil
}

func first(kvs []*mvccpb.KeyValue) *mvccpb.KeyValue {
	if len(kvs) == 0 {
		return nil
	}
	return kvs[0]
}

// next returns an epoch above all that were given out for the stream.
func (s slot) next(now time.Time) uint64 {
	epoch := max(uint64(now.UnixMicro()), s.last.Epoch+1)
	if s.lease != nil {
		epoch = max(epoch, s.lease.Epoch+1)
	}
	return epoch
}

// restorable reports whether a lease of that epoch may come back where there is
// none: it must not be older than an ownership that was in force.
func (s slot) restorable(epoch uint64, now time.Time) bool {
	return discovery.Plausible(epoch, now) && (epoch > s.last.Epoch || epoch == s.last.Epoch && !s.last.Released)
}

// errChanged says that somebody has written since the slot was read.
var errChanged = errors.New("changed meanwhile")

// put writes a lease, if the slot is still what was read.
func (d *Directory) put(ctx context.Context, s slot, l discovery.Lease, ttl time.Duration) error {
	owner := d.leaseID("streams", l.Node, l.Instance)
	if err := d.prolong(ctx, owner, ttl, ttl/3); err != nil {
		return err
	}
	memory, err := d.epochLease(ctx)
	if err != nil {
		return err
	}
	value, err := json.Marshal(leaseRecord{l.Node, l.Instance, l.Epoch, l.Addr, l.Publisher, l.Idle, ttl.Milliseconds()})
	if err != nil {
		return err
	}
	ops := []clientv3.Op{clientv3.OpPut(d.streamKey(l.Stream), string(value), clientv3.WithLease(owner))}
	if s.last != (epochRecord{Epoch: l.Epoch}) {
		last, err := json.Marshal(epochRecord{Epoch: l.Epoch})
		if err != nil {
			return err
		}
		ops = append(ops, clientv3.OpPut(d.epochKey(l.Stream), string(last), clientv3.WithLease(memory)))
	}
	err = d.write(ctx, s, l.Stream, ops...)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) { // one of the two has died since
		d.dead(owner)
		d.forgetEpochLease()
		return errChanged
	}
	return err
}

// remove ends the lease of a slot, if that is still what was read.
func (d *Directory) remove(ctx context.Context, s slot) error {
	memory, err := d.epochLease(ctx)
	if err != nil {
		return err
	}
	last, err := json.Marshal(epochRecord{Epoch: s.lease.Epoch, Released: true})
	if err != nil {
		return err
	}
	err = d.write(ctx, s, s.lease.Stream, clientv3.OpDelete(d.streamKey(s.lease.Stream)),
		clientv3.OpPut(d.epochKey(s.lease.Stream), string(last), clientv3.WithLease(memory)))
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		d.forgetEpochLease()
		return errChanged
	}
	return err
}

func (d *Directory) write(ctx context.Context, s slot, stream string, ops ...clientv3.Op) error {
	r, err := d.cli.Txn(ctx).If(
		clientv3.Compare(clientv3.ModRevision(d.streamKey(stream)), "=", s.leaseRev),
		clientv3.Compare(clientv3.ModRevision(d.epochKey(stream)), "=", s.epochRev),
		clientv3.Compare(clientv3.ModRevision(d.kickKey(stream)), "=", s.kickRev),
	).Then(ops...).Commit()
	if err == nil && !r.Succeeded {
		err = errChanged
	}
	return err
}

// retry calls f until it does not fail with errChanged, or ctx ends.
func retry(ctx context.Context, f func() error) error {
	for {
		if err := f(); !errors.Is(err, errChanged) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// Claim implements discovery.Leases.
func (d *Directory) Claim(ctx context.Context, c discovery.Claim) (discovery.Lease, error) {
	if err := c.Check(); err != nil {
		return discovery.Lease{}, fmt.Errorf("claim stream: %w", err)
	}
	ctx, cancel := d.bound(ctx)
	defer cancel()
	var got, owner discovery.Lease
	conflict := false
	var banned *discovery.Kicked
	err := retry(ctx, func() error {
		s, err := d.slot(ctx, c.Stream)
		if err != nil {
			return err
		}
		now, ttl := time.Now(), d.leaseTTL(c.TTL)
		if s.kicked != nil && s.kicked.Banned(now) {
			banned = s.kicked
			return nil
		}
		got = discovery.Lease{Stream: c.Stream, Node: c.Node, Instance: c.Instance, Addr: c.Addr, Publisher: c.Publisher, Expires: now.Add(ttl)}
		cur := s.lease
		later := cur != nil && c.Held > cur.Epoch && discovery.Plausible(c.Held, now)
		own := cur != nil && cur.Node == c.Node && cur.Instance == c.Instance
		cause := "claimed"
		if cur == nil {
			if err := d.room(ctx); err != nil {
				return err
			}
		}
		switch {
		case cur == nil && s.restorable(c.Held, now):
			got.Epoch, cause = c.Held, "restored"
		case cur == nil:
			got.Epoch = s.next(now)
		case own && !later:
			got.Epoch, cause = cur.Epoch, ""
		case later:
			got.Epoch, cause = c.Held, "later epoch"
		case cur.Node == c.Node:
			got.Epoch, cause = s.next(now), "node restarted"
		case cur.Idle:
			got.Epoch, cause = s.next(now), "claimed while idle"
		case c.Publisher != "" && c.Publisher == cur.Publisher:
			got.Epoch, cause = s.next(now), "same publisher"
		case c.Dead != 0 && c.Dead == cur.Epoch:
			got.Epoch, cause = s.next(now), "owner dead"
		case c.Replace:
			got.Epoch, cause = s.next(now), "replaced"
		default:
			owner, conflict = *cur, true
			return nil
		}
		if err := d.put(ctx, s, got, ttl); err != nil {
			return err
		}
		switch {
		case cause == "":
			d.claimed("kept")
		case cur == nil:
			d.claimed("granted")
		default:
			d.claimed("taken_over")
		}
		if cause != "" {
			d.changed(cause, got, cur)
		}
		return nil
	})
	switch {
	case errors.Is(err, discovery.ErrFull):
		d.claimed("full")
		return discovery.Lease{}, fmt.Errorf("claim stream %s: %w", c.Stream, err)
	case err != nil:
		return discovery.Lease{}, fmt.Errorf("claim stream %s: %w", c.Stream, d.wrap(ctx, err))
	case banned != nil:
		d.claimed("banned")
		return discovery.Lease{}, &discovery.BannedError{Kicked: *banned}
	case conflict:
		d.claimed("conflict")
		return discovery.Lease{}, &discovery.ConflictError{Lease: owner}
	}
	return got, nil
}

// countEvery is how often the streams are counted, at most, to keep to max_streams.
const countEvery = time.Second

// room returns ErrFull if there are as many streams as allowed. Others may add some
// between two counts.
func (d *Directory) room(ctx context.Context) error {
	if d.limits.MaxStreams <= 0 {
		return nil
	}
	d.mu.Lock()
	n, at := d.streams, d.counted
	d.streams++
	d.mu.Unlock()
	if time.Since(at) >= countEvery || n >= d.limits.MaxStreams {
		r, err := d.cli.Get(ctx, d.streamKey(""), clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return err
		}
		n = int(r.Count)
		d.mu.Lock()
		d.streams, d.counted = n+1, time.Now()
		d.mu.Unlock()
	}
	if n >= d.limits.MaxStreams {
		return fmt.Errorf("%w: %d streams", discovery.ErrFull, d.limits.MaxStreams)
	}
	return nil
}

// changed logs a change of ownership.
func (d *Directory) changed(cause string, l discovery.Lease, before *discovery.Lease) {
	from := ""
	if before != nil {
		from = before.Node
	}
	d.log.Info("stream ownership changed", "stream", l.Stream, "cause", cause, "node", l.Node, "epoch", l.Epoch, "from", from)
}

// readAtOnce is how many keys are read by one transaction: etcd's default limit.
const readAtOnce = 128

// writers is how many leases of one renewal are written at the same time.
const writers = 16

// Renew implements discovery.Leases. One call to etcd prolongs all leases of the
// instance; then each key is looked at, and only what differs is written.
func (d *Directory) Renew(ctx context.Context, r discovery.Renewal) ([]discovery.Lost, error) {
	if err := r.Check(); err != nil {
		return nil, fmt.Errorf("renew leases: %w", err)
	}
	// A thousand leases that etcd does not know are written in about a second.
	ctx, cancel := context.WithTimeout(ctx, d.timeout*time.Duration(1+len(r.Leases)/500))
	defer cancel()
	ttl := d.leaseTTL(r.TTL)
	if err := d.prolong(ctx, d.leaseID("streams", r.Node, r.Instance), ttl, 0); err != nil {
		return nil, fmt.Errorf("renew leases: %w", d.wrap(ctx, err))
	}
	var differ []discovery.Held
	for part := range slices.Chunk(r.Leases, readAtOnce) {
		ops := make([]clientv3.Op, len(part))
		for i, h := range part {
			ops[i] = clientv3.OpGet(d.streamKey(h.Stream))
		}
		read, err := d.cli.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			return nil, fmt.Errorf("renew leases: %w", d.wrap(ctx, err))
		}
		for i, h := range part {
			kv := first(read.Responses[i].GetResponseRange().Kvs)
			if kv != nil {
				l, err := leaseOf(h.Stream, kv.Value)
				want := discovery.Lease{Node: r.Node, Instance: r.Instance, Epoch: h.Epoch, Addr: r.Addr}
				if err == nil && discovery.SameOwnership(l, want) && l.Idle == h.Idle && l.Publisher == h.Publisher {
					continue
				}
			}
			differ = append(differ, h)
		}
	}
	lost := make([]*discovery.Lost, len(differ))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for i, h := range differ {
		g.Go(func() error {
			return retry(gctx, func() (err error) { lost[i], err = d.renew(gctx, r, h, ttl); return err })
		})
	}
	err := g.Wait()
	d.renewed("kept", len(r.Leases)-len(differ))
	var out []discovery.Lost
	for _, l := range lost {
		if l != nil {
			out = append(out, *l)
		}
	}
	d.renewed("lost", len(out))
	if err != nil {
		return out, fmt.Errorf("renew leases: %w", d.wrap(ctx, err))
	}
	return out, nil
}

// renew handles one lease of a renewal that etcd has differently.
func (d *Directory) renew(ctx context.Context, r discovery.Renewal, h discovery.Held, ttl time.Duration) (*discovery.Lost, error) {
	s, err := d.slot(ctx, h.Stream)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	want := discovery.Lease{Stream: h.Stream, Node: r.Node, Instance: r.Instance, Epoch: h.Epoch, Addr: r.Addr, Publisher: h.Publisher, Idle: h.Idle, Expires: now.Add(ttl)}
	cur := s.lease
	cause := ""
	switch {
	case cur == nil && s.kicked != nil && s.kicked.Ends(h.Epoch, now):
		return &discovery.Lost{Stream: h.Stream, Epoch: h.Epoch, Kicked: s.kicked}, nil
	case cur == nil && s.restorable(h.Epoch, now):
		cause = "restored"
	case cur == nil:
		return &discovery.Lost{Stream: h.Stream, Epoch: h.Epoch}, nil
	case cur.Epoch == h.Epoch && cur.Node == r.Node && cur.Instance == r.Instance:
	case h.Epoch > cur.Epoch && discovery.Plausible(h.Epoch, now):
		cause = "later epoch"
	default:
		return &discovery.Lost{Stream: h.Stream, Epoch: h.Epoch, Now: cur}, nil
	}
	if err := d.put(ctx, s, want, ttl); err != nil {
		return nil, err
	}
	if cause != "" {
		d.changed(cause, want, cur)
	}
	if cause == "restored" {
		d.renewed("restored", 1)
	} else {
		d.renewed("kept", 1)
	}
	return nil, nil
}

// Release implements discovery.Leases.
func (d *Directory) Release(ctx context.Context, l discovery.Lease) error {
	if err := discovery.CheckStream(l.Stream); err != nil {
		return fmt.Errorf("release lease: %w", err)
	}
	ctx, cancel := d.bound(ctx)
	defer cancel()
	var owner *discovery.Lease
	err := retry(ctx, func() error {
		s, err := d.slot(ctx, l.Stream)
		owner = nil
		switch {
		case err != nil:
			return err
		case s.lease == nil:
			return nil
		case s.lease.Node != l.Node || s.lease.Epoch != l.Epoch:
			owner = s.lease
			return nil
		}
		if err := d.remove(ctx, s); err != nil {
			return err
		}
		d.changed("released", discovery.Lease{Stream: l.Stream, Epoch: l.Epoch}, s.lease)
		return nil
	})
	switch {
	case err != nil:
		return fmt.Errorf("release stream %s: %w", l.Stream, d.wrap(ctx, err))
	case owner != nil:
		return &discovery.ConflictError{Lease: *owner}
	}
	return nil
}

// Lookup implements discovery.Finder.
func (d *Directory) Lookup(ctx context.Context, stream string) (discovery.Lease, error) {
	if err := discovery.CheckStream(stream); err != nil {
		return discovery.Lease{}, fmt.Errorf("look up stream: %w", err)
	}
	ctx, cancel := d.bound(ctx)
	defer cancel()
	r, err := d.cli.Get(ctx, d.streamKey(stream))
	if err != nil {
		return discovery.Lease{}, fmt.Errorf("look up stream %s: %w", stream, d.wrap(ctx, err))
	}
	kv := first(r.Kvs)
	if kv == nil {
		return discovery.Lease{}, fmt.Errorf("look up stream %s: %w", stream, discovery.ErrNotFound)
	}
	return leaseOf(stream, kv.Value)
}

// Streams implements discovery.Engine.
func (d *Directory) Streams(ctx context.Context, q discovery.StreamQuery) ([]discovery.Lease, string, error) {
	limit, err := discovery.PageLimit(q.Limit)
	if err != nil {
		return nil, "", fmt.Errorf("list streams: %w", err)
	}
	ctx, cancel := d.bound(ctx)
	defer cancel()
	base := d.streamKey("")
	from := base + q.Prefix
	if after := base + q.After + "\x00"; q.After != "" && after > from {
		from = after
	}
	end := clientv3.GetPrefixRangeEnd(base + q.Prefix)
	var page []discovery.Lease
	for from < end {
		r, err := d.cli.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(int64(discovery.MaxPage)))
		if err != nil {
			return nil, "", fmt.Errorf("list streams: %w", d.wrap(ctx, err))
		}
		for _, kv := range r.Kvs {
			l, err := leaseOf(strings.TrimPrefix(string(kv.Key), base), kv.Value)
			if err != nil || q.Node != "" && l.Node != q.Node {
				continue
			}
			if len(page) == limit {
				return page, page[limit-1].Stream, nil
			}
			page = append(page, l)
		}
		if !r.More || len(r.Kvs) == 0 {
			break
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
	return page, "", nil
}
