package fanout

import (
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// A player on a thin line: its socket takes bytes again only when a third of it is
// free, which takes longer than the write timeout. As long as the player takes what
// lies there it is not cut; it jumps, and gets whole groups of pictures from their
// key frames on.
func TestThinLineIsNotCut(t *testing.T) {
	for i, format := range formats {
		t.Run(format.name, func(t *testing.T) {
			inBubble(t, 0, func(t *testing.T, e *Engine, n *sockets) {
				s := newSource(t)
				s.headers(0)
				const size = 200 << 10 // of the socket
				p, k := s.joinSocket(e, n, size, format.f, Limits{MaxLag: 4 * time.Second, WriteTimeout: 10 * time.Second})
				free := 0
				for sec := range 300 { // the player takes 8000 bytes of 100,000 in a second
					s.group(1000*sec, 4000)
					pass(time.Second)
					if k.room < size/3 || free > 0 {
						free += 8000
						k.change(func() { k.owed = size - free })
					}
					if free > size/3 {
						k.change(func() { k.room, k.owed = k.room+free, size })
						free = 0
						pass(0)
					}
				}
				select {
				case r := <-p.done:
					t.Fatalf("%+v", r)
				default:
				}
				k.change(func() { k.room = plenty })
				pass(20 * time.Second)
				lost, tags := s.gets(t, i, k.seen())
				if jumps := n.lagged.Load(); jumps < 10 || jumps > 300 || n.passed.Load() > 0 {
					t.Errorf("%d jumps counted, %d of them because of the log", jumps+n.passed.Load(), n.passed.Load())
				}
				if lost < 5000 || p.Skipped() != uint64(lost) || number(tags[len(tags)-1]) != len(s.frames)-1 {
					t.Errorf("lost %d frames, counted %d, the last is %d of %d", lost, p.Skipped(), number(tags[len(tags)-1]), len(s.frames))
				}
			})
		})
	}
}

// A player whose account does not move is cut when the write timeout is over, and not
// before.
func TestPlayerThatTakesNothingIsCut(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, e *Engine, n *sockets) {
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 1000)
		k := n.new(500)
		k.owed = 500
		begin := time.Now()
		p := &player{done: make(chan Result, 2)}
		var err error
		if p.Session, err = e.Add(Player{Conn: k, Stream: s.s, Format: FLV{}, Limits: Limits{MaxLag: time.Minute, WriteTimeout: 10 * time.Second}, Done: func(r Result) { p.done <- r }}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			pass(9 * time.Second)
			k.change(func() { k.owed-- })
		}
		r := p.result2()
		if took := time.Since(begin); r.Reason != TooSlow || took < 37*time.Second || took > 39*time.Second {
			t.Errorf("%+v after %v", r, took)
		}
	})
}

// 500 players are stuck, each in a large frame of its own: what is kept for them is
// bounded, those who have read nothing for the longest time are cut, and who reads
// does not notice.
func TestBytesOfSlowPlayersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newSockets()
		const most = 2 << 20
		e := n.engineOf(t, Options{Shards: 1, MaxSlowBytes: most})
		defer e.Close()
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 1000)
		limits := Limits{MaxLag: time.Hour, WriteTimeout: time.Hour}
		bob, fast := s.joinSocket(e, n, plenty, FLV{}, limits)
		alice, thin := s.joinSocket(e, n, 100, FLV{}, limits) // is slow, but reads
		var stuck []*player
		for i := range 500 {
			p, _ := s.joinSocket(e, n, 2000+400*i, WebSocketFLV{}, limits)
			stuck = append(stuck, p)
		}
		cut := 0 // of stuck, in order
		for i := range 100 {
			thin.drain(10)
			pass(2 * time.Second)
			s.frame('P', 40*i+40, 2000)
			pass(time.Second)
			if players, bytes := e.Slow(); bytes > most || players > 501 || i > 50 && bytes < most/2 {
				t.Fatalf("%d bytes are kept for %d players", bytes, players)
			}
			for cut < len(stuck) && stuck[cut].at() == over {
				if r := stuck[cut].result2(); r.Reason != SlowSum {
					t.Fatalf("player %d: %+v", cut, r)
				}
				cut++
			}
		}
		if cut < 100 || cut > 450 {
			t.Errorf("%d players were cut", cut)
		}
		for i, p := range stuck[cut:] {
			if i > 10 && p.at() != chased { // a few were stuck at the same time
				t.Errorf("player %d, which was stuck later than the %d that were cut, is at %d", cut+i, cut, p.at())
			}
		}
		if _, tags := s.gets(t, 0, fast.seen()); len(tags) != len(s.all) || bob.at() != sharded || alice.at() != chased {
			t.Errorf("bob has %d of %d tags and is at %d, alice at %d", len(tags), len(s.all), bob.at(), alice.at())
		}
		for _, p := range append(stuck, alice) {
			p.End(Left)
		}
		synctest.Wait()
		if players, bytes := e.Slow(); players != 0 || bytes != 0 {
			t.Errorf("%d bytes are kept for %d players when all have left", bytes, players)
		}
	})
}

// A large frame that many wait for is kept once, and counted once.
func TestSharedBytesAreCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newSockets()
		e := n.engineOf(t, Options{Shards: 1, MaxSlowBytes: 4 << 20})
		defer e.Close()
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 10)
		var all []*player
		var sockets []*socket
		for range 30 {
			p, k := s.joinSocket(e, n, 10_000, FLV{}, roomy)
			all, sockets = append(all, p), append(sockets, k)
		}
		synctest.Wait()
		s.frame('K', 40, 400<<10)
		synctest.Wait()
		if players, bytes := e.Slow(); players != 30 || bytes < 400<<10 || bytes > 1<<20 {
			t.Errorf("%d bytes are kept for %d players", bytes, players)
		}
		for i, k := range sockets {
			k.drain(plenty)
			synctest.Wait()
			if lost, tags := s.gets(t, 0, k.seen()); lost != 0 || len(tags) != len(s.all) || all[i].at() != sharded {
				t.Fatalf("player %d: %d of %d tags, place %d", i, len(tags), len(s.all), all[i].at())
			}
		}
		if players, bytes := e.Slow(); players != 0 || bytes != 0 {
			t.Errorf("%d bytes are kept for %d players that have all", bytes, players)
		}
	})
}

// What a player makes the server answer counts as well.
func TestInjectedBytesAreCounted(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, e *Engine, n *sockets) {
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 1000)
		p, k := s.joinSocket(e, n, 100, WebSocketFLV{}, roomy)
		synctest.Wait()
		_, before := e.Slow()
		for range 10 {
			p.Inject(make([]byte, 125))
		}
		if _, after := e.Slow(); after != before+1250 {
			t.Errorf("%d bytes for 1250", after-before)
		}
		k.drain(plenty)
		synctest.Wait()
		if _, bytes := e.Slow(); bytes != 0 || p.at() != sharded {
			t.Errorf("%d bytes, place %d", bytes, p.at())
		}
	})
}

// How much may wait in a socket: less for a player that is stuck, more for one that
// is quick but has a large stream.
func TestUnsentBytesFollowThePlayer(t *testing.T) {
	lowat := func(c *net.TCPConn) (n int) {
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT) })
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	e := testEngine(t)
	s := newSource(t)
	s.headers(0)
	s.frame('K', 0, 1000)
	near, far := tcpPair(t)
	p := s.joinOn(e, near, far, FLV{}, Limits{MaxLag: time.Minute, WriteTimeout: time.Minute}, nil)
	p.read(t, 13+len(joinTags(s.all)))
	if got := lowat(near); got != unsentFirst {
		t.Errorf("%d bytes at first", got)
	}
	// The player is stuck from now on.
	s.frame('P', 40, 15<<20)
	within(t, "the socket is tightened", func() bool { return lowat(near) == unsentStuck })
	tag := s.frames[len(s.frames)-1]
	p.read(t, len(tag))
	within(t, "the player is given back", func() bool { return p.at() == sharded })
	if got := lowat(near); got != unsentStuck {
		t.Errorf("%d bytes after the player was stuck", got)
	}
	// It reads at once.
	for i, want := 2, 2*unsentStuck; want <= unsentMost; want *= 2 {
		done := make(chan bool)
		size := 15 + 10 + 2<<20
		go func() { defer close(done); p.read(t, size) }()
		s.frame('P', 40*i, 2<<20)
		<-done
		within(t, "the player is given back", func() bool { return p.at() == sharded })
		if got := lowat(near); got != want && got != want/2 { // on a busy machine it may count as stuck
			t.Errorf("%d bytes, want %d", got, want)
		} else if got == want/2 {
			return
		}
	}
}

// Peers that are gone without a word are found by TCP, in a stalled stream too.
func TestDeadPeersAreFoundByTCP(t *testing.T) {
	e := testEngine(t)
	s := newSource(t)
	f := func(timeout time.Duration, user, idle int) {
		t.Helper()
		near, far := tcpPair(t)
		_ = near.SetKeepAlive(false)
		s.joinOn(e, near, far, FLV{}, Limits{MaxLag: time.Minute, WriteTimeout: timeout}, nil)
		raw, err := near.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(fd uintptr) {
			for _, o := range []struct{ level, name, want int }{
				{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
				{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, user},
				{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, idle},
				{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, idle},
			} {
				if got, err := unix.GetsockoptInt(int(fd), o.level, o.name); err != nil || got != o.want {
					t.Errorf("write timeout %v: option %d is %d (%v), want %d", timeout, o.name, got, err, o.want)
				}
			}
		})
	}
	f(10*time.Second, 10_000, 10)
	f(time.Minute, 60_000, 15)
	f(100*time.Millisecond, 100, 1)
}

// within waits for a condition.
func within(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for tick := time.NewTicker(time.Millisecond); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("not in time: " + what)
		}
	}
}

// The kernel's account of what a player has not taken.
func TestUnacknowledgedBytes(t *testing.T) {
	near, far := tcpPair(t)
	raw, err := near.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	owed := func() (n int) {
		_ = raw.Control(func(fd uintptr) { n = unacknowledged(fd) })
		return n
	}
	if n := owed(); n != 0 {
		t.Errorf("%d bytes of nothing", n)
	}
	full := false
	for total := 0; !full; {
		if err := raw.Write(func(fd uintptr) bool {
			n, err := sendNow(fd, make([]byte, 64<<10))
			total += n
			full = n == 0 || err != nil
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	before := owed()
	if before < 64<<10 {
		t.Errorf("%d bytes in a full socket", before)
	}
	b := make([]byte, 64<<10)
	within(t, "reading shows", func() bool {
		_ = far.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, _ = far.Read(b)
		return owed() < before
	})
	if s := fmt.Sprint(unacknowledged(noFile)); s != "0" {
		t.Errorf("%s bytes of no socket", s)
	}
}
