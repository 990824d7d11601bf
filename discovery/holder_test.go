package discovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// station is an origin's holder that runs in the bubble of a test.
type station struct {
	*Holder
	wire  *cable
	lost  chan Lease
	ended chan Kicked
	stop  func()
}

func startHolder(t *testing.T, dir Directory, self Self) *station {
	t.Helper()
	wire := &cable{Directory: dir}
	return startHolderOn(t, wire, wire, self)
}

// startWatchingHolder is startHolder for one that watches the directory.
func startWatchingHolder(t *testing.T, dir Directory, self Self) (*station, *optic) {
	t.Helper()
	o := &optic{cable: &cable{Directory: dir}}
	return startHolderOn(t, o.cable, o, self), o
}

func startHolderOn(t *testing.T, wire *cable, dir Directory, self Self) *station {
	t.Helper()
	s := &station{wire: wire, lost: make(chan Lease, 1000), ended: make(chan Kicked, 1000)}
	s.Holder = NewHolder(dir, HolderConfig{
		Config: DefaultConfig(), Self: self,
		OnLost: func(stream string, now Lease) {
			if now.Stream != stream {
				t.Errorf("lost %s to %+v", stream, now)
			}
			// As an origin does: it ends the session, which releases the stream.
			if err := s.Release(t.Context(), stream); err != nil {
				t.Errorf("Release of a lost stream: %v", err)
			}
			s.lost <- now
		},
		OnKicked: func(k Kicked) { s.ended <- k },
	})
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

func (s *station) mustClaim(t *testing.T, stream string) Lease {
	t.Helper()
	l, err := s.Claim(t.Context(), stream, ClaimOptions{})
	if err != nil || l.Node != s.cfg.Self.Node || l.Epoch == 0 {
		t.Fatalf("Claim(%s) = %+v, %v", stream, l, err)
	}
	return l
}

func (s *station) wantLost(t *testing.T, owner string) {
	t.Helper()
	synctest.Wait()
	select {
	case now := <-s.lost:
		if owner == "" || now.Node != owner {
			t.Errorf("lost to %+v, want %q", now, owner)
		}
	default:
		if owner != "" {
			t.Errorf("nothing was lost, want a loss to %s", owner)
		}
	}
}

func TestHolderKeepsItsStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := startHolder(t, m, selfA)
		l := a.mustClaim(t, demo)
		a.mustClaim(t, "v/live/two")
		time.Sleep(time.Minute)
		if got := wantOwner(t, m, demo, "a"); got.Epoch != l.Epoch {
			t.Errorf("epoch went from %d to %d", l.Epoch, got.Epoch)
		}
		// All leases in one call, every 4/5 to 1 of a third of the TTL.
		if n := len(a.wire.renewals); n < 36 || n > 45 {
			t.Errorf("%d renewals in a minute", n)
		}
		if r := a.wire.renewals[0]; len(r.Leases) != 2 || r.Addr != addrA {
			t.Errorf("renewal %+v", r)
		}
		if nodes, _, _ := m.Nodes(t.Context(), NodeQuery{}); len(nodes) != 1 || nodes[0].ID != "a" ||
			nodes[0].Role != RoleOrigin || nodes[0].State != StateUp || nodes[0].Addr != addrA {
			t.Errorf("nodes %+v", nodes)
		}
		// Its own streams are known without the directory, others through it.
		b := startHolder(t, m, selfB)
		if got, err := b.Own(t.Context(), demo); !errors.Is(err, ErrNotFound) {
			t.Errorf("b owns %+v", got)
		}
		wantOwner(t, b, demo, "a")
		b.wire.setCut(true)
		wantOwner(t, b, demo, "a")
		a.wire.setCut(true)
		wantOwner(t, a, demo, "a")
		a.wire.setCut(false)
		b.wire.setCut(false)

		if err := a.Release(t.Context(), demo); err != nil {
			t.Errorf("Release: %v", err)
		}
		if err := a.Release(t.Context(), demo); err != nil {
			t.Errorf("second Release: %v", err)
		}
		wantOwner(t, m, demo, "")
		wantOwner(t, m, "v/live/two", "a")
		synctest.Wait()
		time.Sleep(time.Second) // b's heartbeat, should one have met the cut
		a.stop()
		wantOwner(t, m, "v/live/two", "")
		if nodes, _, _ := m.Nodes(t.Context(), NodeQuery{}); len(nodes) != 1 || nodes[0].ID != "b" {
			t.Errorf("nodes after a's goodbye: %+v", nodes)
		}
	})
}

func TestIdleStreamMovesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a, b := startHolder(t, m, selfA), startHolder(t, m, selfB)
		first := a.mustClaim(t, demo)
		_, err := b.Claim(t.Context(), demo, ClaimOptions{})
		mustConflict(t, err, "a")

		// The publisher drops; the directory knows at once, without a wait for
		// the next renewal.
		a.SetIdle(demo, true)
		synctest.Wait()
		if l := wantOwner(t, m, demo, "a"); !l.Idle {
			t.Error("the directory does not know that the stream is idle")
		}
		// It comes back to a within the window: same ownership, no longer idle.
		if l := a.mustClaim(t, demo); l.Epoch != first.Epoch || l.Idle {
			t.Errorf("resumed as %+v", l)
		}
		_, err = b.Claim(t.Context(), demo, ClaimOptions{})
		mustConflict(t, err, "a")
		time.Sleep(time.Minute)
		_, err = b.Claim(t.Context(), demo, ClaimOptions{})
		mustConflict(t, err, "a")

		// It drops again and comes back to b.
		a.SetIdle(demo, true)
		synctest.Wait()
		if l := b.mustClaim(t, demo); l.Epoch <= first.Epoch {
			t.Errorf("b has epoch %d after %d", l.Epoch, first.Epoch)
		}
		a.wantLost(t, "")
		time.Sleep(ttl / 3)
		a.wantLost(t, "b")
		wantOwner(t, a, demo, "b")

		// Replace takes it back; b learns of it.
		if _, err := a.Claim(t.Context(), demo, ClaimOptions{Replace: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(ttl / 3)
		b.wantLost(t, "a")

		// A claim of an idle stream that was taken meanwhile tells at once.
		a.SetIdle(demo, true)
		synctest.Wait()
		b.mustClaim(t, demo)
		_, err = a.Claim(t.Context(), demo, ClaimOptions{})
		mustConflict(t, err, "b")
		a.wantLost(t, "b")
	})
}

func TestDirectoryGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a, b := startHolder(t, m, selfA), startHolder(t, m, selfB)
		old := a.mustClaim(t, demo)
		b.mustClaim(t, "v/live/b")
		wantOwner(t, a, "v/live/b", "b")

		a.wire.setCut(true)
		b.wire.setCut(true)
		time.Sleep(10 * time.Minute) // all leases have ended
		if a.Connected() || b.Connected() {
			t.Error("the directory is gone, the holders have not noticed")
		}
		// What runs goes on, what is known is found, what is new is taken.
		wantOwner(t, a, demo, "a")
		wantOwner(t, a, "v/live/b", "b")
		if l := a.mustClaim(t, demo); l.Epoch != old.Epoch {
			t.Errorf("resumed with epoch %d, want %d", l.Epoch, old.Epoch)
		}
		provisional := a.mustClaim(t, "v/live/new")
		if provisional.Epoch <= old.Epoch {
			t.Errorf("provisional epoch %d after %d", provisional.Epoch, old.Epoch)
		}
		// Both take one name: the later one will have it.
		a.mustClaim(t, "v/live/both")
		time.Sleep(time.Second)
		later := b.mustClaim(t, "v/live/both")
		gone := a.mustClaim(t, "v/live/gone")
		if err := a.Release(t.Context(), gone.Stream); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Release: %v", err)
		}

		// The directory is back, and empty.
		empty := newMemory()
		for _, s := range []*station{a, b} {
			s.wire.mu.Lock()
			s.wire.Directory, s.wire.failure = empty, nil
			s.wire.mu.Unlock()
		}
		time.Sleep(ttl)
		if !a.Connected() || !b.Connected() {
			t.Error("the directory is back, the holders have not noticed")
		}
		f := func(stream, node string, epoch uint64) {
			t.Helper()
			if l := wantOwner(t, empty, stream, node); epoch != 0 && l.Epoch != epoch {
				t.Errorf("%s has epoch %d, want %d", stream, l.Epoch, epoch)
			}
		}
		f(demo, "a", old.Epoch)
		f("v/live/b", "b", 0)
		f("v/live/new", "a", provisional.Epoch)
		f("v/live/both", "b", later.Epoch)
		f("v/live/gone", "", 0)
		a.wantLost(t, "b")
		a.wantLost(t, "")
		b.wantLost(t, "")
	})
}

func TestProvisionalClaimRespectsWhatIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		mustClaim(t, m, claimBy(selfB, demo))
		a := startHolder(t, m, selfA)
		wantOwner(t, a, demo, "b")
		a.wire.setCut(true)
		_, err := a.Claim(t.Context(), demo, ClaimOptions{})
		mustConflict(t, err, "b")
		time.Sleep(ttl) // then b's lease has run out for all that a knows
		a.mustClaim(t, demo)
		if _, err := a.Claim(t.Context(), "no stream", ClaimOptions{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("a bad key was taken: %v", err)
		}
	})
}

func TestFrozenOriginGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a, b := startHolder(t, m, selfA), startHolder(t, m, selfB)
		old := a.mustClaim(t, demo)
		a.wire.setCut(true) // to its peers a frozen process looks like this
		time.Sleep(2 * ttl)
		b.mustClaim(t, demo)
		if err := b.Release(t.Context(), demo); err != nil {
			t.Fatal(err)
		}
		// Nobody has it now, but b had it after a: a's epoch is over.
		a.wire.setCut(false)
		time.Sleep(ttl)
		l := wantOwner(t, m, demo, "a")
		if own, err := a.Own(t.Context(), demo); err != nil || own.Epoch != l.Epoch || own.Epoch <= old.Epoch {
			t.Errorf("a has %+v, %v; the directory %+v; before %d", own, err, l, old.Epoch)
		}
		a.wantLost(t, "")
	})
}

func TestAnswerOfAClaimIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := startHolder(t, m, selfA)
		// The directory's clock is far ahead of the node's.
		mustRenew(t, m, renewalBy(selfB, Lease{Stream: "v/live/ahead", Epoch: uint64(time.Now().Add(time.Hour).UnixMicro())}))
		a.wire.mu.Lock()
		a.wire.loseNext = true
		a.wire.mu.Unlock()
		a.mustClaim(t, demo)
		time.Sleep(ttl)
		l := wantOwner(t, m, demo, "a")
		if own, _ := a.Own(t.Context(), demo); own.Epoch != l.Epoch {
			t.Errorf("a thinks it has epoch %d, the directory gave %d", own.Epoch, l.Epoch)
		}
		a.wantLost(t, "")
		time.Sleep(time.Minute)
		wantOwner(t, m, demo, "a")
	})
}

// A stream that was granted under another epoch than its origin believes is
// given up all the same.
func TestReleaseOfALostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := startHolder(t, m, selfA)
		ahead := Lease{Stream: "v/live/ahead", Epoch: uint64(time.Now().Add(time.Hour).UnixMicro())}
		mustRenew(t, m, renewalBy(selfB, ahead))
		a.wire.mu.Lock()
		a.wire.loseNext = true
		a.wire.mu.Unlock()
		a.mustClaim(t, demo)
		wantOwner(t, m, demo, "a")
		if err := a.Release(t.Context(), demo); err != nil {
			t.Errorf("Release: %v", err)
		}
		wantOwner(t, m, demo, "")
	})
}

func TestOutageDoesNotMakeAHerd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		var all []*station
		for i := range 50 {
			s := startHolder(t, m, Self{Node: fmt.Sprint("n", i), Instance: "1", Addr: addrA})
			s.mustClaim(t, fmt.Sprintf("v/live/%d", i))
			s.wire.setCut(true)
			all = append(all, s)
		}
		time.Sleep(time.Minute)
		for _, s := range all {
			s.wire.mu.Lock()
			s.wire.failure, s.wire.renewals = nil, nil
			s.wire.mu.Unlock()
		}
		back := time.Now()
		perTenth := map[time.Duration]int{}
		for time.Since(back) < ttl/3 {
			before := m.countLeases()
			time.Sleep(ttl / 30)
			perTenth[time.Since(back)] = m.countLeases() - before
		}
		if n := m.countLeases(); n != 50 {
			t.Errorf("%d streams are back after a third of the TTL, want 50", n)
		}
		for at, n := range perTenth {
			if n > 20 {
				t.Errorf("%d of 50 nodes came back within %v at %v", n, ttl/30, at)
			}
		}
	})
}

func TestRefusalsAreNotOutages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(func(c *MemoryConfig) { c.MaxStreams = 1 })
		a := startHolder(t, m, selfA)
		a.mustClaim(t, demo)
		if l, err := a.Claim(t.Context(), "v/live/two", ClaimOptions{}); !errors.Is(err, ErrFull) {
			t.Errorf("Claim = %+v, %v", l, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		synctest.Wait() // for the first heartbeat, which would meet the cut
		a.wire.setCut(true)
		if l, err := a.Claim(ctx, "v/live/two", ClaimOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("Claim after its context = %+v, %v", l, err)
		}
		a.wire.setCut(false)
		if !a.Connected() {
			t.Error("a refusal or the end of a caller counts as an outage")
		}
	})
}

// An origin without streams notices by its heartbeats alone that the directory
// is silent, or has come up and refuses it, and says so each time that changes.
func TestHeartbeatsTellHowItStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w := &cable{Directory: newMemory()}
		h := NewHolder(w, HolderConfig{Config: DefaultConfig(), Self: selfA, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error)
		go func() { ran <- h.Run(ctx) }()
		refused := fmt.Errorf("%w: no token", ErrRefused)
		for _, c := range []struct {
			err  error // of all calls
			want string
		}{
			{nil, ""},
			{errCut, "heartbeats do not reach the directory"},
			{refused, "the directory refuses heartbeats"},
			{errCut, "heartbeats do not reach the directory"},
			{nil, "heartbeats reach the directory again"},
			{refused, "the directory refuses heartbeats"},
			{nil, "heartbeats reach the directory again"},
		} {
			log.Reset()
			w.fail(c.err)
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if err := h.Err(); !errors.Is(err, c.err) || h.Connected() != (c.err == nil) {
				t.Errorf("with %v: %v, connected %v", c.err, err, h.Connected())
			}
			if got := log.String(); strings.Count(got, "\n") != min(len(c.want), 1) || !strings.Contains(got, c.want) {
				t.Errorf("with %v: logged %q, want one line with %q", c.err, got, c.want)
			}
		}
		// A refused claim is told apart from an outage, too.
		w.fail(refused)
		if l, err := h.Claim(t.Context(), demo, ClaimOptions{}); !errors.Is(err, ErrRefused) {
			t.Errorf("Claim = %+v, %v", l, err)
		}
		// A stream that was taken during an outage and has ended does not count
		// once heartbeats arrive.
		w.fail(errCut)
		if _, err := h.Claim(t.Context(), demo, ClaimOptions{}); err != nil {
			t.Fatal(err)
		}
		_ = h.Release(t.Context(), demo)
		w.fail(nil)
		time.Sleep(time.Second)
		synctest.Wait()
		if err := h.Err(); err != nil {
			t.Errorf("with heartbeats and without streams: %v", err)
		}
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

// Two origins, publishers that come, drop, return and leave at random, and an
// outage now and then: in the end nothing is held that the directory does not
// know, and nothing is known that nobody holds.
func TestHoldersAndDirectoryAgreeInTheEnd(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			nodes := []*station{startHolder(t, m, selfA), startHolder(t, m, selfB)}
			var wg sync.WaitGroup
			for i := range 6 {
				rnd := rand.New(rand.NewPCG(seed, uint64(i)))
				wg.Go(func() {
					for range 60 {
						s := nodes[rnd.IntN(2)]
						stream := fmt.Sprintf("v/live/%d", rnd.IntN(4))
						switch rnd.IntN(6) {
						case 0, 1:
							_, _ = s.Claim(t.Context(), stream, ClaimOptions{Replace: rnd.IntN(4) == 0})
						case 2:
							_ = s.Release(t.Context(), stream)
						case 3:
							s.SetIdle(stream, rnd.IntN(2) == 0)
						case 4:
							s.wire.setCut(rnd.IntN(3) == 0)
						}
						time.Sleep(time.Duration(rnd.IntN(2000)) * time.Millisecond)
					}
				})
			}
			wg.Wait()
			for _, s := range nodes {
				s.wire.setCut(false)
			}
			time.Sleep(3 * ttl)
			var held, known []string
			for _, s := range nodes {
				s.mu.Lock()
				for stream, e := range s.held {
					held = append(held, fmt.Sprint(stream, " ", e.lease.Node, " ", e.lease.Epoch, " ", e.lease.Idle))
				}
				if len(s.busy) != 0 {
					t.Errorf("%d streams are busy for ever", len(s.busy))
				}
				s.mu.Unlock()
			}
			page, _, _ := m.Streams(t.Context(), StreamQuery{})
			for _, l := range page {
				known = append(known, fmt.Sprint(l.Stream, " ", l.Node, " ", l.Epoch, " ", l.Idle))
			}
			slices.Sort(held)
			slices.Sort(known)
			if !slices.Equal(held, known) {
				t.Errorf("seed %d:\nheld  %v\nknown %v", seed, held, known)
			}
		})
	}
}

func TestAnnounce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		w := &cable{Directory: m}
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error)
		state := StateUp
		var mu sync.Mutex
		node := func() Node {
			mu.Lock()
			defer mu.Unlock()
			return Node{ID: "e", Instance: "1", Role: RoleEdge, State: state}
		}
		now := make(chan struct{})
		go func() { ran <- Announce(ctx, w, time.Second, now, node, nil) }()
		want := func(state State) {
			t.Helper()
			nodes, _, _ := m.Nodes(t.Context(), NodeQuery{Role: RoleEdge})
			if state == "" && len(nodes) == 0 {
				return
			}
			if len(nodes) != 1 || nodes[0].State != state {
				t.Errorf("nodes %+v, want one that is %q", nodes, state)
			}
		}
		synctest.Wait()
		want(StateUp)
		time.Sleep(time.Minute)
		want(StateUp)
		w.setCut(true)
		time.Sleep(ttl + time.Second)
		want("")
		mu.Lock()
		state = StateDraining
		mu.Unlock()
		w.setCut(false)
		time.Sleep(time.Second)
		want(StateDraining)
		// Out of turn.
		mu.Lock()
		state = StateUp
		mu.Unlock()
		synctest.Wait()
		want(StateDraining)
		now <- struct{}{}
		synctest.Wait()
		want(StateUp)
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		want("")
	})
}

// A node that is at the address of another one, which has had another name, is that
// one: a player that was sent there would come back.
func TestLeaseOfAnotherNameOfThisNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := startHolder(t, m, selfA)
		f := func(at Addr, want string) {
			t.Helper()
			stream := fmt.Sprintf("v/live/%s-%s", at.RTMP, at.HTTP)
			if _, err := m.Claim(t.Context(), Claim{Stream: stream, Node: "before", Instance: "1", Addr: at}); err != nil {
				t.Fatal(err)
			}
			wantOwner(t, a, stream, want)
			wantOwner(t, m, stream, "before")
		}
		f(addrA, "")
		f(Addr{RTMP: addrA.RTMP}, "")
		f(Addr{HTTP: addrA.HTTP}, "")
		f(addrB, "before")
		f(Addr{RTMP: addrB.RTMP}, "before") // it has no address for HTTP, and neither has nobody
	})
}
