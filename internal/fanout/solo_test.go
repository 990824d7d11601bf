package fanout

import (
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// costly is a connection each write of which takes time, as those under TLS do.
type costly struct {
	net.Conn
	takes  time.Duration
	writes atomic.Int64
}

func (c *costly) Write(p []byte) (int, error) {
	c.writes.Add(1)
	time.Sleep(c.takes) // the cost, in the time of the test's bubble
	return c.Conn.Write(p)
}

// Players that no shard serves are written to in batches too, once there are many
// of them: each write costs them more than those of shards do.
func TestPlayersWithoutAShardAreBatched(t *testing.T) {
	for _, c := range []struct {
		players   int
		low, high int64 // writes of a player in 2 s of 50 frames per second
	}{
		{1, 90, 110}, // each frame at once: 500 µs is a small part of 20 ms
		{50, 15, 30}, // every 100 ms
	} {
		synctest.Test(t, func(t *testing.T) {
			e := New(Options{Shards: 1, MaxLatency: 100 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
			defer e.Close()
			s := newSource(t)
			s.headers(0)
			var conns []*costly
			var players []*player
			for range c.players {
				near, far := net.Pipe()
				conn := &costly{Conn: near, takes: 400 * time.Microsecond}
				p := s.joinOn(e, conn, far, FLV{}, roomy, nil)
				go io.Copy(io.Discard, far)
				conns, players = append(conns, conn), append(players, p)
			}
			for i := range 100 {
				what := byte('P')
				if i == 0 {
					what = 'K'
				}
				s.frame(what, 20*i, 500)
				time.Sleep(20 * time.Millisecond)
			}
			time.Sleep(time.Second)
			for i, conn := range conns {
				if n := conn.writes.Load(); n < c.low || n > c.high {
					t.Errorf("player %d of %d: %d writes, want %d to %d", i, c.players, n, c.low, c.high)
				}
			}
			want := players[0].Bytes()
			for i, p := range players {
				if p.Bytes() != want || want < 100*500 {
					t.Errorf("player %d of %d: %d bytes, the first has %d", i, c.players, p.Bytes(), want)
				}
			}
			// One that waits for its next batch ends at once.
			s.frame('P', 2000, 500)
			synctest.Wait()
			begun := time.Now()
			players[0].End(Kicked)
			if r := players[0].result2(); r.Reason != Kicked || time.Since(begun) > time.Millisecond {
				t.Errorf("%+v after %v", r, time.Since(begun))
			}
		})
	}
}
