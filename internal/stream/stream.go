// Package stream is the log at the heart of weir: a short, bounded run of
// immutable FLV tags. One publisher appends, any number of cursors read. There
// is no queue, no copy and no goroutine per reader: late join, falling behind
// and resuming are all "put the cursor on a join point".
//
// A join point is an entry at which decoding can start: a key frame of the main
// video track (the one with the smallest number), or any audio frame while the
// publisher has sent no video or stopped sending it. Decoder headers are not
// frames but state, so each entry points at the headers in force there.
package stream

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"weir/internal/media"
)

// ErrBusy says that a stream has a publisher already.
var ErrBusy = errors.New("stream has a publisher")

// ErrClosed is the error of readers and publishers of a stream that ended
// without a more exact cause.
var ErrClosed = errors.New("stream closed")

// Limits bound the log of one stream.
type Limits struct {
	// MaxBytes bounds the memory of the log, bookkeeping included. It is hard:
	// a group of pictures that is larger loses its beginning, and a reader that
	// joins then waits for the next key frame.
	MaxBytes int64
	// MaxTime is how much media time, up to the newest frame, is kept for
	// readers that are behind. The entries from the newest join point on are
	// kept however long they are, within MaxBytes.
	MaxTime time.Duration
	// MinTime is how much of that is kept if no reader that holds its place is
	// behind (see Cursor.Hold); MaxTime if 0.
	MinTime time.Duration
}

// DefaultLimits are 32 MiB and 5 s.
func DefaultLimits() Limits { return Limits{MaxBytes: 32 << 20, MaxTime: 5 * time.Second} }

// Entry is one tag of the log with what is known about it. Nothing that it
// points to changes, as long as the cursor that it came from has not released it.
type Entry struct {
	Tag  media.Tag
	Info media.Info
	// Headers are the decoder headers in force at this entry; never nil. When
	// the entry is itself a header it is among them (if its bounds allow).
	Headers *Headers

	joinable bool
	time     uint32 // of Tag, which has left the processor's caches when it is dropped
}

// entryCost is the memory of one place in the ring.
const entryCost = int64(unsafe.Sizeof(Entry{}))

// cost is the memory that belongs to e outside of the ring.
func (e *Entry) cost() int64 {
	n := int64(cap(e.Tag))
	if e.Info.IsHeader() {
		n += e.Headers.cost()
	}
	return n
}

// Stream is a log. All methods are safe for concurrent use.
type Stream struct {
	limits Limits

	mu   sync.RWMutex
	ring []Entry // guarded by mu; length is a power of two; entry n is at n & (len-1)
	head uint64  // guarded by mu; sequence number of the oldest entry
	next uint64  // guarded by mu; sequence number of the entry to come
	cost int64   // guarded by mu; memory of the ring and of all entries
	size int64   // guarded by mu; bytes of the tags of all entries
	mark uint64  // guarded by mu; newest join point; none in the log when mark < head or mark >= next
	prev uint64  // guarded by mu; the join point before it, likewise

	holds    map[*Cursor]struct{} // guarded by mu; those that hold their places
	heldFrom uint64               // guarded by mu; what is held is at or behind it

	timeline  timeline          // guarded by mu
	headers   *Headers          // guarded by mu; in force at next; never nil
	publisher *Publisher        // guarded by mu; nil between publishers
	closed    error             // guarded by mu; not nil once closed
	wakers    []chan<- struct{} // guarded by mu

	readers atomic.Int32 // cursors with tags that are not released; grows with mu held only

	bytesIn atomic.Uint64
	tagsIn  atomic.Uint64
	keysIn  atomic.Uint64
}

// New returns an empty stream.
func New(limits Limits) *Stream {
	return &Stream{
		limits:   limits,
		ring:     make([]Entry, minRing),
		cost:     minRing * entryCost,
		mark:     ^uint64(0),
		prev:     ^uint64(0),
		heldFrom: ^uint64(0),
		headers:  &Headers{},
	}
}

// Publisher is the single writer of a stream, from Publish to Close.
type Publisher struct {
	s *Stream

	// Guarded by s.mu.
	video    videoTrack // decides which entries are join points
	resume   resume
	held     []heldTag                      // headers that came while matching
	waiting  bool                           // waitFrom is valid
	waitFrom uint32                         // source time of the first audio frame that came while matching
	passed   [2]bool                        // audio, video: frames that the log has not have come
	gone     func(t media.Tag, unused bool) // see Recycle; may be nil
}

// Publish makes the caller the stream's writer. It fails with ErrBusy while
// there is another one, and with the cause of closing on a closed stream. The
// timeline goes on from where the publisher before left it.
func (s *Stream) Publish() (*Publisher, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return nil, s.closed
	}
	if s.publisher != nil {
		return nil, ErrBusy
	}
	p := &Publisher{s: s}
	s.publisher = p
	p.restart()
	return p, nil
}

// Recycle has tags that leave the log given to gone, and whether they are unused: nobody
// reads them any more, so that their memory is free. That goes for those that were appended
// before, too; each comes once. gone is called by Append, with the log locked: it must not
// use the stream.
func (p *Publisher) Recycle(gone func(t media.Tag, unused bool)) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.gone = gone
}

// Append adds a tag to the log and wakes the readers. The tag must not be used
// by the caller afterwards, except for reading if Recycle was not called; its time is
// rewritten to the stream's continuous timeline first. Append never waits for a reader. It
// fails once the publisher or the stream is closed.
func (p *Publisher) Append(t media.Tag) error {
	info := media.Sniff(t.Kind(), t.Body())
	s := p.s
	s.mu.Lock()
	if s.publisher != p {
		err := s.closed
		s.mu.Unlock()
		if err == nil {
			err = ErrClosed
		}
		return err
	}
	switch {
	case p.resume == resumed || p.isNew(info, t):
		p.append(info, t)
	case p.gone != nil && p.resume != matching: // a header might be held
		p.gone(t, true)
	}
	for _, w := range s.wakers {
		select {
		case w <- struct{}{}:
		default: // already told
		}
	}
	s.mu.Unlock()
	return nil
}

// append adds what belongs into the log. s.mu is held.
func (p *Publisher) append(info media.Info, t media.Tag) {
	s := p.s
	e := Entry{Tag: t, Info: info, time: s.timeline.place(info, t.Time())}
	t.SetTime(e.time)
	switch {
	case info.Flags&media.Malformed != 0: // starts nothing and proves nothing
	case info.IsHeader():
		s.headers = s.headers.with(info, t)
		if info.Kind == media.Video {
			p.video.saw(&s.timeline)
		}
	case info.Kind == media.Video:
		e.joinable = p.video.joinable(info)
		p.video.saw(&s.timeline)
	case info.Kind == media.Audio:
		e.joinable = !info.Has(media.EndOfSequence) && p.video.gone(&s.timeline)
	}
	e.Headers = s.headers
	s.push(e)

	s.bytesIn.Add(uint64(len(t)))
	s.tagsIn.Add(1)
	if info.IsKeyFrame() {
		s.keysIn.Add(1)
	}
}

// Restart tells the log that what comes next is from another source: decoder
// headers start anew, and the timeline goes on from its last value whatever
// the source's clock says.
func (p *Publisher) Restart() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.s.publisher == p {
		p.restart()
	}
}

func (p *Publisher) restart() { // s.mu is held
	p.resume, p.held = resumed, nil
	p.s.timeline.restart()
	p.s.headers = &Headers{}
	p.video = videoTrack{}
}

// Close gives the stream up for another publisher. The log and its readers
// stay. It may be called more than once.
func (p *Publisher) Close() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.s.publisher == p {
		p.s.publisher = nil
	}
}

// push appends e and drops what the limits no longer allow. s.mu is held.
func (s *Stream) push(e Entry) {
	if s.next-s.head == uint64(len(s.ring)) {
		if s.cost+e.cost()+int64(len(s.ring))*entryCost <= s.limits.MaxBytes {
			s.resize(2 * len(s.ring))
		} else {
			s.drop()
		}
	}
	s.ring[s.next&uint64(len(s.ring)-1)] = e
	s.cost += e.cost()
	s.size += int64(len(e.Tag))
	if e.joinable {
		s.prev, s.mark = s.mark, s.next
	}
	s.next++

	for s.head < s.next && s.cost > s.limits.MaxBytes {
		s.drop()
	}
	if s.mark < s.next { // without a join point bytes alone decide
		s.expire()
	}
	// An eighth, so that a log that swings by a group of pictures stays as it is.
	if len(s.ring) > minRing && s.next-s.head <= uint64(len(s.ring)/8) {
		s.resize(len(s.ring) / 2)
	}
}

// expire drops what is older than its time, in front of the newest join point. s.mu is held.
func (s *Stream) expire() {
	for s.head < s.mark && s.outdated(s.limits.MaxTime) {
		s.drop()
	}
	if s.limits.MinTime == 0 || s.head >= s.mark || !s.outdated(s.limits.MinTime) {
		return
	}
	for from := s.wanted(); s.head < from && s.outdated(s.limits.MinTime); {
		s.drop()
	}
}

// outdated reports whether the oldest entry is older than most. s.mu is held.
func (s *Stream) outdated(most time.Duration) bool {
	age := int64(s.age(s.head))
	// A header that came before the first frame can have any time.
	return age > most.Milliseconds() || age < -maxBack
}

const (
	late  = 1000 // ms that a source may be behind the one before it, for its first frame to be still in the log
	again = 16   // entries after which it is looked again where those are that hold a place
)

// wanted returns the oldest entry, up to the newest join point, that somebody may want: who
// holds a place, who joins by JoinOverlapping, and a publisher that goes on from another
// source (Resume): one that is behind has the join point before only. s.mu is held.
func (s *Stream) wanted() uint64 {
	if s.next%again == 0 {
		s.look()
	}
	at := min(s.mark, s.heldFrom)
	if s.prev >= s.head && s.age(s.mark) < late {
		at = min(at, s.prev)
	}
	return at
}

// look finds the first of the places that are held. Who read what has left the log goes on
// at the newest join point. s.mu is held.
func (s *Stream) look() {
	s.heldFrom = ^uint64(0)
	for c := range s.holds {
		at := c.next
		if at < s.head && !c.seeking {
			at = s.mark
		}
		s.heldFrom = min(s.heldFrom, at)
	}
}

func (s *Stream) drop() { // s.mu is held
	e := &s.ring[s.head&uint64(len(s.ring)-1)]
	s.cost -= e.cost()
	s.size -= int64(len(e.Tag))
	if p := s.publisher; p != nil && p.gone != nil {
		p.gone(e.Tag, s.readers.Load() == 0)
	}
	*e = Entry{}
	s.head++
}

// minRing is the smallest length of a ring, a power of two.
const minRing = 64

func (s *Stream) resize(length int) { // s.mu is held; the entries fit
	ring := make([]Entry, length)
	for n := s.head; n < s.next; n++ {
		ring[n&uint64(len(ring)-1)] = s.ring[n&uint64(len(s.ring)-1)]
	}
	s.cost += int64(length-len(s.ring)) * entryCost
	s.ring = ring
}

// Close ends the stream: readers get what is left of the log and then cause
// (ErrClosed if nil), and nobody can publish any more. Only the first call
// counts.
func (s *Stream) Close(cause error) {
	if cause == nil {
		cause = ErrClosed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return
	}
	s.closed = cause
	s.publisher = nil
	for _, w := range s.wakers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// Subscribe makes the stream send on w, without waiting, after each append and
// at its end. Give w a capacity of one; one channel may serve many cursors and
// many streams.
func (s *Stream) Subscribe(w chan<- struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wakers = append(s.wakers, w)
}

// Unsubscribe ends one Subscribe of w.
func (s *Stream) Unsubscribe(w chan<- struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, o := range s.wakers {
		if o == w {
			last := len(s.wakers) - 1
			s.wakers[i] = s.wakers[last]
			s.wakers[last] = nil
			s.wakers = s.wakers[:last]
			return
		}
	}
}

// Headers returns the decoder headers in force at the end of the log.
func (s *Stream) Headers() *Headers {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.headers
}

// Joinable reports whether the log holds a join point, so that a reader that
// comes now gets a frame at once.
func (s *Stream) Joinable() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.hasMark()
}

func (s *Stream) hasMark() bool { return s.mark >= s.head && s.mark < s.next } // s.mu is held

// Stats is a look at a stream's counters.
type Stats struct {
	BytesIn    uint64        // sum of the tags appended, FLV framing included
	TagsIn     uint64        // tags appended
	KeyFrames  uint64        // of them video key frames
	LogBytes   int64         // memory held by the log now
	LogTime    time.Duration // media time that the log covers
	Bitrate    uint64        // bits per second of the tags in the log; 0 while it is shorter than a second
	Publishing bool          // a publisher is there
	LastTime   uint32        // largest time of a frame in ms; 0 while the log is empty
}

// Stats returns the counters; they are read one by one, not as of one moment.
func (s *Stream) Stats() Stats {
	st := Stats{BytesIn: s.bytesIn.Load(), TagsIn: s.tagsIn.Load(), KeyFrames: s.keysIn.Load()}
	s.mu.RLock()
	defer s.mu.RUnlock()
	st.LogBytes = s.cost
	st.Publishing = s.publisher != nil
	if s.next > s.head {
		oldest := s.ring[s.head&uint64(len(s.ring)-1)].time
		st.LogTime = max(0, time.Duration(int32(s.timeline.last-oldest))*time.Millisecond)
		st.LastTime = s.timeline.last
	}
	if st.LogTime >= time.Second {
		st.Bitrate = uint64(float64(8*s.size) / st.LogTime.Seconds())
	}
	return st
}
