package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"weir/internal/session"
	"weir/internal/vhost"
)

// Players on all workers are one pull at the upstream. Its worker dies: the next
// in the order takes over; it comes back: the pull comes back to it. The players
// of the other workers miss and repeat nothing.
func TestWorkersShareOnePull(t *testing.T) {
	a := newUpstream(t, "a")
	p := a.air(demo)
	p.send(t, 0, 7)
	n := startTeam(t, "edge", 3, quick().upstreams(a.rtmp), nil)
	order := n.workers[0].edge.siblings.order(demo)
	views := map[int]*viewer{}
	for _, i := range order {
		views[i] = watchAt(t, n.workers[i].point, "demo")
		views[i].until(6)
	}
	if plays := a.count(&a.plays); plays != 1 {
		t.Fatalf("%d pulls at the upstream", plays)
	}
	if got := n.workers[order[0]].edge.metrics.pulls.Get(); got != 1 || n.pulling() != 3 {
		t.Fatalf("%d pulls of the first worker, %d in all", got, n.pulling())
	}

	n.workers[order[0]].kill()
	p.send(t, 7, 9)
	for _, i := range order[1:] {
		views[i].until(8)
	}
	a.awaitSessions(t, "play", 1)
	if from := n.from(order[1]); from != "rtmp://"+a.rtmp+"/live/demo" {
		t.Errorf("the second worker gets the stream from %q", from)
	}

	n.start(order[0])
	eventually(t, "return of the pull", func() error {
		for _, i := range order[1:] {
			if from, want := n.from(i), fmt.Sprintf("worker %d", order[0]); from != want {
				return fmt.Errorf("worker %d gets the stream from %q, want %q", i, from, want)
			}
		}
		return nil
	})
	p.send(t, 9, 12)
	for _, i := range order[1:] {
		views[i].until(11)
	}
	a.awaitSessions(t, "play", 1)
}

// from is where a worker gets the one stream from.
func (n *team) from(i int) string {
	n.mu.Lock()
	w := n.workers[i]
	n.mu.Unlock()
	for _, s := range w.edge.Streams(func(vhost.Key) int { return 0 }) {
		return s.Source
	}
	return ""
}

// awaitFrom waits until a worker has its stream from there.
func (n *team) awaitFrom(i int, want, what string) {
	n.t.Helper()
	eventually(n.t, what, func() error {
		if from := n.from(i); from != want {
			return fmt.Errorf("the stream comes from %q, want %q", from, want)
		}
		return nil
	})
}

// hang has the pulse say that the worker has just hung.
func (p *pulse) hang() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hung = time.Now()
}

// A worker that hangs (its kernel still takes connections) is not waited for.
func TestWorkerHangs(t *testing.T) {
	a := newUpstream(t, "a")
	a.air(demo).send(t, 0, 7)
	n := startTeam(t, "edge", 2, quick().upstreams(a.rtmp), nil)
	order := n.workers[0].edge.siblings.order(demo)
	n.workers[order[0]].kill()
	mute, _ := silent(t)
	n.mu.Lock()
	n.sockets[order[0]] = mute
	n.mu.Unlock()
	v := watchAt(t, n.workers[order[1]].point, "demo")
	v.until(6)
	if plays := a.count(&a.plays); plays != 1 {
		t.Errorf("%d pulls", plays)
	}
	n.mu.Lock()
	n.sockets[order[0]] = "" // for the cleanup of n
	n.mu.Unlock()
}

// A worker that goes on after it has hung has logs that end where it stopped. Until
// it has caught up nobody takes a stream from it.
func TestWorkerThaws(t *testing.T) {
	a := newUpstream(t, "a")
	p := a.air(demo)
	p.send(t, 0, 7)
	n := startTeam(t, "edge", 2, quick().upstreams(a.rtmp), nil)
	order := n.workers[0].edge.siblings.order(demo)
	n.workers[order[0]].edge.siblings.pulse.hang()
	v := watchAt(t, n.workers[order[1]].point, "demo")
	v.until(6)
	if from := n.from(order[1]); from != "rtmp://"+a.rtmp+"/live/demo" {
		t.Errorf("a worker takes the stream from %q", from)
	}
	n.awaitFrom(order[1], fmt.Sprint("worker ", order[0]), "return to the worker that has caught up")
	p.send(t, 7, 9)
	v.until(8)
}

// A worker that lives, but has lost its source of a stream while it hung and seeks
// another one, is not taken for better than one that has a source.
func TestWorkerWithoutASource(t *testing.T) {
	a := newUpstream(t, "a")
	p := a.air(demo)
	p.send(t, 0, 7)
	n := startTeam(t, "edge", 2, quick().upstreams(a.rtmp), nil)
	order := n.workers[0].edge.siblings.order(demo)
	first, second := n.workers[order[0]], n.workers[order[1]]
	watchAt(t, first.point, "demo").until(6)
	first.edge.siblings.pulse.hang()
	v := watchAt(t, second.point, "demo")
	v.until(6)
	r := first.edge.relay(demo)
	_, _, from := r.state()
	r.change(func() { r.from = "" })
	eventually(t, "the first worker lives", func() error {
		if !second.edge.siblings.lives(t.Context(), order[0], "") {
			return errors.New("it does not")
		}
		return nil
	})
	second.edge.siblings.lookOnce(t.Context())
	if from := n.from(order[1]); from != "rtmp://"+a.rtmp+"/live/demo" {
		t.Errorf("the second worker takes the stream from %q", from)
	}
	r.change(func() { r.from = from })
	n.awaitFrom(order[1], fmt.Sprint("worker ", order[0]), "return to the first worker")
	p.send(t, 7, 9)
	v.until(8)
}

func TestPulse(t *testing.T) {
	begin := time.Now()
	var p pulse
	f := func(ms int, want bool) {
		t.Helper()
		if got := p.steady(begin.Add(time.Duration(ms) * time.Millisecond)); got != want {
			t.Errorf("after %d ms steady is %t", ms, got)
		}
	}
	f(0, true)
	f(100, true)
	f(1100, true)  // as long as it is waited for
	f(2200, false) // longer
	f(2100, false) // a moment before, looked at by another goroutine
	f(3100, false)
	f(4100, false)
	f(4200, true)
	f(5300, false)
}

// A player that comes before the publisher, to a worker that is not the one to
// pull, waits as well; the one that waits in vain is told so.
func TestWaitAtAnotherWorker(t *testing.T) {
	a := newUpstream(t, "a")
	n := startTeam(t, "edge", 2, quick().upstreams(a.rtmp), nil)
	other := n.workers[n.workers[0].edge.siblings.order(demo)[1]]
	v := watchLater(t, other.point, "demo")
	eventually(t, "first attempt", func() error {
		if a.count(&a.plays) == 0 {
			return errors.New("not asked yet")
		}
		return nil
	})
	a.air(demo).send(t, 0, 3)
	v().until(2)

	cfg := quick().upstreams(a.rtmp)
	cfg.Play.WaitPublisher = 50 * time.Millisecond
	n = startTeam(t, "short", 2, cfg, nil)
	other = n.workers[n.workers[0].edge.siblings.order(vhost.DefaultName + "/live/nothing")[1]]
	if _, err := other.edge.Play(context.Background(), session.PlayRequest{Target: target(t, other, "nothing")}); !errors.Is(err, session.ErrNotFound) {
		t.Errorf("play: %v", err)
	}
}

// The end of a stream reaches the players of all workers.
func TestEndAtAllWorkers(t *testing.T) {
	a := newUpstream(t, "a")
	p := a.air(demo)
	p.send(t, 0, 7)
	n := startTeam(t, "edge", 2, quick().upstreams(a.rtmp), nil)
	var all []*viewer
	for _, w := range n.workers {
		v := watchAt(t, w.point, "demo")
		v.until(6)
		all = append(all, v)
	}
	a.set(func() { delete(a.streams, demo) })
	p.Close(errEnded)
	for _, v := range all {
		v.end()
	}
}

// All workers agree on the order; the loss of one moves only its streams.
func TestOrder(t *testing.T) {
	never := func(context.Context, int) (net.Conn, error) { return nil, errors.New("dead") }
	e := &Edge{}
	five, four := newSiblings(e, Options{Index: 0, Count: 5, DialSibling: never}), newSiblings(e, Options{Index: 3, Count: 4, DialSibling: never})
	defer five.close()
	defer four.close()
	first := map[int]int{}
	for i := range 1000 {
		key := fmt.Sprintf("v/live/%d", i)
		o5, o4 := five.order(key), four.order(key)
		first[o5[0]]++
		if o5[0] != 4 && o5[0] != o4[0] {
			t.Fatalf("%s moves from worker %d to %d when worker 4 goes", key, o5[0], o4[0])
		}
	}
	for i := range 5 {
		if first[i] < 100 {
			t.Errorf("worker %d is first for %d of 1000 streams", i, first[i])
		}
	}
}

// A thousand players want a stream that nobody plays yet, at all workers at once:
// the upstream is asked once.
func TestHerdOnAColdStream(t *testing.T) {
	const herd = 1000
	a := newUpstream(t, "a")
	a.air(demo).send(t, 0, 7)
	n := startTeam(t, "edge", 2, quick().upstreams(a.rtmp), nil)
	var wg sync.WaitGroup
	feeds := make([]session.Feed, herd)
	errs := make([]error, herd)
	starting := make(chan struct{})
	for i := range herd {
		w := n.workers[i%2]
		request := session.PlayRequest{Target: target(t, w, "demo")}
		wg.Go(func() {
			<-starting
			feeds[i], errs[i] = w.edge.Play(context.Background(), request)
		})
	}
	close(starting)
	within(t, "answers", wg.Wait)
	for i, err := range errs {
		if err != nil || feeds[i].Stream.Stats().KeyFrames == 0 {
			t.Fatalf("player %d: %v", i, err)
		}
	}
	if plays := a.count(&a.plays); plays != 1 {
		t.Errorf("%d pulls for %d players", plays, herd)
	}
	for _, f := range feeds {
		f.Release()
	}
}
