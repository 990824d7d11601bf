package httpserver

import (
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/bare"
	"weir/internal/secure"
)

// writePiece is how much of a response is under one write deadline.
const writePiece = 64 << 10

// connState is where a connection is in its life.
type connState int32

const (
	stateNew    connState = iota // nothing read yet
	stateActive                  // a request is being read or answered
	stateIdle                    // between two requests
	stateTaken                   // hijacked: fasthttp is out of it
)

// member is a connection as the registry has it.
type member interface {
	seat() *seat
	// taken reports whether it is counted among those that were taken over. run.mu is held.
	taken() bool
	// is returns where the connection is in its life.
	is() connState
	// abort closes the connection at once, without the courtesies of Close.
	abort()
}

// connection is one as fasthttp has it.
type connection interface {
	net.Conn
	member
	rec() *record
}

// seat is a connection's place in the registry and at the gate.
type seat struct {
	// Static after construction.
	run     *run
	release func() // gives the place at the gate back

	at   int32        // guarded by run.mu; index among run.conns, -1 outside of it
	fate atomic.Int32 // fate
}

// fate says who closes a connection.
type fate int32

const (
	fateOpen   fate = iota // whoever comes first
	fateKept               // what Keep has made of it, which has the place now
	fateClosed             // it is closed
)

// leave takes an open connection out of the registry and gives its place back, for the
// caller to close it. It returns false if the connection is closed or kept.
func (s *seat) leave() bool {
	if !s.fate.CompareAndSwap(int32(fateOpen), int32(fateClosed)) {
		return false
	}
	s.run.forget(s)
	s.run.server.open.Add(-1)
	s.release()
	return true
}

// record is what the server knows of a connection that fasthttp has, or had. The
// connection types below embed it beside the connection itself.
type record struct {
	place seat

	state  atomic.Int32 // connState
	linger atomic.Bool  // the peer may still be sending a request that was refused

	counted bool      // guarded by run.mu; among the taken connections
	bare    *bareConn // guarded by run.mu; what Keep has made of the connection, nil before

	// Owned by the request handler until the hijack, then by the hijack's goroutine.
	pending func(net.Conn) // what Takeover or Pass was asked to run, until it runs
	passed  bool           // the request was left to another process
	adopted bool           // the first request was left to this one

	// Owned by whoever reads from the connection.
	early []byte // bytes that were read behind the hijacked request
}

func (r *record) rec() *record  { return r }
func (r *record) seat() *seat   { return &r.place }
func (r *record) taken() bool   { return r.counted }
func (r *record) is() connState { return connState(r.state.Load()) }

// write sends p under deadlines, as long as the connection speaks HTTP. Taken
// connections have their owner's deadlines.
func (r *record) write(conn net.Conn, p []byte) (n int, err error) {
	if r.is() == stateTaken {
		return conn.Write(p)
	}
	for {
		piece := p[n:min(len(p), n+writePiece)]
		if err := conn.SetWriteDeadline(time.Now().Add(r.place.run.server.cfg.WriteTimeout)); err != nil {
			return n, err
		}
		m, err := conn.Write(piece)
		n += m
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// readEarly returns bytes read behind the hijacked request, if there are any left.
func (r *record) readEarly(p []byte) int {
	if len(r.early) == 0 {
		return 0
	}
	n := copy(p, r.early)
	if r.early = r.early[n:]; len(r.early) == 0 {
		r.early = nil
	}
	return n
}

// TakeEarly returns what is left of the bytes that came behind the hijacked request,
// for an owner that reads from the socket itself.
func (r *record) TakeEarly() []byte {
	early := r.early
	r.early = nil
	return early
}

// tcpConn is a plain connection. By embedding it has all that a *net.TCPConn can,
// raw access (syscall.Conn) and writev (net.Buffers) among it.
type tcpConn struct {
	*net.TCPConn
	record
}

func (c *tcpConn) Write(p []byte) (int, error) { return c.write(c.TCPConn, p) }

func (c *tcpConn) Read(p []byte) (int, error) {
	if n := c.readEarly(p); n > 0 {
		return n, nil
	}
	return c.TCPConn.Read(p)
}

// ReadFrom keeps responses that fasthttp copies from a reader under deadlines.
func (c *tcpConn) ReadFrom(r io.Reader) (int64, error) {
	if c.is() == stateTaken {
		return c.TCPConn.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c}, r)
}

// Close closes the connection and gives its place back, once. Behind a refused
// request it first lets the peer read the refusal. One that is kept is only shut
// down.
func (c *tcpConn) Close() error {
	if c.linger.CompareAndSwap(true, false) {
		lingerClose(c.TCPConn)
	}
	return c.end()
}

func (c *tcpConn) abort() { _ = c.end() }

func (c *tcpConn) end() error {
	if c.place.leave() {
		return c.TCPConn.Close()
	}
	c.place.run.mu.Lock()
	kept := c.bare
	c.place.run.mu.Unlock()
	if kept != nil { // its owner finds out
		return kept.Shutdown(unix.SHUT_RDWR)
	}
	return net.ErrClosed
}

// Keep returns a connection in place of a taken one, for an owner that uses the
// descriptor itself: nothing but its Close closes that, where it would otherwise write
// to whatever file gets the number next. Close of the one before, and the server's
// shutdown, then only shut the socket down, which the owner notices; nothing else may
// be done with it, and the server does not hold it any more. Keep returns false, and
// changes nothing, if the connection is closed already, or kept, or no descriptor is
// left.
func (c *tcpConn) Keep() (net.Conn, bool) {
	r := c.place.run
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.bare != nil || !c.counted {
		return nil, false
	}
	fd, err := bare.Duplicate(c.TCPConn)
	if err != nil {
		return nil, false
	}
	if !c.place.fate.CompareAndSwap(int32(fateOpen), int32(fateKept)) { // closed meanwhile
		unix.Close(fd)
		return nil, false
	}
	_ = c.TCPConn.Close() // the socket lives on
	b := &bareConn{place: seat{run: r, release: c.place.release, at: c.place.at}, Conn: bare.Of(fd)}
	r.conns[b.place.at] = b
	c.TCPConn, c.bare = nil, b
	return b, true
}

// bareConn is a taken connection of which its owner uses the descriptor; of what the
// server knew of it only its place is left.
type bareConn struct {
	bare.Conn
	place seat
}

func (c *bareConn) seat() *seat   { return &c.place }
func (c *bareConn) taken() bool   { return true }
func (c *bareConn) is() connState { return stateTaken }

// abort has its owner notice that the server stops.
func (c *bareConn) abort() { _ = c.Shutdown(unix.SHUT_RDWR) }

// Close closes the descriptor and gives the connection's place back, once.
func (c *bareConn) Close() error {
	if !c.place.leave() {
		return net.ErrClosed
	}
	return c.Conn.Close()
}

// lingerClose ends the sending side of c and reads what its peer still sends, for
// a short time. Closing a socket with unread input resets the connection, and
// the peer would lose the answer that was just written.
func lingerClose(c net.Conn) {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.SetReadDeadline(time.Now().Add(500*time.Millisecond)) != nil {
		return
	}
	io.CopyN(io.Discard, c, 256<<10)
}

// tlsConn is a connection under TLS, which fasthttp recognises by its methods.
type tlsConn struct {
	*secure.Conn
	record
}

func (c *tlsConn) Write(p []byte) (int, error) { return c.write(c.Conn, p) }

func (c *tlsConn) Read(p []byte) (int, error) {
	if n := c.readEarly(p); n > 0 {
		return n, nil
	}
	return c.Conn.Read(p)
}

// Close closes the connection and gives its place back, once. Behind a refused
// request it first lets the peer read the refusal.
func (c *tlsConn) Close() error {
	if c.linger.CompareAndSwap(true, false) && c.CloseWrite() == nil {
		lingerClose(c.NetConn())
	}
	if !c.place.leave() {
		return net.ErrClosed
	}
	return c.Conn.Close()
}

// abort does not wait for the peer to take TLS's farewell.
func (c *tlsConn) abort() {
	if c.place.leave() {
		_ = c.Abort()
	}
}

// otherConn is any other connection, such as one of a unix socket.
type otherConn struct {
	net.Conn
	record
}

func (c *otherConn) Write(p []byte) (int, error) { return c.write(c.Conn, p) }

func (c *otherConn) Read(p []byte) (int, error) {
	if n := c.readEarly(p); n > 0 {
		return n, nil
	}
	return c.Conn.Read(p)
}

// Close closes the connection and gives its place back, once.
func (c *otherConn) Close() error {
	if !c.place.leave() {
		return net.ErrClosed
	}
	return c.Conn.Close()
}

func (c *otherConn) abort() { c.Close() }

// run is the connections of one call of Serve.
type run struct {
	server *Server

	taken    sync.WaitGroup // functions that were given to Takeover
	refusals sync.WaitGroup // refused connections that are being answered

	mu      sync.Mutex
	conns   []member // guarded by mu; in no order
	closing bool     // guarded by mu; the run stops
}

// join wraps an accepted connection and enters it into the registry.
func (r *run) join(conn net.Conn, release func()) connection {
	var m connection
	switch c := conn.(type) {
	case *net.TCPConn:
		m = &tcpConn{TCPConn: c}
	case *adoptedConn:
		m = &tcpConn{TCPConn: c.TCPConn, record: record{early: c.read, adopted: true}}
	case *secure.Conn:
		m = &tlsConn{Conn: c}
	default:
		m = &otherConn{Conn: c}
	}
	s := m.seat()
	s.run, s.release = r, release
	r.mu.Lock()
	s.at = int32(len(r.conns))
	r.conns = append(r.conns, m)
	r.mu.Unlock()
	return m
}

// forget takes a connection out of the registry.
func (r *run) forget(s *seat) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns[s.at].taken() {
		r.server.taken.Add(-1)
	}
	last := len(r.conns) - 1
	r.conns[s.at] = r.conns[last]
	r.conns[s.at].seat().at = s.at
	r.conns[last] = nil
	r.conns, s.at = r.conns[:last], -1
}

// markTaken notes that fasthttp is out of a connection. It reports whether the
// run is stopping, so that the caller has to close it.
func (r *run) markTaken(rec *record) (closing bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec.state.Store(int32(stateTaken))
	if rec.place.at >= 0 {
		rec.counted = true
		r.server.taken.Add(1)
	}
	return r.closing
}

func (r *run) isClosing() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closing
}

// closeWhere closes the connections in one of the states.
func (r *run) closeWhere(states ...connState) {
	r.mu.Lock()
	r.closing = true // from now on, whoever makes a connection idle or taken closes it
	var doomed []member
	for _, m := range r.conns {
		if slices.Contains(states, m.is()) {
			doomed = append(doomed, m)
		}
	}
	r.mu.Unlock()
	for _, m := range doomed { // which takes the lock to leave the registry
		m.abort()
	}
}
