package fanout

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"

	"weir/internal/media"
	"weir/internal/rtmp/chunk"
	"weir/internal/stream"
)

// bench is a shard without a goroutine, with healthy players whose sockets take
// everything at no cost: what is measured is the engine's own work.
type bench struct {
	shard *shard
	s     *source
	ms    int
}

func newBench(tb testing.TB, f Format, players int) *bench {
	b := &bench{s: newSourceWith(tb, stream.DefaultLimits())}
	e := &Engine{opt: Options{OnJump: func(Jump) {}, Log: slog.New(slog.DiscardHandler), hooks: hooks{
		send: func(_ uintptr, b []byte) (int, error) { return len(b), nil },
		pays: never,
	}}}
	b.shard = newShard(e, 0, 0)
	b.s.headers(0)
	b.s.frame('K', 0, 1000)
	for i := range players {
		p := &Session{e: e, fd: int32(noFile + i), at: -1, shard: b.shard, mailed: true,
			p: terms{Stream: b.s.s, Format: f}, cursor: b.s.s.Join()}
		b.shard.letter = append(b.shard.letter, p)
	}
	b.shard.read()
	b.shard.round(0)
	b.shard.list[0].opening = opening{} // nobody joins any more
	return b
}

// publish appends the frames of 120 ms.
func (b *bench) publish() {
	for range 3 {
		b.ms += 40
		for _, f := range []struct {
			kind media.Kind
			size int
		}{{media.Video, 5000}, {media.Audio, 250}} {
			tag := media.NewTag(f.kind, uint32(b.ms), f.size)
			body := tag.Body()
			body[0], body[1] = 0x27, 1
			if f.kind == media.Audio {
				body[0] = 0xaf
			} else if b.ms%2000 == 0 {
				body[0] = 0x17
			}
			_ = b.s.p.Append(tag)
		}
	}
}

// relayed is a stream that is read from an RTMP connection, appended to a log, sent to
// players, and dropped, as at an edge.
type relayed struct {
	*bench
	in    *chunk.Reader
	round int // frames of a round
}

func newRelayed(tb testing.TB, players int) *relayed {
	b := newBench(tb, FLV{}, players)
	// Two seconds of 1 Mbit/s.
	size := binary.BigEndian.AppendUint32(nil, testChunk)
	first := chunk.AppendMessage(nil, chunk.StreamControl, chunk.TypeSetChunkSize, 0, 0, size, chunk.DefaultSize)
	var rest []byte
	for i := range 50 {
		video := media.NewTag(media.Video, uint32(40*i), 4300)
		video.Body()[0], video.Body()[1] = 0x27, 1
		if i == 0 {
			video = media.NewTag(media.Video, 0, 30_000)
			video.Body()[0], video.Body()[1] = 0x17, 1
		}
		audio := media.NewTag(media.Audio, uint32(40*i), 300)
		audio.Body()[0], audio.Body()[1] = 0xaf, 1
		rest = chunk.AppendMedia(chunk.AppendMedia(rest, video, 1, testChunk), audio, 1, testChunk)
	}
	in := chunk.NewReader(io.MultiReader(bytes.NewReader(first), &loop{b: rest}), chunk.Limits{
		MaxMessage: chunk.MaxSize, MaxCommand: 64 << 10, MaxPending: chunk.MaxSize, MaxChunkStreams: 8, Trusted: 256 << 10, Buffer: 32 << 10,
	})
	b.s.p.Recycle(in.Gone)
	r := &relayed{bench: b, in: in}
	for range 3000 { // the log is full, and there is memory for it
		r.step(tb)
	}
	return r
}

// step is one frame's way.
func (r *relayed) step(tb testing.TB) {
	m, err := r.in.ReadMessage()
	if err != nil {
		tb.Fatal(err)
	}
	if m.Type == chunk.TypeVideo {
		r.ms += 40
	}
	m.Tag.SetTime(uint32(r.ms)) // what is read over and over has no times
	if err := r.s.p.Append(m.Tag); err != nil {
		tb.Fatal(err)
	}
	if r.round++; r.round%6 == 0 {
		r.shard.round(0)
	}
}

// loop reads b over and over.
type loop struct {
	b  []byte
	at int
}

func (r *loop) Read(p []byte) (int, error) {
	n := copy(p, r.b[r.at:])
	if r.at += n; r.at == len(r.b) {
		r.at = 0
	}
	return n, nil
}

// A frame that comes, is sent and leaves the log costs no memory.
func TestRelayingAllocatesNothing(t *testing.T) {
	r := newRelayed(t, 2)
	if n := testing.AllocsPerRun(10, func() {
		for range 1000 {
			r.step(t)
		}
	}); n > 0 {
		t.Errorf("%v allocations for 1000 frames", n)
	}
}

func BenchmarkRelaying(b *testing.B) {
	r := newRelayed(b, 2)
	b.ReportAllocs()
	for b.Loop() {
		r.step(b)
	}
}

// A flush allocates nothing, for however many players.
func TestFlushAllocatesNothing(t *testing.T) {
	for _, format := range formats {
		for _, players := range []int{10, 1000} {
			b := newBench(t, format.f, players)
			g := b.shard.list[0]
			if len(g.healthy) != players {
				t.Fatalf("%d healthy players", len(g.healthy))
			}
			at, headers := g.cursor.Seq(), g.cursor.Headers()
			b.publish()
			allocs := testing.AllocsPerRun(50, func() {
				g.cursor = b.s.s.At(at, headers) // rewound, which is one allocation
				b.shard.round(0)
				if b.shard.sends != players {
					t.Fatalf("%d sends", b.shard.sends)
				}
			})
			if allocs > 1 {
				t.Errorf("%s, %d players: %v allocations per round", format.name, players, allocs-1)
			}
		}
	}
}

func BenchmarkFlush(b *testing.B) {
	for _, format := range formats {
		for _, players := range []int{1, 100, 1000, 10000} {
			b.Run(fmt.Sprintf("%s/%d", format.name, players), func(b *testing.B) {
				w := newBench(b, format.f, players)
				b.ReportAllocs()
				at, headers := w.shard.list[0].cursor.Seq(), w.shard.list[0].cursor.Headers()
				w.publish()
				for b.Loop() {
					w.shard.list[0].cursor = w.s.s.At(at, headers) // one allocation
					w.shard.round(0)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(players), "ns/player")
			})
		}
	}
}

// Many streams with a few players each: what a round costs when one stream has grown.
func BenchmarkRoundOfManyStreams(b *testing.B) {
	for _, streams := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(streams), func(b *testing.B) {
			w := newBench(b, FLV{}, 5)
			for range streams - 1 {
				s := newSourceWith(b, stream.DefaultLimits())
				s.headers(0)
				s.frame('K', 0, 1000)
				w.shard.letter = append(w.shard.letter, &Session{e: w.shard.e, fd: noFile, at: -1, shard: w.shard,
					p: terms{Stream: s.s, Format: FLV{}}, cursor: s.s.Join()})
			}
			w.shard.read()
			w.shard.round(0)
			at, headers := w.shard.list[0].cursor.Seq(), w.shard.list[0].cursor.Headers()
			w.publish()
			b.ReportAllocs()
			for b.Loop() {
				w.shard.list[0].cursor = w.s.s.At(at, headers)
				w.shard.round(0)
			}
		})
	}
}

func BenchmarkJoin(b *testing.B) {
	w := newBench(b, FLV{}, 1)
	for range 40 {
		w.publish()
	}
	w.shard.round(0)
	g := w.shard.list[0]
	b.ReportAllocs()
	for b.Loop() {
		p := &Session{e: w.shard.e, fd: noFile, at: -1, shard: w.shard, p: terms{Stream: w.s.s, Format: FLV{}}, cursor: w.s.s.Join()}
		w.shard.admit(p)
		g.remove(p)
	}
}

// The shard's send over a real socket, beside what it costs through RawConn.
func BenchmarkSend(b *testing.B) {
	near, far := tcpPair(b)
	raw, _ := direct(near)
	data := make([]byte, 4<<10)
	var drain sync.WaitGroup
	drain.Go(func() {
		buf := make([]byte, 1<<20)
		for {
			if _, err := far.Read(buf); err != nil {
				return
			}
		}
	})
	defer func() { near.Close(); drain.Wait() }()
	w := newSocketWriter(nil)
	fd := -1
	_ = raw.Control(func(f uintptr) { fd = int(f) })
	for name, fd := range map[string]int{"owned": fd, "RawConn": -1} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for sent := 0; sent < len(data); {
					n, err := w.write(fd, raw, data[sent:], false)
					if err != nil {
						b.Fatal(err)
					}
					sent += n
				}
			}
		})
	}
}

// A send allocates nothing, through RawConn neither.
func TestSendAllocatesNothing(t *testing.T) {
	near, far := tcpPair(t)
	raw, _ := direct(near)
	fd := -1
	_ = raw.Control(func(f uintptr) { fd = int(f) })
	w := newSocketWriter(nil)
	b, in := []byte("a frame"), make([]byte, 100)
	for _, fd := range []int{fd, -1} {
		if n := testing.AllocsPerRun(100, func() {
			if n, err := w.write(fd, raw, b, false); n != len(b) || err != nil {
				t.Fatal(n, err)
			}
			_, _ = far.Read(in)
		}); n > 0 {
			t.Errorf("%v allocations per send", n)
		}
	}
}
