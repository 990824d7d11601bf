package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// Server puts an engine on the network.
type Server struct {
	cfg    ServerConfig
	engine Engine
	placer *Placer
	log    *slog.Logger
	// conns is the number of open connections.
	conns atomic.Int64
}

// NewServer returns a server of engine. cfg must be valid; log may be nil. If the
// engine has a method Metrics() *metrics.Set, the server counts in that set; if it
// has a method Ready(context.Context) error, that decides what /readyz says.
func NewServer(cfg ServerConfig, engine Engine, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, engine: engine, log: log}
}

// Schedule has the server answer the calls for scheduling with p, and run it. Call
// it before Serve.
func (s *Server) Schedule(p *Placer) { s.placer = p }

// Listen opens the configured address.
func (s *Server) Listen(ctx context.Context) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for discovery (key listen): %w", err)
	}
	return l, nil
}

// Serve answers on l and runs the engine until ctx ends or one of them fails. It
// closes l, lets calls under way finish within ShutdownTimeout, and returns when
// nothing of it is left: nil if ctx ended it, else what failed. Call it once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if t, ok := l.Addr().(*net.TCPAddr); ok && !t.IP.IsLoopback() && s.cfg.Token == "" {
		s.log.Warn("everybody who reaches this address can change the directory: set token", "listen", l.Addr().String())
	}
	var set *metrics.Set
	if e, ok := s.engine.(interface{ Metrics() *metrics.Set }); ok {
		set = e.Metrics()
	}
	var ready func(context.Context) error
	if e, ok := s.engine.(interface{ Ready(context.Context) error }); ok {
		ready = e.Ready
	}
	watching, endWatches := context.WithCancel(ctx)
	defer endWatches()
	srv := &http.Server{
		Handler: NewHandler(HandlerConfig{
			Engine: s.engine, Placer: s.placer, Token: string(s.cfg.Token), MaxBody: int64(s.cfg.MaxBody), Logger: s.log, Metrics: set,
			Ready:      ready,
			MaxWatches: max(1, s.cfg.MaxConnections*3/4), WriteTimeout: s.cfg.RequestTimeout, Stop: watching,
		}),
		ReadHeaderTimeout: s.cfg.RequestTimeout,
		ReadTimeout:       s.cfg.RequestTimeout,
		WriteTimeout:      2 * s.cfg.RequestTimeout, // counts from the end of the request's header
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ConnState:         s.connState,
		ConnContext:       withConn,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	run, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	var engineErr, serveErr error
	wg.Go(func() {
		defer stop()
		if err := s.engine.Run(run); err != nil {
			engineErr = fmt.Errorf("run discovery engine: %w", err)
		}
	})
	if s.placer != nil {
		wg.Go(func() { _ = s.placer.Run(run) }) // it ends with run alone
	}
	wg.Go(func() {
		defer stop()
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			serveErr = fmt.Errorf("serve discovery: %w", err)
		}
	})
	s.log.Info("discovery is up", "listen", l.Addr().String())
	<-run.Done()
	endWatches() // Shutdown would wait for them

	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.ShutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(bound); err != nil {
		s.log.Warn("discovery calls cut at shutdown", "err", err)
		_ = srv.Close() // its error repeats Shutdown's
	}
	wg.Wait()
	s.log.Info("discovery is down")
	return errors.Join(engineErr, serveErr)
}

// connState refuses connections beyond the limit before they cost anything.
func (s *Server) connState(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if s.conns.Add(1) > int64(s.cfg.MaxConnections) {
			_ = c.Close() // the server notices and reports StateClosed
		}
	case http.StateClosed, http.StateHijacked:
		s.conns.Add(-1)
	}
}
