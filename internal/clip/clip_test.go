package clip_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weir/internal/clip"
	"weir/internal/flv"
	"weir/internal/media"
)

// The figures of the clip in milliseconds and pieces.
const (
	round       = uint32(clip.Duration / time.Millisecond)
	frameTime   = 40   // 25 frames/s
	gopTime     = 2000 // a key frame every 2 s
	videoFrames = 400
	audioFrames = 750 // of 1024 samples at 48 kHz: 21.33 ms each
	sizeLimit   = 1_000_000
)

// frames returns the clip's tags by kind; headers are kept apart.
func frames(t *testing.T) (headers, video, audio []media.Tag) {
	t.Helper()
	r := flv.NewReader(clip.Reader(), 0)
	for {
		tag, err := r.ReadTag()
		if errors.Is(err, io.EOF) {
			return headers, video, audio
		}
		if err != nil {
			t.Fatalf("read clip: %v", err)
		}
		info := media.Sniff(tag.Kind(), tag.Body())
		switch {
		case info.Has(media.Malformed) || info.Has(media.EndOfSequence):
			t.Fatalf("tag at %d ms is %+v: it does not belong in a loop", tag.Time(), info)
		case info.IsHeader():
			headers = append(headers, tag)
		case info.Kind == media.Video && info.Codec == media.H264:
			video = append(video, tag)
		case info.Kind == media.Audio && info.Codec == media.AAC:
			audio = append(audio, tag)
		default:
			t.Fatalf("tag at %d ms is an unexpected %v %v", tag.Time(), info.Kind, info.Codec)
		}
	}
}

func TestSize(t *testing.T) {
	if n := len(clip.Bytes()); n >= sizeLimit {
		t.Errorf("clip has %d bytes, want under %d", n, sizeLimit)
	}
}

// A clip starts with metadata and both decoder headers, or a player that joins
// the first round would have nothing to decode with.
func TestHeadersComeFirst(t *testing.T) {
	headers, _, _ := frames(t)
	var kinds []string
	for _, h := range headers {
		if h.Time() != 0 {
			t.Errorf("%v header at %d ms, want 0", h.Kind(), h.Time())
		}
		kinds = append(kinds, h.Kind().String())
	}
	if got := strings.Join(kinds, " "); got != "data video audio" {
		t.Errorf("headers are %q, want %q", got, "data video audio")
	}
	if bytes.Contains(headers[0].Body(), []byte("duration")) {
		t.Error("onMetaData names a duration: players would take the live stream for a file")
	}
}

// One round after the other has to look like one stream: both kinds start at 0
// and reach exactly to the next round, every frame in its place.
func TestRoundsJoinWithoutSeam(t *testing.T) {
	_, video, audio := frames(t)
	if len(video) != videoFrames || len(audio) != audioFrames {
		t.Fatalf("%d video and %d audio frames, want %d and %d", len(video), len(audio), videoFrames, audioFrames)
	}
	if videoFrames*frameTime != round || audioFrames*1024*1000/48000 != round {
		t.Fatalf("audio and video are not %d ms long", round)
	}
	for i, tag := range video {
		if want := uint32(i * frameTime); tag.Time() != want {
			t.Errorf("video frame %d at %d ms, want %d", i, tag.Time(), want)
		}
		key := media.Sniff(media.Video, tag.Body()).IsKeyFrame()
		if want := tag.Time()%gopTime == 0; key != want {
			t.Errorf("video frame at %d ms: key frame %v, want %v", tag.Time(), key, want)
		}
		if composition := tag.Body()[2:5]; !bytes.Equal(composition, []byte{0, 0, 0}) {
			t.Errorf("video frame %d is shown % x ms after its decoding time, want 0", i, composition)
		}
	}
	for i, tag := range audio {
		if want := uint32(i * 1024 * 1000 / 48000); tag.Time()-want > 1 {
			t.Errorf("audio frame %d at %d ms, want %d or %d", i, tag.Time(), want, want+1)
		}
	}
}

func TestBodiesAreUnique(t *testing.T) {
	_, video, audio := frames(t)
	seen := make(map[string]uint32)
	for _, tag := range append(video, audio...) {
		if at, ok := seen[string(tag.Body())]; ok {
			t.Errorf("%v frame at %d ms has the body of the one at %d ms", tag.Kind(), tag.Time(), at)
		}
		seen[string(tag.Body())] = tag.Time()
	}
}

// Two rounds decode without a word of complaint from ffmpeg, at the size and
// rate that the package promises.
func TestDecodesClean(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clip.flv")
	if err := os.WriteFile(path, clip.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ffmpeg", "-v", "warning", "-xerror", "-nostdin", "-stream_loop", "1", "-i", path, "-f", "null", "-").CombinedOutput()
	if err != nil || len(out) != 0 {
		t.Errorf("ffmpeg: %v: %s", err, out)
	}
	out, err = exec.Command("ffprobe", "-v", "error", "-of", "csv=p=0",
		"-show_entries", "stream=codec_name,profile,width,height,has_b_frames,pix_fmt,sample_rate,channels,r_frame_rate", path).CombinedOutput()
	if err != nil {
		t.Fatalf("ffprobe: %v: %s", err, out)
	}
	const want = "h264,Main,640,360,0,yuv420p,25/1\naac,LC,48000,2,0/0\n"
	if string(out) != want {
		t.Errorf("ffprobe says\n%swant\n%s", out, want)
	}
}

func TestBytesAreACopy(t *testing.T) {
	b := clip.Bytes()
	b[0] = 'X'
	whole, err := io.ReadAll(clip.Reader())
	if err != nil {
		t.Fatal(err)
	}
	if whole[0] != 'F' || clip.Bytes()[0] != 'F' {
		t.Error("writing to Bytes changed the clip")
	}
}
