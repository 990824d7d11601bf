package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weir/discovery"
)

// kickRecord is the value of a k/ key.
type kickRecord struct {
	Epoch  uint64 `json:"epoch"`
	Until  int64  `json:"until"` // when the ban ends, in milliseconds since 1970
	Reason string `json:"reason,omitempty"`
}

// kickMemory is how long a kick is kept at least: owners renew, and hear of it.
const kickMemory = time.Minute

func kickedOf(stream string, value []byte) (discovery.Kicked, error) {
	var r kickRecord
	if err := json.Unmarshal(value, &r); err != nil {
		return discovery.Kicked{}, fmt.Errorf("read the kick of %s in etcd: %w", stream, err)
	}
	return discovery.Kicked{Stream: stream, Epoch: r.Epoch, Until: time.UnixMilli(r.Until), Reason: r.Reason}, nil
}

// Kick implements discovery.Kicker. The clocks of those who use one etcd must agree
// as far as the ends of bans are to be exact.
func (d *Directory) Kick(ctx context.Context, k discovery.Kick) (discovery.Kicked, error) {
	if err := k.Check(); err != nil {
		return discovery.Kicked{}, fmt.Errorf("kick stream: %w", err)
	}
	ctx, cancel := d.bound(ctx)
	defer cancel()
	var done discovery.Kicked
	var before *discovery.Lease
	err := retry(ctx, func() (err error) { done, before, err = d.kick(ctx, k); return err })
	switch {
	case errors.Is(err, discovery.ErrNotFound):
		return discovery.Kicked{}, fmt.Errorf("kick stream %s: %w", k.Stream, err)
	case err != nil:
		return discovery.Kicked{}, fmt.Errorf("kick stream %s: %w", k.Stream, d.wrap(ctx, err))
	}
	if before != nil {
		d.changed("kicked", discovery.Lease{Stream: k.Stream, Epoch: before.Epoch}, before)
	}
	d.set.GetOrCreateCounter(`weir_discovery_kicks_total`).Inc()
	d.log.Info("stream kicked", "stream", k.Stream, "node", done.Owner, "epoch", done.Epoch, "ban", k.Ban.String(), "reason", k.Reason)
	return done, nil
}

func (d *Directory) kick(ctx context.Context, k discovery.Kick) (done discovery.Kicked, before *discovery.Lease, err error) {
	s, err := d.slot(ctx, k.Stream)
	if err != nil {
		return done, nil, err
	}
	now := time.Now()
	if s.lease == nil && k.Ban == 0 && (s.kicked == nil || !s.kicked.Banned(now)) {
		return done, nil, discovery.ErrNotFound
	}
	done = discovery.Kicked{Stream: k.Stream, Epoch: s.next(now), Until: now.Add(k.Ban), Reason: k.Reason}
	memory, err := d.epochLease(ctx)
	if err != nil {
		return done, nil, err
	}
	own, err := d.cli.Grant(ctx, int64(max(k.Ban, kickMemory)/time.Second)+1)
	if err != nil {
		return done, nil, err
	}
	last, err := json.Marshal(epochRecord{Epoch: done.Epoch, Released: true})
	if err != nil {
		return done, nil, err
	}
	kick, err := json.Marshal(kickRecord{done.Epoch, done.Until.UnixMilli(), k.Reason})
	if err != nil {
		return done, nil, err
	}
	// In this order watchers are told: the owner is to know why.
	ops := []clientv3.Op{
		clientv3.OpPut(d.kickKey(k.Stream), string(kick), clientv3.WithLease(own.ID)),
		clientv3.OpPut(d.epochKey(k.Stream), string(last), clientv3.WithLease(memory)),
	}
	if s.lease != nil {
		done.Owner = s.lease.Node
		ops = append(ops, clientv3.OpDelete(d.streamKey(k.Stream)))
	}
	err = d.write(ctx, s, k.Stream, ops...)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		d.forgetEpochLease()
		err = errChanged
	}
	return done, s.lease, err
}
