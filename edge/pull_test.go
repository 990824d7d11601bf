package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/session"
	"weir/internal/vhost"
)

// Many players of a stream are one at the upstream, whatever protocol it is
// pulled by; the last one's leaving ends the pull.
func TestOnePull(t *testing.T) {
	f := func(protocol Protocol) {
		t.Run(string(protocol), func(t *testing.T) {
			a := newUpstream(t, "a")
			p := a.air(demo)
			p.send(t, 0, 7)
			cfg := quick().upstreams("rtmp://"+a.rtmp, "http://"+a.http)
			cfg.Pull.Protocol = protocol
			e := startEdge(t, "edge", cfg, nil)
			var crowd []*viewer
			for range 12 {
				crowd = append(crowd, watchAt(t, e.point, "demo"))
			}
			p.send(t, 7, 12)
			for _, v := range crowd {
				v.until(11)
			}
			if n := a.count(&a.plays); n != 1 {
				t.Errorf("%d pulls", n)
			}
			if infos := e.edge.Streams(func(vhost.Key) int { return 12 }); len(infos) != 1 || infos[0].State != "live" || infos[0].Epoch != 7 {
				t.Errorf("streams: %+v", infos)
			}
			for _, v := range crowd {
				v.leave()
			}
			a.awaitSessions(t, "play", 0)
		})
	}
	f(PullRTMP)
	f(PullFLV)
}

// Within the linger time the next player finds the pull as it was.
func TestLinger(t *testing.T) {
	a := newUpstream(t, "a")
	a.air(demo).send(t, 0, 7)
	cfg := quick().upstreams(a.rtmp)
	cfg.Pull.Linger = time.Minute
	e := startEdge(t, "edge", cfg, nil)
	v := watchAt(t, e.point, "demo")
	v.until(6)
	v.leave()
	e.awaitSessions(t, "play", 0)
	watchAt(t, e.point, "demo").until(6)
	if n := a.count(&a.plays); n != 1 {
		t.Errorf("%d pulls", n)
	}
}

func TestLingerEnds(t *testing.T) {
	a := newUpstream(t, "a")
	a.air(demo).send(t, 0, 7)
	cfg := quick().upstreams(a.rtmp)
	cfg.Pull.Linger = 20 * time.Millisecond
	e := startEdge(t, "edge", cfg, nil)
	v := watchAt(t, e.point, "demo")
	v.until(6)
	v.leave()
	a.awaitSessions(t, "play", 0)
	if n := len(e.edge.Streams(func(vhost.Key) int { return 0 })); n != 0 {
		t.Errorf("%d relays are left", n)
	}
}

// silent accepts connections and never says anything.
func silent(t *testing.T) (addr string, accepted chan net.Conn) {
	l := listen(t)
	accepted = make(chan net.Conn, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			accepted <- c
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String(), accepted
}

// The only player leaves while the upstream has not answered yet.
func TestLeaveWhileConnecting(t *testing.T) {
	addr, accepted := silent(t)
	cfg := quick().upstreams(addr)
	cfg.Pull.ConnectTimeout = time.Minute
	e := startEdge(t, "edge", cfg, nil)
	ctx, leave := context.WithCancel(context.Background())
	answered := make(chan error, 1)
	go func() {
		_, err := e.edge.Play(ctx, session.PlayRequest{Target: target(t, e, "demo")})
		answered <- err
	}()
	c := <-accepted
	leave()
	if err := <-answered; !errors.Is(err, context.Canceled) {
		t.Errorf("play: %v", err)
	}
	_ = c.SetReadDeadline(time.Now().Add(deadline))
	if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) {
		t.Error("the connection to the upstream stays open")
	}
	if n := len(e.edge.Streams(func(vhost.Key) int { return 0 })); n != 0 {
		t.Errorf("%d relays are left", n)
	}
}

func target(t *testing.T, e *member, name string) vhost.Target {
	t.Helper()
	tg, err := e.edge.Vhosts().FromRTMP("rtmp://h/live", "live", name)
	if err != nil {
		t.Fatal(err)
	}
	return tg
}

// The first player comes before the publisher and gets everything.
func TestFirstPlayerBeforePublisher(t *testing.T) {
	a := newUpstream(t, "a")
	e := startEdge(t, "edge", quick().upstreams(a.rtmp), nil)
	v := watchLater(t, e.point, "demo")
	eventually(t, "first attempt", func() error {
		if a.count(&a.plays) < 2 {
			return errors.New("not asked yet")
		}
		return nil
	})
	p := a.air(demo)
	p.send(t, 0, 3)
	w := v()
	w.until(2)
	p.send(t, 3, 12)
	w.until(11)
	if w.frames[0] != 0 {
		t.Errorf("the first frame is %d", w.frames[0])
	}
}

func TestNobodyPublishes(t *testing.T) {
	f := func(name string, patience time.Duration) {
		t.Run(name, func(t *testing.T) {
			a := newUpstream(t, "a")
			cfg := quick().upstreams(a.rtmp)
			cfg.Play.WaitPublisher = patience
			e := startEdge(t, "edge", cfg, nil)
			if _, err := e.edge.Play(context.Background(), session.PlayRequest{Target: target(t, e, "demo")}); !errors.Is(err, session.ErrNotFound) {
				t.Errorf("play: %v", err)
			}
			if status, body := get(t, e.point, "/live/demo.flv"); status != 404 || len(body) > 200 {
				t.Errorf("%d %s", status, body)
			}
			if a.count(&a.plays) == 0 {
				t.Error("the upstream was not asked")
			}
		})
	}
	f("no wait", 0)
	f("wait over", 50*time.Millisecond)
}

// A node that asks for what is nowhere is told at once: its players wait there.
func TestNodesDoNotWait(t *testing.T) {
	a := newUpstream(t, "a")
	cfg := quick().upstreams(a.rtmp)
	cfg.Play.WaitPublisher = time.Hour / 12
	e := startEdge(t, "edge", cfg, nil)
	within(t, "answer", func() {
		if _, err := dialPlayer(e.point, "demo", "edge-2", ""); !strings.HasPrefix(code(err), "NetStream.Play.StreamNotFound") {
			t.Errorf("play: %v", err)
		}
	})
}

// One of two upstreams that carry the same frames is lost: players stay, and
// miss and repeat nothing.
func TestUpstreamLost(t *testing.T) {
	a, b := newUpstream(t, "a"), newUpstream(t, "b")
	pa, pb := a.air(demo), b.air(demo)
	pa.send(t, 0, 7)
	pb.send(t, 0, 7)
	e := startEdge(t, "edge", quick().upstreams(a.rtmp, b.rtmp), nil)
	v := watchAt(t, e.point, "demo")
	v.until(6)
	a.stop()
	pb.send(t, 7, 9)
	v.until(8)
	pb.send(t, 9, 14)
	v.until(13)
	if n := b.count(&b.plays); n != 1 {
		t.Errorf("%d pulls at b", n)
	}
	late := watchAt(t, e.point, "demo")
	late.until(13)
}

// All upstreams are away for a while: players stay connected, and go on.
func TestAllUpstreamsDown(t *testing.T) {
	a := newUpstream(t, "a")
	a.air(demo).send(t, 0, 7)
	e := startEdge(t, "edge", quick().upstreams(a.rtmp), nil)
	v := watchAt(t, e.point, "demo")
	v.until(6)
	a.stop()
	again := listenAt(t, a.rtmp)
	a2 := newUpstream(t, "a again", again, listen(t))
	p := a2.air(demo)
	p.send(t, 5, 9) // frames 5 and 6 again
	v.until(8)
	if n := e.sessions("play"); n != 1 {
		t.Errorf("%d players", n)
	}
}

func listenAt(t *testing.T, addr string) net.Listener {
	t.Helper()
	var l net.Listener
	eventually(t, "listen", func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	return l
}

// With no upstream for give_up, or after upstream's end for end_after, the
// players' stream ends.
func TestGiveUp(t *testing.T) {
	cfg := quick()
	cfg.Pull.GiveUp = 100 * time.Millisecond
	a := newUpstream(t, "a")
	a.air(demo).send(t, 0, 7)
	e := startEdge(t, "edge", cfg.upstreams(a.rtmp), nil)
	v := watchAt(t, e.point, "demo")
	v.until(6)
	a.stop()
	v.end()
	v.leave()
	e.awaitSessions(t, "play", 0)
}

func TestEndAfter(t *testing.T) {
	f := func(name string, second func(*testing.T) string) {
		t.Run(name, func(t *testing.T) {
			a := newUpstream(t, "a")
			p := a.air(demo)
			p.send(t, 0, 7)
			addrs := []string{a.rtmp}
			if second != nil {
				addrs = append(addrs, second(t))
			}
			cfg := quick()
			cfg.Pull.GiveUp = time.Minute
			e := startEdge(t, "edge", cfg.upstreams(addrs...), nil)
			v := watchAt(t, e.point, "demo")
			v.until(6)
			a.set(func() { delete(a.streams, demo) })
			p.Close(io.EOF)
			v.end()
		})
	}
	f("one upstream", nil)
	// That another upstream is down does not keep the players of an ended stream.
	f("another one is down", func(t *testing.T) string {
		l := listen(t)
		l.Close()
		return l.Addr().String()
	})
}

// A stream that ends and begins again within end_after goes on for its players.
func TestBeginsAgain(t *testing.T) {
	a := newUpstream(t, "a")
	p := a.air(demo)
	p.send(t, 0, 7)
	cfg := quick().upstreams(a.rtmp)
	cfg.Pull.EndAfter = deadline
	e := startEdge(t, "edge", cfg, nil)
	v := watchAt(t, e.point, "demo")
	v.until(6)
	a.set(func() { delete(a.streams, demo) })
	p.Close(io.EOF)
	e.awaitState(t, "resuming")
	p = a.air(demo)
	p.append(t, header())
	for n := 7; n < 10; n++ { // times begin anew
		kind := "\x27"
		if n == 7 {
			kind = "\x17"
		}
		p.append(t, video(uint32(40*(n-7)), kind+"\x01\x00\x00\x00"+fmt.Sprint(n)))
	}
	v.until(9)
}

func (w *member) awaitState(t *testing.T, want string) {
	t.Helper()
	eventually(t, "state of the stream", func() error {
		infos := w.edge.Streams(func(vhost.Key) int { return 0 })
		if len(infos) != 1 || infos[0].State != want {
			return fmt.Errorf("%+v, want %s", infos, want)
		}
		return nil
	})
}

// A 302 leads to the stream, over RTMP (behind the start of the play) and HTTP.
func TestRedirect(t *testing.T) {
	f := func(scheme string) {
		t.Run(scheme, func(t *testing.T) {
			a, b := newUpstream(t, "a"), newUpstream(t, "b")
			a.redirect = to(b.point)
			b.air(demo).send(t, 0, 7)
			addr := a.rtmp
			if scheme == "http" {
				addr = a.http
			}
			e := startEdge(t, "edge", quick().upstreams(scheme+"://"+addr), nil)
			watchAt(t, e.point, "demo").until(6)
			if n := e.edge.metrics.redirects.Get(); n != 1 {
				t.Errorf("%d redirects", n)
			}
		})
	}
	f("rtmp")
	f("http")
}

// Redirects that lead nowhere end, and the player's refusal names them.
func TestRedirectLoops(t *testing.T) {
	f := func(name, scheme string, most int, build func(t *testing.T) *upstream) {
		t.Run(name+" over "+scheme, func(t *testing.T) {
			a := build(t)
			addr := a.rtmp
			if scheme == "http" {
				addr = a.http
			}
			cfg := quick().upstreams(scheme + "://" + addr)
			cfg.Play.WaitPublisher = 0
			e := startEdge(t, "edge", cfg, nil)
			var err error
			within(t, "refusal", func() {
				_, err = e.edge.Play(context.Background(), session.PlayRequest{Target: target(t, e, "demo")})
			})
			if !errors.Is(err, errLoop) {
				t.Errorf("play: %v", err)
			}
			if n := int(e.edge.metrics.redirects.Get()); n > most {
				t.Errorf("%d redirects, want at most %d", n, most)
			}
		})
	}
	for _, scheme := range []string{"rtmp", "http"} {
		// One attempt may be followed by the beginning of a second.
		f("itself", scheme, 2, func(t *testing.T) *upstream {
			a := newUpstream(t, "a")
			a.set(func() { a.redirect = to(a.point) })
			return a
		})
		f("to and fro", scheme, 4, func(t *testing.T) *upstream {
			a, b := newUpstream(t, "a"), newUpstream(t, "b")
			a.redirect, b.redirect = to(b.point), to(a.point)
			return a
		})
		f("chain", scheme, 8, func(t *testing.T) *upstream {
			last := newUpstream(t, "last")
			last.air(demo).send(t, 0, 7)
			for i := range 4 {
				u := newUpstream(t, fmt.Sprint(i))
				u.redirect = to(last.point)
				last = u
			}
			return last
		})
	}
}

// One upstream's redirects in a circle do not use up the budget of the next.
func TestLoopThenGood(t *testing.T) {
	a, b, c, d := newUpstream(t, "a"), newUpstream(t, "b"), newUpstream(t, "c"), newUpstream(t, "d")
	a.redirect, b.redirect = to(b.point), to(a.point)
	c.redirect = to(d.point)
	d.air(demo).send(t, 0, 7)
	cfg := quick().upstreams(a.rtmp, c.rtmp)
	cfg.Pull.MaxRedirects = 2
	e := startEdge(t, "edge", cfg, nil)
	watchAt(t, e.point, "demo").until(6)
}

// An upstream that accepts and says nothing is left after connect_timeout; one
// that stops sending after read_timeout.
func TestSilentUpstream(t *testing.T) {
	for _, scheme := range []string{"rtmp", "http"} {
		t.Run("before the answer over "+scheme, func(t *testing.T) {
			mute, accepted := silent(t)
			b := newUpstream(t, "b")
			b.air(demo).send(t, 0, 7)
			addr := b.rtmp
			if scheme == "http" {
				addr = b.http
			}
			cfg := quick().upstreams(scheme+"://"+mute, scheme+"://"+addr)
			cfg.Pull.ConnectTimeout = 100 * time.Millisecond
			e := startEdge(t, "edge", cfg, nil)
			watchAt(t, e.point, "demo").until(6)
			if len(accepted) == 0 {
				t.Error("the silent upstream was not tried")
			}
		})
		t.Run("after some frames over "+scheme, func(t *testing.T) {
			a, b := newUpstream(t, "a"), newUpstream(t, "b")
			pa, pb := a.air(demo), b.air(demo)
			pa.send(t, 0, 7)
			pb.send(t, 0, 9)
			addrs := []string{a.rtmp, b.rtmp}
			if scheme == "http" {
				addrs = []string{"http://" + a.http, "http://" + b.http}
			}
			cfg := quick().upstreams(addrs...)
			cfg.Pull.ReadTimeout = 500 * time.Millisecond
			e := startEdge(t, "edge", cfg, nil)
			v := watchAt(t, e.point, "demo")
			v.until(8)
		})
	}
}

// flapping takes every GET of a stream, sends the same frames, and closes.
func flapping(t *testing.T) (addr string, requests func() int) {
	l := listen(t)
	count := make(chan int, 1)
	count <- 0
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		count <- <-count + 1
		fw := flv.NewWriter(w)
		for _, tag := range []media.Tag{header(), frame(0), frame(1)} {
			_ = fw.WriteTag(tag)
		}
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Close()
		<-done
	})
	return l.Addr().String(), func() int {
		n := <-count
		count <- n
		return n
	}
}

// An upstream that takes every pull and ends it at once is not asked in a tight
// loop, and its repeated frames are no sign of life.
func TestFlappingUpstream(t *testing.T) {
	addr, requests := flapping(t)
	cfg := quick().upstreams("http://" + addr)
	cfg.Pull.GiveUp = 500 * time.Millisecond
	cfg.Pull.RetryMin, cfg.Pull.RetryMax = 100*time.Millisecond, 100*time.Millisecond
	e := startEdge(t, "edge", cfg, nil)
	v := watchAt(t, e.point, "demo")
	v.end() // given up
	if n := requests(); n > 20 {
		t.Errorf("%d requests in about half a second", n)
	}
}

// A request that comes back to this edge is refused at once and names why.
func TestCircle(t *testing.T) {
	check := func(t *testing.T, e *member, path string) {
		t.Helper()
		begin := time.Now()
		var err error
		within(t, "refusal", func() {
			_, err = e.edge.Play(context.Background(), session.PlayRequest{Target: target(t, e, "demo")})
		})
		if !errors.Is(err, errCircle) {
			t.Errorf("play: %v", err)
		}
		if _, err := dialPlayer(e.point, "demo", "", ""); !strings.Contains(code(err), circleText) {
			t.Errorf("RTMP: %v", err)
		}
		if status, body := get(t, e.point, path); status != 503 || !strings.Contains(body, circleText) {
			t.Errorf("%s: %d %s", path, status, body)
		}
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("it took %v, as long as waiting for a publisher", d)
		}
	}
	for _, scheme := range []string{"rtmp", "http"} {
		t.Run("its own upstream over "+scheme, func(t *testing.T) {
			r, h := listen(t), listen(t)
			list := []string{"rtmp://" + r.Addr().String(), "http://" + h.Addr().String()}
			cfg := quick().upstreams(list...)
			cfg.Play.WaitPublisher = time.Minute
			cfg.Pull.Protocol = PullRTMP
			if scheme == "http" {
				cfg.Pull.Protocol = PullFLV
			}
			e := startEdge(t, "edge", cfg, nil, r, h)
			check(t, e, "/live/demo.m3u8")
		})
		t.Run("a ring of two over "+scheme, func(t *testing.T) {
			r1, h1, r2, h2 := listen(t), listen(t), listen(t), listen(t)
			cfg := quick()
			cfg.Play.WaitPublisher = time.Minute
			if scheme == "http" {
				cfg.Pull.Protocol = PullFLV
			}
			at := func(r, h net.Listener) []string {
				return []string{"rtmp://" + r.Addr().String(), "http://" + h.Addr().String()}
			}
			e1 := startEdge(t, "edge-1", cfg.upstreams(at(r2, h2)...), nil, r1, h1)
			startEdge(t, "edge-2", cfg.upstreams(at(r1, h1)...), nil, r2, h2)
			check(t, e1, "/live/demo.m3u8")
		})
	}
}

// A client that claims to be a node and to have come through the upstream does
// not spoil the stream for others.
func TestFalseVia(t *testing.T) {
	a := newUpstream(t, "a")
	e1 := startEdge(t, "edge-1", quick().upstreams(a.rtmp), nil)
	cfg := quick().upstreams(e1.rtmp)
	cfg.Pull.Linger = time.Minute
	e2 := startEdge(t, "edge-2", cfg, nil)
	// The liar stays attached to the relay, whose requests all carry its story.
	r, err := e2.edge.attach(target(t, e2, "demo"), "edge-1", false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.detach(false)
	eventually(t, "refusal of the liar's pull", func() error {
		if e1.edge.metrics.loops.Get() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	a.air(demo).send(t, 0, 7)
	eventually(t, "play", func() error {
		c, err := dialPlayer(e2.point, "demo", "", "")
		if err == nil {
			c.Close()
		}
		return err
	})
}

// Discovery's owner comes before the upstreams of the vhost; while discovery is
// away, what was known is used, and what was not is asked of the upstreams.
func TestDiscovery(t *testing.T) {
	dir := newRemote()
	a, b := newUpstream(t, "a"), newUpstream(t, "b")
	b.air(demo).send(t, 0, 7)
	a.air(vhost.DefaultName+"/live/other").send(t, 0, 7)
	dir.own(t, demo, b)
	cfg := quick().upstreams(a.rtmp)
	cfg.Discovery.CacheTTL = 0
	e := startEdge(t, "edge", cfg, dir)
	v := watchAt(t, e.point, "demo")
	v.until(6)
	if n := a.count(&a.plays); n != 0 {
		t.Errorf("a was asked %d times for a stream of b", n)
	}
	v.leave()
	b.awaitSessions(t, "play", 0)
	dir.setAway(true)
	watchAt(t, e.point, "demo").until(6)
	watchAt(t, e.point, "other").until(6)
	if n := a.count(&a.plays); n != 1 {
		t.Errorf("a was asked %d times", n)
	}
}

// The owner of a stream goes without a word; its successor is found by asking
// discovery again, not by waiting for the cache.
func TestOwnerMoves(t *testing.T) {
	dir := newRemote()
	a, b := newUpstream(t, "a"), newUpstream(t, "b")
	pa, pb := a.air(demo), b.air(demo)
	pa.send(t, 0, 7)
	dir.own(t, demo, a)
	cfg := quick()
	cfg.Discovery.CacheTTL = time.Minute
	e := startEdge(t, "edge", cfg, dir)
	v := watchAt(t, e.point, "demo")
	v.until(6)
	pb.send(t, 0, 9)
	dir.own(t, demo, b)
	a.stop()
	v.until(8)
}
