package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/internal/media"
)

// A script is tags in short: a letter, a number that makes the body its own, and
// the source's time. Letters: K key frame, P inter frame, A audio frame,
// V video header, C audio header (codec configuration), M metadata, E end of the
// video sequence; k and p are frames of track 1, v its header.
var openings = map[byte]struct {
	kind media.Kind
	body string
}{
	'K': {media.Video, "\x17\x01\x00\x00\x00"},
	'P': {media.Video, "\x27\x01\x00\x00\x00"},
	'V': {media.Video, "\x17\x00\x00\x00\x00"},
	'E': {media.Video, "\x17\x02\x00\x00\x00"},
	'A': {media.Audio, "\xaf\x01"},
	'C': {media.Audio, "\xaf\x00"},
	'M': {media.Data, "\x02\x00\x0aonMetaData"},
	'k': {media.Video, "\x96\x01avc1\x01"},
	'p': {media.Video, "\xa6\x01avc1\x01"},
	'v': {media.Video, "\x96\x00avc1\x01"},
}

func makeTag(name string, ms uint32, pad int) media.Tag {
	o, ok := openings[name[0]]
	if !ok {
		panic("no such tag: " + name)
	}
	body := o.body + "|" + name + "|" + strings.Repeat(".", pad)
	t := media.NewTag(o.kind, ms, len(body))
	copy(t.Body(), body)
	return t
}

// nameOf is the inverse of makeTag.
func nameOf(t media.Tag) string {
	return strings.Split(string(t.Body()), "|")[1]
}

// feed appends a script such as "V1@0 K1@0 P2@40".
func feed(t *testing.T, p *Publisher, script string) {
	t.Helper()
	for _, word := range strings.Fields(script) {
		name, at, _ := strings.Cut(word, "@")
		var ms uint32
		if _, err := fmt.Sscan(at, &ms); err != nil {
			t.Fatalf("%q: %v", word, err)
		}
		if err := p.Append(makeTag(name, ms, 0)); err != nil {
			t.Fatalf("append %s: %v", word, err)
		}
	}
}

// read returns what a cursor has to give as a script; a run's headers stand in
// brackets, and the error at the end, if any, is returned.
func read(c *Cursor, atATime int) (string, error) {
	var words []string
	buf := make([]Entry, atATime)
	for {
		r, err := c.Next(buf)
		if r.Headers != nil {
			var h []string
			for n := range r.Headers.Len() {
				h = append(h, nameOf(r.Headers.Tag(n)))
			}
			words = append(words, fmt.Sprint(h))
		}
		for _, e := range r.Entries {
			words = append(words, fmt.Sprint(nameOf(e.Tag), "@", e.Tag.Time()))
		}
		if err != nil || len(r.Entries) == 0 {
			return strings.Join(words, " "), err
		}
	}
}

func reads(t *testing.T, c *Cursor, want string) {
	t.Helper()
	got, err := read(c, 3)
	if err != nil {
		t.Errorf("read: %v", err)
	}
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

func start(t *testing.T, limits Limits) (*Stream, *Publisher) {
	t.Helper()
	s := New(limits)
	p, err := s.Publish()
	if err != nil {
		t.Fatal(err)
	}
	return s, p
}

var roomy = Limits{MaxBytes: 1 << 20, MaxTime: 5 * time.Second}

// The four traps of the design, section 4.

func TestTrap1JoinerGetsTheHeadersOfItsEntry(t *testing.T) {
	s, p := start(t, roomy)
	feed(t, p, "M1@0 V1@0 C1@0 K1@0 A1@5 P2@40")
	early := s.Join()
	// The publisher changes its resolution; the next key frame is still to come.
	feed(t, p, "V2@80 C2@80 P3@80")
	late := s.Join()
	reads(t, early, "[M1 V1 C1] K1@0 A1@5 P2@40 V2@80 C2@80 P3@80")
	reads(t, late, "[M1 V1 C1] K1@0 A1@5 P2@40 V2@80 C2@80 P3@80")
	feed(t, p, "K4@120")
	reads(t, early, "K4@120")
	reads(t, s.Join(), "[M1 V2 C2] K4@120")
	if got := nameOf(s.Headers().Find(media.Video)); got != "V2" {
		t.Errorf("headers in force have %s, want V2", got)
	}
}

func TestTrap2AudioOnlyJoinMarkMovesWithEveryFrame(t *testing.T) {
	s, p := start(t, roomy)
	feed(t, p, "M1@0 C1@0")
	if s.Joinable() {
		t.Error("joinable without a frame")
	}
	waiting := s.Join()
	for n := range 100 {
		feed(t, p, fmt.Sprintf("A%d@%d", n, n*23))
		reads(t, s.Join(), fmt.Sprintf("[M1 C1] A%d@%d", n, n*23))
	}
	got, _ := read(waiting, 7)
	if !strings.HasPrefix(got, "[M1 C1] A0@0 A1@23 ") || !strings.HasSuffix(got, " A99@2277") {
		t.Errorf("a reader from the start got %s", got)
	}
}

func TestTrap3ClosedStreamGivesItsRestThenTheCause(t *testing.T) {
	s, p := start(t, roomy)
	feed(t, p, "V1@0 K1@0 P2@40")
	present := s.Join()
	cause := errors.New("publisher left")
	s.Close(cause)
	s.Close(errors.New("second call"))
	feedErr := p.Append(makeTag("P3", 80, 0))
	if !errors.Is(feedErr, cause) {
		t.Errorf("append to a closed stream: %v", feedErr)
	}
	for name, c := range map[string]*Cursor{"present reader": present, "joiner of a corpse": s.Join()} {
		if got, err := read(c, 2); got != "[V1] K1@0 P2@40" || !errors.Is(err, cause) {
			t.Errorf("%s: %q and %v", name, got, err)
		}
		if _, err := c.Next(make([]Entry, 1)); !errors.Is(err, cause) {
			t.Errorf("%s again: %v", name, err)
		}
	}
	if _, err := s.Publish(); !errors.Is(err, cause) {
		t.Errorf("publish to a closed stream: %v", err)
	}

	// A stream that never had a frame: its waiting readers end too.
	s, p = start(t, roomy)
	c := s.Join()
	feed(t, p, "V1@0")
	s.Close(nil)
	for name, c := range map[string]*Cursor{"waiting": c, "late": s.Join()} {
		if got, err := read(c, 2); got != "" || !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %q and %v", name, got, err)
		}
	}
}

func TestTrap4FirstPlayerBeforeThePublisherGetsEverything(t *testing.T) {
	s := New(roomy)
	c := s.Join()
	if got, err := read(c, 1); got != "" || err != nil {
		t.Errorf("before the publisher: %q, %v", got, err)
	}
	p, _ := s.Publish()
	feed(t, p, "M1@0 V1@0 C1@0 A1@0 P1@10") // a source that starts in mid-picture
	reads(t, c, "")
	feed(t, p, "K2@50 A2@55 P3@90 K4@130 P5@170")
	reads(t, c, "[M1 V1 C1] K2@50 A2@55 P3@90 K4@130 P5@170")
	if c.Skipped() != 0 {
		t.Errorf("skipped %d, but nothing was lost", c.Skipped())
	}
}

// Join points.

func TestSeveralTracksJoinAtTheMainOne(t *testing.T) {
	s, p := start(t, roomy)
	feed(t, p, "V1@0 v1@0 K1@0 k1@0 P2@40 p2@40")
	reads(t, s.Join(), "[V1 v1] K1@0 k1@0 P2@40 p2@40")
	feed(t, p, "E9@80 k3@80") // the main track ends: the other one takes its place
	reads(t, s.Join(), "[V1 v1] k3@80")
}

func TestVideoThatStopsLeavesAnAudioStream(t *testing.T) {
	s, p := start(t, roomy)
	feed(t, p, "V1@0 C1@0 K1@0")
	old := s.Join()
	reads(t, old, "[V1 C1] K1@0")
	for n := range 3000 {
		feed(t, p, fmt.Sprintf("A%d@%d", n, n*20))
	}
	reads(t, s.Join(), "[V1 C1] A2999@59980")
	if got := s.Stats().LogTime; got > 6*time.Second {
		t.Errorf("the log is kept for %v from the last key frame on", got)
	}
	if _, err := read(old, 100); err != nil || old.Skipped() == 0 {
		t.Errorf("reader from the start: %v, skipped %d", err, old.Skipped())
	}
	feed(t, p, "P2@60000 A1@60000")
	reads(t, s.Join(), "[V1 C1] A2999@59980 P2@60000 A1@60000")
	feed(t, p, "K3@60040 A2@60040")
	reads(t, s.Join(), "[V1 C1] K3@60040 A2@60040")
}

func TestAnnouncedVideoThatNeverComes(t *testing.T) {
	for _, base := range []int{0, 3000000000} { // headers often come with time 0 before frames of a far clock
		s, p := start(t, roomy)
		feed(t, p, "V1@0 C1@0")
		c := s.Join()
		for n := range 400 {
			feed(t, p, fmt.Sprintf("A%d@%d", n, base+n*20))
		}
		if s.Joinable() {
			t.Errorf("base %d: joinable after 8 s of audio", base)
		}
		for n := 400; n < 700; n++ {
			feed(t, p, fmt.Sprintf("A%d@%d", n, base+n*20))
		}
		if got, _ := read(c, 10); !strings.HasPrefix(got, "[V1 C1] A5") {
			t.Errorf("base %d: the waiting reader got %.40q", base, got)
		}
	}
}

func TestMalformedTagsStartNothing(t *testing.T) {
	s, p := start(t, roomy)
	feed(t, p, "C1@0")
	for _, kind := range []media.Kind{media.Video, media.Audio} {
		if err := p.Append(media.NewTag(kind, 0, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if s.Joinable() {
		t.Error("an empty tag is a join point")
	}
	feed(t, p, "A1@10") // and an empty video message makes no video stream
	reads(t, s.Join(), "[C1] A1@10")
}

// Limits.

func TestLogIsBoundedByTime(t *testing.T) {
	s, p := start(t, Limits{MaxBytes: 1 << 20, MaxTime: time.Second})
	feed(t, p, "V1@0")
	for n := range 500 {
		feed(t, p, fmt.Sprintf("%c%d@%d", "KPPPP"[n%5], n, n*40))
	}
	if got := s.Stats().LogTime; got != time.Second {
		t.Errorf("the log covers %v, want 1s", got)
	}
	// One long group of pictures is kept from its key frame on.
	feed(t, p, "K0@20000")
	for n := 1; n < 200; n++ {
		feed(t, p, fmt.Sprintf("P%d@%d", n, 20000+n*40))
	}
	if got := s.Stats().LogTime; got != 199*40*time.Millisecond {
		t.Errorf("the log covers %v, want the whole group of 7.96s", got)
	}
}

func TestHeadersFromAnotherClockDoNotHoldTheLog(t *testing.T) {
	for _, header := range []uint32{0, 2999900000, 100000000} {
		s, p := start(t, Limits{MaxBytes: 1 << 20, MaxTime: time.Second})
		feed(t, p, fmt.Sprintf("V1@%d", header))
		for n := range 500 {
			feed(t, p, fmt.Sprintf("%c%d@%d", "KPPPP"[n%5], n, 3000000000+n*40))
		}
		if got := s.next - s.head; got > 30 {
			t.Errorf("header at %d: %d entries in a log of one second", header, got)
		}
	}
}

func TestLogIsBoundedByBytesWithAllItHolds(t *testing.T) {
	f := func(name string, maxBytes int64, count int, tags func(n int) media.Tag) {
		t.Helper()
		s, p := start(t, Limits{MaxBytes: maxBytes, MaxTime: time.Hour})
		for n := range count {
			if err := p.Append(tags(n)); err != nil {
				t.Fatal(err)
			}
			if got := s.Stats().LogBytes; got > maxBytes && s.head < s.next {
				t.Fatalf("%s: after tag %d the log holds %d of %d bytes", name, n, got, maxBytes)
			}
			real := int64(len(s.ring)) * entryCost
			for at := s.head; at < s.next; at++ {
				if n%100 != 0 {
					break
				}
				e := &s.ring[at&uint64(len(s.ring)-1)]
				real += int64(cap(e.Tag))
				if e.Info.IsHeader() {
					real += e.Headers.cost()
				}
			}
			if n%100 == 0 && real != s.cost {
				t.Fatalf("%s: counted %d, there are %d", name, s.cost, real)
			}
		}
	}
	tiny := func(n int) media.Tag { return makeTag(fmt.Sprint("P", n), uint32(n), 0) }
	f("tiny tags", 200<<10, 6000, tiny)
	f("big tags", 1<<20, 300, func(n int) media.Tag { return makeTag(fmt.Sprint("P", n), uint32(n), 100<<10) })
	f("tiny, then big", 1<<20, 6000, func(n int) media.Tag {
		if n > 5500 {
			return makeTag(fmt.Sprint("P", n), uint32(n), 20<<10)
		}
		return tiny(n)
	})
	f("headers only", 1<<20, 6000, func(n int) media.Tag { return makeTag(fmt.Sprint("V", n), uint32(n), 0) })
	f("each over the limit", 10<<10, 300, func(n int) media.Tag { return makeTag(fmt.Sprint("K", n), uint32(n), 20<<10) })
}

func TestRingShrinksAfterAFlood(t *testing.T) {
	s, p := start(t, Limits{MaxBytes: 32 << 20, MaxTime: time.Second})
	feed(t, p, "K0@0")
	for n := range 50000 {
		feed(t, p, fmt.Sprintf("P%d@0", n))
	}
	feed(t, p, "K0@5000")
	for n := range 300 {
		feed(t, p, fmt.Sprintf("%c%d@%d", "KPPPP"[n%5], n, 6000+n*40))
	}
	if len(s.ring) > 256 {
		t.Errorf("a ring of %d for %d entries", len(s.ring), s.next-s.head)
	}
}

// Headers are kept outside of the log's bound, so they have one of their own.
func TestHeadersAreBounded(t *testing.T) {
	s, p := start(t, Limits{MaxBytes: 1 << 20, MaxTime: time.Second})
	for n := range 300 {
		body := fmt.Sprintf("\x96\x00avc1%c|v%d|%s", byte(n), n, strings.Repeat(".", 50<<10))
		tag := media.NewTag(media.Video, 0, len(body))
		copy(tag.Body(), body)
		if err := p.Append(tag); err != nil {
			t.Fatal(err)
		}
	}
	size := 0
	for n := range s.Headers().Len() {
		size += len(s.Headers().Tag(n))
	}
	if s.Headers().Len() == 0 || s.Headers().Len() > maxHeaders || size > maxHeaderBytes {
		t.Errorf("%d headers of %d bytes", s.Headers().Len(), size)
	}
}

func TestGroupLargerThanTheLog(t *testing.T) {
	s, p := start(t, Limits{MaxBytes: 64 << 10, MaxTime: time.Hour})
	feed(t, p, "V1@0 K1@0")
	present := s.Join()
	reads(t, present, "[V1] K1@0")
	want := 0
	for n := range 200 {
		if err := p.Append(makeTag(fmt.Sprint("P", n), uint32(n*40), 1000)); err != nil {
			t.Fatal(err)
		}
		if got, _ := read(present, 10); got != fmt.Sprintf("P%d@%d", n, n*40) {
			t.Fatalf("a reader that keeps up got %q", got)
		}
		want++
	}
	if s.Joinable() {
		t.Fatal("the key frame is still there: the test does not test")
	}
	joiner, slow := s.Join(), present
	reads(t, joiner, "")
	if !joiner.Seeking() || slow.Seeking() {
		t.Errorf("seeking: the joiner %v, the reader that keeps up %v", joiner.Seeking(), slow.Seeking())
	}
	// Nowhere to jump to: a reader that is behind stays in its place.
	feed(t, p, "P1000@8000 P1001@8040")
	if n := slow.Jump(); n != 0 {
		t.Errorf("jumped over %d entries without a join point ahead", n)
	}
	reads(t, slow, "P1000@8000 P1001@8040")
	// Until its place is gone; then it waits, and what it loses is counted.
	for n := range 200 {
		_ = p.Append(makeTag(fmt.Sprint("P", n), uint32(8080+n*40), 1000))
	}
	reads(t, slow, "")
	if !slow.Seeking() {
		t.Error("a reader whose place is gone does not wait for a join point")
	}
	feed(t, p, "P1002@16080 P1003@16120 K2@16160")
	reads(t, joiner, "[V1] K2@16160")
	reads(t, slow, "K2@16160")
	if joiner.Seeking() || slow.Seeking() {
		t.Error("seeking goes on behind the join point")
	}
	if slow.Skipped() != 202 {
		t.Errorf("skipped %d, want 202", slow.Skipped())
	}
	if joiner.Skipped() != 0 {
		t.Errorf("the joiner skipped %d, but nothing was promised to it", joiner.Skipped())
	}
}

// A cursor on the tail has the headers in force: it gets what comes, as it comes.
func TestTail(t *testing.T) {
	s, p := start(t, roomy)
	first := s.Tail()
	feed(t, p, "V1@0 K1@0 V2@40")
	tail := s.Tail()
	if tail.Seq() != 3 || tail.Seeking() {
		t.Errorf("at %d, seeking %v", tail.Seq(), tail.Seeking())
	}
	feed(t, p, "P1@40 V3@80 K2@80")
	reads(t, tail, "P1@40 V3@80 K2@80")
	reads(t, first, "V1@0 K1@0 V2@40 P1@40 V3@80 K2@80")
}

// Readers that fall behind.

func TestSlowReaderJumpsToTheNewestKeyFrameWithItsHeaders(t *testing.T) {
	s, p := start(t, Limits{MaxBytes: 1 << 20, MaxTime: 200 * time.Millisecond})
	feed(t, p, "M1@0 V1@0 K1@0 P2@40")
	c := s.Join()
	if r, err := c.Next(make([]Entry, 1)); err != nil || len(r.Entries) != 1 {
		t.Fatal(r, err)
	}
	feed(t, p, "V2@80 K3@80 P4@120 P5@160 K6@200 P7@240 V3@280 K8@280 P9@320 P10@480")
	// Of K1 P2 V2 K3 ... the reader has K1; V2 came between, K8 is the newest.
	reads(t, c, "[M1 V3] K8@280 P9@320 P10@480")
	if c.Skipped() != 8 {
		t.Errorf("skipped %d, want the 8 from P2 to V3", c.Skipped())
	}
}

func TestJump(t *testing.T) {
	s, p := start(t, roomy)
	feed(t, p, "V1@0 K1@0 P2@40 P3@80")
	c := s.Join()
	if n := c.Jump(); n != 0 {
		t.Errorf("jump from the newest join point: %d", n)
	}
	_, _ = c.Next(make([]Entry, 1))
	if n := c.Jump(); n != 0 {
		t.Errorf("jump without a join point ahead: %d", n)
	}
	feed(t, p, "V1@120 K4@120 P5@160")
	if entries, ms := c.Behind(); entries != 5 || ms != 120 {
		t.Errorf("behind by %d entries and %d ms, want 5 and 120", entries, ms)
	}
	if n := c.Jump(); n != 3 {
		t.Errorf("jumped over %d entries, want 3", n)
	}
	reads(t, c, "K4@120 P5@160") // the same headers are not sent twice
	if entries, ms := c.Behind(); entries != 0 || ms != 0 || c.Skipped() != 3 {
		t.Errorf("behind by %d entries and %d ms, skipped %d", entries, ms, c.Skipped())
	}
	waiting := New(roomy).Join()
	if n := waiting.Jump(); n != 0 {
		t.Errorf("jump while waiting: %d", n)
	}
}

func TestEmptyBufferLosesNothing(t *testing.T) {
	s, p := start(t, roomy)
	feed(t, p, "V1@0 K1@0")
	c := s.Join()
	if r, err := c.Next(nil); err != nil || r.Headers != nil || len(r.Entries) != 0 {
		t.Errorf("got %+v, %v", r, err)
	}
	reads(t, c, "[V1] K1@0")
}

func TestHeaderChangeInMidStream(t *testing.T) {
	s, p := start(t, roomy)
	feed(t, p, "M1@0 C1@0 V1@0 K1@0")
	c := s.Join()
	reads(t, c, "[M1 V1 C1] K1@0") // video before audio, whatever the order of sending
	feed(t, p, "V2@40 K2@40 C1@60 M2@80 K3@80")
	reads(t, c, "V2@40 K2@40 C1@60 M2@80 K3@80") // in their places, not twice
	reads(t, s.Join(), "[M2 V2 C1] K3@80")
	at := s.Headers().At(12345)
	if len(at) != 3 || at[0].Time() != 0 || at[1].Time() != 12345 || nameOf(at[1]) != "V2" {
		t.Errorf("headers at 12345: %v", at)
	}
	if s.Headers().Tag(0).Time() == 12345 {
		t.Error("At changed the headers themselves")
	}
}

// Colour information is in force until the next one: a joiner needs it too.
func TestColourInformationIsAHeader(t *testing.T) {
	s, p := start(t, roomy)
	for _, body := range []string{"\x94hvc1|colour|", "\x90hvc1|V|", "\x91hvc1|K1|", "\x90hvc1|V2|", "\x91hvc1|K2|"} {
		tag := media.NewTag(media.Video, 0, len(body))
		copy(tag.Body(), body)
		if err := p.Append(tag); err != nil {
			t.Fatal(err)
		}
	}
	reads(t, s.Join(), "[V2 colour] K2@0")
	if got := nameOf(s.Headers().Find(media.Video)); got != "V2" {
		t.Errorf("the video header is %s, want V2", got)
	}
}

// Publishers.

func TestOnePublisherAtATime(t *testing.T) {
	s, first := start(t, roomy)
	if _, err := s.Publish(); !errors.Is(err, ErrBusy) {
		t.Errorf("second publisher: %v", err)
	}
	feed(t, first, "V1@0 C1@0 K1@0")
	c := s.Join()
	first.Close()
	first.Close()
	if err := first.Append(makeTag("P2", 40, 0)); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	second, err := s.Publish()
	if err != nil {
		t.Fatal(err)
	}
	first.Close()   // no longer its own
	first.Restart() // likewise
	first.Resume()
	feed(t, second, "V2@900000 K2@900000 P3@900040")
	// The reader stays and sees one timeline; the old audio header is gone.
	reads(t, c, "[V1 C1] K1@0 V2@0 K2@33 P3@73")
	reads(t, s.Join(), "[V2] K2@33 P3@73")
	if !s.Stats().Publishing {
		t.Error("no publisher")
	}
}

func TestRestartBetweenPublishersOfDifferentKinds(t *testing.T) {
	s, p := start(t, roomy)
	feed(t, p, "V1@0 K1@0 A1@10")
	p.Restart()
	feed(t, p, "C1@0 A2@0 A3@20") // the new source has no video
	reads(t, s.Join(), "[C1] A3@63")
}

func TestResumeWithASourceThatLostItsVideo(t *testing.T) {
	s, p := start(t, roomy)
	feed(t, p, "V1@0 C1@0 K1@0 A1@10")
	c := s.Join()
	p.Resume()
	feed(t, p, "C2@0")
	for n := range 300 {
		feed(t, p, fmt.Sprintf("A%d@%d", n+10, n*20))
	}
	if got, _ := read(c, 10); !strings.Contains(got, " A309@") {
		t.Errorf("the players never get the new source: %s", got)
	}
}

func TestStats(t *testing.T) {
	s, p := start(t, roomy)
	feed(t, p, "V1@0 K1@0 P2@40 K3@80")
	st := s.Stats()
	if st.TagsIn != 4 || st.KeyFrames != 2 || st.LastTime != 80 || st.LogTime != 80*time.Millisecond || !st.Publishing {
		t.Errorf("%+v", st)
	}
	if want := uint64(4*len(makeTag("V1", 0, 0)) + 0); st.BytesIn != want {
		t.Errorf("%d bytes in, want %d", st.BytesIn, want)
	}
}

// Waking.

func TestOneChannelForManyStreams(t *testing.T) {
	w := make(chan struct{}, 1)
	told := func() bool {
		select {
		case <-w:
			return true
		default:
			return false
		}
	}
	a, pa := start(t, roomy)
	b, pb := start(t, roomy)
	a.Subscribe(w)
	b.Subscribe(w)
	if told() {
		t.Error("told without an append")
	}
	feed(t, pa, "A1@0 A2@0 A3@0") // never waits for the reader
	if !told() || told() {
		t.Error("want to be told once")
	}
	feed(t, pb, "A1@0")
	if !told() {
		t.Error("not told of the second stream")
	}
	a.Unsubscribe(w)
	a.Unsubscribe(w)
	feed(t, pa, "A4@0")
	if told() {
		t.Error("told after Unsubscribe")
	}
	b.Close(nil)
	if !told() {
		t.Error("not told of the end")
	}

	// Two subscriptions of one channel need two ends.
	a.Subscribe(w)
	a.Subscribe(w)
	a.Unsubscribe(w)
	feed(t, pa, "A5@0")
	if !told() {
		t.Error("one Unsubscribe ended two subscriptions")
	}
}

// Costs.

// steady returns a publisher on a log in its steady state with tags for n more
// appends, one key frame in 50.
func steady(tb testing.TB, n int) (*Stream, *Publisher, []media.Tag) {
	tb.Helper()
	s := New(Limits{MaxBytes: 4 << 20, MaxTime: 2 * time.Second, MinTime: time.Second})
	p, _ := s.Publish()
	tags := make([]media.Tag, 2000+n)
	for i := range tags {
		name := "P1"
		if i%50 == 0 {
			name = "K1"
		}
		tags[i] = makeTag(name, uint32(i*20), 10)
	}
	for _, t := range tags[:2000] {
		_ = p.Append(t)
	}
	return s, p, tags[2000:]
}

func TestAppendAndNextDoNotAllocate(t *testing.T) {
	const runs = 200
	for _, stuck := range []int{0, 1, 100} { // readers that hold their places
		s, p, tags := steady(t, again*(runs+1))
		w := make(chan struct{}, 1)
		s.Subscribe(w)
		c, buf, n := s.Join(), make([]Entry, 256), 0
		c.Hold()
		for range stuck {
			s.Join().Hold()
		}
		_, _ = c.Next(buf)
		got := testing.AllocsPerRun(runs, func() {
			for range again { // in one of them it is looked where readers are
				_ = p.Append(tags[n])
				n++
				if r, err := c.Next(buf); err != nil || len(r.Entries) != 1 {
					t.Fatal(r, err)
				}
			}
		})
		if got != 0 {
			t.Errorf("%d are stuck: %v allocations per %d times append and next", stuck, got, again)
		}
	}
}

func BenchmarkAppendNext(b *testing.B) {
	for _, cursors := range []int{1, 1000} {
		b.Run(fmt.Sprint(cursors, "cursors"), func(b *testing.B) {
			s, p, _ := steady(b, 0)
			tags := make([]media.Tag, 5000) // more than the log holds, so that none is in it when it comes again
			for i := range tags {
				tags[i] = makeTag([]string{"K1", "P1"}[min(i%50, 1)], 0, 1000)
			}
			readers := make([]*Cursor, cursors)
			buf := make([]Entry, 64)
			for i := range readers {
				readers[i] = s.Join()
				readers[i].Hold()
				for r, _ := readers[i].Next(buf); len(r.Entries) > 0; r, _ = readers[i].Next(buf) {
				}
			}
			b.ReportAllocs()
			ms, n := uint32(40000), 0
			for b.Loop() {
				t := tags[n%len(tags)]
				t.SetTime(ms)
				ms, n = ms+20, n+1
				_ = p.Append(t)
				for _, c := range readers {
					if r, _ := c.Next(buf); len(r.Entries) != 1 {
						b.Fatal(len(r.Entries))
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*cursors), "ns/next")
		})
	}
}

// One publisher, many readers of different speeds, players that come, jump and
// go: every byte that a reader gets is what was appended, and does not change while it
// has it, although the memory of tags is used again.
func TestConcurrentReadersSeeWhatWasAppended(t *testing.T) {
	const total, readers = 20000, 16
	s := New(Limits{MaxBytes: 256 << 10, MaxTime: 400 * time.Millisecond, MinTime: 150 * time.Millisecond})
	p, _ := s.Publish()
	var slab media.Slab
	p.Recycle(slab.Gone)
	body := func(n uint32) []byte {
		b := make([]byte, 5+4+int(n%97))
		copy(b, "\x27\x01\x00\x00\x00")
		if n%25 == 0 {
			b[0] = 0x17
		}
		binary.BigEndian.PutUint32(b[5:], n)
		for i := 9; i < len(b); i++ {
			b[i] = byte(n + uint32(i))
		}
		return b
	}
	var all sync.WaitGroup
	failed := make(chan string, readers)
	for id := range readers {
		w := make(chan struct{}, 1)
		s.Subscribe(w)
		all.Go(func() {
			defer s.Unsubscribe(w)
			c, buf := s.Join(), make([]Entry, 1+id*3)
			defer c.LetGo()
			last, runs := uint32(0), 0
			for {
				r, err := c.Next(buf)
				if err != nil {
					if runs == 0 || last != total-1 {
						failed <- fmt.Sprintf("reader %d ended at %d after %d runs", id, last, runs)
					}
					return
				}
				for i, e := range r.Entries {
					n := binary.BigEndian.Uint32(e.Tag.Body()[5:])
					jumped := i == 0 && (runs == 0 || (n > last && n%25 == 0))
					if (!jumped && n != last+1) || string(e.Tag.Body()) != string(body(n)) || e.Tag.Time() != n*4 {
						failed <- fmt.Sprintf("reader %d: entry %d at %d after %d", id, n, e.Tag.Time(), last)
						return
					}
					last = n
				}
				c.Release()
				switch runs%20 + id%2 {
				case 5:
					c.Hold()
				case 15:
					c.LetGo()
				}
				switch runs++; {
				case len(r.Entries) == 0:
					runs--
					<-w
				case runs%50 == 0 && id%3 == 1:
					c.Jump()
				case runs%50 == 0 && id%3 == 2:
					c.Behind()
					s.Stats()
				}
			}
		})
	}
	for n := range uint32(total) {
		b := body(n)
		tag := media.Tag(slab.Make(media.TagOverhead + len(b)))
		tag.Init(media.Video, n*4)
		copy(tag.Body(), b)
		if err := p.Append(tag); err != nil {
			t.Error(err)
			break
		}
	}
	s.Close(nil)
	all.Wait()
	close(failed)
	for f := range failed {
		t.Error(f)
	}
	if len(s.holds) > 0 {
		t.Errorf("%d places are held", len(s.holds))
	}
}

// The bit rate is that of what the log holds, however long the stream is.
func TestBitrate(t *testing.T) {
	s, p := start(t, Limits{MaxBytes: 1 << 20, MaxTime: 2 * time.Second})
	if got := s.Stats().Bitrate; got != 0 {
		t.Errorf("empty: %d", got)
	}
	const size = 1000
	for n := range 500 {
		if err := p.Append(makeTag(fmt.Sprintf("%c%d", "KPPPP"[n%5], n), uint32(40*n), size)); err != nil {
			t.Fatal(err)
		}
		if got := s.Stats().Bitrate; n == 20 && got != 0 {
			t.Errorf("of less than a second: %d", got)
		}
	}
	perTag := float64(len(makeTag("K100", 0, size)) * 8)
	if got, want := float64(s.Stats().Bitrate), perTag*25; got < want || got > want*1.1 {
		t.Errorf("%v bit/s, want %v", got, want)
	}
}
