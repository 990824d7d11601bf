package fanout

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// sockets are in-memory sockets for the shard's path, whose players read and whose
// buffers fill as a test says, in virtual time too.
type sockets struct {
	mu   sync.Mutex
	open map[uintptr]*socket // guarded by mu; by descriptor
	next uintptr             // guarded by mu

	lagged atomic.Int64 // jumps
	passed atomic.Int64
	sends  atomic.Int64
	rounds atomic.Int64
	state  atomic.Pointer[state]
	asOf   atomic.Pointer[func(*socket, []byte) int] // how much of a send is taken; nil: what there is room for
}

// state is what a test may know of a shard, as of its last round.
type state struct {
	groups  int
	opening []byte // of the first group
	pieces  []piece
}

func (n *sockets) look(s *shard) {
	n.rounds.Add(1)
	if s == s.e.urgent {
		return
	}
	st := state{groups: max(len(s.groups), len(s.list))}
	if len(s.list) > 0 {
		st.opening = s.list[0].opening.bytes
		st.pieces = append(st.pieces, s.list[0].opening.pieces...)
	}
	n.state.Store(&st)
}

// noFile is above all descriptors that a process can have.
const noFile = 1 << 30

func newSockets() *sockets { return &sockets{open: map[uintptr]*socket{}, next: noFile} }

// engine returns an engine with one shard and one for urgent players.
func (n *sockets) engine(t testing.TB, latency time.Duration) *Engine {
	return n.engineOf(t, Options{Shards: 1, MaxLatency: latency})
}

func (n *sockets) engineOf(t testing.TB, o Options) *Engine {
	o.Log = slog.New(slog.DiscardHandler)
	o.OnJump = func(why Jump) {
		switch why {
		case Lagged:
			n.lagged.Add(1)
		case Passed:
			n.passed.Add(1)
		}
	}
	o.hooks = hooks{send: n.send, pays: never, round: n.look, owed: n.owed}
	e := New(o)
	t.Cleanup(e.Close)
	return e
}

func (n *sockets) owed(fd uintptr) int {
	n.mu.Lock()
	s := n.open[fd]
	n.mu.Unlock()
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owed
}

func (n *sockets) send(fd uintptr, b []byte) (int, error) {
	n.sends.Add(1)
	n.mu.Lock()
	s := n.open[fd]
	n.mu.Unlock()
	if s == nil {
		return 0, syscall.EBADF
	}
	if f := n.asOf.Load(); f != nil {
		b = b[:min(len(b), (*f)(s, b))]
	}
	return s.put(b)
}

// socket is one of them. Its far end is the test's.
type socket struct {
	net.Conn // none: what is not overridden panics
	n        *sockets
	fd       uintptr

	mu      sync.Mutex
	room    int           // guarded by mu; bytes that it still takes
	owed    int           // guarded by mu; bytes in it that the player has not taken, by the player's account
	got     []byte        // guarded by mu; what the player has or will read
	closed  bool          // guarded by mu; by the engine
	gone    bool          // guarded by mu; the player's end
	late    time.Time     // guarded by mu; write deadline
	changed chan struct{} // guarded by mu; closed with each change
	writes  atomic.Int64  // of a chaser
}

// new returns a socket that takes room bytes.
func (n *sockets) new(room int) *socket {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.next++
	s := &socket{n: n, fd: n.next, room: room, changed: make(chan struct{})}
	n.open[s.fd] = s
	return s
}

// change does f under the lock and wakes who waits.
func (s *socket) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// drain makes room, as a player does that reads.
func (s *socket) drain(bytes int) { s.change(func() { s.room += bytes }) }

// leave is the player's going away.
func (s *socket) leave() { s.change(func() { s.gone = true }) }

func (s *socket) seen() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]byte(nil), s.got...)
}

func (s *socket) put(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return 0, syscall.EBADF
	case s.gone:
		return 0, syscall.EPIPE
	}
	b = b[:min(len(b), s.room)]
	s.room -= len(b)
	s.got = append(s.got, b...)
	return len(b), nil
}

func (s *socket) Write(b []byte) (n int, err error) {
	s.writes.Add(1)
	for {
		m, err := s.put(b[n:])
		n += m
		if errors.Is(err, syscall.EBADF) {
			err = net.ErrClosed
		}
		if err != nil || n == len(b) {
			return n, err
		}
		s.mu.Lock()
		changed, late := s.changed, s.late
		s.mu.Unlock()
		var timeout <-chan time.Time
		if !late.IsZero() {
			timeout = time.After(time.Until(late))
		}
		select {
		case <-changed:
		case <-timeout:
			return n, os.ErrDeadlineExceeded
		}
	}
}

func (s *socket) Read([]byte) (int, error) { return 0, io.EOF }

func (s *socket) SetWriteDeadline(t time.Time) error {
	s.change(func() { s.late = t })
	return nil
}

func (s *socket) Close() error {
	s.n.mu.Lock()
	delete(s.n.open, s.fd)
	s.n.mu.Unlock()
	s.change(func() { s.closed = true })
	return nil
}

func (s *socket) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// SyscallConn implements syscall.Conn: direct finds it.
func (s *socket) SyscallConn() (syscall.RawConn, error) { return rawSocket{s}, nil }

type rawSocket struct{ s *socket }

func (r rawSocket) Control(f func(fd uintptr)) error {
	if r.s.isClosed() {
		return net.ErrClosed
	}
	f(r.s.fd)
	return nil
}

func (r rawSocket) Read(func(uintptr) bool) error { return net.ErrClosed }

func (r rawSocket) Write(f func(fd uintptr) bool) error {
	if r.s.isClosed() {
		return net.ErrClosed
	}
	f(r.s.fd)
	return nil
}

// ownedSocket is one whose descriptor the engine has for itself.
type ownedSocket struct {
	*socket
	stolen   atomic.Int64 // times that it was closed past who has it
	released atomic.Int64
}

func (s *ownedSocket) Keep() (net.Conn, bool) {
	if s.isClosed() {
		return nil, false
	}
	return keptSocket{s}, true
}

// Close must not be called by the engine.
func (s *ownedSocket) Close() error {
	s.stolen.Add(1)
	return s.socket.Close()
}

// keptSocket is what Keep gives.
type keptSocket struct{ *ownedSocket }

func (s keptSocket) Close() error {
	s.released.Add(1)
	return s.socket.Close()
}

// joinSocket adds a player whose socket takes room bytes.
func (s *source) joinSocket(e *Engine, n *sockets, room int, f Format, l Limits) (*player, *socket) {
	s.t.Helper()
	k := n.new(room)
	p := &player{done: make(chan Result, 2)}
	var err error
	p.Session, err = e.Add(Player{Conn: k, Stream: s.s, Format: f, Limits: l, Done: func(r Result) { p.done <- r }})
	if err != nil {
		s.t.Fatal(err)
	}
	return p, k
}

const plenty = 1 << 40

// at returns where a session is.
func (p *player) at() place {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.place
}

// inBubble runs a story in virtual time with an engine of one shard, which sends
// at once unless latency says otherwise.
func inBubble(t *testing.T, latency time.Duration, story func(t *testing.T, e *Engine, n *sockets)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newSockets()
		e := n.engine(t, latency)
		defer e.Close()
		story(t, e, n)
	})
}

// pass lets time pass in a bubble, and all happen that it makes happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
