package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// installed is a weir at a path of its own, as a package installs it.
type installed struct {
	t    testing.TB
	path string
}

func install(t testing.TB, program string) installed {
	t.Helper()
	i := installed{t, filepath.Join(t.TempDir(), "weir")}
	i.replace(program)
	return i
}

// replace puts another program at the path, by a rename.
func (i installed) replace(program string) {
	i.t.Helper()
	text, err := os.ReadFile(program)
	if err == nil {
		err = os.WriteFile(i.path+".new", text, 0o755)
	}
	if err == nil {
		err = os.Rename(i.path+".new", i.path)
	}
	if err != nil {
		i.t.Fatal(err)
	}
}

// upgradeStatus is GET /api/v1/upgrade.
type upgradeStatus struct {
	Version string
	Running bool
	Last    *struct{ From, To, Result, Error string }
}

func (n *node) upgradeStatus() (s upgradeStatus) {
	n.t.Helper()
	if err := n.ask("/api/v1/upgrade", &s); err != nil {
		n.t.Fatal(err)
	}
	return s
}

// upgrade runs weir upgrade.
func (n *node) upgrade() result {
	n.t.Helper()
	return weir(n.t, waitTimeout, "upgrade", "--admin", "http://"+n.admin)
}

// An operator installs another build of weir and upgrades an edge to it and back, by
// the command and by the signal, while viewers play and others come and go: none of
// these is refused or reset. The supervisor keeps its process id, and looks after the
// workers as before.
func TestUpgradeEdge(t *testing.T) {
	t.Parallel()
	next, err := buildNext()
	if err != nil {
		t.Fatal(err)
	}
	program := install(t, weirBinary(t))
	d := startDiscovery(t, "")
	o := startOrigin(t, "origin-a", addresses{}, discoveryAt(d))
	edge := startConfiguredAs(t, program.path, "edge", "workers: 2\nsupervision: {roll_grace: 2s}\n"+discoveryAt(d))
	before := edge.awaitWorkers(2)
	publishTrickle(t, o.rtmpURL("live/demo"))
	o.awaitStream(demo, "live")
	a := watchAll(t, 20, edge.httpURL("live/demo.flv"))

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var storming sync.WaitGroup
	defer storming.Wait()
	defer cancel()
	var made int
	var failed []error
	storming.Go(func() { made, failed = storm(ctx, edge.http, 8, 1<<30) })

	program.replace(next)
	if r := edge.upgrade(); r.code != 0 || !strings.Contains(r.stdout, "upgraded from e2e to e2e-next") {
		t.Fatalf("weir upgrade: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	program.replace(weirBinary(t))
	edge.signal(syscall.SIGUSR2)
	eventually(t, waitTimeout, "the first build again", func() error {
		var s upgradeStatus
		if err := edge.ask("/api/v1/upgrade", &s); err != nil || s.Version != "e2e" || s.Last == nil || s.Last.From != "e2e-next" || s.Last.Result != "upgraded" {
			return fmt.Errorf("%+v, %v", s, err)
		}
		return nil
	})
	for i, w := range edge.awaitWorkers(2) {
		if w.PID == before[i].PID || w.Restarts != 2 {
			t.Errorf("worker %+v, was %+v", w, before[i])
		}
	}
	eventually(t, waitTimeout, "the old workers are gone", func() error {
		if now, err := edge.workers(); err != nil || len(now) != 2 {
			return fmt.Errorf("workers %+v, %v", now, err)
		}
		return nil
	})
	cancel()
	storming.Wait()
	if len(failed) > 0 {
		t.Errorf("%d of %d connections failed, the first: %v", len(failed), made, failed[0])
	}
	t.Logf("%d connections during two upgrades", made)
	eventually(t, waitTimeout, "all viewers have a picture", func() error {
		if k := a.at()[""]; k > 0 {
			return fmt.Errorf("%d have none", k)
		}
		return nil
	})
	if _, _, refused := a.kicks(); len(refused) > 0 {
		t.Errorf("viewers were refused: %v", refused)
	}
	var info struct {
		PID     int
		Version string
	}
	if err := edge.ask("/api/v1/node", &info); err != nil || info.PID != edge.pid() || info.Version != "e2e" {
		t.Errorf("%+v, %v; the process was %d", info, err, edge.pid())
	}

	// A dead worker of the program before is started again by this one.
	victim := edge.awaitWorkers(2)[0].PID
	if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, waitTimeout, "another worker", func() error {
		now, err := edge.workers()
		if err != nil || now[0].PID == victim || now[0].State != "ready" {
			return fmt.Errorf("%+v, %v", now, err)
		}
		return nil
	})
}

// Publishers at an edge outlive an upgrade where they are: their worker goes on for them.
func TestUpgradeKeepsPublishers(t *testing.T) {
	t.Parallel()
	program := install(t, weirBinary(t))
	o := startOrigin(t, "origin-a", addresses{}, "")
	edge := startConfiguredAs(t, program.path, "edge", "workers: 2\nsupervision: {roll_grace: 1s}\n"+upstreamsOf(o.rtmp))
	encoder := publishClip(t, edge.rtmpURL("live/demo"))
	o.awaitStream(demo, "live")
	player := playFLV(t, o.httpURL("live/demo.flv"), "")
	session := edge.awaitSessions("publish", demo, 1)[0].ID
	if r := edge.upgrade(); r.code != 0 {
		t.Fatalf("weir upgrade: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	eventually(t, waitTimeout, "the other worker has ended", func() error {
		if now, err := edge.workers(); err != nil || len(now) != 3 {
			return fmt.Errorf("workers %+v, %v", now, err)
		}
		return nil
	})
	player.await(75, player.videoFrames()) // longer than the grace of players
	if s := edge.awaitSessions("publish", demo, 1); s[0].ID != session || !encoder.running() {
		t.Errorf("the encoder has session %s, had %s", s[0].ID, session)
	}
	clipSource(t).require(t, "player", player.end(), 75, rules{})
	encoder.signal(syscall.SIGTERM)
	encoder.wait(stopTimeout)
	eventually(t, waitTimeout, "its worker has ended", func() error {
		if now, err := edge.workers(); err != nil || len(now) != 2 {
			return fmt.Errorf("workers %+v, %v", now, err)
		}
		return nil
	})
}

// A program that cannot run leaves the one before as it was, and so does its being at
// the path: a worker that dies is started as what the node runs.
func TestUpgradeToABrokenProgram(t *testing.T) {
	t.Parallel()
	program := install(t, weirBinary(t))
	edge := startConfiguredAs(t, program.path, "edge", "workers: 2\n"+upstreamsOf("127.0.0.1:1"))
	before := edge.awaitWorkers(2)
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, []byte("\x7fELF nothing more"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ program, want string }{
		{broken, "exec format error"},
		{"/bin/true", "no weir that can take over"},
	} {
		program.replace(c.program)
		if r := edge.upgrade(); r.code != 4 || !strings.Contains(r.stderr, "the program before (e2e) goes on") || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%s: exit code %d\n%s%s", c.program, r.code, r.stdout, r.stderr)
		}
	}
	if s := edge.upgradeStatus(); s.Last == nil || s.Last.Result != "failed" || s.Last.Error == "" {
		t.Errorf("%+v", s)
	}
	edge.awaitMetric(2, "weir_upgrades_total", `result="failed"`)
	for i, w := range edge.awaitWorkers(2) {
		if w.PID != before[i].PID {
			t.Errorf("worker %+v, was %+v", w, before[i])
		}
	}
	if err := syscall.Kill(before[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, waitTimeout, "another worker", func() error {
		now, err := edge.workers()
		if err != nil || now[0].PID == before[0].PID || now[0].State != "ready" {
			return fmt.Errorf("%+v, %v", now, err)
		}
		return nil
	})
	if err := shortConnection(edge.http); err != nil {
		t.Error(err)
	}
}

// A node that cannot be upgraded says so, and goes on.
func TestUpgradeOfAnOriginIsRefused(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, "origin-a", addresses{}, "")
	if r := o.upgrade(); r.code != 4 || !strings.Contains(r.stderr, "drain it") {
		t.Errorf("weir upgrade: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	o.signal(syscall.SIGUSR2)
	o.sees("upgrade refused")
	eventually(t, waitTimeout, "the origin answers", func() error {
		if s := o.upgradeStatus(); s.Version != "e2e" || s.Last != nil {
			return errors.New("it has been upgraded")
		}
		return nil
	})
}
