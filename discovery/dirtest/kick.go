package dirtest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"weir/discovery"
)

func mustKick(t *testing.T, d Engine, k discovery.Kick) discovery.Kicked {
	t.Helper()
	done, err := d.Kick(t.Context(), k)
	if err != nil {
		t.Fatalf("Kick(%+v): %v", k, err)
	}
	if done.Stream != k.Stream || done.Reason != k.Reason || done.Banned(time.Now()) != (k.Ban > 0) {
		t.Fatalf("Kick(%+v) = %+v", k, done)
	}
	return done
}

func wantBanned(t *testing.T, err error, reason string) {
	t.Helper()
	var b *discovery.BannedError
	if !errors.As(err, &b) || b.Kicked.Reason != reason || !b.Kicked.Banned(time.Now()) {
		t.Fatalf("got %v, want a ban because of %q", err, reason)
	}
}

// wantKicked renews one lease and wants to hear that it was ended by an operator.
func wantKicked(t *testing.T, d Engine, s discovery.Self, l discovery.Lease, reason string) {
	t.Helper()
	lost, err := d.Renew(t.Context(), renewalBy(s, l))
	if err != nil {
		t.Fatalf("Renew: %v", err)
	}
	if len(lost) != 1 || lost[0].Now != nil || lost[0].Kicked == nil || lost[0].Kicked.Reason != reason {
		t.Fatalf("Renew lost %+v, want a kick because of %q", lost, reason)
	}
}

func kicks(t *testing.T, d Engine) {
	ctx := t.Context()
	if _, err := d.Kick(ctx, discovery.Kick{Stream: demo}); !errors.Is(err, discovery.ErrNotFound) {
		t.Fatalf("a kick of nobody: %v", err)
	}
	var w watcher
	stop := w.watch(t, d)
	w.want(t, "reset")
	say := func(k discovery.Kicked) string {
		return fmt.Sprintf("kicked %s %d banned=%v %s", k.Stream, k.Epoch, k.Banned(time.Now()), k.Reason)
	}

	// Without a ban: the owner is told, and anybody may come after.
	a := mustClaim(t, d, claimBy(selfA, demo))
	k := mustKick(t, d, discovery.Kick{Stream: demo, Reason: "stuck"})
	if k.Owner != "a" || k.Epoch <= a.Epoch {
		t.Errorf("kicked %+v, the owner had epoch %d", k, a.Epoch)
	}
	wantOwner(t, d, demo, "")
	w.want(t, fmt.Sprintf("%s a %d %s idle=false", demo, a.Epoch, addrA.RTMP), say(k), fmt.Sprintf("ended %s %d", demo, a.Epoch))
	wantKicked(t, d, selfA, a, "stuck")
	b := mustClaim(t, d, claimBy(selfB, demo))
	if b.Epoch <= k.Epoch {
		t.Errorf("epoch %d after a kick of %d", b.Epoch, k.Epoch)
	}
	wantLost(t, d, renewalBy(selfB, b))
	wantLost(t, d, renewalBy(selfA, a), "b")
	w.want(t, fmt.Sprintf("%s b %d %s idle=false", demo, b.Epoch, addrB.RTMP))

	// With one: nobody may, whoever it is.
	k = mustKick(t, d, discovery.Kick{Stream: demo, Ban: time.Hour, Reason: "spam"})
	w.want(t, say(k), fmt.Sprintf("ended %s %d", demo, b.Epoch))
	for _, change := range []func(*discovery.Claim){
		func(*discovery.Claim) {},
		func(c *discovery.Claim) { c.Replace = true },
		func(c *discovery.Claim) { c.Held = b.Epoch },
		func(c *discovery.Claim) { c.Held = k.Epoch + 1e6 }, // taken while the directory was away
	} {
		c := claimBy(selfB, demo)
		change(&c)
		_, err := d.Claim(ctx, c)
		wantBanned(t, err, "spam")
	}
	wantKicked(t, d, selfB, b, "spam")
	wantKicked(t, d, selfA, discovery.Lease{Stream: demo, Epoch: k.Epoch + 1e6}, "spam")
	wantOwner(t, d, demo, "")
	wasOther := mustClaim(t, d, claimBy(selfA, "v/live/other"))
	w.want(t, fmt.Sprintf("v/live/other a %d %s idle=false", wasOther.Epoch, addrA.RTMP))
	other := mustKick(t, d, discovery.Kick{Stream: "v/live/other"})
	w.want(t, say(other), fmt.Sprintf("ended v/live/other %d", wasOther.Epoch))
	stop()

	// Whoever begins to watch is told of bans, and only of those.
	w.mark = ""
	stop = w.watch(t, d)
	defer stop()
	w.want(t, "reset", say(k))

	// Another kick takes its place: this is how a ban is lifted.
	k = mustKick(t, d, discovery.Kick{Stream: demo})
	w.want(t, say(k))
	l := mustClaim(t, d, claimBy(selfA, demo))
	w.want(t, fmt.Sprintf("%s a %d %s idle=false", demo, l.Epoch, addrA.RTMP))

	// A ban ends by itself.
	const ban = 2 * time.Second
	begun := time.Now()
	if _, err := d.Kick(ctx, discovery.Kick{Stream: demo, Ban: ban}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Claim(ctx, claimBy(selfA, demo)); time.Since(begun) < ban { // a busy machine may be later than that
		wantBanned(t, err, "")
	}
	eventually(t, 20*time.Second, "the ban ends", func() bool {
		_, err := d.Claim(ctx, claimBy(selfB, demo))
		return err == nil
	})
}
