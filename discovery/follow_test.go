package discovery

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// told collects what a follower is told, in words.
type told struct {
	mu  sync.Mutex
	all []string
}

func (c *told) tell(l Lease) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.Node == "" {
		c.all = append(c.all, fmt.Sprintf("ended %d", l.Epoch))
		return
	}
	c.all = append(c.all, fmt.Sprintf("%s %d at %s", l.Node, l.Epoch, l.Addr.RTMP))
}

// want compares what was told since the last want.
func (c *told) want(t *testing.T, want ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.all, want) {
		t.Errorf("told %q, want %q", c.all, want)
	}
	c.all = nil
}

func TestResolverTellsFollowers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &asked{}
		r := NewResolver(a, DefaultConfig(), nil, nil)
		var c, other told
		stop := r.Follow(demo, c.tell)
		defer r.Follow("v/live/other", other.tell)()
		c.want(t)

		// ask has the directory answer a lookup once the cache is too old.
		ask := func(l Lease, err error) {
			t.Helper()
			time.Sleep(time.Second)
			a.will(always(l, err))
			_, _ = r.Lookup(t.Context(), demo)
		}
		ask(Lease{}, ErrNotFound) // never had an owner
		c.want(t)
		ask(Lease{Node: "a", Epoch: 5, Addr: addrA}, nil)
		c.want(t, "a 5 at 10.0.0.1:1935")
		ask(Lease{Node: "a", Epoch: 5, Addr: addrA, Idle: true}, nil)
		ask(Lease{Node: "a", Epoch: 5, Addr: addrA}, nil)
		c.want(t)
		ask(Lease{Node: "a", Epoch: 5, Addr: addrB}, nil) // moved house
		c.want(t, "a 5 at 10.0.0.2:1935")
		ask(Lease{Node: "a", Instance: "2", Epoch: 6, Addr: addrB}, nil)
		c.want(t, "a 6 at 10.0.0.2:1935")
		r.Learn(Lease{Stream: demo, Node: "b", Epoch: 7, Addr: addrB})
		c.want(t, "b 7 at 10.0.0.2:1935")

		// Nobody is led back, except from an owner that was doubted.
		ask(Lease{Node: "a", Epoch: 6, Addr: addrA}, nil)
		r.Learn(Lease{Stream: demo, Node: "a", Epoch: 6, Addr: addrA})
		c.want(t)
		r.Doubt(demo)
		c.want(t)
		ask(Lease{Node: "a", Epoch: 6, Addr: addrA}, nil)
		c.want(t, "a 6 at 10.0.0.1:1935")

		ask(Lease{}, fmt.Errorf("%w: cut", ErrUnavailable))
		c.want(t)
		ask(Lease{}, ErrNotFound)
		ask(Lease{}, ErrNotFound)
		c.want(t, "ended 6")
		ask(Lease{Node: "a", Epoch: 6, Addr: addrA}, nil) // restored
		c.want(t, "a 6 at 10.0.0.1:1935")

		// Who comes later is told what is known.
		var late told
		stopLate := r.Follow(demo, late.tell)
		late.want(t, "a 6 at 10.0.0.1:1935")
		stopLate()
		stopLate()
		ask(Lease{Node: "b", Epoch: 8, Addr: addrB}, nil)
		c.want(t, "b 8 at 10.0.0.2:1935")
		late.want(t)
		stop()
		ask(Lease{}, ErrNotFound)
		c.want(t)
		other.want(t)
		if n := len(r.followers.by); n != 1 {
			t.Errorf("%d streams are followed, want 1", n)
		}
	})
}

// An answer says nothing about an ownership that began after the question.
func TestLateAnswersDoNotMislead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		h := startHolder(t, m, selfA)
		var c told
		defer h.Follow(demo, c.tell)()
		answer := make(chan error)
		a := &asked{}
		a.will(func(context.Context, string) (Lease, error) {
			err := <-answer
			return Lease{Stream: demo, Node: "b", Epoch: 3}, err
		})
		h.resolver.finder = a
		for _, err := range []error{ErrNotFound, nil} {
			var wg sync.WaitGroup
			wg.Go(func() { _, _ = h.Lookup(t.Context(), demo) })
			synctest.Wait()
			l := h.mustClaim(t, demo)
			answer <- err
			wg.Wait()
			c.want(t, fmt.Sprintf("a %d at 10.0.0.1:1935", l.Epoch))
			if err := h.Release(t.Context(), demo); err != nil {
				t.Fatal(err)
			}
			c.want(t, fmt.Sprintf("ended %d", l.Epoch))
		}
	})
}

func TestHolderTellsFollowers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a, b := startHolder(t, m, selfA), startHolder(t, m, selfB)
		var atA, late told
		defer a.Follow(demo, atA.tell)()
		first := a.mustClaim(t, demo)
		a.mustClaim(t, demo)
		time.Sleep(time.Minute)
		atA.want(t, fmt.Sprintf("a %d at 10.0.0.1:1935", first.Epoch))
		defer a.Follow(demo, late.tell)()
		late.want(t, fmt.Sprintf("a %d at 10.0.0.1:1935", first.Epoch))

		second, err := b.Claim(t.Context(), demo, ClaimOptions{Replace: true})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(ttl / 3)
		a.wantLost(t, "b")
		atA.want(t, fmt.Sprintf("b %d at 10.0.0.2:1935", second.Epoch))

		third, err := a.Claim(t.Context(), demo, ClaimOptions{Replace: true})
		if err != nil {
			t.Fatal(err)
		}
		a.stop()
		atA.want(t, fmt.Sprintf("a %d at 10.0.0.1:1935", third.Epoch), fmt.Sprintf("ended %d", third.Epoch))
	})
}

// A follower may use the Resolver, is told one thing at a time, and of many
// changes at once at least the last.
func TestFollowersAreCalledWithoutLocks(t *testing.T) {
	a := &asked{}
	a.will(always(Lease{Node: "a", Epoch: 1, Addr: addrA}, nil))
	r := NewResolver(a, DefaultConfig(), nil, nil)
	var mu sync.Mutex
	var last uint64
	var stops []func()
	inside := 0
	stop := r.Follow(demo, func(l Lease) {
		mu.Lock()
		if inside++; inside > 1 || l.Epoch <= last {
			t.Errorf("%d calls at once, epoch %d after %d", inside, l.Epoch, last)
		}
		last = l.Epoch
		mu.Unlock()
		wantOwner(t, r, demo, "a")
		s := r.Follow(demo, func(Lease) {})
		mu.Lock()
		stops = append(stops, s)
		inside--
		mu.Unlock()
	})
	wantOwner(t, r, demo, "a")
	var wg sync.WaitGroup
	for i := range uint64(8) {
		wg.Go(func() {
			for n := range uint64(200) {
				r.Learn(Lease{Stream: demo, Node: "a", Epoch: 2 + 8*n + i, Addr: addrA})
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if last != 2+8*199+7 {
		t.Errorf("told of epoch %d at last", last)
	}
	stop()
	for _, s := range stops {
		s()
	}
	if len(r.followers.by) != 0 {
		t.Error("followers are left")
	}
}
