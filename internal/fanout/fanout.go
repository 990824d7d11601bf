// Package fanout writes logs to players. A player is a connection on a stream in
// one of the formats; whoever adds it gets told once, when it is over and why.
//
// # How it works
//
// The cost of a player is the number of sends. So a healthy player has no
// goroutine and no queue: it is an entry in the slice of a shard. A shard is one
// goroutine; whenever it is due it reads what is new of each stream, makes the
// bytes of each format once, and gives them to every player of that group by one
// non-blocking send. How often it is due adapts (see pace): with few players each
// frame goes out at once, with many the batches grow.
//
// A player whose socket is full leaves the shard and gets a goroutine with a
// cursor of its own (see chaser), which writes with deadlines, jumps when it is
// too far behind, and hands the player back when it has caught up. The same
// goroutine serves what the shard cannot: connections without a socket that may be
// written to directly, and players that pause or mute.
package fanout

import (
	"errors"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weir/internal/stream"
)

// Reason says why a player's session ended. The words are those of logs and of
// the label "reason" in metrics.
type Reason string

// The reasons.
const (
	Ended    Reason = "stream_ended" // the stream was closed; all of it was sent
	Left     Reason = "left"         // the player closed the connection
	TooSlow  Reason = "too_slow"     // no progress, or no sign of life of its machine, for the write timeout
	SlowSum  Reason = "slow_bytes"   // the slow players together hold too much; this one had not read for the longest time
	Kicked   Reason = "kicked"       // an operator asked for it
	Shutdown Reason = "shutdown"     // the node stops
	Moved    Reason = "moved"        // the node drains, and the player was told to connect again
	Overload Reason = "overload"     // the node is full, and asked the player to leave
	Drained  Reason = "drained"      // the drain's time was over
	Failed   Reason = "write_error"  // the connection broke
)

// Jump says why a player went on at a newer key frame and lost what was before. The
// words are those of the label "reason" in metrics.
type Jump string

// The jumps.
const (
	Lagged Jump = "max_lag"       // the player was behind by more than it may be
	Passed Jump = "max_log_bytes" // the log had dropped what would have been next
)

// Limits are what a player may cost.
type Limits struct {
	// MaxLag is the media time that a player may be behind the newest frame
	// before it jumps to the newest key frame.
	MaxLag time.Duration
	// WriteTimeout is how long a player may take no byte before it is cut.
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
type Player struct {
	Conn   net.Conn
	Stream *stream.Stream
	Format Format
	Limits Limits
	// Urgent players do not wait for large batches: other nodes, whose own players'
	// wait comes on top. Their bound is 5 ms.
	Urgent bool
	// Read, if not nil, makes the engine read what the player sends and gives it
	// to Read, piece by piece; false ends the session with Left, as the player's
	// closing does. Read must not keep the slice and must not block. If it is nil
	// the caller reads: a player that leaves while its stream stalls is noticed by
	// nobody else, who then calls End or EndGently.
	Read func(s *Session, b []byte) bool
	// Farewell, if not nil, returns what is written when the stream has ended and all
	// of it was sent, by the cause that the stream was closed with. The sending side is
	// closed behind it, and the connection when End is called or after 2 s: one that is
	// closed at once while the player still has something to say is reset, which can
	// eat what it has not read.
	Farewell func(cause error) []byte
	// Done is called once, after the connection was closed, in a goroutine of the
	// engine. It must not call Engine.Close.
	Done func(Result)
}

// Options are what an Engine is made of.
type Options struct {
	// Shards is the number of goroutines that write; 0 means one for each core
	// that Go may use.
	Shards int
	// Slot is the number of this process's first shard among those of all processes of
	// the node, from 0 on, and Slots is how many those are; 0 means Shards. Shards of
	// different numbers do not send at the same time, as far as possible.
	Slot, Slots int
	// MaxLatency is how long a frame may wait for a batch; 0 sends each frame at
	// once, whatever that costs.
	MaxLatency time.Duration
	// MaxSlowBytes bounds the memory that is kept for all players together whose
	// sockets are full, in bytes; 0 is no bound. Over it those are cut that have
	// taken nothing for the longest time.
	MaxSlowBytes int64
	// Plain has no batches sent by io_uring, even where that can be had.
	Plain bool
	// Log gets what should never happen. Required.
	Log *slog.Logger
	// OnFlush, if not nil, is told after each round of a shard how late it was
	// against its plan, how long it took, how many times it sent, and by how many system
	// calls. It is called by the shards.
	OnFlush func(late, took time.Duration, sends, calls int)
	// OnJump, if not nil, is told of each jump of a player. It is called by those who
	// write and must not wait.
	OnJump func(why Jump)

	hooks hooks // of tests
}

// hooks are where tests look into an engine. Any may be nil.
type hooks struct {
	send  func(fd uintptr, b []byte) (int, error) // in place of sendNow
	pays  func(bytes, players int) bool           // in place of worthPages
	owed  func(fd uintptr) int                    // in place of unacknowledged
	look  time.Duration                           // in place of lookEvery
	round func(s *shard)                          // after each round, by the shard
	poll  func()                                  // after each wait of the reader
}

// Engine writes to its players. Its methods are safe for concurrent use.
type Engine struct {
	// Static.
	opt    Options
	shards []*shard
	urgent *shard // of players that hardly wait
	reader *reader
	debts  debts
	solo   soloPace

	turn    atomic.Uint32          // of the shards
	limits  atomic.Pointer[Limits] // of the last player: most have the same
	noRing  sync.Once              // that is told
	stop    sync.Once
	running sync.WaitGroup // shards, reader, reaper, chasers
	players sync.WaitGroup // sessions whose Done has not returned

	mu       sync.Mutex
	slots    []*Session // guarded by mu; the sessions, at the places that their ids say, and nil
	free     []uint32   // guarded by mu; the places of nil
	next     uint32     // guarded by mu; tells those apart that have had a place
	closed   bool       // guarded by mu
	finished []finished // guarded by mu; whose Done is due

	due  chan struct{} // capacity 1: finished has grown
	quit chan struct{} // closed when all sessions are over
}

// finished is a session that is over.
type finished struct {
	s *Session
	r Result
}

// New starts an engine. Close ends it.
func New(o Options) *Engine {
	if o.Shards <= 0 {
		o.Shards = runtime.GOMAXPROCS(0)
	}
	e := &Engine{
		opt: o, solo: soloPace{pace: newPace(o.MaxLatency, 0)},
		due: make(chan struct{}, 1), quit: make(chan struct{}),
	}
	e.debts = debts{most: o.MaxSlowBytes, of: map[*Session]*debt{}}
	if e.opt.OnJump == nil {
		e.opt.OnJump = func(Jump) {}
	}
	if e.opt.hooks.owed == nil {
		e.opt.hooks.owed = unacknowledged
	}
	if e.opt.hooks.look == 0 {
		e.opt.hooks.look = lookEvery
	}
	e.reader = newReader(o.Log, o.hooks.poll, e.find, e.running.Go)
	e.running.Go(e.reap)
	for i := range o.Shards {
		e.shards = append(e.shards, newShard(e, o.MaxLatency, o.Slot+i))
	}
	e.urgent = newShard(e, min(o.MaxLatency, urgentLatency), 0)
	for _, s := range append(e.shards, e.urgent) {
		e.running.Go(s.run)
	}
	return e
}

// ErrClosed is returned by Add once the engine was closed.
var ErrClosed = errors.New("fan-out is closed")

// join is where a player begins. One that carries the stream on may have readers that
// have just lost it elsewhere.
func join(p Player) *stream.Cursor {
	if p.Urgent {
		return p.Stream.JoinOverlapping()
	}
	return p.Stream.Join()
}

// Add starts writing to a player, from the newest join point of its stream on or
// the first one to come. The engine owns the connection from then on, also when
// it fails.
func (e *Engine) Add(p Player) (*Session, error) {
	s := &Session{e: e, fd: -1, at: -1, cursor: join(p), urgent: p.Urgent}
	s.p = terms{p.Conn, p.Stream, p.Format, e.shared(p.Limits), p.Read, p.Farewell, p.Done}
	if raw, ok := direct(p.Conn); ok {
		if kept, its, fd := own(p.Conn); kept != nil {
			s.p.Conn, raw, s.fd = kept, its, int32(fd)
		}
		s.raw = raw
		if s.shard = e.urgent; !p.Urgent {
			s.shard = e.shards[int(e.turn.Add(1))%len(e.shards)]
		}
		prepare(raw, p.Limits)
		s.unsent = unsentFirst
	} else {
		s.place, s.asked = chased, &asked{signals: newSignals()} // from the first End on
		if below, ok := p.Conn.(interface{ NetConn() net.Conn }); ok {
			if raw, ok := direct(below.NetConn()); ok {
				prepare(raw, p.Limits)
				s.raw, s.unsent = raw, unsentFirst
			}
		}
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		s.close(Shutdown)
		return nil, ErrClosed
	}
	e.enter(s)
	e.players.Add(1)
	e.mu.Unlock()

	if p.Read != nil {
		if s.shard == nil || !e.reader.add(s) {
			e.running.Go(s.readBlocking)
		}
	}
	if s.shard == nil {
		s.chase(nil, nil)
	} else {
		s.mail()
	}
	return s, nil
}

// shared returns the one copy of limits that many players have.
func (e *Engine) shared(l Limits) *Limits {
	if last := e.limits.Load(); last != nil && *last == l {
		return last
	}
	e.limits.Store(&l)
	return &l
}

// enter gives a session an id: its place, and a number above that which none before it
// had there. None is 0. e.mu is held.
func (e *Engine) enter(s *Session) {
	var place uint32
	if n := len(e.free); n > 0 {
		place, e.free = e.free[n-1], e.free[:n-1]
		e.slots[place] = s
	} else {
		place = uint32(len(e.slots))
		e.slots = append(e.slots, s)
	}
	if e.next++; e.next == 0 {
		e.next = 1
	}
	s.id = uint64(e.next)<<32 | uint64(place)
}

// leave forgets a session. e.mu is held.
func (e *Engine) leave(s *Session) {
	place := uint32(s.id)
	e.slots[place] = nil
	e.free = append(e.free, place)
}

// find returns the session of an id, nil if it is over.
func (e *Engine) find(id uint64) *Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	if place := int(uint32(id)); place < len(e.slots) {
		if s := e.slots[place]; s != nil && s.id == id {
			return s
		}
	}
	return nil
}

// finish tells whoever added the session that it is over. The connection is
// closed already.
func (e *Engine) finish(s *Session, r Result) {
	e.mu.Lock()
	e.finished = append(e.finished, finished{s, r})
	e.mu.Unlock()
	select {
	case e.due <- struct{}{}:
	default:
	}
}

// reap calls the Done of sessions that are over, so that no shard waits for it.
func (e *Engine) reap() {
	for {
		select {
		case <-e.due:
		case <-e.quit:
			return
		}
		e.mu.Lock()
		list := e.finished
		e.finished = nil
		for _, f := range list {
			e.leave(f.s)
		}
		e.mu.Unlock()
		for _, f := range list {
			f.s.p.Done(f.r)
			e.players.Done()
		}
	}
}

// Len returns the number of players.
func (e *Engine) Len() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.slots) - len(e.free)
}

// Beat returns the time between two beats while there are shards with so many players
// that the time between two rounds cannot grow any more, else 0: their rounds begin
// shortly behind multiples of it, plus at, by the clock (Unix time), and coming at the
// next one is as good for frames as coming at once. Those are the rounds of all processes
// of the node or, with own, of this one alone.
func (e *Engine) Beat(own bool) (every, at time.Duration) {
	for _, s := range e.shards {
		switch {
		case !s.full.Load():
		case own && len(e.shards) == 1:
			return e.opt.MaxLatency, s.turn
		default:
			return beatOf(e.opt.MaxLatency, max(e.opt.Slots, len(e.shards))), 0
		}
	}
	return 0, 0
}

// withoutRing notes that a shard has no io_uring.
func (e *Engine) withoutRing(err error) {
	e.noRing.Do(func() {
		e.opt.Log.Info("players are sent to one by one instead of by io_uring, which costs more", "err", err)
	})
}

// Slow returns how many players have full sockets, and the bytes that are kept for
// them.
func (e *Engine) Slow() (players int, bytes int64) { return e.debts.sum() }

// cut ends players for which too much is kept.
func (e *Engine) cut(over []*Session) {
	for _, s := range over {
		s.End(SlowSum)
	}
}

// Close ends all sessions with Shutdown, waits for their Done, and stops the
// engine. Only the first call counts.
func (e *Engine) Close() { e.stop.Do(e.close) }

func (e *Engine) close() {
	e.mu.Lock()
	e.closed = true
	all := slices.DeleteFunc(slices.Clone(e.slots), func(s *Session) bool { return s == nil })
	e.mu.Unlock()
	for _, s := range all { // not under the lock: closing a connection may take its time
		s.End(Shutdown)
	}
	e.players.Wait()
	close(e.quit)
	for _, s := range append(e.shards, e.urgent) {
		s.stop()
	}
	e.reader.stop()
	e.running.Wait()
}
