package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"weir/internal/media"
)

// standbyCluster starts discovery, two origins at which a second publisher stands by,
// and an edge.
func standbyCluster(t *testing.T) (origins [2]*node, edge *node) {
	t.Helper()
	d := startDiscovery(t, "")
	more := discoveryAt(d) + "vhosts: {__defaultVhost__: {publish: {on_conflict: standby, standby_after: 1s}}}\n"
	for i := range origins {
		origins[i] = startOrigin(t, fmt.Sprintf("origin-%d", i), addresses{}, more)
	}
	return origins, startEdge(t, "edge", 2, discoveryAt(d)+"play: {wait_publisher: 10s}\n")
}

// hasStandby waits until the node shows a standby publisher of the stream demo.
func (n *node) hasStandby() {
	n.t.Helper()
	eventually(n.t, waitTimeout, n.id+" has a standby publisher", func() error {
		var answer struct {
			Streams []struct {
				Key     string
				Standby json.RawMessage
			}
		}
		if err := n.ask("/api/v1/streams", &answer); err != nil {
			return err
		}
		for _, s := range answer.Streams {
			if s.Key == demo && s.Standby != nil {
				return nil
			}
		}
		return fmt.Errorf("%+v", answer.Streams)
	})
}

// await waits until the last n video frames of the player are of the source.
func (s *source) await(t *testing.T, p *player, n int) {
	t.Helper()
	eventually(t, waitTimeout, "the player is at another publisher's frames", func() error {
		if err := p.playing(); err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		have := 0
		for _, f := range slices.Backward(p.frames) {
			if _, ok := s.place[f.kind][f.sum]; !ok {
				break
			}
			if f.kind == media.Video {
				have++
			}
		}
		if have < n {
			return fmt.Errorf("it has %d of them", have)
		}
		return nil
	})
}

// hlsViewer follows the playlist of the stream demo.
type hlsViewer struct {
	t    *testing.T
	base string
	list playlist
}

// watchHLS waits until there is a playlist.
func watchHLS(t *testing.T, base string) *hlsViewer {
	t.Helper()
	v := &hlsViewer{t: t, base: base}
	eventually(t, waitTimeout, "the playlist is there", func() (err error) {
		answer, err := tryGet(base + "demo.m3u8")
		if err != nil {
			return err
		}
		if answer.status != http.StatusOK {
			return fmt.Errorf("status %d: %s", answer.status, answer.body)
		}
		v.list, err = parsePlaylist(answer.body)
		return err
	})
	return v
}

// awaitDiscontinuity waits until the playlist has gone on behind one, and returns a file
// with the first segment behind it.
func (v *hlsViewer) awaitDiscontinuity() (path string) {
	v.t.Helper()
	from := v.list.sequence + len(v.list.segments)
	uri := ""
	eventually(v.t, waitTimeout, "the playlist goes on behind a discontinuity", func() error {
		answer := get(v.t, v.base+"demo.m3u8")
		next, err := parsePlaylist(answer.body)
		if err == nil {
			err = next.follows(v.list)
		}
		if err != nil || next.ended {
			v.t.Fatalf("playlist: %v\n%s", err, answer.body)
		}
		v.list = next
		for i, s := range next.segments {
			if s.discontinuity && next.sequence+i >= from {
				uri = s.uri
				return nil
			}
		}
		return errors.New("there is none")
	})
	path = filepath.Join(v.t.TempDir(), "segment.ts")
	if err := os.WriteFile(path, get(v.t, v.base+uri).body, 0o600); err != nil {
		v.t.Fatal(err)
	}
	return path
}

// ffmpeg publishes at an origin, and a second one with other pictures and sound stands
// by, through an edge. The first is killed: the player at the edge, on one connection,
// gets the second one's frames behind the last one's of the first, and the playlist of
// HLS goes on behind a discontinuity. A third one, at the other origin, stands by in its
// turn; the second is frozen: the third goes on. Each one's frames come whole and in
// order, from a key frame on, and the time never goes back nor leaps.
func TestStandby(t *testing.T) {
	t.Parallel()
	origins, edge := standbyCluster(t)
	one, two := clipSource(t), fileSource(t, file(t, otherFile))

	first := publishClip(t, origins[0].rtmpURL("live/demo"))
	player := playFLV(t, edge.httpURL("live/demo.flv"), "")
	one.await(t, player, 25)
	second := publish(t, file(t, otherFile), edge.rtmpURL("live/demo"))
	origins[0].hasStandby()
	one.await(t, player, player.videoFrames()+25)
	viewer := watchHLS(t, edge.httpURL("live/"))
	first.kill()
	two.await(t, player, 50)
	segment := viewer.awaitDiscontinuity()
	ffmpegSource(t, file(t, otherFile), pictures, 25).require(t, "the first segment of the second publisher", ffmpegFrames(t, segment, 0, pictures), 25, rules{})

	publishClip(t, origins[1].rtmpURL("live/demo"))
	origins[0].hasStandby()
	second.signal(syscall.SIGSTOP)
	one.await(t, player, 50)
	second.signal(syscall.SIGCONT) // so that it can be ended
	origins[0].awaitMetric(2, "weir_standby_takeovers_total")
	player.requireHeaders()

	// Whose frames they are, one publisher after the other.
	frames := player.end()
	sources := []*source{one, two, one}
	from, at := 0, 0
	for i, f := range frames {
		if _, ok := sources[at].place[f.kind][f.sum]; ok {
			continue
		}
		if at++; at == len(sources) {
			t.Fatalf("frame %d of %d is of none: %+v", i, len(frames), f)
		}
		sources[at-1].require(t, fmt.Sprintf("publisher %d", at), frames[from:i], 25, rules{})
		from = i
	}
	if at != len(sources)-1 {
		t.Fatalf("the player saw %d publishers", at+1)
	}
	sources[at].require(t, fmt.Sprintf("publisher %d", at+1), frames[from:], 25, rules{})
	last := map[media.Kind]uint32{}
	for i, f := range frames {
		if before, ok := last[f.kind]; ok && (int32(f.time-before) <= 0 || f.time-before > 2*seam) {
			t.Errorf("frame %d of %d: %v at %d ms after %d ms", i, len(frames), f.kind, f.time, before)
		}
		last[f.kind] = f.time
	}
}

// Both publishers are at an edge, and the origin that has them is killed: neither
// encoder notices. One publishes at the other origin, and the other stands by there,
// whichever came first; when the one is killed the other goes on.
func TestStandbyOutlivesItsOrigin(t *testing.T) {
	t.Parallel()
	origins, edge := standbyCluster(t)
	one, two := clipSource(t), fileSource(t, file(t, otherFile))
	encoders := map[*source]*process{one: publishClip(t, edge.rtmpURL("live/demo"))}
	player := playFLV(t, edge.httpURL("live/demo.flv"), "")
	one.await(t, player, 25)
	owner := slices.IndexFunc(origins[:], func(o *node) bool { s, err := o.streams(demo); return err == nil && len(s) > 0 })
	if owner < 0 {
		t.Fatal("no origin has the stream")
	}
	encoders[two] = publish(t, file(t, otherFile), edge.rtmpURL("live/demo"))
	origins[owner].hasStandby()
	origins[owner].kill()
	next := origins[1-owner]
	next.hasStandby()
	for _, p := range encoders {
		if !p.running() {
			t.Fatalf("%s has ended", p.name)
		}
	}
	// Who publishes now is who the player sees.
	player.await(50, player.videoFrames())
	player.mu.Lock()
	last := player.frames[len(player.frames)-1]
	player.mu.Unlock()
	now, then := one, two
	if _, ok := two.place[last.kind][last.sum]; ok {
		now, then = two, one
	}
	encoders[now].kill()
	then.await(t, player, 50)
	next.awaitMetric(1, "weir_standby_takeovers_total")
}
