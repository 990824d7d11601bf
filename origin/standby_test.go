package origin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"weir/configs"
	"weir/discovery"
	"weir/internal/media"
	"weir/internal/rtmp"
	"weir/internal/session"
	"weir/internal/vhost"
)

// standing is a configuration with standby publishers, which go on after that time.
func standing(after time.Duration) Config {
	return quick().withDefault(func(v *vhost.Config) { v.Publish.OnConflict, v.Publish.StandbyAfter = vhost.Standby, after })
}

// standsBy waits until the API shows a standby publisher, or none.
func (s *site) standsBy(want bool) {
	s.t.Helper()
	eventually(s.t, "standby publisher", func() error {
		for _, i := range s.origin.Streams(func(vhost.Key) int { return 0 }) {
			if (i.Standby != nil) == want {
				return nil
			}
		}
		return fmt.Errorf("want one: %v", want)
	})
}

// sender is a publisher that sends by itself: groups of five pictures, 5 ms apart.
type sender struct {
	*rtmp.Client
	stop func() // sending, not the connection
}

// encodes has a publisher send, with times from ms on.
func encodes(t *testing.T, c *rtmp.Client, who string, ms uint32) *sender {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	e := &sender{c, func() { cancel(); <-done }}
	go func() {
		defer close(done)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		_ = c.WriteTags(frame(ms, "\x17\x00\x00\x00\x00header of "+who))
		for n := 0; ctx.Err() == nil; n++ {
			kind := "\x27"
			if n%5 == 0 {
				kind = "\x17"
			}
			if c.WriteTags(frame(ms+uint32(5*n), kind+fmt.Sprintf("\x01\x00\x00\x00%s %d", who, n))) != nil {
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	t.Cleanup(e.stop)
	return e
}

// switches reads a player from who's frames over to those of next, of which it reads
// some, and returns the number of the first. Each one's frames come in their order
// without a gap, the time never goes back nor leaps, and next begins with its header
// and a key frame.
func switches(t *testing.T, c *rtmp.Client, who, next string) (first int) {
	t.Helper()
	at, last, time, header, seen := who, -1, uint32(0), "", 0
	for seen < 20 {
		tag, err := c.ReadTag()
		if err != nil {
			t.Fatalf("player after %s %d: %v", at, last, err)
		}
		if tag.Kind() != media.Video {
			continue
		}
		text := string(tag.Body()[5:])
		if h, ok := strings.CutPrefix(text, "header of "); ok {
			header = h
			continue
		}
		var from string
		var n int
		if _, err := fmt.Sscan(text, &from, &n); err != nil {
			t.Fatalf("frame %q", text)
		}
		if from == next && at == who {
			if header != next || tag.Body()[0] != 0x17 {
				t.Fatalf("%s begins with %q, after the header of %s", next, text, header)
			}
			at, last, first = next, n-1, n
		}
		switch {
		case from != at:
			t.Fatalf("%q among the frames of %s", text, at)
		case last >= 0 && n != last+1:
			t.Fatalf("%q after %d", text, last)
		case last >= 0 && (int32(tag.Time()-time) < 0 || tag.Time()-time > 200):
			t.Fatalf("%q at %d ms after one at %d ms", text, tag.Time(), time)
		}
		last, time = n, tag.Time()
		if at == next {
			seen++
		}
	}
	return first
}

// alice publishes, carol stands by with other headers and a clock of her own, bob
// watches. However alice ends, he goes on with carol's frames, on one timeline.
func TestStandby(t *testing.T) {
	f := func(name, reason, told string, end func(a *site, alice *sender)) {
		t.Run(name, func(t *testing.T) {
			dir := newMemory()
			after := time.Minute // so that a slow machine is no silence
			if reason == session.Relieved {
				after = 200 * time.Millisecond
			}
			a := start(t, "a", standing(after), dir)
			alice := encodes(t, a.mustPublish("demo"), "alice", 0)
			bob := a.mustPlay("demo")
			await(t, bob, "alice 2")
			before, err := dir.Lookup(t.Context(), key+"demo")
			if err != nil {
				t.Fatal(err)
			}
			c, err := a.publishAs("demo", "carol's secret")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			encodes(t, c, "carol", 4_000_000_000)
			a.standsBy(true)
			if n := a.gauge("weir_standby_publishers"); n != 1 {
				t.Errorf("%v standby publishers", n)
			}
			end(a, alice)
			switches(t, bob, "alice", "carol")
			a.awaitEnded("publish", reason, 1)
			if told != "" {
				if err := awaitCut(t, alice.Client); code(err) != told {
					t.Errorf("alice was told %v", err)
				}
			}
			a.standsBy(false)
			// It is the same ownership, of another publisher.
			eventually(t, "the directory knows the publisher", func() error {
				l, err := dir.Lookup(t.Context(), key+"demo")
				if err != nil || l.Epoch != before.Epoch || l.Publisher != session.PublisherName("carol's secret") {
					return fmt.Errorf("%+v, %v; before %+v", l, err, before)
				}
				return nil
			})
			dave := a.mustPlay("demo") // gets no header of alice
			for {
				tag, err := dave.ReadTag()
				if err != nil {
					t.Fatal(err)
				}
				if text := string(tag.Body()); strings.Contains(text, "alice") {
					t.Errorf("a new player gets %q", text)
				} else if strings.Contains(text, "carol ") {
					break
				}
			}
			if n := a.set.GetOrCreateCounter("weir_standby_takeovers_total").Get(); n != 1 {
				t.Errorf("%d takeovers", n)
			}
		})
	}
	f("it is lost", "connection_lost", "", func(_ *site, alice *sender) { alice.Close() })
	f("it unpublishes", session.Unpublished, "", func(_ *site, alice *sender) { alice.stop(); _ = alice.Unpublish() })
	f("it falls silent", session.Relieved, rtmp.CodePublishBadName, func(_ *site, alice *sender) { alice.stop() })
	f("its session is ended", session.Kicked, rtmp.CodePublishDenied, func(a *site, _ *sender) {
		for _, i := range a.origin.Streams(func(vhost.Key) int { return 0 }) {
			a.door.Kick(i.Publisher.Session)
		}
	})
}

// A standby publisher that leaves leaves no trace; one that was there, but without a
// key frame, goes on as soon as it has one. There is one at a time, and a publisher
// that proves to be the same takes its own place.
func TestStandbyComesAndGoes(t *testing.T) {
	dir := newMemory()
	a := start(t, "a", standing(time.Minute), dir)
	alice := encodes(t, a.mustPublish("demo"), "alice", 0)
	bob := a.mustPlay("demo")
	await(t, bob, "alice 2")
	for _, leave := range []func(*rtmp.Client){func(c *rtmp.Client) { _ = c.Unpublish() }, func(c *rtmp.Client) { c.Close() }} {
		carol := a.mustPublish("demo")
		send(t, carol, frames("carol", 3))
		a.standsBy(true)
		leave(carol)
		a.standsBy(false)
	}
	carol, err := a.publishAs("demo", "secret")
	if err != nil {
		t.Fatal(err)
	}
	defer carol.Close()
	if _, err := a.publish("demo"); code(err) != rtmp.CodePublishBadName || !strings.Contains(err.Error(), "standby") {
		t.Errorf("a third publisher is told %v", err)
	}
	again, err := a.publishAs("demo", "secret")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := awaitCut(t, carol); code(err) != rtmp.CodePublishBadName {
		t.Errorf("the same one's earlier connection is told %v", err)
	}
	await(t, bob, "alice 200") // nothing of this concerned her
	send(t, again, []media.Tag{frame(0, "\x17\x00\x00\x00\x00header of dave"), frame(0, "\x27\x01\x00\x00\x00not a key frame")})
	alice.Close()
	a.awaitEnded("publish", "connection_lost", 2)
	encodes(t, again, "dave", 40)
	if first := switches(t, bob, "alice", "dave"); first != 0 {
		t.Errorf("dave begins with frame %d", first)
	}
	if a.state("demo") != "live" {
		t.Error("the stream is not live")
	}
}

// What ends a stream ends its standby publisher: a kick, another origin's ownership,
// the origin's own end.
func TestStandbyEndsWithTheStream(t *testing.T) {
	f := func(name, told string, end func(a *site, dir *discovery.Memory)) {
		t.Run(name, func(t *testing.T) {
			dir := newMemory()
			a := start(t, "a", standing(time.Minute), dir)
			alice, carol := encodes(t, a.mustPublish("demo"), "alice", 0), encodes(t, a.mustPublish("demo"), "carol", 0)
			a.standsBy(true)
			end(a, dir)
			for _, c := range []*sender{alice, carol} {
				if err := awaitCut(t, c.Client); told != "" && code(err) != told {
					t.Errorf("told %v", err)
				}
			}
			a.awaitState("demo", "")
		})
	}
	f("kick", rtmp.CodePublishDenied, func(_ *site, dir *discovery.Memory) {
		if _, err := dir.Kick(t.Context(), discovery.Kick{Stream: key + "demo"}); err != nil {
			t.Error(err)
		}
	})
	f("another owner", rtmp.CodePublishBadName, func(_ *site, dir *discovery.Memory) {
		c := discovery.Claim{Stream: key + "demo", Node: "b", Addr: discovery.Addr{RTMP: "h:1"}, Replace: true}
		if _, err := dir.Claim(t.Context(), c); err != nil {
			t.Error(err)
		}
	})
	f("the origin stops", "", func(a *site, _ *discovery.Memory) { a.stop() })
}

// Time in which nobody sends is no silence of one.
func TestVigil(t *testing.T) {
	now := time.Now()
	v := vigil{after: time.Second, last: now}
	f := func(after time.Duration, sent uint64, want bool) {
		t.Helper()
		now = now.Add(after)
		if got := v.silent(sent, now); got != want {
			t.Errorf("after %v with %d tags: silent is %v", after, sent, got)
		}
	}
	f(time.Hour, 0, false) // this process was stopped, say
	f(499*time.Millisecond, 0, false)
	f(time.Millisecond, 0, true)
	f(time.Millisecond, 1, false)
	for range 99 {
		f(10*time.Millisecond, 1, false)
	}
	f(10*time.Millisecond, 2, false)
	for range 99 {
		f(10*time.Millisecond, 2, false)
	}
	f(10*time.Millisecond, 2, true)
}

// A second publisher that comes to another origin through a node is sent to the owner,
// and stands by there.
func TestStandbyAtTheOwner(t *testing.T) {
	dir := newMemory()
	a, b := start(t, "a", standing(time.Minute), dir), start(t, "b", standing(time.Minute), dir)
	encodes(t, a.mustPublish("demo"), "alice", 0)
	a.awaitState("demo", "live")
	_, err := b.publishAs("demo", "secret")
	var r *rtmp.RedirectError
	if !errors.As(err, &r) || r.URL != "rtmp://"+a.rtmp+"/live/demo" {
		t.Errorf("a node is told %v", err)
	}
}

// An encoder that comes to another origin is carried to the owner. A third one is
// refused in the owner's words.
func TestStandbyIsCarried(t *testing.T) {
	dir := newMemory()
	a, b := start(t, "a", standing(time.Minute), dir), start(t, "b", standing(time.Minute), dir)
	alice := encodes(t, a.mustPublish("demo"), "alice", 0)
	bob := a.mustPlay("demo")
	await(t, bob, "alice 2")
	carol := encodes(t, b.mustPublish("demo"), "carol", 0)
	a.standsBy(true)
	eventually(t, "carol is carried", func() error {
		if n := b.set.GetOrCreateCounter("weir_forwards").Get(); n != 1 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	if _, err := b.publish("demo"); code(err) != rtmp.CodePublishBadName || !strings.Contains(err.Error(), "standby") {
		t.Errorf("a third publisher is told %v", err)
	}
	alice.Close()
	switches(t, bob, "alice", "carol")
	dave := encodes(t, b.mustPublish("demo"), "dave", 0)
	a.standsBy(true)
	carol.stop()
	_ = carol.Unpublish()
	switches(t, bob, "carol", "dave")
	b.awaitEnded("publish", session.Unpublished, 1)
	if _, err := dir.Kick(t.Context(), discovery.Kick{Stream: key + "demo"}); err != nil {
		t.Fatal(err)
	}
	if err := awaitCut(t, dave.Client); code(err) != rtmp.CodePublishDenied {
		t.Errorf("dave was told %v", err)
	}
	eve := encodes(t, a.mustPublish("demo"), "eve", 0)
	fay := encodes(t, b.mustPublish("demo"), "fay", 0)
	a.standsBy(true)
	a.stop()
	awaitCut(t, eve.Client)
	awaitCut(t, fay.Client)
	b.awaitEnded("publish", reasonOwnerLost, 1)
	if n := b.set.GetOrCreateCounter("weir_forwards").Get(); n != 0 {
		t.Errorf("%d are carried", n)
	}
}

// gauge returns the value of a gauge.
func (s *site) gauge(name string) float64 {
	return s.set.GetOrCreateGauge(name, nil).Get()
}

// The owner gets the encoder's vhost and key.
func TestStandbyIsCarriedWithItsQuery(t *testing.T) {
	cfg := standing(time.Minute)
	v := cfg.Vhosts[vhost.DefaultName]
	v.Publish.Keys = []configs.Secret{"secret"}
	cfg.Vhosts["tenant.test"] = v
	dir := newMemory()
	a, b := start(t, "a", cfg, dir), start(t, "b", cfg, dir)
	const name = "demo?vhost=tenant.test&key=secret"
	encodes(t, a.mustPublish(name), "alice", 0)
	encodes(t, b.mustPublish(name), "carol", 0)
	a.standsBy(true)
	if l, err := dir.Lookup(t.Context(), "tenant.test/live/demo"); err != nil || l.Node != "a" {
		t.Errorf("owner %+v, %v", l, err)
	}
}
