package repeat

import (
	"fmt"
	"testing"
	"time"
)

// story calls Due at times after a begin and compares what it says.
type story struct {
	t     *testing.T
	f     *Filter[string]
	begin time.Time
}

func (s story) due(kind string, at time.Duration, n int, since time.Duration) {
	s.t.Helper()
	got, last := s.f.Due(kind, s.begin.Add(at))
	want := time.Time{}
	if since >= 0 {
		want = s.begin.Add(since)
	}
	if got != n || !last.Equal(want) {
		s.t.Errorf("%s at %v: a line for %d since %v, want %d since %v", kind, at, got, last, n, want)
	}
}

// never stands for a line before that is not there.
const never = -1

func newStory(t *testing.T, f *Filter[string]) story {
	return story{t, f, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

// The first has a line at once; what comes within the minute is counted in the line
// that follows it, whenever that is. Another kind does not matter.
func TestDue(t *testing.T) {
	s := newStory(t, &Filter[string]{})
	s.due("a", 0, 1, never)
	s.due("a", time.Second, 0, never)
	s.due("b", 30*time.Second, 1, never)
	s.due("a", 59*time.Second, 0, never)
	s.due("a", 60*time.Second, 3, 0)
	s.due("a", 61*time.Second, 0, never)
	s.due("b", time.Hour, 1, 30*time.Second)
	s.due("a", time.Hour, 2, 60*time.Second)

	s = newStory(t, &Filter[string]{Every: time.Second})
	s.due("a", 0, 1, never)
	s.due("a", 900*time.Millisecond, 0, never)
	s.due("a", 1100*time.Millisecond, 2, 0)
}

// With as many kinds as there may be, the others share one line, and get their own when
// one of the first has been silent.
func TestTooManyKinds(t *testing.T) {
	s := newStory(t, &Filter[string]{Max: 2})
	s.due("a", 0, 1, never)
	s.due("b", 30*time.Second, 1, never)
	s.due("c", 31*time.Second, 1, never)
	s.due("d", 32*time.Second, 0, never)
	s.due("a", 33*time.Second, 0, never)
	s.due("e", 61*time.Second, 1, never) // in the place of a
	s.due("d", 62*time.Second, 0, never)
	s.due("d", 91*time.Second, 1, never) // in the place of b
	if n := len(s.f.kinds); n != 2 {
		t.Errorf("%d kinds are told apart, want 2", n)
	}
}

// The memory is bounded whatever comes.
func TestBound(t *testing.T) {
	f := &Filter[string]{}
	now := time.Now()
	lines := 0
	for i := range 5000 {
		if n, _ := f.Due(fmt.Sprint(i), now); n > 0 {
			lines++
		}
	}
	if len(f.kinds) != 1000 || lines != 1001 {
		t.Errorf("%d kinds, %d lines, want 1000 and one line for each and one for the rest", len(f.kinds), lines)
	}
}
