package discovery

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A claim whose caller has gone, and a release that did not get through, leave nothing
// with this node in the directory, although it renews other streams. What it holds is
// not touched.
func TestNothingIsLeftWithoutAPublisher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := startHolder(t, m, selfA)
		a.mustClaim(t, "v/live/other")
		gone := func(what string) {
			t.Helper()
			wantOwner(t, m, demo, "a") // now nobody knows
			time.Sleep(ttl/3 + time.Millisecond)
			if l, err := m.Lookup(t.Context(), demo); !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: %+v, %v", what, l, err)
			}
			wantOwner(t, m, "v/live/other", "a")
		}

		ctx, cancel := context.WithCancel(t.Context())
		a.wire.mu.Lock()
		a.wire.granted, a.wire.loseNext = cancel, true
		a.wire.mu.Unlock()
		if _, err := a.Claim(ctx, demo, ClaimOptions{}); !errors.Is(err, context.Canceled) {
			t.Fatalf("Claim: %v", err)
		}
		gone("a claim that nobody waited for")

		a.mustClaim(t, demo)
		a.wire.setCut(true)
		if err := a.Release(t.Context(), demo); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("Release: %v", err)
		}
		a.wire.setCut(false)
		gone("a release that was lost")

		// In doubt, but claimed again since.
		a.mustClaim(t, demo)
		a.wire.setCut(true)
		_ = a.Release(t.Context(), demo)
		a.wire.setCut(false)
		l := a.mustClaim(t, demo)
		time.Sleep(time.Minute)
		if got := wantOwner(t, m, demo, "a"); got.Epoch != l.Epoch {
			t.Errorf("epoch %d became %d", l.Epoch, got.Epoch)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.doubts) != 0 {
			t.Errorf("doubts are left: %v", a.doubts)
		}
	})
}
