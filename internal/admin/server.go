// Package admin is the HTTP server through which a node is watched and
// operated: metrics, health, readiness, the API v1 and a page that shows it.
// docs/admin-api.md is its reference. On a node with worker processes the
// supervisor answers for all of them: it asks each over its sibling socket,
// where the worker serves a WorkerHandler.
package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"weir/discovery"
	"weir/internal/drain"
	"weir/internal/load"
	"weir/internal/reload"
	"weir/internal/upgrade"
)

// Limits of the server. They bound what a client can hold, not what it may
// ask; nobody has needed to change them, so they are not configuration.
const (
	headerTimeout  = 5 * time.Second
	readTimeout    = 10 * time.Second
	writeTimeout   = 30 * time.Second // profiles get their own duration on top
	idleTimeout    = time.Minute
	checkTimeout   = time.Second
	maxHeader      = 16 << 10 // bytes
	maxBody        = 4 << 10  // bytes; no request has a body that matters
	maxConnections = 256
	// shutdownGrace is what requests under way get when the server stops.
	shutdownGrace = 2 * time.Second
)

// Check is one condition of a node's readiness.
type Check struct {
	// Name is the key of its answer in /readyz.
	Name string
	// Func returns nil, or why new sessions should not be sent here. It is
	// called from several goroutines, and has to end with its context.
	Func func(context.Context) error
}

// Options are what a Server is made of.
type Options struct {
	// Config must be valid.
	Config Config
	// Node is what /api/v1/node says.
	Node NodeInfo
	// Source is the answering process itself.
	Source Source
	// Load returns the load of the node; nil: it is not measured.
	Load func() load.Load
	// Checks decide on /readyz. None: always ready.
	Checks []Check
	// Workers returns the node's worker processes, whose answers are merged
	// with Source's, and DialWorker connects to the sibling socket of one. nil:
	// the node is one process.
	Workers    func() []WorkerInfo
	DialWorker func(ctx context.Context, index int) (net.Conn, error)
	// Drain, if not nil, is what POST, GET and DELETE of /api/v1/drain act on, and
	// one of the conditions of readiness.
	Drain *drain.Node
	// Reload, if not nil, is what POST and GET of /api/v1/reload act on.
	Reload *reload.Node
	// Upgrade, if not nil, is what POST and GET of /api/v1/upgrade act on.
	Upgrade *upgrade.Node
	// Kicker is what POST /api/v1/streams/kick acts on; nil: the node knows no
	// directory that could.
	Kicker discovery.Kicker
	// Log gets warnings. Required.
	Log *slog.Logger
}

// Server answers the admin requests of one node. Safe for concurrent use.
type Server struct {
	// Static.
	Options
	workers *workers
	token   [sha256.Size]byte
	handler http.Handler
}

//go:embed overview.html
var overviewPage []byte

// New returns a server.
func New(o Options) *Server {
	s := &Server{
		Options: o,
		workers: newWorkers(o.Workers, o.DialWorker),
		token:   sha256.Sum256([]byte(o.Config.Token)),
	}
	mux := http.NewServeMux()
	mux.Handle("/healthz", get(s.healthz))
	mux.Handle("/readyz", get(s.readyz))
	guarded := func(pattern string, h http.Handler) { mux.Handle(pattern, s.authorized(h)) }
	guarded("/metrics", get(s.metrics))
	guarded("/api/v1/node", get(s.node))
	guarded("/api/v1/streams", get(s.listStreams))
	if o.Source.Move != nil {
		guarded("/api/v1/streams/move", only(s.move, http.MethodPost))
	}
	guarded("/api/v1/streams/kick", only(s.kickStream, http.MethodPost))
	guarded("/api/v1/sessions", get(s.listSessions))
	guarded("/api/v1/sessions/{id}", only(s.kick, http.MethodDelete))
	if o.Drain != nil {
		s.Checks = append(slices.Clone(s.Checks), Check{Name: "drain", Func: o.Drain.CheckReady})
		guarded("/api/v1/drain", only(s.drain, http.MethodGet, http.MethodHead, http.MethodPost, http.MethodDelete))
	}
	if o.Reload != nil {
		guarded("/api/v1/reload", only(s.reload, http.MethodGet, http.MethodHead, http.MethodPost))
	}
	if o.Upgrade != nil {
		guarded("/api/v1/upgrade", only(s.upgrade, http.MethodGet, http.MethodHead, http.MethodPost))
	}
	guarded("/{$}", get(overview()))
	guarded("/", http.HandlerFunc(notFound))
	if o.Config.Pprof {
		guarded("/debug/pprof/", get(pprof.Index))
		guarded("/debug/pprof/cmdline", get(pprof.Cmdline))
		guarded("/debug/pprof/profile", get(pprof.Profile))
		guarded("/debug/pprof/symbol", get(pprof.Symbol))
		guarded("/debug/pprof/trace", get(pprof.Trace))
	}
	// A browser that has been given the token must not spend it for another
	// site's page.
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeError(w, http.StatusForbidden, "request of another site's page")
	}))
	s.handler = http.MaxBytesHandler(protection.Handler(mux), maxBody)
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Serve answers requests on l until ctx ends, then lets those under way finish
// for up to two seconds, closes l and all connections and returns nil. Any
// other end is an error.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() {
		served <- server.Serve(&boundedListener{Listener: l, free: make(chan struct{}, maxConnections), closed: make(chan struct{})})
	}()
	var err error
	select {
	case err = <-served:
		server.Close()
		return fmt.Errorf("serve admin requests: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if server.Shutdown(grace) != nil {
		server.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve admin requests: %w", err)
	}
	return nil
}

// authorized lets requests with the token through to h; see Config.Token.
func (s *Server) authorized(h http.Handler) http.Handler {
	if s.Config.Token == "" {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := "", false
		if scheme, rest, found := strings.Cut(r.Header.Get("Authorization"), " "); found && strings.EqualFold(scheme, "Bearer") {
			token, ok = strings.TrimSpace(rest), true
		} else {
			_, token, ok = r.BasicAuth()
		}
		// Of equal length, so that the time says nothing of the token's.
		sum := sha256.Sum256([]byte(token))
		if !ok || subtle.ConstantTimeCompare(sum[:], s.token[:]) != 1 {
			w.Header().Add("WWW-Authenticate", `Basic realm="weir", charset="UTF-8"`)
			w.Header().Add("WWW-Authenticate", `Bearer realm="weir"`)
			writeError(w, http.StatusUnauthorized, "the token is missing or wrong")
			return
		}
		h.ServeHTTP(w, r)
	})
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write([]byte("ok\n"))
}

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	answer := struct {
		Ready  bool              `json:"ready"`
		Checks map[string]string `json:"checks"`
	}{true, make(map[string]string, len(s.Checks))}
	for _, check := range s.Checks {
		answer.Checks[check.Name] = "ok"
		if err := check.Func(ctx); err != nil {
			answer.Ready, answer.Checks[check.Name] = false, err.Error()
		}
	}
	status := http.StatusOK
	if !answer.Ready {
		status = http.StatusServiceUnavailable
	}
	writeJSON(w, status, answer)
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	var own bytes.Buffer
	s.Source.writeMetrics(&own)
	var m merger
	if err := m.add("", own.Bytes()); err != nil {
		writeError(w, http.StatusInternalServerError, err.Error())
		return
	}
	for _, a := range s.workers.ask(r.Context(), http.MethodGet, workerMetrics) {
		worker := a.name
		err := a.err
		if err == nil && a.status != http.StatusOK {
			err = fmt.Errorf("ask worker %s: HTTP status %d", a.name, a.status)
		}
		if err == nil {
			err = m.add(worker, a.body)
		}
		up := 1.0
		if err != nil {
			up = 0
			s.Log.Warn("metrics of a worker are missing", "worker", a.name, "error", err)
		}
		m.family("weir_worker_up").kind = "gauge"
		m.addSample(sample{"weir_worker_up", []label{{"worker", worker}}, up}, "")
	}
	var text bytes.Buffer
	m.writeTo(&text)
	writeMetricsText(w, text.Bytes())
}

func (s *Server) node(w http.ResponseWriter, _ *http.Request) {
	n := &s.Node
	var measured *load.Load
	if s.Load != nil {
		if l := s.Load(); l.Known() {
			measured = &l
		}
	}
	writeJSON(w, http.StatusOK, struct {
		ID        string            `json:"id"`
		Role      string            `json:"role"`
		Version   string            `json:"version"`
		PID       int               `json:"pid"`
		StartedAt time.Time         `json:"started_at"`
		Uptime    float64           `json:"uptime_seconds"`
		Addresses map[string]string `json:"addresses"`
		Labels    map[string]string `json:"labels,omitempty"`
		Load      *load.Load        `json:"load,omitempty"`
		Workers   []WorkerInfo      `json:"workers,omitempty"`
		Drain     *drain.Status     `json:"drain,omitempty"`
	}{n.ID, n.Role, n.Version, os.Getpid(), n.Started, time.Since(n.Started).Seconds(), n.Addresses, n.Labels, measured, s.workers.list(), s.drainStatus()})
}

func (s *Server) listStreams(w http.ResponseWriter, r *http.Request) {
	all, missing := collect(r.Context(), s.workers, workerStreams, func(i *StreamInfo, worker *int) { i.Worker = worker })
	all = append(s.Source.streams(), all...)
	writeJSON(w, http.StatusOK, struct {
		Streams []StreamInfo `json:"streams"`
		Missing []string     `json:"missing,omitempty"`
	}{withStream(all, r, func(i *StreamInfo) string { return i.Key }), missing})
}

func (s *Server) listSessions(w http.ResponseWriter, r *http.Request) {
	all, missing := collect(r.Context(), s.workers, workerSessions, func(i *SessionInfo, worker *int) { i.Worker = worker })
	all = append(s.Source.sessions(), all...)
	writeJSON(w, http.StatusOK, struct {
		Sessions []SessionInfo `json:"sessions"`
		Missing  []string      `json:"missing,omitempty"`
	}{withStream(all, r, func(i *SessionInfo) string { return i.Stream }), missing})
}

// withStream returns the items of the stream that the request's query names,
// all if it names none; never nil, which JSON would write as null.
func withStream[T any](all []T, r *http.Request, key func(*T) string) []T {
	kept := make([]T, 0, len(all))
	stream := r.URL.Query().Get("stream")
	for i := range all {
		if stream == "" || key(&all[i]) == stream {
			kept = append(kept, all[i])
		}
	}
	return kept
}

func (s *Server) kick(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if s.Source.Kick != nil && s.Source.Kick(id) {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	// Only its worker knows the session, so all are asked.
	var missing []string
	for _, a := range s.workers.ask(r.Context(), http.MethodDelete, workerSessions+"/"+url.PathEscape(id)) {
		switch {
		case a.err != nil:
			missing = append(missing, a.err.Error())
		case a.status == http.StatusNoContent:
			w.WriteHeader(http.StatusNoContent)
			return
		case a.status != http.StatusNotFound:
			missing = append(missing, fmt.Sprintf("ask worker %s: HTTP status %d", a.name, a.status))
		}
	}
	if missing != nil {
		writeError(w, http.StatusBadGateway, "no such session, but not all workers answered: "+strings.Join(missing, "; "))
		return
	}
	writeError(w, http.StatusNotFound, "no such session")
}

// overview returns the handler of the page. Its policy lets nothing run but the
// page's own script and lets that talk to nobody but this server.
func overview() http.HandlerFunc {
	_, rest, _ := bytes.Cut(overviewPage, []byte("<script>"))
	script, _, _ := bytes.Cut(rest, []byte("</script>"))
	sum := sha256.Sum256(script)
	policy := "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; " +
		"base-uri 'none'; form-action 'none'; script-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	return func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-cache")
		_, _ = w.Write(overviewPage)
	}
}
