package origin

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"weir/discovery"
	"weir/internal/rtmp"
	"weir/internal/session"
)

// An operator ends alice's stream: she is told so and cut, her players are told that
// it has ended, and the name is free. With a ban carol is refused, with the reason,
// at both origins, until it is over.
func TestKick(t *testing.T) {
	dir := newMemory()
	a, b := start(t, "a", quick(), dir), start(t, "b", quick(), dir)
	f := func(k discovery.Kick) {
		t.Helper()
		alice, bob := a.watched("demo")
		k.Stream = key + "demo"
		done, err := b.holder.Kick(t.Context(), k)
		if err != nil || done.Owner != "a" {
			t.Fatalf("kick: %+v, %v", done, err)
		}
		if err := awaitCut(t, alice); code(err) != rtmp.CodePublishDenied {
			t.Errorf("alice was told %v", err)
		}
		awaitEnd(t, bob)
		a.awaitState("demo", "")
	}
	f(discovery.Kick{})
	f(discovery.Kick{Ban: time.Hour, Reason: "not your name"})
	a.awaitEnded("publish", session.Kicked, 2)
	for _, s := range []*site{a, b} {
		_, err := s.publish("demo")
		var status *rtmp.StatusError
		if !errors.As(err, &status) || status.Code != rtmp.CodePublishDenied || !strings.Contains(status.Description, "1h0m0s: not your name") {
			t.Errorf("carol was told %v", err)
		}
		if n := s.set.GetOrCreateCounter(`weir_refused_total{kind="publish",protocol="rtmp",reason="banned"}`).Get(); n != 1 {
			t.Errorf("%d refused as banned", n)
		}
	}
	if _, err := a.holder.Kick(t.Context(), discovery.Kick{Stream: key + "demo"}); err != nil { // lifts it
		t.Fatal(err)
	}
	carol := b.mustPublish("demo")
	send(t, carol, frames("carol", 3))
	await(t, b.mustPlay("demo"), "carol 2")
}

// The stream is kicked while it waits for its publisher's return: it ends, and the
// publisher that comes back begins a new one.
func TestKickOfAnAbsentPublisher(t *testing.T) {
	dir := newMemory()
	a := start(t, "a", quick(), dir)
	alice, bob := a.watched("demo")
	alice.Close()
	a.awaitState("demo", "resuming")
	if _, err := dir.Kick(t.Context(), discovery.Kick{Stream: key + "demo"}); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, bob)
	a.awaitState("demo", "")
	a.mustPublish("demo")
	a.awaitState("demo", "live")
}

// The kick comes between the directory's answer to a claim and the publisher's being
// let in.
func TestKickOfANewcomer(t *testing.T) {
	dir := newMemory()
	var a *site
	a = startWith(t, "a", quick(), dir, func(o Owner) Owner {
		return kickingOwner{o, func() {
			if _, err := a.holder.Kick(t.Context(), discovery.Kick{Stream: key + "demo"}); err != nil {
				t.Error(err)
			}
		}}
	})
	alice, err := a.publish("demo")
	if err == nil { // the kick was heard of only then
		defer alice.Close()
		err = awaitCut(t, alice)
	}
	if code(err) != rtmp.CodePublishDenied {
		t.Errorf("alice was told %v", err)
	}
	a.awaitState("demo", "")
}

// kickingOwner calls kick when a claim was granted.
type kickingOwner struct {
	Owner
	kick func()
}

func (o kickingOwner) Claim(ctx context.Context, stream string, opts discovery.ClaimOptions) (discovery.Lease, error) {
	l, err := o.Owner.Claim(ctx, stream, opts)
	if err == nil {
		o.kick()
	}
	return l, err
}
