package stream

import (
	"fmt"
	"testing"
	"time"

	"weir/internal/media"
)

// short are the limits of a log that keeps much for those that hold their places only.
var short = Limits{MaxBytes: 1 << 20, MaxTime: 8 * time.Second, MinTime: 2 * time.Second}

// flow appends video of 25 frames a second from and up to the given times in ms, with a
// key frame in each gop. With a gop of 0 it is audio.
func flow(t *testing.T, p *Publisher, from, to, gop int) {
	t.Helper()
	for ms := from; ms <= to; ms += 40 {
		what := 'P'
		switch {
		case gop == 0:
			what = 'A'
		case ms%gop == 0:
			what = 'K'
		}
		feed(t, p, fmt.Sprintf("%c%d@%d", what, ms, ms))
	}
}

func covers(t *testing.T, s *Stream, what string, want time.Duration) {
	t.Helper()
	if got := s.Stats().LogTime; got != want {
		t.Errorf("%s: the log covers %v, want %v", what, got, want)
	}
}

// With nobody behind the log is as long as MinTime, or begins with the newest join point;
// while that is new it begins with the one before.
func TestLogThatNobodyHoldsIsShort(t *testing.T) {
	f := func(gop, since int, want time.Duration) {
		t.Helper()
		s, p := start(t, short)
		end := since
		if gop > 0 {
			end += 30_000 / gop * gop
		}
		flow(t, p, 0, end, gop)
		covers(t, s, fmt.Sprintf("%d ms behind a key frame in each %d", since, gop), want)
	}
	f(400, 0, 2*time.Second)
	f(2000, 0, 2*time.Second)
	f(2000, 960, 2960*time.Millisecond)
	f(2000, 1000, 2*time.Second)
	f(2000, 1960, 2*time.Second)
	f(5000, 0, 5*time.Second)
	f(5000, 960, 5960*time.Millisecond)
	f(5000, 1000, 2*time.Second)
	f(5000, 4960, 4960*time.Millisecond)
	f(10_000, 0, 2*time.Second) // the one before is older than MaxTime
	f(10_000, 1960, 2*time.Second)
	f(10_000, 9960, 9960*time.Millisecond)
	f(0, 30_000, 2*time.Second) // audio: each frame is a join point

	// The newest join point stays, also when more than it was kept for somebody.
	s, p := start(t, short)
	c := s.Join()
	c.Hold()
	flow(t, p, 0, 7280, 4000)
	c.LetGo()
	flow(t, p, 7320, 7320+640, 4000)
	covers(t, s, "let go of", 3960*time.Millisecond)
}

// A reader that holds its place has what it has not read kept up to MaxTime, from the
// moment on that it falls behind to that in which it is not behind any more.
func TestHold(t *testing.T) {
	const again = 640 // ms, within which a log notices where readers are
	for _, gop := range []int{0, 400} {
		s, p := start(t, short)
		c := s.Join() // waits for the first join point
		c.Hold()
		next := 0
		catchUp := func() {
			t.Helper()
			buf := make([]Entry, 7)
			for r, _ := c.Next(buf); len(r.Entries) > 0; r, _ = c.Next(buf) {
				for _, e := range r.Entries {
					if nameOf(e.Tag)[1:] != fmt.Sprint(next) {
						t.Fatalf("it reads %s, want %d", nameOf(e.Tag), next)
					}
					next += 40
				}
			}
		}
		flow(t, p, 0, 5000, gop)
		covers(t, s, "it waits", 5*time.Second)
		catchUp()
		for ms := 5040; ms <= 10_000; ms += 40 {
			flow(t, p, ms, ms, gop)
			catchUp()
		}
		covers(t, s, "at the end", 2*time.Second)
		flow(t, p, 10_040, 17_960, gop)
		covers(t, s, "behind", 7920*time.Millisecond)
		catchUp()
		other := s.Tail()
		other.Hold()
		other.Hold()
		flow(t, p, 18_000, 18_000+again, gop)
		covers(t, s, "at the end again", 2*time.Second)

		// Two are behind: the log has what the slower one lacks.
		flow(t, p, 18_680, 22_960, gop)
		covers(t, s, "two are behind", 4960*time.Millisecond)
		catchUp()
		flow(t, p, 23_000, 23_000+again, gop)
		covers(t, s, "one is behind", 5640*time.Millisecond)
		other.LetGo()
		other.LetGo()
		flow(t, p, 23_680, 23_680+again, gop)
		covers(t, s, "let go of", 2*time.Second)
		catchUp()
		c.LetGo()
		if len(s.holds) > 0 {
			t.Errorf("%d places are held", len(s.holds))
		}
	}
}

// A reader that is behind by more than MaxTime has lost its place. It goes on at the newest
// join point, so that what is before is not kept for it: the log of a stream with a player
// that is stuck is as short as any.
func TestHoldOfAPlaceThatIsLost(t *testing.T) {
	s, p := start(t, short)
	flow(t, p, 0, 0, 3000)
	c := s.Join()
	c.Hold()
	_, _ = read(c, 3)
	flow(t, p, 40, 8040, 3000)
	covers(t, s, "behind", 8*time.Second)
	flow(t, p, 8080, 8720, 3000)
	covers(t, s, "lost", 2720*time.Millisecond) // from the newest join point on
	// It comes back, to the newest join point, and holds that at once, also with few
	// entries in a second.
	flow(t, p, 8760, 11_960, 3000)
	if _, ms := c.Behind(); ms != 11_960 {
		t.Errorf("behind by %d ms", ms)
	}
	if r, _ := c.Next(make([]Entry, 1)); len(r.Entries) != 1 || nameOf(r.Entries[0].Tag) != "K9000" {
		t.Fatalf("%v", r.Entries)
	}
	lost := c.Skipped()
	for ms := 12_000; ms < 16_000; ms += 500 {
		feed(t, p, fmt.Sprintf("%c%d@%d", "KPPPPP"[ms%3000/500], ms, ms))
	}
	if r, _ := c.Next(make([]Entry, 1)); len(r.Entries) != 1 || nameOf(r.Entries[0].Tag) != "P9040" || c.Skipped() != lost {
		t.Errorf("%v, skipped %d more", r.Entries, c.Skipped()-lost)
	}
}

// The bound in bytes is above all.
func TestHoldWithinTheBytes(t *testing.T) {
	limits := short
	limits.MaxBytes = minRing*entryCost + 10_000
	s, p := start(t, limits)
	c := s.Join()
	c.Hold()
	flow(t, p, 0, 0, 400)
	_, _ = read(c, 3)
	for ms := 40; ms < 6000; ms += 40 {
		if err := p.Append(makeTag(fmt.Sprintf("%c%d", "KPPPPPPPPP"[ms/40%10], ms), uint32(ms), 500)); err != nil {
			t.Fatal(err)
		}
		if got := s.Stats().LogBytes; got > limits.MaxBytes {
			t.Fatalf("%d bytes of %d", got, limits.MaxBytes)
		}
	}
	if got, _ := read(c, 3); got[:3] != "K56" || c.Skipped() == 0 {
		t.Errorf("it reads %.20s, %d skipped", got, c.Skipped())
	}
}

// A relay goes on from a source that is behind the one before, so that it begins with a
// join point that is not the newest here any more, however long ago that was. The log has
// it although nobody holds a place.
func TestResumeFromASourceThatIsBehind(t *testing.T) {
	for _, gop := range []int{400, 2000, 5000} {
		s, p := start(t, short)
		reader := s.Join()
		var want, got []media.Tag
		collect := func() {
			buf := make([]Entry, 16)
			for r, _ := reader.Next(buf); len(r.Entries) > 0; r, _ = reader.Next(buf) {
				for _, e := range r.Entries {
					got = append(got, e.Tag)
				}
			}
		}
		for ms := 0; ms <= 10_800; ms += 40 {
			flow(t, p, ms, ms, gop)
			collect()
		}
		p.Resume()
		begin := 10_000/gop*gop - gop
		for ms := begin; ms <= 12_000; ms += 40 {
			flow(t, p, ms, ms, gop)
			collect()
		}
		for ms := 0; ms <= 12_000; ms += 40 {
			want = append(want, makeTag(fmt.Sprint("P", ms), uint32(ms), 0))
		}
		for i := range got {
			if nameOf(got[i])[1:] != nameOf(want[i])[1:] || got[i].Time() != want[i].Time() {
				t.Fatalf("a key frame in each %d ms: tag %d is %s at %d, want %s", gop, i, nameOf(got[i]), got[i].Time(), nameOf(want[i]))
			}
		}
		if len(got) != len(want) {
			t.Errorf("a key frame in each %d ms: %d frames, want %d", gop, len(got), len(want))
		}
	}
}

// A reader that waits for a join point, and has not looked for long, goes on at the first
// one that there is still, and has that kept at once.
func TestHoldOfWhoWaits(t *testing.T) {
	s, p := start(t, short)
	c := s.Join()
	c.Hold()
	feed(t, p, "P0@0")
	flow(t, p, 1000, 17_000, 1000)
	if r, _ := c.Next(make([]Entry, 1)); len(r.Entries) != 1 || nameOf(r.Entries[0].Tag) != "K9000" {
		t.Fatalf("%v", r.Entries)
	}
	flow(t, p, 17_040, 17_040, 1000)
	if r, _ := c.Next(make([]Entry, 1)); len(r.Entries) != 1 || nameOf(r.Entries[0].Tag) != "P9040" {
		t.Fatalf("%v", r.Entries)
	}
}
