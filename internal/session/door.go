package session

import (
	"context"
	"log/slog"
	"net"
	"sync"

	"github.com/VictoriaMetrics/metrics"
	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"

	"weir/internal/httpserver"
	"weir/internal/limit"
	"weir/internal/rtmp"
)

// Door is what a node listens on for publishers and players.
type Door struct {
	Sessions   *Server
	RTMP, HTTP net.Listener
	HTTPConfig httpserver.Config
	Limits     limit.Config
	// Other answers HTTP requests for other paths than those of media; it
	// reports whether it did. May be nil. OtherPost are those of its paths that
	// are asked with POST.
	Other     func(ctx *fasthttp.RequestCtx) bool
	OtherPost []string
	Log       *slog.Logger
	Set       *metrics.Set
}

// Open serves both listeners until ctx ends or one of them fails, which ends
// all of g. Then the sessions end, and new ones are refused until the listeners
// are closed.
func (d Door) Open(ctx context.Context, g *errgroup.Group) {
	gate := limit.NewGate(d.Limits, "players", d.Set)
	g.Go(func() error {
		var refusals sync.WaitGroup
		defer refusals.Wait()
		return limit.ServeOwned(ctx, d.RTMP, gate, d.Log, func(c net.Conn, release func()) {
			defer release()
			d.Sessions.ServeRTMP(ctx, c)
		}, d.refuseRTMP(ctx, &refusals))
	})
	var web *httpserver.Server
	web = httpserver.New(d.HTTPConfig, gate, func(r *fasthttp.RequestCtx) {
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
	g.Go(func() error {
		defer stopWeb()
		<-ctx.Done()
		d.Sessions.Stop()
		return nil
	})
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
			conn := rtmp.NewServerConn(c, d.Sessions.opt.RTMP)
			_ = conn.Refuse(rtmp.StatusRejected("This node takes no more connections: " + cause.Error() + "."))
		})
	}
}
