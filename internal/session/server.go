package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/valyala/fasthttp"

	"weir/internal/admin"
	"weir/internal/fanout"
	"weir/internal/httpserver"
	"weir/internal/load"
	"weir/internal/rtmp"
	"weir/internal/vhost"
)

// Options are what a Server needs beyond its configuration.
type Options struct {
	Config Config
	RTMP   rtmp.ServerConfig
	Vhosts *vhost.Table
	Role   Role
	// Admit, if not nil, is asked about each newcomer before the role is. A
	// *Redirect or *Refusal turns it away. It is not asked about other workers of
	// the node.
	Admit func(ctx context.Context, n Newcomer) error
	// Pass, if not nil, is asked about each player over plain HTTP that was admitted and
	// is no node. It returns what gives its connection, and all that was read from that
	// from the request on, to another process of the node, where Door.Adoptions gets
	// them; nil if the player is served here.
	Pass func(ctx context.Context, k vhost.Key, remote netip.AddrPort) func(conn *net.TCPConn, read []byte) error
	// NodesStay says that players that are nodes are not moved, but go with their
	// streams.
	NodesStay bool
	Log       *slog.Logger
	Set       *metrics.Set
	// Shards is the number of goroutines that write to players; 0 means one for
	// each core.
	Shards int
	// Delays is told how late the fan-out is; may be nil.
	Delays *load.Delays
	// Slot is the number of the process's first shard among the Slots of the node; see
	// fanout.Options.
	Slot, Slots int
	// IDPrefix makes the ids of sessions differ from those of other workers.
	IDPrefix string
}

// Server serves publishers and players. Its methods are safe for concurrent use.
type Server struct {
	opt    Options
	ledger *ledger
	engine *fanout.Engine
	tidy   *tidy

	maxSessions atomic.Int64

	ctx  context.Context // ends with Stop
	stop context.CancelFunc
}

// New returns a server.
func New(o Options) *Server {
	s := &Server{opt: o, ledger: newLedger(o.Log, o.Set, o.IDPrefix), tidy: newTidy()}
	lateness := o.Set.NewHistogram("weir_flush_lateness_seconds")
	took := o.Set.NewHistogram("weir_flush_seconds")
	sends := o.Set.NewCounter("weir_sends_total")
	calls := o.Set.NewCounter("weir_send_calls_total")
	s.engine = fanout.New(fanout.Options{
		Shards: o.Shards, Slot: o.Slot, Slots: o.Slots, MaxLatency: o.Config.MaxLatency, MaxSlowBytes: int64(o.Config.MaxSlowBytes),
		Plain: !o.Config.IOURing, Log: o.Log,
		OnJump: func(why fanout.Jump) {
			o.Set.GetOrCreateCounter(fmt.Sprintf(`weir_jumps_total{reason=%q}`, why)).Inc()
		},
		OnFlush: func(late, d time.Duration, n, system int) {
			sends.Add(n)
			calls.Add(system)
			lateness.Update(late.Seconds())
			took.Update(d.Seconds())
			if o.Delays != nil {
				o.Delays.Observe(time.Now(), late)
			}
		},
	})
	o.Set.NewGauge("weir_slow_players", func() float64 { n, _ := s.engine.Slow(); return float64(n) })
	o.Set.NewGauge("weir_slow_bytes", func() float64 { _, n := s.engine.Slow(); return float64(n) })
	s.SetMaxSessions(o.Config.MaxSessions)
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Sessions lists the sessions under way, in no order.
func (s *Server) Sessions() []admin.SessionInfo { return s.ledger.list() }

// Players returns the number of players of a stream.
func (s *Server) Players(key vhost.Key) int { return s.ledger.players(key.String()) }

// Beat returns the time between two batches that players get, once their number has
// made it as long as it may be, else 0, and when they come; see fanout.Engine.Beat.
func (s *Server) Beat(own bool) (every, at time.Duration) { return s.engine.Beat(own) }

// Kick ends a session and reports whether there was one of that id.
func (s *Server) Kick(id string) bool {
	l := s.ledger.find(id)
	if l == nil {
		return false
	}
	l.end(string(fanout.Kicked))
	return true
}

// admitted asks Admit, if there is one.
func (s *Server) admitted(ctx context.Context, n Newcomer) error {
	if s.opt.Admit == nil {
		return nil
	}
	n.OverQuota = n.Kind != KindPublish && n.Peer.Node == "" && s.ledger.overQuota(n.Target.Vhost)
	return s.opt.Admit(ctx, n)
}

// passed leaves an admitted player to another process, if Pass knows one for it.
func (s *Server) passed(ctx context.Context, srv *httpserver.Server, r *fasthttp.RequestCtx, k vhost.Key, p Peer) bool {
	if s.opt.Pass == nil || p.Node != "" || !srv.CanPass(r) {
		return false
	}
	pass := s.opt.Pass(ctx, k, remoteOf(r.RemoteAddr()))
	if pass != nil {
		srv.Pass(r, pass)
	}
	return pass != nil
}

// HasRoom reports whether another player of a stream is within all limits and quotas.
func (s *Server) HasRoom(k vhost.Key) bool {
	v, err := s.opt.Vhosts.Find(k.Vhost)
	return err == nil && s.ledger.fits(newLive(traits{kind: KindPlay, stream: k.String()}, netip.AddrPort{}), v.Name, s.bounds(v)) == nil && !s.ledger.overQuota(v)
}

// SetMaxSessions makes another play.max_sessions count for those who come.
func (s *Server) SetMaxSessions(n int) { s.maxSessions.Store(int64(n)) }

// Stop ends all sessions, refuses new ones, and waits for the players' ends.
func (s *Server) Stop() {
	s.stop()
	s.ledger.endAll(string(fanout.Shutdown))
	s.engine.Close()
	s.tidy.close()
}

// context returns a context that ends with the server or the parent.
func (s *Server) context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

func (s *Server) bounds(v *vhost.Vhost) bounds {
	return bounds{
		sessions:        int(s.maxSessions.Load()),
		players:         v.Config.Play.MaxPlayers,
		playersOfStream: v.Config.Play.MaxPlayersPerStream,
	}
}

// admit enters a player's session. conn is closed when somebody ends it.
func (s *Server) admit(l *live, t vhost.Target, conn io.Closer) error {
	l.kind = KindPlay
	l.stream, l.vhost = t.Key.String(), t.Vhost
	l.onEnd(func(string) { conn.Close() })
	return s.ledger.begin(l, t.Vhost.Name, s.bounds(t.Vhost))
}

// way is how a player is served.
type way struct {
	format fanout.Format
	// farewell returns what a player gets last, by the cause that its stream was
	// closed with; nil for those who get nothing.
	farewell func(cause error) []byte
	// read gets what the player sends; see fanout.Player. If it is nil the caller
	// of play watches the connection and ends the session when the player has left.
	read func(*fanout.Session, []byte) bool
}

// play hands an admitted player to the fan-out, which owns conn from now on. done
// is called at the end, also when play fails.
func (s *Server) play(l *live, t vhost.Target, feed Feed, conn net.Conn, w way, done func()) (*fanout.Session, error) {
	session, err := s.engine.Add(fanout.Player{
		Conn:     conn,
		Stream:   feed.Stream,
		Format:   w.format,
		Read:     w.read,
		Urgent:   l.node != "",
		Farewell: w.farewell,
		Limits:   fanout.Limits{MaxLag: s.opt.Config.MaxLag, WriteTimeout: s.opt.Config.WriteTimeout},
		Done: func(r fanout.Result) {
			l.result.Store(&r)
			err, reason := r.Err, string(r.Reason)
			if r.Reason == fanout.Left || r.Reason == fanout.Ended {
				err = nil // the words say it
			}
			if errors.As(r.Err, new(*Redirect)) && r.Reason == fanout.Ended {
				reason = reasonRedirect
			}
			s.ledger.finish(l, l.vhost.Name, reason, err) // of t, which it would cost to keep
			done()
		},
	})
	if err != nil {
		s.ledger.finish(l, t.Vhost.Name, string(fanout.Shutdown), nil)
		done()
		return nil, err
	}
	l.play(session)
	s.tidy.joined()
	if why := l.why.Load(); why != nil { // somebody ended it meanwhile
		session.End(fanout.Reason(*why))
	}
	return session, nil
}

// errStopping refuses what comes after Stop.
var errStopping = &Refusal{Code: Stopping, Text: "The server is shutting down."}

// elsewhere returns an error of Role as a redirect that the protocol can say, the
// address of which addr picks; nil and the refusal if it is none.
func elsewhere(err error, addr func(*Redirect) string) (*Redirect, error) {
	var r *Redirect
	switch {
	case !errors.As(err, &r):
		return nil, err
	case addr(r) == "":
		return nil, &Refusal{Code: Unavailable, Text: "Another node has the stream, at an address that is not known.", Err: err}
	}
	return r, err
}

// reasonRedirect is the word for those who were sent to another node.
const reasonRedirect = "redirect"

// reasonOf returns the word for a request that failed.
func reasonOf(err error) string {
	var refusal *Refusal
	var redirect *Redirect
	switch {
	case errors.As(err, &refusal):
		return string(refusal.Code)
	case errors.As(err, &redirect):
		return reasonRedirect
	case errors.Is(err, ErrNotFound):
		return "not_found"
	case errors.Is(err, vhost.ErrUnknown), errors.Is(err, vhost.ErrBadName):
		return string(BadRequest)
	case errors.Is(err, context.Canceled):
		return string(Stopping)
	}
	return string(Unavailable)
}

func remoteOf(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}
