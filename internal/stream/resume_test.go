package stream

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"weir/internal/media"
)

// source makes the tags of one encoder: a key frame every 10 frames, two audio
// frames for each video frame, all bodies different.
func source(t *testing.T, from, to int, base uint32) []media.Tag {
	t.Helper()
	tag := func(kind media.Kind, ms uint32, body string) media.Tag {
		g := media.NewTag(kind, ms, len(body))
		copy(g.Body(), body)
		return g
	}
	tags := []media.Tag{
		tag(media.Data, 0, "\x02\x00\x0aonMetaData rest"),
		tag(media.Video, 0, "\x17\x00\x00\x00\x00avcC"),
		tag(media.Audio, 0, "\xaf\x00asc"),
	}
	for n := from; n < to; n++ {
		ms := base + uint32(n)*40
		first := "\x27"
		if n%10 == 0 {
			first = "\x17"
		}
		tags = append(tags,
			tag(media.Video, ms, first+"\x01\x00\x00\x00"+fmt.Sprint("video ", n)),
			tag(media.Audio, ms+5, "\xaf\x01"+fmt.Sprint("audio ", n)),
			tag(media.Audio, ms+25, "\xaf\x01"+fmt.Sprint("audio ", n, " b")))
	}
	return tags
}

func frames(t *testing.T, c *Cursor) (bodies []string, times []uint32) {
	t.Helper()
	buf := make([]Entry, 16)
	for {
		r, err := c.Next(buf)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Entries) == 0 {
			return bodies, times
		}
		for _, e := range r.Entries {
			if !e.Info.IsHeader() {
				bodies = append(bodies, string(e.Tag.Body()))
				times = append(times, e.Tag.Time())
			}
		}
	}
}

// A relay loses its upstream after frame 27 (in the middle of an audio pair) and
// finds another one that begins at the key frame before it, with another clock.
func TestResumeGoesOnWithoutRepeatingFrames(t *testing.T) {
	s := New(Limits{MaxBytes: 1 << 20, MaxTime: time.Minute})
	reader := s.Join()
	p, _ := s.Publish()
	whole := source(t, 0, 28, 1000)
	for _, tag := range whole[:len(whole)-1] {
		if err := p.Append(tag); err != nil {
			t.Fatal(err)
		}
	}
	p.Resume()
	for _, tag := range source(t, 20, 40, 777000) {
		if err := p.Append(tag); err != nil {
			t.Fatal(err)
		}
	}

	got, times := frames(t, reader)
	var want []string
	var wantTimes []uint32
	for _, tag := range source(t, 0, 40, 1000)[3:] {
		want = append(want, string(tag.Body()))
		wantTimes = append(wantTimes, tag.Time())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("frames:\n got %q\nwant %q", got, want)
	}
	if fmt.Sprint(times) != fmt.Sprint(wantTimes) {
		t.Errorf("times:\n got %v\nwant %v", times, wantTimes)
	}
}

// The new source carries other frames: the timeline goes on, nothing is lost,
// and a reader that joins gets the new source's headers.
func TestResumeWithAnotherStreamIsARestart(t *testing.T) {
	s := New(Limits{MaxBytes: 1 << 20, MaxTime: time.Minute})
	reader := s.Join()
	p, _ := s.Publish()
	for _, tag := range source(t, 0, 10, 5000) {
		_ = p.Append(tag)
	}
	p.Resume()
	for _, tag := range source(t, 100, 110, 0) {
		_ = p.Append(tag)
	}
	got, times := frames(t, reader)
	if len(got) != 60 {
		t.Fatalf("%d frames, want all 60", len(got))
	}
	for i := 1; i < len(times); i++ {
		if d := int32(times[i] - times[i-1]); d < 0 || d > 100 {
			t.Errorf("frame %d: time goes from %d to %d", i, times[i-1], times[i])
		}
	}
	if n := s.Headers().Len(); n != 3 {
		t.Errorf("%d headers in force, want 3", n)
	}
}

// An audio-only stream is matched by its audio.
func TestResumeAudioOnly(t *testing.T) {
	s := New(Limits{MaxBytes: 1 << 20, MaxTime: time.Minute})
	reader := s.Join()
	p, _ := s.Publish()
	audio := func(from, to int, base uint32) (tags []media.Tag) {
		for _, tag := range source(t, from, to, base) {
			if tag.Kind() == media.Audio {
				tags = append(tags, tag)
			}
		}
		return tags
	}
	for _, tag := range audio(0, 10, 0) {
		_ = p.Append(tag)
	}
	p.Resume()
	for _, tag := range audio(7, 20, 900) {
		_ = p.Append(tag)
	}
	got, _ := frames(t, reader)
	if len(got) != 40 {
		t.Errorf("%d frames, want 40 without repetition: %q", len(got), got)
	}
}

// The next source begins with the very next key frame: nothing of it is in the log, and
// by its times it is the same stream, so the distance of the frames is kept. One whose
// times do not fit is another run.
func TestResumeFollowsByTime(t *testing.T) {
	f := func(from int, base uint32, want uint32) {
		t.Helper()
		s := New(Limits{MaxBytes: 1 << 20, MaxTime: time.Minute})
		reader := s.Join()
		p, _ := s.Publish()
		for _, tag := range source(t, 0, 30, 1000) { // the last video frame is at 2160, the last audio at 2185
			if err := p.Append(tag); err != nil {
				t.Fatal(err)
			}
		}
		p.Resume()
		for _, tag := range source(t, from, from+10, base) {
			if err := p.Append(tag); err != nil {
				t.Fatal(err)
			}
		}
		bodies, times := frames(t, reader)
		i := slices.Index(bodies, "\x17\x01\x00\x00\x00"+fmt.Sprint("video ", from))
		if i < 0 || times[i] != want || len(bodies) != 120 {
			t.Fatalf("frame %d of %d, at %v, want at %d", i, len(bodies), times[max(i, 0)], want)
		}
		for k := i + 1; k < len(times); k++ {
			if times[k] < times[k-1] {
				t.Errorf("the times go back behind frame %d: %v", i, times[i:])
			}
		}
	}
	f(30, 1000, 2200)      // the next one
	f(40, 1000, 2600)      // a part was lost
	f(50, 1000, 2185+step) // much was lost, or it is another stream
	f(30, 77000, 2185+step)
	f(30, 900, 2185+step) // before what is there
}

// Who carries a stream on joins at the newest key frame if that has been there for a
// moment, else at the one before, unless that is old or gone.
func TestJoinOverlapping(t *testing.T) {
	f := func(limit time.Duration, upTo, want int) {
		t.Helper()
		s := New(Limits{MaxBytes: 1 << 20, MaxTime: limit})
		p, _ := s.Publish()
		for _, tag := range source(t, 0, upTo, 0) { // a key frame in each 400 ms
			if err := p.Append(tag); err != nil {
				t.Fatal(err)
			}
		}
		bodies, _ := frames(t, s.JoinOverlapping())
		if want := fmt.Sprint("\x17\x01\x00\x00\x00video ", want); len(bodies) == 0 || bodies[0] != want {
			t.Errorf("up to %d: begins with %q, want %q", upTo, bodies, want)
		}
	}
	f(time.Minute, 21, 10) // 20 has just come
	f(time.Minute, 26, 10)
	f(time.Minute, 28, 20)
	f(time.Minute, 30, 20)
	f(time.Minute, 5, 0) // there is no other
	f(100*time.Millisecond, 21, 20)
	if c := New(DefaultLimits()).JoinOverlapping(); !c.seeking {
		t.Error("in an empty log it does not wait for the first")
	}
}

// A relay goes on from another log, which is a little behind and then goes on after a
// gap, at a key frame: by its times the relay's log would have what comes.
func TestResumeFromALogWithAGap(t *testing.T) {
	for _, audio := range []bool{false, true} {
		s := New(Limits{MaxBytes: 1 << 20, MaxTime: time.Minute})
		reader := s.Join()
		p, _ := s.Publish()
		add := func(tags []media.Tag) {
			t.Helper()
			for _, tag := range tags {
				if !audio && tag.Kind() == media.Audio {
					continue
				}
				if err := p.Append(tag); err != nil {
					t.Fatal(err)
				}
			}
		}
		add(source(t, 0, 28, 5000))
		p.Resume()
		add(source(t, 20, 24, 5000))
		// Frame 24 would have been next at 5960.
		add(source(t, 50, 60, 5960-50*40))
		bodies, times := frames(t, reader)
		var video []string
		for _, b := range bodies {
			if b[0] == 0x17 || b[0] == 0x27 {
				video = append(video, b[5:])
			}
		}
		if len(video) != 38 || video[27] != "video 27" || video[28] != "video 50" || video[37] != "video 59" {
			t.Errorf("audio %v: %q", audio, video)
		}
		for i := 1; i < len(times); i++ {
			if d := int32(times[i] - times[i-1]); d < -50 || d > 100 {
				t.Errorf("audio %v: time goes from %d to %d", audio, times[i-1], times[i])
			}
		}
	}
}
