package rtmp

import (
	"errors"
	"net"
	"testing"
	"time"

	"weir/internal/rtmp/chunk"
)

// deafConn takes no answers, and counts how often it was waited for.
type deafConn struct {
	net.Conn
	err    error
	awaits int
}

func (c *deafConn) Write([]byte) (int, error)        { return 0, c.err }
func (c *deafConn) SetWriteDeadline(time.Time) error { return nil }
func (c *deafConn) SetReadDeadline(time.Time) error  { return nil }
func (c *deafConn) Read([]byte) (int, error)         { return 0, errors.New("read") }
func (c *deafConn) Await()                           { c.awaits++ }

// TestAwaitWithAnswers: what the peer is told leaves before a wait, and if it cannot, there
// is no wait, and the read after it says why.
func TestAwaitWithAnswers(t *testing.T) {
	nc := &deafConn{err: errors.New("deaf")}
	cfg := DefaultClientConfig()
	var c conn
	c.start(nc, cfg.limits(), cfg.amfLimits(), time.Second)
	netReader{&c}.Await()
	if nc.awaits != 1 {
		t.Errorf("%d waits without an answer, want 1", nc.awaits)
	}
	c.send(chunk.StreamControl, chunk.TypeAck, 0, make([]byte, 4))
	netReader{&c}.Await()
	if nc.awaits != 1 {
		t.Error("it waited although the answer could not be written")
	}
	for range 2 {
		if _, err := (netReader{&c}).Read(make([]byte, 10)); !errors.Is(err, nc.err) {
			t.Errorf("the read says %v, want %v", err, nc.err)
		}
	}
}
