package etcd

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weir/discovery"
)

// errNotSince says that etcd cannot go on from a mark.
var errNotSince = errors.New("the changes since then are not there any more")

// Watch implements discovery.Watcher by a watch of etcd. A mark is the name of the
// data and a revision, and good for every client of them. When etcd has compacted
// what came after it, or lost its data, everything is told anew. Unlike those of a
// discovery server these watches are for one watcher in a process: it must be quick.
func (d *Directory) Watch(ctx context.Context, q discovery.WatchQuery, tell func([]discovery.Event) error) error {
	if err := q.Check(); err != nil {
		return err
	}
	bounded, cancel := d.bound(ctx)
	name, now, err := d.name(bounded)
	err = d.wrap(bounded, err)
	cancel()
	if err != nil {
		return fmt.Errorf("watch the directory: %w", err)
	}
	rev, ok := since(q.Since, name)
	ok = ok && rev <= now
	for {
		if !ok {
			if rev, err = d.snapshot(ctx, q.Role, tell); err != nil {
				return err
			}
		}
		if err := d.follow(ctx, q.Role, name, rev, tell); !errors.Is(err, errNotSince) {
			return err
		}
		ok = false
	}
}

func mark(name string, rev int64) string { return name + "-" + strconv.FormatInt(rev, 10) }

func since(mark, name string) (int64, bool) {
	of, number, found := strings.Cut(mark, "-")
	if !found || of != name {
		return 0, false
	}
	rev, err := strconv.ParseInt(number, 10, 64)
	return rev, err == nil && rev > 0
}

// snapshot tells all that was there at one revision, which it returns.
func (d *Directory) snapshot(ctx context.Context, role discovery.Role, tell func([]discovery.Event) error) (rev int64, err error) {
	if err := tell([]discovery.Event{{Reset: true}}); err != nil {
		return 0, err
	}
	for _, base := range []string{d.streamKey(""), d.kickKey(""), d.nodeKey("")} {
		from, end := base, clientv3.GetPrefixRangeEnd(base)
		for {
			page, cancel := d.bound(ctx)
			r, err := d.cli.Get(page, from, clientv3.WithRange(end), clientv3.WithLimit(discovery.MaxPage), clientv3.WithRev(rev))
			err = d.wrap(page, err)
			cancel()
			if err != nil {
				return 0, fmt.Errorf("watch the directory: %w", err)
			}
			rev = max(rev, r.Header.Revision*b2i(rev == 0))
			var events []discovery.Event
			for _, kv := range r.Kvs {
				e, ok := d.event(&clientv3.Event{Type: mvccpb.PUT, Kv: kv}, role)
				if ok && (e.Kicked == nil || e.Kicked.Banned(time.Now())) {
					events = append(events, e)
				}
			}
			if err := tell(events); err != nil {
				return 0, err
			}
			if !r.More || len(r.Kvs) == 0 {
				break
			}
			from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
		}
	}
	return rev, nil
}

// follow tells the changes after a revision.
func (d *Directory) follow(ctx context.Context, role discovery.Role, name string, rev int64, tell func([]discovery.Event) error) error {
	// With a leader required, a member that is cut off from the others ends the
	// watch instead of standing still. A context of its own has a stream of its own.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	changes := d.cli.Watch(ctx, d.prefix, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(rev+1))
	beat := time.NewTicker(discovery.WatchBeat / 2)
	defer beat.Stop()
	silence := time.NewTimer(3 * discovery.WatchBeat)
	defer silence.Stop()
	// Notices of progress come from a member that has not caught up, or has compacted
	// what is asked for, as well: a write of our own that comes back is the proof that
	// everything before it has come.
	caughtUp, proof := false, rand.Text()
	bounded, done := d.bound(ctx)
	_, err := d.cli.Put(bounded, d.prefix+"w", proof)
	err = d.wrap(bounded, err)
	done()
	if err != nil {
		return fmt.Errorf("watch the directory: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-silence.C:
			return fmt.Errorf("watch the directory: %w: etcd has fallen silent", discovery.ErrUnavailable)
		case <-beat.C:
			if err := d.cli.RequestProgress(ctx); err != nil {
				return fmt.Errorf("watch the directory: %w", d.wrap(ctx, err))
			}
		case r, ok := <-changes:
			switch err := r.Err(); {
			case ctx.Err() != nil: // which ends the watch, too
				return context.Cause(ctx)
			case errors.Is(err, rpctypes.ErrCompacted):
				return errNotSince
			case err != nil:
				return fmt.Errorf("watch the directory: %w", d.wrap(ctx, err))
			case !ok:
				return fmt.Errorf("watch the directory: %w: etcd has ended the watch", discovery.ErrUnavailable)
			case r.Header.Revision < rev:
				// The client goes on by itself where etcd has lost its data, and would
				// wait for the old revision to come again.
				return fmt.Errorf("watch the directory: %w: etcd has lost its data", discovery.ErrUnavailable)
			}
			silence.Reset(3 * discovery.WatchBeat)
			var events []discovery.Event
			for _, e := range r.Events {
				// Not the revision of a notice without events: etcd 3.4 may send one
				// ahead of events that are older.
				rev = max(rev, e.Kv.ModRevision)
				caughtUp = caughtUp || string(e.Kv.Value) == proof
				if e, ok := d.event(e, role); ok {
					events = append(events, e)
				}
			}
			if caughtUp {
				events = append(events, discovery.Event{Synced: mark(name, rev)})
			}
			if len(events) == 0 {
				continue
			}
			if err := tell(events); err != nil {
				return err
			}
		}
	}
}

// event turns a change in etcd into one of the directory, if it is one.
func (d *Directory) event(e *clientv3.Event, role discovery.Role) (discovery.Event, bool) {
	key := strings.TrimPrefix(string(e.Kv.Key), d.prefix)
	what, name, _ := strings.Cut(key, "/")
	gone := e.Type == mvccpb.DELETE
	switch {
	case what == "s" && gone:
		end := discovery.End{Stream: name, Epoch: math.MaxUint64}
		if e.PrevKv != nil {
			var r leaseRecord
			if err := json.Unmarshal(e.PrevKv.Value, &r); err == nil {
				end.Epoch = r.Epoch
			}
		}
		return discovery.Event{Ended: &end}, true
	case what == "s":
		l, err := leaseOf(name, e.Kv.Value)
		return discovery.Event{Lease: &l}, err == nil
	case what == "k" && gone: // long after it counted
	case what == "k":
		k, err := kickedOf(name, e.Kv.Value)
		return discovery.Event{Kicked: &k}, err == nil
	case what == "n" && gone:
		return discovery.Event{Left: name}, true
	case what == "n":
		n, _, err := nodeOf(name, e.Kv.Value)
		if err == nil && role != "" && n.Role != role {
			// It may have been of that role before.
			return discovery.Event{Left: name}, e.PrevKv != nil && strings.Contains(string(e.PrevKv.Value), string(role))
		}
		return discovery.Event{Node: &n}, err == nil
	}
	return discovery.Event{}, false
}

func b2i(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
