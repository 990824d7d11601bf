package fanout

import (
	"math"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"weir/internal/media"
	"weir/internal/stream"
)

// Session is one player while it plays. What a send touches comes first, in one line of
// the cache: of thousands of players' none is still there when its turn comes. All of it
// is three lines, of which the allocator keeps the bounds.
type Session struct {
	bytes atomic.Uint64
	raw   syscall.RawConn // the socket; below TLS, to be looked at only; nil if that is not known; static after Add
	fd    int32           // the engine's own descriptor, -1 if it has none: its owner alone closes it; static after Add

	// Owned by whoever has the session: its shard, or its chaser.
	at       int32         // index among the group's players, -1 outside of it
	unsent   int32         // TCP_NOTSENT_LOWAT of the socket
	heard    atomic.Uint32 // bytes, up to the largest number; the reader's
	group    *group
	skipBase uint64         // tags lost before cursor
	cursor   *stream.Cursor // where a chaser goes on

	// Static after Add.
	e     *Engine
	p     terms
	shard *shard // nil if the connection cannot be written to directly
	id    uint64 // in the engine

	skipped atomic.Uint64
	watched atomic.Bool // by the reader
	started bool        // the player has got the beginning of its format; of whoever has the session
	urgent  bool        // static after Add

	place  place  // guarded by mu
	mailed bool   // guarded by mu; it lies in the shard's mail
	asked  *asked // guarded by mu; nil while nothing is: see ask
	mu     sync.Mutex
}

// terms are what a session keeps of a Player.
type terms struct {
	Conn     net.Conn
	Stream   *stream.Stream
	Format   Format
	Limits   *Limits // the same for all that have the same
	Read     func(s *Session, b []byte) bool
	Farewell func(cause error) []byte
	Done     func(Result)
}

// asked is what was asked of a session, and how its chaser hears of it: little of it
// happens to most players before their end.
type asked struct {
	signals *signals // of the chaser, nil while there is none
	inject  []byte   // to be written at the next tag boundary
	reason  Reason   // why the session ends, once that is sure
	wish    wish
	ended   bool // End was called
}

// ask returns what was asked of the session, for something to be added. s.mu is held.
func (s *Session) ask() *asked {
	if s.asked == nil {
		s.asked = new(asked)
	}
	return s.asked
}

// isEnded reports whether End was called. s.mu is held.
func (s *Session) isEnded() bool { return s.asked != nil && s.asked.ended }

// forget drops the memory of what was asked, if nothing is any more. s.mu is held.
func (s *Session) forget() {
	if a := s.asked; a != nil && a.signals == nil && len(a.inject) == 0 && a.reason == "" && !a.wish.special() && !a.ended {
		s.asked = nil
	}
}

// place says who has a session.
type place uint8

const (
	arriving place = iota // in the shard's mail, new or back from its chaser
	sharded               // with the healthy or the waiting players of its group
	chased                // a goroutine of its own writes
	over                  // the connection is closed
)

// wish is what a player wants of its stream.
type wish struct {
	leave  Reason // set to end at the next tag boundary
	paused bool
	muted  muted
}

// special reports a wish that makes the player's bytes differ from the others'.
func (w wish) special() bool { return w != wish{} }

// muted says which kinds are left out.
type muted struct{ audio, video bool }

// maxInject bounds what a player may make the server owe it.
const maxInject = 16 << 10

// Inject has bytes written at the next tag boundary, such as the answer to a
// ping. A player that makes the server owe more than it reads is cut.
func (s *Session) Inject(b []byte) {
	s.mu.Lock()
	asked := s.ask()
	over := len(asked.inject)+len(b) > maxInject
	if !over {
		asked.inject = append(asked.inject, b...)
	}
	slow := s.place == chased
	s.mu.Unlock()
	if over {
		s.End(TooSlow)
		return
	}
	if slow {
		s.e.cut(s.e.debts.oweMore(s, len(b)))
	}
	s.attend()
}

// Pause stops sending media or, with false, goes on: at the newest key frame if
// one has come meanwhile, else where it stopped. What passes during a pause does
// not count as skipped.
func (s *Session) Pause(on bool) {
	s.mu.Lock()
	s.ask().wish.paused = on
	s.mu.Unlock()
	s.attend()
}

// Mute leaves out the frames of a kind, or sends them again: audio at once,
// video from the next key frame on. Decoder headers are sent all the same.
func (s *Session) Mute(kind media.Kind, on bool) {
	s.mu.Lock()
	switch kind {
	case media.Audio:
		s.ask().wish.muted.audio = on
	case media.Video:
		s.ask().wish.muted.video = on
	}
	s.mu.Unlock()
	s.attend()
}

// End closes the connection; Done gets the reason. Only the first call counts,
// and none after the session's own end.
func (s *Session) End(why Reason) {
	why = s.settle(why)
	s.mu.Lock()
	asked := s.ask()
	first := !asked.ended
	asked.ended = true
	if first && asked.signals != nil {
		close(asked.signals.gone)
	}
	wait := s.fd >= 0 && (s.place == arriving || s.place == sharded)
	if first && s.fd >= 0 && !wait {
		s.close(why) // under the lock: the shard must not get it back before
	}
	s.mu.Unlock()
	if first {
		if s.fd < 0 {
			s.close(why)
		}
		s.attend()
	}
}

// EndGently is End for a player that takes part in it: what was given to Inject
// before is written first, behind the tag that is on its way. The write timeout
// bounds that. With Moved the player gets 2 s to read it and close.
func (s *Session) EndGently(why Reason) {
	s.mu.Lock()
	if wish := &s.ask().wish; wish.leave == "" {
		wish.leave = why
	}
	s.mu.Unlock()
	s.attend()
}

// Bytes returns what was written so far.
func (s *Session) Bytes() uint64 { return s.bytes.Load() }

// Heard returns how many bytes the player has sent to Read, 4 GiB at most; those that
// Read has just got included.
func (s *Session) Heard() int { return int(s.heard.Load()) }

// hear gives Read what the player has sent.
func (s *Session) hear(b []byte) bool {
	s.heard.Store(uint32(min(uint64(s.heard.Load())+uint64(len(b)), math.MaxUint32)))
	return s.p.Read(s, b)
}

// Skipped returns the tags that the player lost so far by being slow.
func (s *Session) Skipped() uint64 { return s.skipped.Load() }

// attend makes whoever has the session look at what was asked of it.
func (s *Session) attend() {
	s.mu.Lock()
	place := s.place
	var wake chan struct{}
	if place == chased {
		wake = s.asked.signals.wake
	}
	s.mu.Unlock()
	switch place {
	case arriving, sharded:
		s.mail()
	case chased:
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// mail puts the session into its shard's mail.
func (s *Session) mail() {
	s.mu.Lock()
	already := s.mailed
	s.mailed = true
	s.mu.Unlock()
	if !already {
		s.shard.deliver(s)
	}
}

// move notes who has the session now.
func (s *Session) move(to place) {
	s.mu.Lock()
	s.place = to
	s.mu.Unlock()
}

func (s *Session) isOver() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.place == over
}

// take returns what was asked for since the last time.
func (s *Session) take() (inject []byte, w wish, reason Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.asked; a != nil {
		inject, w, reason = a.inject, a.wish, a.reason
		a.inject = nil
		s.forget()
	}
	return inject, w, reason
}

// settle makes why the reason unless there is one, and returns the reason.
func (s *Session) settle(why Reason) Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.ask()
	if asked.reason == "" {
		asked.reason = why
	}
	return asked.reason
}

// lose counts tags that the player lost, by whoever has the session.
func (s *Session) lose(n uint64) {
	if n > 0 {
		s.skipBase += n
		s.skipped.Store(s.skipBase)
		s.e.opt.OnJump(Passed)
	}
}

// finish closes the connection and ends the session, by whoever has it.
func (s *Session) finish(why Reason, err error) {
	s.move(over)
	if settled := s.settle(why); settled != why {
		why, err = settled, nil // the error only shows that it was ended
	}
	s.e.debts.paid(s)
	s.e.reader.remove(s)
	s.close(why)
	if s.group != nil && s.group.leave() {
		s.shard.nudge() // to drop the group
	}
	if s.cursor != nil {
		s.cursor.LetGo()
		s.cursor = nil
	}
	s.e.finish(s, Result{Reason: why, Err: err, Bytes: s.bytes.Load(), Skipped: s.skipped.Load()})
}

// close closes the connection. A descriptor of the engine's own may only be closed
// while no shard has the session.
func (s *Session) close(why Reason) {
	if why == TooSlow || why == SlowSum {
		// What lies in the socket would be kept for a peer that does not read.
		if c, ok := s.p.Conn.(interface{ SetLinger(seconds int) error }); ok {
			_ = c.SetLinger(0)
		}
	}
	_ = s.p.Conn.Close()
}

// readBlocking gives what the player sends to Read, for connections that the
// reader cannot watch. It ends with the connection.
func (s *Session) readBlocking() {
	var b [512]byte
	for {
		n, err := s.p.Conn.Read(b[:])
		if n > 0 && !s.hear(b[:n]) || err != nil {
			s.End(Left)
			return
		}
	}
}
