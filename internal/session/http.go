package session

import (
	"context"
	"errors"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/valyala/fasthttp"

	"weir/hls"
	"weir/internal/fanout"
	"weir/internal/httpserver"
	"weir/internal/media"
	"weir/internal/ticket"
	"weir/internal/vhost"
)

// Headers that nodes of weir tell each other over HTTP.
const (
	HeaderNode = "Weir-Node" // id of the node that asks
	HeaderVia  = "Weir-Via"  // nodes that its own request came through
	// HeaderEpoch is that of the stream's ownership in an answer, also a redirect;
	// in a request of another worker that of the latest that it knows of.
	HeaderEpoch = "Weir-Epoch"
)

const flvExt = ".flv"

// ServeHTTP answers one request of a player: HTTP-FLV, WebSocket-FLV or HLS.
// srv is the server that called.
func (s *Server) ServeHTTP(srv *httpserver.Server, ctx *fasthttp.RequestCtx) {
	path := string(ctx.Path())
	if stem, ok := strings.CutSuffix(path, flvExt); ok {
		s.serveFLV(srv, ctx, stem)
		return
	}
	if file, ok := hls.ParsePath(path); ok {
		s.serveHLS(ctx, file)
		return
	}
	httpserver.Error(ctx, http.StatusNotFound, "not found: want /APP/NAME.flv or /APP/NAME.m3u8")
}

func (s *Server) target(ctx *fasthttp.RequestCtx, path string) (t vhost.Target, hop string, err error) {
	t, err = s.opt.Vhosts.FromHTTP(string(ctx.Host()), path, string(ctx.URI().QueryString()))
	t.Query, hop = ticket.Take(t.Query) // it goes no further
	return t, hop, err
}

func peerOf(ctx *fasthttp.RequestCtx) Peer {
	return Peer{
		Node: string(ctx.Request.Header.Peek(HeaderNode)),
		Via:  string(ctx.Request.Header.Peek(HeaderVia)),
	}
}

func (s *Server) serveFLV(srv *httpserver.Server, ctx *fasthttp.RequestCtx, stem string) {
	peer := peerOf(ctx)
	l := newLive(traits{protocol: protoFLV, node: peer.Node, encoder: string(ctx.UserAgent())}, remoteOf(ctx.RemoteAddr()))
	upgrade := httpserver.IsWebSocket(ctx) || len(ctx.Request.Header.Peek("Sec-WebSocket-Key")) > 0
	if upgrade {
		l.protocol = protoWS
	}
	t, hop, err := s.target(ctx, stem)
	if err != nil {
		s.refuseHTTP(ctx, l, stem, err)
		return
	}
	wait, cancel := s.context(context.Background())
	var feed Feed
	if !httpserver.WasPassed(ctx) {
		err = s.admitted(wait, Newcomer{Kind: KindPlay, Target: t, Remote: l.remote, Peer: peer, Protocol: l.protocol, Secure: ctx.IsTLS(), Ticket: hop})
		if err == nil && s.passed(wait, srv, ctx, t.Key, peer) {
			cancel()
			return
		}
	}
	if err == nil {
		feed, err = s.opt.Role.Play(wait, PlayRequest{Target: t, Remote: l.remote, Peer: peer, OnBeat: peer.Node == "" && !ctx.IsTLS()})
	}
	cancel()
	if err != nil {
		redirect, err := elsewhere(err, func(r *Redirect) string { return r.HTTP })
		if redirect != nil {
			s.ledger.refused(KindPlay, l.protocol, reasonOf(err), t.Key.String(), l.remote, err)
			redirectHTTP(ctx, peer, redirect, redirect.httpURL(t, flvExt))
			return
		}
		s.refuseHTTP(ctx, l, t.Key.String(), err)
		return
	}
	ctx.SetContentType("video/x-flv")
	tellEpoch(ctx, peer, feed.Epoch)
	if ctx.IsHead() {
		feed.Release()
		srv.Takeover(ctx, nil) // prepares the head that GET would get
		return
	}
	var conn lateConn
	if err := s.admit(l, t, &conn); err != nil {
		feed.Release()
		s.refuseHTTP(ctx, l, t.Key.String(), err)
		return
	}
	take, w := srv.Takeover, way{format: fanout.FLV{}, read: dropInput}
	switch {
	case upgrade:
		l.goodbye = func(why fanout.Reason) []byte {
			if why == fanout.Overload {
				return closeTryAgain
			}
			return closeRestart
		}
		take, w = srv.TakeoverWebSocket, way{format: fanout.WebSocketFLV{}, farewell: func(error) []byte { return closeNormally }, read: controlFrames()}
	case l.node != "":
		w.format, w.farewell = fanout.FLV{Marks: true}, farewellFLV
	}
	if !take(ctx, func(c net.Conn) { s.playFLV(l, t, feed, conn.set(c), w) }) {
		feed.Release()
		s.ledger.withdraw(l, t.Vhost.Name)
		err := &Refusal{Code: BadRequest, Text: "The connection cannot be taken over.", Err: errors.New(strings.TrimSpace(string(ctx.Response.Body())))}
		if ctx.Response.StatusCode() == http.StatusServiceUnavailable {
			err = errStopping
		}
		s.ledger.refused(KindPlay, l.protocol, reasonOf(err), l.stream, l.remote, err)
	}
}

// closeNormally is a WebSocket close frame with status 1000 (RFC 6455, sections
// 5.5.1 and 7.4.1).
var closeNormally = []byte{0x88, 2, 1000 >> 8, 1000 & 0xff}

// closeRestart is a WebSocket close frame with status 1012, service restart, which
// tells the client to connect again (IANA's registry of close codes, RFC 6455).
var closeRestart = []byte{0x88, 2, 1012 >> 8, 1012 & 0xff}

// closeTryAgain is one with status 1013, try again later (the same registry).
var closeTryAgain = []byte{0x88, 2, 1013 >> 8, 1013 & 0xff}

// playFLV begins to serve an HTTP player. Nothing of it stays here.
func (s *Server) playFLV(l *live, t vhost.Target, feed Feed, conn net.Conn, w way) {
	var early []byte
	if c, ok := conn.(interface{ TakeEarly() []byte }); ok {
		early = c.TakeEarly()
	}
	read := w.read
	if len(early) > 0 { // what came first is read first
		var once sync.Once
		w.read = func(session *fanout.Session, b []byte) bool {
			ok := true
			once.Do(func() { ok = read(session, early) })
			return ok && (len(b) == 0 || read(session, b))
		}
	}
	session, err := s.play(l, t, feed, conn, w, feed.Release)
	if err == nil && len(early) > 0 && !w.read(session, nil) {
		session.End(fanout.Left)
	}
}

// maxInput bounds what an HTTP player may send while it plays.
const maxInput = 64 << 10

// dropInput reads players that have nothing to say.
func dropInput(session *fanout.Session, b []byte) bool {
	return session.Heard() <= maxInput
}

// controlFrames returns a reader for WebSocket players.
func controlFrames() func(*fanout.Session, []byte) bool {
	var control httpserver.Control
	return func(session *fanout.Session, b []byte) bool {
		if control.Feed(b, session.Inject) != nil {
			session.EndGently(fanout.Left) // its close frame has an answer
		}
		return true
	}
}

// lateConn is a connection that can be closed before it is there.
type lateConn struct {
	mu     sync.Mutex
	conn   net.Conn // guarded by mu
	closed bool     // guarded by mu
}

func (c *lateConn) set(conn net.Conn) net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
	if c.closed {
		conn.Close()
	}
	return conn
}

// Close implements io.Closer.
func (c *lateConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.conn != nil {
		return c.conn.Close()
	}
	return nil
}

func (s *Server) serveHLS(ctx *fasthttp.RequestCtx, file hls.Request) {
	peer := peerOf(ctx)
	l := newLive(traits{protocol: "hls", node: peer.Node}, remoteOf(ctx.RemoteAddr()))
	t, hop, err := s.target(ctx, "/"+file.App+"/"+file.Name)
	if err != nil {
		s.refuseHTTP(ctx, l, file.App+"/"+file.Name, err)
		return
	}
	wait, cancel := s.context(context.Background())
	defer cancel()
	var o hls.Object
	if !file.Segment { // a viewer that is here gets its segments to the end
		err = s.admitted(wait, Newcomer{Kind: KindHLS, Target: t, Remote: l.remote, Peer: peer, Protocol: l.protocol, Secure: ctx.IsTLS(), Ticket: hop})
	}
	if err == nil {
		o, err = s.opt.Role.HLS(wait, HLSRequest{Target: t, File: file, Remote: l.remote, Peer: peer})
	}
	redirect, err := elsewhere(err, func(r *Redirect) string { return r.HTTP })
	switch {
	case err == nil:
		o.Respond(ctx, "")
	case redirect != nil:
		ext := strings.TrimPrefix(string(ctx.Path()), "/"+t.Key.Path())
		redirectHTTP(ctx, peer, redirect, redirect.httpURL(t, ext))
	default:
		s.refuseHTTP(ctx, l, t.Key.String(), err)
	}
}

// httpURL returns where the 302 of an HTTP player leads.
func (r *Redirect) httpURL(t vhost.Target, ext string) string {
	u := fasthttp.AcquireURI()
	defer fasthttp.ReleaseURI(u)
	u.SetScheme("http")
	u.SetHost(r.HTTP)
	u.SetPath("/" + t.Key.Path() + ext)
	u.SetQueryString(r.query(t))
	return u.String()
}

// tellEpoch adds an epoch to the answer to a node.
func tellEpoch(ctx *fasthttp.RequestCtx, p Peer, epoch uint64) {
	if epoch != 0 && p.Node != "" {
		ctx.Response.Header.Set(HeaderEpoch, strconv.FormatUint(epoch, 10))
	}
}

func redirectHTTP(ctx *fasthttp.RequestCtx, p Peer, r *Redirect, url string) {
	tellEpoch(ctx, p, r.Epoch)
	ctx.Response.Header.Set(fasthttp.HeaderLocation, url)
	ctx.Response.Header.Set(fasthttp.HeaderCacheControl, "no-store")
	ctx.SetStatusCode(http.StatusFound)
}

// refuseHTTP answers a player that gets no stream.
func (s *Server) refuseHTTP(ctx *fasthttp.RequestCtx, l *live, stream string, err error) {
	s.ledger.refused(KindPlay, l.protocol, reasonOf(err), stream, l.remote, err)
	if errors.Is(err, context.Canceled) {
		err = errStopping
	}
	var r *Refusal
	switch {
	case errors.Is(err, ErrNotFound):
		httpserver.Error(ctx, http.StatusNotFound, "stream not found: nobody publishes it")
	case errors.Is(err, vhost.ErrBadName):
		httpserver.Error(ctx, http.StatusNotFound, "not found: the path does not name a stream")
	case errors.Is(err, vhost.ErrUnknown):
		httpserver.Error(ctx, http.StatusNotFound, "no such vhost is configured here")
	case errors.As(err, &r) && r.Code == Denied:
		httpserver.Error(ctx, http.StatusForbidden, r.Text)
	case errors.As(err, &r):
		httpserver.Error(ctx, http.StatusServiceUnavailable, r.Text)
		after := 2
		if r.RetryAfter > 0 {
			after = int(math.Ceil(r.RetryAfter.Seconds()))
		}
		ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, strconv.Itoa(after))
	default:
		httpserver.Error(ctx, http.StatusServiceUnavailable, "the stream cannot be played now")
		ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, "2")
	}
}

// farewellFLV returns what a node gets last over HTTP-FLV: that the stream has
// ended, or where it is now. Nothing says that the connection is lost.
func farewellFLV(cause error) []byte {
	var moved *Redirect
	switch {
	case !errors.As(cause, &moved):
		return media.EndMark()
	case moved.HTTP != "":
		return media.MovedMark(moved.HTTP, moved.Epoch)
	}
	return nil
}
