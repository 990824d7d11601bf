package edge

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"weir/hls"
	"weir/internal/media"
	"weir/internal/session"
	"weir/internal/vhost"
)

// awaitOlder waits until an edge has refused a source of an earlier owner.
func awaitOlder(t *testing.T, e *Edge, min uint64) {
	t.Helper()
	eventually(t, "refused sources", func() error {
		if n := e.metrics.older.Get(); n < min {
			return fmt.Errorf("%d, want %d", n, min)
		}
		return nil
	})
}

// The owner of a stream goes. The only other upstream has the stream of an earlier
// owner, and newer frames than the player has: it gets none of them. As soon as the
// upstream has a later one, the player goes on.
func TestEarlierOwnerIsRefused(t *testing.T) {
	f := func(protocol Protocol) {
		t.Run(string(protocol), func(t *testing.T) {
			a, zombie := newUpstream(t, "a"), newUpstream(t, "zombie")
			a.set(func() { a.epoch = 20 })
			zombie.set(func() { zombie.epoch = 10 })
			a.air(demo).send(t, 0, 7)
			pz := zombie.air(demo)
			cfg := quick().upstreams("rtmp://"+a.rtmp, "rtmp://"+zombie.rtmp, "http://"+a.http, "http://"+zombie.http)
			cfg.Pull.Protocol = protocol
			cfg = cfg.vhost(func(v *vhost.Config) { v.Policy = vhost.Hash })
			e := startEdge(t, "edge", cfg, nil)
			// Whichever is asked first, the player begins with a.
			pz.send(t, 100, 101)
			e.edge.epochs.use(demo)
			e.edge.epochs.note(demo, 20)
			v := watchAt(t, e.point, "demo")
			v.until(6)
			before := e.edge.metrics.older.Get()
			a.stop()
			awaitOlder(t, e.edge, before+2)
			zombie.set(func() { zombie.epoch = 30; delete(zombie.streams, demo) })
			pb := zombie.air(demo)
			pb.send(t, 5, 9)
			v.until(8)
		})
	}
	f(PullRTMP)
	f(PullFLV)
}

// The epoch of a stream changes while it is pulled: all workers of the node know,
// and the nodes behind them, without a new pull; and what has shown the later one
// does not go back to the earlier one, through whichever worker.
func TestEpochChangesWithinThePull(t *testing.T) {
	a, zombie := newUpstream(t, "a"), newUpstream(t, "zombie")
	p := a.air(demo)
	p.send(t, 0, 7)
	n := startTeam(t, "edge", 2, quick().upstreams(a.rtmp), nil)
	var views []*viewer
	for _, w := range n.workers {
		views = append(views, watchAt(t, w.point, "demo"))
	}
	leaf := startEdge(t, "leaf", quick().upstreams(n.workers[0].rtmp, zombie.rtmp), nil)
	views = append(views, watchAt(t, leaf.point, "demo"))
	for _, v := range views {
		v.until(6)
	}
	p.append(t, media.EpochMark(20))
	p.send(t, 7, 12)
	all := []*Edge{n.workers[0].edge, n.workers[1].edge, leaf.edge}
	for i, v := range views {
		v.until(11)
		if epoch := all[i].epochs.of(demo); epoch != 20 {
			t.Errorf("%d knows the epoch %d", i, epoch)
		}
		if infos := all[i].Streams(func(vhost.Key) int { return 0 }); len(infos) != 1 || infos[0].Epoch != 20 {
			t.Errorf("%d: %+v", i, infos)
		}
	}
	if plays := a.count(&a.plays); plays != 1 {
		t.Errorf("%d pulls", plays)
	}
	zombie.set(func() { zombie.epoch = 19 })
	zombie.air(demo).send(t, 10, 20)
	n.workers[0].kill()
	awaitOlder(t, leaf.edge, 1)
	if r := leaf.edge.relay(demo); r == nil || r.stream.Stats().LastTime != 11*40 {
		t.Errorf("the leaf has gone on to %+v", r.stream.Stats())
	}
}

// A worker hears of a later owner before the one that pulls has a key frame of it:
// its player gets what is there, the end of the earlier owner's frames, and goes on.
func TestEpochIsHeardOfBeforeItIsShown(t *testing.T) {
	a := newUpstream(t, "a")
	p := a.air(demo)
	p.send(t, 0, 7)
	n := startTeam(t, "edge", 2, quick().upstreams(a.rtmp), nil)
	order := n.workers[0].edge.siblings.order(demo)
	first, second := n.workers[order[0]], n.workers[order[1]]
	before := watchAt(t, second.point, "demo")
	before.until(6)
	p.append(t, media.EpochMark(20))
	p.append(t, frame(7))
	before.until(7)
	second.edge.relay(demo).learn(30)
	p.append(t, media.EpochMark(30))
	p.append(t, frame(8))
	before.until(8) // on the same pull
	if plays := a.count(&a.plays); plays != 1 {
		t.Errorf("%d pulls", plays)
	}

	third := startEdge(t, "leaf", quick().upstreams(first.rtmp), nil)
	third.edge.epochs.use(demo)
	third.edge.epochs.note(demo, 30)
	watchAt(t, third.point, "demo").until(8)
	if n := third.edge.metrics.older.Get(); n != 0 {
		t.Errorf("%d sources were refused", n)
	}
}

// relay returns the relay of a stream, nil if there is none.
func (e *Edge) relay(key string) *relay {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.relays[key]
}

// A source that knows no epochs, as an SRS, is taken, unless discovery names an
// owner with one.
func TestSourceWithoutEpoch(t *testing.T) {
	srs, a := newUpstream(t, "srs"), newUpstream(t, "a")
	srs.set(func() { srs.epoch = 0 })
	ps := srs.air(demo)
	ps.send(t, 0, 7)
	e := startEdge(t, "edge", quick().upstreams(srs.rtmp), nil)
	v := watchAt(t, e.point, "demo")
	v.until(6)

	dir := newRemote()
	dir.own(t, demo, a) // which has it not
	e = startEdge(t, "edge-2", quick().upstreams(srs.rtmp), dir)
	later := watchLater(t, e.point, "demo")
	awaitOlder(t, e.edge, 1)
	a.air(demo).send(t, 0, 9)
	later().until(8)
}

// A redirect out of a map that is behind leads nobody back.
func TestRedirectToAnEarlierOwner(t *testing.T) {
	a, b, zombie := newUpstream(t, "a"), newUpstream(t, "b"), newUpstream(t, "zombie")
	zombie.set(func() { zombie.epoch = 10 })
	zombie.air(demo).send(t, 100, 105)
	b.set(func() { b.epoch = 20 })
	a.set(func() { a.redirect = redirectTo(zombie.point, 10) })
	cfg := quick().upstreams(a.rtmp)
	e := startEdge(t, "edge", cfg, nil)
	e.edge.epochs.use(demo)
	e.edge.epochs.note(demo, 15)
	later := watchLater(t, e.point, "demo")
	awaitOlder(t, e.edge, 1)
	if n := zombie.count(&zombie.plays); n != 0 {
		t.Errorf("the earlier owner was asked %d times", n)
	}
	// One with a later epoch is followed, and what is found there must be of it.
	b.set(func() { b.epoch = 19 })
	b.air(demo).send(t, 0, 7)
	before := e.edge.metrics.older.Get()
	a.set(func() { a.redirect = redirectTo(b.point, 20) })
	awaitOlder(t, e.edge, before+1)
	b.set(func() { b.epoch = 20 })
	later().until(6)
}

// Maps that are behind, each a little less: every redirect names a later owner than the
// one before, and all are followed, although over RTMP each begins as a play.
func TestRedirectsToLaterOwners(t *testing.T) {
	f := func(protocol Protocol) {
		t.Run(string(protocol), func(t *testing.T) {
			a, b, c := newUpstream(t, "a"), newUpstream(t, "b"), newUpstream(t, "c")
			a.set(func() { a.redirect = redirectTo(b.point, 20) })
			b.set(func() { b.redirect = redirectTo(c.point, 30) })
			c.set(func() { c.epoch = 30 })
			c.air(demo).send(t, 0, 7)
			cfg := quick().upstreams("rtmp://"+a.rtmp, "http://"+a.http)
			cfg.Pull.Protocol = protocol
			e := startEdge(t, "edge", cfg, nil)
			watchAt(t, e.point, "demo").until(6)
			if n := e.edge.metrics.older.Get(); n != 0 {
				t.Errorf("%d sources refused", n)
			}
		})
	}
	f(PullRTMP)
	f(PullFLV)
}

// A source that says no epoch and sends nothing is not waited for longer than a
// connection.
func TestSilentSourceWithoutEpoch(t *testing.T) {
	a, mute := newUpstream(t, "a"), newUpstream(t, "mute")
	mute.set(func() { mute.epoch = 0 })
	mute.air(demo)
	a.set(func() { a.redirect = redirectTo(mute.point, 20) })
	cfg := quick().upstreams(a.rtmp)
	cfg.Pull.ReadTimeout, cfg.Pull.ConnectTimeout = time.Hour, 200*time.Millisecond
	e := startEdge(t, "edge", cfg, nil)
	later := watchLater(t, e.point, "demo")
	awaitOlder(t, e.edge, 1)
	mute.awaitSessions(t, "play", 0)
	a.set(func() { a.redirect = nil })
	a.air(demo).send(t, 0, 7)
	a.set(func() { a.epoch = 20 })
	later().until(6)
}

func redirectTo(p *point, epoch uint64) session.Role {
	return &elsewhere{func() session.Redirect { return session.Redirect{RTMP: p.rtmp, HTTP: p.http, Epoch: epoch} }}
}

// The owner of a stream closes it because another one has it: the edge goes there
// at once, by what it is told, and the player sees no gap.
func TestOwnerSendsOn(t *testing.T) {
	f := func(protocol Protocol) {
		t.Run(string(protocol), func(t *testing.T) {
			a, b := newUpstream(t, "a"), newUpstream(t, "b")
			pa, pb := a.air(demo), b.air(demo)
			pa.send(t, 0, 7)
			b.set(func() { b.epoch = 20 })
			cfg := quick().upstreams("rtmp://"+a.rtmp, "http://"+a.http)
			cfg.Pull.Protocol = protocol
			cfg.Pull.RetryMin, cfg.Pull.RetryMax = time.Minute, time.Minute // nothing is left to chance
			e := startEdge(t, "edge", cfg, nil)
			v := watchAt(t, e.point, "demo")
			v.until(6)
			pb.send(t, 5, 9)
			a.set(func() { delete(a.streams, demo) })
			pa.Close(&session.Redirect{RTMP: b.rtmp, HTTP: b.http, Epoch: 20})
			v.until(8)
		})
	}
	f(PullRTMP)
	f(PullFLV)
}

// With a later owner heard of, the present source is left, however well it flows.
// Until the later owner has the stream, nothing comes.
func TestLaterOwnerIsHeardOf(t *testing.T) {
	dir := newRemote()
	a, b := newUpstream(t, "a"), newUpstream(t, "b")
	pa := a.air(demo)
	pa.send(t, 0, 7)
	dir.own(t, demo, a)
	cfg := quick()
	cfg.Discovery.CacheTTL = time.Minute
	e := startEdge(t, "edge", cfg, dir)
	v := watchAt(t, e.point, "demo")
	v.until(6)
	dir.own(t, demo, b)
	e.edge.relay(demo).learn(b.epoch)
	a.awaitSessions(t, "play", 0)
	pa.send(t, 7, 100) // nobody sees them
	b.air(demo).send(t, 5, 9)
	v.until(8)
}

// Where nothing but an earlier owner can be had for as long as players are kept,
// those who come then see what there is.
func TestEarlierOwnerAfterGivingUp(t *testing.T) {
	a, b := newUpstream(t, "a"), newUpstream(t, "b")
	a.set(func() { a.epoch = 20 })
	b.air(demo).send(t, 100, 107)
	a.air(demo).send(t, 0, 7)
	cfg := quick().upstreams(a.rtmp, b.rtmp).vhost(func(v *vhost.Config) { v.Policy = vhost.Hash })
	cfg.Pull.GiveUp = 50 * time.Millisecond
	e := startEdge(t, "edge", cfg, nil)
	e.edge.epochs.use(demo)
	e.edge.epochs.show(demo, 20)
	v := watchAt(t, e.point, "demo")
	v.until(6)
	a.stop()
	v.end()
	watchAt(t, e.point, "demo").until(106)
}

// A playlist of an earlier owner is not shown after one of a later owner.
func TestHLSOfAnEarlierOwner(t *testing.T) {
	a, zombie := newUpstream(t, "a"), newUpstream(t, "zombie")
	playlist := func(epoch, seq int) hls.Object {
		return hls.NewObject(200, "application/vnd.apple.mpegurl", "", fmt.Appendf(nil,
			"#EXTM3U\n#WEIR-EPOCH:%d\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:%d\n#EXTINF:2,\ndemo-1-%d.ts\n", epoch, seq, seq))
	}
	cfg := quick().upstreams("http://"+a.http, "http://"+zombie.http).vhost(func(v *vhost.Config) { v.Policy = vhost.Hash })
	n := startTeam(t, "edge", 2, cfg, nil) // epochs are the origins', whether the edge asks their directory or not
	a.set(func() { a.files["/live/demo.m3u8"] = playlist(20, 5) })
	for _, w := range n.workers {
		if status, body := get(t, w.point, "/live/demo.m3u8"); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
	}
	zombie.set(func() { zombie.files["/live/demo.m3u8"] = playlist(10, 6) })
	a.set(func() { delete(a.files, "/live/demo.m3u8") })
	first := n.workers[0].edge.siblings.order(demo)[0]
	status, body := get(t, n.workers[first].point, "/live/demo.m3u8")
	if status == 200 && body != string(playlist(20, 5).Body) {
		t.Errorf("%d %s", status, body)
	}
	awaitOlder(t, n.workers[first].edge, 1)
	n.workers[first].kill() // the other worker has seen it, too
	status, body = get(t, n.workers[1-first].point, "/live/demo.m3u8")
	if status == 200 && body != string(playlist(20, 5).Body) {
		t.Errorf("from the other worker: %d %s", status, body)
	}
	awaitOlder(t, n.workers[1-first].edge, 1)
	zombie.set(func() { zombie.files["/live/demo.m3u8"] = playlist(30, 7) })
	if status, body = get(t, n.workers[1-first].point, "/live/demo.m3u8"); status != 200 || body != string(playlist(30, 7).Body) {
		t.Errorf("of a later owner: %d %s", status, body)
	}
}

func TestEpochs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEpochs()
		year := uint64(time.Now().AddDate(1, 0, 1).UnixMicro())
		for _, c := range []struct {
			epoch uint64
			later bool
		}{{0, false}, {7, true}, {7, false}, {6, false}, {8, true}, {year, false}, {9, true}} {
			if got := e.note("s", c.epoch); got != c.later {
				t.Errorf("note %d: %v", c.epoch, got)
			}
		}
		e.use("s")
		time.Sleep(2 * keepEpoch)
		if e.of("s") != 9 {
			t.Errorf("forgotten while in use: %d", e.of("s"))
		}
		e.leave("s")
		if e.of("s") != 9 {
			t.Errorf("forgotten at once: %d", e.of("s"))
		}
		time.Sleep(2 * keepEpoch)
		if e.of("s") != 0 {
			t.Errorf("remembered for ever: %d", e.of("s"))
		}
		e.use("used")
		e.note("used", 5)
		for i := range 2 * maxEpochs {
			e.note(fmt.Sprint(i), 1)
		}
		if len(e.latest) > maxEpochs || e.of("used") != 5 {
			t.Errorf("%d are remembered, of the one in use %d", len(e.latest), e.of("used"))
		}
	})
}
