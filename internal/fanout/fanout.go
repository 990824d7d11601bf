// Package fanout writes logs to players. A player is a cursor on a stream and a
// connection in one of the formats; whoever adds it gets told once, when it is
// over and why.
//
// The interface promises no goroutine per player: Add returns at once, what has
// to be said in between goes through Inject, and the end comes as a call of Done.
package fanout

import (
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weir/internal/media"
	"weir/internal/stream"
)

// Reason says why a player's session ended. The words are those of logs and of
// the label "reason" in metrics.
type Reason string

// The reasons.
const (
	Ended    Reason = "stream_ended" // the stream was closed; all of it was sent
	Left     Reason = "left"         // the player closed the connection
	TooSlow  Reason = "too_slow"     // no progress for the write timeout
	Kicked   Reason = "kicked"       // an operator asked for it
	Shutdown Reason = "shutdown"     // the node stops
	Failed   Reason = "write_error"  // the connection broke
)

// Limits are what a player may cost.
type Limits struct {
	// MaxLag is the media time that a player may be behind the newest frame
	// before it jumps to the newest key frame.
	MaxLag time.Duration
	// WriteTimeout is how long a player may take no byte before it is cut; one
	// that takes a little now and then is cut only after up to twice that time
	// without a byte.
	WriteTimeout time.Duration
}

// Result is the outcome of one player's session.
type Result struct {
	Reason  Reason
	Err     error  // what broke, or the cause that the stream was closed with
	Bytes   uint64 // written to the connection
	Skipped uint64 // tags that the player lost by being slow
}

// Player is what Add takes. All fields are read only after Add.
//
// The fan-out only writes to Conn. Whoever adds a player reads from it: a player
// that leaves while its stream stalls is noticed by nobody else, who then calls
// End or EndGently.
type Player struct {
	Conn   net.Conn
	Cursor *stream.Cursor
	Stream *stream.Stream // that Cursor reads
	Format Format
	Limits Limits
	// Farewell is written when the stream has ended and all of it was sent. It
	// may be nil. The sending side is closed behind it, and the connection when
	// End is called or after 2 s: one that is closed at once while the player
	// still has something to say is reset, which can eat what it has not read.
	Farewell []byte
	// Done is called once, after the connection was closed, in a goroutine of the
	// engine. It must not call Engine.Close.
	Done func(Result)
}

// Engine writes to its players. Its methods are safe for concurrent use. The
// zero value is ready.
type Engine struct {
	mu       sync.Mutex
	sessions map[*Session]struct{} // guarded by mu
	closed   bool                  // guarded by mu
	running  sync.WaitGroup
}

// Session is one player while it plays.
type Session struct {
	// Static.
	p    Player
	wake chan struct{} // capacity 1
	gone chan struct{} // closed by the first End

	bytes   atomic.Uint64
	skipped atomic.Uint64

	mu     sync.Mutex
	inject []byte // guarded by mu; to be written at the next tag boundary
	reason Reason // guarded by mu; why the session ends, once that is sure
	ended  bool   // guarded by mu; End was called
	wish   wish   // guarded by mu
}

// wish is what a player wants of its stream.
type wish struct {
	leave  Reason // set to end at the next tag boundary
	paused bool
	muted  muted
}

// muted says which kinds are left out.
type muted struct{ audio, video bool }

// ErrClosed is returned by Add once the engine was closed.
var ErrClosed = errors.New("fan-out is closed")

// Add starts writing to a player. The engine owns the connection from then on,
// also when it fails.
func (e *Engine) Add(p Player) (*Session, error) {
	s := &Session{p: p, wake: make(chan struct{}, 1), gone: make(chan struct{})}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		p.Conn.Close()
		return nil, ErrClosed
	}
	if e.sessions == nil {
		e.sessions = map[*Session]struct{}{}
	}
	e.sessions[s] = struct{}{}
	e.running.Add(1)
	e.mu.Unlock()
	go func() {
		defer e.running.Done()
		r := s.run()
		e.mu.Lock()
		delete(e.sessions, s)
		e.mu.Unlock()
		p.Done(r)
	}()
	return s, nil
}

// Len returns the number of players.
func (e *Engine) Len() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.sessions)
}

// Close ends all sessions with Shutdown and waits for their Done.
func (e *Engine) Close() {
	e.mu.Lock()
	e.closed = true
	all := slices.Collect(maps.Keys(e.sessions))
	e.mu.Unlock()
	for _, s := range all { // not under the lock: closing a connection may take its time
		s.End(Shutdown)
	}
	e.running.Wait()
}

// maxInject bounds what a player may make the server owe it.
const maxInject = 64 << 10

// Inject has bytes written at the next tag boundary, such as the answer to a
// ping. A player that makes the server owe more than it reads is cut.
func (s *Session) Inject(b []byte) {
	s.mu.Lock()
	over := len(s.inject)+len(b) > maxInject
	if !over {
		s.inject = append(s.inject, b...)
	}
	s.mu.Unlock()
	if over {
		s.End(TooSlow)
		return
	}
	s.poke()
}

// Pause stops sending media or, with false, goes on: at the newest key frame if
// one has come meanwhile, else where it stopped. What passes during a pause does
// not count as skipped.
func (s *Session) Pause(on bool) {
	s.mu.Lock()
	s.wish.paused = on
	s.mu.Unlock()
	s.poke()
}

// Mute leaves out the frames of a kind, or sends them again: audio at once,
// video from the next key frame on. Decoder headers are sent all the same.
func (s *Session) Mute(kind media.Kind, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch kind {
	case media.Audio:
		s.wish.muted.audio = on
	case media.Video:
		s.wish.muted.video = on
	}
}

// End closes the connection; Done gets the reason. Only the first call counts,
// and none after the session's own end.
func (s *Session) End(why Reason) {
	s.settle(why)
	s.mu.Lock()
	first := !s.ended
	s.ended = true
	s.mu.Unlock()
	if first {
		close(s.gone)
		s.p.Conn.Close()
		s.poke()
	}
}

// EndGently is End for a player that takes part in it: what was given to Inject
// before is written first, behind the tag that is on its way. The write timeout
// bounds that.
func (s *Session) EndGently(why Reason) {
	s.mu.Lock()
	if s.wish.leave == "" {
		s.wish.leave = why
	}
	s.mu.Unlock()
	s.poke()
}

// Bytes returns what was written so far.
func (s *Session) Bytes() uint64 { return s.bytes.Load() }

// Skipped returns the tags that the player lost so far by being slow.
func (s *Session) Skipped() uint64 { return s.skipped.Load() }

func (s *Session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
