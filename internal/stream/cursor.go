package stream

import "math"

// Cursor is one reader's place in a log: a position and the headers that the
// reader has. It starts nothing, holds nothing up, and needs no closing unless it
// holds its place (see Hold). It belongs to its reader and is not safe for concurrent use,
// and not to be copied while it has tags (see Release); the zero value is not usable.
type Cursor struct {
	s       *Stream
	next    uint64   // sequence number of the entry to read; written with s.mu held for reading at least
	headers *Headers // that the reader has; nil until it got an entry
	skipped uint64
	seeking bool   // waits for the first join point at or after next
	lent    bool   // what Next has returned is not released
	holds   bool   // its place; see Hold
	time    uint32 // of the entry read last or, before one was, of the call of Hold; valid if it holds
}

// Run is a piece of the log: consecutive entries.
type Run struct {
	// Headers, when not nil, must be sent before the first entry, at its time:
	// the reader has just been placed there and lacks them.
	Headers *Headers
	// Entries shares memory with the buffer given to Next.
	Entries []Entry
}

// Join returns a cursor on the newest join point or, if the log has none, on
// the first one to come.
func (s *Stream) Join() *Cursor {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := &Cursor{s: s}
	c.place()
	return c
}

// Ages of join points in ms: who joins by JoinOverlapping may lack one that is fresh, and
// does not begin with one that is old.
const (
	fresh = 250
	old   = 3500
)

// JoinOverlapping is Join for who carries the stream on to readers that have had it from
// somewhere else until a moment ago: they go on without a break if they recognise a frame
// (Publisher.Resume), so a newest join point that they cannot have had yet is no place to
// begin. If it is that fresh, by the log's time, the cursor is on the one before, unless
// that is old.
func (s *Stream) JoinOverlapping() *Cursor {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := &Cursor{s: s}
	c.place()
	if c.seeking || s.prev < s.head || s.prev >= s.next || s.age(s.mark) >= fresh || s.age(s.prev) > old {
		return c
	}
	c.next = s.prev
	return c
}

// age returns how many ms of the log are behind entry n. s.mu is held.
func (s *Stream) age(n uint64) int32 {
	return int32(s.timeline.last - s.ring[n&uint64(len(s.ring)-1)].time)
}

// place puts the cursor on the newest join point. s.mu is held for reading.
func (c *Cursor) place() {
	if c.s.hasMark() {
		c.next, c.seeking = c.s.mark, false
	} else {
		c.next, c.seeking = c.s.next, true
	}
}

// Next copies the entries that follow into buf and moves on. It never waits:
// an empty run means that there is nothing now (see Stream.Subscribe). At the
// end of a closed stream it returns the cause of closing. The tags are the reader's to
// read until Release.
//
// A cursor whose entry has left the log continues at the newest join point; the
// run then begins with the headers of that place if they differ from those
// that the reader had, and Skipped has grown.
func (c *Cursor) Next(buf []Entry) (Run, error) { return c.NextUntil(buf, math.MaxUint64) }

// NextUntil is Next that stops before entry end, as if nothing were there yet.
func (c *Cursor) NextUntil(buf []Entry, end uint64) (Run, error) {
	s := c.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	c.settle(end)
	mask := uint64(len(s.ring) - 1)
	if c.next == s.next {
		return Run{}, s.closed
	}
	if c.seeking || len(buf) == 0 || c.next >= end {
		return Run{}, nil
	}
	var r Run
	if first := &s.ring[c.next&mask]; c.headers == nil || (first.Headers != c.headers && !first.Info.IsHeader()) {
		r.Headers = first.Headers
		c.headers = first.Headers
	}
	n := 0
	for n < len(buf) && c.next < min(s.next, end) {
		buf[n] = s.ring[c.next&mask]
		n++
		c.next++
	}
	c.headers, c.time = buf[n-1].Headers, buf[n-1].time
	if !c.lent {
		c.lent = true
		s.readers.Add(1)
	}
	r.Entries = buf[:n]
	return r, nil
}

// Release gives back the tags of all entries that were read, for their memory to be used
// again once they have left the log; their headers stay the reader's. One that does not
// call it costs the log the reuse of its memory from then on, and nothing else.
func (c *Cursor) Release() {
	if c.lent {
		c.lent = false
		c.s.readers.Add(-1)
	}
}

// Hold has the log keep what comes after the cursor's place for MaxTime, if it is that far
// behind, until LetGo: without, MinTime is all that is sure. Cursors that may be behind
// for longer than moments hold their places.
func (c *Cursor) Hold() {
	if c.holds {
		return
	}
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	c.holds, c.time = true, s.timeline.last
	if s.holds == nil {
		s.holds = map[*Cursor]struct{}{}
	}
	s.holds[c] = struct{}{}
	s.heldFrom = min(s.heldFrom, c.next)
}

// LetGo ends Hold. It may be called without.
func (c *Cursor) LetGo() {
	if !c.holds {
		return
	}
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	c.holds = false
	delete(s.holds, c)
}

// Settle moves a cursor that has not read yet to its join point, if that is
// before entry end, and returns where it is. Next then begins there.
func (c *Cursor) Settle(end uint64) (seq uint64, ok bool) {
	c.s.mu.RLock()
	defer c.s.mu.RUnlock()
	c.settle(end)
	return c.next, !c.seeking && c.next < min(c.s.next, end)
}

// settle puts the cursor on an entry that is in the log and, if it seeks, on a
// join point before end. s.mu is held for reading.
func (c *Cursor) settle(end uint64) {
	s := c.s
	if c.next < s.head {
		c.fellBehind()
	}
	mask := uint64(len(s.ring) - 1)
	for c.seeking && c.next < min(s.next, end) {
		if s.ring[c.next&mask].joinable {
			c.seeking = false
		} else {
			c.pass(c.next + 1)
		}
	}
}

// fellBehind handles a cursor whose entry was dropped. s.mu is held for reading.
func (c *Cursor) fellBehind() {
	if c.seeking {
		c.pass(c.s.head)
		return
	}
	c.jump()
}

// Jump moves the cursor forward to the newest join point, if that is ahead of
// it, and returns the number of entries passed over. A reader that is too far
// behind calls it between two tags.
func (c *Cursor) Jump() uint64 {
	c.s.mu.RLock()
	defer c.s.mu.RUnlock()
	if c.seeking || (c.next >= c.s.head && !(c.s.hasMark() && c.s.mark > c.next)) {
		return 0
	}
	return c.jump()
}

func (c *Cursor) jump() uint64 { // s.mu is held for reading
	from := c.next
	c.place()
	to := c.next
	c.next = from
	c.pass(to)
	return to - from
}

// pass moves on without reading. What passes before the first entry was read
// was never promised and is not counted.
func (c *Cursor) pass(to uint64) {
	if c.headers != nil {
		c.skipped += to - c.next
	}
	c.next = to
}

// Skipped returns the number of entries that the reader lost by falling behind
// or jumping, those passed over in search of the join point after it included.
func (c *Cursor) Skipped() uint64 { return c.skipped }

// Behind returns how far the cursor is behind the end of the log, in entries and
// in milliseconds of media time (at most what the log holds, unless it holds its place). A
// cursor that waits for a join point is not behind.
func (c *Cursor) Behind() (entries uint64, ms uint32) {
	c.s.mu.RLock()
	defer c.s.mu.RUnlock()
	if c.seeking || c.next >= c.s.next {
		return 0, 0
	}
	at, mask := max(c.next, c.s.head), uint64(len(c.s.ring)-1)
	if at == c.s.next {
		return c.s.next - c.next, 0
	}
	since := c.s.ring[at&mask].time
	if c.next < c.s.head && c.holds {
		since = c.time
	}
	return c.s.next - c.next, uint32(max(int32(c.s.timeline.last-since), 0))
}

// Tail returns a cursor on the next entry to come, for a reader that has the
// headers in force.
func (s *Stream) Tail() *Cursor {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return &Cursor{s: s, next: s.next, headers: s.headers}
}

// End returns the number of the entry that comes next.
func (s *Stream) End() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.next
}

// At returns a cursor that continues at entry seq (see Seq), for a reader that
// has the headers h, which may be nil.
func (s *Stream) At(seq uint64, h *Headers) *Cursor {
	return &Cursor{s: s, next: seq, headers: h}
}

// Seq returns the sequence number of the entry that the cursor stands before.
// Entries are numbered from 0 in the order in which they were appended.
func (c *Cursor) Seq() uint64 { return c.next }

// Seeking reports whether the cursor waits for a join point: it has not been
// placed yet, or it fell behind a log that has none.
func (c *Cursor) Seeking() bool { return c.seeking }

// Headers returns the headers that the reader has, nil before its first entry.
func (c *Cursor) Headers() *Headers { return c.headers }
