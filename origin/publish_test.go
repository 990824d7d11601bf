package origin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weir/discovery"
	"weir/hls"
	"weir/internal/media"
	"weir/internal/rtmp"
	"weir/internal/session"
	"weir/internal/vhost"
)

// alice publishes, bob watches. When she stops, he is told at once, and the name
// is free, here and in the directory.
func TestProperEnd(t *testing.T) {
	dir := newMemory()
	a := start(t, "a", quick(), dir)
	alice, bob := a.watched("demo")
	if err := alice.Unpublish(); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, bob)
	a.awaitState("demo", "")
	eventually(t, "lease", func() error {
		if _, err := dir.Lookup(context.Background(), key+"demo"); !errors.Is(err, discovery.ErrNotFound) {
			return fmt.Errorf("lookup: %v", err)
		}
		return nil
	})
	a.awaitEnded("publish", "unpublished", 1)
}

func TestConflict(t *testing.T) {
	replacing := quick().withDefault(func(v *vhost.Config) { v.Publish.OnConflict = vhost.Replace })
	f := func(name string, cfg Config, second string, want string) {
		t.Run(name, func(t *testing.T) {
			dir := newMemory()
			a, b := start(t, "a", cfg, dir), start(t, "b", cfg, dir)
			alice, bob := a.watched("demo")
			at := map[string]*site{"a": a, "b": b}[second]
			carol, err := at.publish("demo")
			if want != "" {
				if got := code(err); got != want {
					t.Fatalf("the second publisher got %s, want %s", got, want)
				}
				if a.state("demo") != "live" {
					t.Error("the first publisher's stream is not live any more")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer carol.Close()
			if err := awaitCut(t, alice); code(err) != rtmp.CodePublishBadName {
				t.Errorf("the first publisher was told %v", err)
			}
			send(t, carol, frames("carol", 3))
			if second == "b" { // bob is sent to b, where he is, and whenever he comes
				awaitMoved(t, bob, "rtmp://"+b.rtmp+"/live/demo", 0)
				if err := a.playAnswer("demo"); code(err) != "302 rtmp://"+b.rtmp+"/live/demo" {
					t.Errorf("play at a: %v", err)
				}
				a.awaitEnded("publish", reasonLost, 1)
				bob = b.mustPlay("demo")
			} else {
				a.awaitEnded("publish", reasonReplaced, 1)
			}
			await(t, bob, "carol 2")
		})
	}
	f("reject on the same origin", quick(), "a", rtmp.CodePublishBadName)
	f("reject on another origin", quick(), "b", rtmp.CodePublishBadName)
	f("replace on the same origin", replacing, "a", "")
	f("replace on another origin", replacing, "b", "")
}

// A thousand publishers want one name at two origins at once: one gets it, all
// others are answered.
func TestThousandRivals(t *testing.T) {
	const rivals = 1000
	dir := newMemory()
	cfg := quick()
	cfg.Discovery.LeaseTTL = time.Minute // a machine that a thousand rivals keep busy renews late
	sites := []*site{start(t, "a", cfg, dir), start(t, "b", cfg, dir)}
	var wg sync.WaitGroup
	answers := make([]string, rivals)
	var winners atomic.Int32
	starting := make(chan struct{})
	for i := range rivals {
		wg.Go(func() {
			s := sites[i%2]
			c, u, err := s.dial("demo", rtmp.DefaultClientConfig())
			if err != nil {
				answers[i] = err.Error()
				return
			}
			t.Cleanup(func() { c.Close() })
			<-starting
			if err := c.Publish(context.Background(), u.Name); err != nil {
				answers[i] = code(err)
				return
			}
			winners.Add(1)
		})
	}
	close(starting)
	within(t, "answers", wg.Wait)
	if n := winners.Load(); n != 1 {
		t.Errorf("%d publishers have the name", n)
	}
	for i, a := range answers {
		if a != "" && a != rtmp.CodePublishBadName {
			t.Errorf("rival %d got %s", i, a)
		}
	}
	lease, err := dir.Lookup(context.Background(), key+"demo")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sites {
		if live := s.state("demo") == "live"; live != (lease.Node == s.origin.node) {
			t.Errorf("%s: live is %v, the owner is %s", s.origin.node, live, lease.Node)
		}
	}
}

func TestResume(t *testing.T) {
	t.Run("on the same origin", func(t *testing.T) {
		a := start(t, "a", quick(), newMemory())
		alice := a.mustPublish("demo")
		send(t, alice, frames("alice", 3))
		bob := a.mustPlay("demo")
		before := await(t, bob, "alice 2")
		alice.Close()
		a.awaitState("demo", "resuming")
		send(t, a.mustPublish("demo"), frames("again", 3))
		if after := await(t, bob, "again 0"); after <= before {
			t.Errorf("the time went from %d to %d", before, after)
		}
	})
	t.Run("on another origin", func(t *testing.T) {
		dir := newMemory()
		a, b := start(t, "a", quick(), dir), start(t, "b", quick(), dir)
		alice, bob := a.watched("demo")
		alice.Close()
		eventually(t, "publish at b", func() error { // the idle mark is on its way
			c, err := b.publish("demo")
			if err == nil {
				t.Cleanup(func() { c.Close() })
			}
			return err
		})
		awaitMoved(t, bob, "rtmp://"+b.rtmp+"/live/demo", 0)
		a.awaitState("demo", "")
		if b.state("demo") != "live" {
			t.Error("b has no stream")
		}
		if l, err := dir.Lookup(context.Background(), key+"demo"); err != nil || l.Node != "b" {
			t.Errorf("owner: %+v, %v", l, err)
		}
	})
	t.Run("window over", func(t *testing.T) {
		cfg := quick()
		cfg.Publish.ResumeWindow = 50 * time.Millisecond
		dir := newMemory()
		a := start(t, "a", cfg, dir)
		alice, bob := a.watched("demo")
		alice.Close()
		awaitEnd(t, bob)
		a.awaitState("demo", "")
		eventually(t, "lease", func() error {
			if _, err := dir.Lookup(context.Background(), key+"demo"); !errors.Is(err, discovery.ErrNotFound) {
				return fmt.Errorf("lookup: %v", err)
			}
			return nil
		})
	})
	t.Run("no window", func(t *testing.T) {
		cfg := quick()
		cfg.Publish.ResumeWindow = 0
		a := start(t, "a", cfg, newMemory())
		alice, bob := a.watched("demo")
		alice.Close()
		awaitEnd(t, bob)
	})
}

// The publisher returns again and again just when the window ends: whatever
// comes first, it gets the name, and the origin then holds the lease.
func TestReturnAtTheLastMoment(t *testing.T) {
	cfg := quick()
	cfg.Publish.ResumeWindow = 3 * time.Millisecond
	dir := newMemory()
	a := start(t, "a", cfg, dir)
	for range 60 {
		var alice *rtmp.Client
		eventually(t, "publish", func() (err error) { // refused while the drop has not been noticed
			alice, err = a.publish("demo")
			return err
		})
		l, err := dir.Lookup(context.Background(), key+"demo")
		if err != nil || l.Node != "a" {
			t.Fatalf("owner of a live stream: %+v, %v", l, err)
		}
		alice.Close()
	}
}

// gated lets the first Release wait before it begins.
type gated struct {
	Owner
	arrived, gate chan struct{}
}

func (g *gated) Release(ctx context.Context, stream string) error {
	select {
	case g.arrived <- struct{}{}:
		<-g.gate
	default:
	}
	return g.Owner.Release(ctx, stream)
}

// alice stops; while her lease is on its way back, carol publishes the name.
// Her lease is a new one, and nobody gives it back.
func TestLeaseOfTheNextIsNotReleased(t *testing.T) {
	dir := newMemory()
	release := &gated{arrived: make(chan struct{}, 1), gate: make(chan struct{})}
	a := startWith(t, "a", quick(), dir, func(o Owner) Owner {
		release.Owner = o
		return release
	})
	alice := a.mustPublish("demo")
	before, err := dir.Lookup(context.Background(), key+"demo")
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- alice.Unpublish() }()
	within(t, "release", func() { <-release.arrived })
	published := make(chan *rtmp.Client, 1)
	go func() {
		c, err := a.publish("demo")
		if err != nil {
			t.Error(err)
		}
		published <- c
	}()
	if s := a.state("demo"); s != "" {
		t.Errorf("the stream that ended is %s", s)
	}
	var carol *rtmp.Client
	select {
	case carol = <-published:
		t.Error("a second publication began before the lease of the first was given back")
		close(release.gate)
	case <-time.After(100 * time.Millisecond): // it waits, as it should
		close(release.gate)
		within(t, "second publication", func() { carol = <-published })
	}
	if carol == nil {
		return
	}
	defer carol.Close()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	after, err := dir.Lookup(context.Background(), key+"demo")
	if err != nil || after.Epoch <= before.Epoch {
		t.Errorf("lease of the second publication: %+v, %v; the first had epoch %d", after, err, before.Epoch)
	}
	if _, err := a.holder.Own(context.Background(), key+"demo"); err != nil {
		t.Errorf("the holder does not renew the lease: %v", err)
	}
}

// Another origin has a later epoch: the publisher is cut, the players are told.
func TestLeaseLost(t *testing.T) {
	dir := newMemory()
	a := start(t, "a", quick(), dir)
	alice, bob := a.watched("demo")
	node, err := a.play("demo", "edge-1")
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	_, flv := a.getFLV("demo", "edge-1")
	l, err := dir.Claim(context.Background(), discovery.Claim{
		Stream: key + "demo", Node: "b", Instance: "1", Replace: true,
		Addr: discovery.Addr{RTMP: "198.51.100.1:1935", HTTP: "198.51.100.1:8080"}, TTL: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := awaitCut(t, alice); code(err) != rtmp.CodePublishBadName {
		t.Errorf("the publisher was told %v", err)
	}
	awaitMoved(t, bob, "rtmp://198.51.100.1:1935/live/demo", 0)
	awaitMoved(t, node, "rtmp://198.51.100.1:1935/live/demo", l.Epoch)
	for {
		tag, err := flv.ReadTag()
		if err != nil {
			t.Fatal(err)
		}
		if addr, epoch, ok := media.MovedTo(tag); ok {
			if addr != "198.51.100.1:8080" || epoch != l.Epoch {
				t.Errorf("moved to %s with epoch %d", addr, epoch)
			}
			break
		}
	}
	a.awaitEnded("play", "redirect", 2)
	a.awaitEnded("publish", reasonLost, 1)
	a.awaitState("demo", "")
	if l, err := dir.Lookup(context.Background(), key+"demo"); err != nil || l.Node != "b" {
		t.Errorf("owner: %+v, %v", l, err)
	}
}

// alice drops and comes back to an origin that has not yet learned that another
// one has her stream: she is refused, and what was left of it ends. The origin is
// told of the loss from within its own claim.
func TestLostInsideClaim(t *testing.T) {
	cfg := quick()
	cfg.Discovery.LeaseTTL = time.Hour // no renewal meanwhile
	dir := newMemory()
	a := start(t, "a", cfg, dir)
	alice, bob := a.watched("demo")
	alice.Close()
	a.awaitState("demo", "resuming")
	if _, err := dir.Claim(context.Background(), discovery.Claim{
		Stream: key + "demo", Node: "b", Instance: "1", Replace: true, TTL: time.Minute,
		Addr: discovery.Addr{RTMP: "198.51.100.1:1935"},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.publish("demo"); code(err) != rtmp.CodePublishBadName {
		t.Errorf("publish: %v", err)
	}
	awaitMoved(t, bob, "rtmp://198.51.100.1:1935/live/demo", 0)
	a.awaitState("demo", "")
}

// The epoch of a stream is told to nodes, before the first frame and within the
// stream, in each protocol and in redirects; to nobody else; and again when the
// directory, back from an outage, has granted a later one. What a publisher says
// under the name of a mark is not passed on.
func TestEpochIsTold(t *testing.T) {
	dir := newMemory()
	cfg := quick()
	cfg.Discovery.LeaseTTL = 300 * time.Millisecond
	a, b := start(t, "a", cfg, dir), start(t, "b", cfg, dir)
	alice := a.mustPublish("demo")
	send(t, alice, append(frames("alice", 3), media.EpochMark(1<<40)))
	l, err := dir.Lookup(context.Background(), key+"demo")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "frames", func() error {
		a.origin.mu.Lock()
		defer a.origin.mu.Unlock()
		if p := a.origin.live(key + "demo"); p == nil || p.stream.Stats().KeyFrames == 0 {
			return errors.New("none yet")
		}
		return nil
	})

	node, err := a.play("demo", "edge-1")
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	first, err := node.ReadTag()
	if epoch, ok := media.EpochOf(first); err != nil || !ok || epoch != l.Epoch {
		t.Errorf("a node is told the epoch %d, %v, %v first, want %d", epoch, ok, err, l.Epoch)
	}
	header, flv := a.getFLV("demo", "edge-1")
	if got := header.Get(session.HeaderEpoch); got != fmt.Sprint(l.Epoch) {
		t.Errorf("header %q, want %d", got, l.Epoch)
	}
	first, err = flv.ReadTag()
	if epoch, ok := media.EpochOf(first); err != nil || !ok || epoch != l.Epoch {
		t.Errorf("over HTTP-FLV a node is told the epoch %d, %v, %v first", epoch, ok, err)
	}
	header, flv = a.getFLV("demo", "")
	if got := header.Get(session.HeaderEpoch); got != "" {
		t.Errorf("a player is told %q", got)
	}
	for range 4 {
		if tag, err := flv.ReadTag(); err != nil || media.IsMark(tag) {
			t.Errorf("a player gets %q, %v", tag, err)
		}
	}

	var moved *rtmp.RedirectError
	c, err := b.play("demo", "edge-1")
	if err == nil {
		_, err = c.ReadTag()
		c.Close()
	}
	if !errors.As(err, &moved) || moved.Epoch != l.Epoch {
		t.Errorf("a node is redirected by %v with epoch %+v", err, moved)
	}
	if header, _ := b.getFLV("demo", "edge-1"); header.Get(session.HeaderEpoch) != fmt.Sprint(l.Epoch) {
		t.Errorf("redirect with %v", header)
	}

	// The directory, back from an outage, grants the name again.
	a.origin.mu.Lock()
	p := a.origin.streams[key+"demo"]
	a.origin.mu.Unlock()
	p.regained(discovery.Lease{Node: "b", Epoch: l.Epoch + 2}) // which OnLost tells
	p.regained(discovery.Lease{Node: "a", Epoch: l.Epoch + 1})
	for {
		tag, err := node.ReadTag()
		if err != nil {
			t.Fatal(err)
		}
		if epoch, ok := media.EpochOf(tag); ok && epoch == l.Epoch+1 {
			break
		}
	}
}

// Playlists tell it as well, to everybody, and the later one when the directory has
// granted that, although nobody publishes at that moment.
func TestPlaylistTellsEpoch(t *testing.T) {
	cfg := quick().withDefault(func(v *vhost.Config) { v.HLS.TargetDuration = 2 * time.Second })
	dir := newMemory()
	a := start(t, "a", cfg, dir)
	alice := a.mustPublish("demo")
	sendClip(t, alice, 9000)
	told := func(want uint64) {
		t.Helper()
		_, _, playlist := a.get("/live/demo.m3u8")
		if epoch, ok := hls.PlaylistEpoch([]byte(playlist)); !ok || epoch != want {
			t.Errorf("epoch %d, %t, want %d in\n%s", epoch, ok, want, playlist)
		}
	}
	l, err := dir.Lookup(context.Background(), key+"demo")
	if err != nil {
		t.Fatal(err)
	}
	told(l.Epoch)
	alice.Close()
	a.awaitState("demo", "resuming")
	a.origin.mu.Lock()
	p := a.origin.streams[key+"demo"]
	a.origin.mu.Unlock()
	p.regained(discovery.Lease{Node: "a", Epoch: l.Epoch + 1})
	told(l.Epoch + 1)
}

// An origin that shares no directory says nothing: an encoder may publish to
// another one at the same time.
func TestEpochIsNotTold(t *testing.T) {
	cfg := quick()
	cfg.Discovery.URLs = nil
	a := start(t, "a", cfg, newMemory())
	send(t, a.mustPublish("demo"), frames("alice", 3))
	a.awaitState("demo", "live")
	header, flv := a.getFLV("demo", "edge-1")
	if tag, err := flv.ReadTag(); err != nil || media.IsMark(tag) || header.Get(session.HeaderEpoch) != "" {
		t.Errorf("a node is told %v, %q, %v", header, tag, err)
	}
}

// A publisher whose node proves that it is the same one as before gets its stream
// at once, although the directory and the origin still have the first: it is the
// one who knows that it is there no more. Another is refused.
func TestSamePublisher(t *testing.T) {
	f := func(name string, second string) {
		t.Run(name, func(t *testing.T) {
			dir := newMemory()
			a, b := start(t, "a", quick(), dir), start(t, "b", quick(), dir)
			alice, err := a.publishAs("demo", "secret of alice")
			if err != nil {
				t.Fatal(err)
			}
			defer alice.Close()
			send(t, alice, frames("alice", 3))
			at := map[string]*site{"a": a, "b": b}[second]
			for _, secret := range []string{"", "secret of carol", session.PublisherName("secret of alice")} {
				if _, err := at.publishAs("demo", secret); code(err) != rtmp.CodePublishBadName {
					t.Errorf("with the secret %q: %v", secret, err)
				}
			}
			before, err := dir.Lookup(context.Background(), key+"demo")
			if err != nil {
				t.Fatal(err)
			}
			again, err := at.publishAs("demo", "secret of alice")
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			l, err := dir.Lookup(context.Background(), key+"demo")
			if err != nil || l.Node != second || (l.Epoch > before.Epoch) != (second == "b") {
				t.Errorf("owner before %+v, now %+v, %v", before, l, err)
			}
			if got, want := again.Started().Text(rtmp.InfoEpoch), fmt.Sprint(l.Epoch); got != want {
				t.Errorf("the publisher is told the epoch %q, want %q", got, want)
			}
			awaitCut(t, alice)
			send(t, again, frames("alice again", 3))
			await(t, at.mustPlay("demo"), "alice again 2")
		})
	}
	f("at the same origin", "a")
	f("at another origin", "b")
}

// down is a directory that cannot be reached.
type down struct{ discovery.Directory }

func (down) Claim(context.Context, discovery.Claim) (discovery.Lease, error) {
	return discovery.Lease{}, discovery.ErrUnavailable
}
func (down) Lookup(context.Context, string) (discovery.Lease, error) {
	return discovery.Lease{}, discovery.ErrUnavailable
}
func (down) Renew(context.Context, discovery.Renewal) ([]discovery.Lost, error) {
	return nil, discovery.ErrUnavailable
}
func (down) Release(context.Context, discovery.Lease) error { return discovery.ErrUnavailable }

// Without the directory publishers are taken all the same; only who owns what is
// not here cannot be said.
func TestDirectoryDown(t *testing.T) {
	a := start(t, "a", quick(), down{newMemory()})
	alice := a.mustPublish("demo")
	send(t, alice, frames("alice", 3))
	await(t, a.mustPlay("demo"), "alice 2")
	if _, err := a.play("other", ""); code(err) != rtmp.CodePlayFailed {
		t.Errorf("play of an unknown stream: %v", err)
	}
	if status, header, body := a.get("/live/other.flv"); status != 503 || header.Get("Retry-After") == "" {
		t.Errorf("HTTP-FLV of an unknown stream: %d %v %q", status, header, body)
	}
	if err := alice.Unpublish(); err != nil {
		t.Fatal(err)
	}
	a.awaitState("demo", "")
}

// A claim that fails gives the name's place back.
func TestClaimFails(t *testing.T) {
	cfg := discovery.DefaultServerConfig().Memory()
	cfg.MaxStreams = 1
	a := start(t, "a", quick(), discovery.NewMemory(cfg, nil, nil))
	alice := a.mustPublish("demo")
	for range 2 {
		if _, err := a.publish("other"); code(err) != rtmp.CodePublishFailed {
			t.Errorf("publish in a full directory: %v", err)
		}
	}
	if err := alice.Unpublish(); err != nil {
		t.Fatal(err)
	}
	a.awaitState("demo", "")
	eventually(t, "publish in the freed place", func() error {
		c, err := a.publish("other")
		if err == nil {
			c.Close()
		}
		return err
	})
}

// Publishers that replace each other all the time leave one owner and nothing
// else behind.
func TestReplacingRivals(t *testing.T) {
	cfg := quick().withDefault(func(v *vhost.Config) { v.Publish.OnConflict = vhost.Replace })
	cfg.Publish.ResumeWindow = 5 * time.Millisecond
	dir := newMemory()
	a := start(t, "a", cfg, dir)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for n := range 10 {
				c, err := a.publish("demo")
				if err != nil {
					cut := strings.Contains(err.Error(), "EOF") || strings.Contains(err.Error(), "reset")
					if !cut && code(err) != rtmp.CodePublishBadName { // replaced before it was answered
						t.Error(err)
					}
					continue
				}
				if n%3 == 0 {
					_ = c.Unpublish()
				}
				c.Close()
			}
		})
	}
	within(t, "rivals", wg.Wait)
	last := a.mustPublish("demo")
	send(t, last, frames("last", 3))
	await(t, a.mustPlay("demo"), "last 2")
	if l, err := dir.Lookup(context.Background(), key+"demo"); err != nil || l.Node != "a" {
		t.Errorf("owner: %+v, %v", l, err)
	}
}
