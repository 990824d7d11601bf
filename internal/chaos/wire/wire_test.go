package wire

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newNet(t *testing.T, names ...string) *Net {
	t.Helper()
	n, err := New(RunName("weir-wiretest", ""), names, 1)
	if err != nil {
		t.Fatalf("make network: %v (root, /dev/net/tun and iproute2 are needed)", err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// echo serves on port 7 of a host until the test ends.
func echo(t *testing.T, h *Host) string {
	t.Helper()
	l, err := h.Listen(7)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer context.AfterFunc(ctx, func() { c.Close() })()
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		stop()
		serving.Wait()
	})
	return l.Addr().String()
}

func dial(t *testing.T, h *Host, addr string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := h.DialContext(ctx, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// say sends a line and returns how long its echo took; an error if there is none
// within patience.
func say(c net.Conn, patience time.Duration) (time.Duration, error) {
	begun := time.Now()
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return 0, err
	}
	_ = c.SetReadDeadline(begun.Add(patience))
	_, err := bufio.NewReader(c).ReadString('\n')
	return time.Since(begun), err
}

func TestHostsMeet(t *testing.T) {
	n := newNet(t, "a", "b")
	c := dial(t, n.Host("b"), echo(t, n.Host("a")))
	if _, err := say(c, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if from, _, _ := net.SplitHostPort(c.LocalAddr().String()); from != n.Host("b").Addr.String() {
		t.Errorf("the connection is from %s, want %s", from, n.Host("b").Addr)
	}
	if n.Counts("b", "a").Carried == 0 || n.Counts("a", "b").Lost != 0 {
		t.Errorf("counts are %+v and %+v", n.Counts("b", "a"), n.Counts("a", "b"))
	}
}

func TestDelayIsForOneDirection(t *testing.T) {
	const delay = 100 * time.Millisecond
	n := newNet(t, "a", "b")
	c := dial(t, n.Host("b"), echo(t, n.Host("a")))
	n.Set("a", "b", Path{Delay: delay})
	took, err := say(c, 10*time.Second)
	if err != nil || took < delay {
		t.Errorf("an echo took %v, %v; want at least %v", took, err, delay)
	}
	n.Set("a", "b", Path{Delay: delay})
	n.Set("b", "a", Path{Delay: delay})
	if took, err = say(c, 10*time.Second); err != nil || took < 2*delay {
		t.Errorf("an echo took %v, %v; want at least %v", took, err, 2*delay)
	}
}

func TestBlockAndHeal(t *testing.T) {
	n := newNet(t, "a", "b")
	addr := echo(t, n.Host("a"))
	c := dial(t, n.Host("b"), addr)
	n.Set("a", "b", Path{Block: true})
	if _, err := say(c, 300*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("over a blocked path: %v, want a timeout", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if c, err := n.Host("b").DialContext(ctx, "tcp", addr); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dialling over a blocked path: %v, %v, want a timeout", c, err)
	}
	if n.Counts("a", "b").Lost == 0 {
		t.Error("no packet was lost")
	}
	n.Set("a", "b", Path{})
	if _, err := say(c, 30*time.Second); err != nil { // TCP has sent the echo again
		t.Error(err)
	}
}

func TestLossLosesItsShare(t *testing.T) {
	n := newNet(t, "a", "b")
	c := dial(t, n.Host("b"), echo(t, n.Host("a")))
	n.Set("b", "a", Path{Loss: 0.3})
	for range 50 {
		if _, err := say(c, 60*time.Second); err != nil {
			t.Fatal(err)
		}
		if got := n.Counts("b", "a"); got.Lost > 3 {
			return
		}
	}
	t.Errorf("counts are %+v, want some lost", n.Counts("b", "a"))
}

// The user timeout is what lets a client notice that nobody acknowledges.
func TestUserTimeout(t *testing.T) {
	n := newNet(t, "a", "b")
	ctx := WithUserTimeout(t.Context(), 500*time.Millisecond)
	c, err := n.Host("b").DialContext(ctx, "tcp", echo(t, n.Host("a")))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	n.Set("b", "a", Path{Block: true})
	if _, err := say(c, 60*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("over a dead path: %v, want the kernel's timeout", err)
	}
}

func TestRefusedDial(t *testing.T) {
	n := newNet(t, "a", "b")
	if _, err := n.Host("b").DialContext(t.Context(), "tcp", n.Host("a").Addr.String()+":9"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("dialling a closed port: %v", err)
	}
}

func TestCommandRunsInTheHost(t *testing.T) {
	n := newNet(t, "a")
	out, err := n.Host("a").Command("ip", "-o", "-4", "addr", "show", "dev", device).CombinedOutput()
	if err != nil || !strings.Contains(string(out), n.Host("a").Addr.String()) {
		t.Errorf("%v: %s", err, out)
	}
}

func TestNothingIsLeft(t *testing.T) {
	name := RunName("weir-wiretest", "")
	n, err := New(name, []string{"a", "b"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	// A second network of the same name cannot be: the first must survive that.
	if _, err := New(name, []string{"c", "a"}, 1); err == nil {
		t.Error("two networks have one name")
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(namespaces)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), name+"-") {
			t.Errorf("namespace %s is left", e.Name())
		}
	}
}

func TestStaleNamespacesAreRemoved(t *testing.T) {
	// No process has this number: it is above the largest that Linux gives.
	const stale = "weir-staletest-4194305-a"
	if err := ip("netns", "add", stale); err != nil {
		t.Fatal(err)
	}
	own := RunName("weir-staletest", "b") + "-a"
	if err := ip("netns", "add", own); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ip("netns", "del", own) }()
	if n, err := RemoveStale("weir-staletest"); n != 1 || err != nil {
		t.Errorf("%d were removed, %v; want 1", n, err)
	}
	if _, err := os.Stat(namespaces + "/" + own); err != nil {
		t.Error("the namespace of a living process was removed")
	}
}
