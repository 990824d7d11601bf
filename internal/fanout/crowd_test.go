package fanout

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weir/internal/media"
	"weir/internal/stream"
)

// Players of several streams and formats join, leave, stall and are kicked at
// random over TCP, while headers change; each one's bytes must be the log's, whose
// memory is used again all the time, and nobody but the engine closes its descriptors.
func TestCrowdsOverTCP(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) { testCrowdsOverTCP(t, plain) })
	}
}

func testCrowdsOverTCP(t *testing.T, plain bool) {
	e := New(Options{Shards: 2, MaxLatency: 5 * time.Millisecond, Plain: plain, Log: slog.New(slog.DiscardHandler), hooks: hooks{
		pays: func(bytes, players int) bool { return bytes%2 == 0 },
	}})
	var streams, players sync.WaitGroup
	var full, jumped, cut atomic.Int64
	for n := range 3 {
		s := newSourceWith(t, stream.Limits{MaxBytes: 64 << 20, MaxTime: 2 * time.Second})
		streams.Go(func() {
			seconds := make([]chan bool, 18) // closed when that second was published
			for i := range seconds {
				seconds[i] = make(chan bool)
			}
			over := make(chan bool) // closed when all is published
			canary := s.crowdPlayer(e, 0, false)
			caught := make(chan int)
			players.Go(func() {
				got := 0
				var b [64 << 10]byte
				for {
					n, err := canary.far.Read(b[:])
					if got += n; err != nil {
						close(caught)
						return
					}
					caught <- got
				}
			})
			for sec := range seconds {
				if sec%7 == n {
					s.headers(1000 * sec)
				}
				if sec == 0 && n > 0 {
					s.headers(0)
				}
				s.group(1000*sec, 2500+61*sec) // so that no tag lies where another one was
				close(seconds[sec])
				want := 13 + len(joinTags(s.all))
				for got := range caught { // a player that reads does not lag
					if got == want {
						break
					}
				}
				for i := range 4 {
					k := sec*4 + i
					p := s.crowdPlayer(e, k%3, k%2 == 0)
					players.Go(func() {
						b, left := p.play(k, seconds[min(len(seconds)-1, sec+8)])
						p.End(Left)
						r := p.result(t)
						<-over // the log is complete
						tags, err := formats[k%3].parse(b)
						if left && (errors.Is(err, io.ErrUnexpectedEOF) || len(b) == 0) {
							err = nil // in the middle of a tag
						}
						if err != nil {
							t.Errorf("player %d, %+v: %v", k, r, err)
							return
						}
						lost, err := s.verify(tags)
						if err != nil {
							t.Errorf("player %d, %+v: %v", k, r, err)
						}
						switch {
						case left:
							cut.Add(1)
						case r.Reason != Ended || r.Bytes != uint64(len(b)):
							t.Errorf("player %d: %+v after %d bytes", k, r, len(b))
						case number(tags[len(tags)-1]) != len(s.frames)-1:
							t.Errorf("player %d: the last frame is %d of %d", k, number(tags[len(tags)-1]), len(s.frames))
						case lost > 0:
							jumped.Add(1)
						default:
							full.Add(1)
						}
						if !left && (lost > 0) != (r.Skipped > 0) {
							t.Errorf("player %d lost %d, counted %d", k, lost, r.Skipped)
						}
						if p.own != nil && (p.own.closed.Load() > 0 || p.own.released.Load() == 0) {
							t.Errorf("player %d: closed %d times, released %d times", k, p.own.closed.Load(), p.own.released.Load())
						}
					})
				}
			}
			s.s.Close(nil)
			close(over)
			for range caught {
			}
			canary.far.Close()
			if r := canary.result(t); r.Reason != Ended || r.Skipped > 0 {
				t.Errorf("the player that reads at once: %+v", r)
			}
		})
	}
	streams.Wait()
	players.Wait()
	e.Close()
	if full.Load() == 0 || jumped.Load() == 0 || cut.Load() == 0 {
		t.Errorf("%d players got all, %d jumped, %d left", full.Load(), jumped.Load(), cut.Load())
	}
	if e.Len() > 0 {
		t.Errorf("%d sessions are kept", e.Len())
	}
}

// crowdPlayer is a player with a small socket on a real connection.
type crowdPlayer struct {
	*player
	own *owned
}

func (s *source) crowdPlayer(e *Engine, format int, own bool) *crowdPlayer {
	near, far := tcpPair(s.t)
	_ = near.SetWriteBuffer(32 << 10)
	_ = far.SetReadBuffer(64 << 10)
	return s.crowdPlayerOn(e, near, far, format, own)
}

func (s *source) crowdPlayerOn(e *Engine, near, far *net.TCPConn, format int, own bool) *crowdPlayer {
	p := &crowdPlayer{player: &player{far: far, done: make(chan Result, 2)}}
	var conn net.Conn = near
	if own {
		p.own = &owned{TCPConn: near}
		conn = p.own
	}
	var err error
	p.Session, err = e.Add(Player{
		Conn: conn, Stream: s.s, Format: formats[format].f, Urgent: own && format == 1,
		Limits: Limits{MaxLag: 2 * time.Second, WriteTimeout: time.Minute}, // for a busy machine
		Read:   says(true), Done: func(r Result) { p.done <- r },
	})
	if err != nil {
		s.t.Error(err)
	}
	return p
}

// play reads as player k does. later is closed some seconds of media on.
func (p *crowdPlayer) play(k int, later chan bool) (got []byte, left bool) {
	var b bytes.Buffer
	take := func(n int64) bool {
		m, err := io.CopyN(&b, p.far, n)
		return err == nil && m == n
	}
	switch k % 8 {
	case 1: // it goes away at once
		left = true
	case 2: // in the middle
		take(int64(10_000 + k*777))
		left = true
	case 3: // it is kicked
		take(int64(5_000 + k*333))
		p.End(Kicked)
		left = true
	case 4, 5: // it stalls
		take(int64(3_000 + k*555))
		<-later
	case 6: // it takes small pieces
		for i := 0; i < 300 && take(97); i++ {
		}
	}
	if left {
		p.far.Close()
	} else {
		_, _ = io.Copy(&b, p.far)
	}
	p.far.Close()
	return b.Bytes(), left
}

// hesitant is a format that is made, now and then, only when the publisher has gone on.
type hesitant struct {
	Format
	at *progress
}

func (f hesitant) append(dst, begin []byte, tags []media.Tag) []byte {
	f.at.wait()
	return f.Format.append(dst, begin, tags)
}

// progress is how far a publisher is.
type progress struct {
	mu     sync.Mutex
	moved  sync.Cond
	frames int  // guarded by mu
	calls  int  // guarded by mu; of wait
	over   bool // guarded by mu
}

func (p *progress) move(over bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frames++
	p.over = over
	p.moved.Broadcast()
}

// wait waits for some frames, in one of eight calls.
func (p *progress) wait() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.calls++; p.calls%8 > 0 {
		return
	}
	for until := p.frames + 12; p.frames < until && !p.over; {
		p.moved.Wait()
	}
}

// A publisher is much too fast for its log, so that tags leave it while bytes for players
// are made of them: their memory is used again only when nobody reads them any more.
func TestPublisherOvertakesReaders(t *testing.T) {
	e := testEngine(t)
	s := newSourceWith(t, stream.Limits{MaxBytes: 96 << 10})
	told := map[bool]int{} // whether a tag that left was unused
	s.p.Recycle(func(t media.Tag, unused bool) {
		told[unused]++
		s.slab.Gone(t, unused)
	})
	type outcome struct {
		format int
		b      []byte
	}
	const frames, crowd = 2400, 48
	var players sync.WaitGroup
	outcomes := make(chan outcome, crowd)
	at := &progress{}
	at.moved.L = &at.mu
	join := func(i int) {
		near, far := net.Pipe() // a goroutine of its own has it
		if i%4 > 0 {
			tcp, peer := tcpPair(t)
			_ = tcp.SetWriteBuffer(32 << 10)
			near, far = tcp, peer
		}
		s.joinOn(e, near, far, hesitant{formats[i%3].f, at}, roomy, nil)
		players.Go(func() {
			b, _ := io.ReadAll(far)
			outcomes <- outcome{i % 3, b}
		})
	}
	s.headers(0)
	for n := range frames {
		if n%(frames/crowd) == 0 && n/(frames/crowd) < crowd {
			join(n / (frames / crowd))
		}
		s.frame("KPPPPPPP"[n%8], 40*n, 3000)
		s.frame('A', 40*n, 100)
		at.move(false)
	}
	s.s.Close(nil)
	at.move(true)
	players.Wait()
	close(outcomes)
	lost := 0
	for o := range outcomes {
		tags, err := formats[o.format].parse(o.b)
		if err != nil {
			t.Error(err)
			continue
		}
		n, err := s.verify(tags)
		if err != nil {
			t.Errorf("%s: %v", formats[o.format].name, err)
		}
		lost += n
	}
	t.Logf("players lost %d frames, %d tags were unused, %d were not", lost, told[true], told[false])
	if lost == 0 || told[true] == 0 {
		t.Error("nobody was overtaken, or no memory used again")
	}
}
