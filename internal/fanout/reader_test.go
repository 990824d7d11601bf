package fanout

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// readTCP adds a player on a TCP connection whose words read gets.
func (s *source) readTCP(e *Engine, near net.Conn, read func(*Session, []byte) bool) *player {
	s.t.Helper()
	p := &player{done: make(chan Result, 2)}
	var err error
	p.Session, err = e.Add(Player{
		Conn: near, Stream: s.s, Format: FLV{}, Limits: roomy, Read: read,
		Done: func(r Result) { p.done <- r },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func says(ok bool) func(*Session, []byte) bool { return func(*Session, []byte) bool { return ok } }

// plain hides all of a connection but what net.Conn has: it is read and written
// with goroutines, as TLS is.
type plain struct{ net.Conn }

// A player that leaves is noticed although its stream says nothing.
func TestLeavingAStalledStreamIsNoticed(t *testing.T) {
	for name, leave := range map[string]func(far *net.TCPConn){
		"close":      func(far *net.TCPConn) { far.Close() },
		"reset":      func(far *net.TCPConn) { far.SetLinger(0); far.Close() },
		"half":       func(far *net.TCPConn) { far.CloseWrite() },
		"last words": func(far *net.TCPConn) { far.Write([]byte("bye")); far.Close() },
	} {
		for _, wrap := range []func(c *net.TCPConn) net.Conn{
			func(c *net.TCPConn) net.Conn { return c },
			func(c *net.TCPConn) net.Conn { return plain{c} },
			func(c *net.TCPConn) net.Conn { return &owned{TCPConn: c} },
		} {
			e := testEngine(t)
			s := newSource(t)
			near, far := tcpPair(t)
			p := s.readTCP(e, wrap(near), says(true))
			leave(far)
			if r := p.result(t); r.Reason != Left || r.Bytes != 0 {
				t.Errorf("%s: %+v", name, r)
			}
			e.Close()
			if n := e.Len(); n > 0 {
				t.Errorf("%s: %d sessions are kept", name, n)
			}
		}
	}
}

// A player that TCP has given up, because its machine takes and says nothing, did not
// leave.
func TestGivenUpByTCP(t *testing.T) {
	e := testEngine(t)
	s := newSource(t)
	near, _ := tcpPair(t) // the far end does not read
	p := &player{done: make(chan Result, 1)}
	var err error
	if p.Session, err = e.Add(Player{
		Conn: near, Stream: s.s, Format: FLV{}, Limits: Limits{MaxLag: time.Minute, WriteTimeout: 50 * time.Millisecond}, Read: says(true),
		Done: func(r Result) { p.done <- r },
	}); err != nil {
		t.Fatal(err)
	}
	raw, _ := near.SyscallConn()
	_ = raw.Write(func(fd uintptr) bool { // the stream itself stalls: nobody else writes
		for b := make([]byte, 64<<10); ; {
			if n, err := sendNow(fd, b); n == 0 || err != nil {
				return true
			}
		}
	})
	if r := p.result(t); r.Reason != TooSlow {
		t.Errorf("%+v", r)
	}
}

// owned is a TCP connection whose descriptor the engine has for itself.
type owned struct {
	*net.TCPConn
	closed, released atomic.Int64
}

func (c *owned) Keep() (net.Conn, bool) { return kept{c}, true }

func (c *owned) Close() error {
	c.closed.Add(1)
	return c.TCPConn.Close()
}

// kept is what Keep gives.
type kept struct{ *owned }

func (c kept) Close() error {
	c.released.Add(1)
	return c.TCPConn.Close()
}

// What a player sends comes to Read, all of it and in order, until Read has enough.
func TestReadGetsWhatThePlayerSends(t *testing.T) {
	for name, wrap := range map[string]func(c *net.TCPConn) net.Conn{
		"socket": func(c *net.TCPConn) net.Conn { return c },
		"plain":  func(c *net.TCPConn) net.Conn { return plain{c} },
	} {
		e := testEngine(t)
		s := newSource(t)
		near, far := tcpPair(t)
		var want, got bytes.Buffer
		for i := range 30_000 {
			want.WriteByte(byte(i % 251))
		}
		p := s.readTCP(e, wrap(near), func(session *Session, b []byte) bool {
			if session == nil {
				t.Error("Read got no session")
			}
			got.Write(b)
			return got.Len() < want.Len()
		})
		if _, err := far.Write(want.Bytes()); err != nil {
			t.Fatal(err)
		}
		if r := p.result(t); r.Reason != Left {
			t.Errorf("%s: %+v", name, r)
		}
		if !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Errorf("%s: got %d bytes of %d", name, got.Len(), want.Len())
		}
		if _, err := io.ReadAll(far); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		e.Close()
	}
}

// Read is asked once more than it wanted to be at most: a player whose shard is
// busy with something else is not reported again and again until that closes it.
func TestReaderDoesNotSpin(t *testing.T) {
	held, free := make(chan bool), make(chan bool)
	var hold atomic.Uintptr // the descriptor whose send takes its time
	var polls atomic.Int64
	e := New(Options{Shards: 1, Log: slog.New(slog.DiscardHandler), hooks: hooks{
		send: func(fd uintptr, b []byte) (int, error) {
			if hold.CompareAndSwap(fd, 0) {
				held <- true
				<-free
			}
			return sendNow(fd, b)
		},
		poll: func() { polls.Add(1) },
	}})
	defer e.Close()
	s := newSource(t)
	var fars []*net.TCPConn
	var all []*player
	heard := make(chan int, 100)
	for i := range 6 {
		near, far := tcpPair(t)
		if i == 4 {
			raw, _ := direct(near)
			_ = raw.Control(func(fd uintptr) { hold.Store(fd) })
		}
		all = append(all, s.readTCP(e, &owned{TCPConn: near}, func(_ *Session, b []byte) bool { heard <- i; return i != 1 }))
		fars = append(fars, far)
	}
	s.headers(0)
	s.frame('K', 0, 10)
	<-held // the shard is stuck
	fars[0].Close()
	fars[1].Write([]byte("too much"))
	fars[2].SetLinger(0)
	fars[2].Close()
	fars[3].CloseWrite()
	<-heard
	before := polls.Load()
	const words = 20
	for range words {
		fars[5].Write([]byte("x"))
		<-heard
	}
	if n := polls.Load() - before; n > 3+words {
		t.Errorf("the reader woke %d times for %d words", n, words)
	}
	free <- true
	for _, p := range all[:4] {
		if r := p.result(t); r.Reason != Left {
			t.Errorf("%+v", r)
		}
	}
	if e.Len() != 2 {
		t.Errorf("%d players are left", e.Len())
	}
}

// Sessions end while they are added, from all sides at once.
func TestAddRaces(t *testing.T) {
	for name, wrap := range map[string]func(c *net.TCPConn) net.Conn{
		"socket": func(c *net.TCPConn) net.Conn { return c },
		"plain":  func(c *net.TCPConn) net.Conn { return plain{c} },
		"owned":  func(c *net.TCPConn) net.Conn { return &owned{TCPConn: c} },
	} {
		t.Run(name, func(t *testing.T) {
			for i := range 60 {
				e := testEngine(t)
				s := newSource(t)
				s.headers(0)
				s.frame('K', 0, 10)
				var done atomic.Int64
				var racers sync.WaitGroup
				for range 4 {
					near, far := tcpPair(t)
					if i%2 == 0 {
						far.Close()
					}
					racers.Go(func() {
						session, err := e.Add(Player{
							Conn: wrap(near), Stream: s.s, Format: FLV{}, Limits: roomy, Read: says(true),
							Done: func(Result) { done.Add(1) },
						})
						if err != nil {
							done.Add(1)
							return
						}
						if i%3 == 0 {
							session.End(Kicked)
						}
						far.Close()
					})
				}
				if i%4 == 0 {
					racers.Go(e.Close)
				}
				racers.Wait()
				e.Close()
				if done.Load() != 4 || e.Len() > 0 {
					t.Fatalf("%d of 4 are done, %d are kept", done.Load(), e.Len())
				}
			}
		})
	}
}

// A player whose socket is full goes on as soon as it reads, without Go's poller.
func TestRoomIsToldOfAnOwnedDescriptor(t *testing.T) {
	e := New(Options{Shards: 1, Log: slog.New(slog.DiscardHandler), hooks: hooks{look: time.Hour}})
	defer e.Close()
	s := newSource(t)
	s.headers(0)
	near, far := tcpPair(t)
	p := s.readTCP(e, &owned{TCPConn: near}, says(true))
	if p.fd < 0 || !p.watched.Load() {
		t.Fatal("the engine does not have the descriptor")
	}
	for i := range 40 {
		s.frame('K', 40*i, 200_000)
		for p.at() != chased && i > 30 { // the socket is full, and the shard finds out
			runtime.Gosched()
		}
	}
	s.s.Close(nil)
	var b []byte
	read := make(chan error, 1)
	go func() {
		var err error
		b, err = io.ReadAll(far)
		read <- err
	}()
	select {
	case err := <-read:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("the player gets nothing more")
	}
	if tags, err := formats[0].parse(b); err != nil || number(tags[len(tags)-1]) != len(s.frames)-1 {
		t.Errorf("%d tags, %v", len(tags), err)
	}
	far.Close()
	if r := p.result(t); r.Reason != Ended {
		t.Errorf("%+v", r)
	}
}
