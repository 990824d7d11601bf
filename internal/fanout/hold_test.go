package fanout

import (
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// noSocket is a connection that the shard cannot write to directly, as under TLS.
type noSocket struct{ net.Conn }

// holdStory runs a story of a player on a stream that was sent for a second: with a socket of
// its own, and without.
func holdStory(t *testing.T, name string, f func(t *testing.T, e *Engine, s *source, p *player, k *socket)) {
	t.Helper()
	for _, solo := range []bool{false, true} {
		t.Run(fmt.Sprintf("%s, solo=%v", name, solo), func(t *testing.T) {
			inBubble(t, 100*time.Millisecond, func(t *testing.T, e *Engine, n *sockets) {
				s := newSource(t)
				s.headers(0)
				s.group(0, 1000)
				k := n.new(plenty)
				p := &player{done: make(chan Result, 2)}
				conn := net.Conn(k)
				if solo {
					conn = noSocket{k}
				}
				var err error
				p.Session, err = e.Add(Player{
					Conn: conn, Stream: s.s, Format: FLV{}, Done: func(r Result) { p.done <- r },
					Limits: Limits{MaxLag: 8 * time.Second, WriteTimeout: 20 * time.Second},
				})
				if err != nil {
					t.Fatal(err)
				}
				pass(time.Second)
				f(t, e, s, p, k)
				if n.lagged.Load()+n.passed.Load() > 0 {
					t.Errorf("%d jumps for lag, %d because of the log", n.lagged.Load(), n.passed.Load())
				}
			})
		})
	}
}

// flow appends seconds of the stream as time passes. It returns what the log then covers.
func (s *source) flow(from, to int) time.Duration {
	for sec := from; sec < to; sec++ {
		s.group(1000*sec, 1000)
		pass(time.Second)
	}
	return s.s.Stats().LogTime
}

// A player takes nothing for 5 s, and then gets all. For as long the log is as long, and as
// short as before behind that: it is whole while somebody is behind.
func TestPlayerThatIsBehindLosesNothing(t *testing.T) {
	holdStory(t, "stuck", func(t *testing.T, e *Engine, s *source, p *player, k *socket) {
		if got := s.flow(1, 5); got > shortLog {
			t.Errorf("nobody is behind, the log covers %v", got)
		}
		for round := range 3 {
			sec := 5 + 10*round
			k.change(func() { k.room = 10_000 })
			if got := s.flow(sec, sec+6); got < 4900*time.Millisecond {
				t.Errorf("a player is behind, the log covers %v", got)
			}
			k.drain(plenty)
			pass(time.Second)
			if lost, tags := s.gets(t, 0, k.seen()); lost > 0 || p.Skipped() > 0 || len(tags) != len(s.all) {
				t.Fatalf("lost %d, counted %d, has %d of %d tags", lost, p.Skipped(), len(tags), len(s.all))
			}
			if got := s.flow(sec+6, sec+10); got > shortLog {
				t.Errorf("nobody is behind any more, the log covers %v", got)
			}
		}
	})
}

// However a player ends, and wherever it was, nothing is kept for it any more.
func TestPlacesAreLetGoOf(t *testing.T) {
	for name, end := range map[string]func(e *Engine, s *source, p *player, k *socket){
		"ended":         func(_ *Engine, _ *source, p *player, _ *socket) { p.End(Left) },
		"ended gently":  func(_ *Engine, _ *source, p *player, _ *socket) { p.EndGently(Moved) },
		"paused":        func(_ *Engine, _ *source, p *player, _ *socket) { p.Pause(true); synctest.Wait(); p.End(Left) },
		"gone":          func(_ *Engine, s *source, _ *player, k *socket) { k.leave(); s.frame('P', 2000, 10) },
		"stuck":         func(_ *Engine, s *source, p *player, k *socket) { s.flowTo(k, p) },
		"too slow":      func(_ *Engine, s *source, p *player, k *socket) { s.flowTo(k, nil); pass(time.Minute) },
		"engine closed": func(e *Engine, _ *source, _ *player, _ *socket) { e.Close() },
	} {
		holdStory(t, name, func(t *testing.T, e *Engine, s *source, p *player, k *socket) {
			end(e, s, p, k)
			p.result2()
			pass(3 * time.Second)
			if got := s.flow(10, 15); got > shortLog {
				t.Errorf("the log covers %v", got)
			}
		})
	}
}

// flowTo appends a second to a player whose socket is full, and ends it unless it is nil.
func (s *source) flowTo(k *socket, p *player) {
	k.change(func() { k.room = 0 })
	s.group(1000, 1000)
	pass(time.Second)
	if p != nil {
		p.End(Left)
	}
}

// A shard is held up while the publisher sends 5 s: its players get all that.
func TestGroupHoldsItsPlace(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, e *Engine, n *sockets) {
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 1000)
		p, k := s.joinSocket(e, n, plenty, FLV{}, roomy)
		synctest.Wait()
		held, free := make(chan bool), make(chan bool)
		f := func(_ *socket, b []byte) int {
			held <- true
			<-free
			n.asOf.Store(nil)
			return len(b)
		}
		n.asOf.Store(&f)
		s.frame('P', 40, 10)
		<-held
		for sec := 1; sec < 6; sec++ {
			s.group(1000*sec, 1000)
		}
		free <- true
		synctest.Wait()
		if lost, tags := s.gets(t, 0, k.seen()); lost > 0 || p.Skipped() > 0 || len(tags) != len(s.all) {
			t.Errorf("lost %d, counted %d, has %d of %d tags", lost, p.Skipped(), len(tags), len(s.all))
		}
	})
}

// An engine that is closed while a round is planned leaves nothing at its streams.
func TestClosedEngineHoldsNothing(t *testing.T) {
	inBubble(t, time.Second, func(t *testing.T, e *Engine, n *sockets) {
		s := newSource(t)
		s.headers(0)
		dear := func(_ *socket, b []byte) int {
			time.Sleep(50 * time.Millisecond) // the cost, in the time of the bubble
			return len(b)
		}
		n.asOf.Store(&dear)
		s.joinSocket(e, n, plenty, FLV{}, roomy)
		for ms := 0; ms < 5000; ms += 40 {
			s.frame("KPPPPPPPPP"[ms/40%10], ms, 100)
			pass(40 * time.Millisecond)
		}
		e.Close()
		if got := s.flow(5, 10); got > shortLog {
			t.Errorf("the log covers %v", got)
		}
	})
}
