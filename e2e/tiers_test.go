package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// upstreamNodes is an edge's configuration whose upstreams are nodes, for pulls by
// protocol (rtmp, http-flv) and for HLS.
func upstreamNodes(protocol string, nodes ...addresses) string {
	var urls []string
	for _, n := range nodes {
		urls = append(urls, "rtmp://"+n.rtmp, "http://"+n.http)
	}
	return "pull: {protocol: " + protocol + "}\nvhosts:\n  __defaultVhost__:\n    upstreams: " + yamlList(urls) + "\n"
}

func free(t *testing.T) addresses {
	t.Helper()
	var a addresses
	a.fill(t)
	return a
}

// An edge in the midst of the way drains: the edge in front goes on by another one, and
// the encoder notices nothing.
func TestDrainOfAnEdgeThatForwards(t *testing.T) {
	t.Parallel()
	origin := startOrigin(t, "origin-1", addresses{}, "")
	var middle []*node
	var ways []string
	for i := range 2 {
		n := startEdge(t, fmt.Sprint("middle-", i), 2, upstreamsOf(origin.rtmp))
		middle, ways = append(middle, n), append(ways, n.rtmp)
	}
	front := startEdge(t, "front", 2, upstreamsOf(ways...))
	encoder := publishClip(t, front.rtmpURL("live/demo"))
	origin.awaitStream(demo, "live")
	session := front.awaitSessions("publish", demo, 1)[0].ID
	player := playFLV(t, origin.httpURL("live/demo.flv"), "")
	player.await(25, 0)
	for round := range 2 { // there and back
		now := middle[0]
		if s, err := now.sessions("publish", demo); err != nil || len(s) == 0 {
			now = middle[1]
		}
		if r := weir(t, waitTimeout, "drain", "--admin", "http://"+now.admin, "--deadline", "2s", "--wait"); r.code != 0 || !strings.Contains(r.stdout, "1 moved, 0 cut") {
			t.Errorf("weir drain: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
		}
		player.await(50, player.videoFrames())
		if s := front.awaitSessions("publish", demo, 1); s[0].ID != session || !encoder.running() {
			t.Errorf("round %d: the encoder has session %s, had %s", round, s[0].ID, session)
		}
		if r := weir(t, waitTimeout, "undrain", "--admin", "http://"+now.admin); r.code != 0 {
			t.Errorf("weir undrain: %s", r.stderr)
		}
	}
	clipSource(t).require(t, "player", player.end(), 100, rules{jumps: true})
}

// Edges that lead in a circle: whoever asks for a stream that nobody can have is told
// so, by name and soon, and each node says it in its log.
func TestCircles(t *testing.T) {
	t.Parallel()
	f := func(protocol string, size int) {
		t.Run(fmt.Sprint(protocol, size), func(t *testing.T) {
			t.Parallel()
			places := make([]addresses, size)
			for i := range places {
				places[i] = free(t)
			}
			ring := make([]*node, size)
			for i := range ring {
				next := places[(i+1)%size]
				if size == 1 { // its own addresses are refused by its configuration
					next = addresses{rtmp: tap(t, next.rtmp).addr(), http: tap(t, next.http).addr()}
				}
				ring[i] = launch(t, "edge", fmt.Sprintf("edge-%d", i), places[i], "workers: 2\n"+upstreamNodes(protocol, next))
			}
			for _, n := range ring {
				n.awaitReady()
				n.awaitWorkers(2)
			}
			first := ring[0]
			quickly := func(what string, ask func() error) {
				t.Helper()
				begun := time.Now()
				if err := ask(); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				// No wait for a publisher (5 s) and no time-out (15 s) is in it.
				if d := time.Since(begun); d > 4*time.Second {
					t.Errorf("%s: answered after %v", what, d)
				}
			}
			pull := func(url string) func() error {
				return func() error {
					r := weir(t, time.Minute, "pull", url)
					if r.code != 4 || !strings.Contains(r.stderr, "circle") {
						return fmt.Errorf("exit code %d, %s", r.code, r.stderr)
					}
					return nil
				}
			}
			quickly("play over RTMP", pull(first.rtmpURL("live/a")))
			quickly("play over HTTP-FLV", pull(first.httpURL("live/b.flv")))
			quickly("HLS", func() error {
				f := get(t, first.httpURL("live/c.m3u8"))
				if f.status != http.StatusServiceUnavailable || !strings.Contains(string(f.body), "circle") {
					return fmt.Errorf("%d %s", f.status, f.body)
				}
				return nil
			})
			quickly("publish", func() error {
				r := weir(t, time.Minute, "push", file(t, clipFile), first.rtmpURL("live/d"))
				if r.code != 4 || !strings.Contains(r.stderr, "circle") {
					return fmt.Errorf("exit code %d, %s", r.code, r.stderr)
				}
				return nil
			})
			first.sees("the request goes in a circle")
		})
	}
	f("rtmp", 1) // its own upstream, by an address that it does not know for its own
	f("rtmp", 2) // two of each other
	f("rtmp", 3) // a ring
	f("http-flv", 1)
	f("http-flv", 3)
}

// An edge of an edge of an origin, by each protocol of pulls, with and without
// discovery: what is published at the far end comes through both tiers to the origin,
// every tier plays it unchanged, and HLS is the same bytes everywhere.
func TestEdgeOfEdge(t *testing.T) {
	t.Parallel()
	f := func(protocol string, discovered bool) {
		t.Run(fmt.Sprintf("%s,discovery=%v", protocol, discovered), func(t *testing.T) {
			t.Parallel()
			more := ""
			if discovered {
				more = discoveryAt(startDiscovery(t, ""))
			}
			root, middle := free(t), free(t)
			origin := startOrigin(t, "origin-1", root, more)
			tier := func(id string, at, above addresses) *node {
				n := launch(t, "edge", id, at, "workers: 2\n"+more+upstreamNodes(protocol, above))
				n.awaitReady()
				n.awaitWorkers(2)
				return n
			}
			near := tier("edge-near", middle, root)
			far := tier("edge-far", free(t), middle)

			publishClip(t, far.rtmpURL("live/demo"))
			origin.awaitStream("__defaultVhost__/live/demo", "live")
			clip := ffmpegSource(t, file(t, clipFile), packets, clipKeyEvery)
			for _, n := range []*node{origin, near, far} {
				for _, url := range []string{n.rtmpURL("live/demo"), n.httpURL("live/demo.flv")} {
					clip.require(t, "ffmpeg at "+url, ffmpegFrames(t, url, 2*time.Second, packets), 40, rules{})
				}
			}
			if !discovered { // with it the far edge goes to the owner at once
				if got := near.awaitStream("__defaultVhost__/live/demo", "live"); !strings.Contains(got.Source, origin.rtmp) && !strings.Contains(got.Source, origin.http) &&
					!strings.HasPrefix(got.Source, "worker ") && !strings.HasPrefix(got.Source, "publish") {
					t.Errorf("the near edge has it from %s", got.Source)
				}
			}

			var name string
			eventually(t, waitTimeout, "a playlist at the far edge", func() error {
				f, err := tryGet(far.httpURL("live/demo.m3u8"))
				if err != nil {
					return err
				}
				for line := range strings.Lines(string(f.body)) {
					if strings.Contains(line, ".ts") {
						name = strings.TrimSpace(line)
					}
				}
				if f.status != http.StatusOK || name == "" {
					return fmt.Errorf("%d %s", f.status, f.body)
				}
				return nil
			})
			path := strings.TrimPrefix(name, "/")
			if !strings.Contains(path, "/") {
				path = "live/" + path
			}
			want := get(t, origin.httpURL(path))
			for _, n := range []*node{near, far} {
				got := get(t, n.httpURL(path))
				if got.status != http.StatusOK || len(want.body) == 0 || string(got.body) != string(want.body) || got.header.Get("ETag") != want.header.Get("ETag") {
					t.Errorf("%s at %s: %d, %d bytes, ETag %s; the origin has %d bytes, ETag %s", path, n.id, got.status, len(got.body),
						got.header.Get("ETag"), len(want.body), want.header.Get("ETag"))
				}
			}
		})
	}
	f("rtmp", false)
	f("http-flv", true)
}
