package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// line is a network on which a node looks for owners.
type line struct {
	mu     sync.Mutex
	closed map[string]error // guarded by mu; addresses that refuse, or are silent if nil
	asked  int              // guarded by mu
}

// dial connects to all addresses but those that are closed.
func (l *line) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	l.mu.Lock()
	l.asked++
	err, closed := l.closed[addr]
	l.mu.Unlock()
	switch {
	case !closed:
		here, there := net.Pipe()
		there.Close()
		return here, nil
	case err == nil:
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("dial %s: %w", addr, err)
}

func (l *line) close(err error, addrs ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = map[string]error{}
	for _, a := range addrs {
		l.closed[a] = err
	}
}

// looking starts a holder that looks for the owners in its way.
func looking(t *testing.T, m Directory, self Self) (*station, *line) {
	l := &line{}
	s, _ := startWatchingHolder(t, m, self)
	s.cfg.Dial = l.dial
	synctest.Wait() // its first heartbeat has been sent
	return s, l
}

// A claim does not wait for the lease of an owner whose machine says that it is gone.
// If it lives all the same it loses the stream to the later epoch.
func TestDeadOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := startHolder(t, m, selfA)
		b, net := looking(t, m, selfB)
		old := a.mustClaim(t, demo)
		f := func(err error, addrs ...string) {
			t.Helper()
			net.close(err, addrs...)
			begun := time.Now()
			_, got := b.Claim(t.Context(), demo, ClaimOptions{})
			mustConflict(t, got, "a")
			if took := time.Since(begun); took > probeTimeout {
				t.Errorf("the answer took %v", took)
			}
		}
		f(nil)
		f(syscall.ECONNREFUSED, addrA.RTMP)
		f(syscall.ECONNREFUSED, addrA.HTTP)
		f(nil, addrA.RTMP, addrA.HTTP) // it sends heartbeats
		f(syscall.EHOSTUNREACH, addrA.RTMP, addrA.HTTP)
		net.close(syscall.ECONNREFUSED, addrA.RTMP, addrA.HTTP)
		begun := time.Now()
		l := b.mustClaim(t, demo)
		if took := time.Since(begun); took > 0 || l.Epoch <= old.Epoch {
			t.Errorf("epoch %d after %d, after %v", l.Epoch, old.Epoch, took)
		}
		time.Sleep(ttl)
		a.wantLost(t, "b")
		wantOwner(t, m, demo, "b")
	})
}

// An owner whose machine does not answer counts as dead when its heartbeats have been
// missing, too, and those of the claimant have not.
func TestSilentOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = m.Run(ctx) }() // which tells of silent nodes
		a := startHolder(t, m, selfA)
		b, net := looking(t, m, selfB)
		net.close(nil, addrA.RTMP, addrA.HTTP)
		a.mustClaim(t, demo)
		a.wire.setCut(true)
		begun := time.Now()
		var lease Lease
		for {
			l, err := b.Claim(t.Context(), demo, ClaimOptions{})
			if err == nil {
				lease = l
				break
			}
			mustConflict(t, err, "a")
			time.Sleep(100 * time.Millisecond)
		}
		// It had sent a heartbeat up to a second before, and may have renewed just then.
		if took := time.Since(begun); took < 2*time.Second || took > 4*time.Second {
			t.Errorf("it has taken %v; nodes are silent after 3s, leases end after %v", took, ttl)
		}
		a.wire.setCut(false)
		time.Sleep(ttl)
		a.wantLost(t, "b")
		if l := wantOwner(t, m, demo, "b"); l.Epoch != lease.Epoch {
			t.Errorf("owner %+v", l)
		}
	})
}

// A directory that has begun anew knows no node: that is no news of any.
func TestSilentOwnerAndANewDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		mustClaim(t, m, claimBy(selfA, demo))
		l := &line{}
		l.close(nil, addrA.RTMP, addrA.HTTP)
		b := NewHolder(m, HolderConfig{Config: DefaultConfig(), Self: selfB, Dial: l.dial}) // which does not run
		_, err := b.Claim(t.Context(), demo, ClaimOptions{})
		mustConflict(t, err, "a")
	})
}

// Without the directory, an owner that is remembered is in the way unless its machine
// says that it is gone.
func TestDeadOwnerWithoutTheDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		old := mustClaim(t, m, claimBy(selfA, demo))
		b, net := looking(t, m, selfB)
		wantOwner(t, b, demo, "a")
		b.wire.setCut(true)
		net.close(nil, addrA.RTMP, addrA.HTTP)
		_, err := b.Claim(t.Context(), demo, ClaimOptions{})
		mustConflict(t, err, "a")
		net.close(syscall.ECONNREFUSED, addrA.RTMP, addrA.HTTP)
		if l := b.mustClaim(t, demo); l.Epoch <= old.Epoch {
			t.Errorf("epoch %d after %d", l.Epoch, old.Epoch)
		}
		b.wire.setCut(false)
		time.Sleep(ttl)
		wantOwner(t, m, demo, "b")
	})
}

// oldServer refuses what it does not know.
type oldServer struct{ Directory }

func (o oldServer) Claim(ctx context.Context, c Claim) (Lease, error) {
	if c.Dead != 0 {
		return Lease{}, fmt.Errorf("%w: unknown field", ErrInvalid)
	}
	return o.Directory.Claim(ctx, c)
}

func TestDeadOwnerAtAnOldServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		mustClaim(t, m, claimBy(selfA, demo))
		l := &line{}
		l.close(syscall.ECONNREFUSED, addrA.RTMP, addrA.HTTP)
		b := startHolder(t, oldServer{m}, selfB)
		b.cfg.Dial = l.dial
		_, err := b.Claim(t.Context(), demo, ClaimOptions{})
		mustConflict(t, err, "a")
		time.Sleep(ttl)
		b.mustClaim(t, demo)
	})
}

// A real machine refuses connections to a port that was listened on until then.
func TestFeel(t *testing.T) {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	one, two := listen(), listen()
	defer two.Close()
	addr := Addr{RTMP: one.Addr().String(), HTTP: two.Addr().String()}
	f := func(a Addr, want pulse) {
		t.Helper()
		if got := feel(t.Context(), new(net.Dialer).DialContext, a); got != want {
			t.Errorf("feel %+v: %s, want %s", a, got, want)
		}
	}
	f(addr, pulseAlive)
	one.Close()
	f(addr, pulseAlive)
	f(Addr{RTMP: addr.RTMP}, pulseRefused)
	f(Addr{HTTP: addr.HTTP}, pulseAlive)
	two.Close()
	f(addr, pulseRefused)
	silent := func(ctx context.Context, _, a string) (net.Conn, error) {
		if a == addr.HTTP {
			return nil, syscall.ECONNREFUSED
		}
		return nil, errors.New("no route")
	}
	if got := feel(t.Context(), silent, addr); got != pulseSilent {
		t.Errorf("one is silent, one refuses: %s", got)
	}
}
