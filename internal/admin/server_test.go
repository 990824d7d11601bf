package admin

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"go.uber.org/goleak"

	"weir/internal/load"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what the tests wait for. The machine may be busy.
const patience = 20 * time.Second

// site is a running admin server.
type site struct {
	t      *testing.T
	url    string
	client *http.Client
}

func serve(t *testing.T, o Options) *site {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- New(o).Serve(ctx, l) }()
	n := &site{t, "http://" + l.Addr().String(), &http.Client{Transport: &http.Transport{}, Timeout: patience}}
	t.Cleanup(func() {
		n.client.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return n
}

// do makes a request and returns status, header and body of its answer. Headers
// are pairs.
func (n *site) do(method, path string, headers ...string) (int, http.Header, string) {
	n.t.Helper()
	r, err := http.NewRequestWithContext(n.t.Context(), method, n.url+path, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := n.client.Do(r)
	if err != nil {
		n.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return response.StatusCode, response.Header, string(body)
}

// get decodes the answer to a GET, which has to have the status.
func (n *site) get(path string, status int, v any) {
	n.t.Helper()
	got, _, body := n.do(http.MethodGet, path)
	if got != status {
		n.t.Fatalf("GET %s: status %d, want %d: %s", path, got, status, body)
	}
	if err := json.Unmarshal([]byte(body), v); err != nil {
		n.t.Fatalf("GET %s: %v in %q", path, err, body)
	}
}

// fakeWorker is the part of a worker that its supervisor sees.
type fakeWorker struct {
	info    WorkerInfo
	address string // of its socket
	set     *metrics.Set

	mu     sync.Mutex
	kicked []string // guarded by mu
}

// worker serves a WorkerHandler with a stream, a session of the ID, and a
// counter c_total of index+1. A handler takes its place if it is not nil.
func worker(t *testing.T, index int, session string, handler http.Handler) *fakeWorker {
	t.Helper()
	w := &fakeWorker{
		info:    WorkerInfo{Index: index, Sibling: index, State: "ready", PID: 1000 + index},
		address: filepath.Join(t.TempDir(), "socket"),
		set:     metrics.NewSet(),
	}
	w.set.NewCounter("c_total").Set(uint64(index + 1))
	if handler == nil {
		handler = WorkerHandler(Source{
			Metrics: []*metrics.Set{w.set},
			Streams: func() []StreamInfo {
				return []StreamInfo{{Key: "v/live/a", State: "live", Players: index + 1}, {Key: fmt.Sprintf("v/live/only%d", index)}}
			},
			Sessions: func() []SessionInfo { return []SessionInfo{{ID: session, Stream: "v/live/a", Kind: "play"}} },
			Kick: func(id string) bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.kicked = append(w.kicked, id)
				return id == session
			},
		})
	}
	l, err := net.Listen("unix", w.address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	return w
}

// supervise returns the options of the supervisor of the workers.
func supervise(workers ...*fakeWorker) Options {
	return Options{
		Workers: func() (all []WorkerInfo) {
			for _, w := range workers {
				all = append(all, w.info)
			}
			return all
		},
		DialWorker: func(ctx context.Context, index int) (net.Conn, error) {
			for _, w := range workers {
				if w.info.Index == index {
					return new(net.Dialer).DialContext(ctx, "unix", w.address)
				}
			}
			return nil, fmt.Errorf("no worker %d", index)
		},
	}
}

// dead is a worker whose socket is gone.
func dead(index int) *fakeWorker {
	return &fakeWorker{info: WorkerInfo{Index: index, Sibling: index, State: "restarting"}, address: "/nonexistent/socket"}
}

func TestHealthAndReadiness(t *testing.T) {
	var mu sync.Mutex
	var trouble error
	n := serve(t, Options{Checks: []Check{
		{"workers", func(context.Context) error { return nil }},
		{"discovery", func(context.Context) error { mu.Lock(); defer mu.Unlock(); return trouble }},
	}})
	if status, _, body := n.do(http.MethodGet, "/healthz"); status != http.StatusOK || body != "ok\n" {
		t.Errorf("healthz: %d %q", status, body)
	}
	f := func(status int, want string) {
		t.Helper()
		if got, _, body := n.do(http.MethodGet, "/readyz"); got != status || body != want+"\n" {
			t.Errorf("readyz: %d %s, want %d %s", got, body, status, want)
		}
	}
	f(http.StatusOK, `{"ready":true,"checks":{"discovery":"ok","workers":"ok"}}`)
	mu.Lock()
	trouble = errors.New("no answer for 3s")
	mu.Unlock()
	f(http.StatusServiceUnavailable, `{"ready":false,"checks":{"discovery":"no answer for 3s","workers":"ok"}}`)
}

func TestMetricsOfAllWorkersAreOne(t *testing.T) {
	own := metrics.NewSet()
	own.NewCounter("c_total").Set(100)
	// One worker answers nonsense, one is not there, one never answers.
	silence := make(chan struct{})
	t.Cleanup(func() { close(silence) })
	nonsense := worker(t, 3, "", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "c_total 1000\n<html>") }))
	silent := worker(t, 4, "", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-silence }))
	failing := worker(t, 5, "", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "c_total 1000", 500) }))
	o := supervise(worker(t, 0, "", nil), worker(t, 1, "", nil), dead(2), nonsense, silent, failing)
	o.Source.Metrics = []*metrics.Set{own}
	n := serve(t, o)

	asked := time.Now()
	status, header, body := n.do(http.MethodGet, "/metrics")
	if took := time.Since(asked); took > 3*time.Second {
		t.Errorf("took %v with a silent worker, want about %v", took, workerTimeout)
	}
	if status != http.StatusOK || !strings.HasPrefix(header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("status %d, %v", status, header)
	}
	got := values(t, body)
	for key, want := range map[string]float64{
		"c_total": 103, `weir_worker_up{worker="0"}`: 1, `weir_worker_up{worker="1"}`: 1, `weir_worker_up{worker="2"}`: 0,
		`weir_worker_up{worker="3"}`: 0, `weir_worker_up{worker="4"}`: 0, `weir_worker_up{worker="5"}`: 0,
	} {
		if value, ok := got[key]; !ok || value != want {
			t.Errorf("%s is %v, want %v", key, value, want)
		}
	}
	for _, key := range []string{"process_start_time_seconds", `process_start_time_seconds{worker="0"}`, `process_start_time_seconds{worker="1"}`} {
		if got[key] < 1e9 {
			t.Errorf("%s is %v", key, got[key])
		}
	}
}

// The supervisor counts a worker that is silent as late, with what it said last, and
// leaves out workers that have nothing to say yet or are not ready.
func TestLoadsOfWorkers(t *testing.T) {
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	var hangs atomic.Bool
	var heard atomic.Pointer[load.Status]
	said := load.Report{Worker: 7, CPU: 0.25, Players: 3} // it does not know its number
	speaks := worker(t, 0, "", WorkerHandler(Source{Load: func(s load.Status) (load.Report, bool) { heard.Store(&s); return said, true }}))
	dumb := worker(t, 1, "", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hangs.Load() {
			<-hang
		}
		WorkerHandler(Source{Load: func(s load.Status) (load.Report, bool) { heard.Store(&s); return said, true }}).ServeHTTP(w, r)
	}))
	early := worker(t, 2, "", WorkerHandler(Source{Load: func(s load.Status) (load.Report, bool) { heard.Store(&s); return said, false }}))
	for _, w := range []*fakeWorker{speaks, dumb, early} {
		w.info.State = "ready"
	}
	o := supervise(speaks, dumb, early, dead(3))
	var dials atomic.Int32
	ask := WorkerLoads(o.Workers, func(ctx context.Context, index int) (net.Conn, error) {
		dials.Add(1)
		return o.DialWorker(ctx, index)
	})
	want := func(reports []load.Report, numbers ...int) {
		t.Helper()
		var got []int
		for _, r := range reports {
			got = append(got, r.Worker)
			if r.CPU != said.CPU || r.Players != said.Players {
				t.Errorf("%+v", r)
			}
		}
		if !slices.Equal(got, numbers) {
			t.Fatalf("reports of %v, want %v", got, numbers)
		}
	}
	want(ask(t.Context(), load.Status{Soft: true}), 0, 1)
	if s := heard.Load(); s == nil || !s.Soft || s.Hard {
		t.Errorf("the workers heard %+v", s)
	}
	want(ask(t.Context(), load.Status{}), 0, 1)
	if s := heard.Load(); s.Soft {
		t.Errorf("the workers heard %+v", s)
	}
	if n := dials.Load(); n != 3 {
		t.Errorf("%d connections for two questions to three workers", n)
	}
	hangs.Store(true)
	reports := ask(t.Context(), load.Status{Soft: true})
	want(reports, 0, 1)
	if reports[0].Lateness != 0 || reports[1].Lateness < workerTimeout/2 {
		t.Errorf("a silent worker is late by %v, one that speaks by %v", reports[1].Lateness, reports[0].Lateness)
	}
	before := reports[1].Lateness
	if now := ask(t.Context(), load.Status{Soft: true})[1].Lateness; now < before+workerTimeout/2 {
		t.Errorf("late by %v and then by %v", before, now)
	}
	dumb.info.PID++ // another process, which is given its time
	hangs.Store(false)
	if r := ask(t.Context(), load.Status{Soft: true}); r[1].Lateness != 0 {
		t.Errorf("a new worker is late by %v", r[1].Lateness)
	}
	made := dials.Load()
	speaks.info.PID++ // another process of that number: the connection to the one before is of no use
	want(ask(t.Context(), load.Status{}), 0, 1)
	if n := dials.Load() - made; n != 1 {
		t.Errorf("%d connections to a new worker", n)
	}
}

// A worker that ends the connection behind an answer is asked over another one, and
// connections end with their context.
func TestLineToWorker(t *testing.T) {
	said := load.Report{CPU: 0.25}
	var open atomic.Int32
	var closes atomic.Bool
	w := worker(t, 0, "", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if closes.Load() {
			w.Header().Set("Connection", "close")
		}
		WorkerHandler(Source{Load: func(load.Status) (load.Report, bool) { return said, true }}).ServeHTTP(w, r)
	}))
	o := supervise(w)
	ended := make(chan struct{}, 10)
	ask := WorkerLoads(o.Workers, func(ctx context.Context, index int) (net.Conn, error) {
		c, err := o.DialWorker(ctx, index)
		open.Add(1)
		return &watchedConn{Conn: c, closed: func() { open.Add(-1); ended <- struct{}{} }}, err
	})
	ctx, cancel := context.WithCancel(t.Context())
	for i := range 4 {
		closes.Store(i == 1 || i == 2)
		if r := ask(ctx, load.Status{}); len(r) != 1 || r[0].Lateness != 0 || r[0].CPU != said.CPU {
			t.Fatalf("question %d: %+v", i, r)
		}
	}
	if n := open.Load(); n != 1 {
		t.Errorf("%d connections are open", n)
	}
	cancel()
	for range 3 {
		<-ended
	}
}

// watchedConn tells of its being closed, once.
type watchedConn struct {
	net.Conn
	closed func()
	once   sync.Once
}

func (c *watchedConn) Close() error {
	c.once.Do(c.closed)
	return c.Conn.Close()
}

func TestLoadOfNode(t *testing.T) {
	o := Options{Node: NodeInfo{Labels: map[string]string{"region": "eu"}}}
	l := load.Load{Dimensions: map[load.Name]float64{load.CPU: 0.5}, Worst: load.CPU, Effective: 0.5, Soft: true}
	o.Load = func() load.Load { return l }
	var got struct {
		Labels map[string]string
		Load   *load.Load
	}
	serve(t, o).get("/api/v1/node", http.StatusOK, &got)
	if got.Labels["region"] != "eu" || got.Load == nil || got.Load.Effective != 0.5 || !got.Load.Soft || got.Load.Dimensions[load.CPU] != 0.5 {
		t.Errorf("%+v", got)
	}
	l.Worst, got.Load = "", nil
	if serve(t, o).get("/api/v1/node", http.StatusOK, &got); got.Load != nil {
		t.Errorf("a load that is not known: %+v", got.Load)
	}
}

func TestNode(t *testing.T) {
	o := supervise(dead(0))
	o.Node = NodeInfo{ID: "edge-1", Role: "edge", Version: "v0.1", Started: time.Now().Add(-time.Hour), Addresses: map[string]string{"rtmp": ":1935"}}
	var got struct {
		ID, Role, Version string
		PID               int
		StartedAt         time.Time `json:"started_at"`
		Uptime            float64   `json:"uptime_seconds"`
		Addresses         map[string]string
		Workers           []WorkerInfo
	}
	serve(t, o).get("/api/v1/node", http.StatusOK, &got)
	if got.ID != "edge-1" || got.Role != "edge" || got.Version != "v0.1" || got.PID != os.Getpid() || got.Addresses["rtmp"] != ":1935" ||
		got.Uptime < 3600 || got.Uptime > 3700 || len(got.Workers) != 1 || got.Workers[0].State != "restarting" || !got.StartedAt.Equal(o.Node.Started) {
		t.Errorf("%+v", got)
	}
}

type listing struct {
	Streams  []StreamInfo
	Sessions []SessionInfo
	Missing  []string
}

func TestStreamsAndSessionsOfAllWorkers(t *testing.T) {
	o := supervise(worker(t, 0, "s0", nil), dead(1), worker(t, 2, "s2", nil))
	o.Source.Streams = func() []StreamInfo { return []StreamInfo{{Key: "v/live/own"}} }
	n := serve(t, o)
	describe := func(l listing) (all []string) {
		worker := func(w *int) string {
			if w == nil {
				return ""
			}
			return fmt.Sprint("@", *w)
		}
		for _, s := range l.Streams {
			all = append(all, s.Key+worker(s.Worker))
		}
		for _, s := range l.Sessions {
			all = append(all, s.ID+worker(s.Worker))
		}
		return all
	}
	f := func(path string, want ...string) {
		t.Helper()
		var l listing
		n.get(path, http.StatusOK, &l)
		if got := describe(l); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
		if len(l.Missing) != 1 || !strings.HasPrefix(l.Missing[0], "ask worker 1: ") {
			t.Errorf("%s: missing %q", path, l.Missing)
		}
	}
	f("/api/v1/streams", "v/live/own", "v/live/a@0", "v/live/only0@0", "v/live/a@2", "v/live/only2@2")
	f("/api/v1/streams?stream=v/live/a", "v/live/a@0", "v/live/a@2")
	f("/api/v1/sessions", "s0@0", "s2@2")
	f("/api/v1/sessions?stream=v/live/none")
}

func TestEmptyListsAreLists(t *testing.T) {
	n := serve(t, Options{})
	for path, want := range map[string]string{"/api/v1/streams": `{"streams":[]}`, "/api/v1/sessions": `{"sessions":[]}`} {
		if _, _, body := n.do(http.MethodGet, path); body != want+"\n" {
			t.Errorf("%s: %s", path, body)
		}
	}
}

func TestKick(t *testing.T) {
	const odd = "a/b ?#%ü"
	w0, w1 := worker(t, 0, "s0", nil), worker(t, 1, odd, nil)
	all := serve(t, supervise(w0, w1))
	part := serve(t, supervise(w0, dead(1)))
	f := func(n *site, id string, want int) {
		t.Helper()
		if status, _, body := n.do(http.MethodDelete, "/api/v1/sessions/"+id); status != want || (status == 204) != (body == "") {
			t.Errorf("kick %s: %d %q, want %d", id, status, body, want)
		}
	}
	f(all, "s0", http.StatusNoContent)
	f(all, "a%2Fb%20%3F%23%25%C3%BC", http.StatusNoContent)
	f(all, "s9", http.StatusNotFound)
	f(part, "s0", http.StatusNoContent)
	f(part, "s9", http.StatusBadGateway)
	f(serve(t, Options{Source: Source{Kick: func(id string) bool { return id == "x" }}}), "x", http.StatusNoContent)
	f(serve(t, Options{}), "x", http.StatusNotFound)
	w1.mu.Lock()
	defer w1.mu.Unlock()
	if want := []string{"s0", odd, "s9"}; !slices.Equal(w1.kicked, want) {
		t.Errorf("worker 1 was asked for %q, want %q", w1.kicked, want)
	}
}

func TestErrorsAreJSON(t *testing.T) {
	f := func(n *site, method, path string, status int, headers ...string) http.Header {
		t.Helper()
		got, header, body := n.do(method, path, headers...)
		var e struct{ Error string }
		if err := json.Unmarshal([]byte(body), &e); got != status || err != nil || e.Error == "" || header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %d %q, want %d with JSON", method, path, got, body, status)
		}
		return header
	}
	n := serve(t, Options{})
	f(n, http.MethodGet, "/nothing", http.StatusNotFound)
	f(n, http.MethodGet, "/api/v1/nothing", http.StatusNotFound)
	f(n, http.MethodGet, "/_weir/metrics", http.StatusNotFound)
	f(n, http.MethodGet, "/debug/pprof/", http.StatusNotFound) // not configured
	for _, path := range []string{"/", "/metrics", "/healthz", "/readyz", "/api/v1/node", "/api/v1/streams", "/api/v1/sessions"} {
		if allow := f(n, http.MethodPost, path, http.StatusMethodNotAllowed).Get("Allow"); allow != "GET, HEAD" {
			t.Errorf("POST %s: Allow: %s", path, allow)
		}
	}
	if allow := f(n, http.MethodGet, "/api/v1/sessions/x", http.StatusMethodNotAllowed).Get("Allow"); allow != "DELETE" {
		t.Errorf("Allow: %s", allow)
	}
	f(n, http.MethodDelete, "/api/v1/sessions/x", http.StatusForbidden, "Sec-Fetch-Site", "cross-site")

	unix := worker(t, 0, "", nil)
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", unix.address) }}
	w := &site{t, "http://worker", &http.Client{Transport: transport, Timeout: patience}}
	f(w, http.MethodGet, "/_weir/nothing", http.StatusNotFound)
	f(w, http.MethodPost, "/_weir/metrics", http.StatusMethodNotAllowed)
	f(w, http.MethodGet, "/_weir/sessions/x", http.StatusMethodNotAllowed)
	f(w, http.MethodDelete, "/_weir/sessions/x", http.StatusNotFound)
}

func TestToken(t *testing.T) {
	n := serve(t, Options{Config: Config{Token: "s3cret", Pprof: true}})
	f := func(path, authorization string, want int) {
		t.Helper()
		headers := []string{"Authorization", authorization}
		if authorization == "" {
			headers = nil
		}
		status, header, body := n.do(http.MethodGet, path, headers...)
		if status != want {
			t.Errorf("%s with %q: %d %s, want %d", path, authorization, status, body, want)
		}
		if challenges := header.Values("WWW-Authenticate"); (want == http.StatusUnauthorized) != (len(challenges) == 2) {
			t.Errorf("%s with %q: challenges %q", path, authorization, challenges)
		}
	}
	basic := func(password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte("anybody:"+password))
	}
	f("/healthz", "", http.StatusOK)
	f("/readyz", "", http.StatusOK)
	for _, path := range []string{"/", "/metrics", "/api/v1/node", "/api/v1/streams", "/api/v1/sessions", "/debug/pprof/cmdline", "/nothing"} {
		f(path, "", http.StatusUnauthorized)
	}
	for _, wrong := range []string{"Bearer", "Bearer ", "Bearer s3cre", "Bearer s3cret2", "s3cret", basic(""), basic("s3cre"), "Digest s3cret"} {
		f("/api/v1/node", wrong, http.StatusUnauthorized)
	}
	for _, right := range []string{"Bearer s3cret", "bearer s3cret", basic("s3cret")} {
		f("/api/v1/node", right, http.StatusOK)
	}
	f("/debug/pprof/goroutine?debug=1", "Bearer s3cret", http.StatusOK)
	f("/debug/pprof/", "Bearer s3cret", http.StatusOK)
}

// The page's policy names the script that is in it.
func TestOverviewRunsItsOwnScriptOnly(t *testing.T) {
	status, header, body := serve(t, Options{}).do(http.MethodGet, "/")
	_, rest, ok := strings.Cut(body, "<script>")
	script, _, _ := strings.Cut(rest, "</script>")
	sum := sha256.Sum256([]byte(script))
	policy := header.Get("Content-Security-Policy")
	if status != http.StatusOK || !ok || !strings.Contains(policy, "script-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'") {
		t.Errorf("status %d, policy %s", status, policy)
	}
	for _, forbidden := range []string{"innerHTML", "insertAdjacentHTML", "document.write", "http://", "https://", "onclick"} {
		if strings.Contains(body, forbidden) {
			t.Errorf("the page has %s", forbidden)
		}
	}
}

func TestConfig(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	f := func(c Config, want string) {
		t.Helper()
		err := c.Validate()
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("%+v: %v, want %s", c, err, want)
		}
	}
	f(Config{}, "")
	f(Config{Listen: "[::1]:0", Token: "~!x"}, "")
	f(Config{Listen: "9090"}, "listen: ")
	f(Config{Listen: "127.0.0.1:99999"}, "listen: ")
	f(Config{Listen: "myhost:80"}, "listen: ")
	f(Config{Listen: "localhost:80"}, "")
	f(Config{Listen: ":80"}, "")
	f(Config{Token: "a b"}, "token: ")
	f(Config{Token: "ü"}, "token: ")
}

// No two servers of a node share an address.
func TestConfigApart(t *testing.T) {
	f := func(rtmp, http, admin string, want ...string) {
		t.Helper()
		got := ""
		if err := (Config{Listen: admin}).CheckApart(Place{"rtmp.listen", rtmp}, Place{"http.listen", http}); err != nil {
			got = err.Error()
		}
		if got != strings.Join(want, "\n") {
			t.Errorf("%s, %s, %s: %q, want %q", rtmp, http, admin, got, want)
		}
	}
	f("0.0.0.0:1935", "0.0.0.0:8080", "127.0.0.1:9090")
	f("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0")
	f("127.0.0.1:80", "127.0.0.2:80", "[::1]:80")
	f("127.0.0.1:80", "", "")
	f("nonsense", "nonsense", "nonsense")
	f("0.0.0.0:80", "0.0.0.0:80", "127.0.0.1:9090", "http.listen: 0.0.0.0:80 is taken by rtmp.listen (0.0.0.0:80)")
	f("0.0.0.0:1935", "127.0.0.1:80", "localhost:80", "admin.listen: localhost:80 is taken by http.listen (127.0.0.1:80)")
	f("[::ffff:127.0.0.1]:80", ":81", "127.0.0.1:080", "admin.listen: 127.0.0.1:080 is taken by rtmp.listen ([::ffff:127.0.0.1]:80)")
	f(":80", "127.0.0.1:80", "[::1]:80",
		"http.listen: 127.0.0.1:80 is taken by rtmp.listen (:80)", "admin.listen: [::1]:80 is taken by rtmp.listen (:80)")
}

// A client that sends no header, and one whose request is under way, do not
// keep the server from its end.
func TestServeEndsWithItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	entered, leave := make(chan struct{}), make(chan struct{})
	s := New(Options{Log: slog.New(slog.DiscardHandler), Checks: []Check{{"slow", func(context.Context) error {
		close(entered)
		<-leave
		return nil
	}}}})
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	mute, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	asking, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer asking.Close()
	fmt.Fprintf(asking, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered
	cancel()
	close(leave)
	answer, err := io.ReadAll(asking)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 OK") {
		t.Errorf("request under way: %q, %v", answer, err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("the listener is open")
	}
	if err := s.Serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve on a closed listener: %v", err)
	}
}

func TestBoundedListener(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &boundedListener{Listener: inner, free: make(chan struct{}, 1), closed: make(chan struct{})}
	accepted := make(chan net.Conn)
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- c
		}
	}()
	for range 3 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first := <-accepted
	select {
	case <-accepted:
		t.Error("a second connection beside the first one")
	case <-time.After(50 * time.Millisecond):
	}
	first.Close()
	first.Close() // gives back one place, not two
	defer (<-accepted).Close()
	if len(l.free) != 1 {
		t.Errorf("%d places taken", len(l.free))
	}
	l.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
}
