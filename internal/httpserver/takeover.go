package httpserver

import (
	"net"
	"time"

	"github.com/valyala/fasthttp"
)

// Takeover answers a GET request with a response head without a length and hands
// the connection to f, which writes the body for as long as it likes: a live
// stream. The head is the response that the handler has prepared on ctx (status
// 200, Content-Type and further headers; a body is ignored), with Cache-Control:
// no-store unless it is set, CORS headers and Connection: close, never chunked,
// so that clients of HTTP/1.0 and 1.1 read to the end of the connection alike.
//
// Takeover reports whether f will be called. It is false for HEAD, which gets the
// head as its whole response, and when the server shuts down, which is answered
// with 503; the handler then just returns. If it is true, f is called exactly
// once, soon after the handler has returned, even if the client is gone by then:
// f finds the connection closed.
//
// f must not use ctx. It may return while conn lives on: nothing of fasthttp
// remains with conn, neither a goroutine nor a buffer. If f blocks, a RequestCtx
// stays with it. conn has no deadlines; a plain TCP connection offers all that a
// *net.TCPConn does, raw access and writev included. Whoever has conn closes it;
// until then it holds its place at the gate, and the server closes it when it
// shuts down. A plain TCP connection also has the method Keep() (net.Conn, bool), for
// an owner that uses its descriptor.
func (s *Server) Takeover(ctx *fasthttp.RequestCtx, f func(conn net.Conn)) bool {
	h := &ctx.Response.Header
	if len(h.Peek("Cache-Control")) == 0 {
		h.Set("Cache-Control", "no-store")
	}
	h.SetContentLength(-2) // neither Content-Length nor chunked: until close
	h.SetConnectionClose()
	if ctx.IsHead() {
		ctx.ResetBody()
		ctx.Response.SkipBody = true
		return false
	}
	return s.takeover(ctx, f, false)
}

// takeover hijacks with the head that is set on ctx. keepEarly says whether bytes
// that the client sent behind its request mean anything to f.
func (s *Server) takeover(ctx *fasthttp.RequestCtx, f func(conn net.Conn), keepEarly bool) bool {
	c, ok := ctx.Conn().(connection)
	if !ok {
		Error(ctx, fasthttp.StatusInternalServerError, "internal error")
		return false
	}
	rec := c.rec()
	if rec.place.run.isClosing() {
		Error(ctx, fasthttp.StatusServiceUnavailable, "the server is shutting down")
		ctx.SetConnectionClose()
		return false
	}
	if rec.pending != nil {
		panic("httpserver: second takeover of one request")
	}
	s.decorate(ctx)
	h := &ctx.Response.Header
	h.SetServer(s.http.Name)
	head := h.AppendBytes(nil)

	rec.place.run.taken.Add(1)
	rec.pending = func(conn net.Conn) {
		defer rec.place.run.taken.Done()
		f(conn)
	}
	// Without this the handler is silently never called for HTTP/1.0 and
	// Connection: close, and what fasthttp would write is not what we want.
	ctx.HijackSetNoResponse(true)
	ctx.Hijack(func(hijacked net.Conn) {
		if keepEarly {
			rec.early = readBuffered(hijacked)
		}
		f := rec.pending
		rec.pending = nil
		c.SetWriteDeadline(time.Now().Add(s.cfg.WriteTimeout))
		if _, err := c.Write(head); err != nil {
			c.abort()
		}
		c.SetWriteDeadline(time.Time{})
		if closing := rec.place.run.markTaken(rec); closing {
			c.abort()
		}
		f(c)
	})
	return true
}

// readBuffered returns what fasthttp has read from a connection beyond the
// request. It cannot be asked for, but a read whose deadline has passed returns
// it without touching the socket.
func readBuffered(hijacked net.Conn) []byte {
	if hijacked.SetReadDeadline(time.Unix(1, 0)) != nil {
		return nil
	}
	defer hijacked.SetReadDeadline(time.Time{})
	var early []byte
	var piece [512]byte
	for {
		n, err := hijacked.Read(piece[:])
		early = append(early, piece[:n]...)
		if err != nil {
			return early
		}
	}
}
