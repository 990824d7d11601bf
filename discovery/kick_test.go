package discovery

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func mustKick(t *testing.T, d Kicker, k Kick) Kicked {
	t.Helper()
	done, err := d.Kick(t.Context(), k)
	if err != nil {
		t.Fatalf("Kick(%+v): %v", k, err)
	}
	return done
}

func mustBeBanned(t *testing.T, err error) {
	t.Helper()
	if !errors.As(err, new(*BannedError)) {
		t.Fatalf("got %v, want a ban", err)
	}
}

// kickedNow returns the kicks that a holder has told of.
func (s *station) kickedNow() (all []Kicked) {
	synctest.Wait()
	for {
		select {
		case k := <-s.ended:
			all = append(all, k)
		default:
			return all
		}
	}
}

// An owner that watches hears of a kick at once, and one that does not with its next
// renewal. Neither claims the stream again, and what others have is not touched.
func TestHolderHearsOfAKick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a, _ := startWatchingHolder(t, m, selfA)
		b := startHolder(t, m, selfB)
		synctest.Wait()
		f := func(s *station, stream string, within time.Duration) {
			t.Helper()
			l := s.mustClaim(t, stream)
			s.mustClaim(t, stream+"2")
			k := mustKick(t, m, Kick{Stream: stream, Reason: "stuck"})
			time.Sleep(within)
			if got := s.kickedNow(); len(got) != 1 || got[0].Stream != stream || got[0].Epoch != k.Epoch || got[0].Reason != "stuck" {
				t.Fatalf("%s was told %+v, want %+v", stream, got, k)
			}
			time.Sleep(time.Minute)
			wantOwner(t, m, stream, "")
			wantOwner(t, m, stream+"2", s.cfg.Self.Node)
			if _, err := s.Own(t.Context(), stream); !errors.Is(err, ErrNotFound) {
				t.Errorf("it is still held: %v", err)
			}
			if again := s.mustClaim(t, stream); again.Epoch <= k.Epoch || k.Epoch <= l.Epoch {
				t.Errorf("epochs %d, kick %d, %d", l.Epoch, k.Epoch, again.Epoch)
			}
			time.Sleep(time.Minute)
			if got := s.kickedNow(); len(got) != 0 {
				t.Errorf("told again: %+v", got)
			}
		}
		f(a, "v/live/a", 0)
		f(b, "v/live/b", ttl/3)
		a.wantLost(t, "")
		b.wantLost(t, "")
	})
}

// The kick comes after a claim was granted and before its answer has come: the claim
// fails.
func TestKickOfAClaimUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a, o := startWatchingHolder(t, m, selfA)
		synctest.Wait()
		o.cable.mu.Lock()
		o.cable.granted = func() { mustKick(t, m, Kick{Stream: demo}); synctest.Wait() }
		o.cable.mu.Unlock()
		_, err := a.Claim(t.Context(), demo, ClaimOptions{})
		mustBeBanned(t, err)
		time.Sleep(time.Minute)
		wantOwner(t, m, demo, "")
	})
}

// A ban that a node hears of late, when it was lifted already, does not end what the
// directory has granted since; what nobody has granted it does.
func TestBanHeardOfLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a, o := startWatchingHolder(t, m, selfA)
		b := startHolder(t, m, selfB) // hears of nothing
		synctest.Wait()
		late := mustKick(t, m, Kick{Stream: demo, Ban: time.Hour})
		mustKick(t, m, Kick{Stream: demo})
		l := b.mustClaim(t, demo)
		b.kicked(late)
		if got, err := b.Own(t.Context(), demo); err != nil || got.Epoch != l.Epoch || len(b.kickedNow()) != 0 {
			t.Errorf("a lease that was granted since: %+v, %v", got, err)
		}
		o.cut(true)
		own := a.mustClaim(t, "v/live/own")
		a.kicked(Kicked{Stream: "v/live/own", Epoch: own.Epoch - 1, Until: time.Now().Add(time.Hour)})
		if got := a.kickedNow(); len(got) != 1 {
			t.Errorf("one that the node gave itself: told %+v", got)
		}
	})
}

// While the directory is away, a holder keeps to the bans that it has heard of.
func TestBanWithoutTheDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		mustKick(t, m, Kick{Stream: "v/live/before", Ban: time.Minute})
		a, o := startWatchingHolder(t, m, selfA)
		a.mustClaim(t, demo)
		synctest.Wait()
		mustKick(t, m, Kick{Stream: demo, Ban: time.Minute})
		synctest.Wait()
		o.cut(true)
		for _, stream := range []string{demo, "v/live/before"} {
			_, err := a.Claim(t.Context(), stream, ClaimOptions{})
			mustBeBanned(t, err)
		}
		time.Sleep(time.Minute)
		a.mustClaim(t, demo)
	})
}

// Origins that share no directory kick their own publishers, and keep to their own
// bans.
func TestKickWithoutADirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startHolder(t, NewPeers(DefaultConfig(), selfA, nil, nil), selfA)
		if _, err := a.Kick(t.Context(), Kick{Stream: demo}); !errors.Is(err, ErrNotFound) {
			t.Errorf("a kick of nobody: %v", err)
		}
		l := a.mustClaim(t, demo)
		k := mustKick(t, a, Kick{Stream: demo})
		if got := a.kickedNow(); len(got) != 1 || k.Owner != "a" {
			t.Errorf("told %+v, answered %+v", got, k)
		}
		time.Sleep(time.Millisecond)
		if again := a.mustClaim(t, demo); again.Epoch <= l.Epoch {
			t.Errorf("epoch %d after %d", again.Epoch, l.Epoch)
		}
		mustKick(t, a, Kick{Stream: demo, Ban: time.Minute})
		_, err := a.Claim(t.Context(), demo, ClaimOptions{})
		mustBeBanned(t, err)
		mustKick(t, a, Kick{Stream: demo}) // lifts it
		a.mustClaim(t, demo)
		mustKick(t, a, Kick{Stream: demo, Ban: time.Minute})
		time.Sleep(time.Minute)
		a.mustClaim(t, demo)
		if _, err := a.Kick(t.Context(), Kick{Stream: "x"}); !errors.Is(err, ErrInvalid) {
			t.Errorf("a bad key: %v", err)
		}
	})
}

// Bans that are over, and kicks that nobody can hear of any more, cost no memory.
func TestKicksAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = m.Run(ctx) }()
		mustClaim(t, m, claimBy(selfA, demo))
		mustKick(t, m, Kick{Stream: demo})
		mustKick(t, m, Kick{Stream: "v/live/banned", Ban: time.Hour})
		time.Sleep(time.Hour - time.Second)
		m.mu.Lock()
		n := len(m.kicks)
		m.mu.Unlock()
		if n != 1 {
			t.Errorf("%d kicks are remembered, want the ban", n)
		}
		time.Sleep(time.Minute)
		m.mu.Lock()
		defer m.mu.Unlock()
		if n := len(m.kicks); n != 0 {
			t.Errorf("%d kicks are remembered", n)
		}
	})
}
