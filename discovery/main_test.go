package discovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(frozenOrigin) != "" {
		runFrozenOrigin()
		return
	}
	goleak.VerifyTestMain(m)
}

const demo = "__defaultVhost__/live/demo"

var (
	addrA = Addr{RTMP: "10.0.0.1:1935", HTTP: "10.0.0.1:8080", API: "10.0.0.1:9090"}
	addrB = Addr{RTMP: "10.0.0.2:1935", HTTP: "10.0.0.2:8080", API: "10.0.0.2:9090"}
	selfA = Self{Node: "a", Instance: "a1", Addr: addrA}
	selfB = Self{Node: "b", Instance: "b1", Addr: addrB}
)

func newMemory(change ...func(*MemoryConfig)) *Memory {
	cfg := DefaultServerConfig().Memory()
	for _, c := range change {
		c(&cfg)
	}
	return NewMemory(cfg, nil, nil)
}

func claimBy(s Self, stream string) Claim {
	return Claim{Stream: stream, Node: s.Node, Instance: s.Instance, Addr: s.Addr}
}

func renewalBy(s Self, leases ...Lease) Renewal {
	r := Renewal{Node: s.Node, Instance: s.Instance, Addr: s.Addr}
	for _, l := range leases {
		r.Leases = append(r.Leases, Held{Stream: l.Stream, Epoch: l.Epoch, Idle: l.Idle, Publisher: l.Publisher})
	}
	return r
}

func mustClaim(t *testing.T, d Leases, c Claim) Lease {
	t.Helper()
	l, err := d.Claim(t.Context(), c)
	if err != nil {
		t.Fatalf("Claim(%s by %s): %v", c.Stream, c.Node, err)
	}
	if l.Stream != c.Stream || l.Node != c.Node || l.Addr != c.Addr || l.Epoch == 0 || l.Idle {
		t.Fatalf("Claim(%s by %s) = %+v", c.Stream, c.Node, l)
	}
	return l
}

func mustConflict(t *testing.T, err error, owner string) Lease {
	t.Helper()
	var c *ConflictError
	if !errors.As(err, &c) {
		t.Fatalf("got error %v, want a conflict", err)
	}
	if c.Lease.Node != owner {
		t.Fatalf("conflict with %q, want %q", c.Lease.Node, owner)
	}
	return c.Lease
}

func mustRenew(t *testing.T, d Leases, r Renewal) []Lost {
	t.Helper()
	lost, err := d.Renew(t.Context(), r)
	if err != nil {
		t.Fatalf("Renew: %v", err)
	}
	return lost
}

func wantOwner(t *testing.T, d Finder, stream, node string) Lease {
	t.Helper()
	l, err := d.Lookup(t.Context(), stream)
	switch {
	case node == "" && !errors.Is(err, ErrNotFound):
		t.Fatalf("Lookup(%s) = %+v, %v; want not found", stream, l, err)
	case node != "" && (err != nil || l.Node != node):
		t.Fatalf("Lookup(%s) = %+v, %v; want owner %s", stream, l, err, node)
	}
	return l
}

// cable is a directory that can be cut off, and whose calls are counted.
type cable struct {
	Directory

	mu       sync.Mutex
	failure  error         // of all calls, if not nil
	frozen   time.Duration // if not 0, all calls fail after it
	loseNext bool          // carry the next claim out and lose the answer
	renewals []Renewal
	granted  func() // if not nil, called once, between the next claim and its answer
}

var errCut = fmt.Errorf("%w: cable is cut", ErrUnavailable)

func (c *cable) setCut(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failure = nil
	if cut {
		c.failure = errCut
	}
}

// fail has all calls end with err from now on; nil lets them through.
func (c *cable) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failure = err
}

// freeze has all calls fail after a timeout; 0 lets them through. It is for tests
// in a bubble.
func (c *cable) freeze(timeout time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frozen = timeout
}

// broken returns the failure of all calls, at once also of a frozen directory.
func (c *cable) broken() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.frozen > 0 {
		return errCut
	}
	return c.failure
}

func (c *cable) err() error {
	c.mu.Lock()
	failure, frozen := c.failure, c.frozen
	c.mu.Unlock()
	if frozen > 0 {
		time.Sleep(frozen)
		return errCut
	}
	return failure
}

func (c *cable) Claim(ctx context.Context, cl Claim) (Lease, error) {
	if err := c.err(); err != nil {
		return Lease{}, err
	}
	l, err := c.Directory.Claim(ctx, cl)
	c.mu.Lock()
	granted := c.granted
	c.granted = nil
	c.mu.Unlock()
	if granted != nil {
		granted()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loseNext {
		c.loseNext = false
		return Lease{}, errCut
	}
	return l, err
}

func (c *cable) Renew(ctx context.Context, r Renewal) ([]Lost, error) {
	c.mu.Lock()
	c.renewals = append(c.renewals, r)
	c.mu.Unlock()
	if err := c.err(); err != nil {
		return nil, err
	}
	return c.Directory.Renew(ctx, r)
}

func (c *cable) Release(ctx context.Context, l Lease) error {
	if err := c.err(); err != nil {
		return err
	}
	return c.Directory.Release(ctx, l)
}

func (c *cable) Lookup(ctx context.Context, stream string) (Lease, error) {
	if err := c.err(); err != nil {
		return Lease{}, err
	}
	return c.Directory.Lookup(ctx, stream)
}

func (c *cable) Heartbeat(ctx context.Context, n Node) error {
	if err := c.err(); err != nil {
		return err
	}
	return c.Directory.Heartbeat(ctx, n)
}

func (c *cable) Goodbye(ctx context.Context, id, instance string) error {
	if err := c.err(); err != nil {
		return err
	}
	return c.Directory.Goodbye(ctx, id, instance)
}

const ttl = 5 * time.Second
