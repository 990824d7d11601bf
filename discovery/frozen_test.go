package discovery

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"weir/internal/units"
)

// frozenOrigin is set in the environment of a process that this test starts: it is
// an origin that holds the stream demo. The value is the directory's URL and the
// map_size.
const frozenOrigin = "WEIR_TEST_FROZEN_ORIGIN"

// runFrozenOrigin claims the stream, and says so, and when it has lost it. It ends
// with its standard input.
func runFrozenOrigin() {
	url, size, _ := strings.Cut(os.Getenv(frozenOrigin), " ")
	cfg := frozenConfig(url)
	if size == "0" {
		cfg.MapSize = 0
	}
	c := NewClient(cfg, nil)
	h := NewHolder(c, HolderConfig{Config: cfg, Self: selfA, OnLost: func(_ string, now Lease) { fmt.Println("lost to", now.Node) }})
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error)
	go func() { ran <- h.Run(ctx) }()
	if _, err := h.Claim(ctx, demo, ClaimOptions{}); err != nil {
		fmt.Println("claim:", err)
		os.Exit(1)
	}
	fmt.Println("claimed")
	_, _ = io.Copy(io.Discard, os.Stdin)
	cancel()
	<-ran
}

// frozenConfig has renewals so far apart that a timer alone would be too late.
func frozenConfig(url string) Config {
	cfg := DefaultConfig()
	cfg.URLs, cfg.LeaseTTL, cfg.MapSize = []string{url}, time.Minute, 16*units.MiB
	return cfg
}

// An origin that is stopped for longer than its lease lasts, and goes on, gives
// way at once, with a watch and without: not only when a renewal is due, some 20 s
// later. A second is the aim; a busy machine takes longer.
func TestThawedOriginGivesWayAtOnce(t *testing.T) {
	for _, c := range []struct{ name, mapSize string }{{"watching", "1"}, {"not watching", "0"}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newMemory()
			url := startServer(t, m)
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), exe)
			cmd.Env = append(os.Environ(), frozenOrigin+"="+url+" "+c.mapSize)
			cmd.Stderr = os.Stderr
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			says := func(want string) {
				t.Helper()
				if !lines.Scan() || lines.Text() != want {
					t.Fatalf("the origin says %q, want %q (%v)", lines.Text(), want, lines.Err())
				}
			}
			says("claimed")
			if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			// Its lease ends, and another origin has the stream. What is not waited for
			// is made short: the lease's rest.
			within(t, 10*time.Second, "the origin stands still", func() bool { return stopped(t, cmd.Process.Pid) })
			select {
			case <-time.After(frostLeap + 2*frostLook):
			case <-t.Context().Done():
			}
			b := claimBy(selfB, demo)
			b.Replace, b.TTL = true, time.Minute
			mustClaim(t, m, b)
			thawed := time.Now()
			if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			says("lost to b")
			if took := time.Since(thawed); took > 8*time.Second {
				t.Errorf("it gave way after %v", took)
			} else {
				t.Logf("it gave way after %v", took)
			}
			in.Close()
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

// stopped reports whether a process stands still.
func stopped(t *testing.T, pid int) bool {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "T")
}

// Where the directory is watched an origin learns at once that it has lost a
// stream, or that the directory has.
func TestHolderWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a, _ := startWatchingHolder(t, m, selfA)
		synctest.Wait()
		first := a.mustClaim(t, demo)
		b := claimBy(selfB, demo)
		b.Replace = true
		second := mustClaim(t, m, b)
		a.wantLost(t, "b") // without any time having passed
		wantOwner(t, a, demo, "b")

		// An event of before this node's own claim says nothing.
		old := first
		third, err := a.Claim(t.Context(), demo, ClaimOptions{Replace: true})
		if err != nil {
			t.Fatal(err)
		}
		a.watched(t.Context(), []Event{{Lease: &second}, {Lease: &old}, {Ended: &End{demo, second.Epoch}}})
		a.wantLost(t, "")

		// A lease that has ended in the directory, but not here, is made good.
		if err := m.Release(t.Context(), third); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if l := wantOwner(t, m, demo, "a"); l.Epoch <= third.Epoch {
			t.Errorf("owned with epoch %d after %d", l.Epoch, third.Epoch)
		}
		a.wantLost(t, "")

		// What was given up is not looked for here, although the copy may still say so.
		a.wire.setCut(true)
		_ = a.Release(t.Context(), demo)
		wantOwner(t, a, demo, "")
	})
}
