package secure

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Conn is the server side of a connection under TLS. Before anything else its
// user calls Handshake, which may fail. Reading and writing may go on at the same
// time, each by one goroutine; everything else is safe for concurrent use.
//
// It has no raw access to the socket, so that nobody writes past TLS.
type Conn struct {
	*tls.Conn
	raw    *rawConn
	server *Server
}

// Handshake does the TLS handshake within the time of the configuration. An error
// is counted and logged already; if it is ErrPlain, what the client sent can be
// read from Plain, and an answer be written there. The caller closes.
func (c *Conn) Handshake() error {
	if c.Conn.ConnectionState().HandshakeComplete {
		return nil
	}
	_ = c.raw.SetDeadline(time.Now().Add(c.server.cfg.HandshakeTimeout))
	err := c.raw.peek()
	if err == nil {
		err = c.Conn.Handshake()
	}
	if err != nil {
		return c.server.failed(c.raw.RemoteAddr(), err)
	}
	_ = c.raw.SetDeadline(time.Time{})
	c.server.handshakes.Inc()
	return nil
}

// Plain returns the connection without TLS, for the answer to a client that does
// not speak it.
func (c *Conn) Plain() net.Conn { return c.raw }

// NetConn returns the connection below TLS, for the options of its socket.
func (c *Conn) NetConn() net.Conn { return c.raw }

// Close closes the connection. The peer is told by TLS if that takes no time to
// speak of: one whose socket is full is not waited for.
func (c *Conn) Close() error {
	c.raw.closing.Store(true)
	return c.Conn.Close()
}

// Abort closes the connection at once, without a word of TLS.
func (c *Conn) Abort() error { return c.raw.Close() }

// SetLinger is that of net.TCPConn. With 0 Close is Abort, and what was not sent is
// dropped.
func (c *Conn) SetLinger(seconds int) error {
	if seconds == 0 {
		c.raw.hard.Store(true)
	}
	return c.raw.TCPConn.SetLinger(seconds)
}

// OnLateWrite has f asked when a write has come to its deadline: for a later one, or
// the zero time to let it fail, after which nothing more can be written. f is called
// by whoever writes. With nil it is so at once; when OnLateWrite returns, the f before
// is not running.
func (c *Conn) OnLateWrite(f func() time.Time) {
	c.raw.lateMu.Lock()
	defer c.raw.lateMu.Unlock()
	c.raw.late = f
}

// rawConn is the socket below TLS.
type rawConn struct {
	*net.TCPConn

	lateMu sync.Mutex
	late   func() time.Time // guarded by lateMu, also while it runs

	early   []byte      // read by peek, owned by the reader
	closing atomic.Bool // only TLS's farewell is written
	hard    atomic.Bool // not even that
}

// farewellTime is how long TLS's farewell may wait for room in the socket.
const farewellTime = 100 * time.Millisecond

// recordHandshake is the first byte of a TLS connection (RFC 8446, section 5.1).
const recordHandshake = 22

// peek reads the first bytes and returns ErrPlain if they are none of TLS.
func (c *rawConn) peek() error {
	b := make([]byte, 1536) // more than most clients' first flight
	n, err := c.TCPConn.Read(b)
	if err != nil {
		return err
	}
	c.early = b[:n]
	if b[0] != recordHandshake {
		return ErrPlain
	}
	return nil
}

func (c *rawConn) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		if c.early = c.early[n:]; len(c.early) == 0 {
			c.early = nil
		}
		return n, nil
	}
	return c.TCPConn.Read(p)
}

// Write goes on after its deadline as long as it is let. crypto/tls itself can do
// nothing with a record of which a part was sent.
func (c *rawConn) Write(p []byte) (n int, err error) {
	for {
		m, err := c.TCPConn.Write(p[n:])
		if n += m; err == nil || !errors.Is(err, os.ErrDeadlineExceeded) || c.closing.Load() {
			return n, err
		}
		c.lateMu.Lock()
		var later time.Time
		if c.late != nil {
			later = c.late()
		}
		c.lateMu.Unlock()
		if later.IsZero() {
			return n, err
		}
		if err := c.SetWriteDeadline(later); err != nil {
			return n, err
		}
	}
}

// SetWriteDeadline keeps crypto/tls, which gives its farewell 5 s, from making
// whoever closes a stuck connection wait so long.
func (c *rawConn) SetWriteDeadline(t time.Time) error {
	switch {
	case c.hard.Load() && c.closing.Load():
		t = time.Unix(1, 0)
	case c.closing.Load():
		t = time.Now().Add(farewellTime)
	}
	return c.TCPConn.SetWriteDeadline(t)
}
