package discovery

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// gate is a directory that counts what is asked of it.
type gate struct {
	*Memory

	mu    sync.Mutex
	calls map[time.Duration]int // guarded by mu; by the step of time in which they came
	begun time.Time             // guarded by mu; of the steps
}

const gateStep = 100 * time.Millisecond

func (g *gate) count() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls[time.Since(g.begun).Truncate(gateStep)]++
}

// again begins to count from now on.
func (g *gate) again() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.begun, g.calls = time.Now(), map[time.Duration]int{}
}

// most returns the largest number of calls in a step, and the mean over so many steps.
func (g *gate) most(steps int) (most, mean int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	sum := 0
	for _, n := range g.calls {
		most, sum = max(most, n), sum+n
	}
	return most, sum / steps
}

func (g *gate) Claim(ctx context.Context, c Claim) (Lease, error) {
	g.count()
	return g.Memory.Claim(ctx, c)
}

func (g *gate) Renew(ctx context.Context, r Renewal) ([]Lost, error) {
	g.count()
	return g.Memory.Renew(ctx, r)
}

func (g *gate) Lookup(ctx context.Context, stream string) (Lease, error) {
	g.count()
	return g.Memory.Lookup(ctx, stream)
}

func (g *gate) Heartbeat(ctx context.Context, n Node) error {
	g.count()
	return g.Memory.Heartbeat(ctx, n)
}

func (g *gate) Watch(ctx context.Context, q WatchQuery, tell func([]Event) error) error {
	g.count()
	return g.Memory.Watch(ctx, q, tell)
}

// A directory that was away for a minute comes back without its data. Sixty
// origins with five streams each, and sixty edges that watch, bring it back
// within five seconds, and at no moment do they ask for much more than they always do.
func TestReturnIsNoHerd(t *testing.T) {
	for _, frozen := range []bool{false, true} { // dead: refused at once; or silent
		synctest.Test(t, func(t *testing.T) {
			const nodes, streams = 60, 5
			g := &gate{Memory: newMemory()}
			g.again()
			var origins []*station
			var wires []*optic
			for i := range nodes {
				s, o := startWatchingHolder(t, g, Self{Node: fmt.Sprint("o", i), Instance: "1", Addr: Addr{RTMP: fmt.Sprint("h", i, ":1935")}})
				for n := range streams {
					s.mustClaim(t, fmt.Sprintf("v/%d/%d", i, n))
				}
				origins, wires = append(origins, s), append(wires, o)
			}
			var edges []*Resolver
			for i := range nodes {
				o := &optic{cable: &cable{Directory: g}}
				r := NewResolver(o, DefaultConfig(), nil, nil)
				ctx, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				running.Go(func() { _ = r.Run(ctx) })
				running.Go(func() {
					heartbeats(ctx, o, DefaultConfig().Heartbeat, nil, func() Node {
						return Node{ID: fmt.Sprint("e", i), Instance: "1", Role: RoleEdge, State: StateUp}
					}, origins[0].log, r.heard)
				})
				t.Cleanup(func() { cancel(); running.Wait() })
				edges, wires = append(edges, r), append(wires, o)
			}
			time.Sleep(10 * time.Second)
			g.again()
			time.Sleep(10 * time.Second)
			usual, _ := g.most(100)

			for _, o := range wires {
				o.cut(true)
				if frozen {
					o.freeze(DefaultConfig().Timeout)
				}
			}
			time.Sleep(time.Minute)
			if l := wantOwner(t, edges[0], "v/7/3", "o7"); l.Addr.RTMP != "h7:1935" { // known before
				t.Errorf("found at %v", l.Addr)
			}

			g.Memory = newMemory()
			g.again()
			for _, o := range wires {
				o.freeze(0)
				o.cut(false)
			}
			const bound = 5 * time.Second
			time.Sleep(bound)
			most, mean := g.most(int(bound / gateStep))
			if n := g.countLeases(); n != nodes*streams {
				t.Errorf("frozen=%t: %d streams are back after %v, want %d", frozen, n, bound, nodes*streams)
			}
			for i, r := range edges {
				if !r.InStep() {
					t.Errorf("frozen=%t: edge %d is not in step after %v", frozen, i, bound)
				}
			}
			for i, s := range origins {
				if !s.Connected() {
					t.Errorf("frozen=%t: origin %d says that it is not ready", frozen, i)
				}
			}
			t.Logf("frozen=%t: %d calls in %v at most, %d on the average; %d at most in quiet times", frozen, most, gateStep, mean, usual)
			if most > 2*usual {
				t.Errorf("frozen=%t: %d calls in %v, %d at most in quiet times", frozen, most, gateStep, usual)
			}
		})
	}
}
