package hls_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mpegts"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mpegts/codecs"

	"weir/hls"
	"weir/hls/hlstest"
	"weir/internal/flv"
	"weir/internal/media"
)

// run runs a tool and returns what it prints; the test ends if it is missing or
// fails.
func run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	out, err := output(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func output(name string, args ...string) ([]byte, error) {
	var out, complaint bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, complaint.Bytes())
	}
	return out.Bytes(), nil
}

// record makes a file of the given length with ffmpeg: a moving picture and a
// tone, coded as the arguments say.
func record(t testing.TB, file string, seconds float64, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), file)
	all := []string{
		"-v", "error", "-f", "lavfi", "-i", "testsrc2=s=192x108:r=25",
		"-f", "lavfi", "-i", "sine=f=440:r=44100",
	}
	all = append(all, args...)
	run(t, "ffmpeg", append(all, "-t", fmt.Sprint(seconds), path)...)
	return path
}

// x264 are the arguments for video with key frames every gop frames.
func x264(gop, bframes int) []string {
	return []string{
		"-c:v", "libx264", "-preset", "ultrafast", "-threads", "1",
		"-g", fmt.Sprint(gop), "-keyint_min", fmt.Sprint(gop), "-sc_threshold", "0", "-bf", fmt.Sprint(bframes),
	}
}

var aac = []string{"-c:a", "aac", "-b:a", "64k"}

// readFLV returns the tags of a file.
func readFLV(t testing.TB, path string) []media.Tag {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := flv.NewReader(f, 0)
	var tags []media.Tag
	for {
		tag, err := r.ReadTag()
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return tags
		}
		if err != nil {
			t.Fatal(err)
		}
		tags = append(tags, tag)
	}
}

// shift returns copies of the tags at other times; times wrap.
func shift(tags []media.Tag, by uint32) []media.Tag {
	out := make([]media.Tag, len(tags))
	for i, tag := range tags {
		out[i] = tag.At(tag.Time() + by)
	}
	return out
}

// viewing is what a player saw that never missed anything.
type viewing struct {
	segments  []hlstest.Recorded
	playlists []*hlstest.Playlist
	metrics   *metrics.Set
	store     *hls.Store
}

func (v *viewing) bytes() []byte {
	var b []byte
	for _, s := range v.segments {
		b = append(b, s.Body...)
	}
	return b
}

func (v *viewing) counter(name string) uint64 { return v.metrics.GetOrCreateCounter(name).Get() }

func (v *viewing) durations() string {
	var out []string
	for _, s := range v.segments {
		d := s.Duration.Round(10 * time.Millisecond).String()
		if s.Discontinuity {
			d = "|" + d
		}
		if s.Content != nil && !s.Content.Independent {
			d += "!"
		}
		out = append(out, d)
	}
	return strings.Join(out, " ")
}

var epochStart = time.Date(2026, time.November, 22, 12, 0, 0, 0, time.UTC)

// cutAll feeds the tags to a segmenter in the time of the tags, and watches its
// playlist and segments with a checker, breaches of which end the test.
func cutAll(t testing.TB, config hls.Config, tags []media.Tag) *viewing {
	t.Helper()
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	now := epochStart
	v := &viewing{metrics: metrics.NewSet()}
	s := hls.NewSegmenter(hls.Options{
		Config: config, Key: "__defaultVhost__/live/a", Name: "a", Epoch: 7,
		Now: func() time.Time { return now }, Metrics: v.metrics,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	v.store = s.Store()
	var checker hlstest.Checker
	var last []byte
	watch := func() {
		o := playlistNow(v.store)
		if o.Status != 200 || bytes.Equal(o.Body, last) {
			return
		}
		last = o.Body
		p, fresh, err := checker.Playlist(o.Body)
		if err != nil {
			t.Fatalf("%v\n%s", err, o.Body)
		}
		v.playlists = append(v.playlists, p)
		for _, seg := range fresh {
			r, ok := hls.ParsePath("/live/" + seg.URI)
			if !ok || r.Name != "a" || r.Epoch != 7 || r.Seq != seg.Sequence {
				t.Fatalf("segment URI %q is read as %+v, %v", seg.URI, r, ok)
			}
			o := v.store.Segment(r.Epoch, r.Seq)
			content, err := checker.Segment(seg, o.Body)
			if err != nil {
				t.Fatal(err)
			}
			v.segments = append(v.segments, hlstest.Recorded{Segment: seg, Body: o.Body, Content: content})
		}
	}
	for i, tag := range tags {
		if i > 0 {
			if d := int32(tag.Time() - tags[i-1].Time()); d > 0 && d < 10_000 {
				now = now.Add(time.Duration(d) * time.Millisecond)
			}
		}
		lent := slices.Clone(tag)
		if err := s.Write(lent, media.Sniff(tag.Kind(), tag.Body())); err != nil {
			t.Fatal(err)
		}
		for i := range lent { // its memory is used again
			lent[i] = '?'
		}
		watch()
	}
	s.Close()
	watch()
	return v
}

// playlistNow asks for the playlist without waiting.
func playlistNow(s *hls.Store) hls.Object {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return s.Playlist(ctx)
}

// hashes decodes a track ("v" or "a") with ffmpeg and returns one hash for each
// frame in order.
func hashes(t testing.TB, path, track string) []string {
	t.Helper()
	out := run(t, "ffmpeg", "-v", "error", "-i", path, "-map", "0:"+track+":0",
		"-fps_mode", "passthrough", "-f", "framehash", "-hash", "md5", "-")
	var list []string
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "#") {
			fields := strings.Split(line, ",")
			list = append(list, strings.TrimSpace(fields[len(fields)-1]))
		}
	}
	if len(list) == 0 {
		t.Fatalf("%s has no frames of track %s", path, track)
	}
	return list
}

// sameFrames decodes the input and the segments and compares all frames.
func sameFrames(t testing.TB, input string, v *viewing, tracks ...string) {
	t.Helper()
	output := filepath.Join(t.TempDir(), "all.ts")
	if err := os.WriteFile(output, v.bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, track := range tracks {
		want, got := hashes(t, input, track), hashes(t, output, track)
		if !slices.Equal(want, got) {
			t.Errorf("track %s: %d frames in, %d frames out, not all the same", track, len(want), len(got))
		}
	}
}

// enhancedTags makes Enhanced RTMP tags of an MPEG-TS file with H.265 or Opus,
// which ffmpeg 5 does not write to FLV.
func enhancedTags(t testing.TB, path string) []media.Tag {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := &mpegts.Reader{R: f}
	if err := r.Initialize(); err != nil {
		t.Fatal(err)
	}
	var tags []media.Tag
	base := int64(-1)
	ms := func(ticks int64) uint32 {
		if base < 0 {
			base = ticks
		}
		return uint32((ticks - base + 45) / 90)
	}
	for _, track := range r.Tracks() {
		switch c := track.Codec.(type) {
		case *codecs.H265:
			first := true
			r.OnDataH265(track, func(pts, dts int64, au [][]byte) error {
				body := []byte{0x80 | 2<<4 | 1, 'h', 'v', 'c', '1'}
				key := false
				var sets [3][]byte
				var frames []byte
				for _, nal := range au {
					kind := nal[0] >> 1 & 0x3f
					switch {
					case kind >= 32 && kind <= 34:
						sets[kind-32] = nal
						continue
					case kind >= 16 && kind <= 21:
						key = true
					}
					frames = append(frames, byte(len(nal)>>24), byte(len(nal)>>16), byte(len(nal)>>8), byte(len(nal)))
					frames = append(frames, nal...)
				}
				if key {
					body[0] = 0x80 | 1<<4 | 1
				}
				if first {
					first = false
					record := make([]byte, 23)
					record[0], record[21], record[22] = 1, 3, 3
					for i, set := range sets {
						record = append(record, byte(32+i), 0, 1, byte(len(set)>>8), byte(len(set)))
						record = append(record, set...)
					}
					tags = append(tags, newTag(media.Video, ms(dts), append([]byte{0x90, 'h', 'v', 'c', '1'}, record...)))
				}
				shift := (pts - dts) / 90
				body = append(body, byte(shift>>16), byte(shift>>8), byte(shift))
				tags = append(tags, newTag(media.Video, ms(dts), append(body, frames...)))
				return nil
			})
		case *codecs.Opus:
			head := append([]byte("OpusHead"), 1, byte(c.Desc.ChannelCount()), 0, 0, 0x80, 0xbb, 0, 0, 0, 0, 0)
			tags = append(tags, newTag(media.Audio, 0, append([]byte{0x90, 'O', 'p', 'u', 's'}, head...)))
			r.OnDataOpus(track, func(pts int64, packets [][]byte) error {
				for i, p := range packets {
					at := ms(pts + int64(i)*1800)
					tags = append(tags, newTag(media.Audio, at, append([]byte{0x91, 'O', 'p', 'u', 's'}, p...)))
				}
				return nil
			})
		}
	}
	for {
		if err := r.Read(); err != nil {
			if errors.Is(err, io.EOF) {
				break
			}
			t.Fatal(err)
		}
	}
	return tags
}

func newTag(kind media.Kind, at uint32, body []byte) media.Tag {
	tag := media.NewTag(kind, at, len(body))
	copy(tag.Body(), body)
	return tag
}

// Synthetic H.264 and AAC: nothing decodes them, all else about them is real.

func avcHeader(variant byte) media.Tag {
	sps := []byte{0x67, 0x42, 0xc0, 0x1e, variant}
	pps := []byte{0x68, 0xce, 0x3c, 0x80}
	b := []byte{0x17, 0, 0, 0, 0, 1, 0x42, 0xc0, 0x1e, 0xff, 0xe1, 0, byte(len(sps))}
	b = append(b, sps...)
	b = append(b, 1, 0, byte(len(pps)))
	return newTag(media.Video, 0, append(b, pps...))
}

func avcFrame(at uint32, key bool, size int) media.Tag {
	b := []byte{0x27, 1, 0, 0, 0}
	nal := byte(0x41)
	if key {
		b[0], nal = 0x17, 0x65
	}
	payload := bytes.Repeat([]byte{0xab}, max(size, 1))
	payload[0] = nal
	b = append(b, byte(len(payload)>>24), byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload)))
	return newTag(media.Video, at, append(b, payload...))
}

// aacHeader makes an AAC-LC configuration of 44.1 kHz with that many channels.
func aacHeader(channels byte) media.Tag {
	return newTag(media.Audio, 0, []byte{0xaf, 0, 0x12, channels << 3})
}

func aacFrame(at uint32) media.Tag {
	return newTag(media.Audio, at, append([]byte{0xaf, 1}, bytes.Repeat([]byte{0x21}, 100)...))
}

// synthetic makes a stream of 25 frames a second with key frames at the given
// times (milliseconds) and audio, from time zero to end.
func synthetic(end uint32, size int, keys ...uint32) []media.Tag {
	tags := []media.Tag{avcHeader(1), aacHeader(2)}
	audio := 0.0
	for at := uint32(0); at < end; at += 40 {
		tags = append(tags, avcFrame(at, slices.Contains(keys, at), size))
		for ; audio < float64(at+40); audio += 1024 / 44.1 {
			tags = append(tags, aacFrame(uint32(audio)))
		}
	}
	return tags
}

func every(step, end uint32) []uint32 {
	var list []uint32
	for at := uint32(0); at < end; at += step {
		list = append(list, at)
	}
	return list
}

func jitter(tags []media.Tag, seed uint64, most uint32) []media.Tag {
	r := rand.New(rand.NewPCG(seed, 1))
	out := make([]media.Tag, len(tags))
	for i, tag := range tags {
		out[i] = tag.At(tag.Time() + r.Uint32N(most+1))
	}
	return out
}

// checkPlaylist checks one playlist and the structure of the segments in it.
func checkPlaylist(t testing.TB, s *hls.Store, o hls.Object) {
	t.Helper()
	var c hlstest.Checker
	_, fresh, err := c.Playlist(o.Body)
	if err != nil {
		t.Fatalf("%v\n%s", err, o.Body)
	}
	for _, seg := range fresh {
		r, ok := hls.ParsePath("/live/" + seg.URI)
		if !ok {
			t.Fatalf("segment URI %q is not one", seg.URI)
		}
		o := s.Get(context.Background(), r)
		if o.Status != 200 {
			t.Fatalf("listed segment: %d %s", o.Status, o.Body)
		}
		if _, err := hlstest.Inspect(o.Body); err != nil {
			t.Fatal(err)
		}
	}
}
