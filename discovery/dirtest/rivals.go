package dirtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weir/discovery"
)

// dead: whoever has found the owner dead gets the stream, if that owner is it still,
// and of several one.
func dead(t *testing.T, d Engine) {
	a := mustClaim(t, d, claimBy(selfA, demo))
	c := claimBy(selfB, demo)
	c.Dead = a.Epoch - 1 // an earlier one
	_, err := d.Claim(t.Context(), c)
	wantConflict(t, err, "a")
	c.Dead = a.Epoch
	b := mustClaim(t, d, c)
	if b.Epoch <= a.Epoch {
		t.Errorf("epoch went from %d to %d", a.Epoch, b.Epoch)
	}
	late := claimBy(discovery.Self{Node: "c", Instance: "c1", Addr: addrA}, demo)
	late.Dead = a.Epoch
	_, err = d.Claim(t.Context(), late)
	wantConflict(t, err, "b")
	wantLost(t, d, renewalBy(selfA, a), "b") // it was alive

	for n := range 20 {
		stream := fmt.Sprintf("v/dead/%d", n)
		a := mustClaim(t, d, claimBy(selfA, stream))
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				c := claimBy(discovery.Self{Node: fmt.Sprintf("n%d", i), Instance: "1", Addr: addrB}, stream)
				c.Dead = a.Epoch
				_, err := d.Claim(t.Context(), c)
				if err == nil {
					won.Add(1)
				} else if !errors.As(err, new(*discovery.ConflictError)) {
					t.Errorf("Claim: %v", err)
				}
			})
		}
		wg.Wait()
		if n := won.Load(); n != 1 {
			t.Fatalf("%d have got the stream of a dead owner", n)
		}
	}
}

// Rivals has Holders of two origins, each with a view of one directory, claim the
// same names at the same moments: exactly one gets each, and the other is told who.
func Rivals(t *testing.T, rounds int, at ...discovery.Directory) {
	t.Helper()
	var holders []*discovery.Holder
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for i, self := range []discovery.Self{selfA, selfB} {
		cfg := discovery.DefaultConfig()
		h := discovery.NewHolder(at[i%len(at)], discovery.HolderConfig{Config: cfg, Self: self})
		holders = append(holders, h)
		running.Go(func() { _ = h.Run(ctx) })
	}
	var slowest atomic.Int64
	wins := map[string]int{}
	for n := range rounds {
		stream := fmt.Sprintf("v/race/%d", n)
		start := make(chan struct{})
		type answer struct {
			lease discovery.Lease
			err   error
		}
		answers := make([]answer, len(holders))
		var wg sync.WaitGroup
		for i, h := range holders {
			wg.Go(func() {
				<-start
				begun := time.Now()
				l, err := h.Claim(ctx, stream, discovery.ClaimOptions{})
				answers[i] = answer{l, err}
				for took := int64(time.Since(begun)); ; {
					if old := slowest.Load(); took <= old || slowest.CompareAndSwap(old, took) {
						break
					}
				}
			})
		}
		close(start)
		wg.Wait()
		winner := ""
		for i, a := range answers {
			var c *discovery.ConflictError
			switch {
			case a.err == nil && winner == "":
				winner = a.lease.Node
			case a.err == nil:
				t.Fatalf("round %d: two owners, %+v", n, answers)
			case !errors.As(a.err, &c):
				t.Fatalf("round %d: holder %d: %v", n, i, a.err)
			case c.Lease.Node == "":
				t.Fatalf("round %d: the loser is not told who won: %+v", n, c.Lease)
			}
		}
		if winner == "" {
			t.Fatalf("round %d: no owner: %+v", n, answers)
		}
		wins[winner]++
		wantOwner(t, at[0], stream, winner)
	}
	t.Logf("%d races, won %v, the slowest answer after %v", rounds, wins, time.Duration(slowest.Load()))
	// The promise is a second; the machine of the tests may be busy with others.
	if slow := time.Duration(slowest.Load()); slow > 5*time.Second {
		t.Errorf("an answer took %v", slow)
	}
}
