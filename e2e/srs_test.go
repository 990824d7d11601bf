package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"weir/internal/clip"
	"weir/internal/media"
)

// SRS edges before weir origins: each finds the stream at the origin that it knows, or
// by one redirect, whatever its first player asked with.
func TestSRSEdgesBeforeWeirOrigins(t *testing.T) {
	t.Parallel()
	discovery := startDiscovery(t, "")
	more := discoveryAt(discovery) + "vhosts: {__defaultVhost__: {}, up.test: {}}\n"
	a := startOrigin(t, "origin-a", addresses{}, more)
	b := startOrigin(t, "origin-b", addresses{}, more)
	publishClip(t, a.rtmpURL("live/demo"))
	publishClip(t, a.rtmpURL("live/demo?vhost=up.test"))
	a.awaitStream(demo, "live")
	a.awaitStream("up.test/live/demo", "live")

	at := "rtmp://" + a.rtmp + "/live"
	f := func(name string, e srsEdge, redirect2 string) {
		t.Run(name, func(t *testing.T) {
			e.t = t
			frames, said := e.play(b.rtmp, 60)
			clipSource(t).require(t, "the SRS edge", frames, 60, rules{})
			if want := redirectMessage(at, at+"/"+redirect2); bytes.Count(said, want) != 1 {
				t.Errorf("the redirect is not the recorded one, to %s; origin b said\n%q", redirect2, said)
			}
			if frames, said = e.play(a.rtmp, 30); said != nil {
				t.Errorf("the owner redirects: %q", said)
			}
			clipSource(t).require(t, "the SRS edge at the owner", frames, 30, rules{})
		})
	}
	f("RTMP player", srsEdge{name: "demo"}, "demo")
	f("player with a query", srsEdge{name: "demo?token=a%20b&x=1"}, "demo?token=a%20b&x=1")
	f("HTTP-FLV player", srsEdge{name: "demo.flv"}, "demo")
	f("vhost", srsEdge{name: "demo", vhost: "up.test"}, "demo?vhost=up.test")
	f("vhost in the query", srsEdge{name: "demo?vhost=up.test"}, "demo?vhost=up.test")
}

// An SRS edge forwards its publisher to a weir origin. Another one that has the same
// name at another origin is refused, and not redirected: an SRS edge would not follow.
func TestSRSEdgeForwards(t *testing.T) {
	t.Parallel()
	discovery := startDiscovery(t, "")
	a := startOrigin(t, "origin-a", addresses{}, discoveryAt(discovery))
	b := startOrigin(t, "origin-b", addresses{}, discoveryAt(discovery))
	edge := startEdge(t, "edge-1", 2, discoveryAt(discovery))
	e := srsEdge{t: t, name: "demo"}
	c := srsPublisher(t, e, a)
	show := onAir(t)
	sent := make(chan error, 1)
	go func() { sent <- show.feed(t.Context(), c.tag) }()
	defer func() {
		c.Close()
		<-sent
	}()
	a.awaitStream(demo, "live")
	p := playFLV(t, edge.httpURL("live/demo.flv"), "")
	p.await(50, 0)

	rival := srsPublisher(t, e, b)
	defer rival.Close()
	_ = rival.SetReadDeadline(time.Now().Add(waitTimeout))
	answer, err := io.ReadAll(rival)
	if err != nil {
		t.Errorf("origin b does not close: %v", err)
	}
	if !bytes.Contains(answer, []byte("NetStream.Publish.BadName")) || bytes.Contains(answer, []byte("redirect")) {
		t.Errorf("origin b answers %q", answer)
	}
	clipSource(t).require(t, "player", p.end(), 50, rules{})
}

// srsPublisher forwards a publisher to an origin, as often as it takes.
func srsPublisher(t *testing.T, e srsEdge, at *node) (c *srsConn) {
	t.Helper()
	eventually(t, waitTimeout, "an SRS edge is connected to "+at.id, func() (err error) {
		c, err = e.publish(at.rtmp)
		return err
	})
	return c
}

// A weir edge before SRS origins that are coworkers: it follows the redirect of the one
// that it asks, pulls once, and when the stream goes on at the other one no player is
// cut. A publisher of its own gets through to an SRS.
func TestWeirEdgeBeforeSRSOrigins(t *testing.T) {
	t.Parallel()
	x, y := startSRSOrigin(t), startSRSOrigin(t)
	show := onAir(t)
	x.send(y.rtmp)
	y.air(show)
	edge := startEdge(t, "edge-1", 2, "play: {wait_publisher: 1s}\n"+upstreamsOf(x.rtmp))

	p := playFLV(t, edge.httpURL("live/demo.flv?token=1"), "")
	p.await(25, 0)
	clipPackets := ffmpegSource(t, file(t, clipFile), packets, clipKeyEvery)
	clipPackets.require(t, "ffmpeg over RTMP", ffmpegFrames(t, edge.rtmpURL("live/demo"), 2*time.Second, packets), 40, rules{})
	clipPackets.require(t, "ffmpeg over HTTP-FLV", ffmpegFrames(t, edge.httpURL("live/demo.flv"), 2*time.Second, packets), 40, rules{})
	for _, o := range []*srsOrigin{x, y} {
		if plays := o.played(); len(plays) != 1 || plays[0] != "demo?token=1" {
			t.Errorf("an SRS origin was asked for %q, want demo?token=1 once", plays)
		}
	}
	requireCounted(t, edge, 1, "redirect")
	x.mu.Lock()
	if c := x.connects[0]; c.Get("app").Text() != "live" || c.Get("tcUrl").Text() != "rtmp://"+x.rtmp+"/live" {
		t.Errorf("the edge connects with %v", c)
	}
	x.mu.Unlock()

	before := p.videoFrames()
	y.die()
	x.air(show)
	p.await(50, before)
	clipSource(t).require(t, "player from before", p.end(), 75, rules{jumps: true})

	// Of a stream that nobody has an SRS says nothing at all. The player is told so.
	begun := time.Now()
	if r := weir(t, waitTimeout, "pull", edge.httpURL("live/nobody.flv")); r.code != 4 || !strings.Contains(r.stderr, "404") {
		t.Errorf("nobody's stream: exit code %d, %s", r.code, r.stderr)
	}
	if took := time.Since(begun); took > 12*time.Second {
		t.Errorf("nobody's stream: answered after %v", took)
	}

	publishClip(t, edge.rtmpURL("live/pushed"))
	eventually(t, waitTimeout, "an SRS origin has the edge's publisher", func() error {
		x.mu.Lock()
		defer x.mu.Unlock()
		if n := len(framesOf(x.took)); n < 150 {
			return fmt.Errorf("it has %d frames", n)
		}
		return nil
	})
	x.mu.Lock()
	defer x.mu.Unlock()
	clipSource(t).require(t, "the SRS origin", framesOf(x.took), 50, rules{})
}

// Two SRS origins whose maps are stale redirect to each other. The edge, which no SRS
// edge would do, gives up after a few steps, tells its player so and its log why.
func TestSRSOriginsRedirectInACircle(t *testing.T) {
	t.Parallel()
	x, y := startSRSOrigin(t), startSRSOrigin(t)
	x.send(y.rtmp)
	y.send(x.rtmp)
	edge := startEdge(t, "edge-1", 2, "play: {wait_publisher: 1s}\n"+upstreamsOf(x.rtmp, y.rtmp))
	for _, url := range []string{edge.rtmpURL("live/demo"), edge.httpURL("live/other.flv")} {
		begun := time.Now()
		if r := weir(t, waitTimeout, "pull", url); r.code != 4 || strings.TrimSpace(r.stderr) == "" {
			t.Errorf("%s: exit code %d, %s", url, r.code, r.stderr)
		}
		if took := time.Since(begun); took > 8*time.Second {
			t.Errorf("%s: answered after %v", url, took)
		}
	}
	edge.sees("redirects go in a circle")
	requireFewHops(t, edge, float64(len(x.played())+len(y.played())))
}

// requireFewHops fails if the attempts of an edge to find a stream, all of which ended
// in a circle, have led it over more than three redirects each. asked is how many times
// others were asked.
func requireFewHops(t *testing.T, edge *node, asked float64) {
	t.Helper()
	m := scrape(t, edge.admin)
	loops, redirects := m.sum("weir_pull_loops_total"), m.sum("weir_pull_redirects_total")
	if loops == 0 || redirects > 3*loops || asked > 4*loops {
		t.Errorf("%v attempts that ended in a circle, %v redirects, %v requests", loops, redirects, asked)
	}
}

// A weir origin and an SRS origin are coworkers: each sends players to the other for
// what that has, in the words that were recorded.
func TestSRSOriginIsACoworker(t *testing.T) {
	t.Parallel()
	srs := startSRSOrigin(t)
	srs.air(onAir(t))
	a := startOrigin(t, "origin-a", addresses{}, fmt.Sprintf("discovery: {peers: [%q]}\n", srs.api))

	// weir asks, for an SRS edge and for one of its own.
	frames, said := srsEdge{t: t, name: "demo"}.play(a.rtmp, 50)
	clipSource(t).require(t, "an SRS edge", frames, 50, rules{})
	at := "rtmp://" + srs.rtmp + "/live"
	if bytes.Count(said, redirectMessage(at, at+"/demo")) != 1 {
		t.Errorf("origin a said %q", said)
	}
	srs.mu.Lock()
	if want := "POST /api/v1/clusters?vhost=__defaultVhost__&ip=&app=live&stream=demo&coworker=" + srs.api + "&weir=1 "; len(srs.asked) == 0 || srs.asked[0] != want {
		t.Errorf("the coworker was asked %q, want %q", srs.asked, want)
	}
	srs.mu.Unlock()
	edge := startEdge(t, "edge-1", 1, upstreamsOf(a.rtmp))
	p := playFLV(t, edge.httpURL("live/demo.flv"), "")
	p.await(50, 0)
	clipSource(t).require(t, "player", p.end(), 50, rules{})

	// Its HTTP port is not among what an SRS says: a player of HTTP-FLV cannot be sent there.
	if answer := get(t, a.httpURL("live/demo.flv")); answer.status != http.StatusServiceUnavailable || len(answer.body) == 0 {
		t.Errorf("HTTP-FLV at the coworker: %d %s", answer.status, answer.body)
	}
	// A name that the coworker has is taken.
	if r := weir(t, waitTimeout, "push", file(t, clipFile), a.rtmpURL("live/demo")); r.code != 4 || !strings.Contains(r.stderr, "BadName") {
		t.Errorf("publish of what the coworker has: exit code %d, %s", r.code, r.stderr)
	}

	// SRS asks, byte for byte.
	publishClip(t, a.rtmpURL("live/here"))
	a.awaitStream("__defaultVhost__/live/here", "live")
	host, port, _ := net.SplitHostPort(a.rtmp)
	const query = `"query":{"ip":"127.0.0.1","vhost":"__defaultVhost__","app":"live","stream":"%s"}`
	for stream, want := range map[string]string{
		"here": fmt.Sprintf(`{"code":0,"data":{`+query+`,"origin":{"ip":"%s","port":%s,"vhost":"__defaultVhost__","api":"%s","routers":["%s"]}}}`, "here", host, port, a.http, a.http),
		"none": fmt.Sprintf(`{"code":0,"data":{`+query+`,"origin":null}}`, "none"),
	} {
		status, body := srsAsks(t, a.http, "/api/v1/clusters?vhost=__defaultVhost__&ip=127.0.0.1&app=live&stream="+stream+"&coworker="+a.http)
		if status != "200" || body != want {
			t.Errorf("SRS asks for %s: status %s\n%s, want\n%s", stream, status, body, want)
		}
	}
}

// srsAsks sends a POST with an empty body, values not escaped, and no more headers than
// needed, and returns status and body as they came.
func srsAsks(t *testing.T, addr, uri string) (status, body string) {
	t.Helper()
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(waitTimeout))
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", uri, addr)
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	head, body, _ := strings.Cut(string(answer), "\r\n\r\n")
	fields := strings.Fields(head)
	if len(fields) < 2 {
		t.Fatalf("answered %q", answer)
	}
	return fields[1], body
}

// What the fakes say is compared with what the page records, so they have to say it.
func TestSRSOriginSpeaksAsRecorded(t *testing.T) {
	x := startSRSOrigin(t)
	x.send("127.0.0.1:13950")
	e := srsEdge{t: t, name: "livestream"}
	c, err := e.connect(x.rtmp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err = e.pull(c, 1); err != srsRedirect("127.0.0.1:13950") {
		t.Errorf("the SRS edge reads %v", err)
	}
	said := c.said()
	for _, want := range []string{
		"\x02\x00\x00\x00\x00\x00\x04\x05\x00\x00\x00\x00\x00\x26\x25\xa0",     // WindowAckSize 2500000
		"\x02\x00\x00\x00\x00\x00\x05\x06\x00\x00\x00\x00\x00\x26\x25\xa0\x02", // SetPeerBandwidth, dynamic
		"\x02\x00\x00\x00\x00\x00\x04\x01\x00\x00\x00\x00\x00\x00\xea\x60",     // SetChunkSize 60000
		"onBWDone", "NetStream.Play.Reset", "NetStream.Play.Start", "|RtmpSampleAccess\x01\x01\x01\x01",
		string(redirectMessage("rtmp://127.0.0.1:13950/live", "rtmp://127.0.0.1:13950/live/livestream")),
	} {
		at := bytes.Index(said, []byte(want))
		if at < 0 {
			t.Fatalf("%q does not follow; it said\n%q", want, said)
		}
		said = said[at+len(want):]
	}
	if len(said) > 0 {
		t.Errorf("behind the redirect comes %q", said)
	}
}

// The broadcast of a fake is the clip.
func TestBroadcast(t *testing.T) {
	b := onAir(t)
	b.begun = b.begun.Add(-clip.Duration - 3*time.Second) // in the second round
	var tags []media.Tag
	err := b.feed(t.Context(), func(tag media.Tag) error {
		if tags = append(tags, tag); len(tags) > 200 {
			return io.EOF
		}
		return nil
	})
	if err != io.EOF {
		t.Fatal(err)
	}
	frames := framesOf(tags)
	clipSource(t).require(t, "broadcast", frames, 50, rules{})
	if first := frames[0].time; first < uint32(clip.Duration.Milliseconds())+2000 || first > uint32(clip.Duration.Milliseconds())+3000 {
		t.Errorf("it begins at %d ms", first)
	}
}
