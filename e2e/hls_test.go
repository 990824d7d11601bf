package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/internal/media"
)

// segment is one entry of a media playlist.
type segment struct {
	uri           string
	duration      float64 // seconds
	discontinuity bool
}

// playlist is a media playlist as RFC 8216 describes it.
type playlist struct {
	version, target, sequence int
	segments                  []segment
	ended                     bool
}

// parsePlaylist reads a media playlist and insists on the rules of RFC 8216
// that hold for one playlist by itself. It is written after the RFC and shares
// nothing with the code that writes playlists.
func parsePlaylist(text []byte) (playlist, error) {
	p := playlist{version: 1}
	if bytes.HasPrefix(text, []byte("\xef\xbb\xbf")) {
		return p, errors.New("byte order mark (section 4.1)")
	}
	lines := strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n")
	if lines[0] != "#EXTM3U" {
		return p, fmt.Errorf("first line is %q (section 4.3.1.1)", lines[0])
	}
	seen := map[string]int{}
	var next *segment // opened by EXTINF
	discontinuity, fraction := false, false
	for n, line := range lines[1:] {
		fail := func(format string, args ...any) error {
			return fmt.Errorf("line %d, %q: %s", n+2, line, fmt.Sprintf(format, args...))
		}
		tag, value, _ := strings.Cut(line, ":")
		number := func() (int, error) {
			v, err := strconv.ParseUint(value, 10, 63)
			if err != nil {
				return 0, fail("not a decimal integer (section 4.2)")
			}
			return int(v), nil
		}
		var err error
		seen[tag]++
		switch {
		case line == "":
		case tag == "#EXT-X-VERSION":
			p.version, err = number()
		case tag == "#EXT-X-TARGETDURATION":
			p.target, err = number()
		case tag == "#EXT-X-MEDIA-SEQUENCE":
			if len(p.segments) > 0 {
				err = fail("after the first segment (section 4.3.3.2)")
			} else {
				p.sequence, err = number()
			}
		case tag == "#EXT-X-DISCONTINUITY-SEQUENCE":
			if len(p.segments) > 0 || discontinuity {
				err = fail("after the first segment or discontinuity (section 4.3.3.3)")
			} else {
				_, err = number()
			}
		case tag == "#EXT-X-DISCONTINUITY":
			discontinuity = true
		case tag == "#EXTINF":
			text, _, comma := strings.Cut(value, ",")
			seconds, errParse := strconv.ParseFloat(text, 64)
			if !comma || errParse != nil || seconds <= 0 {
				err = fail("not a duration and a comma (section 4.3.2.1)")
			}
			fraction = fraction || strings.Contains(text, ".")
			next = &segment{duration: seconds, discontinuity: discontinuity}
			discontinuity = false
		case tag == "#EXT-X-ENDLIST":
			p.ended = true
		case strings.HasPrefix(line, "#"):
		case next == nil:
			err = fail("segment without EXTINF (section 4.3.2.1)")
		default:
			next.uri = line
			p.segments = append(p.segments, *next)
			next = nil
		}
		if err != nil {
			return p, err
		}
	}
	for _, tag := range []string{"#EXT-X-VERSION", "#EXT-X-TARGETDURATION", "#EXT-X-MEDIA-SEQUENCE"} {
		if seen[tag] > 1 || tag == "#EXT-X-TARGETDURATION" && seen[tag] == 0 {
			return p, fmt.Errorf("%s is there %d times (section 4.3)", tag, seen[tag])
		}
	}
	if fraction && p.version < 3 {
		return p, fmt.Errorf("fractional durations in version %d (section 7)", p.version)
	}
	if next != nil {
		return p, errors.New("EXTINF without a segment")
	}
	for _, s := range p.segments {
		if int(math.Round(s.duration)) > p.target {
			return p, fmt.Errorf("segment %s of %v s is longer than the target duration %d (section 4.3.3.1)", s.uri, s.duration, p.target)
		}
	}
	return p, nil
}

// follows checks what section 6.2.1 and 6.2.2 of RFC 8216 say about a playlist
// and the one that was served before it.
func (p playlist) follows(before playlist) error {
	gone := p.sequence - before.sequence
	switch {
	case p.target != before.target:
		return fmt.Errorf("target duration changed from %d to %d", before.target, p.target)
	case gone < 0:
		return fmt.Errorf("media sequence went back from %d to %d", before.sequence, p.sequence)
	case gone > len(before.segments):
		return nil // nothing in common
	case len(before.segments)-gone > len(p.segments):
		return errors.New("segments vanished from the end")
	}
	for i, s := range before.segments[gone:] {
		if p.segments[i] != s {
			return fmt.Errorf("segment %d was %+v, is %+v", p.sequence+i, s, p.segments[i])
		}
	}
	if gone > 0 {
		var left float64
		for _, s := range p.segments {
			left += s.duration
		}
		if left < 3*float64(p.target) {
			return fmt.Errorf("a segment was removed although only %.3f s remain of 3 target durations of %d s", left, p.target)
		}
	}
	return nil
}

func TestParsePlaylist(t *testing.T) {
	const good = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:7\n#EXTINF:2.000,\na.ts\n#EXTINF:1.5,\nb.ts\n"
	p, err := parsePlaylist([]byte(good))
	if err != nil || len(p.segments) != 2 || p.sequence != 7 || p.segments[1] != (segment{uri: "b.ts", duration: 1.5}) {
		t.Errorf("%+v, %v", p, err)
	}
	f := func(old, new string) {
		t.Helper()
		if _, err := parsePlaylist([]byte(strings.Replace(good, old, new, 1))); err == nil {
			t.Errorf("no error with %q for %q", new, old)
		}
	}
	f("#EXTM3U", "#EXTINF")
	f("VERSION:3", "VERSION:2")
	f("#EXT-X-TARGETDURATION:2\n", "")
	f("TARGETDURATION:2", "TARGETDURATION:1")
	f("#EXTINF:1.5,\n", "")
	f("1.5,", "1.5")
	f("1.5,", "x,")
	f("b.ts\n", "")
	f("#EXT-X-MEDIA-SEQUENCE:7\n", "#EXT-X-MEDIA-SEQUENCE:7\n#EXT-X-MEDIA-SEQUENCE:7\n")

	next := p
	next.sequence, next.segments = 8, []segment{p.segments[1], {uri: "c.ts", duration: 2}, {uri: "d.ts", duration: 2}, {uri: "e.ts", duration: 2}}
	if err := next.follows(p); err != nil {
		t.Error(err)
	}
	if p.follows(next) == nil {
		t.Error("a playlist that goes back was accepted")
	}
	next.segments = next.segments[:2]
	if next.follows(p) == nil {
		t.Error("a playlist of less than three target durations was accepted")
	}
	next.segments = []segment{{uri: "x.ts", duration: 2}}
	if next.follows(p) == nil {
		t.Error("an exchanged segment was accepted")
	}
}

// checkTransportStream checks the packets of one segment: whole, in sync,
// beginning with the tables that a decoder needs (RFC 8216 section 3.2), and
// with continuity counters that go on from the segment before.
func checkTransportStream(data []byte, counters map[int]byte) error {
	const packetSize = 188
	if len(data) == 0 || len(data)%packetSize != 0 {
		return fmt.Errorf("%d bytes are not whole packets", len(data))
	}
	for n := 0; n*packetSize < len(data); n++ {
		packet := data[n*packetSize : (n+1)*packetSize]
		pid := int(packet[1]&0x1f)<<8 | int(packet[2])
		begins, payload := packet[1]&0x40 != 0, packet[3]&0x10 != 0
		if packet[0] != 0x47 {
			return fmt.Errorf("packet %d has no sync byte", n)
		}
		if n == 0 && (pid != 0 || !begins) {
			return fmt.Errorf("the first packet has PID %d, want the program association table", pid)
		}
		if !payload {
			continue
		}
		counter := packet[3] & 0x0f
		if last, ok := counters[pid]; ok && counter != (last+1)&0x0f {
			return fmt.Errorf("packet %d of PID %d has continuity counter %d after %d", n, pid, counter, last)
		}
		counters[pid] = counter
	}
	return nil
}

// A viewer of HLS through an edge. The playlist is followed for a while as a
// player does it; what the segments hold is compared with what was published.
func TestHLS(t *testing.T) {
	t.Parallel()
	discovery := startDiscovery(t, "")
	httpA := freeAddr(t)
	front := tap(t, httpA)
	a := startOrigin(t, "origin-a", addresses{http: httpA, advertiseHTTP: front.addr()}, discoveryAt(discovery))
	b := startOrigin(t, "origin-b", addresses{}, discoveryAt(discovery))
	edges := []*node{
		startEdge(t, "edge-1", 2, discoveryAt(discovery)+upstreamsOf(b.rtmp)),
		startEdge(t, "edge-2", 1, discoveryAt(discovery)+upstreamsOf(b.rtmp)),
	}
	publishClip(t, a.rtmpURL("live/demo"))

	const wanted = 8 // segments
	base := edges[0].httpURL("live/")
	var list playlist
	eventually(t, waitTimeout, "the playlist is there", func() error {
		answer, err := tryGet(base + "demo.m3u8")
		if err != nil {
			return err
		}
		if answer.status != http.StatusOK {
			return fmt.Errorf("status %d: %s", answer.status, answer.body)
		}
		if kind := answer.header.Get("Content-Type"); !strings.EqualFold(strings.SplitN(kind, ";", 2)[0], "application/vnd.apple.mpegurl") {
			t.Errorf("playlist is %q (RFC 8216 section 4)", kind)
		}
		list, err = parsePlaylist(answer.body)
		return err
	})
	if list.ended {
		t.Error("the playlist of a live stream has an end")
	}

	var stream bytes.Buffer
	counters := map[int]byte{}
	fetchedSegments := map[string][]byte{}
	var order []string
	fetch := func(s segment) {
		t.Helper()
		answer := get(t, base+s.uri)
		if answer.status != http.StatusOK || answer.header.Get("Content-Type") != "video/mp2t" {
			t.Fatalf("segment %s: status %d, type %q", s.uri, answer.status, answer.header.Get("Content-Type"))
		}
		if s.discontinuity && len(order) > 0 { // the first follows what another owner may have had
			t.Errorf("segment %s has a discontinuity, and nothing happened", s.uri)
		}
		if err := checkTransportStream(answer.body, counters); err != nil {
			t.Errorf("segment %s: %v", s.uri, err)
		}
		fetchedSegments[s.uri] = answer.body
		order = append(order, s.uri)
		stream.Write(answer.body)
	}
	for len(order) < wanted {
		for _, s := range list.segments {
			if fetchedSegments[s.uri] == nil {
				fetch(s)
			}
		}
		eventually(t, waitTimeout, "the playlist goes on", func() error {
			answer := get(t, base+"demo.m3u8")
			next, err := parsePlaylist(answer.body)
			if err != nil {
				t.Fatalf("playlist: %v\n%s", err, answer.body)
			}
			if err := next.follows(list); err != nil {
				t.Fatalf("playlist: %v\n%s", err, answer.body)
			}
			if next.sequence+len(next.segments) == list.sequence+len(list.segments) {
				return errors.New("no new segment")
			}
			list = next
			return nil
		})
	}

	t.Run("frames", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "all.ts")
		if err := os.WriteFile(path, stream.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		seconds := 2 * (wanted - 1)
		got := ffmpegFrames(t, path, 0, pictures)
		ffmpegSource(t, file(t, clipFile), pictures, clipKeyEvery).require(t, "pictures", got, seconds*25, rules{})
		audio := transportStreamAudio(t, path)
		clipAudio := &source{
			frames: map[media.Kind][]frame{media.Audio: ffmpegAudioHashes(t, file(t, clipFile))},
			place:  map[media.Kind]map[uint64]int{media.Audio: {}},
		}
		for i, f := range clipAudio.frames[media.Audio] {
			clipAudio.place[media.Audio][f.sum] = i
		}
		if _, err := clipAudio.compare(audio, rules{anyTime: true}); err != nil {
			t.Errorf("audio: %v", err)
		}
		if len(audio) < seconds*46 {
			t.Errorf("%d audio frames in %d s", len(audio), seconds)
		}
		// Every segment decodes by itself.
		for _, uri := range order {
			one := filepath.Join(t.TempDir(), "one.ts")
			if err := os.WriteFile(one, fetchedSegments[uri], 0o600); err != nil {
				t.Fatal(err)
			}
			r := runFor(t, waitTimeout, "ffmpeg", "-v", "error", "-xerror", "-nostdin", "-i", one, "-f", "null", "-")
			if r.code != 0 || r.stderr != "" {
				t.Errorf("segment %s does not decode: %s", uri, r.stderr)
			}
		}
	})

	t.Run("ffprobe", func(t *testing.T) {
		r := runFor(t, 2*waitTimeout, "ffprobe", "-v", "error", "-show_entries", "stream=codec_name,width,height,sample_rate", "-of", "csv=p=0", base+"demo.m3u8")
		if r.code != 0 || !strings.Contains(r.stdout, "h264,640,360") || !strings.Contains(r.stdout, "aac,48000") {
			t.Errorf("ffprobe: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
		}
	})

	t.Run("same bytes everywhere", func(t *testing.T) {
		newest := list.segments[len(list.segments)-1].uri
		want := get(t, base+newest)
		for _, n := range []*node{a, edges[1]} {
			got := get(t, n.httpURL("live/"+newest))
			if got.status != http.StatusOK || !bytes.Equal(got.body, want.body) {
				t.Errorf("segment at %s: status %d, same bytes: %v", n.id, got.status, bytes.Equal(got.body, want.body))
			}
			for _, key := range []string{"Content-Type", "Cache-Control", "Access-Control-Allow-Origin"} {
				if got.header.Get(key) != want.header.Get(key) {
					t.Errorf("%s at %s is %q, at the edge %q", key, n.id, got.header.Get(key), want.header.Get(key))
				}
			}
		}
		if !strings.Contains(want.header.Get("Cache-Control"), "max-age=") {
			t.Errorf("segments have Cache-Control %q, want a max-age", want.header.Get("Cache-Control"))
		}
		eventually(t, waitTimeout, "playlists of both edges are equal", func() error {
			one, two := get(t, base+"demo.m3u8"), get(t, edges[1].httpURL("live/demo.m3u8"))
			if !bytes.Equal(one.body, two.body) {
				return fmt.Errorf("%s\nand\n%s", one.body, two.body)
			}
			return nil
		})
	})

	t.Run("one fetch for all viewers", func(t *testing.T) {
		before := list.sequence + len(list.segments)
		var viewers sync.WaitGroup
		failed := make(chan error, 40)
		for range cap(failed) {
			viewers.Go(func() {
				failed <- watch(base, before, 2)
			})
		}
		viewers.Wait()
		close(failed)
		for err := range failed {
			if err != nil {
				t.Error(err)
			}
		}
		requests := map[string]int{}
		fromClients, _ := front.said()
		for _, said := range fromClients {
			for line := range strings.Lines(string(said)) {
				if path, ok := strings.CutPrefix(line, "GET "); ok && strings.Contains(path, ".ts") {
					path, _, _ = strings.Cut(path, " ")
					requests[path]++
				}
			}
		}
		if len(requests) == 0 {
			t.Error("no edge fetched a segment at the origin's advertised address")
		}
		for path, n := range requests {
			if n > len(edges) {
				t.Errorf("%d fetches of %s by %d edges", n, path, len(edges))
			}
		}
	})
}

// watch follows a playlist as a player does until it has n segments from media
// sequence number from on.
func watch(base string, from, n int) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(waitTimeout); n > 0; <-tick.C {
		if time.Now().After(deadline) {
			return errors.New("the playlist does not go on")
		}
		answer, err := tryGet(base + "demo.m3u8")
		if err != nil {
			return err
		}
		list, err := parsePlaylist(answer.body)
		if err != nil {
			return err
		}
		for i, s := range list.segments {
			if list.sequence+i < from || n == 0 {
				continue
			}
			if answer, err = tryGet(base + s.uri); err != nil {
				return err
			}
			if answer.status != http.StatusOK {
				return fmt.Errorf("segment %s: status %d", s.uri, answer.status)
			}
			from, n = list.sequence+i+1, n-1
		}
	}
	return nil
}

// ffmpegAudioHashes returns the hashes of a file's audio packets, without the
// headers that a transport stream puts before each.
func ffmpegAudioHashes(t testing.TB, path string, filter ...string) []frame {
	t.Helper()
	args := append([]string{"-v", "error", "-nostdin", "-i", path, "-map", "0:a", "-c", "copy"}, filter...)
	r := runFor(t, waitTimeout, "ffmpeg", append(args, "-f", "framehash", "-hash", "md5", "-")...)
	if r.code != 0 {
		t.Fatalf("ffmpeg reading %s: %s", path, r.stderr)
	}
	frames, err := parseFrameHashes(r.stdout)
	if err != nil {
		t.Fatal(err)
	}
	return frames
}

func transportStreamAudio(t testing.TB, path string) []frame {
	t.Helper()
	return ffmpegAudioHashes(t, path, "-bsf:a", "aac_adtstoasc")
}
