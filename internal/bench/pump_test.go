package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/internal/media"
	"weir/internal/rtmp"
)

// patience is how long a test waits for anything.
const patience = 20 * time.Second

// sink is a server of RTMP that keeps what is published.
type sink struct {
	addr string
	gate chan struct{} // closed: streams called "slow" are read

	mu      sync.Mutex // guards what follows
	changed *sync.Cond
	streams map[string]*sunk
}

// sunk is what came of a stream.
type sunk struct {
	conn   *rtmp.ServerConn
	tags   []media.Tag
	ended  error // of the publish
	server net.Conn
}

func newSink(t *testing.T) *sink {
	s := &sink{gate: make(chan struct{}), streams: map[string]*sunk{}}
	s.changed = sync.NewCond(&s.mu)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { s.serve(nc) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		for _, c := range s.streams {
			c.conn.Close()
		}
		s.mu.Unlock()
		wg.Wait()
	})
	return s
}

func (s *sink) serve(nc net.Conn) {
	c := rtmp.NewServerConn(nc, rtmp.DefaultServerConfig())
	defer c.Close()
	r, err := c.ReadRequest()
	if err != nil {
		return
	}
	in := &sunk{conn: c, server: nc}
	s.mu.Lock()
	s.streams[r.Name] = in
	s.mu.Unlock()
	err = c.AcceptPublish()
	if strings.HasPrefix(r.Name, "slow") {
		<-s.gate
	}
	for err == nil {
		var tag media.Tag
		tag, err = c.ReadTag()
		s.mu.Lock()
		if err != nil {
			in.ended = err
		} else {
			in.tags = append(in.tags, tag)
		}
		s.mu.Unlock()
		s.changed.Broadcast()
	}
}

// wait waits until a condition holds of what came.
func (s *sink) wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	late := time.AfterFunc(patience, s.changed.Broadcast)
	defer late.Stop()
	begun := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !ok() {
		if time.Since(begun) >= patience {
			t.Fatalf("no %s", what)
		}
		s.changed.Wait()
	}
}

// check fails unless a stream has come whole: its headers, and all that its publisher has
// counted as sent.
func (s *sink) check(t *testing.T, p *publisher) {
	t.Helper()
	s.wait(t, "end of the frames of "+p.url.Name, func() bool { return len(s.streams[p.url.Name].tags) >= len(p.headers)+int(p.audio+p.video) })
	s.mu.Lock()
	defer s.mu.Unlock()
	var next [2]uint32
	for i, tag := range s.streams[p.url.Name].tags {
		if i < len(p.headers) {
			if !slices.Equal(tag.Body(), p.headers[i].Body()) {
				t.Errorf("%s: header %d has changed", p.url.Name, i)
			}
			continue
		}
		m, ok := findMark(tag.Body())
		k, at, size, key := 0, audioTime(m.Seq), p.sizes.audio, false
		if tag.Kind() == media.Video {
			key = int(m.Seq)%p.line.every == 0
			k, at, size = 1, p.form.videoTime(m.Seq), videoSize(p.sizes, key)
		}
		if !ok || m.Run != p.id || m.Stream != p.stream || m.Seq != next[k] {
			t.Fatalf("%s: tag %d, %v, is marked %+v, want number %d", p.url.Name, i, tag.Kind(), m, next[k])
		}
		next[k]++
		want := p.filler.audioTag(m, at, size)
		if k == 1 {
			want = p.filler.videoTag(m, at, key, size)
		}
		if !slices.Equal(tag, want) {
			t.Fatalf("%s: tag %d has changed", p.url.Name, i)
		}
	}
	if next != [2]uint32{p.audio, p.video} || next != p.line.frames {
		t.Errorf("%s: frames %v came, %d %d were sent and %v counted", p.url.Name, next, p.audio, p.video, p.line.frames)
	}
}

// pumped returns a pump of publishers that publish streams with these names.
func (s *sink) pumped(t *testing.T, form Form, bundled bool, names ...string) *pump {
	t.Helper()
	headers, err := headerTags(form)
	if err != nil {
		t.Fatal(err)
	}
	c, fill := newClock(), newFiller()
	var publishers []*publisher
	var outlets []*rtmp.Outlet
	for i, name := range names {
		u, err := rtmp.ParseURL("rtmp://" + s.addr + "/live/" + name)
		if err != nil {
			t.Fatal(err)
		}
		p := &publisher{
			url: u, id: 5, stream: uint32(i), form: form, sizes: form.sizes(), clock: c, filler: fill, headers: headers, bundled: bundled,
			allowed: func(string) error { return nil }, line: &timeline{every: form.gopFrames()}, begun: c.now(),
		}
		if err := p.connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.client.Close() })
		publishers, outlets = append(publishers, p), append(outlets, p.client.Outlet())
	}
	p := newPump(c, publishers, outlets)
	t.Cleanup(p.calls.close)
	return p
}

// rounds turns the pump until a condition holds.
func (p *pump) rounds(t *testing.T, what string, ok func() bool) {
	t.Helper()
	timer := time.NewTicker(time.Millisecond)
	defer timer.Stop()
	for begun := time.Now(); !ok(); <-timer.C {
		if time.Since(begun) > patience {
			t.Fatalf("no %s", what)
		}
		p.round(t.Context())
	}
}

// Many publishers' frames come whole, in order, and none before it is due.
func TestPump(t *testing.T) {
	eachWay(t, func(t *testing.T, prepare func(*calls)) {
		for _, bundled := range []bool{false, true} {
			s := newSink(t)
			var names []string
			for i := range callsAtOnce + 10 {
				names = append(names, fmt.Sprint("s", i))
			}
			p := s.pumped(t, DefaultForm(), bundled, names...)
			prepare(&p.calls)
			last := p.publishers[len(names)-1]
			p.rounds(t, "six frames", func() bool { return last.video >= 6 })
			now := p.clock.now()
			for _, u := range p.publishers {
				if sent := u.begun + u.form.videoTime(u.video-1); sent > now || u.due() < now-patience {
					t.Errorf("frame %d was sent, which is due in %v", u.video-1, sent-now)
				}
				s.check(t, u)
			}
			p.end()
			p.ending.Wait()
			s.wait(t, "proper ends", func() bool {
				for _, in := range s.streams {
					if in.ended == nil {
						return false
					}
				}
				return true
			})
			for name, in := range s.streams {
				if in.ended.Error() != "EOF" {
					t.Errorf("%s ended with %v", name, in.ended)
				}
			}
		}
	})
}

// A server that does not read keeps its own publisher waiting, which is late then and says
// so, and no other; what it missed is sent, whole, when it reads again.
func TestPumpWaitsForRoom(t *testing.T) {
	eachWay(t, func(t *testing.T, prepare func(*calls)) {
		s := newSink(t)
		form := Form{BitRate: 20_000_000, FPS: 25, GOP: time.Second}
		p := s.pumped(t, form, true, "slow", "a", "b")
		prepare(&p.calls)
		slow, a := p.publishers[0], p.publishers[1]
		for i, u := range p.publishers { // the slow one has more to send than sockets take
			if i == 0 {
				u.begun -= 4 * time.Second
			}
		}
		p.rounds(t, "full socket", func() bool { return len(p.outlets[0].Rest()) > 0 })
		p.rounds(t, "frames of the others", func() bool { return a.video >= 5 })
		if stuck := len(p.outlets[0].Rest()); stuck == 0 || len(p.outlets[0].Rest()) > writeBytes+slow.sizes.key+1000 {
			t.Errorf("%d bytes wait", stuck)
		}
		if late := a.line.latest(); late > 2*time.Second {
			t.Errorf("another is late by %v", late)
		}
		slow.begun -= time.Hour // what is due waits for longer
		p.round(t.Context())
		if late := slow.line.latest(); late < time.Hour {
			t.Errorf("late by %v, and waits for an hour", late)
		}
		slow.begun += time.Hour
		close(s.gate)
		p.rounds(t, "end of the rest", func() bool { return p.next[0] > p.clock.now() })
		for _, u := range p.publishers {
			u.halted.Store(true)
		}
		p.rounds(t, "last bytes", func() bool {
			return !slices.ContainsFunc(p.outlets, func(o *rtmp.Outlet) bool { return len(o.Rest()) > 0 })
		})
		for _, u := range p.publishers {
			s.check(t, u)
		}
	})
}

// A publisher that is cut is lost with the server's words, and the others go on.
func TestPumpLosesOne(t *testing.T) {
	eachWay(t, func(t *testing.T, prepare func(*calls)) {
		s := newSink(t)
		p := s.pumped(t, DefaultForm(), true, "cut", "moved", "a")
		prepare(&p.calls)
		p.rounds(t, "frames", func() bool { return p.publishers[2].video >= 2 })
		s.mu.Lock()
		s.streams["cut"].server.Close()
		moved := s.streams["moved"].conn
		if err := moved.Tell(rtmp.RedirectNotice("rtmp://127.0.0.1:1/live/moved", moved.OutChunkSize())); err != nil {
			t.Error(err)
		}
		s.mu.Unlock()
		var redirect *rtmp.RedirectError
		p.rounds(t, "failures", func() bool { return p.publishers[0].failed.Load() != nil && p.publishers[1].failed.Load() != nil })
		if err := *p.publishers[0].failed.Load(); !errors.Is(err, ErrLost) {
			t.Error(err)
		}
		if err := *p.publishers[1].failed.Load(); !errors.Is(err, ErrLost) || !errors.As(err, &redirect) {
			t.Error(err)
		}
		at := p.publishers[2].video
		p.rounds(t, "more frames", func() bool { return p.publishers[2].video >= at+2 })
		s.check(t, p.publishers[2])
	})
}

// A pump runs by itself, halts, and leaves when it is told.
func TestPumpRun(t *testing.T) {
	s := newSink(t)
	p := s.pumped(t, DefaultForm(), true, "a", "b")
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { p.run(ctx) })
	defer wg.Wait()
	defer stop()
	frames := func(name string) int { return len(s.streams[name].tags) }
	s.wait(t, "frames", func() bool { return frames("a") > 20 && frames("b") > 20 })
	for _, u := range p.publishers {
		u.halted.Store(true)
	}
	stop()
	wg.Wait()
	for _, u := range p.publishers {
		s.check(t, u)
		if u.failed.Load() != nil {
			t.Error(*u.failed.Load())
		}
	}
}

// Rounds make no garbage: what a load tool collects the server beside it pays for.
func TestPumpAllocatesNothing(t *testing.T) {
	s := newSink(t)
	// Nobody reads them: a server in this process makes garbage.
	p := s.pumped(t, Form{BitRate: 150_000, FPS: 25, GOP: time.Second}, true, "slow", "slower")
	defer close(s.gate)
	u := p.publishers
	p.round(t.Context())
	frame := time.Second / time.Duration(u[0].form.FPS)
	n := testing.AllocsPerRun(20, func() {
		for i := range u {
			u[i].begun -= frame
			p.next[i] = u[i].due()
		}
		p.round(t.Context())
	})
	if n > 0 || u[1].video < 20 || len(p.outlets[1].Rest()) > 0 {
		t.Errorf("%v allocations; %d frames", n, u[1].video)
	}
}
