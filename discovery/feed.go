package discovery

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"
)

// feed is the log of a directory's changes. A watcher is a cursor in it: it has no
// queue of its own, and one that falls off the log's end starts over with a
// snapshot. Safe for concurrent use.
type feed struct {
	id string // of this log; static. Marks of others mean nothing here.

	mu    sync.Mutex // guards all below; may be taken under the engine's lock
	log   []Event    // the last changes
	first uint64     // the number of log[0]
	bytes int64      // of log
	// more is closed when the log grows. It is nil while nobody waits.
	more chan struct{}
}

// feedBytes bounds the memory of a feed's log.
const feedBytes = 8 << 20

// eventsAtOnce bounds what a watcher is told in one call.
const eventsAtOnce = 256

// errBehind says that a cursor has fallen off the log.
var errBehind = errors.New("the changes since then are forgotten")

func newFeed() *feed { return &feed{id: NewInstance()} }

// add appends a change. The engine holds the lock that puts its changes in order.
func (f *feed) add(e Event) {
	e.wire = new(wireEvent)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, e)
	f.bytes += e.size()
	drop := 0
	for f.bytes > feedBytes && drop < len(f.log)-1 {
		f.bytes -= f.log[drop].size()
		f.log[drop] = Event{}
		drop++
	}
	f.log = f.log[drop:] // append moves to a new array now and then, and leaves this behind
	f.first += uint64(drop)
	if f.more != nil {
		close(f.more)
		f.more = nil
	}
}

// size is about the memory of a logged event, with its JSON form.
func (e *Event) size() int64 {
	size := int64(unsafe.Sizeof(*e)+unsafe.Sizeof(*e.wire)) + 64
	switch {
	case e.Lease != nil:
		l := e.Lease
		size += int64(unsafe.Sizeof(*l)) + 200 + 2*int64(len(l.Stream)+len(l.Node)+len(l.Instance)+len(l.Addr.RTMP)+len(l.Addr.HTTP)+len(l.Addr.API))
	case e.Ended != nil:
		size += 64 + 2*int64(len(e.Ended.Stream))
	case e.Kicked != nil:
		size += 200 + 2*int64(len(e.Kicked.Stream)+len(e.Kicked.Reason))
	case e.Node != nil:
		size += int64(unsafe.Sizeof(*e.Node)) + 400
		for name := range e.Node.Load {
			size += 32 + 2*int64(len(name))
		}
		for name, v := range e.Node.Labels {
			size += 32 + 2*int64(len(name)+len(v))
		}
	}
	return size
}

func (f *feed) mark(at uint64) string { return f.id + "-" + strconv.FormatUint(at, 10) }

// parse returns the place that a mark names, if it is one of this feed.
func (f *feed) parse(mark string) (at uint64, ok bool) {
	id, number, found := strings.Cut(mark, "-")
	if !found || id != f.id {
		return 0, false
	}
	at, err := strconv.ParseUint(number, 10, 64)
	return at, err == nil
}

// end returns the place behind the last change.
func (f *feed) end() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.first + uint64(len(f.log))
}

// read copies changes from at on into buf, at most cap(buf). If there are none it
// returns a channel that is closed when there are.
func (f *feed) read(at uint64, buf []Event) ([]Event, <-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	end := f.first + uint64(len(f.log))
	switch {
	case at < f.first || at > end:
		return nil, nil, errBehind
	case at == end:
		if f.more == nil {
			f.more = make(chan struct{})
		}
		return nil, f.more, nil
	}
	from := f.log[at-f.first:]
	return append(buf[:0], from[:min(len(from), cap(buf))]...), nil, nil
}

// watch is the Watch of an engine that has a feed. snapshot tells all that is in
// the directory at some time between its beginning and its end.
func (f *feed) watch(ctx context.Context, q WatchQuery, snapshot func(tell func([]Event) error) error, tell func([]Event) error) error {
	at, ok := f.parse(q.Since)
	if ok {
		_, _, err := f.read(at, nil)
		ok = err == nil
	}
	buf := make([]Event, 0, eventsAtOnce)
	beat := time.NewTicker(WatchBeat)
	defer beat.Stop()
	for tries := 0; ; tries++ {
		if !ok {
			// Changes during the snapshot are told after it, a second time if need be:
			// each event says all about its stream or node, so that the last one counts.
			if tries > 3 {
				return fmt.Errorf("watch the directory: %w: changes come faster than they are taken", ErrUnavailable)
			}
			at = f.end()
			if err := tell([]Event{{Reset: true}}); err != nil {
				return err
			}
			if err := snapshot(tell); err != nil {
				return err
			}
		}
		for {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			events, more, err := f.read(at, buf)
			if err != nil {
				break // the log has moved past this watcher
			}
			at += uint64(len(events))
			if len(events) > 0 {
				if events = selectRole(events, q.Role); len(events) > 0 {
					if err := tell(events); err != nil {
						return err
					}
				}
				continue
			}
			if err := tell([]Event{{Synced: f.mark(at)}}); err != nil {
				return err
			}
			tries = 0
			select {
			case <-more:
			case <-beat.C:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		ok = false
	}
}

// selectRole drops the nodes of other roles, in place. That a node left is told
// whatever it was.
func selectRole(events []Event, role Role) []Event {
	if role == "" {
		return events
	}
	kept := events[:0]
	for _, e := range events {
		if e.Node == nil || e.Node.Role == role {
			kept = append(kept, e)
		}
	}
	return kept
}
