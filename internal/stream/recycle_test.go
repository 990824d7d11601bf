package stream

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"weir/internal/media"
)

// recycled writes down what a publisher is told of tags that leave its log, and
// overwrites those that are unused, as somebody who uses their memory again.
type recycled struct{ words []string }

func recycle(p *Publisher) *recycled {
	r := new(recycled)
	p.Recycle(func(t media.Tag, unused bool) {
		word := nameOf(t)
		if !unused {
			word += "(read)"
		}
		r.words = append(r.words, word)
		if unused {
			for i := range t {
				t[i] = '?'
			}
		}
	})
	return r
}

// were returns what was told since the last call.
func (r *recycled) were() string {
	got := strings.Join(r.words, " ")
	r.words = nil
	return got
}

func (r *recycled) want(t *testing.T, want string) {
	t.Helper()
	if got := r.were(); got != want {
		t.Errorf("told of\n     %q\nwant %q", got, want)
	}
}

// brief keeps what is not older than 100 ms, and the newest key frame.
var brief = Limits{MaxBytes: 1 << 20, MaxTime: 100 * time.Millisecond}

func TestRecycleTellsOfEachTagThatLeaves(t *testing.T) {
	_, p := start(t, brief)
	feed(t, p, "K0@0 P0@40")
	gone := recycle(p)
	gone.want(t, "")
	feed(t, p, "P1@80 P2@120") // older, but the only place to begin
	gone.want(t, "")
	feed(t, p, "K3@160")
	gone.want(t, "K0 P0") // those before Recycle, too
	feed(t, p, "P4@200 K5@280")
	gone.want(t, "P1 P2 K3")
	p.Restart()
	feed(t, p, "K6@0 K7@90")
	gone.want(t, "P4 K5")
}

func TestRecycleOfATagThatIsTooLarge(t *testing.T) {
	s, p := start(t, Limits{MaxBytes: minRing*entryCost + 1000, MaxTime: time.Minute})
	gone := recycle(p)
	feed(t, p, "K0@0")
	if err := p.Append(makeTag("K1", 40, 2000)); err != nil {
		t.Fatal(err)
	}
	gone.want(t, "K0 K1")
	if s.Joinable() {
		t.Error("a tag over the limit is in the log")
	}
}

func TestTagsThatAreReadAreNotUnused(t *testing.T) {
	s, p := start(t, brief)
	gone := recycle(p)
	feed(t, p, "K0@0 K1@40 K2@80")
	alice, bob := s.Join(), s.At(0, nil)
	var buf [2]Entry
	if r, _ := bob.Next(buf[:]); len(r.Entries) != 2 {
		t.Fatal("bob has nothing to read")
	}
	feed(t, p, "K3@120")
	gone.want(t, "K0(read)")
	if r, _ := alice.Next(make([]Entry, 1)); len(r.Entries) != 1 {
		t.Fatal("alice has nothing to read")
	}
	bob.Release()
	bob.Release() // has nothing any more
	feed(t, p, "K4@160")
	gone.want(t, "K1(read)") // by whom does not matter
	if got := nameOf(buf[0].Tag) + nameOf(buf[1].Tag); got != "K0K1" {
		t.Errorf("bob has %s, want K0K1", got)
	}
	alice.Release()
	feed(t, p, "K5@200")
	gone.want(t, "K2")

	// Who waits has nothing, and who reads twice has nothing after one release.
	for _, c := range []*Cursor{alice, bob} {
		for {
			r, _ := c.Next(buf[:])
			if len(r.Entries) == 0 {
				break
			}
		}
		c.Release()
		if r, _ := c.Next(buf[:]); len(r.Entries) > 0 {
			t.Fatal("there is more")
		}
		c.Behind()
		c.Settle(s.End())
	}
	feed(t, p, "K6@400")
	gone.want(t, "K3 K4 K5")
}

// What the log has already is of no use, and nobody has seen it.
func TestRecycleOfWhatResumePassesOver(t *testing.T) {
	s, p := start(t, Limits{MaxBytes: 1 << 20, MaxTime: time.Minute})
	p.Recycle(func(t media.Tag, unused bool) { panic("nothing leaves the log") })
	reader := s.Join()
	for _, tag := range source(t, 0, 25, 1000) {
		_ = p.Append(tag)
	}
	if r, _ := reader.Next(make([]Entry, 4)); len(r.Entries) == 0 { // of the log, not of what comes
		t.Fatal("nothing to read")
	}
	p.Resume()
	var told []string
	p.Recycle(func(t media.Tag, unused bool) {
		if !unused {
			panic("nobody can have it")
		}
		told = append(told, string(t.Body()))
	})
	var want []string
	for i, tag := range source(t, 20, 30, 777000) {
		if err := p.Append(tag); err != nil {
			t.Fatal(err)
		}
		if i >= 3 && i < 18 { // of frames 20 to 24; the headers before them were held
			want = append(want, string(tag.Body()))
		}
	}
	if fmt.Sprint(told) != fmt.Sprint(want) {
		t.Errorf("told of\n     %q\nwant %q", told, want)
	}
}

// Headers that are held until the source's first frame must not be told of: they are
// appended then.
func TestRecycleKeepsHeldHeaders(t *testing.T) {
	s, p := start(t, Limits{MaxBytes: 1 << 20, MaxTime: time.Minute})
	gone := recycle(p)
	feed(t, p, "M0@0 V0@0 C0@0 K0@0 A0@5")
	p.Resume()
	feed(t, p, "M1@0 V1@0 C1@0")
	gone.want(t, "")
	feed(t, p, "K1@9000")
	reads(t, s.Join(), "[M1 V1 C1] K1@38")
}

// Headers in force outlive the memory that they came in.
func TestHeadersSurviveReuse(t *testing.T) {
	s, p := start(t, brief)
	gone := recycle(p)
	feed(t, p, "M0@0 V0@0 C0@0 K0@0")
	early := s.Join()
	reads(t, early, "[M0 V0 C0] K0@0")
	early.Release()
	feed(t, p, "A1@40 V1@80 K1@120 K2@160 K3@300")
	gone.want(t, "M0 V0 C0 K0 A1 V1 K1 K2")
	reads(t, s.Join(), "[M0 V1 C0] K3@300")
	reads(t, early, "[M0 V1 C0] K3@300") // fell behind
	if got := nameOf(s.Headers().Find(media.Audio)); got != "C0" {
		t.Errorf("the audio header is %s", got)
	}
	feed(t, p, "C0@300") // is known again by its bytes
	if got := s.Headers().Len(); got != 3 {
		t.Errorf("%d headers", got)
	}
}

// Another source is told of what the log has of the first one.
func TestRecycleWithASecondSource(t *testing.T) {
	s, p := start(t, brief)
	first := recycle(p)
	feed(t, p, "K0@0 K1@40 K2@80 K3@120")
	first.want(t, "K0")
	second := recycle(p)
	p.Resume()
	feed(t, p, "K4@5000 K5@5040")
	second.want(t, "K1 K2")
	p.Close()
	p, err := s.Publish()
	if err != nil {
		t.Fatal(err)
	}
	feed(t, p, "K6@0") // tells nobody
	third := recycle(p)
	feed(t, p, "K7@40 K8@80")
	first.want(t, "")
	second.want(t, "")
	third.want(t, "K4 K5")
	reads(t, s.Join(), "[] K8@306")
}

// lines is a publisher whose tags come from a slab, and a reader that keeps up.
type lines struct {
	slab media.Slab
	p    *Publisher
	c    *Cursor
	buf  [4]Entry
	n    uint32
}

func newLines(tb testing.TB) *lines {
	s := New(Limits{MaxBytes: 4 << 20, MaxTime: 2 * time.Second})
	p, err := s.Publish()
	if err != nil {
		tb.Fatal(err)
	}
	l := &lines{p: p, c: s.Join()}
	p.Recycle(l.slab.Gone)
	for range 2000 {
		l.step(tb)
	}
	return l
}

// step appends a frame, reads it, and drops the oldest one.
func (l *lines) step(tb testing.TB) {
	tag := media.Tag(l.slab.Make(media.TagOverhead + 1000))
	tag.Init(media.Video, l.n*20)
	b := tag.Body()
	if b[0], b[1] = 0x27, 1; l.n%50 == 0 {
		b[0] = 0x17
	}
	l.n++
	if err := l.p.Append(tag); err != nil {
		tb.Fatal(err)
	}
	if r, err := l.c.Next(l.buf[:]); err != nil || len(r.Entries) != 1 {
		tb.Fatal(r, err)
	}
	l.c.Release()
}

func TestRecycledTagsTakeNoMemory(t *testing.T) {
	l := newLines(t)
	if n := testing.AllocsPerRun(10, func() {
		for range 1000 {
			l.step(t)
		}
	}); n > 0 {
		t.Errorf("%v allocations for 1000 tags", n)
	}
}

func BenchmarkRecycle(b *testing.B) {
	l := newLines(b)
	b.ReportAllocs()
	for b.Loop() {
		l.step(b)
	}
}
