package bench

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// What comes for players that drop it is counted to the byte, however much it is, and the
// end is seen, though it comes together with the last bytes.
func TestLoopDrops(t *testing.T) {
	eachWay(t, func(t *testing.T, prepare func(*calls)) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		l, err := newLoop(netip.MustParseAddrPort(listener.Addr().String()), nil, newClock())
		if err != nil {
			t.Fatal(err)
		}
		defer l.close()
		prepare(&l.calls)
		const players = callsAtOnce + 20
		rounds := func(what string, ok func(c count) bool) {
			t.Helper()
			timer := time.NewTicker(time.Millisecond)
			defer timer.Stop()
			for begun := time.Now(); !ok(l.count()); <-timer.C {
				if time.Since(begun) > patience {
					t.Fatalf("no %s: %+v", what, l.count())
				}
				l.round()
			}
		}
		var conns []net.Conn
		for range players {
			l.add(&player{kind: ofFloor})
			l.round()
			c, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conns = append(conns, c)
		}
		rounds("players", func(c count) bool { return c.playing == players })
		size := func(i int) int { return 1000 + i }
		total := 0
		for range 3 {
			for i, c := range conns {
				if _, err := c.Write(make([]byte, size(i))); err != nil {
					t.Fatal(err)
				}
				total += size(i)
			}
			rounds("bytes", func(c count) bool { return c.bytes == uint64(total) })
		}
		// All of one round: bytes, and the end of every second.
		for i, c := range conns {
			if _, err := c.Write(make([]byte, size(i))); err != nil {
				t.Fatal(err)
			}
			if i%2 == 1 {
				c.Close()
			}
		}
		rounds("ends", func(c count) bool { return c.closed == players/2 })
		rounds("last bytes", func(c count) bool { return c.playing == players-players/2 && c.bytes == uint64(total*4/3) })
		l.each(func(p *player) {
			if want := uint64(4 * size(p.place)); p.bytes != want || p.counted != want {
				t.Errorf("player %d: %d bytes, %d counted, want %d", p.place, p.bytes, p.counted, want)
			}
			if (p.state == playerClosed) != (p.place%2 == 1) {
				t.Errorf("player %d is in state %d", p.place, p.state)
			}
		})
	})
}
