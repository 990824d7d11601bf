package fanout

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/uring"
)

// end is a player of a batch that is tested by itself.
type end struct {
	*Session
	near, far *net.TCPConn
	want      []byte
}

func newEnd(t testing.TB, own bool) *end {
	near, far := tcpPair(t)
	raw, ok := direct(near)
	if !ok {
		t.Fatal("no socket")
	}
	p := &end{Session: &Session{raw: raw, fd: -1}, near: near, far: far}
	if own {
		p.fd = int32(descriptor(t, near))
	}
	return p
}

func (p *end) gets(t testing.TB) {
	got := make([]byte, len(p.want))
	if _, err := io.ReadFull(p.far, got); err != nil || !bytes.Equal(got, p.want) {
		t.Errorf("other bytes: %v", err)
	}
}

func noComplaint(t testing.TB) func(error) { return func(err error) { t.Error(err) } }

// Each send of a batch has its own outcome, whatever those of the others are and
// whether the ring can make it or not.
func TestBatchOutcomes(t *testing.T) {
	out := newSocketWriter(nil)
	batch := newBatch(out, noComplaint(t), false)
	defer batch.close()
	var ends []*end
	for i := range 3 * batchSends / 4 {
		ends = append(ends, newEnd(t, i%5 != 3))
	}
	full, broken, half := ends[7], ends[11], ends[20]
	for n := 1; n > 0; {
		n, _ = sendNow(uintptr(full.fd), letters(1<<20, 0))
		full.want = append(full.want, letters(1<<20, 0)[:n]...)
	}
	_ = broken.near.CloseWrite()
	_ = half.near.SetWriteBuffer(4 << 10)
	blocks := []*block{
		batch.add(block{bytes: letters(20_000, 1), in: new(arena)}),
		batch.add(block{bytes: letters(8<<20, 2), in: new(arena)}),
	}
	for _, p := range ends {
		b := blocks[0]
		if p == half {
			b = blocks[1]
		}
		if batch.queue(p.Session, b) != (p == half || batch.bytes >= batchSendBytes) {
			t.Errorf("due with %d bytes", batch.bytes)
		}
	}
	batch.send()
	if len(batch.sends) != len(ends) {
		t.Fatal(len(batch.sends))
	}
	for i, s := range batch.sends {
		p := ends[i]
		switch {
		case s.p != p.Session:
			t.Fatal("another player")
		case p == broken:
			if s.n != 0 || !errors.Is(s.err, syscall.EPIPE) {
				t.Errorf("broken: %d, %v", s.n, s.err)
			}
		case p == full: // by now the kernel may have found some more room
			if s.err != nil {
				t.Errorf("full: %v", s.err)
			}
		case p == half:
			if s.n == 0 || s.n == len(s.b.bytes) || s.err != nil {
				t.Errorf("half: %d, %v", s.n, s.err)
			}
		case s.n != len(s.b.bytes) || s.err != nil:
			t.Errorf("player %d: %d, %v", i, s.n, s.err)
		}
		p.want = append(p.want, s.b.bytes[:s.n]...)
		if p != broken {
			p.gets(t)
		}
	}
	if most := 1 + len(ends)/5 + 1; out.calls > most {
		t.Errorf("%d calls, expected %d at most", out.calls, most)
	}
	batch.drained()
	batch.reset()
	if batch.bytes != 0 || len(batch.sends) != 0 || len(batch.blocks) != 0 {
		t.Error("not empty")
	}
}

// Where there is no ring, or it does not work any more, each player is sent to by itself,
// and nothing is lost or sent twice.
func TestBatchWithoutARing(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, b *batch) func(){
		"none": func(_ *testing.T, b *batch) func() { b.plain = true; return func() {} },
		"refused": func(t *testing.T, _ *batch) func() {
			var all unix.Rlimit
			if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &all); err != nil {
				t.Fatal(err)
			}
			few := all
			few.Cur = 1
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
				t.Fatal(err)
			}
			return func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &all) }
		},
		"broken": func(t *testing.T, b *batch) func() {
			var err error
			if b.ring, err = uring.New(batchSends); err != nil {
				t.Fatal(err)
			}
			// In the place of its descriptor is now one of something else.
			file, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			for _, fd := range rings(t) {
				if err := unix.Dup3(int(file.Fd()), fd, unix.O_CLOEXEC); err != nil {
					t.Fatal(err)
				}
			}
			return func() {}
		},
	} {
		t.Run(name, func(t *testing.T) {
			out := newSocketWriter(nil)
			var told []error
			batch := newBatch(out, func(err error) { told = append(told, err) }, false)
			defer batch.close()
			ends := []*end{newEnd(t, true), newEnd(t, true), newEnd(t, false)}
			restore := spoil(t, &batch)
			for round := range 2 {
				b := batch.add(block{bytes: letters(3000, byte(round)), in: new(arena)})
				for _, p := range ends {
					batch.queue(p.Session, b)
					p.want = append(p.want, b.bytes...)
				}
				batch.send()
				for _, s := range batch.sends {
					if s.n != len(b.bytes) || s.err != nil {
						t.Error(s.n, s.err)
					}
				}
				batch.drained()
				batch.reset()
			}
			restore()
			for _, p := range ends {
				p.gets(t)
			}
			if len(told) != 1 && name != "none" || name == "none" && told != nil {
				t.Errorf("told %v", told)
			}
			if !batch.plain {
				t.Error("it tries again and again")
			}
		})
	}
}

// rings returns the descriptors of all rings of this process.
func rings(t *testing.T) (all []int) {
	const dir = "/proc/self/fd"
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if to, _ := os.Readlink(filepath.Join(dir, e.Name())); to == "anon_inode:[io_uring]" {
			fd, err := strconv.Atoi(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, fd)
		}
	}
	if all == nil {
		t.Fatal("no ring is open")
	}
	return all
}

// The engine says once why it does without io_uring, for all its shards.
func TestWithoutRingIsToldOnce(t *testing.T) {
	var log strings.Builder
	e := &Engine{opt: Options{Log: slog.New(slog.NewTextHandler(&log, nil))}}
	for range 3 {
		e.withoutRing(uring.ErrUnavailable)
	}
	if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), uring.ErrUnavailable.Error()) {
		t.Error(log.String())
	}
}

// Blocks of many streams, some of them for more players than one batch has room for,
// frames larger than an arena, and sockets that fill in the middle: every player gets
// the log of its own stream, with few system calls.
func TestBatchesOfManyStreams(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) {
			var sends, calls atomic.Int64
			e := New(Options{
				Shards: 1, MaxLatency: 20 * time.Millisecond, Plain: plain, Log: slog.New(slog.DiscardHandler),
				OnFlush: func(_, _ time.Duration, n, c int) { sends.Add(int64(n)); calls.Add(int64(c)) },
				hooks:   hooks{pays: never}, // pages take calls of their own
			})
			defer e.Close()
			var readers sync.WaitGroup
			var jumped atomic.Int64
			type audience struct {
				s    *source
				all  []*crowdPlayer
				over chan bool // closed when all is published
			}
			var streams []*audience
			for n := range 20 {
				a := &audience{s: newSource(t), over: make(chan bool)}
				players := 3
				if n == 10 {
					players = 2*batchSends + 9
				}
				a.s.headers(0)
				a.s.frame('K', 0, 100)
				for i := range players {
					near, far := tcpPair(t)
					stalls := i%7 == 2 && n%2 == 0
					if stalls {
						_ = near.SetWriteBuffer(32 << 10)
						_ = far.SetReadBuffer(64 << 10)
					}
					p := a.s.crowdPlayerOn(e, near, far, 0, true)
					a.all = append(a.all, p)
					readers.Go(func() {
						if stalls {
							<-a.over
						}
						b, _ := io.ReadAll(p.far)
						p.End(Left)
						r := p.result(t)
						<-a.over
						tags, err := formats[0].parse(b)
						if err != nil {
							t.Errorf("stream %d, player %d: %v, %+v", n, i, err, r)
							return
						}
						lost, err := a.s.verify(tags)
						switch {
						case err != nil:
							t.Errorf("stream %d, player %d: %v", n, i, err)
						case r.Reason != Ended || number(tags[len(tags)-1]) != len(a.s.frames)-1:
							t.Errorf("stream %d, player %d: %+v", n, i, r)
						case (lost > 0) != (r.Skipped > 0):
							t.Errorf("stream %d, player %d: lost %d, counted %d", n, i, lost, r.Skipped)
						case lost > 0:
							jumped.Add(1)
						}
					})
				}
				streams = append(streams, a)
			}
			// A second comes when those who read have the one before: the more there is at a
			// time, the fewer sends a batch has.
			sent := func() bool {
				for _, a := range streams {
					if a.all[0].Bytes() < uint64(13+len(joinTags(a.s.all))) {
						return false
					}
				}
				return true
			}
			for sec := range 12 {
				within(t, "the players get what there is", sent)
				for n, a := range streams {
					a.s.frame('K', 1000*sec, 20_000)
					for i := range 3 {
						a.s.frame('P', 1000*sec+300*i, 2000)
						a.s.frame('A', 1000*sec+300*i, 200)
					}
					if n == 10 && sec%6 == 1 {
						a.s.frame('P', 1000*sec+950, arenaBytes+70_000)
					}
				}
			}
			for _, a := range streams {
				a.s.s.Close(nil)
				close(a.over)
			}
			readers.Wait()
			if jumped.Load() == 0 {
				t.Error("no player was slow")
			}
			if few := calls.Load() < sends.Load()/4; few == plain {
				t.Errorf("%d sends, %d calls", sends.Load(), calls.Load())
			}
		})
	}
}

// Where no send of a batch is the ring's no call is counted for it.
func TestCallsOfABatch(t *testing.T) {
	for _, own := range []bool{true, false} {
		out := newSocketWriter(nil)
		batch := newBatch(out, noComplaint(t), false)
		defer batch.close()
		b := batch.add(block{bytes: letters(100, 1), in: new(arena)})
		const players = 10
		for range players {
			batch.queue(newEnd(t, own).Session, b)
		}
		batch.send()
		if want := map[bool]int{true: 1, false: players}[own]; out.calls != want {
			t.Errorf("own=%v: %d calls, want %d", own, out.calls, want)
		}
	}
}

// Large blocks for players of whom the engine has the descriptors go by the ring and by
// pages, and what they cost is noted; shorter ones go by the ring. Others go by pages.
func TestPagesBesideTheRing(t *testing.T) {
	for _, own := range []bool{true, false} {
		var mu sync.Mutex
		var paged bool   // guarded by mu
		var known [2]int // guarded by mu; sizes of which the cost is known, by way
		e := New(Options{Shards: 1, Log: slog.New(slog.DiscardHandler), hooks: hooks{
			round: func(s *shard) {
				mu.Lock()
				defer mu.Unlock()
				paged, known = s.out.pages.open, [2]int{}
				for _, c := range s.ways {
					for by, cost := range c.cost {
						if cost > 0 {
							known[by]++
						}
					}
				}
			},
		}})
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 100)
		var all []*crowdPlayer
		for range pagedPlayers {
			near, far := tcpPair(t)
			all = append(all, s.crowdPlayerOn(e, near, far, 0, own))
		}
		get := func(want []byte) {
			t.Helper()
			b := make([]byte, len(want))
			for _, p := range all {
				if _, err := io.ReadFull(p.far, b); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(b, want) {
					t.Fatal("other bytes")
				}
			}
		}
		get(append(FLV{}.begin(s.all), joinTags(s.all)...))
		s.frame('P', 20, pagedBytes)
		get(s.frames[len(s.frames)-1])
		mu.Lock()
		if paged == own {
			t.Errorf("own=%v: paged=%v for a block that is not large", own, paged)
		}
		mu.Unlock()
		for i := range firstLooks {
			s.frame('P', 40+40*i, eitherBytes)
			get(s.frames[len(s.frames)-1])
		}
		e.Close()
		want := [2]int{}
		if own {
			want = [2]int{1, 1}
		}
		if !paged || known != want {
			t.Errorf("own=%v: paged=%v, costs known of %v, want %v", own, paged, known, want)
		}
	}
}
