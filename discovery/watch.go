package discovery

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"
)

// Watcher is a directory that tells of its changes, so that who follows it has
// all of it at hand.
//
// Watch calls tell with events, in their order, one call at a time, until ctx
// ends, tell fails, or the directory cannot go on; it never returns nil, and an
// error that wraps none of this package's means that watching again may help. If
// q.Since is a mark of this directory from which it can go on, what follows are
// the changes after it; else the first event is a Reset and everything in the
// directory comes before the first Synced. A Synced comes at least once every
// WatchBeat from then on: as long as they do, what was told is all there is, but
// for the time that it takes to arrive. The events belong to tell; what they point
// to must not be changed.
//
// A watcher that takes events more slowly than they arise costs the directory no
// memory: it is told everything anew, or cut.
type Watcher interface {
	Watch(ctx context.Context, q WatchQuery, tell func([]Event) error) error
}

// WatchQuery says what a watcher wants to be told.
type WatchQuery struct {
	Since string // the last Synced of an earlier watch with the same Role, or empty
	Role  Role   // of the nodes; empty for all. Streams are not selected.
}

// WatchBeat is the longest time between two Synced events.
const WatchBeat = time.Second

// Event is one thing that a watcher is told. Exactly one field is set.
type Event struct {
	// Reset: what was told before is void. What is not told again before the next
	// Synced does not exist any more.
	Reset bool
	// Lease is in force now, in place of every earlier one of its stream. It is
	// told again when its address or its idle mark changes, but not when it is
	// renewed: it lasts until Ended, whatever its Expires says.
	Lease *Lease
	// Ended: nobody owns the stream.
	Ended *End
	// Kicked: an operator ended the ownerships of a stream up to an epoch, and perhaps
	// banned it. Of those before a Reset only bans in force are told again.
	Kicked *Kicked
	// Node lives, and says this about itself. It is told again at once when
	// anything but its load changes, and at most every two seconds for its load.
	Node *Node
	// Left is the id of a node that said goodbye or fell silent.
	Left string
	// Synced is a mark: all changes up to here have been told.
	Synced string

	wire *wireEvent // of a feed's events: the JSON form, made once for all watchers
}

// End says that the lease of a stream with that epoch has ended.
type End struct {
	Stream string `json:"stream"`
	Epoch  uint64 `json:"epoch"`
}

type wireEvent struct {
	once sync.Once
	line []byte
	err  error
}

type eventJSON struct {
	Reset  bool      `json:"reset,omitempty"`
	Lease  *Lease    `json:"lease,omitempty"`
	Ended  *End      `json:"ended,omitempty"`
	Kicked *Kicked   `json:"kicked,omitempty"`
	Node   *nodeJSON `json:"node,omitempty"`
	Left   string    `json:"left,omitempty"`
	Synced string    `json:"synced,omitempty"`
}

// line returns the event as one line of JSON with its end.
func (e *Event) line() ([]byte, error) {
	if e.wire == nil {
		return encode(e.json())
	}
	e.wire.once.Do(func() { e.wire.line, e.wire.err = encode(e.json()) })
	return e.wire.line, e.wire.err
}

func (e *Event) json() eventJSON {
	w := eventJSON{Reset: e.Reset, Lease: e.Lease, Ended: e.Ended, Kicked: e.Kicked, Left: e.Left, Synced: e.Synced}
	if e.Node != nil {
		n := e.Node.wire()
		w.Node = &n
	}
	return w
}

// parseEvent reads one line of a watch. What a later version may tell besides is an
// event without a field set.
func parseEvent(line []byte) (Event, error) {
	var w eventJSON
	if err := json.Unmarshal(line, &w); err != nil {
		return Event{}, fmt.Errorf("decode event: %w", err)
	}
	e := Event{Reset: w.Reset, Lease: w.Lease, Ended: w.Ended, Kicked: w.Kicked, Left: w.Left, Synced: w.Synced}
	set := 0
	for _, is := range []bool{w.Reset, w.Lease != nil, w.Ended != nil, w.Kicked != nil, w.Node != nil, w.Left != "", w.Synced != ""} {
		if is {
			set++
		}
	}
	if set > 1 {
		return Event{}, fmt.Errorf("decode event: %d members, want one", set)
	}
	var err error
	switch {
	case w.Lease != nil:
		err = w.Lease.check()
	case w.Ended != nil:
		err = CheckStream(w.Ended.Stream)
	case w.Kicked != nil:
		err = w.Kicked.check()
	case w.Node != nil:
		var n Node
		if n, err = w.Node.node(); err == nil {
			n.Seen = time.Now()
			e.Node, err = &n, n.check()
		}
	}
	if err != nil {
		return Event{}, fmt.Errorf("decode event: %w", err)
	}
	return e, nil
}
