package httpserver

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/valyala/fasthttp"
	"go.uber.org/goleak"

	"weir/internal/limit"
	"weir/internal/secure"
	"weir/internal/secure/securetest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The one clock of fasthttp's Date headers.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

// patience bounds every wait of these tests; none is expected to use it.
const patience = 10 * time.Second

// node is a running server and what a test needs to know about it.
type node struct {
	t    *testing.T
	addr string
	set  *metrics.Set
	gate *limit.Gate
	srv  *Server
	stop func() // ends Serve and waits for it
	logs *lockedBuffer
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

type setup struct {
	cfg     func(*Config)
	limits  limit.Config
	handler func(s *Server, ctx *fasthttp.RequestCtx)
	tls     *secure.Server
}

func start(t *testing.T, with setup) *node {
	t.Helper()
	cfg := DefaultConfig()
	if with.cfg != nil {
		with.cfg(&cfg)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, addr: l.Addr().String(), set: metrics.NewSet(), logs: &lockedBuffer{}}
	n.gate = limit.NewGate(with.limits, "http", n.set)
	handler := with.handler
	if handler == nil {
		handler = func(_ *Server, ctx *fasthttp.RequestCtx) { ctx.SetBodyString("hello " + string(ctx.Path())) }
	}
	n.srv = New(cfg, n.gate, func(ctx *fasthttp.RequestCtx) { handler(n.srv, ctx) },
		slog.New(slog.NewTextHandler(n.logs, nil)), n.set)
	if with.tls != nil {
		l = with.tls.Listener(l)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- n.srv.Serve(ctx, l) }()
	var once sync.Once
	n.stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-served:
				if err != nil {
					t.Errorf("Serve: %v", err)
				}
			case <-time.After(patience):
				t.Error("Serve did not return")
			}
			if n.gate.Open() != 0 {
				t.Errorf("%d places still held after Serve", n.gate.Open())
			}
		})
	}
	t.Cleanup(n.stop)
	return n
}

func (n *node) dial() net.Conn {
	n.t.Helper()
	c, err := net.Dial("tcp", n.addr)
	if err != nil {
		n.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	n.t.Cleanup(func() { c.Close() })
	return c
}

// send opens a connection and writes text with \n turned into \r\n.
func (n *node) send(text string) net.Conn {
	n.t.Helper()
	c := n.dial()
	if _, err := io.WriteString(c, strings.ReplaceAll(text, "\n", "\r\n")); err != nil {
		n.t.Fatal(err)
	}
	return c
}

// exchange sends text and returns everything until the server closes.
func (n *node) exchange(text string) string {
	n.t.Helper()
	answer, err := io.ReadAll(n.send(text))
	if err != nil {
		n.t.Errorf("%q: %v after %q", text, err, answer)
	}
	return string(answer)
}

func (n *node) metric(line string) {
	n.t.Helper()
	n.eventually("metric "+line, func() bool {
		var b strings.Builder
		n.set.WritePrometheus(&b)
		return strings.Contains(b.String(), line+"\n")
	})
}

// eventually polls a condition that nothing signals.
func (n *node) eventually(what string, ok func() bool) {
	n.t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			n.t.Fatalf("never: %s", what)
		}
		<-tick.C
	}
}

func contains(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %q", want, text)
		}
	}
}

func lacks(t *testing.T, text string, unwanted ...string) {
	t.Helper()
	for _, s := range unwanted {
		if strings.Contains(text, s) {
			t.Errorf("%q in %q", s, text)
		}
	}
}

func TestRequests(t *testing.T) {
	n := start(t, setup{handler: func(_ *Server, ctx *fasthttp.RequestCtx) {
		switch string(ctx.Path()) {
		case "/panic":
			panic("boom")
		case "/none":
			Error(ctx, 404, "no such stream")
		default:
			ctx.SetBodyString("hello " + string(ctx.Path()))
		}
	}})
	const end = "Host: h\nConnection: close\n\n"

	got := n.exchange("GET /a HTTP/1.1\n" + end)
	contains(t, got, "HTTP/1.1 200 OK\r\n", "Server: weir\r\n", "Date: ", "Access-Control-Allow-Origin: *\r\n", "\r\n\r\nhello /a")
	got = n.exchange("HEAD /a HTTP/1.1\n" + end)
	contains(t, got, "HTTP/1.1 200 OK\r\n", "Content-Length: 8\r\n")
	lacks(t, got, "hello")
	got = n.exchange("GET /a HTTP/1.0\n\n")
	contains(t, got, "200 OK\r\n", "Connection: close\r\n", "hello /a")
	got = n.exchange("GET /none HTTP/1.1\n" + end)
	contains(t, got, "HTTP/1.1 404 Not Found\r\n", "text/plain", "no-store", "Access-Control-Allow-Origin: *\r\n", "\r\n\r\nno such stream\n")
	got = n.exchange("GET /panic HTTP/1.1\n" + end)
	contains(t, got, "HTTP/1.1 500 ", "internal error")
	lacks(t, got, "boom")
	contains(t, n.logs.String(), "boom")
	got = n.exchange("POST /a HTTP/1.1\nContent-Length: 2\n" + end + "xx")
	contains(t, got, "HTTP/1.1 405 ", "Allow: GET, HEAD, OPTIONS\r\n")

	// Pipelined and kept alive: three answers in order on one connection.
	got = n.exchange("GET /1 HTTP/1.1\nHost: h\n\nGET /2 HTTP/1.1\nHost: h\n\nGET /3 HTTP/1.1\n" + end)
	if i, j, k := strings.Index(got, "hello /1"), strings.Index(got, "hello /2"), strings.Index(got, "hello /3"); i < 0 || j < i || k < j {
		t.Errorf("pipelined answers: %q", got)
	}
	c := n.send("GET /1 HTTP/1.1\nHost: h\n\n")
	r := bufio.NewReader(c)
	for i := range 3 {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		io.Copy(io.Discard, resp.Body)
		io.WriteString(c, "GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
	}

	n.metric(`weir_http_requests_total{class="2xx"} 10`)
	n.metric(`weir_http_requests_total{class="5xx"} 1`)
	n.metric(`weir_http_connections 1`)
	c.Close()
	n.metric(`weir_http_connections 0`)
}

func TestCORS(t *testing.T) {
	preflight := "OPTIONS /a HTTP/1.1\nHost: h\nConnection: close\nAccess-Control-Request-Method: GET\nAccess-Control-Request-Headers: range,x-a\nOrigin: "
	all := start(t, setup{})
	got := all.exchange(preflight + "https://a.example\n\n")
	contains(t, got, "HTTP/1.1 204 ", "Access-Control-Allow-Origin: *\r\n", "Access-Control-Allow-Methods: GET, HEAD, OPTIONS\r\n",
		"Access-Control-Allow-Headers: range,x-a\r\n", "Access-Control-Max-Age: 86400\r\n")
	lacks(t, got, "Content-Length:")

	some := start(t, setup{cfg: func(c *Config) { c.CORSOrigins = []string{"https://a.example", "https://b.example"} }})
	got = some.exchange(preflight + "https://b.example\n\n")
	contains(t, got, "Access-Control-Allow-Origin: https://b.example\r\n", "Vary: Origin\r\n", "Access-Control-Allow-Methods")
	got = some.exchange(preflight + "https://evil.example\n\n")
	contains(t, got, "HTTP/1.1 204 ", "Vary: Origin\r\n")
	lacks(t, got, "Access-Control-")
	got = some.exchange("GET / HTTP/1.1\nHost: h\nConnection: close\nOrigin: https://evil.example\n\n")
	contains(t, got, "200 OK", "Vary: Origin\r\n", "hello")
	lacks(t, got, "Access-Control-")

	none := start(t, setup{cfg: func(c *Config) { c.CORSOrigins = nil }})
	got = none.exchange("GET / HTTP/1.1\nHost: h\nConnection: close\nOrigin: https://a.example\n\n")
	lacks(t, got, "Access-Control-", "Vary")
}

func TestBadRequestsAreAnsweredAndClosed(t *testing.T) {
	n := start(t, setup{cfg: func(c *Config) { c.MaxHeaderBytes = 1 << 10; c.MaxBodyBytes = 100 }})
	f := func(request string, wants ...string) {
		t.Helper()
		got := n.exchange(request)
		contains(t, got, append(wants, "Connection: close\r\n", "text/plain")...)
	}
	f("GET / HTTP/1.1\nHost: h\nX: "+strings.Repeat("x", 2<<10)+"\n\n", "HTTP/1.1 431 ", "headers are too large")
	// Much more than socket buffers take at once: the answer must survive it.
	f("GET /"+strings.Repeat("x", 200<<10)+" HTTP/1.1\nHost: h\n\n", "HTTP/1.1 431 ")
	f("GET / HTTP/1.1\nHost: h\nContent-Length: 101\n\n"+strings.Repeat("x", 101), "HTTP/1.1 413 ", "body is too large")
	f("GET / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\nfff\n"+strings.Repeat("x", 0xfff)+"\n0\n\n", "HTTP/1.1 413 ")
	f("\x16\x03\x01\x02\x00 this is TLS\n\n", "HTTP/1.1 400 ", "malformed request")
	f("GET\n\n", "HTTP/1.1 400 ")
	n.metric(`weir_http_refused_total{reason="header_too_large"} 2`)
	n.metric(`weir_http_refused_total{reason="body_too_large"} 2`)
	n.metric(`weir_http_refused_total{reason="malformed"} 2`)
	n.metric(`weir_http_connections 0`)
}

func TestSlowRequestsEnd(t *testing.T) {
	n := start(t, setup{cfg: func(c *Config) { c.HeaderTimeout = 300 * time.Millisecond; c.IdleTimeout = 300 * time.Millisecond }})

	// A byte now and then does not prolong the time.
	c := n.send("GET / HTTP/1.1\n")
	start := time.Now()
	drip, dripped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(dripped)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.Write([]byte("X"))
			case <-drip:
				return
			}
		}
	}()
	answer, err := io.ReadAll(c)
	close(drip)
	<-dripped
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	contains(t, string(answer), "HTTP/1.1 408 ", "took too long")
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("a slow request lived for %v", took)
	}
	n.metric(`weir_http_refused_total{reason="header_timeout"} 1`)

	// A connection that never says anything, and one that says nothing any more.
	if got := n.exchange(""); got != "" {
		t.Errorf("a silent connection was answered with %q", got)
	}
	contains(t, n.exchange("GET /a HTTP/1.1\nHost: h\n\n"), "hello /a")
}

func TestSlowReaderIsCut(t *testing.T) {
	body := bytes.Repeat([]byte("x"), 16<<20)
	done := make(chan struct{})
	n := start(t, setup{
		cfg: func(c *Config) { c.WriteTimeout = 200 * time.Millisecond },
		handler: func(_ *Server, ctx *fasthttp.RequestCtx) {
			defer close(done)
			ctx.Response.SetBodyRaw(body)
		},
	})
	n.send("GET / HTTP/1.1\nHost: h\n\n") // and never reads
	<-done
	n.metric(`weir_http_connections 0`)
}

// The write timeout is for each piece: a slow but steady reader gets everything,
// however long it takes, and one that stops is cut.
func TestWriteTimeoutIsForEachPiece(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		s := New(cfg, nil, nil, slog.New(slog.DiscardHandler), metrics.NewSet())
		server, client := net.Pipe()
		r := &run{server: s}
		conn := r.join(server, func() {})
		const pieces = 20
		go func() {
			piece := make([]byte, writePiece)
			for range pieces {
				time.Sleep(cfg.WriteTimeout * 9 / 10) // of the bubble's clock
				io.ReadFull(client, piece)
			}
		}()
		start := time.Now()
		if n, err := conn.Write(make([]byte, pieces*writePiece)); n != pieces*writePiece || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		if took := time.Since(start); took < 10*cfg.WriteTimeout {
			t.Errorf("the steady reader took only %v", took)
		}
		start = time.Now()
		if _, err := conn.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a write that nobody reads: %v", err)
		}
		if took := time.Since(start); took != cfg.WriteTimeout {
			t.Errorf("cut after %v, want %v", took, cfg.WriteTimeout)
		}
		conn.Close()
		client.Close()
	})
}

func TestGateRefusesWithAnAnswer(t *testing.T) {
	n := start(t, setup{limits: limit.Config{MaxConnections: 1}})
	first := n.send("GET / HTTP/1.1\nHost: h\n\n")
	if _, err := http.ReadResponse(bufio.NewReader(first), nil); err != nil {
		t.Fatal(err)
	}
	got := n.exchange("GET / HTTP/1.1\nHost: h\n\n")
	contains(t, got, "HTTP/1.1 503 ", "Retry-After: ", "Connection: close\r\n", "too many connections\n")
	n.metric(`weir_http_refused_total{reason="too_many_connections"} 1`)
	first.Close()
	n.metric(`weir_connections{listener="http"} 0`)
	contains(t, n.exchange("GET / HTTP/1.1\nHost: h\nConnection: close\n\n"), "200 OK")

	n = start(t, setup{limits: limit.Config{MaxConnectionsPerAddress: 1}})
	n.dial()
	n.metric(`weir_connections{listener="http"} 1`)
	contains(t, n.exchange("GET / HTTP/1.1\nHost: h\n\n"), "HTTP/1.1 429 ", "from this address")
}

func TestShutdownLetsRequestsFinish(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	n := start(t, setup{handler: func(_ *Server, ctx *fasthttp.RequestCtx) {
		if string(ctx.Path()) == "/slow" {
			close(entered)
			<-leave
		}
		ctx.SetBodyString("done")
	}})
	idle := n.send("GET / HTTP/1.1\nHost: h\n\n")
	idleReader := bufio.NewReader(idle)
	resp, err := http.ReadResponse(idleReader, nil)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	fresh := n.dial()
	n.metric(`weir_http_connections 2`)
	slow := n.send("GET /slow HTTP/1.1\nHost: h\n\n")
	<-entered

	var stopped sync.WaitGroup
	stopped.Go(n.stop)
	if _, err := idleReader.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the idle connection was not closed: %v", err)
	}
	if _, err := fresh.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the fresh connection was not closed: %v", err)
	}
	close(leave)
	answer, err := io.ReadAll(slow)
	if err != nil {
		t.Error(err)
	}
	contains(t, string(answer), "200 OK", "Connection: close\r\n", "done")
	stopped.Wait()
}

func TestShutdownGraceEnds(t *testing.T) {
	entered := make(chan struct{})
	n := start(t, setup{
		cfg: func(c *Config) { c.ShutdownGrace = 50 * time.Millisecond; c.WriteTimeout = time.Hour },
		handler: func(_ *Server, ctx *fasthttp.RequestCtx) {
			ctx.Response.SetBodyRaw(bytes.Repeat([]byte("x"), 16<<20))
			close(entered)
		},
	})
	n.send("GET / HTTP/1.1\nHost: h\n\n") // and never reads
	<-entered
	n.stop()
}

func TestConfigValidate(t *testing.T) {
	f := func(change func(*Config), want string) {
		t.Helper()
		cfg := DefaultConfig()
		change(&cfg)
		err := cfg.Validate()
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	f(func(*Config) {}, "")
	f(func(c *Config) { c.CORSOrigins = []string{"http://a.example:8080"} }, "")
	f(func(c *Config) { c.CORSOrigins = nil }, "")
	f(func(c *Config) { c.CORSOrigins = []string{"*", "a.example"} }, "cors_origins[1]: ")
	f(func(c *Config) { c.CORSOrigins = []string{"https://a.example/"} }, "cors_origins[0]: ")
	f(func(c *Config) { c.HeaderTimeout = 0 }, "header_timeout: ")
	f(func(c *Config) { c.IdleTimeout = 2 * time.Hour }, "idle_timeout: ")
	f(func(c *Config) { c.WriteTimeout = 200 * time.Millisecond }, "write_timeout: ")
	f(func(c *Config) { c.ShutdownGrace = -1 }, "shutdown_grace: ")
	f(func(c *Config) { c.MaxHeaderBytes = 1 << 20 }, "max_header_bytes: ")
	f(func(c *Config) { c.MaxBodyBytes = 0 }, "max_body_bytes: ")
}

func TestBrokenListenerEndsServe(t *testing.T) {
	set := metrics.NewSet()
	s := New(DefaultConfig(), limit.NewGate(limit.Config{}, "http", set), func(*fasthttp.RequestCtx) {}, slog.New(slog.DiscardHandler), set)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- s.Serve(t.Context(), l) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l.Close()
	select {
	case err := <-served:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Serve did not return")
	}
}

func TestTLS(t *testing.T) {
	files := securetest.New(t)
	n := start(t, setup{
		tls: underTLS(t, files),
		handler: func(s *Server, ctx *fasthttp.RequestCtx) {
			if !ctx.IsTLS() {
				t.Error("the request does not know that it came over TLS")
			}
			s.Takeover(ctx, func(conn net.Conn) {
				defer conn.Close()
				if _, raw := conn.(syscall.Conn); raw {
					t.Error("a TLS connection offers raw access")
				}
				io.WriteString(conn, "stream")
			})
		},
	})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: files.Client(), DisableKeepAlives: true}}
	resp, err := client.Get("https://" + n.addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "stream" {
		t.Errorf("%q, %v", body, err)
	}
}

// underTLS returns what makes connections into those under TLS.
func underTLS(t *testing.T, files *securetest.Files) *secure.Server {
	t.Helper()
	cfg := secure.DefaultConfig()
	cfg.CertFile, cfg.KeyFile = files.Cert, files.Key
	s, err := secure.New(cfg, "http", slog.New(slog.DiscardHandler), metrics.NewSet())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPlainRequestAtTLS(t *testing.T) {
	n := start(t, setup{tls: underTLS(t, securetest.New(t))})
	contains(t, curl(t, "-i", "http://"+n.addr+"/live/a.flv"), "HTTP/1.1 400", "this port speaks TLS: use https://")
}

// The limit on connections comes before the handshake, which is what costs.
func TestLimitBeforeHandshake(t *testing.T) {
	files := securetest.New(t)
	n := start(t, setup{tls: underTLS(t, files), limits: limit.Config{MaxConnections: 1}})
	first, err := tls.Dial("tcp", n.addr, files.Client())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second := n.dial()
	b := make([]byte, 16)
	if got, err := second.Read(b); err != nil || string(b[:got]) != "\x15\x03\x01\x00\x02\x02\x50" {
		t.Errorf("refused with %x, %v; want the alert internal_error, unasked", b[:got], err)
	}
}

// A request that is refused is answered over TLS as well.
func TestRefusalOverTLS(t *testing.T) {
	files := securetest.New(t)
	n := start(t, setup{tls: underTLS(t, files)})
	got := curl(t, "-i", "--cacert", files.CA, "-H", "X: "+strings.Repeat("x", 20<<10), "https://localhost:"+port(n.addr)+"/live.flv")
	contains(t, got, "HTTP/1.1 431")
}

// Shutdown does not wait for a handshake that stalls.
func TestShutdownDuringHandshake(t *testing.T) {
	n := start(t, setup{tls: underTLS(t, securetest.New(t))})
	c := n.dial()
	n.eventually("the connection is there", func() bool { return n.srv.open.Load() == 1 })
	n.stop()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is open")
	}
}

func port(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

func curl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("curl", append([]string{"-sS", "--max-time", "10"}, args...)...).CombinedOutput()
	if err != nil {
		t.Errorf("curl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestCurl(t *testing.T) {
	n := start(t, setup{handler: func(s *Server, ctx *fasthttp.RequestCtx) {
		if string(ctx.Path()) != "/live.flv" {
			Error(ctx, 404, "no such stream")
			return
		}
		ctx.SetContentType("video/x-flv")
		s.Takeover(ctx, func(conn net.Conn) {
			defer conn.Close()
			io.WriteString(conn, "FLV...")
		})
	}})
	url := "http://" + n.addr
	contains(t, curl(t, "-i", url+"/live.flv"), "HTTP/1.1 200 OK", "video/x-flv", "FLV...")
	contains(t, curl(t, "-i", "--http1.0", url+"/live.flv"), "200 OK", "FLV...")
	got := curl(t, "-I", url+"/live.flv")
	contains(t, got, "HTTP/1.1 200 OK", "video/x-flv")
	lacks(t, got, "Content-Length:", "FLV...")
	contains(t, curl(t, url+"/x", url+"/live.flv", url+"/y"), "no such stream\nFLV...no such stream\n")
	contains(t, curl(t, "-i", "-H", "X: "+strings.Repeat("x", 20<<10), url+"/live.flv"), "HTTP/1.1 431")
	contains(t, curl(t, "-w", "%{http_code} %{num_connects}", "-o", "/dev/null", url+"/x"), "404 1")
}
