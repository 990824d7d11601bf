package e2e

import (
	"encoding/json"
	"os/exec"
	"sync"
	"testing"
)

// browserPlayers installs the player libraries at the versions of
// browser/package-lock.json, once.
var browserPlayers = sync.OnceValues(func() ([]byte, error) {
	return exec.Command("npm", "--prefix", "browser", "ci", "--no-audit", "--no-fund").CombinedOutput()
})

// viewing is what browser/play.mjs says that a viewer has seen.
type viewing struct {
	Shown      float64  // seconds of the stream
	Stalls     int      // times that the picture stood still and waited
	Errors     []string // of the player library; they ended it
	Width      int
	Height     int
	Frames     int
	AudioBytes int
	PlayedMs   int
}

// watchInBrowser plays a URL in Chromium with hls.js or mpegts.js for so many seconds of
// the stream.
func watchInBrowser(t *testing.T, library, url, seconds string) viewing {
	t.Helper()
	if out, err := browserPlayers(); err != nil {
		t.Fatalf("install the browser players (see \"make tools\"): %v\n%s", err, out)
	}
	p := start(t, "chromium", "node", "browser/play.mjs", library, url, seconds)
	<-p.done // it bounds its own time
	if p.err != nil {
		t.Fatalf("play %s with %s: %v", url, library, p.err)
	}
	var v viewing
	if err := json.Unmarshal([]byte(p.stdout.String()), &v); err != nil {
		t.Fatalf("decode what the browser saw: %v: %q", err, p.stdout)
	}
	t.Logf("%s of %s: %+v", library, url, v)
	return v
}

// A page plays a publisher at the edge by hls.js over HLS and by mpegts.js over
// HTTP-FLV and WebSocket-FLV: picture and sound, and no player gives up.
func TestPlaysInABrowser(t *testing.T) {
	d := startDiscovery(t, "")
	startOrigin(t, "origin-a", addresses{}, discoveryAt(d))
	edge := startEdge(t, "edge-a", 2, discoveryAt(d))
	publishClip(t, edge.rtmpURL("live/page"))
	for _, c := range []struct{ name, library, url string }{
		{"HLS", "hls.js", edge.httpURL("live/page.m3u8")},
		{"HTTP-FLV", "mpegts.js", edge.httpURL("live/page.flv")},
		{"WebSocket-FLV", "mpegts.js", "ws://" + edge.http + "/live/page.flv"},
	} {
		t.Run(c.name, func(t *testing.T) {
			const seconds = 6
			v := watchInBrowser(t, c.library, c.url, "6")
			if len(v.Errors) > 0 || v.Shown < seconds {
				t.Errorf("the viewer saw %.1f s of the stream, want %d: %v", v.Shown, seconds, v.Errors)
			}
			// Half of the frames may be dropped by a machine without a graphics card.
			if v.Width == 0 || v.Height == 0 || v.Frames < seconds*25/2 {
				t.Errorf("the viewer saw %d frames of %dx%d", v.Frames, v.Width, v.Height)
			}
			if v.AudioBytes == 0 {
				t.Error("the viewer heard nothing")
			}
		})
	}
}
