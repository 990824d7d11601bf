package edge

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weir/internal/session"
)

// beatPipe is a connection that follows a beat, with what its peer writes.
func beatPipe(t *testing.T) (c *beatConn, peer net.Conn) {
	near, far := net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	return newBeatConn(near), far
}

// each is a beat.
func each(every, at time.Duration) beat {
	return func() (time.Duration, time.Duration) { return every, at }
}

// reads returns the times, from the beginning on, at which what is written every 10 ms
// is read.
func reads(t *testing.T, c *beatConn, peer net.Conn, size, count int) (at []time.Duration) {
	stop := make(chan bool)
	wrote := make(chan bool)
	go func() {
		defer close(wrote)
		var queue bytes.Buffer // what the kernel would keep
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				queue.Write(make([]byte, size))
			}
			_ = peer.SetWriteDeadline(time.Now().Add(time.Microsecond))
			n, _ := peer.Write(queue.Bytes())
			queue.Next(n)
		}
	}()
	begin := time.Now()
	b := make([]byte, 1<<20)
	for range count {
		if _, err := c.Read(b); err != nil {
			t.Fatal(err)
		}
		at = append(at, time.Since(begin))
	}
	close(stop)
	<-wrote
	return at
}

// Pulls are read with the beat of the players, at its multiples by the clock, once the
// stream flows; without a beat, or with a short one, at once.
func TestPullsAreReadWithTheBeat(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name        string
		beat, every time.Duration // at which is read
		at          time.Duration
		size        int // bytes written every 10 ms
		follow      bool
	}{
		{"not yet", 120 * ms, 10 * ms, 0, 100, false},
		{"no beat", 0, 10 * ms, 0, 100, true},
		{"short beat", 30 * ms, 10 * ms, 0, 100, true},
		{"beat", 120 * ms, 120 * ms, 0, 100, true},
		{"beat of a turn", 120 * ms, 120 * ms, 60 * ms, 100, true},
		{"long beat", 1000 * ms, 250 * ms, 0, 100, true},
		{"large stream", 120 * ms, 30 * ms, 0, 12 << 10, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn, peer := beatPipe(t)
				if c.follow {
					conn.follow(each(c.beat, c.at))
				}
				begin := time.Now()
				at := reads(t, conn, peer, c.size, 30)
				if late := (begin.Add(at[29]).UnixNano() - int64(c.at)) % int64(c.every); late > int64(10*ms) {
					t.Errorf("read %v behind the beat", time.Duration(late))
				}
				for i := 10; i < len(at); i++ {
					if d := at[i] - at[i-1]; d > c.every+10*ms || d < c.every-10*ms {
						t.Fatalf("read at %v, %v later than before, want %v", at[i], d, c.every)
					}
				}
				if most := 20 * (c.every + ms); at[29]-at[9] > most || at[29]-at[9] < 20*(c.every-ms) {
					t.Errorf("20 reads in %v, want %v", at[29]-at[9], 20*c.every)
				}
				conn.Close()
			})
		})
	}
}

// Who closes a pull does not wait for its next read.
func TestPullEndsWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := beatPipe(t)
		c.follow(each(time.Hour, 0))
		go func() { _, _ = peer.Write([]byte("x")) }()
		if _, err := c.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		ended := make(chan error)
		go func() {
			_, err := c.Read(make([]byte, 10))
			ended <- err
		}()
		synctest.Wait()
		c.Close()
		c.Close()
		if err := <-ended; !errors.Is(err, io.ErrClosedPipe) || time.Since(begin) > 0 {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

// Players of an edge whose pulls follow a beat get all of the stream, over both
// protocols.
func TestBeatLosesNothing(t *testing.T) {
	for _, protocol := range []Protocol{PullRTMP, PullFLV} {
		a := newUpstream(t, "a")
		p := a.air(demo)
		p.send(t, 0, 7)
		cfg := quick().upstreams("rtmp://"+a.rtmp, "http://"+a.http)
		cfg.Pull.Protocol = protocol
		var asked atomic.Int64
		e := startEdge(t, "edge", cfg, nil)
		e.edge.beat = func(bool) (every, at time.Duration) { asked.Add(1); return leastBeat, 0 }
		v := watchAt(t, e.point, "demo")
		v.until(6)
		for i := 7; i < 60; i++ {
			p.send(t, i, i+1)
			v.until(i)
		}
		if n := asked.Load(); n < 20 {
			t.Errorf("%s: the beat was asked for %d times", protocol, n)
		}
	}
}

// A pull has the beat of its worker's batches while all its players get those; for
// others it is read with all batches of the node.
func TestWhoseBeat(t *testing.T) {
	a := newUpstream(t, "a")
	a.air(demo).send(t, 0, 7)
	e := startEdge(t, "edge", quick().upstreams(a.rtmp), nil)
	e.edge.beat = func(own bool) (every, at time.Duration) {
		if own {
			return time.Hour, time.Minute
		}
		return time.Second, 0
	}
	key := target(t, e, "demo").Key.String()
	f := func(what string, want time.Duration) {
		t.Helper()
		e.edge.mu.Lock()
		r := e.edge.relays[key]
		e.edge.mu.Unlock()
		if every, _ := r.beat(); every != want {
			t.Errorf("%s: a beat of %v, want %v", what, every, want)
		}
	}
	browse(t, e.point, "demo").until(6)
	watchAt(t, e.point, "demo").until(6)
	f("players", time.Hour)
	node := browse(t, e.point, "demo", session.HeaderNode, "edge-2")
	node.until(6)
	f("players and a node", time.Second)
	node.leave()
	e.awaitSessions(t, "play", 2)
	eventually(t, "the node's leave", func() error {
		if every, _ := e.edge.relays[key].beat(); every != time.Hour {
			return errors.New("it counts still")
		}
		return nil
	})
}

// socketPair returns both ends of a connection.
func socketPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// Between two beats the kernel does not tell of what comes; when nothing has come until
// then, it does at once, and of the end.
func TestBeatWakesForATrickle(t *testing.T) {
	near, far := socketPair(t)
	c := newBeatConn(near)
	c.follow(each(leastBeat, 0))
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	defer context.AfterFunc(ctx, func() { far.Close() })()
	b := make([]byte, 10)
	for i := range 5 {
		read := make(chan error)
		go func() {
			_, err := c.Read(b)
			read <- err
		}()
		select { // the beat passes, and the read waits for data
		case err := <-read:
			t.Fatalf("read %d: %v without data", i, err)
		case <-time.After(3 * leastBeat):
		}
		if _, err := far.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := <-read; err != nil {
			t.Fatalf("read %d: %v", i, err)
		}
		if c.asleep {
			t.Fatalf("read %d: waits for data asleep", i)
		}
	}
	if _, err := far.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(b); err != nil || !c.asleep {
		t.Errorf("what has come until the beat: %v, asleep %v", err, c.asleep)
	}
	far.Close()
	if _, err := c.Read(b); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}
