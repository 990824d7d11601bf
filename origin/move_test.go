package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"weir/discovery"
	"weir/internal/admin"
	"weir/internal/load"
	"weir/internal/rtmp"
	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
	"weir/internal/session"
)

// pair is two origins of one directory that know each other.
func pair(t *testing.T) (a, b *site) {
	t.Helper()
	dir, cfg := newMemory(), quick()
	a, b = start(t, "a", cfg, dir), start(t, "b", cfg, dir)
	for _, s := range []*site{a, b} {
		eventually(t, "both are known", func() error {
			s.origin.SetDirectory(dir) // which knows nobody
			if n := len(s.origin.others.ByLoad(t.Context(), discovery.RoleOrigin)); n != 1 {
				return fmt.Errorf("%d others", n)
			}
			return nil
		})
	}
	return a, b
}

// offloader is an origin beside a third one that has little load.
func offloader(t *testing.T) *site {
	t.Helper()
	dir := newMemory()
	err := dir.Heartbeat(t.Context(), discovery.Node{
		ID: "c", Instance: "1", Role: discovery.RoleOrigin, State: discovery.StateUp, TTL: time.Minute,
		Addr: discovery.Addr{RTMP: "127.0.0.1:1"}, Load: map[string]float64{discovery.LoadEffective: 0.1},
	})
	if err != nil {
		t.Fatal(err)
	}
	a := start(t, "a", quick(), dir)
	a.origin.SetDirectory(dir)
	return a
}

// move moves a stream beside the test.
func (s *site) move(name, to string) <-chan func() (admin.Moved, error) {
	done := make(chan func() (admin.Moved, error), 1)
	go func() {
		m, err := s.origin.Move(context.Background(), key+name, to)
		done <- func() (admin.Moved, error) { return m, err }
	}()
	return done
}

func mustPublishAs(t *testing.T, s *site, name, secret string) *rtmp.Client {
	t.Helper()
	c, err := s.publishAs(name, secret)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A publisher that an edge forwards is told where to go, publishes there, and has the
// stream there; who plays it here is sent after it.
func TestMoveOfAForwardedPublisher(t *testing.T) {
	a, b := pair(t)
	alice := mustPublishAs(t, a, "demo", "secret of alice")
	send(t, alice, frames("alice", 3))
	player, err := a.play("demo", "edge-2")
	if err != nil {
		t.Fatal(err)
	}
	defer player.Close()
	await(t, player, "alice 2")
	moved := a.move("demo", "")
	select {
	case to := <-alice.Redirected():
		if to.Addr != b.rtmp {
			t.Errorf("sent to %s, want %s", to.Addr, b.rtmp)
		}
	case <-time.After(deadline):
		t.Fatal("the publisher is told nothing")
	}
	send(t, alice, frames("alice still", 1)) // it publishes here until it does there
	await(t, player, "alice still 0")
	again := mustPublishAs(t, b, "demo", "secret of alice")
	m, err := (<-moved)()
	if want := (admin.Moved{Stream: key + "demo", To: "b", Way: "redirect", Left: true}); err != nil || m != want {
		t.Errorf("%+v, %v", m, err)
	}
	l, err := b.holder.Lookup(t.Context(), key+"demo")
	if err != nil {
		t.Fatal(err)
	}
	awaitMoved(t, player, "rtmp://"+b.rtmp+"/live/demo", l.Epoch)
	a.awaitEnded("publish", "moved", 1)
	a.awaitState("demo", "")
	send(t, again, frames("alice again", 3))
	await(t, b.mustPlay("demo"), "alice again 2")
}

// encoder is an encoder that says what it understands, and hears what it is told.
type encoder struct {
	net.Conn
	told chan string // "32", or the code and tcUrl of a status
}

// encode connects an encoder with more properties of connect and publishes.
func (s *site) encode(name string, more ...amf.Property) (*encoder, error) {
	nc, err := net.Dial("tcp", s.rtmp)
	if err != nil {
		return nil, err
	}
	_ = nc.SetDeadline(time.Now().Add(deadline))
	const packet = 1536
	shake := make([]byte, 1+2*packet)
	shake[0] = 3
	if _, err := nc.Write(shake[:1+packet]); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(nc, shake); err != nil {
		return nil, err
	}
	call := func(stream uint32, name string, tid float64, args ...amf.Value) []byte {
		p := amf.Append(amf.Append(nil, amf.Str(name), amf.Num(tid)), args...)
		return chunk.AppendMessage(nil, 3, chunk.TypeCommand, stream, 0, p, chunk.DefaultSize)
	}
	props := append([]amf.Property{amf.P("app", amf.Str("live")), amf.P("tcUrl", amf.Str("rtmp://"+s.rtmp+"/live"))}, more...)
	if _, err := nc.Write(slices.Concat(shake[1:1+packet], call(0, "connect", 1, amf.Obj(props...)), call(0, "createStream", 2, amf.Value{}),
		call(1, "publish", 3, amf.Value{}, amf.Str(name), amf.Str("live")),
		chunk.AppendMessage(nil, 4, chunk.TypeData, 1, 0, amf.Append(nil, amf.Str("@setDataFrame"), amf.Str("onMetaData"), amf.Obj()), chunk.DefaultSize))); err != nil {
		return nil, err
	}
	e := &encoder{Conn: nc, told: make(chan string, 10)}
	started := make(chan error, 3)
	go func() {
		r := chunk.NewReader(nc, chunk.Limits{MaxMessage: 1 << 16, MaxCommand: 1 << 16, MaxPending: 1 << 16, MaxChunkStreams: 8, Buffer: 4096})
		for {
			m, err := r.ReadMessage()
			if err != nil {
				started <- err
				close(e.told)
				return
			}
			if m.Type == chunk.TypeGoAway {
				e.told <- fmt.Sprint(m.Type)
			}
			if m.Type != chunk.TypeCommand {
				continue
			}
			values, err := amf.Decode(m.Payload, amf.Limits{Depth: 8, Values: 2000})
			if err != nil || len(values) < 4 || values[0].Str != "onStatus" {
				continue
			}
			switch code := values[3].Get("code").Text(); code {
			case rtmp.CodePublishStart:
				started <- nil
			case rtmp.CodePublishBadName:
				started <- errors.New(code)
				e.told <- code
			default:
				e.told <- code + " " + values[3].Get("tcUrl").Text()
			}
		}
	}()
	if err := <-started; err != nil {
		nc.Close()
		return nil, err
	}
	s.t.Cleanup(func() { nc.Close() })
	return e, nil
}

func (s *site) mustEncode(name string, more ...amf.Property) *encoder {
	s.t.Helper()
	e, err := s.encode(name, more...)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

func (e *encoder) mustHear(t *testing.T, want string) {
	t.Helper()
	if got := <-e.told; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
}

var (
	reconnects = amf.P("capsEx", amf.Num(rtmp.CapsReconnect))
	goesAway   = amf.P("supportsGoAway", amf.Bool(true))
)

// Encoders are told by what they understand, the better way first, and find their
// stream free for them where they come next, also while their first connection is open.
func TestMoveOfEncoders(t *testing.T) {
	a, b := pair(t)
	for _, c := range []struct {
		name, way, told string
		close           bool // the first connection, before the next
		at              *site
		understands     []amf.Property
	}{
		{"one", "reconnect", rtmp.CodeReconnect + " rtmp://" + b.rtmp + "/live", true, b, []amf.Property{reconnects, goesAway}},
		{"two", "reconnect", rtmp.CodeReconnect + " rtmp://" + b.rtmp + "/live", false, b, []amf.Property{reconnects}},
		{"three", "go_away", "32", true, b, []amf.Property{goesAway}},
		{"four", "go_away", "32", false, b, []amf.Property{goesAway}},
		{"five", "go_away", "32", false, a, []amf.Property{goesAway}}, // its URL leads where it was
		{"six", "go_away", "32", true, a, []amf.Property{goesAway}},
	} {
		t.Run(c.name, func(t *testing.T) {
			moved := a.ended("publish", "moved")
			e := a.mustEncode(c.name, c.understands...)
			a.awaitState(c.name, "live")
			done := a.move(c.name, "b")
			e.mustHear(t, c.told)
			if c.close {
				e.Close()
				if c.at == a {
					a.awaitState(c.name, "resuming")
				}
			}
			eventually(t, "the stream is taken there", func() error {
				_, err := c.at.encode(c.name)
				return err
			})
			m, err := (<-done)()
			if want := (admin.Moved{Stream: key + c.name, To: "b", Way: c.way, Left: true}); err != nil || m != want {
				t.Errorf("%+v, %v", m, err)
			}
			a.awaitEnded("publish", "moved", moved+1)
			if c.at == b {
				a.awaitState(c.name, "")
			} else {
				a.awaitState(c.name, "live")
			}
		})
	}
}

// Who cannot be asked stays; what is not there, or was just asked, is said to be so.
func TestMoveRefuses(t *testing.T) {
	a, _ := pair(t)
	a.mustPublish("plain")
	alice := mustPublishAs(t, a, "asked", "secret of alice")
	a.awaitState("asked", "live")
	f := func(name, to string, want error) {
		t.Helper()
		if _, err := (<-a.move(name, to))(); !errors.Is(err, want) {
			t.Errorf("%s to %q: %v, want %v", name, to, err, want)
		}
	}
	f("plain", "", errStays)
	f("nothing", "", admin.ErrNoStream)
	f("plain", "c", errNoOrigin)
	f("plain", "a", errNoOrigin)
	first := a.move("asked", "")
	<-alice.Redirected()
	f("asked", "", errAskedThat)
	alice.Close()
	if m, err := (<-first)(); err != nil || !m.Left {
		t.Errorf("%+v, %v", m, err)
	}
	cfg := quick()
	cfg.Publish.GoAway = false
	alone := start(t, "c", cfg, newMemory())
	alone.mustPublish("plain")
	alone.mustEncode("shy", goesAway)
	alone.awaitState("shy", "live")
	alone.origin.mu.Lock()
	if w := alone.origin.way(alone.origin.streams[key+"shy"].publisher); w != session.Stays {
		t.Errorf("without publish.go_away an encoder is asked by %q", w)
	}
	alone.origin.mu.Unlock()
	if _, err := (<-alone.move("plain", ""))(); !errors.Is(err, errNoOrigin) {
		t.Errorf("an origin alone: %v", err)
	}
}

// A publisher that is asked and does not go keeps its stream: its name is not free any
// more.
func TestMoveThatIsNotHeeded(t *testing.T) {
	a, b := pair(t)
	a.origin.askedFor = 100 * time.Millisecond
	e := a.mustEncode("demo", goesAway)
	a.awaitState("demo", "live")
	if m, err := (<-a.move("demo", ""))(); err != nil || m.Left {
		t.Errorf("%+v, %v", m, err)
	}
	e.mustHear(t, "32")
	eventually(t, "the name is its own again", func() error {
		if n := a.set.GetOrCreateCounter("weir_moves_failed_total").Get(); n != 1 {
			return fmt.Errorf("%d failed", n)
		}
		l, err := b.holder.Lookup(t.Context(), key+"demo")
		if err != nil || l.Idle {
			return fmt.Errorf("%+v, %v", l, err)
		}
		return nil
	})
	if _, err := b.publish("demo"); code(err) != rtmp.CodePublishBadName {
		t.Errorf("another publisher: %v", err)
	}
	e.Close()
	a.awaitEnded("publish", "connection_lost", 1)
}

// An origin over its soft limit moves one stream at a time, the largest that notices
// nothing first, to an origin with less load, and none if there is none; and not again
// what has just come.
func TestOffload(t *testing.T) {
	a := offloader(t)
	small, large := mustPublishAs(t, a, "small", "secret 1"), mustPublishAs(t, a, "large", "secret 2")
	direct := a.mustEncode("direct", reconnects)
	a.mustPublish("plain")
	send(t, small, frames("small", 60))
	send(t, large, frames("large"+strings.Repeat(".", 10_000), 60))
	for _, name := range []string{"small", "large", "direct", "plain"} {
		a.awaitState(name, "live")
	}
	eventually(t, "bit rates", func() error {
		a.origin.mu.Lock()
		defer a.origin.mu.Unlock()
		if x, y := a.origin.streams[key+"small"].stream.Stats().Bitrate, a.origin.streams[key+"large"].stream.Stats().Bitrate; x == 0 || x >= y {
			return fmt.Errorf("%d and %d", x, y)
		}
		return nil
	})
	asked := func() (all string) {
		for name, c := range map[string]*rtmp.Client{"small": small, "large": large} {
			select {
			case <-c.Redirected():
				all += name
			case <-time.After(50 * time.Millisecond):
			}
		}
		select {
		case <-direct.told:
			all += "direct"
		case <-time.After(50 * time.Millisecond):
		}
		return all
	}
	a.origin.offload(t.Context(), 0.9)
	if got := asked(); got != "" {
		t.Errorf("%s has just come, and was asked to go", got)
	}
	a.origin.mu.Lock()
	for _, p := range a.origin.streams {
		p.settles = time.Time{}
	}
	a.origin.mu.Unlock()
	for _, c := range []struct {
		load float64
		want string
	}{{0.12, ""}, {0.9, "large"}, {0.9, "small"}, {0.9, "direct"}, {0.9, ""}} {
		a.origin.offload(t.Context(), c.load)
		if got := asked(); got != c.want {
			t.Errorf("at load %v: %q was asked to go, want %q", c.load, got, c.want)
		}
	}
}

// An origin moves streams only while it is over its soft limit, and no faster than it
// may.
func TestOffloadIsPaced(t *testing.T) {
	a := offloader(t)
	a.origin.cfg.Publish.MoveEvery = time.Minute
	var clients []*rtmp.Client
	for i := range 3 {
		name := fmt.Sprint("s", i)
		clients = append(clients, mustPublishAs(t, a, name, "secret "+name))
		a.awaitState(name, "live")
		a.origin.mu.Lock()
		a.origin.streams[key+name].settles = time.Time{}
		a.origin.mu.Unlock()
	}
	var soft atomic.Bool
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	looked := make(chan struct{}, 1)
	go func() {
		done <- a.origin.Offload(ctx, func() load.Status {
			select {
			case looked <- struct{}{}:
			default:
			}
			return load.Status{Effective: 0.85, Soft: soft.Load()}
		})
	}()
	asked := func() (n int) {
		for range 3 { // the third has begun after the second has ended
			<-looked
		}
		for _, c := range clients {
			n += len(c.Redirected())
		}
		return n
	}
	if n := asked(); n != 0 {
		t.Errorf("under the limit %d were asked to go", n)
	}
	soft.Store(true)
	eventually(t, "one is asked to go", func() error {
		if asked() == 0 {
			return errors.New("none was")
		}
		return nil
	})
	if n := asked(); n != 1 {
		t.Errorf("%d were asked to go", n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A drain asks publishers to go as it asks players, and those that stay it leaves.
func TestDrainableSessions(t *testing.T) {
	a, _ := pair(t)
	alice := mustPublishAs(t, a, "demo", "secret of alice")
	a.mustPublish("plain")
	a.mustPlay("plain")
	a.awaitState("demo", "live")
	d := Drainable{a.door, a.origin}
	var ids []string
	eventually(t, "a player and a publisher can be moved", func() error {
		if ids = d.Movable(); len(ids) != 2 {
			return fmt.Errorf("%v", ids)
		}
		return nil
	})
	for _, id := range ids {
		if !d.Move(id) || d.Move(id) {
			t.Errorf("session %s was not asked once", id)
		}
	}
	<-alice.Redirected()
	if left := d.Movable(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if d.Move("no such session") {
		t.Error("a session was moved that does not exist")
	}
}
