package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// configured is a node with a configuration file that can be changed.
type configured struct {
	*node
	path, text string
}

// startConfigured starts a node from text, in which %[1]s to %[3]s are its
// addresses for RTMP, HTTP and the admin server.
func startConfigured(t testing.TB, role, text string) *configured {
	t.Helper()
	return startConfiguredAs(t, weirBinary(t), role, text)
}

// startConfiguredAs starts a node that runs the weir at a path of its own.
func startConfiguredAs(t testing.TB, path, role, text string) *configured {
	t.Helper()
	var a addresses
	a.fill(t)
	c := &configured{node: &node{id: role + "-1", rtmp: a.rtmp, http: a.http, admin: a.admin}}
	c.text = fmt.Sprintf("role: %s\nnode: {id: %s-1}\nrtmp: {listen: %q}\nhttp: {listen: %q}\nadmin: {listen: %q}\n%sload: {soft_limit: 0, hard_limit: 0}\n", role, role, a.rtmp, a.http, a.admin, text)
	c.path = writeConfig(t, c.id, c.text)
	c.process = startProgram(t, c.id, path, role, "-c", c.path)
	c.awaitReady()
	return c
}

// change replaces a part of the file.
func (c *configured) change(old, with string) {
	c.t.Helper()
	if !strings.Contains(c.text, old) {
		c.t.Fatalf("%q is not in the file", old)
	}
	c.text = strings.Replace(c.text, old, with, 1)
	if err := os.WriteFile(c.path, []byte(c.text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// reload runs weir reload.
func (c *configured) reload() result {
	c.t.Helper()
	return weir(c.t, waitTimeout, "reload", "--admin", "http://"+c.admin)
}

func (c *configured) wantReload(code int, texts ...string) {
	c.t.Helper()
	r := c.reload()
	if r.code != code {
		c.t.Errorf("weir reload: exit code %d, want %d\n%s%s", r.code, code, r.stdout, r.stderr)
	}
	for _, text := range texts {
		if !strings.Contains(r.stdout+r.stderr, text) {
			c.t.Errorf("weir reload does not say %q:\n%s%s", text, r.stdout, r.stderr)
		}
	}
}

// status is GET /api/v1/reload.
func (c *configured) status() (s struct {
	Version int
	Hash    string
	Last    *struct{ Result, Error string }
}) {
	c.t.Helper()
	if err := c.ask("/api/v1/reload", &s); err != nil {
		c.t.Fatal(err)
	}
	return s
}

// An operator changes an edge's file while players play: tenants and limits are in
// force at once and nobody notices; mistakes and what cannot change are refused with
// file, line and key; what needs other workers rolls them.
func TestReloadEdge(t *testing.T) {
	t.Parallel()
	a := startOrigin(t, "origin-a", addresses{}, "")
	edge := startConfigured(t, "edge", fmt.Sprintf(`workers: 2
supervision: {roll_grace: 3s}
limits: {max_connections: 1000}
play: {max_lag: 5s}
vhosts:
  __defaultVhost__:
    upstreams: ["rtmp://%s"]
`, a.rtmp))
	edge.awaitWorkers(2)
	publishClip(t, a.rtmpURL("live/demo"))
	player := playFLV(t, edge.httpURL("live/demo.flv"), "")
	player.await(10, 0)
	sessions := edge.awaitSessions("play", demo, 1)
	workers := edge.awaitWorkers(2)

	// A new tenant, with a key for publishers.
	edge.wantReload(0, "unchanged")
	edge.change("vhosts:\n", "vhosts:\n  acme.example: {upstreams: [\"rtmp://127.0.0.1:1\"], publish: {keys: [hush-hush]}}\n")
	edge.wantReload(0, "version 2", "vhosts")
	if r := weir(t, waitTimeout, "push", file(t, clipFile), edge.rtmpURL("live/x?vhost=acme.example&key=wrong")); r.code != 4 || !strings.Contains(r.stderr, "key is missing or wrong") {
		t.Errorf("a publisher with a wrong key: exit code %d\n%s", r.code, r.stderr)
	}
	// A limit, by SIGHUP.
	edge.change("max_connections: 1000", "max_connections: 1")
	edge.signal(syscall.SIGHUP)
	eventually(t, waitTimeout, "version 3", func() error {
		if s := edge.status(); s.Version != 3 {
			return fmt.Errorf("version %d", s.Version)
		}
		return nil
	})
	eventually(t, waitTimeout, "the limit counts", func() error {
		if err := shortConnection(edge.http); err == nil || !strings.Contains(err.Error(), "503") {
			return fmt.Errorf("a second connection: %v", err)
		}
		return nil
	})
	edge.change("max_connections: 1}", "max_connections: 1000}")
	edge.wantReload(0, "version 4", "limits.max_connections")

	// What is wrong stays out of force.
	good := edge.text
	for _, c := range []struct{ old, with, want string }{
		{"play: {max_lag: 5s}", "play: {max_lagg: 5s}", ":9: play.max_lagg: unknown key"},
		{"node: {id: edge-1}", "node: {id: edge-2}", ":2: node.id: cannot change while the node runs"},
		{edge.http, "127.0.0.1:2", ":4: http.listen: cannot change while the node runs"},
		{"workers: 2", "workers: 3", ":6: workers: cannot change while the node runs"},
	} {
		edge.change(c.old, c.with)
		edge.wantReload(4, edge.path+c.want, "version 4 stays in force")
		edge.text = good
	}
	if s := edge.status(); s.Version != 4 || s.Last.Result != "refused" || s.Last.Error == "" {
		t.Errorf("status %+v", s)
	}
	edge.awaitMetric(4, "weir_config_reloads_total", `result="refused"`)

	// Nobody has noticed any of it.
	if after := edge.awaitSessions("play", demo, 1); after[0].ID != sessions[0].ID {
		t.Errorf("the player has session %s, had %s", after[0].ID, sessions[0].ID)
	}
	if err := player.playing(); err != nil {
		t.Error(err)
	}
	if now := edge.awaitWorkers(2); !slices.Equal(now, workers) {
		t.Errorf("workers %+v, were %+v", now, workers)
	}

	// Other workers: the player is moved to one within roll_grace.
	edge.change("max_lag: 5s", "max_lag: 6s")
	edge.wantReload(0, "version 5", "workers were rolled", "play.max_lag")
	eventually(t, waitTimeout, "the old workers are gone", func() error {
		now, err := edge.workers()
		for _, w := range now {
			if w.State != "ready" || w.PID == workers[0].PID || w.PID == workers[1].PID {
				return fmt.Errorf("workers %+v", now)
			}
		}
		return err
	})
	select {
	case <-player.done:
	case <-time.After(waitTimeout):
		t.Error("the player is where it was")
	}
	if text := edge.stderr.String(); !strings.Contains(text, "reason=moved") || strings.Contains(text, "reason=drained") {
		t.Error("the player was not moved, but cut")
	}
	playFLV(t, edge.httpURL("live/demo.flv"), "").await(10, 0)
}

// An origin takes tenants and limits while it runs, and refuses the rest.
func TestReloadOrigin(t *testing.T) {
	t.Parallel()
	a := startConfigured(t, "origin", "publish: {resume_window: 5s}\nvhosts:\n  acme.example: {publish: {keys: [hush-hush]}}\n")
	publishClip(t, a.rtmpURL("live/demo"))
	a.awaitStream(demo, "live")
	a.change("hush-hush", "other-key")
	a.wantReload(0, "version 2", "vhosts")
	if r := weir(t, waitTimeout, "push", file(t, clipFile), a.rtmpURL("live/x?vhost=acme.example&key=hush-hush")); r.code != 4 {
		t.Errorf("the old key: exit code %d\n%s", r.code, r.stderr)
	}
	if r := weir(t, waitTimeout, "push", file(t, clipFile), a.rtmpURL("live/x?vhost=acme.example&key=other-key"), "--duration", "1s"); r.code != 0 {
		t.Errorf("the new key: exit code %d\n%s", r.code, r.stderr)
	}
	a.change("resume_window: 5s", "resume_window: 6s")
	a.wantReload(4, ":6: publish.resume_window: cannot change while the node runs")
	a.awaitSessions("publish", demo, 1)
}

// storm makes short connections, one after the other in each of its clients, and
// returns how many there were and what went wrong.
func storm(ctx context.Context, addr string, clients, count int) (made int, failed []error) {
	var mu sync.Mutex
	var left atomic.Int64
	left.Store(int64(count))
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			for left.Add(-1) >= 0 && ctx.Err() == nil {
				err := shortConnection(addr)
				mu.Lock()
				made++
				if err != nil {
					failed = append(failed, err)
				}
				mu.Unlock()
			}
		})
	}
	running.Wait()
	return made, failed
}

// shortConnection asks for something that is not there and reads the answer.
func shortConnection(addr string) error {
	c, err := net.DialTimeout("tcp", addr, waitTimeout)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(waitTimeout))
	if _, err := io.WriteString(c, "GET /nothing HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	if err == nil && !bytes.HasPrefix(answer, []byte("HTTP/1.1 404")) {
		err = fmt.Errorf("answer %q", answer[:min(len(answer), 40)])
	}
	return err
}

// rollUnderStorm rolls an edge with n viewers again and again while count short
// connections are made, and returns what went wrong with those. The edge runs the weir
// at path.
func rollUnderStorm(t testing.TB, path string, n, count int, grace string, roll func(edge *configured, round int) result) (made, rolls int, failed []error, a *audience) {
	t.Helper()
	o := startOrigin(t, "origin-a", addresses{}, "")
	edge := startConfiguredAs(t, path, "edge", fmt.Sprintf("workers: 2\nsupervision: {roll_grace: %s}\nplay: {max_lag: 5000ms}\n%s", grace, upstreamsOf(o.rtmp)))
	edge.awaitWorkers(2)
	publishTrickle(t, o.rtmpURL("live/demo"))
	o.awaitStream(demo, "live")
	a = watchAll(t, n, edge.httpURL("live/demo.flv"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var rolling sync.WaitGroup
	defer rolling.Wait()
	begun := make(chan struct{})
	rolling.Go(func() {
		for ctx.Err() == nil {
			if rolls == 0 {
				close(begun)
			}
			if r := roll(edge, rolls); r.code != 0 {
				t.Errorf("roll: exit code %d\n%s", r.code, r.stderr)
				return
			}
			rolls++
		}
	})
	<-begun
	made, failed = storm(ctx, edge.http, 8, count)
	cancel()
	rolling.Wait()
	return made, rolls, failed, a
}

// reloading is a roll by a reload.
func reloading(edge *configured, round int) result {
	edge.t.Helper()
	edge.change(fmt.Sprintf("max_lag: %dms", 5000+round), fmt.Sprintf("max_lag: %dms", 5001+round))
	return edge.reload()
}

// The workers of an edge are rolled while it is stormed: no connection is refused,
// none is reset, and every viewer has a picture again.
func TestRollUnderStorm(t *testing.T) {
	t.Parallel()
	made, rolls, failed, a := rollUnderStorm(t, weirBinary(t), 20, 1000, "2s", reloading)
	if len(failed) > 0 {
		t.Errorf("%d of %d connections failed during %d rolls, the first: %v", len(failed), made, rolls, failed[0])
	}
	eventually(t, waitTimeout, "all viewers have a picture", func() error {
		if k := a.at()[""]; k > 0 {
			return fmt.Errorf("%d have none", k)
		}
		return nil
	})
	if _, _, refused := a.kicks(); len(refused) > 0 {
		t.Errorf("viewers were refused: %v", refused)
	}
	if rolls == 0 {
		t.Error("nothing was rolled")
	}
}

// The storm sees what a naive server does, which closes its socket and opens
// another one, as each worker would without a supervisor that keeps it.
func TestTheStormSeesANaiveClose(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	reuse := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return err
	}}
	ctx, cancel := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	defer workers.Wait()
	defer cancel()
	open := func() net.Listener {
		l, err := reuse.Listen(ctx, "tcp", addr)
		if err != nil {
			t.Error(err)
		}
		return l
	}
	for range 2 {
		l := open()
		workers.Go(func() {
			for round := 0; ctx.Err() == nil && l != nil; round++ {
				for range 20 { // then the worker is rolled
					c, err := accept(ctx, l)
					if err != nil {
						return
					}
					_, _ = c.Read(make([]byte, 512))
					_, _ = io.WriteString(c, "HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n")
					c.Close()
				}
				l.Close()
				l = open()
			}
			l.Close()
		})
	}
	made, failed := storm(ctx, addr, 16, 5000)
	if len(failed) == 0 {
		t.Errorf("%d connections, and not one was lost", made)
	}
}

// accept is Accept with a context.
func accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	return l.Accept()
}

// BenchmarkRoll is a rolling reload of an edge with 1000 viewers while 10 000 short
// connections are made.
func BenchmarkRoll(b *testing.B) {
	for b.Loop() {
		benchmarkRoll(b, weirBinary(b), reloading)
	}
}

// BenchmarkUpgrade is the same with upgrades to another build and back.
func BenchmarkUpgrade(b *testing.B) {
	next, err := buildPlainNext()
	if err != nil {
		b.Fatal(err)
	}
	builds := []string{next, weirBinary(b)}
	program := install(b, builds[1])
	for b.Loop() {
		program.replace(builds[1])
		benchmarkRoll(b, program.path, func(edge *configured, round int) result {
			program.replace(builds[round%2])
			return edge.upgrade()
		})
	}
}

func benchmarkRoll(b *testing.B, path string, roll func(edge *configured, round int) result) {
	b.Helper()
	const n, count = 1000, 10_000
	made, rolls, failed, a := rollUnderStorm(b, path, n, count, "10s", roll)
	ends, _, refused := a.kicks()
	refusedConnections := 0
	for _, err := range failed {
		if errors.Is(err, syscall.ECONNREFUSED) {
			refusedConnections++
		}
	}
	b.ReportMetric(float64(made), "connections")
	b.ReportMetric(float64(rolls), "rolls")
	b.ReportMetric(float64(len(failed)), "failed")
	b.ReportMetric(float64(refusedConnections), "refused")
	b.ReportMetric(float64(len(ends)), "viewers-moved")
	b.ReportMetric(float64(len(refused)), "viewers-refused")
	for _, err := range append(failed, refused...) {
		b.Log(err)
	}
	a.stop()
}

// An edge drains while a worker that was rolled still has a publisher: the drain says that
// it was cut.
func TestDrainCountsWhatARetiringWorkerCuts(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, "origin-a", addresses{}, "")
	edge := startConfigured(t, "edge", "workers: 1\nsupervision: {roll_grace: 1s}\nplay: {max_lag: 5s}\n"+upstreamsOf(o.rtmp))
	edge.awaitWorkers(1)
	publishClip(t, edge.rtmpURL("live/demo"))
	edge.awaitSessions("publish", demo, 1)
	edge.change("max_lag: 5s", "max_lag: 4s")
	edge.wantReload(0, "version 2")
	edge.awaitSessions("publish", demo, 1)
	r := weir(t, waitTimeout, "drain", "--admin", "http://"+edge.admin, "--deadline", "2s", "--wait")
	if r.code != 0 || !strings.Contains(r.stdout+r.stderr, "0 moved, 1 cut") {
		t.Errorf("weir drain: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	edge.sees("sessions cut at the end of the drain")
}
