package rtmp

import (
	"bytes"
	"runtime"
	"strings"
	"sync"
	"testing"

	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

// playCam is what a player says up to its request.
var playCam = join(connectCall("live"), call(0, "createStream", 2, null), call(1, "play", 3, null, amf.Str("cam")))

// player returns the server of a player whose request, in what it says, was accepted.
func player(t *testing.T, says ...[]byte) *ServerConn {
	t.Helper()
	c, _ := scripted(says...)
	if _, err := c.ReadRequest(); err != nil {
		t.Fatal(err)
	}
	if err := c.AcceptPlay(); err != nil {
		t.Fatal(err)
	}
	return c
}

// listener is a player in a fan-out that there is not.
type listener struct {
	mu       sync.Mutex
	injected []byte        // guarded by mu
	wishes   []PlayControl // guarded by mu
	left     chan struct{} // closed by Leave, once
}

func newListener() *listener { return &listener{left: make(chan struct{})} }

func (l *listener) Inject(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.injected = append(l.injected, b...)
}

func (l *listener) Control(p PlayControl) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wishes = append(l.wishes, p)
}

func (l *listener) Leave() { close(l.left) }

// hasLeft reports whether the player left, once all that it said was read.
func (l *listener) hasLeft(c *ServerConn) bool {
	for c.ears.isAwake() {
		runtime.Gosched()
	}
	return l.hasLeftNow()
}

func (e *ears) isAwake() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.awake
}

// holds reports whether something is still to be read by somebody.
func (e *ears) holds() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.awake && e.said != nil
}

// overhear gives Hear what comes over the connection, size bytes at a time at most, up to
// its end, which is not within a chunk, and reports whether the player left before.
func overhear(c *ServerConn, l *listener, size int) (left bool) {
	pour(c, l, size)
	return l.hasLeft(c)
}

// pour is overhear that does not wait until all is read.
func pour(c *ServerConn, l *listener, size int) {
	c.Hear(nil, l)
	b := make([]byte, size)
	for {
		n, err := c.NetConn().Read(b)
		c.Hear(b[:n], l)
		if l.hasLeftNow() || err != nil {
			return
		}
	}
}

func (l *listener) hasLeftNow() bool {
	select {
	case <-l.left:
		return true
	default:
		return false
	}
}

// What a player says counts the same in whatever pieces it comes, also with the end of
// its request and in the middle of a chunk.
func TestHearInPieces(t *testing.T) {
	said := join(call(1, "pause", 0, null, amf.Bool(true), amf.Num(1000)), call(1, "receiveAudio", 0, null, amf.Bool(false)),
		call(1, "long", 0, null, amf.Str(strings.Repeat("x", 300))), // several chunks
		msg(2, chunk.TypeUserControl, 0, []byte{0, 6, 1, 2, 3, 4}), call(1, "receiveVideo", 0, null, amf.Bool(false)))
	var want []byte
	for size := 1; size <= len(said)+1; size++ {
		c, l := player(t, join(playCam, said[:size/2]), said[size/2:]), newListener()
		if overhear(c, l, size) {
			t.Fatalf("pieces of %d: it left", size)
		}
		if len(l.wishes) != 3 || l.wishes[2] != (PlayControl{Kind: ControlVideo}) {
			t.Fatalf("pieces of %d: wishes %v", size, l.wishes)
		}
		if want == nil {
			want = l.injected
		}
		if !bytes.Equal(l.injected, want) || len(want) == 0 {
			t.Fatalf("pieces of %d: answers\n%s\nwant\n%s", size, trace(t, l.injected), trace(t, want))
		}
		if !c.in.Between() || c.ears.said != nil {
			t.Fatalf("pieces of %d: something is left", size)
		}
	}
}

// A player that stops within a chunk is listened to until its session ends.
func TestDeafen(t *testing.T) {
	c, l := player(t, playCam), newListener()
	c.Hear(call(1, "closeStream", 0)[:20], l)
	c.Deafen()
	c.Hear(call(1, "closeStream", 0)[20:], l)
	if l.hasLeft(c) {
		t.Error("it was heard to leave")
	}
}

// Somebody who sends a stream to a player's end is not kept waiting in memory.
func TestHearTooMuch(t *testing.T) {
	c, l := player(t, playCam), newListener()
	c.Hear(make([]byte, maxSaid+1), l)
	<-l.left
	if c.ears.said != nil {
		t.Error("it is kept")
	}
}

// serve gives what a player over a real connection says to Hear until it leaves, and
// then closes the connection.
func serve(c *ServerConn) {
	l := newListener()
	ended := make(chan struct{})
	var closing sync.WaitGroup
	closing.Go(func() {
		select {
		case <-l.left:
			c.Close()
		case <-ended:
		}
	})
	pour(c, l, 512)
	c.Deafen()
	close(ended)
	closing.Wait()
	c.Close()
}

// endPlay closes the sending side, for the player to close the other.
func endPlay(c *ServerConn) {
	if half, ok := c.NetConn().(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}
