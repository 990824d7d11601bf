package e2e

import (
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/internal/clip"
	"weir/internal/media"
)

// clipFile is the clip as a file for programs that need one.
var clipFile = sync.OnceValues(func() (string, error) {
	path := filepath.Join(workshop, "clip.flv")
	return path, os.WriteFile(path, clip.Bytes(), 0o600)
})

// otherFile is another stream than the clip: its negative, with B-frames, at
// another size, and other sound.
var otherFile = sync.OnceValues(func() (string, error) {
	in, err := clipFile()
	if err != nil {
		return "", err
	}
	path := filepath.Join(workshop, "other.flv")
	out, err := exec.Command("ffmpeg", "-v", "error", "-nostdin", "-y", "-i", in,
		"-vf", "negate,scale=320:180", "-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-g", "25", "-sc_threshold", "0",
		"-c:a", "aac", "-b:a", "48k", "-af", "volume=0.5", "-flvflags", "no_duration_filesize+no_sequence_end", path).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("make the other clip: %w\n%s", err, out)
	}
	return path, nil
})

func file(t testing.TB, make func() (string, error)) string {
	t.Helper()
	path, err := make()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// fileSource is the source of whoever publishes an FLV file.
func fileSource(t testing.TB, path string) *source {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tags, err := readTags(f)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSource(framesOf(tags))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// publish has ffmpeg publish a file round after round in real time, without
// changing a frame.
func publish(t testing.TB, path, url string) *process {
	t.Helper()
	return start(t, "ffmpeg publishing "+url, "ffmpeg", "-v", "info", "-nostdin", "-nostats", "-re", "-stream_loop", "-1",
		"-i", path, "-c", "copy", "-flvflags", "no_duration_filesize", "-f", "flv", url)
}

// publishClip publishes the clip.
func publishClip(t testing.TB, url string) *process {
	t.Helper()
	return publish(t, file(t, clipFile), url)
}

// hashes is how ffmpeg hashes frames: packets as they came, or decoded pictures.
type hashes int

const (
	packets  hashes = iota // -c copy: what was sent, unchanged
	pictures               // decoded video: the same whatever container it travelled in
)

// ffmpegFrames has ffmpeg read an input for a while of its time line and returns
// the frames' hashes. A duration of 0 reads to the end.
func ffmpegFrames(t testing.TB, input string, duration time.Duration, what hashes, inputOptions ...string) []frame {
	t.Helper()
	args := []string{"-v", "error", "-nostdin"}
	args = append(args, inputOptions...)
	args = append(args, "-i", input)
	if duration > 0 {
		args = append(args, "-t", fmt.Sprintf("%.3f", duration.Seconds()))
	}
	switch what {
	case packets:
		args = append(args, "-map", "0:v", "-map", "0:a", "-c", "copy")
	case pictures:
		args = append(args, "-map", "0:v", "-fps_mode", "passthrough")
	}
	args = append(args, "-f", "framehash", "-hash", "md5", "-")
	r := runFor(t, duration+waitTimeout, "ffmpeg", args...)
	if r.code != 0 {
		t.Fatalf("ffmpeg reading %s: exit code %d\n%s", input, r.code, tail(r.stderr, 4<<10))
	}
	frames, err := parseFrameHashes(r.stdout)
	if err != nil {
		t.Fatalf("ffmpeg reading %s: %v", input, err)
	}
	return frames
}

// parseFrameHashes reads the output of ffmpeg's framehash muxer: lines with
// stream, decoding time, display time, duration, size and hash. It does not say
// what a key frame is.
func parseFrameHashes(text string) ([]frame, error) {
	kinds := make(map[string]media.Kind)
	scales := make(map[string]*big.Rat) // milliseconds per unit of time
	var frames []frame
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "#media_type "); ok {
			stream, kind, _ := strings.Cut(rest, ": ")
			switch kind {
			case "video":
				kinds[stream] = media.Video
			case "audio":
				kinds[stream] = media.Audio
			}
			continue
		}
		if rest, ok := strings.CutPrefix(line, "#tb "); ok {
			stream, base, _ := strings.Cut(rest, ": ")
			r, ok := new(big.Rat).SetString(base)
			if !ok {
				return nil, fmt.Errorf("parse time base %q", line)
			}
			scales[stream] = r.Mul(r, big.NewRat(1000, 1))
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		fields := strings.Split(line, ",")
		if len(fields) < 6 {
			return nil, fmt.Errorf("parse frame %q", line)
		}
		for i := range fields {
			fields[i] = strings.TrimSpace(fields[i])
		}
		scale := scales[fields[0]]
		dts, errTime := strconv.ParseInt(fields[1], 10, 64)
		if len(fields[5]) < 16 || scale == nil {
			return nil, fmt.Errorf("parse frame %q", line)
		}
		sum, errSum := strconv.ParseUint(fields[5][:16], 16, 64)
		if err := errors.Join(errTime, errSum); err != nil {
			return nil, fmt.Errorf("parse frame %q: %w", line, err)
		}
		ms, _ := new(big.Rat).Mul(scale, big.NewRat(dts, 1)).Float64()
		frames = append(frames, frame{kind: kinds[fields[0]], time: uint32(int64(ms + 0.5)), sum: sum})
	}
	return frames, nil
}

// ffmpegSource is the source to compare ffmpegFrames with. keyEvery is the
// distance of the file's key frames, which ffmpeg's hashes do not show.
func ffmpegSource(t testing.TB, path string, what hashes, keyEvery int) *keyedSource {
	t.Helper()
	frames := ffmpegFrames(t, path, 0, what)
	s, err := newSource(frames)
	if err != nil {
		t.Fatal(err)
	}
	return &keyedSource{s, keyEvery}
}

// keyedSource knows by place what frames are key frames.
type keyedSource struct {
	*source
	keyEvery int
}

func (k *keyedSource) require(t testing.TB, who string, frames []frame, minVideo int, r rules) {
	t.Helper()
	for i, f := range frames {
		if at, ok := k.place[f.kind][f.sum]; ok && f.kind == media.Video {
			frames[i].key = at%k.keyEvery == 0
		}
	}
	k.source.require(t, who, frames, minVideo, r)
}

// clipKeyEvery is the distance of the clip's key frames in frames.
const clipKeyEvery = 50

// rtmpdumpFrames plays an RTMP URL with rtmpdump, which is librtmp, for a while
// and returns the frames of the FLV file that it wrote.
func rtmpdumpFrames(t testing.TB, url string, duration time.Duration) []frame {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rtmpdump.flv")
	// --stop counts from the time stamp of the stream, not from the join, so the
	// end is ours.
	p := start(t, "rtmpdump of "+url, "rtmpdump", "--quiet", "--live", "--rtmp", url, "--flv", path)
	eventually(t, duration+waitTimeout, "rtmpdump has written frames", func() error {
		frames := framesIn(path)
		if !p.running() {
			t.Fatalf("rtmpdump has ended: %v", p.err)
		}
		if want := int(duration.Seconds() * 25); count(frames, media.Video) < want {
			return fmt.Errorf("%d video frames, want %d", count(frames, media.Video), want)
		}
		return nil
	})
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	<-p.done
	return framesIn(path)
}

// framesIn returns the whole frames in a file that may be cut anywhere.
func framesIn(path string) []frame {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	tags, _ := readTags(f)
	return framesOf(tags)
}

// What ffmpeg loops and what our reader makes of it must agree with the clip,
// without any weir in between: otherwise the other tests compare nothing.
func TestFFmpegLoopsTheClip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "looped.flv")
	r := runFor(t, waitTimeout, "ffmpeg", "-v", "error", "-nostdin", "-stream_loop", "2", "-i", file(t, clipFile), "-c", "copy", path)
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	looped := framesIn(path)
	clipSource(t).require(t, "looped file", looped, 1200, rules{})

	ffmpegSource(t, file(t, clipFile), packets, clipKeyEvery).require(t, "packets of the looped file", ffmpegFrames(t, path, 0, packets), 1200, rules{})
	ffmpegSource(t, file(t, clipFile), pictures, clipKeyEvery).require(t, "pictures of the looped file", ffmpegFrames(t, path, 0, pictures), 1200, rules{})

	other := file(t, otherFile)
	fileSource(t, other).require(t, "other clip", framesIn(other), 400, rules{})
	if _, err := clipSource(t).compare(framesIn(other), rules{anyTime: true}); err == nil {
		t.Error("the other clip passes for the clip")
	}
}
