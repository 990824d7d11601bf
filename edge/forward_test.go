package edge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/discovery"
	"weir/internal/media"
	"weir/internal/rtmp"
	"weir/internal/session"
	"weir/internal/stream"
	"weir/internal/vhost"
)

func publishAt(p *point, name string) (*rtmp.Client, error) {
	cfg := rtmp.DefaultClientConfig()
	cfg.ConnectTimeout = deadline
	u := rtmp.URL{Addr: p.rtmp, TcURL: "rtmp://" + p.rtmp + "/live", App: "live", Name: name}
	c, err := rtmp.Dial(context.Background(), u, cfg)
	if err != nil {
		return nil, err
	}
	if err := c.Publish(context.Background(), name); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func encoderAt(t *testing.T, p *point, name string) *rtmp.Client {
	t.Helper()
	c, err := publishAt(p, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// encode sends the frames from first up to but not including last.
func encode(t *testing.T, c *rtmp.Client, first, last int) {
	t.Helper()
	tags := []media.Tag{}
	if first == 0 {
		tags = append(tags, header())
	}
	for n := first; n < last; n++ {
		tags = append(tags, frame(n))
	}
	if err := c.WriteTags(tags...); err != nil {
		t.Fatal(err)
	}
}

// got returns the frames that an upstream has of a stream, with the headers in
// force at the first.
func (u *upstream) got(key string) (frames []int, times []uint32, headers int) {
	u.mu.Lock()
	p := u.streams[key]
	u.mu.Unlock()
	if p == nil {
		return nil, nil, 0
	}
	c, buf := p.Join(), make([]stream.Entry, 1)
	for {
		run, _ := c.Next(buf)
		if len(run.Entries) == 0 {
			return frames, times, headers
		}
		if run.Headers != nil {
			headers = run.Headers.Len()
		}
		if n := number(run.Entries[0].Tag); n >= 0 {
			frames, times = append(frames, n), append(times, run.Entries[0].Tag.Time())
		}
	}
}

func (u *upstream) awaitFrame(t *testing.T, key string, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("frame %d", want), func() error {
		frames, _, _ := u.got(key)
		if len(frames) == 0 || frames[len(frames)-1] != want {
			return fmt.Errorf("upstream has %v", frames)
		}
		return nil
	})
}

// awaitPublished waits until n publishes at an upstream have ended and returns
// the reasons.
func (u *upstream) awaitPublished(t *testing.T, n int) []string {
	t.Helper()
	var ends []string
	eventually(t, "ends of publishes", func() error {
		u.set(func() { ends = slices.Clone(u.ends) })
		if len(ends) != n {
			return fmt.Errorf("%v", ends)
		}
		return nil
	})
	return ends
}

// What an encoder sends arrives before its proper end does; an encoder that
// drops is a drop upstream too, whose resume window begins.
func TestForward(t *testing.T) {
	a := newUpstream(t, "a")
	e := startEdge(t, "edge", quick().upstreams(a.rtmp), nil)
	c := encoderAt(t, e.point, "demo")
	encode(t, c, 0, 4)
	if err := c.Unpublish(); err != nil {
		t.Fatal(err)
	}
	if ends := a.awaitPublished(t, 1); ends[0] != session.Unpublished {
		t.Errorf("the publish upstream ended as %q", ends[0])
	}
	if frames, _, headers := a.got(demo); !slices.Equal(frames, []int{0, 1, 2, 3}) || headers != 1 {
		t.Errorf("upstream has %v with %d headers", frames, headers)
	}
	c = encoderAt(t, e.point, "demo")
	encode(t, c, 0, 2)
	a.awaitFrame(t, demo, 1)
	none := func(vhost.Key) int { return 0 }
	if l := e.edge.Streams(none); len(l) != 1 || l[0].Source != "publish, forwarded" || l[0].Publisher == nil || l[0].BytesIn == 0 {
		t.Errorf("the admin API has %+v", l)
	}
	c.Close()
	if ends := a.awaitPublished(t, 2); ends[1] != "connection_lost" {
		t.Errorf("the second publish upstream ended as %q", ends[1])
	}
	e.awaitSessions(t, "publish", 0)
	if n := e.edge.metrics.forwards.Get(); n != 0 {
		t.Errorf("%d forwards", n)
	}
	if l := e.edge.Streams(none); len(l) != 0 {
		t.Errorf("the admin API still has %+v", l)
	}
}

// The upstream's answer is the encoder's, in its own words. What only this
// upstream has against it is no reason not to ask the next.
func TestForwardRefused(t *testing.T) {
	f := func(name string, refusal *session.Refusal, want string) {
		t.Run(name, func(t *testing.T) {
			a, b := newUpstream(t, "a"), newUpstream(t, "b")
			a.refuse = refusal
			e := startEdge(t, "edge", quick().upstreams(a.rtmp, b.rtmp), nil)
			c, err := publishAt(e.point, "demo")
			if err == nil {
				c.Close()
			}
			if code(err) != want {
				t.Errorf("%s, want %s", code(err), want)
			}
		})
	}
	f("name taken", &session.Refusal{Code: session.Conflict, Text: "Taken by Alice."}, rtmp.CodePublishBadName+" Taken by Alice.")
	f("key", &session.Refusal{Code: session.Denied, Text: "Wrong key."}, rtmp.CodePublishDenied+" Wrong key.")
	f("busy", &session.Refusal{Code: session.Limit, Text: "Full."}, "<nil>")
	f("stopping", &session.Refusal{Code: session.Stopping, Text: "Bye."}, "<nil>")

	t.Run("all busy", func(t *testing.T) {
		a := newUpstream(t, "a")
		down := listen(t)
		down.Close()
		a.refuse = &session.Refusal{Code: session.Limit, Text: "Full."}
		for range 2 { // whichever is asked first
			e := startEdge(t, "edge", quick().upstreams(a.rtmp, down.Addr().String()), nil)
			if _, err := publishAt(e.point, "demo"); code(err) != rtmp.CodePublishFailed+" Full." {
				t.Errorf("%s", code(err))
			}
		}
	})
	t.Run("no upstream", func(t *testing.T) {
		e := startEdge(t, "edge", quick(), nil)
		if _, err := publishAt(e.point, "demo"); !strings.HasPrefix(code(err), rtmp.CodePublishFailed) {
			t.Errorf("%s", code(err))
		}
	})
}

// The upstream of a publisher dies. The next says for a while that the name is
// taken, as the dead one's lease has not run out; then it gets the stream from a
// key frame on, with headers, on the timeline that the encoder's is.
func TestForwardMoves(t *testing.T) {
	a, b := newUpstream(t, "a"), newUpstream(t, "b")
	e := startEdge(t, "edge", quick().upstreams(a.rtmp, b.rtmp), nil)
	c := encoderAt(t, e.point, "demo")
	encode(t, c, 0, 8)
	a.awaitFrame(t, demo, 7)
	b.set(func() { b.refuse = &session.Refusal{Code: session.Conflict, Text: "Taken."} })
	a.stop()
	eventually(t, "loss of the upstream", func() error {
		if e.edge.metrics.forwardLost.Get() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	encode(t, c, 8, 10)
	b.set(func() { b.refuse = nil })
	b.awaitFrame(t, demo, 9)
	encode(t, c, 10, 13)
	if err := c.Unpublish(); err != nil {
		t.Fatal(err)
	}
	if ends := b.awaitPublished(t, 1); ends[0] != session.Unpublished {
		t.Errorf("the publish at b ended as %q", ends[0])
	}
	// The log of b joins at its newest key frame.
	b.awaitFrame(t, demo, 12)
	b.mu.Lock()
	stats, keys := b.streams[demo].Stats(), 2 // 5 and 10
	b.mu.Unlock()
	if stats.TagsIn != 1+8 || stats.KeyFrames != uint64(keys) {
		t.Errorf("b got %d tags with %d key frames, want the header and frames 5 to 12", stats.TagsIn, stats.KeyFrames)
	}
	if _, times, headers := b.got(demo); headers != 1 || times[0] != 400 {
		t.Errorf("at b the times begin at %v with %d headers", times, headers)
	}
}

// With no upstream for the resume window the encoder is cut, so that it tries
// again by itself.
func TestForwardGivenUp(t *testing.T) {
	a := newUpstream(t, "a")
	cfg := quick().upstreams(a.rtmp)
	cfg.Forward.ResumeWindow = 50 * time.Millisecond
	e := startEdge(t, "edge", cfg, nil)
	c := encoderAt(t, e.point, "demo")
	encode(t, c, 0, 4)
	a.awaitFrame(t, demo, 3)
	a.stop()
	within(t, "cut", func() { <-c.Done() })
	e.awaitSessions(t, "publish", 0)
	ended := e.point.set.GetOrCreateCounter(`weir_sessions_ended_total{kind="publish",protocol="rtmp",peer="client",reason="upstream_lost"}`)
	eventually(t, "sessions that ended as upstream_lost", func() error {
		if n := ended.Get(); n != 1 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
}

// An encoder that stops while an upstream is being sought is not kept for it.
func TestForwardStopsWhileSeeking(t *testing.T) {
	a := newUpstream(t, "a")
	cfg := quick().upstreams(a.rtmp)
	cfg.Forward.ResumeWindow = time.Hour
	e := startEdge(t, "edge", cfg, nil)
	c := encoderAt(t, e.point, "demo")
	encode(t, c, 0, 4)
	a.awaitFrame(t, demo, 3)
	a.stop()
	eventually(t, "loss of the upstream", func() error {
		if e.edge.metrics.forwardLost.Get() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	if err := c.Unpublish(); err != nil {
		t.Fatal(err)
	}
	e.awaitSessions(t, "publish", 0)
}

// A publisher goes to the owner of its name, to the vhost's upstreams, or to any
// origin that is up; the latter also while discovery is away, as last heard.
func TestForwardWhere(t *testing.T) {
	dir := newRemote()
	a, b := newUpstream(t, "a"), newUpstream(t, "b")
	if err := dir.Heartbeat(t.Context(), discovery.Node{
		ID: "a", Instance: "1", Role: discovery.RoleOrigin, State: discovery.StateUp, Addr: discovery.Addr{RTMP: a.rtmp}, TTL: time.Minute,
	}); err != nil {
		t.Fatal(err)
	}
	dir.own(t, demo, b)
	e := startEdge(t, "edge", quick(), dir)
	c := encoderAt(t, e.point, "demo")
	encode(t, c, 0, 2)
	b.awaitFrame(t, demo, 1)
	c.Close()
	for i, name := range []string{"other", "third"} {
		dir.setAway(i == 1)
		c := encoderAt(t, e.point, name)
		encode(t, c, 0, 2)
		a.awaitFrame(t, "__defaultVhost__/live/"+name, 1)
		c.Close()
	}
}

// Publishers go to the origins by the room that these have: of two, one of which is
// almost full, and a third that has not said, most go to the first, and none to the
// third. With the policy least_load it is the same for upstreams that are listed.
func TestForwardByLoad(t *testing.T) {
	dir := newRemote()
	origins := []*upstream{newUpstream(t, "a"), newUpstream(t, "b"), newUpstream(t, "c")}
	var addrs []string
	for i, load := range []map[string]float64{{discovery.LoadEffective: 0.1}, {discovery.LoadEffective: 0.75}, nil} {
		addrs = append(addrs, origins[i].rtmp)
		if err := dir.Heartbeat(t.Context(), discovery.Node{
			ID: fmt.Sprint(i), Instance: "1", Role: discovery.RoleOrigin, State: discovery.StateUp,
			Addr: discovery.Addr{RTMP: origins[i].rtmp}, TTL: time.Minute, Load: load,
		}); err != nil {
			t.Fatal(err)
		}
	}
	cfg := quick()
	listed := quick().upstreams(addrs...).vhost(func(c *vhost.Config) { c.Policy = vhost.LeastLoad })
	for name, cfg := range map[string]Config{"all that are known": cfg, "listed": listed} {
		e := startEdge(t, "edge", cfg, dir)
		first := map[string]int{}
		const rounds = 400
		for range rounds {
			list, err := e.edge.publishCandidates(t.Context(), vhost.Target{Key: vhost.Key{Vhost: vhost.DefaultName, App: "live", Name: "free"}})
			if err != nil || len(list) != 3 {
				t.Fatalf("%s: %v, %v", name, list, err)
			}
			first[list[0].Addr]++
		}
		if a, b, c := first[addrs[0]], first[addrs[1]], first[addrs[2]]; a < rounds*8/10 || b == 0 || c != 0 {
			t.Errorf("%s: first %d, %d and %d times", name, a, b, c)
		}
	}
}

// Publishers that go in a circle are told so at once.
func TestForwardCircle(t *testing.T) {
	r, h := listen(t), listen(t)
	e := startEdge(t, "edge", quick().upstreams(r.Addr().String()), nil, r, h)
	within(t, "refusal", func() {
		if _, err := publishAt(e.point, "demo"); code(err) != rtmp.CodePublishFailed+" "+circleText {
			t.Errorf("%s", code(err))
		}
	})
}

// The edge stops while a publisher is being forwarded.
func TestForwardShutdown(t *testing.T) {
	a := newUpstream(t, "a")
	e := startEdge(t, "edge", quick().upstreams(a.rtmp), nil)
	c := encoderAt(t, e.point, "demo")
	encode(t, c, 0, 2)
	a.awaitFrame(t, demo, 1)
	e.kill()
	within(t, "cut", func() { <-c.Done() })
	if ends := a.awaitPublished(t, 1); ends[0] == session.Unpublished {
		t.Error("the stream was ended upstream, not left to resume")
	}
}

// An upstream that takes nothing is behind by max_lag; then it is sent the newest
// key frame, and what is between is counted as lost, not kept.
func TestForwardSlowUpstream(t *testing.T) {
	f := &forward{edge: &Edge{cfg: quick()}, log: logTo(t, "edge"), ring: stream.New(stream.DefaultLimits())}
	f.edge.cfg.Forward.MaxLag = 500 * time.Millisecond
	p := &program{Stream: f.ring}
	var err error
	if p.pub, err = f.ring.Publish(); err != nil {
		t.Fatal(err)
	}
	cursor := f.ring.Join()
	p.send(t, 0, 200) // 8 s at once, of which one batch is written before it is looked at
	a := newUpstream(t, "a")
	c, err := publishAt(a.point, "demo")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f.ring.Close(errPublisherLeft)
	if _, _, err := f.copy(t.Context(), &upstreamConn{Client: c, addr: a.rtmp}, cursor, ""); err != nil {
		t.Fatal(err)
	}
	a.awaitPublished(t, 1)
	if frames, _, _ := a.got(demo); !slices.Equal(frames, []int{195, 196, 197, 198, 199}) {
		t.Errorf("the upstream's newest frames are %v", frames)
	}
	a.set(func() {
		if n := a.streams[demo].Stats().TagsIn; n > batchTags+10 {
			t.Errorf("the upstream got %d tags", n)
		}
	})
}

// A publisher that its upstream redirects is taken to where that leads: encoders
// do not follow a 302 themselves.
func TestForwardRedirect(t *testing.T) {
	a := newUpstream(t, "a")
	l := listen(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			cfg := rtmp.DefaultServerConfig()
			cfg.RedirectWait, cfg.CloseTimeout = 0, 0
			c := rtmp.NewServerConn(nc, cfg)
			if _, err := c.ReadRequest(); err == nil {
				_ = c.Redirect("rtmp://" + a.rtmp + "/live/demo")
			}
			c.Close()
		}
	}()
	defer func() {
		l.Close()
		<-done
	}()
	e := startEdge(t, "edge", quick().upstreams(l.Addr().String()), nil)
	c := encoderAt(t, e.point, "demo")
	encode(t, c, 0, 2)
	a.awaitFrame(t, demo, 1)
	if n := e.edge.metrics.redirects.Get(); n != 1 {
		t.Errorf("%d redirects", n)
	}
}

// published returns the publishers that came to an upstream.
func (u *upstream) published() []*session.Publisher {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.pubs)
}

// An upstream can know that a publisher is the one that it was before, wherever
// that was: by a secret that no other has.
func TestForwardProvesWhoItIs(t *testing.T) {
	a, b := newUpstream(t, "a"), newUpstream(t, "b")
	middle := startEdge(t, "middle", quick().upstreams(a.rtmp, b.rtmp), nil)
	e := startEdge(t, "edge", quick().upstreams(middle.rtmp), nil)
	c := encoderAt(t, e.point, "demo")
	encode(t, c, 0, 8)
	a.awaitFrame(t, demo, 7)
	encode(t, encoderAt(t, e.point, "other"), 0, 2)
	a.stop()
	encode(t, c, 8, 9)
	b.awaitFrame(t, demo, 8)
	secrets := map[string]map[string]bool{}
	for _, p := range append(a.published(), b.published()...) {
		key := p.Target.Key.String()
		if secrets[key] == nil {
			secrets[key] = map[string]bool{}
		}
		secrets[key][p.Secret] = true
		if len(p.Secret) < 20 || strings.Contains(session.PublisherName(p.Secret), p.Secret) {
			t.Errorf("the secret of %s is %q", key, p.Secret)
		}
	}
	if len(secrets) != 2 || len(secrets[demo]) != 1 {
		t.Errorf("secrets by stream: %v", secrets)
	}
}

// A publisher that gives way, because the upstream or discovery says so, is told
// why, and not sent anywhere else.
func TestForwardGivesWay(t *testing.T) {
	f := func(name, want, reason string, act func(dir *remote, a, b *upstream)) {
		t.Run(name, func(t *testing.T) {
			dir := newRemote()
			a, b := newUpstream(t, "a"), newUpstream(t, "b")
			e := startEdge(t, "edge", quick().upstreams(a.rtmp, b.rtmp), dir)
			dir.own(t, demo, a)
			c := encoderAt(t, e.point, "demo")
			encode(t, c, 0, 2)
			a.awaitFrame(t, demo, 1)
			act(dir, a, b)
			within(t, "end", func() { <-c.Done() })
			if got := code(c.Err()); !strings.HasPrefix(got, want) {
				t.Errorf("the encoder was told %s", got)
			}
			e.awaitSessions(t, "publish", 0)
			if n := len(b.published()); n != 0 {
				t.Errorf("it was sent to another upstream %d times", n)
			}
			ended := e.point.set.GetOrCreateCounter(fmt.Sprintf(`weir_sessions_ended_total{kind="publish",protocol="rtmp",peer="client",reason=%q}`, reason))
			eventually(t, "sessions that ended as "+reason, func() error {
				if n := ended.Get(); n != 1 {
					return fmt.Errorf("%d", n)
				}
				return nil
			})
		})
	}
	f("replaced", rtmp.CodePublishBadName, session.LostLease, func(_ *remote, a, _ *upstream) { a.published()[0].End(session.Replaced) })
	f("kicked", rtmp.CodePublishDenied, session.Kicked, func(_ *remote, a, _ *upstream) { a.published()[0].End(session.Kicked) })
}

// Discovery names another publisher's origin while the upstream, which is frozen,
// takes what it is sent: the publisher gives way.
func TestForwardHearsOfAnother(t *testing.T) {
	dir := newRemote()
	a, b := newUpstream(t, "a"), newUpstream(t, "b")
	e := startEdge(t, "edge", quick().upstreams(a.rtmp), dir)
	dir.own(t, demo, a)
	c := encoderAt(t, e.point, "demo")
	encode(t, c, 0, 2)
	a.awaitFrame(t, demo, 1)
	dir.own(t, demo, b)
	e.edge.owners.Doubt(demo)
	if _, err := e.edge.owners.Lookup(context.Background(), demo); err != nil {
		t.Fatal(err)
	}
	within(t, "end", func() { <-c.Done() })
	if got := code(c.Err()); !strings.HasPrefix(got, rtmp.CodePublishBadName) {
		t.Errorf("the encoder was told %s", got)
	}
}

// The lease of the upstream has ended, and nobody has the stream: the publisher is
// sent to another origin. Where the directory has merely just begun, and is told by
// the owner in time, it stays.
func TestForwardLeavesAnOrphan(t *testing.T) {
	f := func(name string, back bool) {
		t.Run(name, func(t *testing.T) {
			dir := newRemote()
			a, b := newUpstream(t, "a"), newUpstream(t, "b")
			cfg := quick().upstreams(a.rtmp, b.rtmp)
			cfg.Discovery.LeaseTTL = 300 * time.Millisecond
			e := startEdge(t, "edge", cfg, dir)
			dir.own(t, demo, a)
			c := encoderAt(t, e.point, "demo")
			encode(t, c, 0, 8)
			a.awaitFrame(t, demo, 7)
			hear := func() {
				e.edge.owners.Doubt(demo)
				_, _ = e.edge.owners.Lookup(context.Background(), demo)
			}
			hear()
			dir.set(func() { dir.empty = true })
			hear()
			if back {
				dir.set(func() { dir.empty, dir.asked = false, 0 })
				eventually(t, "the directory is asked again", func() error {
					dir.mu.Lock()
					defer dir.mu.Unlock()
					if dir.asked == 0 {
						return errors.New("not yet")
					}
					return nil
				})
				encode(t, c, 8, 9)
				a.awaitFrame(t, demo, 8)
				if n := len(b.published()); n != 0 {
					t.Errorf("it was sent to b %d times", n)
				}
				return
			}
			b.awaitFrame(t, demo, 7)
		})
	}
	f("nobody has it", false)
	f("it is back", true)
}

// The directory tells of a kick while the upstream, which is frozen, takes what it is
// sent: the publisher is ended, unless its ownership began later.
func TestForwardHearsOfAKick(t *testing.T) {
	dir := newRemote()
	a, b := newUpstream(t, "a"), newUpstream(t, "b")
	e := startEdge(t, "edge", quick().upstreams(a.rtmp, b.rtmp), dir)
	dir.own(t, demo, a)
	lease, err := dir.engine.Lookup(t.Context(), demo)
	if err != nil {
		t.Fatal(err)
	}
	c := encoderAt(t, e.point, "demo")
	encode(t, c, 0, 2)
	a.awaitFrame(t, demo, 1)
	e.edge.kicked(discovery.Kicked{Stream: demo, Epoch: lease.Epoch - 1})
	e.edge.kicked(discovery.Kicked{Stream: "v/live/other", Epoch: lease.Epoch})
	encode(t, c, 2, 4)
	a.awaitFrame(t, demo, 3)
	e.edge.kicked(discovery.Kicked{Stream: demo, Epoch: lease.Epoch + 1})
	within(t, "end", func() { <-c.Done() })
	if got := code(c.Err()); !strings.HasPrefix(got, rtmp.CodePublishDenied) {
		t.Errorf("the encoder was told %s", got)
	}
	e.awaitSessions(t, "publish", 0)
	if n := len(b.published()); n != 0 {
		t.Errorf("it was sent to another upstream %d times", n)
	}
}
