package fanout

import (
	"net"
	"testing"
	"unsafe"

	"weir/internal/media"
)

// A multiple of a line of the cache that the allocator has a size for, so that what a
// send touches lies in one line.
func TestSizeOfSession(t *testing.T) {
	if n := unsafe.Sizeof(Session{}); n != 192 {
		t.Errorf("a session has %d bytes", n)
	}
}

// What the kernel says of a session that is over is not taken for its place's next.
func TestPlacesHaveNewIDs(t *testing.T) {
	e := &Engine{next: 1<<32 - 3}
	a, b := new(Session), new(Session)
	e.enter(a)
	e.enter(b)
	before := a.id
	e.leave(a)
	if e.find(before) != nil || e.find(b.id) != b || e.Len() != 1 {
		t.Errorf("%d sessions, or another than the one that stays", e.Len())
	}
	for range 4 {
		e.enter(a)
		if a.id == before || a.id>>32 == 0 || uint32(a.id) != uint32(before) {
			t.Errorf("id %x after %x", a.id, before)
		}
		if e.find(a.id) != a || e.find(before) != nil || e.find(b.id) != b || len(e.slots) != 2 {
			t.Errorf("%d places", len(e.slots))
		}
		before = a.id
		e.leave(a)
	}
	if e.find(before+5) != nil {
		t.Error("a place that never was has a session")
	}
}

// A player that has asked for something and got it costs no more than one that never did.
func TestWhatWasAskedIsForgotten(t *testing.T) {
	e := &Engine{}
	near, _ := net.Pipe()
	s := &Session{e: e, fd: -1, place: over, p: terms{Conn: near}} // nobody attends
	s.Inject([]byte("pong"))
	s.Pause(true)
	if b, w, _ := s.take(); string(b) != "pong" || !w.paused || s.asked == nil {
		t.Errorf("asked for %q, %+v", b, w)
	}
	s.Pause(false)
	s.Mute(media.Audio, false)
	if b, w, _ := s.take(); len(b) > 0 || w.special() || s.asked != nil {
		t.Errorf("asked for %q, %+v, kept: %v", b, w, s.asked != nil)
	}
	s.End(Kicked)
	if _, _, reason := s.take(); reason != Kicked || s.asked == nil {
		t.Errorf("ended for %q", reason)
	}
}
