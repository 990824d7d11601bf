package e2e

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"strings"
	"testing"

	"weir/internal/clip"
	"weir/internal/flv"
	"weir/internal/media"
)

// frame is one audio or video frame as a player saw it.
type frame struct {
	kind media.Kind
	time uint32 // decoding time in milliseconds
	key  bool
	sum  uint64 // of its body
}

var seed = maphash.MakeSeed()

// frameOf returns the frame in a tag; not ok for headers and data.
func frameOf(tag media.Tag) (f frame, ok bool) {
	info := media.Sniff(tag.Kind(), tag.Body())
	if tag.Kind() == media.Data || info.IsHeader() || info.Has(media.EndOfSequence) {
		return frame{}, false
	}
	return frame{kind: tag.Kind(), time: tag.Time(), key: info.IsKeyFrame(), sum: maphash.Bytes(seed, tag.Body())}, true
}

// readTags returns all tags of an FLV stream.
func readTags(r io.Reader) ([]media.Tag, error) {
	reader := flv.NewReader(r, 0)
	var tags []media.Tag
	for {
		tag, err := reader.ReadTag()
		if errors.Is(err, io.EOF) {
			return tags, nil
		}
		if err != nil {
			return tags, err
		}
		tags = append(tags, tag)
	}
}

func framesOf(tags []media.Tag) []frame {
	var frames []frame
	for _, tag := range tags {
		if f, ok := frameOf(tag); ok {
			frames = append(frames, f)
		}
	}
	return frames
}

// source is what was published: a file, round after round. Every body in it is
// unique among those of its kind, so a frame says where in the file it is from.
type source struct {
	frames map[media.Kind][]frame
	place  map[media.Kind]map[uint64]int
}

func newSource(frames []frame) (*source, error) {
	s := &source{frames: make(map[media.Kind][]frame), place: make(map[media.Kind]map[uint64]int)}
	for _, f := range frames {
		if s.place[f.kind] == nil {
			s.place[f.kind] = make(map[uint64]int)
		}
		if at, ok := s.place[f.kind][f.sum]; ok {
			return nil, fmt.Errorf("%v frame %d of the source is the same as frame %d", f.kind, len(s.frames[f.kind]), at)
		}
		s.place[f.kind][f.sum] = len(s.frames[f.kind])
		s.frames[f.kind] = append(s.frames[f.kind], f)
	}
	return s, nil
}

// clipSource is the source of whoever publishes the clip.
func clipSource(t testing.TB) *source {
	t.Helper()
	tags, err := readTags(clip.Reader())
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSource(framesOf(tags))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// rules say how far what was played may differ from what was published.
type rules struct {
	// jumps allows runs of missing or repeated frames, as after the loss of an
	// upstream; what follows a jump of the video must be a key frame, and time
	// never goes back.
	jumps bool
	// anyTime leaves out the comparison of times, for players that make their
	// own.
	anyTime bool
}

// seam is by how many milliseconds the distance of two frames may differ from
// the published one where one round of the source ends and the next begins:
// encoders that loop a file guess the length of its last frame.
const seam = 200

// compare checks that what was played is a run of what was published: every
// frame unchanged, the next one following in order, none missing, none twice,
// at the distance in time that it was published at; the video begins with a key
// frame. It returns the number of jumps in the video, which is 0 unless they
// are allowed.
func (s *source) compare(frames []frame, r rules) (jumps int, err error) {
	type state struct {
		at   int
		time uint32
		seen bool
	}
	states := map[media.Kind]*state{media.Audio: {}, media.Video: {}}
	for n, f := range frames {
		st := states[f.kind]
		at, ok := s.place[f.kind][f.sum]
		if !ok {
			return jumps, fmt.Errorf("%v frame at %d ms (frame %d of all) was never published", f.kind, f.time, n)
		}
		all := s.frames[f.kind]
		switch {
		case !st.seen:
			if f.kind == media.Video && !f.key {
				return jumps, fmt.Errorf("the video begins with frame %d, which is no key frame", at)
			}
		case !r.anyTime && int32(f.time-st.time) <= 0:
			return jumps, fmt.Errorf("%v frame %d at %d ms comes after frame %d at %d ms", f.kind, at, f.time, st.at, st.time)
		case at != (st.at+1)%len(all):
			if !r.jumps {
				return jumps, fmt.Errorf("%v frame %d (of %d) at %d ms follows frame %d at %d ms", f.kind, at, len(all), f.time, st.at, st.time)
			}
			if f.kind == media.Video {
				if !f.key {
					return jumps, fmt.Errorf("video frame %d follows frame %d and is no key frame", at, st.at)
				}
				jumps++
			}
		case !r.anyTime && !r.jumps:
			got, want, tolerance := f.time-st.time, all[at].time-all[st.at].time, uint32(1)
			if at == 0 {
				want, tolerance = f.time-st.time, 0
				if got > seam {
					return jumps, fmt.Errorf("%v frame 0 comes %d ms after the last of the round before", f.kind, got)
				}
			}
			if got+tolerance-want > 2*tolerance {
				return jumps, fmt.Errorf("%v frame %d comes %d ms after frame %d, published %d ms after it", f.kind, at, got, st.at, want)
			}
		}
		*st = state{at: at, time: f.time, seen: true}
	}
	return jumps, nil
}

// require fails the test unless frames are a run of the source with at least
// minVideo video frames and, if the source has audio, audio beside them.
func (s *source) require(t testing.TB, who string, frames []frame, minVideo int, r rules) (jumps int) {
	t.Helper()
	jumps, err := s.compare(frames, r)
	if err != nil {
		t.Errorf("%s: %v", who, err)
	}
	video, audio := count(frames, media.Video), count(frames, media.Audio)
	if video < minVideo {
		t.Errorf("%s: %d video frames, want at least %d", who, video, minVideo)
	}
	if wantAudio := video * len(s.frames[media.Audio]) / max(1, len(s.frames[media.Video])) / 2; audio < wantAudio {
		t.Errorf("%s: %d audio frames beside %d video frames, want at least %d", who, audio, video, wantAudio)
	}
	return jumps
}

func count(frames []frame, kind media.Kind) int {
	n := 0
	for _, f := range frames {
		if f.kind == kind {
			n++
		}
	}
	return n
}

// The comparison carries the other tests, so it has to be able to fail.
func TestCompare(t *testing.T) {
	s := clipSource(t)
	tags, err := readTags(clip.Reader())
	if err != nil {
		t.Fatal(err)
	}
	round := uint32(clip.Duration.Milliseconds())
	// Three rounds, from the key frame at 14 s of the first one on.
	looped := func() []frame {
		var frames []frame
		for n := range uint32(3) {
			for _, f := range framesOf(tags) {
				f.time += n * round
				if f.time >= 14_000 {
					frames = append(frames, f)
				}
			}
		}
		return frames
	}
	video := func(frames []frame, n int) int { // place of the n-th video frame
		for i, f := range frames {
			if f.kind == media.Video {
				if n == 0 {
					return i
				}
				n--
			}
		}
		t.Fatal("too few frames")
		return 0
	}
	cut := func(frames []frame, from, to int) []frame { return append(frames[:from:from], frames[to:]...) }

	f := func(name string, frames []frame, r rules, wantJumps int, wantErr string) {
		t.Helper()
		jumps, err := s.compare(frames, r)
		if wantErr == "" && err != nil || wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)) {
			t.Errorf("%s: error %v, want %q", name, err, wantErr)
		}
		if err == nil && jumps != wantJumps {
			t.Errorf("%s: %d jumps, want %d", name, jumps, wantJumps)
		}
	}
	f("whole", looped(), rules{}, 0, "")
	f("nothing", nil, rules{}, 0, "")

	frames := looped()
	i := video(frames, 30)
	f("lost frame", cut(frames, i, i+1), rules{}, 0, "follows frame")
	f("lost frame, jumps allowed", cut(frames, i, i+1), rules{jumps: true}, 0, "is no key frame")
	f("lost run", cut(frames, i, video(frames, 100)), rules{jumps: true}, 1, "")
	f("lost run, no jumps allowed", cut(frames, i, video(frames, 100)), rules{}, 0, "follows frame")

	frames = looped()
	f("no key frame first", frames[video(frames, 3):], rules{}, 0, "begins with frame")

	frames = looped()
	frames[i].sum++
	f("changed frame", frames, rules{jumps: true, anyTime: true}, 0, "never published")

	frames = looped()
	a, b := video(frames, 30), video(frames, 31)
	frames[a], frames[b] = frames[b], frames[a]
	f("exchanged frames", frames, rules{anyTime: true}, 0, "follows frame")

	frames = looped()
	f("frame twice", append(frames[:i+1:i+1], frames[i:]...), rules{}, 0, "comes after frame")
	f("frame twice, own times", append(frames[:i+1:i+1], frames[i:]...), rules{anyTime: true}, 0, "follows frame")

	frames = looped()
	frames[i].time += 5
	f("late frame", frames, rules{}, 0, "published 40 ms after it")
	frames[i].time = 100
	f("time goes back", frames, rules{jumps: true}, 0, "comes after frame")

	frames = looped()
	for j := range frames {
		frames[j].time += 1<<32 - 20_000 // wraps in the second round
	}
	f("32-bit wrap", frames, rules{}, 0, "")

	if _, err := newSource(append(looped(), looped()...)); err == nil {
		t.Error("a source with equal frames was accepted")
	}
}
