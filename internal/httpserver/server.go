// Package httpserver is the HTTP server that players talk to: fasthttp with
// limits in bytes and seconds, CORS, and a registry of the connections that were
// taken out of HTTP to carry a live stream (see [Server.Takeover]), which
// fasthttp itself forgets.
package httpserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/valyala/fasthttp"

	"weir/internal/limit"
	"weir/internal/secure"
)

// Server answers players. Its methods are safe for concurrent use.
type Server struct {
	// Static after construction.
	cfg     Config
	gate    *limit.Gate
	handler fasthttp.RequestHandler
	posts   map[string]bool // paths that POST is let through for
	log     *slog.Logger
	http    *fasthttp.Server

	retired atomic.Bool // connections get one more answer

	open  atomic.Int64 // connections
	taken atomic.Int64 // of which were taken over

	requests  [6]*metrics.Counter // by first digit of the status
	refusedBy map[string]*metrics.Counter
	refusing  chan struct{} // bounds the refusals being answered
}

// Why a request or connection is refused before a handler sees it; labels of
// weir_http_refused_total.
const (
	refusedTimeout        = "header_timeout"
	refusedHeaders        = "header_too_large"
	refusedBody           = "body_too_large"
	refusedMalformed      = "malformed"
	refusedMethod         = "method"
	refusedConnections    = "too_many_connections"
	refusedPerAddress     = "too_many_per_address"
	refusedOrigin         = "origin"
	maxRefusalsInProgress = 64
)

// New returns a server that calls handler for every GET and HEAD request; the
// server itself answers OPTIONS and refuses other methods. gate limits the
// connections, including those taken over; it may be shared with other servers.
//
// The handler runs in the goroutine of its connection. It must not keep the
// RequestCtx. CORS headers that it sets win over the server's. A
// panic in it is logged and answered with 500.
func New(cfg Config, gate *limit.Gate, handler fasthttp.RequestHandler, log *slog.Logger, set *metrics.Set) *Server {
	s := &Server{
		cfg: cfg, gate: gate, handler: handler, log: log,
		refusedBy: map[string]*metrics.Counter{},
		refusing:  make(chan struct{}, maxRefusalsInProgress),
	}
	for i := 1; i < len(s.requests); i++ {
		s.requests[i] = set.GetOrCreateCounter(fmt.Sprintf(`weir_http_requests_total{class="%dxx"}`, i))
	}
	for _, reason := range []string{
		refusedTimeout, refusedHeaders, refusedBody, refusedMalformed, refusedMethod,
		refusedConnections, refusedPerAddress, refusedOrigin,
	} {
		s.refusedBy[reason] = set.GetOrCreateCounter(fmt.Sprintf(`weir_http_refused_total{reason=%q}`, reason))
	}
	set.GetOrCreateGauge("weir_http_connections", func() float64 { return float64(s.open.Load()) })
	set.GetOrCreateGauge("weir_http_taken_connections", func() float64 { return float64(s.taken.Load()) })

	s.http = &fasthttp.Server{
		Name:               "weir",
		Handler:            s.serveRequest,
		ErrorHandler:       s.answerBroken,
		ConnState:          s.connState,
		Logger:             fasthttpLog{log},
		ReadTimeout:        cfg.HeaderTimeout, // of a whole request, not of one read
		IdleTimeout:        cfg.IdleTimeout,
		ReadBufferSize:     int(cfg.MaxHeaderBytes),
		MaxRequestBodySize: int(cfg.MaxBodyBytes),
		Concurrency:        1 << 30, // the gate counts
		// Idle connections keep neither buffers nor a RequestCtx.
		ReduceMemoryUsage: true,
		// Taken connections belong to whoever took them.
		KeepHijackedConns:            true,
		DisablePreParseMultipartForm: true,
		SecureErrorLogMessage:        true, // queries hold keys
		NoDefaultContentType:         true,
	}
	return s
}

// Serve accepts connections on l and answers their requests until ctx ends, and
// then closes l and shuts down: idle and taken connections are closed at once,
// requests in progress have the grace of the configuration to finish, then their
// connections are closed too. Serve returns when no goroutine of its connections
// is left, which needs that handlers and the functions given to Takeover return
// soon after their connection was closed. (fasthttp keeps one goroutine for the
// Date header as long as the process lives.) A connection that such a function left
// to somebody else is closed as well, or only shut down if that keeps it (see
// Takeover), but not waited for.
//
// The error is nil if ctx ended it, else it says why l cannot accept any more.
// Serve may run for several listeners at a time; each has its own connections.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	r := &run{server: s}
	stopping, served := make(chan struct{}), make(chan struct{})
	var shutdown sync.WaitGroup
	shutdown.Go(func() {
		<-stopping
		r.closeWhere(stateNew, stateIdle, stateTaken)
		grace := time.NewTimer(s.cfg.ShutdownGrace)
		defer grace.Stop()
		select {
		case <-grace.C:
			r.closeWhere(stateNew, stateIdle, stateTaken, stateActive)
		case <-served:
		}
	})
	// The accept loop closes its listener when it ends, whatever the cause, and
	// then waits for the connections.
	err := limit.ServeOwned(ctx, &signallingListener{Listener: l, closed: stopping}, s.gate, s.log,
		func(conn net.Conn, release func()) { s.serveConn(r, conn, release) },
		func(conn net.Conn, why error) { s.refuse(r, conn, why) })
	r.taken.Wait()
	r.refusals.Wait()
	close(served)
	shutdown.Wait()
	// What is left are taken connections that outlived their function.
	r.closeWhere(stateNew, stateIdle, stateTaken, stateActive)
	return err
}

// signallingListener closes a channel when it is closed.
type signallingListener struct {
	net.Listener
	closed chan struct{}
	once   sync.Once
}

func (l *signallingListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// serveConn is the life of a connection until it ends or is taken over.
func (s *Server) serveConn(r *run, conn net.Conn, release func()) {
	s.open.Add(1)
	c := r.join(conn, release)
	if r.isClosing() {
		c.abort()
		return
	}
	if under, ok := conn.(*secure.Conn); ok {
		if err := under.Handshake(); err != nil {
			if errors.Is(err, secure.ErrPlain) {
				s.answer(under.Plain(), fasthttp.StatusBadRequest, "this port speaks TLS: use https:// or wss://", "")
			}
			c.abort()
			return
		}
	}
	if err := s.http.ServeConn(c); err != nil {
		s.log.Debug("HTTP connection ended", "remote", conn.RemoteAddr(), "error", err)
	}
	rec := c.rec()
	if rec.is() == stateTaken {
		return
	}
	c.abort()
	if f := rec.pending; f != nil {
		// The connection broke between Takeover and the hijack. Who asked for the
		// takeover holds things that only f releases.
		rec.pending = nil
		f(c)
	}
}

// connState follows a connection's state for the shutdown.
func (s *Server) connState(conn net.Conn, state fasthttp.ConnState) {
	c, ok := conn.(connection)
	if !ok {
		return
	}
	rec := c.rec()
	switch state {
	case fasthttp.StateActive:
		rec.state.Store(int32(stateActive))
	case fasthttp.StateIdle:
		rec.state.Store(int32(stateIdle))
		if rec.place.run.isClosing() {
			c.abort()
		}
	case fasthttp.StateHijacked:
		rec.state.Store(int32(stateTaken))
	}
}

// serveRequest is fasthttp's handler.
func (s *Server) serveRequest(ctx *fasthttp.RequestCtx) {
	s.handle(ctx)
	c, ok := ctx.Conn().(connection)
	if ok {
		c.rec().adopted = false // what follows on the connection is not
		if c.rec().passed {
			return
		}
	}
	s.decorate(ctx)
	if ok && (s.retired.Load() || c.rec().place.run.isClosing()) {
		ctx.SetConnectionClose()
	}
	s.countRequest(ctx.Response.StatusCode())
}

func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	defer func() {
		if cause := recover(); cause != nil {
			s.log.Error("panic in an HTTP handler", "path", string(ctx.Path()), "panic", cause, "stack", string(debug.Stack()))
			if !ctx.Hijacked() {
				Error(ctx, fasthttp.StatusInternalServerError, "internal error")
			}
		}
	}()
	switch {
	case ctx.IsOptions():
		s.preflight(ctx)
	case ctx.IsGet(), ctx.IsHead(), ctx.IsPost() && s.posts[string(ctx.Path())]:
		s.handler(ctx)
	default:
		s.refusedBy[refusedMethod].Inc()
		Error(ctx, fasthttp.StatusMethodNotAllowed, "only GET, HEAD and OPTIONS are answered here")
		ctx.Response.Header.Set("Allow", "GET, HEAD, OPTIONS")
	}
}

// AllowPost lets POST requests of a path through to the handler as well. It must
// be called before Serve.
func (s *Server) AllowPost(path string) {
	if s.posts == nil {
		s.posts = map[string]bool{}
	}
	s.posts[path] = true
}

// Retire makes the answer to each request the last one on its connection.
func (s *Server) Retire() { s.retired.Store(true) }

// Error answers a request with a status and a short text body of one line, not
// to be cached. What the handler had prepared is dropped.
func Error(ctx *fasthttp.RequestCtx, status int, message string) {
	ctx.Response.Reset()
	ctx.SetStatusCode(status)
	ctx.SetContentType("text/plain; charset=utf-8")
	ctx.Response.Header.Set("Cache-Control", "no-store")
	ctx.SetBodyString(message + "\n")
}

// answerBroken answers a request that could not be read; fasthttp closes the
// connection behind it.
func (s *Server) answerBroken(ctx *fasthttp.RequestCtx, err error) {
	var (
		timeout  net.Error
		tooLarge *fasthttp.ErrSmallBuffer
	)
	refuse := func(reason string, status int, message string) {
		s.refusedBy[reason].Inc()
		s.countRequest(status)
		Error(ctx, status, message)
	}
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, net.ErrClosed):
		// The client is gone: nobody was refused. fasthttp writes what is set here.
		Error(ctx, fasthttp.StatusBadRequest, "incomplete request")
		return
	case errors.As(err, &timeout) && timeout.Timeout():
		refuse(refusedTimeout, fasthttp.StatusRequestTimeout, "the request took too long to arrive")
	case errors.As(err, &tooLarge):
		refuse(refusedHeaders, fasthttp.StatusRequestHeaderFieldsTooLarge, "the request's headers are too large")
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		refuse(refusedBody, fasthttp.StatusRequestEntityTooLarge, "the request's body is too large")
	default:
		refuse(refusedMalformed, fasthttp.StatusBadRequest, "malformed request")
	}
	s.decorate(ctx)
	if c, ok := ctx.Conn().(connection); ok {
		c.rec().linger.Store(true)
	}
}

// refuse answers a connection for which the gate has no place. It does not block:
// under a flood most connections are just closed.
func (s *Server) refuse(r *run, conn net.Conn, why error) {
	status, reason := fasthttp.StatusServiceUnavailable, refusedConnections
	if errors.Is(why, limit.ErrTooManyPerAddress) {
		status, reason = fasthttp.StatusTooManyRequests, refusedPerAddress
	}
	s.refusedBy[reason].Inc()
	select {
	case s.refusing <- struct{}{}:
	default:
		conn.Close()
		return
	}
	r.refusals.Go(func() {
		defer func() { <-s.refusing }()
		defer conn.Close()
		if under, ok := conn.(*secure.Conn); ok {
			under.Refuse() // the handshake that an answer needs is what is not paid for
			lingerClose(under.Plain())
			return
		}
		s.answer(conn, status, why.Error(), "Retry-After: 5\r\n")
	})
}

// answer writes a whole response outside of fasthttp, with headers of which each
// ends with CRLF. The caller closes.
func (s *Server) answer(conn net.Conn, status int, message, headers string) {
	s.countRequest(status)
	body := message + "\n"
	text := fmt.Sprintf("HTTP/1.1 %d %s\r\nServer: weir\r\nContent-Type: text/plain; charset=utf-8\r\n"+
		"Content-Length: %d\r\nCache-Control: no-store\r\n%sConnection: close\r\n\r\n%s",
		status, fasthttp.StatusMessage(status), len(body), headers, body)
	if conn.SetWriteDeadline(time.Now().Add(500*time.Millisecond)) != nil {
		return
	}
	if _, err := io.WriteString(conn, text); err == nil {
		lingerClose(conn)
	}
}

func (s *Server) countRequest(status int) {
	if class := status / 100; class > 0 && class < len(s.requests) {
		s.requests[class].Inc()
	}
}

// decorate adds the headers that every response has.
func (s *Server) decorate(ctx *fasthttp.RequestCtx) {
	h := &ctx.Response.Header
	if len(h.Peek("Access-Control-Allow-Origin")) > 0 {
		return
	}
	origin := ctx.Request.Header.Peek("Origin")
	allowed, any := s.allows(origin)
	if !any && len(s.cfg.CORSOrigins) > 0 {
		h.Add("Vary", "Origin")
	}
	switch {
	case any:
		h.Set("Access-Control-Allow-Origin", "*")
	case allowed:
		h.SetBytesV("Access-Control-Allow-Origin", origin)
	default:
		return
	}
	h.Set("Access-Control-Expose-Headers", "Content-Length, Content-Range, Date, Location")
}

// allows reports whether pages of origin may play from here, and whether all may.
func (s *Server) allows(origin []byte) (allowed, any bool) {
	for _, o := range s.cfg.CORSOrigins {
		if o == "*" {
			return true, true
		}
		if strings.EqualFold(o, string(origin)) {
			allowed = true
		}
	}
	return allowed, false
}

// preflight answers OPTIONS, above all the question that a browser puts before a
// request of another site's page (Fetch standard, CORS-preflight).
func (s *Server) preflight(ctx *fasthttp.RequestCtx) {
	ctx.SetStatusCode(fasthttp.StatusNoContent)
	h := &ctx.Response.Header
	h.Set("Allow", "GET, HEAD, OPTIONS")
	if allowed, _ := s.allows(ctx.Request.Header.Peek("Origin")); !allowed {
		return
	}
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
	h.Set("Access-Control-Max-Age", "86400")
	// Players add headers of their own: mpegts.js Range, hls.js what a page
	// configures. None of them means anything here.
	if wanted := ctx.Request.Header.Peek("Access-Control-Request-Headers"); len(wanted) > 0 && !bytes.ContainsAny(wanted, "\r\n") {
		h.SetBytesV("Access-Control-Allow-Headers", wanted)
		h.Add("Vary", "Access-Control-Request-Headers")
	}
}

// fasthttpLog passes on what fasthttp has to say, which is about single clients.
type fasthttpLog struct{ log *slog.Logger }

func (l fasthttpLog) Printf(format string, args ...any) {
	l.log.Debug("fasthttp: " + fmt.Sprintf(format, args...))
}
