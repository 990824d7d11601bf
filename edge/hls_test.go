package edge

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/discovery"
	"weir/hls"
	"weir/internal/vhost"
)

func (u *upstream) publishFile(uri, kind, control, body string) {
	u.set(func() { u.files[uri] = hls.NewObject(200, kind, control, []byte(body)) })
}

const playlist, segment = "/live/demo.m3u8", "/live/demo-7-1.ts"

func (u *upstream) publishHLS() {
	u.publishFile(playlist, "application/vnd.apple.mpegurl", "public, max-age=1", "#EXTM3U\ndemo-7-1.ts\n")
	u.publishFile(segment, "video/mp2t", "public, max-age=3600, immutable", strings.Repeat("x", 188))
}

// Many viewers on all workers are one request of a file at the upstream, after
// its redirect. When the worker that fetches is dead, another does.
func TestHLSOncePerNode(t *testing.T) {
	a, b := newUpstream(t, "a"), newUpstream(t, "b")
	a.redirect = to(b.point)
	b.publishHLS()
	cfg := quick().upstreams("http://" + a.http)
	cfg.HLSCache.PlaylistTTL = time.Second
	n := startTeam(t, "edge", 3, cfg, nil)
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			p := n.workers[i%3].point
			if status, body := get(t, p, segment); status != 200 || len(body) != 188 {
				t.Errorf("%d, %d bytes", status, len(body))
			}
		})
	}
	within(t, "viewers", wg.Wait)
	b.set(func() {
		if f := b.fetched[segment]; f != 1 {
			t.Errorf("the segment was fetched %d times", f)
		}
	})

	order := n.workers[0].edge.siblings.order(demo)
	n.workers[order[0]].kill()
	for _, i := range order[1:] {
		if status, body := get(t, n.workers[i].point, playlist); status != 200 || !strings.HasPrefix(body, "#EXTM3U") {
			t.Errorf("with a dead worker: %d %s", status, body)
		}
	}
	b.set(func() {
		if f := b.fetched[playlist]; f != 1 {
			t.Errorf("the playlist was fetched %d times", f)
		}
	})
}

// What no upstream has is 404 with a short body; with an upstream that cannot be
// asked it is 503.
func TestHLSMissing(t *testing.T) {
	a := newUpstream(t, "a")
	down := listen(t)
	down.Close()
	for _, c := range []struct {
		name string
		cfg  Config
		want int
	}{
		{"nobody has it", quick().upstreams("http://" + a.http), 404},
		{"one is down", quick().upstreams("http://"+a.http, "http://"+down.Addr().String()), 503},
		{"no upstream for HLS", quick().upstreams(a.rtmp), 503},
		{"HLS is off", quick().upstreams("http://" + a.http).vhost(func(v *vhost.Config) { v.HLS.Enabled = false }), 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := startEdge(t, "edge", c.cfg, nil)
			if status, body := get(t, e.point, playlist); status != c.want || len(body) > 200 {
				t.Errorf("%d %s, want %d", status, body, c.want)
			}
		})
	}
}

func TestHLSRedirectLoop(t *testing.T) {
	a, b := newUpstream(t, "a"), newUpstream(t, "b")
	a.redirect, b.redirect = to(b.point), to(a.point)
	e := startEdge(t, "edge", quick().upstreams("http://"+a.http), nil)
	if status, _ := get(t, e.point, playlist); status != 503 {
		t.Errorf("%d", status)
	}
	if n := e.edge.metrics.redirects.Get(); n > 2 {
		t.Errorf("%d redirects", n)
	}
}

// The lease of a stream that has ended is gone, but its last playlist, which
// says so, is still fetched from where it was.
func TestHLSAfterTheEnd(t *testing.T) {
	dir := newRemote()
	a := newUpstream(t, "a")
	a.publishHLS()
	dir.own(t, demo, a)
	cfg := quick()
	cfg.Discovery.CacheTTL = 0
	e := startEdge(t, "edge", cfg, dir)
	if status, _ := get(t, e.point, playlist); status != 200 {
		t.Fatalf("%d", status)
	}
	l, err := dir.Lookup(t.Context(), demo)
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Release(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	a.publishFile(playlist, "application/vnd.apple.mpegurl", "public, max-age=1", "#EXTM3U\n#EXT-X-ENDLIST\n")
	eventually(t, "the end", func() error {
		if status, body := get(t, e.point, playlist); status != 200 || !strings.Contains(body, "ENDLIST") {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	if status, _ := get(t, e.point, "/live/unknown.m3u8"); status != 404 {
		t.Errorf("unknown stream: %d", status)
	}
}

// While the directory is away, files of a stream that nobody has asked for yet
// are sought at the origins that the edge has met.
func TestHLSWithoutTheDirectory(t *testing.T) {
	dir := newRemote()
	a, b := newUpstream(t, "a"), newUpstream(t, "b")
	b.publishHLS()
	for id, p := range map[string]*point{"a": a.point, "b": b.point} {
		if err := dir.Heartbeat(t.Context(), discovery.Node{
			ID: id, Instance: "1", Role: discovery.RoleOrigin, State: discovery.StateUp, TTL: time.Minute,
			Addr: discovery.Addr{RTMP: p.rtmp, HTTP: p.http},
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		cfg  Config
	}{
		{"no upstreams", quick()},
		{"upstreams for RTMP", quick().upstreams("rtmp://"+a.rtmp, "rtmp://"+b.rtmp)},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir.setAway(false)
			e := startEdge(t, "edge", c.cfg, dir)
			<-e.edge.fetcher.met
			if status, _ := get(t, e.point, "/live/other.m3u8"); status != 404 {
				t.Errorf("while the directory is there: %d", status)
			}
			dir.setAway(true)
			if status, body := get(t, e.point, playlist); status != 200 || !strings.HasPrefix(body, "#EXTM3U") {
				t.Errorf("while it is away: %d %s", status, body)
			}
			// That nobody who was asked has it does not mean that nobody has it.
			if status, _ := get(t, e.point, "/live/other.m3u8"); status != 503 {
				t.Errorf("what no known origin has: %d", status)
			}
			_, err := e.edge.fetcher.cached(t.Context(), "/live/other.m3u8", "")
			if err == nil || strings.Count(err.Error(), "fetch ") != 1 {
				t.Errorf("error %v, want one that says once what was fetched", err)
			}
		})
	}
	// The origins of another tenant are not asked.
	t.Run("upstreams elsewhere", func(t *testing.T) {
		dir.setAway(false)
		e := startEdge(t, "edge", quick().upstreams("rtmp://"+a.rtmp), dir)
		<-e.edge.fetcher.met
		if status, _ := get(t, e.point, "/live/other.m3u8"); status != 404 {
			t.Errorf("while the directory is there: %d", status)
		}
		dir.setAway(true)
		if status, _ := get(t, e.point, playlist); status != 503 {
			t.Errorf("while it is away: %d", status)
		}
	})
	// An edge that knows nobody says that it cannot tell.
	t.Run("nobody is known", func(t *testing.T) {
		dir.setAway(true)
		e := startEdge(t, "edge", quick(), dir)
		if status, _ := get(t, e.point, playlist); status != 503 {
			t.Errorf("%d", status)
		}
	})
	// The owner of any stream is an origin, too, for a directory that lists no nodes.
	t.Run("an owner of another stream", func(t *testing.T) {
		dir.setAway(false)
		dir.own(t, vhost.DefaultName+"/live/other", b)
		e := startEdge(t, "edge", quick(), lookupOnly{dir})
		if status, _ := get(t, e.point, "/live/other.m3u8"); status != 404 {
			t.Errorf("while the directory is there: %d", status)
		}
		dir.setAway(true)
		if status, body := get(t, e.point, playlist); status != 200 {
			t.Errorf("while it is away: %d %s", status, body)
		}
	})
}

// lookupOnly is a directory that does not list its nodes.
type lookupOnly struct{ discovery.Remote }
