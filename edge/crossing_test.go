package edge

import (
	"fmt"
	"slices"
	"testing"

	"weir/internal/session"
)

// awaitPublisher waits until an upstream has had a publisher, and returns the first.
func (u *upstream) awaitPublisher(t *testing.T) *session.Publisher {
	t.Helper()
	eventually(t, "a publisher at "+u.rtmp, func() error {
		if len(u.published()) == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
	return u.published()[0]
}

// An upstream sends a forwarded publisher to another one, which gets the stream from a
// key frame on; the first one gets all until then, and the encoder notices nothing. That
// the first one ends the publish, because it has heard of the other, changes nothing.
func TestForwardIsCarriedOver(t *testing.T) {
	for name, farewell := range map[string]string{"": "", "and the first one has lost the stream": session.LostLease} {
		t.Run(name, func(t *testing.T) {
			a, b := newUpstream(t, "a"), newUpstream(t, "b")
			e := startEdge(t, "edge", quick().upstreams(a.rtmp), nil)
			c := encoderAt(t, e.point, "demo")
			encode(t, c, 0, 8)
			a.awaitFrame(t, demo, 7)
			p := a.awaitPublisher(t)
			if p.Way() != session.ByRedirect {
				t.Errorf("way %q", p.Way())
			}
			if err := p.Ask(&session.Redirect{RTMP: b.rtmp}); err != nil {
				t.Fatal(err)
			}
			if farewell != "" {
				p.End(farewell)
			}
			b.awaitFrame(t, demo, 7)
			encode(t, c, 8, 12)
			b.awaitFrame(t, demo, 11)
			frames, _, headers := b.got(demo)
			for i, n := range frames {
				if n != frames[0]+i {
					t.Errorf("the next upstream has %v", frames)
					break
				}
			}
			if headers != 1 || frames[0]%5 != 0 {
				t.Errorf("the next upstream has %v with %d headers", frames, headers)
			}
			b.set(func() { // from frame 0 on: frame 5 was with the first one for a moment only
				if n := b.streams[demo].Stats().TagsIn; n != 1+12 {
					t.Errorf("the next upstream got %d tags", n)
				}
			})
			if ends := a.awaitPublished(t, 1); ends[0] == session.Unpublished {
				t.Errorf("the first publish ended as %q", ends[0])
			}
			e.awaitSessions(t, "publish", 1)
			if c.Err() != nil || e.edge.metrics.carried.Get() != 1 || e.edge.metrics.forwardLost.Get() != 0 {
				t.Errorf("encoder: %v; %d carried, %d lost", c.Err(), e.edge.metrics.carried.Get(), e.edge.metrics.forwardLost.Get())
			}
			if p, q := p.Secret, b.awaitPublisher(t).Secret; p != q {
				t.Error("the publisher is another one there")
			}
		})
	}
}

// The next upstream takes its time. It gets the stream from where it was when it was asked:
// who plays it there has had what is before.
func TestForwardIsCarriedOverLate(t *testing.T) {
	a, b := newUpstream(t, "a"), newUpstream(t, "b")
	b.wait = make(chan struct{})
	e := startEdge(t, "edge", quick().upstreams(a.rtmp), nil)
	c := encoderAt(t, e.point, "demo")
	encode(t, c, 0, 98)
	a.awaitFrame(t, demo, 97)
	if err := a.awaitPublisher(t).Ask(&session.Redirect{RTMP: b.rtmp}); err != nil {
		t.Fatal(err)
	}
	b.awaitPublisher(t)
	encode(t, c, 98, 250) // 6 s
	a.awaitFrame(t, demo, 249)
	close(b.wait)
	encode(t, c, 250, 252)
	b.awaitFrame(t, demo, 251)
	b.set(func() { // frame 95 was with the first one for a moment only
		if n := b.streams[demo].Stats().TagsIn; n != 1+252-90 {
			t.Errorf("the next upstream got %d tags", n)
		}
	})
}

// The next upstream refuses, or is not there: the first one keeps the publisher.
func TestForwardStaysWhereItIs(t *testing.T) {
	a, b := newUpstream(t, "a"), newUpstream(t, "b")
	b.refuse = &session.Refusal{Code: session.Draining, Text: "not here"}
	e := startEdge(t, "edge", quick().upstreams(a.rtmp), nil)
	c := encoderAt(t, e.point, "demo")
	encode(t, c, 0, 2)
	a.awaitFrame(t, demo, 1)
	for i, to := range []string{b.rtmp, "127.0.0.1:1", a.rtmp} {
		if err := a.awaitPublisher(t).Ask(&session.Redirect{RTMP: to}); err != nil {
			t.Fatal(err)
		}
		encode(t, c, 2+i, 3+i)
		a.awaitFrame(t, demo, 2+i)
	}
	if n := len(a.published()); n != 1 {
		t.Errorf("%d publishes", n)
	}
	e.awaitSessions(t, "publish", 1)
	if c.Err() != nil {
		t.Error(c.Err())
	}
	frames, _, _ := a.got(demo)
	if !slices.Contains(frames, 4) {
		t.Errorf("the upstream has %v", frames)
	}
}
