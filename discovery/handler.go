package discovery

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/internal/repeat"
)

// HandlerConfig says what a handler of the discovery API serves.
type HandlerConfig struct {
	Engine Engine
	// Placer answers the calls for scheduling; nil: there are none.
	Placer *Placer
	// Token is what calls that change the directory must bring as a bearer
	// token; empty: nobody is asked.
	Token   string
	MaxBody int64 // of a request, in bytes
	// Ready reports for /readyz whether the engine can be used; nil: always.
	Ready  func(context.Context) error
	Logger *slog.Logger // of internal errors and refused calls; may be nil
	// Metrics counts refused calls and watches; may be nil. One handler to a set.
	Metrics *metrics.Set
	// MaxWatches bounds the watch calls under way at one time, if the engine is a
	// Watcher; 0: no bound. They end when Stop does (nil: never), and when one
	// write takes longer than WriteTimeout (0: never).
	MaxWatches   int
	WriteTimeout time.Duration
	Stop         context.Context
}

// NewHandler returns the HTTP API of a discovery server: API v1, SRS's clusters
// API, /healthz and /readyz. docs/discovery-api.md describes each call.
func NewHandler(cfg HandlerConfig) http.Handler {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = metrics.NewSet()
	}
	h := &handler{
		cfg: cfg, token: sha256.Sum256([]byte(cfg.Token)),
		unauthorized: cfg.Metrics.GetOrCreateCounter(`weir_discovery_unauthorized_total`),
	}
	mux := http.NewServeMux()
	route := func(path string, byMethod map[string]call) { mux.Handle(path, h.route(byMethod)) }
	post := func(path string, c call) { route(path, map[string]call{http.MethodPost: h.changing(c)}) }
	get := func(path string, c call) { route(path, map[string]call{http.MethodGet: c, http.MethodHead: c}) }

	post("/api/v1/leases/claim", h.claim)
	post("/api/v1/leases/renew", h.renew)
	post("/api/v1/leases/release", h.release)
	post("/api/v1/streams/kick", h.kick)
	post("/api/v1/nodes/heartbeat", h.heartbeat)
	post("/api/v1/nodes/goodbye", h.goodbye)
	get("/api/v1/lookup", h.lookup)
	get("/api/v1/streams", h.streams)
	get("/api/v1/nodes", h.nodes)
	if cfg.Placer != nil {
		get("/api/v1/schedule", h.guarded(h.schedule))
		get("/api/v1/decisions", h.guarded(h.decisions))
	}
	if w, ok := cfg.Engine.(Watcher); ok {
		mux.Handle(watchPath, newWatches(h, w))
	}
	get("/healthz", func(*http.Request) (any, error) { return statusJSON{"ok"}, nil })
	get("/readyz", h.ready)
	mux.Handle(ClustersPath, ClustersHandler(cfg.Engine.Lookup))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		h.fail(w, r, &apiError{status: http.StatusNotFound, code: codeNotFound, msg: "no such call"})
	})
	return mux
}

type handler struct {
	cfg   HandlerConfig
	token [sha256.Size]byte // hashed, so that comparing takes the same time for all lengths

	unauthorized *metrics.Counter
	refused      repeat.Filter[string] // by host
}

type statusJSON struct {
	Status string `json:"status"`
}

// call handles one request and returns what to answer with: a value, or nil for
// an answer without a body.
type call func(r *http.Request) (any, error)

// apiError is an error that is none of the directory's own.
type apiError struct {
	status int
	code   string
	msg    string
}

func (e *apiError) Error() string { return e.msg }

func (h *handler) route(byMethod map[string]call) http.Handler {
	allowed := make([]string, 0, len(byMethod))
	for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
		if byMethod[m] != nil {
			allowed = append(allowed, m)
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := byMethod[r.Method]
		if c == nil {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			h.fail(w, r, &apiError{http.StatusMethodNotAllowed, codeMethod, "method " + r.Method + " is not allowed here"})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, h.cfg.MaxBody)
		answer, err := c(r)
		if err != nil {
			h.fail(w, r, err)
			return
		}
		if answer == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		body, err := encode(answer)
		if err != nil {
			h.fail(w, r, err)
			return
		}
		writeJSON(w, http.StatusOK, body)
	})
}

// changing guards a call that changes the directory. The content type keeps web
// pages from posting to a directory on the loopback of the browser's machine.
func (h *handler) changing(c call) call {
	return h.guarded(func(r *http.Request) (any, error) {
		if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
			return nil, &apiError{http.StatusUnsupportedMediaType, codeMediaType, "Content-Type must be application/json"}
		}
		return c(r)
	})
}

// guarded asks for the token.
func (h *handler) guarded(c call) call {
	return func(r *http.Request) (any, error) {
		if h.cfg.Token != "" {
			scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
			got := sha256.Sum256([]byte(token))
			if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(got[:], h.token[:]) != 1 {
				h.noteRefusal(r, token == "")
				return nil, &apiError{http.StatusUnauthorized, codeUnauthorized, "this call needs the token of the directory"}
			}
		}
		return c(r)
	}
}

// noteRefusal counts a call without the token, and logs the first of each minute
// and host: a node that is configured wrongly calls every second.
func (h *handler) noteRefusal(r *http.Request, missing bool) {
	h.unauthorized.Inc()
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	if n, _ := h.refused.Due(host, time.Now()); n > 0 {
		cause := "wrong token"
		if missing {
			cause = "no token"
		}
		h.cfg.Logger.Warn("call refused", "cause", cause, "remote", r.RemoteAddr, "path", r.URL.Path, "calls", n)
	}
}

func (h *handler) claim(r *http.Request) (any, error) {
	var w claimJSON
	ttl, err := decodeCall(r, &w, &w.TTLms)
	if err != nil {
		return nil, err
	}
	if err := present(r); err != nil {
		return nil, err
	}
	return h.cfg.Engine.Claim(r.Context(), Claim{
		Stream: w.Stream, Node: w.Node, Instance: w.Instance, Addr: w.Addr, TTL: ttl, Replace: w.Replace, Publisher: w.Publisher,
		Dead: w.Dead, Held: w.Held,
	})
}

func (h *handler) renew(r *http.Request) (any, error) {
	var w renewalJSON
	ttl, err := decodeCall(r, &w, &w.TTLms)
	if err != nil {
		return nil, err
	}
	if err := present(r); err != nil {
		return nil, err
	}
	lost, err := h.cfg.Engine.Renew(r.Context(), Renewal{
		Node: w.Node, Instance: w.Instance, Addr: w.Addr, TTL: ttl, Leases: w.Leases,
	})
	if err != nil {
		return nil, err
	}
	if lost == nil {
		lost = []Lost{} // "lost":[] rather than null
	}
	return lostJSON{lost}, nil
}

func (h *handler) release(r *http.Request) (any, error) {
	var w releaseJSON
	if _, err := decodeCall(r, &w, nil); err != nil {
		return nil, err
	}
	return nil, h.cfg.Engine.Release(r.Context(), Lease{Stream: w.Stream, Node: w.Node, Epoch: w.Epoch})
}

func (h *handler) kick(r *http.Request) (any, error) {
	var w kickJSON
	ban, err := decodeCall(r, &w, &w.BanMs)
	if err != nil {
		return nil, err
	}
	return h.cfg.Engine.Kick(r.Context(), Kick{Stream: w.Stream, Ban: ban, Reason: w.Reason})
}

func (h *handler) heartbeat(r *http.Request) (any, error) {
	var w nodeJSON
	if _, err := decodeCall(r, &w, &w.TTLms); err != nil {
		return nil, err
	}
	n, err := w.node()
	if err != nil {
		return nil, err
	}
	return nil, h.cfg.Engine.Heartbeat(r.Context(), n)
}

func (h *handler) goodbye(r *http.Request) (any, error) {
	var w goodbyeJSON
	if _, err := decodeCall(r, &w, nil); err != nil {
		return nil, err
	}
	return nil, h.cfg.Engine.Goodbye(r.Context(), w.ID, w.Instance)
}

func (h *handler) lookup(r *http.Request) (any, error) {
	q, err := query(r, "stream")
	if err != nil {
		return nil, err
	}
	return h.cfg.Engine.Lookup(r.Context(), q["stream"])
}

func (h *handler) streams(r *http.Request) (any, error) {
	q, err := query(r, "vhost", "prefix", "node", "after", "limit")
	if err != nil {
		return nil, err
	}
	limit, err := queryLimit(q["limit"])
	if err != nil {
		return nil, err
	}
	prefix := q["prefix"]
	if v := q["vhost"]; v != "" {
		if prefix != "" {
			return nil, fmt.Errorf("%w: vhost and prefix exclude each other", ErrInvalid)
		}
		prefix = v + "/"
	}
	page, next, err := h.cfg.Engine.Streams(r.Context(), StreamQuery{
		Prefix: prefix, Node: q["node"], After: q["after"], Limit: limit,
	})
	if err != nil {
		return nil, err
	}
	return streamsJSON{page, next}, nil
}

func (h *handler) nodes(r *http.Request) (any, error) {
	q, err := query(r, "role", "after", "limit")
	if err != nil {
		return nil, err
	}
	limit, err := queryLimit(q["limit"])
	if err != nil {
		return nil, err
	}
	page, next, err := h.cfg.Engine.Nodes(r.Context(), NodeQuery{Role: Role(q["role"]), After: q["after"], Limit: limit})
	if err != nil {
		return nil, err
	}
	out := nodesJSON{Nodes: make([]listedNodeJSON, len(page)), Next: next}
	for i, n := range page {
		out.Nodes[i] = listedNodeJSON{n.wire(), max(0, time.Since(n.Seen).Milliseconds())}
	}
	return out, nil
}

func (h *handler) ready(r *http.Request) (any, error) {
	if h.cfg.Ready != nil {
		if err := h.cfg.Ready(r.Context()); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return statusJSON{"ready"}, nil
}

// decodeCall reads the body of a request. ttlMs points into the decoded value.
func decodeCall(r *http.Request, into any, ttlMs *int64) (time.Duration, error) {
	if err := decodeStrict(r.Body, into); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return 0, &apiError{http.StatusRequestEntityTooLarge, codeTooLarge, fmt.Sprintf("body of more than %d bytes", tooLarge.Limit)}
		}
		return 0, fmt.Errorf("%w: body: %w", ErrInvalid, err)
	}
	if ttlMs == nil {
		return 0, nil
	}
	return fromMillis(*ttlMs)
}

// query returns the parameters of a request. Unknown and repeated ones are errors,
// as unknown keys of a body are.
func query(r *http.Request, known ...string) (map[string]string, error) {
	q := make(map[string]string, len(known))
	values := r.URL.Query()
	for _, k := range known {
		if len(values[k]) > 1 {
			return nil, fmt.Errorf("%w: parameter %s given twice", ErrInvalid, k)
		}
		q[k] = values.Get(k)
		delete(values, k)
	}
	for k := range values {
		return nil, fmt.Errorf("%w: unknown parameter %q", ErrInvalid, k)
	}
	return q, nil
}

func queryLimit(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > MaxPage {
		return 0, fmt.Errorf("%w: limit %q is not between 1 and %d", ErrInvalid, s, MaxPage)
	}
	return n, nil
}

func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, answer := http.StatusInternalServerError, errorJSON{Code: codeInternal, Error: "internal error"}
	var own *apiError
	var conflict *ConflictError
	var banned *BannedError
	switch {
	case errors.As(err, &own):
		status, answer = own.status, errorJSON{Code: own.code, Error: own.msg}
	case errors.As(err, &conflict):
		status, answer = http.StatusConflict, errorJSON{Code: codeConflict, Error: err.Error(), Lease: &conflict.Lease}
	case errors.As(err, &banned):
		status, answer = http.StatusForbidden, errorJSON{Code: codeBanned, Error: err.Error(), Kicked: &banned.Kicked}
	case errors.Is(err, ErrNoNode):
		status, answer = http.StatusServiceUnavailable, errorJSON{Code: codeNoNode, Error: err.Error()}
		var reasons *noNode
		if errors.As(err, &reasons) {
			answer.Why = &reasons.why
		}
	case errors.Is(err, ErrNotFound):
		status, answer = http.StatusNotFound, errorJSON{Code: codeNotFound, Error: err.Error()}
	case errors.Is(err, ErrInvalid):
		status, answer = http.StatusBadRequest, errorJSON{Code: codeInvalid, Error: err.Error()}
	case errors.Is(err, ErrFull):
		status, answer = http.StatusServiceUnavailable, errorJSON{Code: codeFull, Error: err.Error()}
	case errors.Is(err, ErrUnavailable), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		status, answer = http.StatusServiceUnavailable, errorJSON{Code: codeUnavailable, Error: err.Error()}
	default:
		h.cfg.Logger.Error("discovery call failed", "method", r.Method, "path", r.URL.Path, "remote", r.RemoteAddr, "err", err)
	}
	body, err := encode(answer)
	if err != nil {
		h.cfg.Logger.Error("encode error answer", "err", err)
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	writeJSON(w, status, body)
}

func writeJSON(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	// An error here is the client's having gone; there is nobody to tell.
	_, _ = w.Write(body)
}
