package chunk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"weir/internal/media"
)

func testLimits() Limits {
	return Limits{
		MaxMessage: 1 << 20, MaxCommand: 64 << 10, MaxPending: 2 << 20,
		MaxChunkStreams: 16, Trusted: 256 << 10, Buffer: 4 << 10,
	}
}

// wire builds a chunk stream by hand, so that the tests do not lean on the writer.
type wire struct{ b []byte }

func (w *wire) header(format byte, csid uint32, field uint32, rest ...byte) *wire {
	w.b = appendBasic(w.b, format, csid)
	if format < 3 {
		w.b = append(w.b, byte(field>>16), byte(field>>8), byte(field))
	}
	w.b = append(w.b, rest...)
	return w
}

// full appends a type-0 header, its timestamp extended when it must be.
func (w *wire) full(csid, time uint32, size int, typ byte, streamID uint32) *wire {
	w.header(0, csid, min(time, extendedMark), byte(size>>16), byte(size>>8), byte(size), typ)
	w.b = binary.LittleEndian.AppendUint32(w.b, streamID)
	if time >= extendedMark {
		w.time(time)
	}
	return w
}

// same appends a type-1 header: same stream, other size and type.
func (w *wire) same(csid, delta uint32, size int, typ byte) *wire {
	w.header(1, csid, min(delta, extendedMark), byte(size>>16), byte(size>>8), byte(size), typ)
	if delta >= extendedMark {
		w.time(delta)
	}
	return w
}

func (w *wire) delta(csid, delta uint32) *wire { return w.header(2, csid, delta) }
func (w *wire) again(csid uint32) *wire        { return w.header(3, csid, 0) }
func (w *wire) time(t uint32) *wire {
	w.b = binary.BigEndian.AppendUint32(w.b, t)
	return w
}
func (w *wire) payload(n int, fill byte) *wire {
	w.b = append(w.b, bytes.Repeat([]byte{fill}, n)...)
	return w
}
func (w *wire) raw(p ...byte) *wire {
	w.b = append(w.b, p...)
	return w
}
func (w *wire) chunkSize(n uint32) *wire {
	return w.full(2, 0, 4, TypeSetChunkSize, 0).time(n)
}

// read returns all messages of b as text, and the error that ended them.
func read(b []byte, limits Limits) (string, error) {
	var out strings.Builder
	r := NewReader(bytes.NewReader(b), limits)
	for {
		m, err := r.ReadMessage()
		if err != nil {
			return out.String(), err
		}
		fill := "-"
		if len(m.Payload) > 0 {
			fill = string(m.Payload[:1])
			if strings.Trim(string(m.Payload), fill) != "" {
				fill = "mixed"
			}
		}
		fmt.Fprintf(&out, "%d/%d@%d %d%s ", m.ChunkStream, m.Type, m.Time, len(m.Payload), fill)
		if isTag(m.Type) != (m.Tag != nil) {
			fmt.Fprintf(&out, "TAG? ")
		}
		if m.Tag != nil && (m.Tag.Time() != m.Time || m.Tag.Kind() != media.Kind(m.Type) || &m.Tag.Body()[:1][0] != &m.Payload[:1][0] ||
			binary.BigEndian.Uint32(m.Tag[len(m.Tag)-4:]) != uint32(len(m.Payload)+11)) {
			fmt.Fprintf(&out, "BAD TAG ")
		}
	}
}

func TestReader(t *testing.T) {
	f := func(name string, w *wire, want string, wantErr error) {
		t.Helper()
		got, err := read(w.b, testLimits())
		if strings.TrimSpace(got) != want || !errors.Is(err, wantErr) {
			t.Errorf("%s:\n got  %q, %v\n want %q, %v", name, got, err, want, wantErr)
		}
	}
	w := func() *wire { return new(wire) }
	const big = 0x01000000 // needs the extended timestamp

	f("nothing", w(), "", io.EOF)
	f("one message", w().full(4, 7, 3, 8, 1).payload(3, 'a'), "4/8@7 3a", io.EOF)
	f("two chunks", w().full(4, 7, 200, 8, 1).payload(128, 'a').again(4).payload(72, 'a'), "4/8@7 200a", io.EOF)
	f("exactly one chunk", w().full(4, 7, 128, 8, 1).payload(128, 'a').full(4, 8, 1, 8, 1).payload(1, 'b'), "4/8@7 128a 4/8@8 1b", io.EOF)
	f("two- and three-byte ids", w().full(64, 1, 1, 9, 1).payload(1, 'a').full(319, 2, 1, 9, 1).payload(1, 'b').
		full(320, 3, 1, 9, 1).payload(1, 'c').full(65599, 4, 1, 9, 1).payload(1, 'd'),
		"64/9@1 1a 319/9@2 1b 320/9@3 1c 65599/9@4 1d", io.EOF)
	f("long form of a short id", w().full(70, 1, 1, 9, 1).payload(1, 'a').raw(0xc1, 6, 0).payload(1, 'b'), "70/9@1 1a 70/9@2 1b", io.EOF)
	f("deltas", w().full(4, 100, 1, 8, 1).payload(1, 'a').same(4, 20, 2, 8).payload(2, 'b').delta(4, 23).payload(2, 'c'),
		"4/8@100 1a 4/8@120 2b 4/8@143 2c", io.EOF)
	f("type 3 starts messages: last delta again (OBS 30.2)", w().full(4, 100, 1, 8, 1).payload(1, 'a').delta(4, 21).payload(1, 'b').
		again(4).payload(1, 'c').again(4).payload(1, 'd'), "4/8@100 1a 4/8@121 1b 4/8@142 1c 4/8@163 1d", io.EOF)
	f("type 3 after type 0: its time is the delta (ffmpeg)", w().full(4, 23, 1, 8, 1).payload(1, 'a').again(4).payload(1, 'b'), "4/8@23 1a 4/8@46 1b", io.EOF)
	f("type 3 of several chunks adds the delta once", w().full(4, 100, 200, 8, 1).payload(128, 'a').again(4).payload(72, 'a').
		delta(4, 40).payload(128, 'b').again(4).payload(72, 'b').again(4).payload(128, 'c').again(4).payload(72, 'c'),
		"4/8@100 200a 4/8@140 200b 4/8@180 200c", io.EOF)
	f("opens with type 1 (librtmp)", w().same(4, 5, 1, 8).payload(1, 'a'), "4/8@5 1a", io.EOF)
	f("interleaved", w().full(4, 1, 200, 8, 1).payload(128, 'a').full(6, 2, 150, 9, 1).payload(128, 'v').again(4).payload(72, 'a').again(6).payload(22, 'v'),
		"4/8@1 200a 6/9@2 150v", io.EOF)
	f("zero length", w().full(4, 1, 0, 8, 1).full(6, 1, 0, 9, 1).again(6).full(3, 0, 0, 20, 0), "4/8@1 0- 6/9@1 0- 6/9@2 0- 3/20@0 0-", io.EOF)

	f("chunk size", w().chunkSize(1000).full(4, 1, 1200, 8, 1).payload(1000, 'a').again(4).payload(200, 'a'), "4/8@1 1200a", io.EOF)
	f("chunk size in the middle of a message", w().full(4, 1, 300, 8, 1).payload(128, 'a').chunkSize(60).again(4).payload(60, 'a').
		chunkSize(4096).again(4).payload(112, 'a'), "4/8@1 300a", io.EOF)
	f("chunk size 1", w().chunkSize(1).full(4, 1, 2, 8, 1).payload(1, 'a').again(4).payload(1, 'a'), "4/8@1 2a", io.EOF)
	f("chunk size beyond all messages", w().chunkSize(1<<31-1).full(4, 1, 900000, 8, 1).payload(900000, 'a'), "4/8@1 900000a", io.EOF)
	f("chunk size 0", w().chunkSize(0), "", ErrProtocol)
	f("chunk size 2^31", w().chunkSize(1<<31), "", ErrProtocol)
	f("chunk size cut short", w().full(2, 0, 3, TypeSetChunkSize, 0).payload(3, 0), "", ErrProtocol)

	abort := func(w *wire, csid uint32) *wire { return w.full(2, 0, 4, TypeAbort, 0).time(csid) }
	f("abort", abort(w().full(4, 1, 300, 8, 1).payload(128, 'a'), 4).full(4, 9, 1, 8, 1).payload(1, 'b'), "4/8@9 1b", io.EOF)
	f("abort, then type 3", abort(w().full(4, 10, 130, 8, 1).payload(128, 'a'), 4).again(4).payload(128, 'b').again(4).payload(2, 'b'), "4/8@20 130b", io.EOF)
	f("abort of nothing", abort(abort(w(), 4), 70000).full(4, 9, 1, 8, 1).payload(1, 'b'), "4/8@9 1b", io.EOF)
	f("abort cut short", w().full(2, 0, 2, TypeAbort, 0).payload(2, 0), "", ErrProtocol)

	f("extended, one chunk", w().full(4, big, 3, 8, 1).payload(3, 'a'), "4/8@16777216 3a", io.EOF)
	f("0xFFFFFF itself", w().full(4, 0xFFFFFF, 3, 8, 1).payload(3, 'a'), "4/8@16777215 3a", io.EOF)
	f("0xFFFFFE is short", w().full(4, 0xFFFFFE, 3, 8, 1).payload(3, 'a'), "4/8@16777214 3a", io.EOF)
	f("extended, repeated in type 3", w().full(4, big, 300, 8, 1).payload(128, 'a').again(4).time(big).payload(128, 'a').again(4).time(big).payload(44, 'a').
		full(4, big+5, 1, 8, 1).payload(1, 'b'), "4/8@16777216 300a 4/8@16777221 1b", io.EOF)
	f("extended, left out in type 3", w().full(4, big, 300, 8, 1).payload(128, 'a').again(4).payload(128, 'a').again(4).payload(44, 'a').
		full(4, big+5, 1, 8, 1).payload(1, 'b'), "4/8@16777216 300a 4/8@16777221 1b", io.EOF)
	f("extended, left out, a tail of two bytes", w().full(4, big, 130, 8, 1).payload(128, 'a').again(4).payload(2, 'a').
		full(4, big+5, 1, 8, 1).payload(1, 'b'), "4/8@16777216 130a 4/8@16777221 1b", io.EOF)
	f("extended, left out, a tail of two bytes at the very end", w().full(4, big, 130, 8, 1).payload(128, 'a').again(4).payload(2, 'a'), "4/8@16777216 130a", io.EOF)
	f("extended, repeated, a tail of two bytes", w().full(4, big, 130, 8, 1).payload(128, 'a').again(4).time(big).payload(2, 'a'), "4/8@16777216 130a", io.EOF)
	f("extended delta", w().full(4, 5, 1, 8, 1).payload(1, 'a').same(4, big, 200, 8).payload(128, 'b').again(4).time(big).payload(72, 'b'),
		"4/8@5 1a 4/8@16777221 200b", io.EOF)
	f("extended delta, type 3 repeats the absolute time", w().full(4, 5, 1, 8, 1).payload(1, 'a').same(4, big, 200, 8).payload(128, 'b').again(4).time(big+5).payload(72, 'b'),
		"4/8@5 1a 4/8@16777221 200b", io.EOF)
	f("type 3 message after an extended type 0: the same time", w().full(4, big, 1, 8, 1).payload(1, 'a').again(4).time(big).payload(1, 'b').again(4).payload(1, 'c').full(4, 1, 1, 8, 1).payload(1, 'd'),
		"4/8@16777216 1a 4/8@16777216 1b 4/8@16777216 1c 4/8@1 1d", io.EOF)
	f("back to short times", w().full(4, big, 1, 8, 1).payload(1, 'a').delta(4, 40).payload(1, 'b').again(4).payload(1, 'c'), "4/8@16777216 1a 4/8@16777256 1b 4/8@16777296 1c", io.EOF)
	f("wrap at 2^32", w().full(4, 0xFFFFFFF0, 1, 8, 1).payload(1, 'a').delta(4, 0x20).payload(1, 'b'), "4/8@4294967280 1a 4/8@16 1b", io.EOF)

	f("type 2 on a fresh id", w().delta(4, 1).payload(1, 'a'), "", ErrProtocol)
	f("type 3 on a fresh id", w().again(4).payload(1, 'a'), "", ErrProtocol)
	f("new message within a message", w().full(4, 1, 300, 8, 1).payload(128, 'a').full(4, 1, 1, 8, 1).payload(1, 'a'), "", ErrProtocol)
	f("message over the limit", w().full(4, 1, 1<<20+1, 9, 1), "", ErrProtocol)
	f("command over the limit", w().full(4, 1, 64<<10+1, 20, 1), "", ErrProtocol)
	f("unknown type over the command limit", w().full(4, 1, 64<<10+1, 99, 1), "", ErrProtocol)
	f("unknown type", w().full(4, 1, 2, 99, 1).payload(2, 'x'), "4/99@1 2x", io.EOF)
	f("cut in the basic header", w().raw(0x01), "", io.ErrUnexpectedEOF)
	f("cut in the message header", w().raw(0x04, 0, 0), "", io.ErrUnexpectedEOF)
	f("cut in the payload", w().full(4, 1, 3, 8, 1).payload(2, 'a'), "", io.ErrUnexpectedEOF)
	f("cut between chunks", w().full(4, 1, 300, 8, 1).payload(128, 'a'), "", io.ErrUnexpectedEOF)
	f("cut in the extended timestamp", w().full(4, big, 3, 8, 1).cut(2), "", io.ErrUnexpectedEOF)

	many := w()
	for id := range uint32(17) {
		many.full(3+id, 0, 1, 8, 1).payload(1, 'a')
	}
	if _, err := read(many.b, testLimits()); !errors.Is(err, ErrProtocol) {
		t.Errorf("17 chunk streams, limit 16: %v", err)
	}
	pending := w().chunkSize(1)
	for id := range uint32(12) {
		pending.full(3+id, 0, 250<<10, 9, 1).payload(1, 'a')
	}
	if _, err := read(pending.b, testLimits()); !errors.Is(err, ErrProtocol) {
		t.Errorf("12 unfinished messages of 250 KiB, limit 2 MiB: %v", err)
	}
}

// TestReaderBytewise: every way of cutting the input gives the same messages.
func TestReaderBytewise(t *testing.T) {
	w := new(wire).chunkSize(300).full(4, 0x01000000, 1000, 8, 1).payload(300, 'a').full(6, 9, 200, 9, 1).payload(200, 'v').
		again(4).time(0x01000000).payload(300, 'a').again(4).time(0x01000000).payload(300, 'a').again(4).time(0x01000000).payload(100, 'a')
	want, _ := read(w.b, testLimits())
	if want != "6/9@9 200v 4/8@16777216 1000a " {
		t.Fatalf("whole: %q", want)
	}
	for _, r := range []io.Reader{iotest.OneByteReader(bytes.NewReader(w.b)), iotest.HalfReader(bytes.NewReader(w.b)), iotest.DataErrReader(bytes.NewReader(w.b))} {
		cr := NewReader(r, testLimits())
		for _, size := range []int{200, 1000} {
			m, err := cr.ReadMessage()
			if err != nil || len(m.Payload) != size {
				t.Fatalf("%T: %d bytes, %v; want %d", r, len(m.Payload), err, size)
			}
		}
		if _, err := cr.ReadMessage(); err != io.EOF {
			t.Errorf("%T: %v, want io.EOF", r, err)
		}
		if cr.Received() != uint64(len(w.b)) {
			t.Errorf("%T: received %d, want %d", r, cr.Received(), len(w.b))
		}
	}
}

// TestLeftOutTail: when the peer leaves extended timestamps out of type-3
// chunks, a message whose tail is shorter than four bytes must not wait for the
// next one.
func TestLeftOutTail(t *testing.T) {
	const big = 0x01000000
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	r := NewReader(ours, testLimits())
	_ = ours.SetDeadline(time.Now().Add(10 * time.Second))
	go func() {
		w := new(wire).full(4, big, 150, 8, 1).payload(128, 'a').again(4).payload(22, 'a').
			full(4, big+9, 129, 8, 1).payload(128, 'b').again(4).payload(1, 'b')
		_, _ = theirs.Write(w.b) // and then nothing
	}()
	for _, size := range []int{150, 129} {
		if m, err := r.ReadMessage(); err != nil || len(m.Payload) != size {
			t.Fatalf("%d bytes, %v; want %d", len(m.Payload), err, size)
		}
	}
}

// TestSetLimits: more is allowed and read ahead after the limits were raised.
func TestSetLimits(t *testing.T) {
	small := testLimits()
	small.MaxMessage = 1000
	w := new(wire).chunkSize(1<<20).full(4, 0, 5, 20, 0).payload(5, 'c').full(6, 0, 500000, 9, 1).payload(500000, 'v')
	r := NewReader(bytes.NewReader(w.b), small)
	if _, err := r.ReadMessage(); err != nil {
		t.Fatal(err)
	}
	raised := testLimits()
	raised.Buffer = 64 << 10
	r.SetLimits(raised)
	if m, err := r.ReadMessage(); err != nil || len(m.Payload) != 500000 {
		t.Fatalf("%d bytes, %v", len(m.Payload), err)
	}
}

// TestMemoryFollowsArrival: a declared size costs nothing before bytes come.
func TestMemoryFollowsArrival(t *testing.T) {
	l := testLimits()
	l.MaxMessage, l.MaxPending = MaxSize, 1<<30
	w := new(wire)
	for id := range uint32(10) {
		w.full(3+id, 0, MaxSize, 9, 1).payload(128, 'v')
	}
	r := NewReader(bytes.NewReader(w.b), l)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := r.ReadMessage()
	runtime.ReadMemStats(&after)
	if err != io.ErrUnexpectedEOF {
		t.Fatal(err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > uint64(11*l.Trusted) {
		t.Errorf("10 × 128 bytes of 16 MiB messages took %d bytes, want at most %d each", got, l.Trusted)
	}
}

// TestNothingIsKeptWithATag: what a peer sends between tags that are kept, and that is of
// no use to anybody, is not kept with them, as a log of so many bytes must be able to say.
func TestNothingIsKeptWithATag(t *testing.T) {
	const tags = 500
	f := func(name string, between func(w *wire)) {
		t.Helper()
		w := new(wire).chunkSize(4000)
		for range tags {
			w.full(4, 0, 20, TypeAudio, 1).payload(20, 'a')
			between(w)
		}
		r := NewReader(bytes.NewReader(w.b), testLimits())
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		var kept []media.Tag
		for {
			m, err := r.ReadMessage()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if m.Type == TypeAudio {
				kept = append(kept, m.Tag)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if each := (int(after.HeapAlloc) - int(before.HeapAlloc)) / tags; each > 1000 || len(kept) != tags {
			t.Errorf("%s: each of %d tags of 20 bytes keeps %d", name, len(kept), each)
		}
		runtime.KeepAlive(w)
		runtime.KeepAlive(kept)
	}
	f("nothing", func(*wire) {})
	f("data", func(w *wire) { // such as onStatus
		for range 4 {
			w.full(5, 0, 4000, TypeData, 1).payload(4000, 'd')
		}
	})
	f("empty messages", func(w *wire) {
		for range 500 {
			w.full(5, 0, 0, TypeVideo, 1)
		}
	})
	f("messages that are aborted", func(w *wire) {
		for range 4 {
			w.full(5, 0, 4001, TypeVideo, 1).payload(4000, 'v').full(2, 0, 4, TypeAbort, 0).time(5)
		}
	})
}

// cut drops the last n bytes.
func (w *wire) cut(n int) *wire { w.b = w.b[:len(w.b)-n]; return w }

// turns is a source that gives its parts one by one, and has something done before each.
type turns struct {
	parts  [][]byte
	before func()
	awaits int
}

func (s *turns) Await() {
	s.awaits++
	s.before()
}

func (s *turns) Read(p []byte) (int, error) {
	if len(s.parts) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.parts[0])
	if s.parts[0] = s.parts[0][n:]; len(s.parts[0]) == 0 {
		s.parts = s.parts[1:]
	}
	return n, nil
}

// TestSharedBuffers: readers that wait have no buffer, and those that read meanwhile do not
// get in their way, wherever in a message they are.
func TestSharedBuffers(t *testing.T) {
	limits := Limits{MaxMessage: 1 << 20, MaxCommand: 1 << 10, MaxPending: 1 << 20, MaxChunkStreams: 8, Trusted: 1 << 10, Buffer: 2 << 10, Shared: true}
	const messages = 40
	message := func(who byte, i int) []byte { return bytes.Repeat([]byte{who, byte(i)}, 30+97*i%700) }
	stream := func(who byte) (all []byte) {
		for i := range messages {
			all = AppendMessage(all, StreamVideo, TypeVideo, 1, uint32(i), message(who, i), DefaultSize)
		}
		return all
	}
	for step := 1; step < 400; step += 13 {
		var readers [3]*Reader
		var sources [3]*turns
		var got [3]int
		var read func(who int)
		busy := [3]bool{}
		read = func(who int) {
			if busy[who] || got[who] == messages {
				return
			}
			busy[who] = true
			m, err := readers[who].ReadMessage()
			if err != nil {
				t.Fatalf("in parts of %d: reader %d: %v", step, who, err)
			}
			if want := message(byte(who), got[who]); !bytes.Equal(m.Payload, want) {
				t.Fatalf("in parts of %d: reader %d got something else for message %d", step, who, got[who])
			}
			got[who]++
			busy[who] = false
		}
		for who := range readers {
			sources[who] = &turns{before: func() {
				if readers[who].buf != nil {
					t.Fatal("a reader that waits has a buffer")
				}
				read((who + 1) % len(readers))
			}}
			for part := range slices.Chunk(stream(byte(who)), step+who) {
				sources[who].parts = append(sources[who].parts, part)
			}
			readers[who] = NewReader(sources[who], limits)
		}
		for range messages {
			for who := range readers {
				read(who)
			}
		}
		for who := range readers {
			if got[who] != messages || sources[who].awaits == 0 {
				t.Errorf("in parts of %d: reader %d got %d messages and waited %d times", step, who, got[who], sources[who].awaits)
			}
		}
	}
}

func TestAppendMessageBytes(t *testing.T) {
	f := func(got []byte, want *wire) {
		t.Helper()
		if !bytes.Equal(got, want.b) {
			t.Errorf("got  %x\nwant %x", got, want.b)
		}
	}
	p := bytes.Repeat([]byte{'p'}, 300)
	f(AppendMessage(nil, 3, 20, 0, 0, p[:10], 128), new(wire).full(3, 0, 10, 20, 0).payload(10, 'p'))
	f(AppendMessage(nil, 3, 20, 1, 77, p, 128), new(wire).full(3, 77, 300, 20, 1).payload(128, 'p').again(3).payload(128, 'p').again(3).payload(44, 'p'))
	f(AppendMessage(nil, 3, 20, 1, 77, p[:256], 128), new(wire).full(3, 77, 256, 20, 1).payload(128, 'p').again(3).payload(128, 'p'))
	f(AppendMessage(nil, 319, 20, 1, 0xFFFFFF, p[:129], 128), new(wire).full(319, 0xFFFFFF, 129, 20, 1).payload(128, 'p').again(319).time(0xFFFFFF).payload(1, 'p'))
	f(AppendMessage(nil, 320, 20, 1, 0x01020304, nil, 128), new(wire).full(320, 0x01020304, 0, 20, 1))
	f(AppendMessage([]byte{1}, 5, 20, 0, 0, nil, 128), new(wire).raw(1).full(5, 0, 0, 20, 0))
}

// TestRoundTrip: whatever is written in chunks of any size, on any chunk
// streams and at any time, is read back.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 5000).Draw(t, "chunk size")
		b := new(wire).chunkSize(uint32(size)).b
		var want []Message
		for range rapid.IntRange(1, 10).Draw(t, "messages") {
			m := Message{
				Type:        rapid.SampledFrom([]uint8{8, 9, 15, 17, 18, 20, 22}).Draw(t, "type"),
				StreamID:    rapid.Uint32().Draw(t, "stream"),
				Time:        rapid.OneOf(rapid.Uint32(), rapid.Uint32Range(0xFFFFF0, 0x1000010)).Draw(t, "time"),
				ChunkStream: rapid.SampledFrom([]uint32{2, 3, 63, 64, 319, 320, 65599}).Draw(t, "csid"),
				Payload:     rapid.SliceOfN(rapid.Byte(), 0, 12000).Draw(t, "payload"),
			}
			want = append(want, m)
			b = AppendMessage(b, m.ChunkStream, m.Type, m.StreamID, m.Time, m.Payload, size)
		}
		r := NewReader(bytes.NewReader(b), testLimits())
		for i, m := range want {
			got, err := r.ReadMessage()
			if err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
			if got.Type != m.Type || got.StreamID != m.StreamID || got.Time != m.Time || got.ChunkStream != m.ChunkStream || !bytes.Equal(got.Payload, m.Payload) {
				t.Fatalf("message %d: %+v, want %+v", i, got, m)
			}
		}
	})
}

func TestAppendMedia(t *testing.T) {
	for _, kind := range []media.Kind{media.Audio, media.Video, media.Data} {
		tag := media.NewTag(kind, 0x01000000, 70000)
		for i := range tag.Body() {
			tag.Body()[i] = byte(i)
		}
		r := NewReader(bytes.NewReader(append(new(wire).chunkSize(60000).b, AppendMedia(nil, tag, 1, 60000)...)), testLimits())
		m, err := r.ReadMessage()
		if err != nil || !bytes.Equal(m.Tag, tag) || m.StreamID != 1 {
			t.Errorf("%v: %d bytes on stream %d, %v", kind, len(m.Tag), m.StreamID, err)
		}
	}
}

// input is n media messages of size bytes at a chunk size, over and over.
type input struct {
	b  []byte
	at int
}

func (in *input) Read(p []byte) (int, error) {
	n := copy(p, in.b[in.at:])
	if in.at += n; in.at == len(in.b) {
		in.at = 0
	}
	return n, nil
}

func mediaInput(size, chunkSize int) *input {
	tag := media.NewTag(media.Video, 40, size)
	var b []byte
	for range 16 {
		b = AppendMedia(b, tag, 1, chunkSize)
	}
	return &input{b: b}
}

// window is a reader's tags, the newest of which are in use.
type window struct {
	r      *Reader
	tags   []media.Tag
	copies []media.Tag // of tags
}

// add takes a tag in, and gives the memory of the oldest of more than size back.
func (w *window) add(t testing.TB, tag media.Tag, size int) {
	t.Helper()
	w.tags, w.copies = append(w.tags, tag), append(w.copies, slices.Clone(tag))
	if len(w.tags) <= size {
		return
	}
	if !bytes.Equal(w.tags[0], w.copies[0]) {
		t.Fatal("a tag in use was overwritten")
	}
	w.r.Gone(w.tags[0], true)
	w.tags, w.copies = w.tags[1:], w.copies[1:]
}

// interleaved is a chunk stream of messages on several chunk streams at a time, of which
// some are aborted, and what is to be read of it.
func interleaved(r *rand.Rand, messages int, aborts bool) (b []byte, want []media.Tag) {
	const chunk = 1000
	w := new(wire).chunkSize(chunk)
	type message struct {
		tag  media.Tag
		sent int // of its body
	}
	open := map[uint32]*message{}
	for n := 0; n < messages || len(open) > 0; {
		csid := uint32(4 + r.IntN(3))
		if r.IntN(60) == 0 || n == messages {
			csid = 7 // whose messages take long
		}
		if n == messages && open[csid] == nil {
			csid = uint32(4 + r.IntN(3))
		}
		m := open[csid]
		switch {
		case m == nil && n == messages:
			continue
		case m == nil:
			size := r.IntN(3000)
			switch n % 50 {
			case 0:
				size = 0
			case 10, 11:
				size = r.IntN(20_000)
			}
			if n%400 == 300 {
				size = r.IntN(600_000) // not taken at once
			}
			tag := media.NewTag([]media.Kind{media.Audio, media.Video, media.Data}[r.IntN(3)], uint32(n), size)
			for i := range tag.Body() {
				tag.Body()[i] = byte(n + i)
			}
			m = &message{tag: tag}
			open[csid] = m
			w.full(csid, uint32(n), size, uint8(tag.Kind()), 1)
			n++
		case aborts && r.IntN(200) == 0:
			w.full(2, 0, 4, TypeAbort, 0).time(csid)
			delete(open, csid)
			continue
		default:
			w.again(csid)
		}
		part := m.tag.Body()[m.sent:]
		part = part[:min(len(part), chunk)]
		w.raw(part...)
		if m.sent += len(part); m.sent == len(m.tag.Body()) {
			want = append(want, m.tag)
			delete(open, csid)
		}
	}
	return w.b, want
}

// TestReadIntoUsedMemory: messages are read into the memory of those that are gone.
func TestReadIntoUsedMemory(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which has memory used again, too
	for _, aborts := range []bool{false, true} {
		b, want := interleaved(rand.New(rand.NewPCG(1, 2)), 4000, aborts)
		r := NewReader(bytes.NewReader(b), testLimits())
		log := window{r: r}
		pages, size := map[uintptr]bool{}, 0 // of small tags
		for n, tag := range want {
			m, err := r.ReadMessage()
			if err != nil {
				t.Fatalf("aborts %v, message %d: %v", aborts, n, err)
			}
			if !bytes.Equal(m.Tag, tag) {
				t.Fatalf("aborts %v: message %d of %d bytes is not what was sent", aborts, n, len(tag))
			}
			if m.Type != TypeData && len(tag) < 3000 {
				pages[uintptr(unsafe.Pointer(&m.Tag[0]))/4096] = true
				size += len(tag)
			}
			log.add(t, m.Tag, 10)
		}
		if _, err := r.ReadMessage(); err != io.EOF {
			t.Fatal(err)
		}
		if most := size / 4096 / 2; !aborts && len(pages) > most {
			t.Errorf("tags of %d bytes are in %d pages of 4 KB, want at most %d", size, len(pages), most)
		}
	}
}

// TestReadingIntoUsedMemoryAllocatesNothing, when what is read goes as it came.
func TestReadingIntoUsedMemoryAllocatesNothing(t *testing.T) {
	r := NewReader(mediaInput(10<<10, DefaultSize), testLimits())
	var tags [100]media.Tag
	n := 0
	read := func() {
		for range 1000 {
			at := n % len(tags)
			if tags[at] != nil {
				r.Gone(tags[at], true)
			}
			m, err := r.ReadMessage()
			if err != nil {
				t.Fatal(err)
			}
			tags[at] = m.Tag
			n++
		}
	}
	read()
	if got := testing.AllocsPerRun(10, read); got != 0 {
		t.Errorf("%v allocations for 1000 messages", got)
	}
}

func TestAllocations(t *testing.T) {
	r := NewReader(mediaInput(100<<10, DefaultSize), testLimits())
	if _, err := r.ReadMessage(); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(200, func() { _, _ = r.ReadMessage() }); n != 1 {
		t.Errorf("reading a large media message: %v allocations, want 1", n)
	}
	commands := &input{b: AppendMessage(nil, 3, TypeCommand, 0, 0, make([]byte, 500), DefaultSize)}
	r = NewReader(commands, testLimits())
	if n := testing.AllocsPerRun(200, func() { _, _ = r.ReadMessage() }); n != 0 {
		t.Errorf("reading a command: %v allocations, want 0", n)
	}
	tag, dst := media.NewTag(media.Video, 0x01000000, 200000), make([]byte, 0, 201000)
	if n := testing.AllocsPerRun(200, func() { _ = AppendMedia(dst, tag, 1, 4096) }); n != 0 {
		t.Errorf("AppendMedia into a large enough slice: %v allocations, want 0", n)
	}
	if n := testing.AllocsPerRun(200, func() { _ = AppendMedia(nil, tag, 1, 60000) }); n != 1 {
		t.Errorf("AppendMedia into nil: %v allocations, want 1", n)
	}
}

func FuzzReader(f *testing.F) {
	const big = 0x01000000
	f.Add(new(wire).full(4, 7, 200, 8, 1).payload(128, 'a').again(4).payload(72, 'a').b)
	f.Add(new(wire).chunkSize(60).full(4, big, 130, 8, 1).payload(60, 'a').again(4).time(big).payload(60, 'a').again(4).payload(10, 'a').b)
	f.Add(new(wire).full(4, 1, 300, 8, 1).payload(128, 'a').full(2, 0, 4, TypeAbort, 0).time(4).again(4).b)
	f.Add(new(wire).full(320, 1, 0, 9, 1).delta(320, 5).again(320).b)
	f.Fuzz(func(t *testing.T, b []byte) {
		l := testLimits()
		l.MaxPending, l.Trusted = 100<<10, 1<<10
		r := NewReader(bytes.NewReader(b), l)
		log := window{r: r}
		var payload int
		for {
			m, err := r.ReadMessage()
			if err != nil {
				break
			}
			if payload += len(m.Payload); payload > len(b) {
				t.Fatalf("%d bytes of payload out of %d bytes", payload, len(b))
			}
			if m.Tag != nil && (len(m.Tag) != len(m.Payload)+media.TagOverhead || m.Tag.Time() != m.Time) {
				t.Fatalf("tag of %d bytes for %d", len(m.Tag), len(m.Payload))
			}
			if m.Tag != nil {
				log.add(t, m.Tag, 3)
			}
			held := 0
			for _, cs := range r.low {
				if cs != nil {
					held += len(cs.body)
				}
			}
			for _, cs := range r.high {
				held += len(cs.body)
			}
			if held != r.pending || held > l.MaxPending+media.TagOverhead {
				t.Fatalf("unfinished messages hold %d bytes, counted %d, limit %d", held, r.pending, l.MaxPending)
			}
		}
	})
}
