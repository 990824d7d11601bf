// Package e2e tests weir as its users meet it: real processes on free ports of
// the loopback, real encoders and players (ffmpeg, ffprobe, rtmpdump), and
// frames compared with those that were published.
//
// Each test is a story with a cluster of its own. What they share is here: the
// binary is built once, with the race detector, so that a race in any process
// fails the test that ran it.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Deadlines of conditions. They are long, because the machine may be slow, the
// processes carry the race detector, and a condition that holds ends the wait.
const (
	startTimeout = 20 * time.Second
	waitTimeout  = 20 * time.Second
	stopTimeout  = 15 * time.Second
)

var workshop string // temporary directory of the whole run, set by TestMain

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "weir-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	workshop = dir
	return m.Run()
}

// The binaries are made on first use; tests that need none do not wait for them.
var (
	buildRace      = sync.OnceValues(func() (string, error) { return build("weir", "e2e", "1", "-race") })
	buildNext      = sync.OnceValues(func() (string, error) { return build("weir-next", "e2e-next", "1", "-race") })
	buildPlainNext = sync.OnceValues(func() (string, error) { return build("weir-plain-next", "e2e-next", "0") })
	buildPlain     = sync.OnceValues(func() (string, error) { return build("weir-plain", "e2e", "0") })
)

func build(name, version, cgo string, flags ...string) (string, error) {
	path := filepath.Join(workshop, name)
	args := append(append([]string{"build"}, flags...), "-ldflags", "-X main.version="+version, "-o", path, "weir/cmd/weir")
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build weir: %w\n%s", err, out)
	}
	return path, nil
}

// weirBinary returns the path of the weir under test: as it is shipped for
// benchmarks, with the race detector for tests.
func weirBinary(t testing.TB) string {
	t.Helper()
	build := buildRace
	if _, ok := t.(*testing.B); ok {
		build = buildPlain
	}
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// eventually waits until condition returns nil and fails the test with its last
// error if it does not within the timeout.
func eventually(t testing.TB, timeout time.Duration, what string, condition func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, timeout, err)
		case <-tick.C:
		}
	}
}
