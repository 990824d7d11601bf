package session

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"weir/configs"
	"weir/hls"
	"weir/internal/limit"
	"weir/internal/media"
	"weir/internal/rtmp"
	"weir/internal/stream"
	"weir/internal/vhost"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The one clock of fasthttp's Date headers.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

// patience bounds every wait of these tests; none is expected to use it.
const patience = 10 * time.Second

// role is an origin of few words.
type role struct {
	mu      sync.Mutex
	streams map[string]*stream.Stream // guarded by mu; by key
	play    error                     // guarded by mu; if set, what Play and HLS fail with
	publish error                     // guarded by mu; if set, what Publish fails with before Accept
	hold    bool                      // guarded by mu; Play and Publish wait for their context

	waiting          atomic.Int64 // calls that hold
	feeds, released  atomic.Int64
	releasedTwice    atomic.Int64
	publishers, tags atomic.Int64
}

func (r *role) answer() (play, publish error, hold bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.play, r.publish, r.hold
}

func (r *role) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

func (r *role) wait(ctx context.Context) error {
	r.waiting.Add(1)
	defer r.waiting.Add(-1)
	<-ctx.Done()
	return ctx.Err()
}

func (r *role) Play(ctx context.Context, req PlayRequest) (Feed, error) {
	err, _, hold := r.answer()
	if err != nil {
		return Feed{}, err
	}
	if hold {
		return Feed{}, r.wait(ctx)
	}
	r.mu.Lock()
	s := r.streams[req.Target.Key.String()]
	r.mu.Unlock()
	if s == nil {
		return Feed{}, ErrNotFound
	}
	r.feeds.Add(1)
	var once atomic.Bool
	return Feed{Stream: s, Epoch: 7, Release: func() {
		if !once.CompareAndSwap(false, true) {
			r.releasedTwice.Add(1)
		}
		r.released.Add(1)
	}}, nil
}

func (r *role) HLS(ctx context.Context, req HLSRequest) (hls.Object, error) {
	if err, _, _ := r.answer(); err != nil {
		return hls.Object{}, err
	}
	return hls.NewObject(http.StatusOK, hls.PlaylistType, "", []byte(req.Target.Key.String())), nil
}

func (r *role) Publish(ctx context.Context, p *Publisher) PublishEnd {
	_, err, hold := r.answer()
	if err != nil {
		return PublishEnd{Err: err}
	}
	if hold {
		return PublishEnd{Err: r.wait(ctx)}
	}
	s := r.open(p.Target.Key.String())
	defer s.Close(nil)
	pub, err := s.Publish()
	if err != nil {
		return PublishEnd{Err: err}
	}
	if err := p.Accept(); err != nil {
		return ReadEnd(err)
	}
	r.publishers.Add(1)
	for {
		t, err := p.ReadTag()
		if err != nil {
			return ReadEnd(err)
		}
		r.tags.Add(1)
		if err := pub.Append(t); err != nil {
			return PublishEnd{Reason: "stream_closed", Err: err}
		}
	}
}

// open makes a stream that can be played.
func (r *role) open(key string) *stream.Stream {
	s := stream.New(stream.DefaultLimits())
	r.set(func() { r.streams[key] = s })
	return s
}

// live makes a stream with a publisher and a key frame.
func (r *role) live(t *testing.T, key string) (*stream.Stream, *stream.Publisher) {
	t.Helper()
	s := r.open(key)
	p, err := s.Publish()
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range someTags() {
		if err := p.Append(tag); err != nil {
			t.Fatal(err)
		}
	}
	return s, p
}

// someTags returns headers, a key frame and audio.
func someTags() []media.Tag {
	var tags []media.Tag
	for _, x := range []struct {
		kind media.Kind
		body string
	}{
		{media.Video, "\x17\x00\x00\x00\x00header"}, {media.Audio, "\xaf\x00header"},
		{media.Video, "\x17\x01\x00\x00\x00key frame"}, {media.Audio, "\xaf\x01audio"},
	} {
		tag := media.NewTag(x.kind, 0, len(x.body))
		copy(tag.Body(), x.body)
		tags = append(tags, tag)
	}
	return tags
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// testNode is a running door with the role above behind it.
type testNode struct {
	t          *testing.T
	role       *role
	sessions   *Server
	set        *metrics.Set
	logs       *lockedBuffer
	rtmp, http string // addresses
	// Those of TLS, if files were given to start.
	rtmps, https string
	worker       string // address of the server for other workers
	stop         func() // ends all and waits
}

// Tenants: "a" (a.example) takes the key "secret" and has limits; the default one
// takes anybody.
func tenants() vhost.Vhosts {
	a := vhost.Default()
	a.Aliases = []string{"a.example"}
	a.Publish.Keys = []configs.Secret{"secret"}
	a.Play = vhost.PlayConfig{MaxPlayers: 3, MaxPlayersPerStream: 2}
	return vhost.Vhosts{"a": a}
}

func start(t *testing.T, change func(o *Options, d *Door)) *testNode {
	t.Helper()
	n := &testNode{t: t, role: &role{streams: map[string]*stream.Stream{}}, set: metrics.NewSet(), logs: &lockedBuffer{}}
	log := slog.New(slog.NewJSONHandler(n.logs, nil))
	o := Options{
		Config: DefaultConfig(0), RTMP: rtmp.DefaultServerConfig(), Vhosts: vhost.NewTable(tenants()), Role: n.role,
		Log: log, Set: n.set, IDPrefix: "w0-",
	}
	o.RTMP.CloseTimeout, o.RTMP.RedirectWait = 100*time.Millisecond, 100*time.Millisecond
	d := Door{RTMPConfig: DefaultRTMPConfig(), HTTPConfig: DefaultHTTPConfig(), Limits: limit.DefaultConfig(), Log: log, Set: n.set}
	d.HTTPConfig.ShutdownGrace = time.Second
	if change != nil {
		change(&o, &d)
	}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	d.RTMP, d.HTTP = listen(), listen()
	n.rtmp, n.http = d.RTMP.Addr().String(), d.HTTP.Addr().String()
	if d.HTTPConfig.TLS.CertFile != "" {
		d.RTMPConfig.TLS = d.HTTPConfig.TLS
		d.RTMPS, d.HTTPS = listen(), listen()
		n.rtmps, n.https = d.RTMPS.Addr().String(), d.HTTPS.Addr().String()
	}
	n.sessions = New(o)
	n.sessions.ledger.said.Every = time.Nanosecond // each refusal has its line
	d.Sessions = n.sessions
	ctx, cancel := context.WithCancel(context.Background())
	g, ctx := errgroup.WithContext(ctx)
	if _, err := d.Open(ctx, g); err != nil {
		t.Fatal(err)
	}

	workers := listen()
	n.worker = workers.Addr().String()
	mux := http.NewServeMux()
	var handlers sync.WaitGroup
	mux.HandleFunc(WorkerFLVPath, func(w http.ResponseWriter, r *http.Request) {
		handlers.Add(1)
		defer handlers.Done()
		n.sessions.ServeWorkerFLV(w, r)
	})
	server := &http.Server{Handler: mux}
	g.Go(func() error { return server.Serve(workers) })
	stopped := false
	n.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		// Who waits for an answer gets one.
		graceful, over := context.WithTimeout(context.Background(), patience)
		defer over()
		_ = server.Shutdown(graceful)
		done := make(chan error, 1)
		go func() { done <- g.Wait(); handlers.Wait() }()
		select {
		case err := <-done:
			if err != nil && !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("the door failed: %v", err)
			}
		case <-time.After(patience):
			t.Fatal("the door does not stop")
		}
		handlers.Wait()
		if f, r, twice := n.role.feeds.Load(), n.role.released.Load(), n.role.releasedTwice.Load(); f != r || twice != 0 {
			t.Errorf("%d feeds, %d released, %d of them twice", f, r, twice)
		}
		if left := n.sessions.Sessions(); len(left) != 0 {
			t.Errorf("sessions left: %+v", left)
		}
		for _, line := range strings.Split(n.metrics(), "\n") {
			if strings.HasPrefix(line, "weir_sessions{") && !strings.HasSuffix(line, " 0") {
				t.Errorf("at the end: %s", line)
			}
		}
	}
	t.Cleanup(n.stop)
	return n
}

func (n *testNode) metrics() string {
	var b bytes.Buffer
	n.set.WritePrometheus(&b)
	return b.String()
}

// line is one line of the log.
type line map[string]any

func (n *testNode) lines(msg string) (lines []line) {
	for _, l := range strings.Split(strings.TrimSpace(n.logs.String()), "\n") {
		var x line
		if l == "" {
			continue
		}
		if err := json.Unmarshal([]byte(l), &x); err != nil {
			n.t.Errorf("log line %q: %v", l, err)
		}
		if x["msg"] == msg {
			lines = append(lines, x)
		}
	}
	return lines
}

// eventually waits until ok, and fails the test if it never is.
func (n *testNode) eventually(what string, ok func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			n.t.Fatalf("never: %s\n%s\n%s", what, n.logs, n.metrics())
		}
		time.Sleep(2 * time.Millisecond) // between two looks
	}
}

// refused waits for the nth refusal and checks its log line and its counter,
// which must say the same and nothing else.
func (n *testNode) refused(nth int, kind, protocol, reason, stream string) {
	n.t.Helper()
	n.eventually("a line of the refusal", func() bool { return len(n.lines("session refused")) >= nth })
	all := n.lines("session refused")
	if len(all) != nth {
		n.t.Fatalf("%d lines, want %d: %v", len(all), nth, all)
	}
	got := all[nth-1]
	if got["kind"] != kind || got["protocol"] != protocol || got["reason"] != reason || got["stream"] != stream || got["remote"] == "" || got["err"] == "" {
		n.t.Errorf("the line is %v, want %s %s %s %s", got, kind, protocol, reason, stream)
	}
	want := `weir_refused_total{kind="` + kind + `",protocol="` + protocol + `",reason="` + reason + `"} 1`
	if m := n.metrics(); nth == 1 && (!strings.Contains(m, want) || strings.Count(m, "weir_refused_total{") != 1) {
		n.t.Errorf("no counter %s in\n%s", want, m)
	}
	if len(n.lines("session ended")) > 0 && nth == 1 {
		n.t.Error("a refusal is no session")
	}
}

// ended waits for n ends of sessions and returns their lines.
func (n *testNode) ended(count int) []line {
	n.t.Helper()
	n.eventually("the ends of sessions", func() bool { return len(n.lines("session ended")) >= count })
	return n.lines("session ended")
}

// dial connects over RTMP. path is APP/NAME with a query; tcURL may be empty.
func (n *testNode) dial(path, tcURL string, peer ...string) (*rtmp.Client, rtmp.URL, error) {
	n.t.Helper()
	u, err := rtmp.ParseURL("rtmp://" + n.rtmp + "/" + path)
	if err != nil {
		n.t.Fatal(err)
	}
	if tcURL != "" {
		u.TcURL = tcURL
	}
	cfg := rtmp.DefaultClientConfig()
	if len(peer) > 0 {
		cfg.Node = peer[0]
	}
	c, err := rtmp.Dial(n.t.Context(), u, cfg)
	if err != nil {
		return nil, u, err
	}
	n.t.Cleanup(func() { c.Close() })
	return c, u, nil
}

// play starts an RTMP play.
func (n *testNode) play(path, tcURL string, peer ...string) (*rtmp.Client, error) {
	n.t.Helper()
	c, u, err := n.dial(path, tcURL, peer...)
	if err != nil {
		return nil, err
	}
	if _, err := c.Play(n.t.Context(), u.Name); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// publish starts an RTMP publish.
func (n *testNode) publish(path, tcURL string) (*rtmp.Client, error) {
	n.t.Helper()
	c, u, err := n.dial(path, tcURL)
	if err != nil {
		return nil, err
	}
	if err := c.Publish(n.t.Context(), u.Name); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// get sends one request and returns the head of the answer; the body is open.
func (n *testNode) get(method, addr, target string, headers ...string) *http.Response {
	n.t.Helper()
	req, err := http.NewRequestWithContext(n.t.Context(), method, "http://"+addr+target, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

var webSocketHeaders = []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="}

// body reads what is left of an answer.
func body(t *testing.T, resp *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%v after %q", err, b)
	}
	return string(b)
}

// tagsOf parses FLV with its file header.
func tagsOf(t *testing.T, b string) []media.Tag {
	t.Helper()
	if !strings.HasPrefix(b, "FLV\x01") || len(b) < 13 {
		t.Fatalf("not FLV: %q", b)
	}
	var tags []media.Tag
	for b := []byte(b[13:]); len(b) > 0; {
		size := 15 + int(binary.BigEndian.Uint32(b)&0xffffff)
		if size > len(b) {
			t.Fatalf("%d bytes of a tag of %d", len(b), size)
		}
		tags = append(tags, b[:size])
		b = b[size:]
	}
	return tags
}

func sameTags(a, b []media.Tag) bool {
	return slices.EqualFunc(a, b, func(x, y media.Tag) bool { return bytes.Equal(x, y) })
}
