package chaos

import (
	"fmt"
	"strings"
	"testing"

	"weir/internal/chaos/model"
	"weir/internal/media"
)

// saw is what a witness tells, in short: kind, incarnation, numbers, and what is
// odd about it.
func saw(feed func(w *witness)) string {
	var all []string
	w := &witness{conn: 1, run: 7, stream: 2, emit: func(e model.Event) {
		if e.Kind == model.KindDamaged {
			all = append(all, "damaged")
			return
		}
		r := e.Run
		s := fmt.Sprintf("%c%d:%d-%d", "av"[btoi(r.Video)], r.Inc, r.From, r.To)
		for word, is := range map[string]bool{"k": r.Key, "<": r.Back} {
			if is {
				s += word
			}
		}
		if !r.Header {
			s += "?"
		}
		all = append(all, s)
	}}
	feed(w)
	w.flush()
	return strings.Join(all, " ")
}

func TestWitness(t *testing.T) {
	header := func(w *witness) {
		tags, err := headerTags()
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range tags {
			w.tag(tag, 0)
		}
	}
	v := func(inc, seq int) media.Tag {
		return frame(mark{Run: 7, Stream: 2, Inc: uint32(inc), Seq: uint32(seq)}, true, seq%gopFrames == 0, uint32(10*seq))
	}
	a := func(inc, seq int) media.Tag {
		return frame(mark{Run: 7, Stream: 2, Inc: uint32(inc), Seq: uint32(seq)}, false, false, uint32(10*seq))
	}
	f := func(want string, tags ...media.Tag) {
		t.Helper()
		got := saw(func(w *witness) {
			header(w)
			for _, tag := range tags {
				w.tag(tag, 1)
			}
		})
		if got != want {
			t.Errorf("the witness saw %q, want %q", got, want)
		}
	}
	f("v1:0-2k", v(1, 0), v(1, 1), v(1, 2))
	f("a1:0-1 v1:0-1k", a(1, 0), v(1, 0), a(1, 1), v(1, 1))
	f("v1:0-1k v1:1-2<", v(1, 0), v(1, 1), v(1, 1).At(9), v(1, 2)) // the second 1 is a frame too many
	f("v1:0-0k v1:2-2", v(1, 0), v(1, 2))
	f("v1:14-14 v1:15-15k", v(1, 14), v(1, 15))
	f("v1:14-14 a2:20-20", v(1, 14), a(2, 20))
	f("a1:5-5 v1:4-4<", a(1, 5), v(1, 4))
	f("a1:5-5 damaged a1:6-6", a(1, 5), frame(mark{Run: 7, Stream: 3, Inc: 1}, false, false, 50), a(1, 6))
	f("damaged", frame(mark{Run: 8, Stream: 2, Inc: 1}, false, false, 50))
	if got := saw(func(w *witness) { w.tag(a(1, 0), 0) }); got != "a1:0-0?" {
		t.Errorf("without a header the witness saw %q", got)
	}
	got := saw(func(w *witness) {
		for i := range 4 {
			w.tag(a(1, i), int64(i*rowTime/2))
		}
	})
	if got != "a1:0-1? a1:2-3?" {
		t.Errorf("over time the witness saw %q", got)
	}
}
