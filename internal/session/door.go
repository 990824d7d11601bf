package session

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"

	"github.com/VictoriaMetrics/metrics"
	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"

	"weir/internal/httpserver"
	"weir/internal/limit"
	"weir/internal/rtmp"
	"weir/internal/secure"
)

// Door is what a node listens on for publishers and players.
type Door struct {
	Sessions   *Server
	RTMP, HTTP net.Listener
	// RTMPS and HTTPS are the listeners of the doors' TLS; nil if it is not enabled.
	RTMPS, HTTPS net.Listener
	// Adoptions are connections that other processes pass (see Options.Pass); nil where
	// none do.
	Adoptions  *httpserver.Adoptions
	RTMPConfig RTMPConfig
	HTTPConfig HTTPConfig
	Limits     limit.Config
	// Other answers HTTP requests for other paths than those of media; it
	// reports whether it did. May be nil. OtherPost are those of its paths that
	// are asked with POST.
	Other     func(ctx *fasthttp.RequestCtx) bool
	OtherPost []string
	Log       *slog.Logger
	Set       *metrics.Set
}

// Open serves the listeners until ctx ends or one of them fails, which ends
// all of g. Then the sessions end, and new ones are refused until the listeners
// are closed. An error comes before anything was begun; it is about a certificate.
func (d Door) Open(ctx context.Context, g *errgroup.Group) (*OpenDoor, error) {
	open := new(OpenDoor)
	retirable := func(l net.Listener) net.Listener {
		if l == nil {
			return nil
		}
		r := newRetirable(l)
		open.listeners = append(open.listeners, r)
		return r
	}
	d.RTMP, d.HTTP, d.RTMPS, d.HTTPS = retirable(d.RTMP), retirable(d.HTTP), retirable(d.RTMPS), retirable(d.HTTPS)
	var publishers, players *secure.Server
	for _, door := range []struct {
		to  **secure.Server
		l   net.Listener
		cfg secure.Config
		way string
	}{{&publishers, d.RTMPS, d.RTMPConfig.TLS, "rtmp"}, {&players, d.HTTPS, d.HTTPConfig.TLS, "http"}} {
		if door.l == nil {
			continue
		}
		s, err := secure.New(door.cfg, door.way, d.Log, d.Set)
		if err != nil {
			return nil, err
		}
		*door.to = s
	}
	gate := limit.NewGate(d.Limits, "players", d.Set)
	d.openRTMP(ctx, g, d.RTMP, gate)
	if publishers != nil {
		d.openRTMP(ctx, g, publishers.Listener(d.RTMPS), gate)
		g.Go(func() error { publishers.Run(ctx); return nil })
	}
	var web *httpserver.Server
	web = httpserver.New(d.HTTPConfig.Config, gate, func(r *fasthttp.RequestCtx) {
		if d.Other == nil || !d.Other(r) {
			d.Sessions.ServeHTTP(web, r)
		}
	}, d.Log, d.Set)
	for _, path := range d.OtherPost {
		web.AllowPost(path)
	}
	// The HTTP server closes its players' connections when it stops. The sessions
	// end before, so that their ends have the right reason.
	ended, stopWeb := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return web.Serve(ended, d.HTTP) })
	if d.Adoptions != nil {
		g.Go(func() error { return web.Serve(ended, d.Adoptions) })
	}
	if players != nil {
		g.Go(func() error { return web.Serve(ended, players.Listener(d.HTTPS)) })
		g.Go(func() error { players.Run(ctx); return nil })
	}
	g.Go(func() error {
		defer stopWeb()
		<-ctx.Done()
		d.Sessions.Stop()
		return nil
	})
	open.gate, open.web = gate, web
	return open, nil
}

// openRTMP serves publishers and players over RTMP on a listener.
func (d Door) openRTMP(ctx context.Context, g *errgroup.Group, l net.Listener, gate *limit.Gate) {
	g.Go(func() error {
		var refusals sync.WaitGroup
		defer refusals.Wait()
		return limit.ServeOwned(ctx, l, gate, d.Log, func(c net.Conn, release func()) {
			if !d.shakeHands(ctx, c) {
				release()
				return
			}
			d.Sessions.ServeRTMP(ctx, c, release)
		}, d.refuseRTMP(ctx, &refusals))
	})
}

// shakeHands does the handshake of a connection under TLS. If it returns false the
// connection is closed.
func (d Door) shakeHands(ctx context.Context, c net.Conn) bool {
	under, ok := c.(*secure.Conn)
	if !ok {
		return true
	}
	stop := context.AfterFunc(ctx, func() { under.Abort() })
	defer stop()
	err := under.Handshake()
	if err == nil {
		return true
	}
	if errors.Is(err, secure.ErrPlain) {
		conn := rtmp.NewServerConn(under.Plain(), d.Sessions.opt.RTMP)
		_ = conn.Refuse(rtmp.StatusRejected("This port speaks TLS: use rtmps://."))
	}
	under.Abort()
	return false
}

// refusing bounds how many refused connections are told so at a time; the
// others are just closed.
const refusing = 32

// refuseRTMP returns a function that tells a client over the limit of
// connections so: RTMP needs a handshake before anything can be said.
func (d Door) refuseRTMP(ctx context.Context, running *sync.WaitGroup) func(net.Conn, error) {
	places := make(chan struct{}, refusing)
	return func(c net.Conn, cause error) {
		select {
		case places <- struct{}{}:
		default:
			c.Close()
			return
		}
		running.Go(func() {
			defer func() { <-places }()
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			if under, ok := c.(*secure.Conn); ok {
				under.Refuse() // the handshake that an answer needs is what is not paid for
				return
			}
			conn := rtmp.NewServerConn(c, d.Sessions.opt.RTMP)
			_ = conn.Refuse(rtmp.StatusRejected("This node takes no more connections: " + cause.Error() + "."))
		})
	}
}
