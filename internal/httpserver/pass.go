package httpserver

import (
	"bytes"
	"net"
	"sync"

	"github.com/valyala/fasthttp"
)

// CanPass reports whether the connection of a request can go to another process: a plain
// TCP connection with a GET request without a body, of a server that does not shut down.
func (s *Server) CanPass(ctx *fasthttp.RequestCtx) bool {
	c, ok := ctx.Conn().(*tcpConn)
	return ok && ctx.IsGet() && !hasBody(&ctx.Request) && len(ctx.Request.Header.RawHeaders()) > 0 && !c.place.run.isClosing()
}

// hasBody reports whether there was, or may have been, anything behind a request's
// headers. Chunks are not seen any more once they are read, however empty the body.
func hasBody(r *fasthttp.Request) bool {
	return len(r.Body()) > 0 || bytes.Contains(bytes.ToLower(r.Header.RawHeaders()), []byte("transfer-encoding"))
}

// Pass leaves a request, which CanPass, to another process: it calls f once, soon after
// the handler has returned, even if the client is gone by then, with the connection and
// all that was read from it from the request on. The server closes its descriptor behind
// f. If f fails, the client is told to come again. The server that gets the connection
// (see Adopt) counts the request.
func (s *Server) Pass(ctx *fasthttp.RequestCtx, f func(conn *net.TCPConn, read []byte) error) {
	c := ctx.Conn().(*tcpConn)
	h := &ctx.Request.Header
	var read []byte // as it came
	for _, part := range [][]byte{h.Method(), []byte(" "), h.RequestURI(), []byte(" "), h.Protocol(), []byte("\r\n"), h.RawHeaders()} {
		read = append(read, part...)
	}
	c.passed = true
	c.place.run.taken.Add(1)
	c.pending = func(net.Conn) {
		defer c.place.run.taken.Done()
		if f(c.TCPConn, read) != nil {
			s.answer(c.TCPConn, fasthttp.StatusServiceUnavailable, "the stream cannot be played now", "Retry-After: 2\r\n")
		}
		c.abort()
	}
	ctx.HijackSetNoResponse(true)
	ctx.Hijack(func(hijacked net.Conn) {
		read = append(read, readBuffered(hijacked)...)
		f := c.pending
		c.pending = nil
		f(nil)
	})
}

// WasPassed reports whether the request of ctx came with a connection from another
// process, which has let the client in.
func WasPassed(ctx *fasthttp.RequestCtx) bool {
	c, ok := ctx.Conn().(*tcpConn)
	return ok && c.adopted
}

// Adoptions is a listener of the connections that other processes pass.
type Adoptions struct {
	addr   net.Addr
	conns  chan *adoptedConn
	closed chan struct{}
	close  sync.Once
}

// NewAdoptions returns a listener for the server that also listens at addr.
func NewAdoptions(addr net.Addr) *Adoptions {
	return &Adoptions{addr: addr, conns: make(chan *adoptedConn), closed: make(chan struct{})}
}

// Adopt has the server answer a connection, of which that was read already. It closes
// one that comes too late. Safe for concurrent use.
func (a *Adoptions) Adopt(conn *net.TCPConn, read []byte) {
	select {
	case a.conns <- &adoptedConn{conn, read}:
	case <-a.closed:
		conn.Close()
	}
}

// Accept implements net.Listener.
func (a *Adoptions) Accept() (net.Conn, error) {
	select {
	case c := <-a.conns:
		return c, nil
	case <-a.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (a *Adoptions) Close() error {
	a.close.Do(func() { close(a.closed) })
	return nil
}

// Addr implements net.Listener.
func (a *Adoptions) Addr() net.Addr { return a.addr }

// adoptedConn is a connection that another process has accepted and read from.
type adoptedConn struct {
	*net.TCPConn
	read []byte
}

// Counted implements limit.Counted.
func (*adoptedConn) Counted() {}
