package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// alice's encoder knows only the edge. The edge forwards her to an origin;
// players at the edge, at another edge and at the origin see her frames.
func TestPublishThroughEdge(t *testing.T) {
	t.Parallel()
	discovery := startDiscovery(t, "")
	a := startOrigin(t, "origin-a", addresses{}, discoveryAt(discovery))
	b := startOrigin(t, "origin-b", addresses{}, discoveryAt(discovery))
	edge := startEdge(t, "edge-1", 2, discoveryAt(discovery)+upstreamsOf(a.rtmp, b.rtmp))
	far := startEdge(t, "edge-2", 1, discoveryAt(discovery)+upstreamsOf(b.rtmp, a.rtmp))

	encoder := publishClip(t, edge.rtmpURL("live/demo"))
	owner := ownerOf(t, demo, a, b)
	players := []*player{
		playFLV(t, edge.httpURL("live/demo.flv"), ""),
		playFLV(t, far.httpURL("live/demo.flv"), ""),
		playFLV(t, owner.httpURL("live/demo.flv"), ""),
	}
	for _, p := range players {
		p.await(100, 0)
	}
	clipPackets := ffmpegSource(t, file(t, clipFile), packets, clipKeyEvery)
	clipPackets.require(t, "ffmpeg at the owner", ffmpegFrames(t, owner.rtmpURL("live/demo"), 3*time.Second, packets), 60, rules{})
	for _, p := range players {
		p.requireHeaders()
		clipSource(t).require(t, "player of "+p.url, p.end(), 100, rules{})
	}

	// When alice stops, the name is free again.
	edge.awaitMetric(1, "weir_forwards")
	encoder.signal(syscall.SIGINT)
	encoder.wait(stopTimeout)
	owner.awaitSessions("publish", demo, 0)
	edge.awaitMetric(0, "weir_forwards")
	if r := weir(t, waitTimeout, "push", file(t, clipFile), edge.rtmpURL("live/demo"), "--duration", "1s"); r.code != 0 {
		t.Errorf("publish again: exit code %d\n%s", r.code, r.stderr)
	}
}

// ownerOf waits until one of the origins has the stream live and returns it; it
// is an error if both have.
func ownerOf(t *testing.T, key string, origins ...*node) *node {
	t.Helper()
	var owner *node
	eventually(t, waitTimeout, "one origin has "+key, func() error {
		owner = nil
		for _, o := range origins {
			if !o.running() {
				continue
			}
			streams, err := o.streams(key)
			if err != nil {
				return err
			}
			for _, s := range streams {
				if s.State == "live" {
					if owner != nil {
						t.Fatalf("both %s and %s have %s", owner.id, o.id, key)
					}
					owner = o
				}
			}
		}
		if owner == nil {
			return errors.New("none has")
		}
		return nil
	})
	return owner
}

// Players of a stream that has few are all at the worker that pulls it, whichever accepts
// their connections.
func TestFewPlayersOneWorker(t *testing.T) {
	t.Parallel()
	const few = 20
	a := startOrigin(t, "origin-a", addresses{}, "")
	edge := startEdge(t, "edge-1", 2, upstreamsOf(a.rtmp))
	publishClip(t, a.rtmpURL("live/demo"))
	var players []*player
	for range few {
		players = append(players, playFLV(t, edge.httpURL("live/demo.flv"), ""))
	}
	for _, p := range players {
		p.await(1, 0)
	}
	onWorker := map[int]int{}
	for _, s := range edge.awaitSessions("play", demo, few) {
		if s.Worker == nil {
			t.Fatalf("session without a worker: %+v", s)
		}
		onWorker[*s.Worker]++
	}
	if len(onWorker) != 1 {
		t.Errorf("players by worker: %v, want all at one", onWorker)
	}
}

// Two hundred players come at once, before the publisher. They land on all
// workers; the edge pulls the stream once; every player gets every frame.
func TestManyPlayersOnePull(t *testing.T) {
	t.Parallel()
	const crowd = 200
	a := startOrigin(t, "origin-a", addresses{}, "")
	wire := tap(t, a.rtmp)
	edge := startEdge(t, "edge-1", 2, upstreamsOf(wire.addr())+"play: {wait_publisher: 20s}\n")

	// Some are there before there is anything to see.
	players := make([]*player, 0, crowd)
	for range 20 {
		players = append(players, playFLV(t, edge.httpURL("live/demo.flv"), ""))
	}
	edge.awaitStream(demo, "waiting")
	publishClip(t, a.rtmpURL("live/demo"))
	for len(players) < crowd {
		players = append(players, playFLV(t, edge.httpURL("live/demo.flv"), ""))
	}
	for _, p := range players {
		p.await(1, 0)
	}

	onWorker := map[int]int{}
	for _, s := range edge.awaitSessions("play", demo, crowd) {
		if s.Worker == nil {
			t.Fatalf("session without a worker: %+v", s)
		}
		onWorker[*s.Worker]++
	}
	if len(onWorker) != 2 {
		t.Errorf("players by worker: %v, want some on each of 2", onWorker)
	}
	pulls := a.awaitSessions("play", demo, 1)
	edge.puller(demo)

	for _, p := range players {
		p.await(75, 0)
	}
	if again := a.awaitSessions("play", demo, 1); again[0].ID != pulls[0].ID {
		t.Errorf("the pull was session %s, is %s now: it was not one pull all the time", pulls[0].ID, again[0].ID)
	}
	source := clipSource(t)
	for i, p := range players {
		p.requireHeaders()
		source.require(t, fmt.Sprintf("player %d", i), p.end(), 75, rules{})
	}

	// The last player's leaving ends the pull, after the linger.
	edge.awaitSessions("play", demo, 0)
	a.awaitSessions("play", demo, 0)
}

// A thousand players come at the same moment to a stream that nobody plays yet. Each
// gets it, and it is pulled once.
func TestThousandPlayersAtOnce(t *testing.T) {
	t.Parallel()
	const herd = 1000
	a := startOrigin(t, "origin-a", addresses{}, "")
	wire := tap(t, a.rtmp)
	edge := startEdge(t, "edge-1", 2, upstreamsOf(wire.addr()))
	publishClip(t, a.rtmpURL("live/demo"))
	a.awaitStream(demo, "live")
	var players sync.WaitGroup
	start := make(chan struct{})
	errs := make([]error, herd)
	waits := make([]time.Duration, herd)
	for i := range herd {
		players.Go(func() {
			<-start
			waits[i], errs[i] = firstTag(edge.http, "live/demo.flv")
		})
	}
	close(start)
	players.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("player %d: %v", i, err)
		}
	}
	t.Logf("the first tag came after %v at the median, %v at most", quantile(waits, 0.5), quantile(waits, 1))
	a.awaitSessions("play", demo, 1) // it lingers
	if fromEdge, _ := wire.said(); len(fromEdge) != 1 {
		t.Errorf("%d pulls", len(fromEdge))
	}
}

// byWorker starts players until each worker has at least min of them, and
// returns them by worker.
func byWorker(t *testing.T, edge *node, workers, min int) map[int][]*player {
	t.Helper()
	players := map[int][]*player{}
	deadline := time.Now().Add(startTimeout)
	for {
		few := false
		for w := range workers {
			few = few || len(players[w]) < min
		}
		if !few {
			return players
		}
		if time.Now().After(deadline) {
			t.Fatalf("players do not reach all workers: %v", players)
		}
		before, err := edge.sessions("play", demo)
		if err != nil {
			t.Fatal(err)
		}
		known := map[string]bool{}
		for _, s := range before {
			known[s.ID] = true
		}
		p := playFLV(t, edge.httpURL("live/demo.flv"), "")
		p.await(1, 0)
		for _, s := range edge.awaitSessions("play", demo, len(before)+1) {
			if !known[s.ID] {
				players[*s.Worker] = append(players[*s.Worker], p)
			}
		}
	}
}

// A worker dies. If it was not the one that pulls, the other's players do not
// miss a frame; if it was, they stay connected and go on from a key frame. The
// dead one is back within a second, and players can come to it again.
func TestWorkerIsKilled(t *testing.T) {
	t.Parallel()
	a := startOrigin(t, "origin-a", addresses{}, "")
	edge := startEdge(t, "edge-1", 2, upstreamsOf(a.rtmp))
	publishClip(t, a.rtmpURL("live/demo"))
	a.awaitStream(demo, "live")
	source := clipSource(t)

	players := byWorker(t, edge, 2, 2)
	puller := edge.puller(demo)
	other := 1 - puller

	killWorker := func(index int) {
		t.Helper()
		worker := edge.awaitWorkers(2)[index]
		if err := syscall.Kill(worker.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		eventually(t, waitTimeout, fmt.Sprintf("worker %d is back", index), func() error {
			workers, err := edge.workers()
			if err != nil {
				return err
			}
			if w := workers[index]; w.State != "ready" || w.PID == worker.PID {
				return fmt.Errorf("worker is %+v", w)
			}
			return nil
		})
		// The bound is 1 s; processes with the race detector on a busy machine
		// get four.
		if took := time.Since(killed); took > 4*time.Second {
			t.Errorf("worker %d came back after %v", index, took)
		} else {
			t.Logf("worker %d came back after %v", index, took)
		}
	}

	killWorker(other)
	for _, p := range players[puller] {
		before := p.videoFrames()
		p.await(75, before)
	}
	for _, p := range players[other] {
		p.end()
	}

	// New players for the new worker, then the one that pulls dies.
	players[other] = byWorker(t, edge, 2, 2)[other]
	for _, p := range players[puller] {
		p.mu.Lock()
		frames := append([]frame(nil), p.frames...)
		p.mu.Unlock()
		source.require(t, "player on the worker that lived", frames, 75, rules{})
	}
	killWorker(puller)
	for _, p := range players[other] {
		before := p.videoFrames()
		p.await(75, before)
		jumps := source.require(t, "player on the worker that lived", p.end(), 75, rules{jumps: true})
		if jumps > 1 {
			t.Errorf("the death of the puller made %d jumps, want at most one", jumps)
		}
	}
	again := playFLV(t, edge.httpURL("live/demo.flv"), "")
	again.await(25, 0)
	source.require(t, "player after all that", again.end(), 25, rules{})
}

// An edge behind two other edges: the one that it pulls from is killed. Its
// player stays connected and goes on with frames of the other.
func TestUpstreamIsKilled(t *testing.T) {
	t.Parallel()
	a := startOrigin(t, "origin-a", addresses{}, "")
	middle := []*node{
		startEdge(t, "middle-1", 1, upstreamsOf(a.rtmp)),
		startEdge(t, "middle-2", 1, upstreamsOf(a.rtmp)),
	}
	edge := startEdge(t, "edge-1", 1, upstreamsOf(middle[0].rtmp, middle[1].rtmp))
	publishClip(t, a.rtmpURL("live/demo"))
	a.awaitStream(demo, "live")

	p := playFLV(t, edge.httpURL("live/demo.flv"), "")
	p.await(50, 0)
	var used *node
	eventually(t, waitTimeout, "one middle edge serves the edge", func() error {
		for _, m := range middle {
			plays, err := m.sessions("play", demo)
			if err != nil {
				return err
			}
			if len(plays) == 1 {
				used = m
				return nil
			}
		}
		return errors.New("none does")
	})
	killTree(t, used)
	before := p.videoFrames()
	p.await(100, before)
	jumps := clipSource(t).require(t, "player", p.end(), 150, rules{jumps: true})
	if jumps > 1 {
		t.Errorf("the switch made %d jumps, want at most one", jumps)
	}
}

// killTree kills a node with all its workers, as a power cut does.
func killTree(t *testing.T, n *node) {
	t.Helper()
	workers, err := n.workers()
	if err != nil {
		t.Fatal(err)
	}
	n.signal(syscall.SIGSTOP) // so that it restarts none
	for _, w := range workers {
		if w.PID != 0 {
			_ = syscall.Kill(w.PID, syscall.SIGKILL)
		}
	}
	n.kill()
}

// The origin that owns a forwarded stream is killed. The encoder at the edge
// notices nothing: the edge finds it another origin, and a player at the same
// edge stays connected.
func TestOriginOfForwardedPublisherIsKilled(t *testing.T) {
	t.Parallel()
	discovery := startDiscovery(t, "")
	a := startOrigin(t, "origin-a", addresses{}, discoveryAt(discovery))
	b := startOrigin(t, "origin-b", addresses{}, discoveryAt(discovery))
	more := discoveryAt(discovery) + upstreamsOf(a.rtmp, b.rtmp)
	edge := startEdge(t, "edge-1", 2, more)
	far := startEdge(t, "edge-2", 1, more)

	encoder := publishClip(t, edge.rtmpURL("live/demo"))
	owner := ownerOf(t, demo, a, b)
	players := []*player{
		playFLV(t, edge.httpURL("live/demo.flv"), ""),
		playFLV(t, far.httpURL("live/demo.flv"), ""),
	}
	for _, p := range players {
		p.await(50, 0)
	}

	owner.kill()
	killed := time.Now()
	if next := ownerOf(t, demo, a, b); next == owner {
		t.Fatal("the dead origin still owns the stream")
	}
	t.Logf("the stream is live at the other origin after %v", time.Since(killed))
	for _, p := range players {
		p.await(75, p.videoFrames())
	}
	for _, p := range players {
		clipSource(t).require(t, "player of "+p.url, p.end(), 125, rules{jumps: true})
	}
	if !encoder.running() {
		t.Errorf("the encoder was cut: %v", encoder.err)
	}
}

// A publisher that loses its connection and comes back within the resume window
// finds its players where they were.
func TestPublisherComesBack(t *testing.T) {
	t.Parallel()
	a := startOrigin(t, "origin-a", addresses{}, "")
	edge := startEdge(t, "edge-1", 1, upstreamsOf(a.rtmp))
	wire := tap(t, a.rtmp)
	encoder := publishClip(t, "rtmp://"+wire.addr()+"/live/demo")
	a.awaitStream(demo, "live")
	players := []*player{
		playFLV(t, a.httpURL("live/demo.flv"), ""),
		playFLV(t, edge.httpURL("live/demo.flv"), ""),
	}
	for _, p := range players {
		p.await(50, 0)
	}
	wire.cut()
	encoder.wait(stopTimeout) // ffmpeg gives up
	publishClip(t, "rtmp://"+wire.addr()+"/live/demo")
	for _, p := range players {
		p.await(75, p.videoFrames())
		jumps := clipSource(t).require(t, "player of "+p.url, p.end(), 125, rules{jumps: true})
		if jumps > 1 {
			t.Errorf("player of %s: %d jumps, want at most one", p.url, jumps)
		}
	}
}

// A second publisher of a live name is refused with a word that it understands,
// wherever it asks, and the first one is not disturbed.
func TestSecondPublisherIsRefused(t *testing.T) {
	t.Parallel()
	discovery := startDiscovery(t, "")
	a := startOrigin(t, "origin-a", addresses{}, discoveryAt(discovery))
	b := startOrigin(t, "origin-b", addresses{}, discoveryAt(discovery))
	edge := startEdge(t, "edge-1", 1, discoveryAt(discovery)+upstreamsOf(b.rtmp))
	publishClip(t, a.rtmpURL("live/demo"))
	a.awaitStream(demo, "live")
	p := playFLV(t, edge.httpURL("live/demo.flv"), "")
	p.await(25, 0)

	for _, at := range []*node{a, b, edge} {
		r := weir(t, waitTimeout, "push", file(t, otherFile), at.rtmpURL("live/demo"))
		if r.code == 0 || !strings.Contains(r.stdout+r.stderr, "NetStream.Publish.BadName") {
			t.Errorf("second publisher at %s: exit code %d, output\n%s%s", at.id, r.code, r.stdout, r.stderr)
		}
	}
	p.await(50, p.videoFrames())
	clipSource(t).require(t, "player", p.end(), 75, rules{})
}

// With discovery gone, present players go on and new ones still find the stream
// that the edge knows.
func TestDiscoveryIsKilled(t *testing.T) {
	t.Parallel()
	discovery := startDiscovery(t, "")
	a := startOrigin(t, "origin-a", addresses{}, discoveryAt(discovery))
	edge := startEdge(t, "edge-1", 1, discoveryAt(discovery)+upstreamsOf(a.rtmp))
	publishClip(t, a.rtmpURL("live/demo"))
	a.awaitStream(demo, "live")
	p := playFLV(t, edge.httpURL("live/demo.flv"), "")
	p.await(25, 0)
	discovery.kill()
	// Longer than a lease lives.
	p.await(200, p.videoFrames())
	late := playFLV(t, edge.httpURL("live/demo.flv"), "")
	late.await(25, 0)
	clipSource(t).require(t, "player from before", p.end(), 225, rules{})
	clipSource(t).require(t, "player from after", late.end(), 25, rules{})

	// New publishers are taken too.
	publishClip(t, a.rtmpURL("live/late"))
	a.awaitStream("__defaultVhost__/live/late", "live")
}

// Answers to those who ask for something that is not there, or wrongly.
func TestPlayersGetClearAnswers(t *testing.T) {
	t.Parallel()
	a := startOrigin(t, "origin-a", addresses{}, "")
	// Without discovery, HLS needs an HTTP upstream.
	both := "vhosts: {__defaultVhost__: {upstreams: " + yamlList([]string{"rtmp://" + a.rtmp, "http://" + a.http}) + "}}\n"
	edge := startEdge(t, "edge-1", 1, both+"play: {wait_publisher: 500ms}\n")
	for _, n := range []*node{a, edge} {
		for _, path := range []string{"live/nobody.flv", "live/nobody.m3u8", "live/nobody-1-1.ts"} {
			answer := get(t, n.httpURL(path))
			if answer.status != http.StatusNotFound || len(answer.body) == 0 || len(answer.body) > 500 {
				t.Errorf("%s at %s: status %d, body %q, want 404 and a short text", path, n.id, answer.status, answer.body)
			}
		}
		r := weir(t, waitTimeout, "pull", n.rtmpURL("live/nobody"), "--duration", "5s")
		if r.code == 0 || !strings.Contains(r.stdout+r.stderr, "NetStream.Play.StreamNotFound") {
			t.Errorf("RTMP play of nobody at %s: exit code %d, output\n%s%s", n.id, r.code, r.stdout, r.stderr)
		}
	}

	publishClip(t, a.rtmpURL("live/demo"))
	a.awaitStream(demo, "live")
	head, err := client.Head(edge.httpURL("live/demo.flv"))
	if err != nil {
		t.Fatal(err)
	}
	head.Body.Close()
	if head.StatusCode != http.StatusOK || head.Header.Get("Content-Type") != "video/x-flv" || head.Header.Get("Access-Control-Allow-Origin") == "" {
		t.Errorf("HEAD: %s, headers %v", head.Status, head.Header)
	}
	request, err := http.NewRequest(http.MethodPost, edge.httpURL("live/demo.flv"), nil)
	if err != nil {
		t.Fatal(err)
	}
	post, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	post.Body.Close()
	if post.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s, want 405", post.Status)
	}
}

// Two tenants use the same app and name. Neither ever sees the other, whatever
// way a player says whose it is; and a publisher needs the tenant's key.
func TestTenantsAreApart(t *testing.T) {
	t.Parallel()
	vhosts := "vhosts:\n" +
		"  __defaultVhost__: {%s}\n" +
		"  tenant-b.test: {aliases: [b.test], publish: {keys: [secret, other]}%s}\n"
	a := startOrigin(t, "origin-a", addresses{}, fmt.Sprintf(vhosts, "policy: round_robin", ""))
	upstream := "upstreams: " + yamlList([]string{"rtmp://" + a.rtmp})
	edge := startEdge(t, "edge-1", 2, fmt.Sprintf(vhosts, upstream, ", "+upstream))

	other := file(t, otherFile)
	for _, at := range []*node{a, edge} {
		for _, query := range []string{"", "&key=wrong", "&key="} {
			r := weir(t, waitTimeout, "push", other, at.rtmpURL("live/demo?vhost=tenant-b.test"+query))
			if r.code == 0 || !strings.Contains(r.stdout+r.stderr, "NetStream.Publish.") {
				t.Errorf("publisher with %q at %s: exit code %d, output\n%s%s", query, at.id, r.code, r.stdout, r.stderr)
			}
		}
	}
	publishClip(t, a.rtmpURL("live/demo"))
	publish(t, other, edge.rtmpURL("live/demo?vhost=tenant-b.test&key=secret"))
	a.awaitStream(demo, "live")
	a.awaitStream("tenant-b.test/live/demo", "live")

	clip, b := clipSource(t), fileSource(t, other)
	var checks []func() // after all players have begun
	f := func(want *source, n *node, path, host string) {
		p := playFLV(t, n.httpURL(path), host)
		checks = append(checks, func() {
			p.await(50, 0)
			want.require(t, fmt.Sprintf("player of %s, Host %q", p.url, host), p.end(), 50, rules{})
		})
	}
	for _, n := range []*node{a, edge} {
		f(clip, n, "live/demo.flv", "")
		f(clip, n, "live/demo.flv", "elsewhere.test")
		f(clip, n, "live/demo.flv?vhost=__defaultVhost__", "b.test")
		f(b, n, "live/demo.flv?vhost=tenant-b.test", "")
		f(b, n, "live/demo.flv?domain=b.test", "")
		f(b, n, "live/demo.flv", "tenant-b.test")
		f(b, n, "live/demo.flv", "B.Test:8080")
	}
	for _, check := range checks {
		check()
	}
}
