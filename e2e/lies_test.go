package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// lie has a directory say that a node has a stream. It is believed for as long as the
// test runs.
func lie(t *testing.T, directory *node, key, owner string, at addresses) {
	t.Helper()
	body := fmt.Sprintf(`{"stream":%q,"node":%q,"instance":"liar","rtmp":%q,"http":%q,"ttl_ms":600000,"replace":true}`, key, owner, at.rtmp, at.http)
	answer, err := client.Post("http://"+directory.http+"/api/v1/leases/claim", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("a lie is not believed: %s", answer.Status)
	}
}

// places returns where a node is, as others are told.
func (n *node) places() addresses { return addresses{rtmp: n.rtmp, http: n.http} }

// refused asks an edge for a stream in each way, and fails unless the answer is one
// with a name, in time, and has one of the words in it.
func refused(t *testing.T, edge *node, name string, words ...string) {
	t.Helper()
	ask := map[string]func() (int, string){
		"RTMP": func() (int, string) {
			r := weir(t, time.Minute, "pull", edge.rtmpURL("live/"+name))
			return r.code, r.stderr
		},
		"HTTP-FLV": func() (int, string) {
			r := weir(t, time.Minute, "pull", edge.httpURL("live/"+name+".flv"))
			return r.code, r.stderr
		},
		"HLS": func() (int, string) {
			f := get(t, edge.httpURL("live/"+name+".m3u8"))
			if f.status == http.StatusNotFound || f.status == http.StatusServiceUnavailable {
				return 4, string(f.body)
			}
			return f.status, string(f.body)
		},
	}
	for how, f := range ask {
		begun := time.Now()
		code, text := f()
		named := false
		for _, w := range words {
			named = named || strings.Contains(text, w)
		}
		if code != 4 || !named {
			t.Errorf("%s of %s over %s: %d %q, want one of %q", name, edge.id, how, code, text, words)
		}
		if took := time.Since(begun); took > 6*time.Second {
			t.Errorf("%s of %s over %s: answered after %v", name, edge.id, how, took)
		}
	}
}

// Maps that are stale: two origins each of which has been told that the other one has
// the stream, because each asks another directory. An edge goes a few steps, by either
// protocol of pulls, gives up, tells its players and says so in its log.
func TestOriginsRedirectToEachOther(t *testing.T) {
	t.Parallel()
	da, db := startDiscovery(t, ""), startDiscovery(t, "")
	a := startOrigin(t, "origin-a", addresses{}, discoveryAt(da))
	b := startOrigin(t, "origin-b", addresses{}, discoveryAt(db))
	lie(t, da, demo, b.id, b.places())
	lie(t, db, demo, a.id, a.places()) // it is the later one: an earlier owner would not be followed
	for _, protocol := range []string{"rtmp", "http-flv"} {
		t.Run(protocol, func(t *testing.T) {
			edge := startEdge(t, "edge-"+protocol, 2, "play: {wait_publisher: 500ms}\n"+upstreamNodes(protocol, a.places()))
			refused(t, edge, "demo", "No upstream can be reached", "circle")
			edge.sees("redirects go in a circle")
			requireFewHops(t, edge, 0)
		})
	}
}

// The directory says that a stream is at an address that an origin had under another
// name, or at an edge, which so is its own upstream. Nobody is sent to where they are.
func TestDirectoryNamesTheNodeItself(t *testing.T) {
	t.Parallel()
	d := startDiscovery(t, "")
	a := startOrigin(t, "origin-a", addresses{}, discoveryAt(d))
	edge := startEdge(t, "edge-1", 2, "play: {wait_publisher: 500ms}\n"+discoveryAt(d))
	lie(t, d, demo, "origin-before", a.places())
	for _, path := range []string{"live/demo.flv", "live/demo.m3u8"} {
		if f := get(t, a.httpURL(path)); f.status != http.StatusNotFound {
			t.Errorf("%s: %d, Location %q, want 404", path, f.status, f.header.Get("Location"))
		}
	}
	if r := weir(t, time.Minute, "pull", a.rtmpURL("live/demo")); r.code != 4 || !strings.Contains(r.stderr, "StreamNotFound") {
		t.Errorf("play: exit code %d, %s", r.code, r.stderr)
	}
	refused(t, edge, "demo", "StreamNotFound", "404", "not found")

	lie(t, d, "__defaultVhost__/live/self", "nobody", edge.places())
	refused(t, edge, "self", "circle")
	edge.sees("the request goes in a circle")

	// What was said is outdone by who really has it.
	publishClip(t, edge.rtmpURL("live/late"))
	a.awaitStream("__defaultVhost__/live/late", "live")
	p := playFLV(t, edge.httpURL("live/late.flv"), "")
	p.await(25, 0)
}
