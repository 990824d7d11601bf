package stream

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weir/internal/media"
)

// modelEntry is a tag as the naive model keeps it: for ever.
type modelEntry struct {
	name     string
	body     string
	kind     media.Kind
	time     uint32
	joinable bool
	headers  map[media.Kind]string // names of those in force, this one included
}

// modelReader is what a player would know from what it was given.
type modelReader struct {
	c       *Cursor
	started bool
	at      int // index of the entry read last
	jumped  bool
	state   map[media.Kind]string
	times   map[media.Kind]uint32
	lost    uint64
}

// TestLogAgainstModel lets a random publisher, with jumps of its clock, header
// changes and successors, write into a small log, and random readers read. Every
// reader must see consecutive runs that begin at a join point, with the headers
// of that place, with times that never go back, with the loss counted right, and with
// tags whose memory is not used again while they have them. One that holds its place
// loses nothing that is younger than MaxTime, unless there are no bytes for
// it; and in front of the newest join point the log has nothing that is older than MinTime,
// unless the join point before is, and may be wanted, or a place that is held.
func TestLogAgainstModel(t *testing.T) {
	for n := range 10 { // ten times the usual number of histories: they are short
		t.Run(fmt.Sprint(n), func(t *testing.T) { rapid.Check(t, compareWithModel) })
	}
}

func compareWithModel(t *rapid.T) {
	limits := Limits{
		MaxBytes: minRing*entryCost + rapid.Int64Range(0, 40_000).Draw(t, "bytes")*rapid.SampledFrom([]int64{1, 30}).Draw(t, "times"),
		MaxTime:  time.Duration(rapid.IntRange(1, 3000).Draw(t, "ms")) * time.Millisecond,
		MinTime:  time.Duration(rapid.IntRange(0, 3300).Draw(t, "least ms")) * time.Millisecond,
	}
	s := New(limits)
	p, _ := s.Publish()
	recycle := func() {
		p.Recycle(func(t media.Tag, unused bool) {
			if unused { // what anybody still reads of it is wrong from now on
				for i := range t.Body() {
					t.Body()[i] = '?'
				}
			}
		})
	}
	recycle()
	var all []modelEntry
	var readers []*modelReader
	headers := map[media.Kind]string{}
	var clock uint32 // of the source
	var video videoTrack
	closed := false

	// wants checks what an append has dropped, from entry oldest on, and kept.
	wants := func(oldest uint64) {
		isOld := func(n uint64, most time.Duration) bool {
			age := int32(s.timeline.last - all[n].time)
			return age > int32(most.Milliseconds()) || age < -maxBack
		}
		isLost := func(n uint64) bool { return n < s.head && !isOld(n, limits.MaxTime) } // younger than MaxTime
		isHeld := false                                                                  // the oldest entry
		for _, r := range readers {
			if !r.c.holds {
				continue
			}
			isHeld = isHeld || r.c.next == s.head || r.c.seeking && r.c.next < s.head
			if r.c.next >= oldest && isLost(r.c.next) {
				t.Fatalf("entry %d was dropped, a reader holds %d", s.head-1, r.c.next)
			}
		}
		var joins []uint64 // the newest two
		for n := s.next; n > oldest && len(joins) < 2; n-- {
			if all[n-1].joinable {
				joins = append(joins, n-1)
			}
		}
		least := limits.MinTime
		if least == 0 || least > limits.MaxTime {
			least = limits.MaxTime
		}
		for n := oldest; n < s.head; n++ {
			if !isOld(n, least) || len(joins) == 0 || n >= joins[0] {
				t.Fatalf("entry %d was dropped", n)
			}
		}
		before := len(joins) == 2 && !isOld(joins[0], (late-1)*time.Millisecond)
		if before && isLost(joins[1]) {
			t.Fatalf("the join point before, %d, was dropped", joins[1])
		}
		if len(joins) == 0 || s.head >= joins[0] || !isOld(s.head, least) || s.next%again != 0 {
			return
		}
		if !isHeld && !(before && s.head == joins[1]) {
			t.Fatalf("entry %d is kept for nobody", s.head)
		}
	}

	restart := func() {
		headers, video = map[media.Kind]string{}, videoTrack{}
	}
	add := func(letter byte) {
		name := fmt.Sprintf("%c%d", letter, len(all))
		tag := makeTag(name, clock, rapid.IntRange(0, 1500).Draw(t, "pad"))
		body := string(tag.Body())
		oldest, bytes := s.head, s.cost
		if int(s.next-s.head) == len(s.ring) {
			bytes += s.cost // more than it may grow by
		}
		err := p.Append(tag)
		if closed {
			if err == nil {
				t.Fatal("append to a closed stream")
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		e := modelEntry{name: name, body: body, kind: tag.Kind(), time: tag.Time()}
		switch letter {
		case 'V', 'C', 'M':
			headers = maps.Clone(headers)
			headers[e.kind] = name
			if letter == 'V' {
				video.saw(&s.timeline)
			}
		case 'K', 'P':
			e.joinable = letter == 'K'
			video.saw(&s.timeline)
		case 'A':
			e.joinable = video.gone(&s.timeline)
		}
		e.headers = headers
		all = append(all, e)
		if s.head < s.next && bytes+s.ring[(s.next-1)&uint64(len(s.ring)-1)].cost() <= limits.MaxBytes { // else they decide
			wants(oldest)
		}
	}
	newestJoin := func() int {
		for i := len(all) - 1; i >= int(s.head); i-- {
			if all[i].joinable {
				return i
			}
		}
		return -1
	}
	var frames func(*rapid.T)
	read := func(r *modelReader) {
		buf := make([]Entry, rapid.IntRange(1, 40).Draw(t, "buffer"))
		fell := r.started && r.at+1 < int(s.head)
		run, err := r.c.Next(buf)
		if err != nil && (!closed || len(run.Entries) > 0) {
			t.Fatalf("error %v with %d entries, closed %v", err, len(run.Entries), closed)
		}
		if !closed && rapid.IntRange(0, 2).Draw(t, "meanwhile") == 2 {
			frames(t)
		}
		if run.Headers != nil {
			if len(run.Entries) == 0 {
				t.Fatal("headers without an entry")
			}
			given := map[media.Kind]string{}
			for n := range run.Headers.Len() {
				h := run.Headers.Tag(n)
				given[h.Kind()] = nameOf(h)
			}
			var index int
			_, _ = fmt.Sscan(nameOf(run.Entries[0].Tag)[1:], &index)
			if !maps.Equal(given, all[index].headers) || len(given) != run.Headers.Len() {
				t.Fatalf("a run at %d begins with the headers %v, want %v", index, given, all[index].headers)
			}
			maps.Copy(r.state, given)
		}
		for i, e := range run.Entries {
			name := nameOf(e.Tag)
			var index int
			if _, err := fmt.Sscan(name[1:], &index); err != nil {
				t.Fatal(err)
			}
			want := all[index]
			if string(e.Tag.Body()) != want.body || e.Tag.Time() != want.time {
				t.Fatalf("entry %s is %q at %d, was %q at %d", name, e.Tag.Body(), e.Tag.Time(), want.body, want.time)
			}
			if consecutive := r.started && index == r.at+1; !consecutive {
				switch {
				case i > 0:
					t.Fatalf("%s follows %d within a run", name, r.at)
				case r.started && !r.jumped && !fell:
					t.Fatalf("%s follows %d for no reason", name, r.at)
				case !want.joinable:
					t.Fatalf("a run begins at %s, which is no join point", name)
				case r.started && index <= r.at:
					t.Fatalf("went back from %d to %s", r.at, name)
				}
				if r.started {
					r.lost += uint64(index - r.at - 1)
				}
			}
			if e.Info.IsHeader() {
				r.state[e.Tag.Kind()] = name
			}
			for kind, h := range want.headers {
				if r.state[kind] != h {
					t.Fatalf("at %s the reader has the %v header %q, want %q", name, kind, r.state[kind], h)
				}
			}
			if last, ok := r.times[want.kind]; ok && int32(want.time-last) < 0 {
				t.Fatalf("%v goes back from %d to %d at %s", want.kind, last, want.time, name)
			}
			r.times[want.kind] = want.time
			r.started, r.jumped, r.at = true, false, index
		}
		if len(run.Entries) > 0 && r.c.Skipped() != r.lost {
			t.Fatalf("lost %d entries, counted %d", r.lost, r.c.Skipped())
		}
		r.c.Release()
	}
	check := func() {
		if s.cost > limits.MaxBytes && s.head < s.next {
			t.Fatalf("%d bytes of %d", s.cost, limits.MaxBytes)
		}
		if int(s.next) != len(all) {
			t.Fatalf("%d entries of %d", s.next, len(all))
		}
		if join := newestJoin(); (join >= 0) != s.Joinable() || (join >= 0 && s.mark != uint64(join)) {
			t.Fatalf("mark %d, want %d", s.mark, join)
		}
		if s.Joinable() && s.head < s.mark {
			if age := int32(s.timeline.last - all[s.head].time); age > int32(limits.MaxTime.Milliseconds()) {
				t.Fatalf("the oldest entry is %d ms old", age)
			}
		}
	}

	frames = func(*rapid.T) {
		if p == nil {
			return
		}
		for range rapid.IntRange(1, 60).Draw(t, "frames") {
			add("KPPPPAAAAAA"[rapid.IntRange(0, 10).Draw(t, "frame")])
			clock += uint32(rapid.IntRange(0, 60).Draw(t, "step"))
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"": func(*rapid.T) { check() },
		"publish": func(*rapid.T) {
			if p != nil || closed {
				return
			}
			var err error
			if p, err = s.Publish(); err != nil {
				t.Fatal(err)
			}
			recycle()
			restart()
		},
		"leave": func(*rapid.T) {
			if p != nil && rapid.IntRange(0, 5).Draw(t, "leave") == 4 {
				p.Close()
				p = nil
			}
		},
		"another source": func(*rapid.T) {
			if p != nil && !closed && rapid.IntRange(0, 2).Draw(t, "restart") == 2 {
				p.Restart()
				restart()
			}
		},
		"frames":      frames, // twice, as most of what comes are frames
		"more frames": frames,
		"audio": func(*rapid.T) {
			for range rapid.IntRange(1, 20).Draw(t, "frames") {
				if p != nil {
					add('A')
					clock += 600
				}
			}
		},
		"header": func(*rapid.T) {
			if p != nil {
				add(rapid.SampledFrom([]byte("VCM")).Draw(t, "header"))
			}
		},
		"clock": func(*rapid.T) {
			clock += rapid.OneOf(rapid.Uint32(), rapid.Map(rapid.Int32Range(-900, 2000), func(d int32) uint32 { return uint32(d) })).
				Draw(t, "leap")
		},
		"join": func(*rapid.T) {
			r := &modelReader{c: s.Join(), state: map[media.Kind]string{}, times: map[media.Kind]uint32{}}
			join := newestJoin()
			if (join < 0) != r.c.seeking || (join >= 0 && r.c.next != uint64(join)) {
				t.Fatalf("joined at %d (seeking %v), want %d", r.c.next, r.c.seeking, join)
			}
			if len(readers) == 8 {
				readers[0].c.LetGo()
				readers = readers[1:]
			}
			readers = append(readers, r)
		},
		"hold": func(*rapid.T) {
			for _, r := range readers {
				switch rapid.IntRange(0, 3).Draw(t, "this one") {
				case 1, 2:
					r.c.Hold()
				case 3:
					r.c.LetGo()
				}
			}
		},
		"read": func(*rapid.T) { // most read
			for _, r := range readers {
				if rapid.IntRange(0, 3).Draw(t, "this one") != 1 {
					read(r)
				}
			}
		},
		"jump": func(*rapid.T) {
			if len(readers) == 0 {
				return
			}
			r := rapid.SampledFrom(readers).Draw(t, "reader")
			join, from := newestJoin(), r.c.next
			if r.c.Jump() > 0 {
				r.jumped = true
				if join >= 0 && r.c.next != uint64(join) {
					t.Fatalf("jumped to %d, want %d", r.c.next, join)
				}
				if join < 0 && from >= s.head {
					t.Fatalf("jumped from %d without a join point ahead", from)
				}
			}
		},
		"close": func(*rapid.T) {
			if rapid.IntRange(0, 50).Draw(t, "close") == 33 {
				s.Close(nil)
				closed = true
			}
		},
	})

	// Whatever happened, every reader comes to the end.
	s.Close(nil)
	closed = true
	for _, r := range readers {
		for n := 0; ; n++ {
			if _, err := r.c.Next(nil); err != nil {
				break
			}
			if n > len(all)+1 {
				t.Fatal("a reader of a closed stream does not end")
			}
			read(r)
		}
	}
}
