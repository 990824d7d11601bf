package media

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Tags of a slab do not touch each other, whatever is appended to them.
func TestSlab(t *testing.T) {
	var s Slab
	const share = slabLeast / slabShare
	sizes := []int{0, 1, 100, share, share + 1, 3000, 3000, 3000, 3000, 3000, 3000}
	var all [][]byte
	for i, n := range sizes {
		b := s.Make(n)
		if len(b) != n || cap(b) > len(b) && n <= share {
			t.Errorf("%d bytes of capacity %d, want %d", len(b), cap(b), n)
		}
		for j := range b {
			b[j] = byte(i + 1)
		}
		_ = append(b, 0xff)
		all = append(all, b)
	}
	for i, b := range all {
		for j := range b {
			if b[j] != byte(i+1) {
				t.Fatalf("byte %d of piece %d is %d", j, i, b[j])
			}
		}
	}
}

// Small tags share what is taken.
func TestSlabAllocations(t *testing.T) {
	var s Slab
	const tags = 1000
	n := testing.AllocsPerRun(10, func() {
		for range tags {
			_ = s.Make(slabLeast / 16)
		}
	})
	if n > tags/16+1 {
		t.Errorf("%v allocations for %d tags", n, tags)
	}
}

// pieceTags fill a piece of the least size.
const pieceTags = 2 * slabShare

// watchedSlab is one that has been told of tags, of another one.
func watchedSlab() *Slab {
	s := new(Slab)
	s.Gone(make(Tag, 20), true)
	return s
}

// makePiece makes tags that are exactly the next piece.
func makePiece(s *Slab) []Tag {
	tags := make([]Tag, pieceTags)
	for i := range tags {
		tags[i] = s.Make(slabLeast / pieceTags)
	}
	return tags
}

func goneAll(s *Slab, tags []Tag) {
	for _, t := range tags {
		s.Gone(t, true)
	}
}

func samePiece(a, b []Tag) bool { return &a[0][0] == &b[0][0] }

func TestSlabUsesPiecesAgain(t *testing.T) {
	// f makes four pieces, tells of tags of the first three, and says which are made again.
	f := func(name, want string, gone func(s *Slab, a, b, c []Tag)) {
		t.Helper()
		s := watchedSlab()
		pieces := [][]Tag{makePiece(s), makePiece(s), makePiece(s)}
		makePiece(s)
		gone(s, pieces[0], pieces[1], pieces[2])
		got := ""
		for range 6 {
			next := makePiece(s)
			for i, p := range pieces {
				if samePiece(next, p) {
					got += string(rune('a' + i))
				}
			}
		}
		if got != want {
			t.Errorf("%s: %q are made again, want %q", name, got, want)
		}
	}
	f("nothing is gone", "", func(*Slab, []Tag, []Tag, []Tag) {})
	f("all of the first", "a", func(s *Slab, a, _, _ []Tag) { goneAll(s, a) })
	for i := range pieceTags {
		f("all of the first but one", "", func(s *Slab, a, _, _ []Tag) { goneAll(s, slices.Delete(slices.Clone(a), i, i+1)) })
		f("one of the first is not unused", "b", func(s *Slab, a, b, _ []Tag) {
			for j, t := range a {
				s.Gone(t, j != i)
			}
			goneAll(s, b)
		})
	}
	f("two in order", "ba", func(s *Slab, a, b, _ []Tag) { goneAll(s, a); goneAll(s, b) })
	f("more than are kept", "ba", func(s *Slab, a, b, c []Tag) { goneAll(s, a); goneAll(s, b); goneAll(s, c) })
	f("some of the next in between", "ba", func(s *Slab, a, b, _ []Tag) {
		s.Gone(a[0], true)
		goneAll(s, b[:3])
		goneAll(s, a[1:])
		goneAll(s, b[3:])
	})
	f("all of the next in between", "ab", func(s *Slab, a, b, _ []Tag) {
		goneAll(s, a[1:])
		goneAll(s, b)
		s.Gone(a[0], true)
	})
	f("passed over", "b", func(s *Slab, a, b, c []Tag) { // c is two pieces on
		s.Gone(c[0], true)
		goneAll(s, a)
		goneAll(s, b)
	})
	f("large and other tags", "", func(s *Slab, a, _, _ []Tag) {
		goneAll(s, a[1:])
		var other Slab
		goneAll(s, makePiece(&other))
		s.Gone(s.Make(slabLeast), true)
		s.Gone(make(Tag, 100), true)
		s.Gone(nil, true)
	})
}

// A piece that is not full yet is not made again, although all its tags are gone.
func TestSlabGoneAtOnce(t *testing.T) {
	s := watchedSlab()
	first := s.Make(slabLeast / pieceTags)
	s.Gone(first, true)
	for range pieceTags - 1 {
		next := s.Make(slabLeast / pieceTags)
		if &next[0] == &first[0] {
			t.Fatal("a piece was made again before it was full")
		}
		s.Gone(next, true)
	}
	if next := s.Make(slabLeast / pieceTags); &next[0] != &first[0] {
		t.Error("a full piece whose tags are gone was not made again")
	}
}

// What Gone is not told of is not kept for long.
func TestSlabForgets(t *testing.T) {
	s := watchedSlab()
	kept := func() (bytes int) {
		for _, p := range s.used {
			bytes += len(p.bytes)
		}
		return bytes
	}
	for range 3 * slabKept / slabLeast {
		makePiece(s)
	}
	if n := kept(); n > slabKept || n < slabKept/2 {
		t.Errorf("%d bytes are watched of tags that are never gone, want up to %d", n, slabKept)
	}
	for range 4 { // larger pieces are fewer
		for range slabShare {
			s.Make(slabMost)
		}
	}
	for range 2 * slabKept / slabLeast {
		makePiece(s)
	}
	if n := kept(); n > slabKept || n < slabKept/2 {
		t.Errorf("%d bytes are watched in larger pieces, want up to %d", n, slabKept)
	}

	s = watchedSlab()
	var log [][]Tag
	for range 1000 {
		if log = append(log, makePiece(s)); len(log) > 5 {
			s.Gone(log[0][0], true) // its others never are
			log = log[1:]
		}
		if n := len(s.used); n > len(log)+2 {
			t.Fatalf("%d pieces are watched of %d in use", n, len(log))
		}
	}
	s.Reset()
	if s.free != nil || s.now.bytes != nil || s.used != nil || s.spare != nil {
		t.Error("memory is kept after Reset")
	}
}

// Pieces become as large as tags ask for, within bounds, and the tags do not overlap.
func TestSlabGrows(t *testing.T) {
	f := func(name string, want int, sizes ...int) {
		t.Helper()
		s := watchedSlab()
		var live []Tag
		for n := range 1000 {
			b := s.Make(sizes[n%len(sizes)])
			for i := range b {
				b[i] = byte(n)
			}
			if live = append(live, b); len(live) > 60 {
				old := live[0]
				if bytes.Count(old, []byte{byte(n - 60)}) != len(old) {
					t.Fatalf("%s: tag %d was overwritten", name, n-60)
				}
				s.Gone(old, true)
				live = live[1:]
			}
		}
		if s.size != want {
			t.Errorf("%s: pieces of %d bytes, want %d", name, s.size, want)
		}
	}
	f("small ones", slabLeast, 200, 3000)
	f("large and small ones", 64<<10, 200, 12000)
	some := slices.Repeat([]int{400}, 20)
	f("two in the time of a piece", 2*slabLeast, slices.Concat([]int{5000}, some, []int{5000}, some)...)
	f("only large ones", 64<<10, 12000)
	f("a rare large one", slabLeast, append(slices.Repeat([]int{200}, 100), 60000)...)
	f("huge and tiny ones", slabMost, 1, slabMost/slabShare+1)
}

// Whatever is made and gone in whatever order, no tag that somebody has is overwritten.
// TestSlabUsesLargeTagsAgain: the memory of a key frame is that of a later one that fits.
func TestSlabUsesLargeTagsAgain(t *testing.T) {
	for _, c := range []struct {
		name        string
		first, next int
		unused      bool
		same        bool
	}{
		{"of the same size", 30_000, 30_000, true, true},
		{"somewhat larger", 30_000, 30_000 + 30_000/slabRoom, true, true},
		{"larger than there is room", 30_000, 34_000, true, false},
		{"smaller", 30_000, 17_000, true, true},
		{"so small that it would be a waste", 30_000, 16_000, true, false},
		{"somebody has it", 30_000, 30_000, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s Slab
			s.Gone(s.Make(100), true) // from now on they are watched
			first := Tag(s.Make(c.first))
			s.Gone(first, c.unused)
			next := s.Make(c.next)
			if len(next) != c.next || cap(next) != c.next {
				t.Fatalf("%d bytes of %d, want %d", len(next), cap(next), c.next)
			}
			if len(s.alone) != 1 {
				t.Errorf("%d large tags are watched, want the one", len(s.alone))
			}
			if same := &next[0] == &first[0]; same != c.same {
				t.Errorf("the same memory: %v", same)
			}
			if other := s.Make(c.next); &other[0] == &next[0] {
				t.Error("two tags have the same memory")
			}
		})
	}

	var s Slab
	s.Gone(s.Make(100), true)
	for range 2 * slabAlone {
		s.Make(100_000)
	}
	if len(s.alone) != slabAlone {
		t.Errorf("%d large tags are watched, want %d", len(s.alone), slabAlone)
	}
}

func TestSlabAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type made struct {
			tag  Tag
			fill byte
		}
		var s Slab
		var live, read []made // in the log, and left the log while somebody read them
		fill := byte(0)
		intact := func(all []made) {
			for _, m := range all {
				if bytes.Count(m.tag, []byte{m.fill}) != len(m.tag) {
					t.Fatalf("tag %d of %d bytes was overwritten", m.fill, len(m.tag))
				}
			}
		}
		gone := func(i int, unused bool) {
			m := live[i]
			live = slices.Delete(live, i, i+1)
			if s.Gone(m.tag, unused); !unused {
				read = append(read, m)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { intact(live); intact(read) },
			"make": func(t *rapid.T) {
				size := rapid.SampledFrom([]int{15, 300, 1000, 4000, 5000, 17000, 70000}).Draw(t, "size")
				for range rapid.IntRange(1, 30).Draw(t, "tags") {
					fill++
					b := s.Make(size)
					for i := range b {
						b[i] = fill
					}
					live = append(live, made{b, fill})
				}
			},
			"in order": func(t *rapid.T) {
				for range min(rapid.IntRange(0, 40).Draw(t, "tags"), len(live)) {
					gone(0, true)
				}
			},
			"in some order": func(t *rapid.T) {
				for range min(rapid.IntRange(0, 5).Draw(t, "tags"), len(live)) {
					gone(rapid.IntRange(0, len(live)-1).Draw(t, "which"), rapid.IntRange(0, 3).Draw(t, "unused") > 0)
				}
			},
			"never": func(t *rapid.T) {
				n := min(rapid.IntRange(0, 3).Draw(t, "tags"), len(live))
				read = append(read, live[:n]...)
				live = slices.Delete(live, 0, n)
			},
			"foreign": func(*rapid.T) { s.Gone(make(Tag, 1000), true) },
			"reset": func(t *rapid.T) {
				if rapid.IntRange(0, 20).Draw(t, "reset") == 7 {
					s.Reset()
				}
			},
		})
	})
}

// window makes and ends the tags of a log of some seconds.
type window struct {
	s    Slab
	tags [400]Tag
	n    int
}

func (w *window) step(size int) {
	at := w.n % len(w.tags)
	if t := w.tags[at]; t != nil {
		w.s.Gone(t, true)
	}
	w.tags[at] = w.s.Make(size)
	w.n++
}

// In its steady state a slab takes no memory: one piece goes as another one comes.
func TestSlabSteadyState(t *testing.T) {
	f := func(name string, sizes ...int) {
		t.Helper()
		var w window
		run := func() {
			for n := range 2000 {
				w.step(sizes[n%len(sizes)])
			}
		}
		run()
		if n := testing.AllocsPerRun(20, run); n > 0 {
			t.Errorf("%s: %v allocations for 2000 tags", name, n)
		}
	}
	f("audio", 300)
	f("video and audio", 300, 5000, 300)
	f("video alone", 20000)
	f("large frames", 300, slabMost/slabShare)
}

func BenchmarkSlab(b *testing.B) {
	for _, size := range []int{300, 5000} {
		b.Run(map[int]string{300: "audio", 5000: "video"}[size], func(b *testing.B) {
			var w window
			b.ReportAllocs()
			for b.Loop() {
				w.step(size)
			}
		})
	}
}
