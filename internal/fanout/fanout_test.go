package fanout

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/media"
	"weir/internal/rtmp/chunk"
	"weir/internal/stream"
)

// player is one session of a test.
type player struct {
	*Session
	far  net.Conn // the player's end
	done chan Result
}

// limits that do not matter to a test.
var roomy = Limits{MaxLag: time.Minute, WriteTimeout: time.Minute}

// join adds a player on an in-memory connection, which holds no bytes.
func (s *source) join(e *Engine, f Format, l Limits) *player {
	s.t.Helper()
	near, far := net.Pipe()
	return s.joinOn(e, near, far, f, l, nil)
}

func (s *source) joinOn(e *Engine, near, far net.Conn, f Format, l Limits, farewell []byte) *player {
	s.t.Helper()
	p := &player{far: far, done: make(chan Result, 2)}
	var err error
	p.Session, err = e.Add(Player{
		Conn: near, Stream: s.s, Format: f, Limits: l, Farewell: func(error) []byte { return farewell },
		Done: func(r Result) { p.done <- r },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { far.Close() })
	return p
}

// result returns how the session ended.
func (p *player) result(t testing.TB) Result {
	t.Helper()
	select {
	case r := <-p.done:
		return r
	case <-time.After(patience):
		t.Fatal("the session does not end")
		return Result{}
	}
}

// read returns the next n bytes.
func (p *player) read(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(p.far, b); err != nil {
		t.Fatal(err)
	}
	return b
}

// readAll reads until the server closes.
func (p *player) readAll(t testing.TB) []byte {
	t.Helper()
	b, err := io.ReadAll(p.far)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tcpPair returns both ends of a TCP connection, with the segments of Ethernet: those
// of the loopback do not fit into small windows, and wait for timers then.
func tcpPair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1460) })
		return err
	}}
	l, err := c.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialed.Close(); s.Close() })
	return s.(*net.TCPConn), dialed.(*net.TCPConn)
}

func joinTags(tags []media.Tag) []byte {
	var b []byte
	for _, t := range tags {
		b = append(b, t...)
	}
	return b
}

// A stream's whole life, byte by byte, in each format: the first player was
// there before the publisher; the second joins at a key frame.
func TestEveryFormatIsTheLog(t *testing.T) {
	e := testEngine(t)
	defer e.Close()
	s := newSource(t)
	const chunkSize = 4096
	type seen struct {
		name     string
		p        *player
		farewell []byte
		parse    func(b []byte) (tags []byte, farewell []byte)
	}
	flvOf := func(b []byte) ([]byte, []byte) {
		if flags := b[4]; flags != 5 {
			t.Errorf("FLV flags %d, want audio and video", flags)
		}
		return b[13:], nil
	}
	var all []*seen
	enter := func(when string) {
		for _, f := range []seen{
			{name: "FLV", farewell: nil, parse: flvOf},
			{name: "WebSocket", farewell: []byte{0x88, 2, 3, 232}, parse: func(b []byte) ([]byte, []byte) {
				frames, err := parseWebSocket(b)
				if err != nil {
					t.Fatal(err)
				}
				var body, rest []byte
				for _, f := range frames {
					switch f.opcode {
					case 2:
						body = append(body, f.data...)
					case 8:
						rest = append([]byte{0x88, byte(len(f.data))}, f.data...)
					default:
						t.Errorf("frame of opcode %d", f.opcode)
					}
				}
				body, _ = flvOf(body)
				return body, rest
			}},
			{name: "RTMP", farewell: chunk.AppendMessage(nil, 5, chunk.TypeCommand, 1, 0, []byte("bye"), chunkSize), parse: func(b []byte) ([]byte, []byte) {
				tags, commands, err := parseRTMP(b, 1, chunkSize)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(commands, []string{"bye"}) {
					t.Errorf("commands %q", commands)
				}
				return joinTags(tags), b[len(b)-15:]
			}},
		} {
			near, far := tcpPair(t)
			f.name += " " + when
			var format Format
			switch {
			case strings.HasPrefix(f.name, "FLV"):
				format = FLV{}
			case strings.HasPrefix(f.name, "Web"):
				format = WebSocketFLV{}
			default:
				format = RTMP{StreamID: 1, ChunkSize: chunkSize}
			}
			f.p = s.joinOn(e, near, far, format, roomy, f.farewell)
			all = append(all, &f)
		}
	}
	enter("first")
	s.headers(0)
	s.group(0, 3000)
	s.group(1000, 30000)
	enter("late")
	s.frame('P', 1990, 10)
	s.headers(2000) // in mid-stream, in front of its key frame
	s.group(2000, 500)
	want := map[string][]byte{"first": joinTags(s.all)}
	joined := slices.IndexFunc(s.all, func(t media.Tag) bool { return isKey(t) && number(t) == 50 })
	late := slices.Concat(s.all[:3], s.all[joined:])
	for i := range 3 {
		at := uint32(1000)
		if late[i].Kind() == media.Data {
			at = 0
		}
		late[i] = late[i].At(at)
	}
	want["late"] = joinTags(late)
	s.s.Close(nil)

	var readers sync.WaitGroup
	for _, f := range all {
		readers.Go(func() {
			b, err := io.ReadAll(f.p.far)
			if err != nil {
				t.Errorf("%s: %v", f.name, err)
			}
			f.p.End(Left)
			if r := f.p.result(t); r.Reason != Ended || r.Bytes != uint64(len(b)) || r.Skipped != 0 || !errors.Is(r.Err, stream.ErrClosed) {
				t.Errorf("%s: ended as %+v after %d bytes", f.name, r, len(b))
			}
			got, farewell := f.parse(b)
			if !bytes.Equal(farewell, f.farewell) {
				t.Errorf("%s: farewell %x", f.name, farewell)
			}
			_, when, _ := strings.Cut(f.name, " ")
			if !bytes.Equal(got, want[when]) {
				t.Errorf("%s: %d bytes are not the %d of the log", f.name, len(got), len(want[when]))
			}
		})
	}
	readers.Wait()
}

// choppy takes a few bytes at a time and times out in between.
type choppy struct {
	net.Conn
	step int
	got  []byte
}

func (c *choppy) Write(p []byte) (int, error) {
	if len(p) > c.step {
		c.got = append(c.got, p[:c.step]...)
		return c.step, os.ErrDeadlineExceeded
	}
	c.got = append(c.got, p...)
	return len(p), nil
}

func TestPartialWritesAtEveryByte(t *testing.T) {
	for step := 1; step < 120; step++ {
		e := testEngine(t)
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 30)
		s.frame('A', 10, 0)
		near, far := net.Pipe()
		c := &choppy{Conn: near, step: step}
		p := s.joinOn(e, c, far, FLV{}, roomy, nil)
		s.s.Close(nil)
		if r := p.result(t); r.Reason != Ended || r.Bytes != uint64(len(c.got)) {
			t.Fatalf("step %d: %+v", step, r)
		}
		if want := append(fileHeader(s.all), joinTags(s.all)...); !bytes.Equal(c.got, want) {
			t.Fatalf("step %d: other bytes than the log's", step)
		}
	}
}

// A player stalls in the middle of a tag, for longer than it may lag.
func TestSlowPlayerJumpsToTheNewestKeyFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := testEngine(t)
		defer e.Close()
		s := newSource(t)
		s.headers(0)
		s.group(0, 2000)
		p := s.join(e, FLV{}, Limits{MaxLag: 3 * time.Second, WriteTimeout: time.Hour})
		got := p.read(t, 13+100) // into the first tags
		for i := range 20 {
			if i == 12 {
				s.headers(1000 * (i + 1))
			}
			s.group(1000*(i+1), 2000)
		}
		s.s.Close(nil)
		got = append(got, p.readAll(t)...)
		r := p.result(t)
		if r.Reason != Ended || r.Skipped == 0 || r.Skipped != p.Skipped() {
			t.Fatalf("ended as %+v, skipped %d", r, p.Skipped())
		}
		_, tags, err := parseFLV(got)
		if err != nil {
			t.Fatalf("the player got a broken file: %v", err)
		}
		lost, err := s.verify(tags)
		if err != nil {
			t.Fatal(err)
		}
		if last := tags[len(tags)-1]; number(last) != len(s.frames)-1 || lost < 17*50 {
			t.Errorf("lost %d frames, the last is %d of %d", lost, number(last), len(s.frames)-1)
		}
		if want := uint64(lost) + 3; r.Skipped != want { // the new headers came with the key frame
			t.Errorf("%d tags counted as skipped, want %d", r.Skipped, want)
		}
	})
}

func TestStuckPlayerIsCut(t *testing.T) {
	for _, size := range []int{100, 3 << 20} {
		synctest.Test(t, func(t *testing.T) {
			e := testEngine(t)
			defer e.Close()
			s := newSource(t)
			s.headers(0)
			s.frame('K', 0, size)
			start := time.Now()
			p := s.join(e, FLV{}, Limits{MaxLag: time.Minute, WriteTimeout: 10 * time.Second})
			p.read(t, 13)
			r := p.result2()
			if took := time.Since(start); r.Reason != TooSlow || !errors.Is(r.Err, os.ErrDeadlineExceeded) || took < 10*time.Second || took > 20*time.Second {
				t.Errorf("%+v after %v", r, took)
			}
			if _, err := p.far.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("the connection is open: %v", err)
			}
		})
	}
}

// result2 is result without a bound on the time, for synctest.
func (p *player) result2() Result { return <-p.done }

// A key frame of several megabytes takes its time on a thin line.
func TestSlowProgressIsNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := testEngine(t)
		defer e.Close()
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 5<<20)
		p := s.join(e, FLV{}, Limits{MaxLag: time.Minute, WriteTimeout: 10 * time.Second})
		var got []byte
		for range 100 { // fewer bytes in a write timeout than a write has
			time.Sleep(9 * time.Second)
			got = append(got, p.read(t, 100)...)
		}
		for len(got) < 4<<20 {
			time.Sleep(9 * time.Second)
			got = append(got, p.read(t, 48<<10)...)
		}
		s.s.Close(nil)
		got = append(got, p.readAll(t)...)
		if r := p.result2(); r.Reason != Ended {
			t.Fatalf("%+v", r)
		}
		if want := append(fileHeader(s.all), joinTags(s.all)...); !bytes.Equal(got, want) {
			t.Error("other bytes than the log's")
		}
	})
}

func TestEndings(t *testing.T) {
	cause := errors.New("the cause")
	for _, c := range []struct {
		name string
		act  func(e *Engine, s *source, p *player)
		want Reason
	}{
		{"stream", func(_ *Engine, s *source, _ *player) { s.s.Close(cause) }, Ended},
		{"kick", func(_ *Engine, _ *source, p *player) { p.End(Kicked); p.End(Left) }, Kicked},
		{"leaves", func(_ *Engine, _ *source, p *player) { p.End(Left) }, Left},
		{"leaves politely", func(_ *Engine, _ *source, p *player) { p.EndGently(Left) }, Left},
		{"engine", func(e *Engine, _ *source, _ *player) { e.Close() }, Shutdown},
		{"connection breaks", func(_ *Engine, s *source, p *player) { p.far.Close(); s.frame('A', 60, 1) }, Left},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := testEngine(t)
				defer e.Close()
				s := newSource(t)
				s.headers(0)
				s.frame('K', 0, 10)
				p := s.join(e, FLV{}, roomy)
				p.read(t, 13+len(joinTags(s.all)))
				synctest.Wait()
				if e.Len() != 1 {
					t.Errorf("%d players", e.Len())
				}
				c.act(e, s, p)
				r := p.result2()
				if r.Reason != c.want || r.Bytes == 0 {
					t.Errorf("ended as %+v", r)
				}
				if c.want == Ended && r.Err != cause {
					t.Errorf("the cause is %v", r.Err)
				}
				if _, err := p.far.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("the connection is open")
				}
				synctest.Wait()
				if e.Len() != 0 || len(p.done) != 0 {
					t.Errorf("%d players left, Done called %d times more", e.Len(), len(p.done))
				}
				p.End(Kicked) // too late for anything
				p.Inject([]byte{1})
				p.Pause(true)
			})
		})
	}
}

func TestAddAfterClose(t *testing.T) {
	e := testEngine(t)
	e.Close()
	s := newSource(t)
	near, far := net.Pipe()
	_, err := e.Add(Player{Conn: near, Stream: s.s, Format: FLV{}, Done: func(Result) { t.Error("Done was called") }})
	if !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection is open: %v", err)
	}
}

// Whatever ends a session at the same moment, Done is called once and the
// connection is closed.
func TestEndsRace(t *testing.T) {
	for i := range 300 {
		e := testEngine(t)
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 10)
		p := s.join(e, FLV{}, roomy)
		go io.Copy(io.Discard, p.far)
		var racers sync.WaitGroup
		for _, f := range []func(){
			func() { p.End(Kicked) }, func() { p.EndGently(Left) }, func() { s.s.Close(nil) }, e.Close, func() { p.far.Close() }, func() { p.Inject([]byte("x")) },
		}[i%3 : 3+i%4] {
			racers.Go(f)
		}
		racers.Wait()
		p.result(t)
		e.Close()
		if len(p.done) > 0 {
			t.Fatal("Done was called twice")
		}
		if _, err := p.far.Read(make([]byte, 1)); err == nil {
			t.Fatal("the connection is open")
		}
	}
}

// After the farewell the player's own last words must not make a reset of the
// close: the server waits for the player to close first, but not for ever.
func TestFarewellIsNotEatenByAReset(t *testing.T) {
	e := testEngine(t)
	defer e.Close()
	s := newSource(t)
	s.headers(0)
	s.frame('K', 0, 10)
	near, far := tcpPair(t)
	p := s.joinOn(e, near, far, FLV{}, roomy, []byte("bye"))
	s.s.Close(nil)
	if got := p.readAll(t); !bytes.HasSuffix(got, []byte("bye")) {
		t.Errorf("the stream ends with %q", got[len(got)-3:])
	}
	for range 3 { // to a closed socket these would be answered with a reset
		if _, err := far.Write([]byte("acknowledgement")); err != nil {
			t.Fatal(err)
		}
		if n, err := near.Read(make([]byte, 100)); n == 0 {
			t.Fatalf("the server's end is closed already: %v", err)
		}
	}
	select {
	case r := <-p.done:
		t.Fatalf("ended as %+v while the player is there", r)
	default:
	}
	p.End(Left)
	if r := p.result(t); r.Reason != Ended {
		t.Errorf("ended as %+v", r)
	}

	silent := newSource(t)
	near, far = tcpPair(t)
	p = silent.joinOn(e, near, far, FLV{}, roomy, nil)
	silent.s.Close(nil)
	if r := p.result(t); r.Reason != Ended { // nobody calls End
		t.Errorf("ended as %+v", r)
	}
}

// A player that leaves on its farewell did not just leave.
func TestPlayerThatLeavesOnTheFarewell(t *testing.T) {
	for range 200 {
		e := testEngine(t)
		s := newSource(t)
		near, far := net.Pipe()
		p := s.joinOn(e, near, far, FLV{}, roomy, []byte("bye"))
		s.s.Close(nil)
		p.read(t, 3)
		p.End(Left)
		if r := p.result(t); r.Reason != Ended {
			t.Fatalf("ended as %+v", r)
		}
	}
}

// What is injected goes between two tags, and comes although the player is far
// behind the end of the log.
func TestInjectAtTagBoundaries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := testEngine(t)
		defer e.Close()
		s := newSource(t)
		s.headers(0)
		for i := range 5 {
			s.group(1000*i, 20000)
		}
		p := s.join(e, WebSocketFLV{}, roomy)
		pong := []byte{0x8a, 1, 0}
		var got []byte
		for i := range 50 {
			if i == 30 {
				s.group(5000, 20000)
			}
			got = append(got, p.read(t, 1700)...)
			pong[2] = byte(i)
			p.Inject(pong)
		}
		s.s.Close(nil)
		got = append(got, p.readAll(t)...)
		frames, err := parseWebSocket(got)
		if err != nil {
			t.Fatal(err)
		}
		var flv []byte
		pongs, first := 0, 0
		for i, f := range frames {
			if f.opcode == 0xa {
				if int(f.data[0]) != pongs {
					t.Errorf("pong %d out of order", f.data[0])
				}
				if pongs++; pongs == 1 {
					first = i
				}
				continue
			}
			flv = append(flv, f.data...)
			if most := batchBytes + 20000 + 100; len(f.data) > most {
				t.Errorf("a message of %d bytes", len(f.data))
			}
		}
		if pongs != 50 || first != 1 {
			t.Errorf("%d pongs, the first is frame %d", pongs, first)
		}
		if _, tags, err := parseFLV(flv); err != nil {
			t.Error(err)
		} else if lost, err := s.verify(tags); err != nil || lost > 0 {
			t.Errorf("lost %d: %v", lost, err)
		}
	})
}

func TestInjectIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := testEngine(t)
		defer e.Close()
		s := newSource(t)
		p := s.join(e, FLV{}, roomy)
		start := time.Now()
		answer := make([]byte, 1000)
		for range 2 * maxInject / len(answer) {
			p.Inject(answer)
			synctest.Wait()
		}
		if r := p.result2(); r.Reason != TooSlow || time.Since(start) != 0 {
			t.Errorf("ended as %+v after %v", r, time.Since(start))
		}
	})
}

// EndGently lets an answer out that was given before, behind a tag that is on
// its way.
func TestEndGentlySendsWhatIsOwed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := testEngine(t)
		defer e.Close()
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 1000)
		s.group(1000, 3000) // which it does not get any more
		p := s.join(e, WebSocketFLV{}, roomy)
		got := p.read(t, 50)
		p.Inject([]byte{0x88, 0})
		p.EndGently(Left)
		p.EndGently(Failed)
		got = append(got, p.readAll(t)...)
		frames, err := parseWebSocket(got)
		if err != nil || len(frames) != 2 || frames[1].opcode != 8 {
			t.Errorf("%d frames: %v", len(frames), err)
		}
		if r := p.result2(); r.Reason != Left {
			t.Errorf("ended as %+v", r)
		}
	})
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := testEngine(t)
		defer e.Close()
		s := newSource(t)
		s.headers(0)
		s.group(0, 10)
		p := s.join(e, FLV{}, roomy)
		var got bytes.Buffer
		var reader sync.WaitGroup
		reader.Go(func() { io.Copy(&got, p.far) })
		synctest.Wait()
		p.Pause(true)
		synctest.Wait()
		s.frame('P', 1000, 10) // a short pause loses nothing
		synctest.Wait()
		p.Pause(false)
		synctest.Wait()
		p.Pause(true)
		for i := range 30 { // a long one goes on at the newest key frame
			s.group(2000+1000*i, 10)
			synctest.Wait()
		}
		before := p.Bytes()
		p.Inject(nil)
		s.frame('P', 32000, 10)
		synctest.Wait()
		if p.Bytes() != before {
			t.Error("media came during a pause")
		}
		p.Pause(false)
		synctest.Wait()
		s.s.Close(nil)
		reader.Wait()
		_, tags, err := parseFLV(got.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if lost, err := s.verify(tags); err != nil || lost != 29*50 {
			t.Errorf("lost %d frames: %v", lost, err)
		}
		if r := p.result2(); r.Skipped != 0 || r.Reason != Ended {
			t.Errorf("ended as %+v: a pause is no loss", r)
		}
	})
}

// A player that pauses, or does not want what is left, sees the end all the same.
func TestEndReachesPausedAndMutedPlayers(t *testing.T) {
	for _, c := range []struct {
		name string
		wish func(p *player)
	}{
		{"paused", func(p *player) { p.Pause(true) }},
		{"muted", func(p *player) { p.Mute(media.Audio, true); p.Mute(media.Video, true) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := testEngine(t)
				defer e.Close()
				s := newSource(t)
				s.headers(0)
				near, far := net.Pipe()
				p := s.joinOn(e, near, far, FLV{}, roomy, []byte("bye"))
				c.wish(p)
				for i := range 4 { // more than one batch
					s.group(1000*i, 10)
				}
				s.s.Close(nil)
				if got := p.readAll(t); !bytes.HasSuffix(got, []byte("bye")) {
					t.Errorf("no farewell in %d bytes", len(got))
				}
				if r := p.result2(); r.Reason != Ended {
					t.Errorf("ended as %+v", r)
				}
			})
		})
	}
}

// Video that was muted goes on with a key frame and the headers that hold there.
func TestMute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := testEngine(t)
		defer e.Close()
		s := newSource(t)
		s.headers(0)
		p := s.join(e, RTMP{StreamID: 1, ChunkSize: 128}, roomy)
		p.Mute(media.Video, true)
		var got bytes.Buffer
		var reader sync.WaitGroup
		reader.Go(func() { io.Copy(&got, p.far) })
		s.group(0, 10)
		synctest.Wait()
		s.headers(1000)
		s.frame('K', 1000, 10)
		s.frame('A', 1010, 10)
		synctest.Wait()
		p.Mute(media.Video, false)
		s.frame('P', 1040, 10)
		s.frame('A', 1050, 10)
		synctest.Wait()
		s.frame('K', 2000, 10) // from here on
		s.frame('P', 2040, 10)
		synctest.Wait()
		p.Mute(media.Audio, true)
		s.frame('A', 2050, 10)
		synctest.Wait()
		p.Mute(media.Audio, false)
		s.frame('A', 2090, 10)
		s.s.Close(nil)
		reader.Wait()
		tags, _, err := parseRTMP(got.Bytes(), 1, 128)
		if err != nil {
			t.Fatal(err)
		}
		var trace strings.Builder
		have := 0
		for _, tag := range tags {
			switch {
			case tag.Kind() == media.Data:
			case !isFrame(tag):
				trace.WriteByte('h')
				if tag.Kind() == media.Video {
					have = versionOf(tag)
				}
			case tag.Kind() == media.Audio:
				trace.WriteByte('a')
			default:
				if have != versionOf(tag) {
					t.Errorf("video with the headers %d, the player has %d", versionOf(tag), have)
				}
				trace.WriteByte('v')
			}
		}
		if want := "hh" + strings.Repeat("a", 25) + "hh" + "aa" + "vv" + "a"; trace.String() != want {
			t.Errorf("got  %s\nwant %s", &trace, want)
		}
	})
}

// wrapped is a TCP connection with something around it.
type wrapped struct {
	*net.TCPConn
	writes atomic.Int64
}

func (w *wrapped) Write(p []byte) (int, error) {
	w.writes.Add(1)
	return w.TCPConn.Write(p)
}

// Tags leave by writev, also from a connection that a *net.TCPConn is embedded in.
func TestWrappedConnections(t *testing.T) {
	e := testEngine(t)
	defer e.Close()
	s := newSource(t)
	s.headers(0)
	s.group(0, 1000)
	near, far := tcpPair(t)
	w := &wrapped{TCPConn: near}
	p := s.joinOn(e, w, far, WebSocketFLV{}, roomy, nil)
	s.s.Close(nil)
	if _, err := parseWebSocket(p.readAll(t)); err != nil {
		t.Error(err)
	}
	p.End(Left)
	p.result(t)
	if n := w.writes.Load(); n > 0 {
		t.Errorf("%d writes of single buffers", n)
	}
}

// Players of all formats come, stall and leave at random while headers change;
// each one's bytes must be the log's.
func TestRandomPlayers(t *testing.T) {
	e := testEngine(t)
	s := newSource(t)
	s.headers(0)
	type outcome struct {
		tags []media.Tag
		r    Result
		err  error
	}
	var (
		mu       sync.Mutex
		outcomes []outcome
		players  sync.WaitGroup
	)
	const chunkSize = 1000
	play := func(i int) {
		near, far := tcpPair(t)
		_ = near.SetWriteBuffer(8 << 10)
		_ = far.SetReadBuffer(8 << 10)
		var f Format
		switch i % 3 {
		case 0:
			f = FLV{}
		case 1:
			f = WebSocketFLV{}
		case 2:
			f = RTMP{StreamID: 1, ChunkSize: chunkSize}
		}
		p := s.joinOn(e, near, far, f, Limits{MaxLag: 2 * time.Second, WriteTimeout: time.Minute}, nil)
		players.Go(func() {
			var b []byte
			buf := make([]byte, 1+i*i*97%9000)
			var err error
			for round := 0; err == nil; round++ {
				var n int
				n, err = far.Read(buf)
				b = append(b, buf[:n]...)
				switch {
				case i%5 == 4 && len(b) > 300_000:
					p.End(Left) // may be in the middle of a tag
				case i%7 == 3 && round == 20:
					time.Sleep(30 * time.Millisecond) // it stalls; nothing waits for it
				}
			}
			p.End(Left)
			o := outcome{r: <-p.done}
			switch i % 3 {
			case 0:
				_, o.tags, o.err = parseFLV(b)
			case 1:
				var frames []frameWS
				frames, o.err = parseWebSocket(b)
				var flv []byte
				for _, f := range frames {
					flv = append(flv, f.data...)
				}
				if len(flv) > 0 && o.err == nil {
					_, o.tags, o.err = parseFLV(flv)
				}
			case 2:
				o.tags, _, o.err = parseRTMP(b, 1, chunkSize)
			}
			if o.r.Reason == Left && i%5 == 4 && errors.Is(o.err, io.ErrUnexpectedEOF) {
				o.err = nil // it left
			}
			mu.Lock()
			outcomes = append(outcomes, o)
			mu.Unlock()
		})
	}
	for i := range 60 {
		if i%20 == 13 {
			s.headers(1000 * i)
		}
		for range 2 {
			play(len(s.frames) + i)
		}
		s.group(1000*i, 1500)
		if i%4 == 0 {
			time.Sleep(2 * time.Millisecond) // some keep up, some do not; every outcome must verify
		}
	}
	s.s.Close(nil)
	players.Wait()
	e.Close()
	jumped := 0
	for _, o := range outcomes {
		if o.err != nil {
			t.Errorf("%+v: %v", o.r, o.err)
			continue
		}
		lost, err := s.verify(o.tags)
		if err != nil {
			t.Errorf("%+v: %v", o.r, err)
		}
		if lost > 0 {
			jumped++
		}
		if (lost > 0) != (o.r.Skipped > 0) && o.r.Reason == Ended {
			t.Errorf("lost %d frames, counted %d", lost, o.r.Skipped)
		}
	}
	t.Logf("%d players, %d of them jumped", len(outcomes), jumped)
}
