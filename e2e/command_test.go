package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"weir/internal/clip"
	"weir/internal/media"
)

// What is pushed is what is pulled: every tag, in order, unchanged, over both
// protocols at once, through an origin that sends everybody on and an edge.
func TestPushThenPull(t *testing.T) {
	t.Parallel()
	discovery := startDiscovery(t, "")
	a := startOrigin(t, "origin-a", addresses{}, discoveryAt(discovery))
	b := startOrigin(t, "origin-b", addresses{}, discoveryAt(discovery))
	edge := startEdge(t, "edge-1", 2, upstreamsOf(b.rtmp)+"play: {wait_publisher: 20s}\n")

	dir := t.TempDir()
	overRTMP, overHTTP := filepath.Join(dir, "rtmp.flv"), filepath.Join(dir, "http.flv")
	pulls := []*process{
		startWeir(t, "weir pull of RTMP", "pull", edge.rtmpURL("live/demo"), "--out", overRTMP),
		startWeir(t, "weir pull of HTTP-FLV", "pull", edge.httpURL("live/demo.flv"), "--out", overHTTP),
	}
	// Both have to be there before the first frame: they see each other's
	// connections at the edge, but the stream only as waiting.
	edge.awaitStream(demo, "waiting")
	awaitConnections(t, edge.rtmp, 1)
	awaitConnections(t, edge.http, 1)

	push := startWeir(t, "weir push", "push", file(t, clipFile), a.rtmpURL("live/demo"))
	if code := push.wait(2*clip.Duration + waitTimeout); code != 0 {
		t.Fatalf("weir push ended with exit code %d", code)
	}
	// The stream ends, and so do its players, once nobody resumes it.
	for _, p := range pulls {
		if code := p.wait(2 * waitTimeout); code != 0 {
			t.Errorf("%s ended with exit code %d", p.name, code)
		}
		if !strings.Contains(p.stdout.String()+p.stderr.String(), "H.264") {
			t.Errorf("%s does not say what codec it saw:\n%s%s", p.name, p.stdout, p.stderr)
		}
	}

	want, err := readTags(clip.Reader())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{overRTMP, overHTTP} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readTags(f)
		f.Close()
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(path), err)
		}
		requireSameTags(t, filepath.Base(path), got, want)
	}
}

// awaitConnections waits until n clients are connected to a listening address,
// as the kernel knows it.
func awaitConnections(t *testing.T, addr string, n int) {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	const established = "01"
	eventually(t, waitTimeout, fmt.Sprintf("%s has %d connections", addr, n), func() error {
		table, err := os.ReadFile("/proc/net/tcp")
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for line := range strings.Lines(string(table)) {
			fields := strings.Fields(line) // number, local, remote, state
			if len(fields) > 3 && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", number)) && fields[3] == established {
				found++
			}
		}
		if found < n {
			return fmt.Errorf("it has %d", found)
		}
		return nil
	})
}

// requireSameTags fails unless both lists hold the same tags: kinds, bodies,
// order, and times up to a constant. Decoder headers that are repeated unchanged
// are passed over.
func requireSameTags(t *testing.T, who string, got, want []media.Tag) {
	t.Helper()
	got, want = withoutRepeatedHeaders(got), withoutRepeatedHeaders(want)
	for i := range min(len(got), len(want)) {
		g, w := got[i], want[i]
		if g.Kind() != w.Kind() || !bytes.Equal(g.Body(), w.Body()) {
			t.Errorf("%s: tag %d is a %v of %d bytes at %d ms, pushed was a %v of %d bytes at %d ms",
				who, i, g.Kind(), len(g.Body()), g.Time(), w.Kind(), len(w.Body()), w.Time())
			return
		}
		if shift := g.Time() - w.Time(); shift != got[0].Time()-want[0].Time() {
			t.Errorf("%s: %v tag %d is at %d ms, pushed at %d ms, and the first was shifted by %d ms",
				who, g.Kind(), i, g.Time(), w.Time(), int32(got[0].Time()-want[0].Time()))
			return
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d tags, pushed were %d", who, len(got), len(want))
	}
}

func withoutRepeatedHeaders(tags []media.Tag) []media.Tag {
	last := map[media.Kind][]byte{}
	var kept []media.Tag
	for _, tag := range tags {
		if media.Sniff(tag.Kind(), tag.Body()).IsHeader() {
			if bytes.Equal(last[tag.Kind()], tag.Body()) {
				continue
			}
			last[tag.Kind()] = tag.Body()
		}
		kept = append(kept, tag)
	}
	return kept
}

// Both redirects are followed by weir's own player.
func TestPullFollowsRedirects(t *testing.T) {
	t.Parallel()
	discovery := startDiscovery(t, "")
	a := startOrigin(t, "origin-a", addresses{}, discoveryAt(discovery))
	b := startOrigin(t, "origin-b", addresses{}, discoveryAt(discovery))
	push := startWeir(t, "weir push", "push", file(t, clipFile), a.rtmpURL("live/demo"), "--loop")
	a.awaitStream(demo, "live")
	for _, url := range []string{b.rtmpURL("live/demo"), b.httpURL("live/demo.flv")} {
		out := filepath.Join(t.TempDir(), "out.flv")
		r := weir(t, 2*waitTimeout, "pull", url, "--duration", "3s", "--out", out)
		if r.code != 0 {
			t.Errorf("pull %s: exit code %d\n%s%s", url, r.code, r.stdout, r.stderr)
			continue
		}
		clipSource(t).require(t, "pull of "+url, framesIn(out), 50, rules{})
	}
	push.signal(syscall.SIGINT)
	if code := push.wait(stopTimeout); code != 0 {
		t.Errorf("weir push --loop ended with exit code %d on Ctrl-C", code)
	}
}

// The commands say in one line what is wrong, and with their exit code that
// something is.
func TestCommandErrors(t *testing.T) {
	t.Parallel()
	nobody := freeAddr(t)
	f := func(wantInOutput string, args ...string) {
		t.Helper()
		r := weir(t, waitTimeout, args...)
		out := r.stdout + r.stderr
		if r.code == 0 || !strings.Contains(out, wantInOutput) {
			t.Errorf("weir %s: exit code %d, want another than 0 and %q in the output:\n%s", strings.Join(args, " "), r.code, wantInOutput, out)
		}
		if strings.Contains(out, "goroutine ") {
			t.Errorf("weir %s shows its goroutines:\n%s", strings.Join(args, " "), out)
		}
	}
	f("missing.flv", "push", "missing.flv", "rtmp://"+nobody+"/live/x")
	f(nobody, "push", file(t, clipFile), "rtmp://"+nobody+"/live/x")
	f(nobody, "pull", "rtmp://"+nobody+"/live/x")
	f(nobody, "pull", "http://"+nobody+"/live/x.flv")
	f("ftp", "pull", "ftp://"+nobody+"/live/x")
	f("missing.yaml", "check", "-c", "missing.yaml")
	f("missing.yaml", "edge", "-c", "missing.yaml")

	path := writeConfig(t, "bad", "role: edge\nworkers: many\nrmtp: {listen: ':1935'}\nvhosts:\n  __defaultVhost__:\n    policy: best\n")
	for _, want := range []string{path + ":2", "workers", path + ":3", "rmtp", path + ":6", "policy"} {
		f(want, "check", "-c", path)
		f(want, "edge", "-c", path)
	}

	if r := weir(t, waitTimeout, "version"); r.code != 0 || !strings.Contains(r.stdout, "e2e") {
		t.Errorf("version: exit code %d\n%s", r.code, r.stdout)
	}
}

// Every sample configuration passes the check and starts a node that lives,
// with its listening addresses replaced by free ones.
func TestSamplesStart(t *testing.T) {
	t.Parallel()
	samples := 0
	err := filepath.WalkDir("../configs", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && entry.Name() == "testdata":
			return fs.SkipDir
		case filepath.Ext(path) != ".yaml":
			return nil
		}
		samples++
		t.Run(filepath.Base(path), func(t *testing.T) { startSample(t, path) })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if samples < 3 {
		t.Errorf("%d sample files, want one for each role at least", samples)
	}
}

func startSample(t *testing.T, path string) {
	if r := weir(t, waitTimeout, "check", "-c", path); r.code != 0 {
		t.Errorf("weir check: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	sections := []string{"rtmp", "http", "admin"}
	if config["role"] == "discovery" {
		sections = []string{"admin"}
		config["listen"] = freeAddr(t)
	}
	for _, section := range sections {
		values, _ := config[section].(map[string]any)
		if values == nil {
			values = map[string]any{}
		}
		values["listen"] = freeAddr(t)
		config[section] = values
	}
	text, err = yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	role, _ := config["role"].(string)
	n := &node{id: filepath.Base(path), admin: config["admin"].(map[string]any)["listen"].(string)}
	n.process = startWeir(t, n.id, role, "-c", writeConfig(t, "sample", string(text)))
	eventually(t, startTimeout, "the node answers", func() error {
		if !n.running() {
			t.Fatalf("it has ended: %v", n.err)
		}
		answer, err := tryGet("http://" + n.admin + "/healthz")
		if err == nil && answer.status != http.StatusOK {
			err = fmt.Errorf("status %d", answer.status)
		}
		return err
	})
	n.stop()
}

// clusterPorts are the ports of a local cluster, by the URL or question that
// each is for.
var clusterPorts = map[string]int{
	"edge rtmp": 1935, "edge http": 8080, "edge admin": 9090,
	"a rtmp": 19351, "a http": 18081, "a admin": 19091,
	"b rtmp": 19352, "b http": 18082, "b admin": 19092,
	"discovery": 7070,
}

// A person runs `weir cluster`: there is a picture at once, in every format, at
// every node, and Ctrl-C leaves nothing behind.
func TestCluster(t *testing.T) {
	t.Parallel()
	offset := freeOffset(t, slices.Collect(maps.Values(clusterPorts)))
	at := func(what string) string { return fmt.Sprintf("127.0.0.1:%d", clusterPorts[what]+offset) }
	args := []string{"cluster", "--workers", "2", "--port-offset", strconv.Itoa(offset)}

	weirBinary(t)
	started := time.Now()
	cluster := startWeir(t, "weir cluster", args...)
	edge := &node{process: cluster, id: "edge", rtmp: at("edge rtmp"), http: at("edge http"), admin: at("edge admin")}
	edge.awaitReady()
	p := playFLV(t, edge.httpURL("live/demo.flv"), "")
	p.await(1, 0)
	t.Logf("first picture %v after the start", time.Since(started))
	for _, origin := range []string{at("a admin"), at("b admin")} {
		(&node{process: cluster, id: origin, admin: origin}).awaitReady()
	}

	for _, url := range []string{edge.rtmpURL("live/demo"), edge.httpURL("live/demo.flv"), edge.httpURL("live/demo.m3u8")} {
		cluster.sees(url)
	}
	clipSource(t).require(t, "rtmpdump", rtmpdumpFrames(t, edge.rtmpURL("live/demo"), 2*time.Second), 50, rules{})
	eventually(t, waitTimeout, "HLS plays", func() error {
		answer, err := tryGet(edge.httpURL("live/demo.m3u8"))
		if err != nil {
			return err
		}
		list, err := parsePlaylist(answer.body)
		if err != nil || len(list.segments) == 0 {
			return fmt.Errorf("status %d, %d segments, %w", answer.status, len(list.segments), err)
		}
		return nil
	})
	// Anybody can publish to the edge, and to either origin.
	for name, url := range map[string]string{
		"one":   edge.rtmpURL("live/one"),
		"two":   "rtmp://" + at("a rtmp") + "/live/two",
		"three": "rtmp://" + at("b rtmp") + "/live/three",
	} {
		publish(t, file(t, otherFile), url)
		mine := playFLV(t, edge.httpURL("live/"+name+".flv"), "")
		mine.await(25, 0)
		fileSource(t, file(t, otherFile)).require(t, "player of "+name, mine.end(), 25, rules{})
	}
	clipSource(t).require(t, "player of the demo", p.end(), 50, rules{})

	// A second cluster on the same ports says which one is taken, and by which
	// key to change it.
	r := weir(t, startTimeout, args...)
	taken := 0
	for what := range clusterPorts {
		taken += strings.Count(r.stderr, at(what))
	}
	if out := r.stdout + r.stderr; r.code == 0 || taken != 1 || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(out, ".listen") || !strings.Contains(out, "--port-offset") {
		t.Errorf("a second cluster: exit code %d, output\n%s", r.code, out)
	}

	children := descendants(t, cluster.pid())
	if len(children) < 6 { // discovery, two origins, the edge and its workers
		t.Errorf("the cluster has %d processes", len(children))
	}
	cluster.signal(syscall.SIGINT)
	if code := cluster.wait(stopTimeout); code != 0 {
		t.Errorf("the cluster ended with exit code %d on Ctrl-C", code)
	}
	for _, pid := range children {
		eventually(t, stopTimeout, "the nodes have ended", func() error {
			if alive(pid) {
				return fmt.Errorf("process %d lives", pid)
			}
			return nil
		})
	}
	if !allFree(offset, slices.Collect(maps.Values(clusterPorts))) {
		t.Error("not all ports are free after the end")
	}
}

// descendants returns the processes below pid.
func descendants(t *testing.T, pid int) []int {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, path := range tasks {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(text)) {
			var child int
			if _, err := fmt.Sscan(field, &child); err != nil {
				t.Fatal(err)
			}
			pids = append(append(pids, child), descendants(t, child)...)
		}
	}
	return pids
}
