package httpdns

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/valyala/fasthttp"
	"go.uber.org/goleak"

	"weir/discovery/schedule"
	"weir/internal/limit"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		// It sleeps for up to 10 s after its server has ended.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

// nodes is a placer that remembers what it was asked.
type nodes struct {
	mu    sync.Mutex
	asked []schedule.Request
	none  bool
}

func (n *nodes) Place(_ context.Context, r schedule.Request, _ bool) (schedule.Choice, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, r)
	if n.none {
		return schedule.Choice{}, fmt.Errorf("%w: secret reasons", schedule.ErrNoNode)
	}
	return schedule.Choice{Nodes: []schedule.Chosen{
		{Facts: &schedule.Facts{ID: "edge-1", RTMP: "10.0.1.1:1935", HTTP: "10.0.1.1:8080", Region: "eu"}},
		{Facts: &schedule.Facts{ID: "edge-2", RTMP: "[2001:db8::2]:1935", HTTP: "[2001:db8::2]:8080"}},
	}}, nil
}

func (n *nodes) last(t *testing.T) schedule.Request {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.asked) == 0 {
		t.Fatal("nothing was asked")
	}
	return n.asked[len(n.asked)-1]
}

// start serves until the test ends and returns the base URL.
func start(t testing.TB, p Placer, set *metrics.Set, change ...func(*Config)) string {
	t.Helper()
	cfg := DefaultConfig()
	for _, c := range change {
		c(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- NewServer(cfg, p, set).Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "http://" + l.Addr().String()
}

func get(t *testing.T, url string) (status int, header http.Header, body string) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(text)
}

func TestResolve(t *testing.T) {
	p, set := &nodes{}, metrics.NewSet()
	url := start(t, p, set, func(c *Config) {
		c.Domains = map[string]string{"play.example.com": "live.example.com"}
		c.Burst = 1000
	})
	f := func(query string, status int, body string) http.Header {
		t.Helper()
		got, header, text := get(t, url+query)
		if got != status || text != body {
			t.Errorf("%s: %d %s; want %d %s", query, got, text, status, body)
		}
		return header
	}
	const answer = `"ttl":10,"nodes":[{"id":"edge-1","rtmp":"10.0.1.1:1935","http":"10.0.1.1:8080","region":"eu"},` +
		`{"id":"edge-2","rtmp":"[2001:db8::2]:1935","http":"[2001:db8::2]:8080"}]}` + "\n"

	h := f("/resolve?domain=live.example.com&stream=live/x&ip=192.0.2.7&role=play", 200, `{"domain":"live.example.com",`+answer)
	if h.Get("Cache-Control") != "private, max-age=10" || h.Get("Content-Type") != "application/json" || h.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("headers %v", h)
	}
	if r := p.last(t); r.Action != schedule.Play || r.Stream != "live.example.com/live/x" || r.Vhost != "live.example.com" ||
		r.Client != netip.MustParseAddr("192.0.2.7") || r.Peek {
		t.Errorf("asked %+v", r)
	}
	f("/resolve?domain=Play.Example.COM.&role=publish", 200, `{"domain":"play.example.com",`+answer)
	if r := p.last(t); r.Action != schedule.Publish || r.Vhost != "live.example.com" || r.Stream != "" || r.Client != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("asked %+v", r)
	}
	f("/resolve?domain=a%22b%5c%c3%bc", 200, `{"domain":"a\"b\\ü",`+answer)
	f("/resolve?domain=v&format=text", 200, "10.0.1.1\n2001:db8::2\n")
	f("/resolve?domain=v&format=text&protocol=rtmp", 200, "10.0.1.1:1935\n[2001:db8::2]:1935\n")
	if h := f("/resolve?domain=v&format=text&protocol=http", 200, "10.0.1.1:8080\n[2001:db8::2]:8080\n"); !strings.HasPrefix(h.Get("Content-Type"), "text/plain") {
		t.Errorf("headers %v", h)
	}
	if r := p.last(t); r.Protocol != "http" {
		t.Errorf("asked %+v", r)
	}

	bad := func(query string) {
		t.Helper()
		status, _, text := get(t, url+"/resolve?"+query)
		var e struct{ Code, Error string }
		if err := json.Unmarshal([]byte(text), &e); err != nil || status != 400 || e.Code != "invalid" || e.Error == "" {
			t.Errorf("%s: %d %s", query, status, text)
		}
	}
	for _, query := range []string{
		"", "domain=", "domain=a/b", "domain=%00", "domain=%ff", "domain=" + strings.Repeat("d", 256), "domain=v&stream=x", "domain=v&stream=a//b",
		"domain=v&stream=a/%01", "domain=v&stream=" + strings.Repeat("s/", 300), "domain=v&role=watch", "domain=v&ip=x", "domain=v&ip=fe80::1%25e",
		"domain=v&protocol=hls", "domain=v&format=xml", "domain=v&domain=w", "domain=v&what=1",
	} {
		bad(query)
	}
	f("/other", 404, `{"code":"not_found","error":"there is /resolve only"}`+"\n")
	p.none = true
	if h := f("/resolve?domain=v", 503, `{"code":"no_node","error":"no node can take the session now"}`+"\n"); h.Get("Retry-After") != "1" || h.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", h)
	}
	var b strings.Builder
	set.WritePrometheus(&b)
	for _, want := range []string{`{result="answered"} 6`, `{result="invalid"} 17`, `{result="no_node"} 1`, `{result="limited"} 0`} {
		if !strings.Contains(b.String(), "weir_resolve_requests_total"+want+"\n") {
			t.Errorf("%s is not in\n%s", want, &b)
		}
	}
}

// One client gets its burst and no more; one that is trusted has no limit.
func TestRateOfQuestions(t *testing.T) {
	count := func(change func(*Config)) map[int]int {
		url := start(t, &nodes{}, nil, func(c *Config) { c.Rate, c.Burst = 1, 5; change(c) })
		seen := map[int]int{}
		for range 12 {
			status, _, _ := get(t, url+"/resolve?domain=v")
			seen[status]++
		}
		return seen
	}
	if seen := count(func(*Config) {}); seen[200] < 5 || seen[429] < 1 || seen[200]+seen[429] != 12 {
		t.Errorf("answers %v", seen)
	}
	if seen := count(func(c *Config) {
		var p limit.Prefix
		if err := p.UnmarshalText([]byte("127.0.0.0/8")); err != nil {
			t.Fatal(err)
		}
		c.Trusted = []limit.Prefix{p}
	}); seen[200] != 12 {
		t.Errorf("answers to a trusted client %v", seen)
	}
}

// Connections over the limit are refused, and those that say nothing are ended.
func TestConnectionsAreBounded(t *testing.T) {
	url := start(t, &nodes{}, nil, func(c *Config) { c.MaxConnections, c.Timeout = 1, time.Second })
	first, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	fmt.Fprint(first, "GET /resolve?domain=v HTTP/1.1\r\nHost: x\r\n\r\n")
	_ = first.SetDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(first)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	second, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	_ = second.SetDeadline(time.Now().Add(20 * time.Second))
	if text, err := io.ReadAll(second); err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 503 ") {
		t.Errorf("the second connection got %q, %v", text, err)
	}
	if _, err := r.ReadByte(); err == nil || os.IsTimeout(err) {
		t.Errorf("an idle connection is not ended: %v", err)
	}
}

func TestValidate(t *testing.T) {
	good := DefaultConfig()
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	f := func(want string, change func(*Config)) {
		t.Helper()
		c := DefaultConfig()
		change(&c)
		if err := c.Validate(); err == nil || !regexp.MustCompile("^"+want).MatchString(err.Error()) {
			t.Errorf("%v, want an error about %s", err, want)
		}
	}
	f("listen: ", func(c *Config) { c.Listen = "nohost" })
	f("listen: ", func(c *Config) { c.Listen = "h:x" })
	f("ttl: ", func(c *Config) { c.TTL = 0 })
	f("rate: ", func(c *Config) { c.Rate = 0 })
	f("burst: ", func(c *Config) { c.Burst = -1 })
	f("max_connections: ", func(c *Config) { c.MaxConnections = 0 })
	f("timeout: ", func(c *Config) { c.Timeout = time.Hour })
	f("domains.A.example: ", func(c *Config) { c.Domains = map[string]string{"A.example": "v"} })
	f("domains.a.example: ", func(c *Config) { c.Domains = map[string]string{"a.example": ""} })
}

// Whatever is asked, the answer is JSON or lines of text.
func FuzzQuestion(f *testing.F) {
	f.Add("domain=live.example.com&stream=live/x&ip=192.0.2.7&role=play&protocol=rtmp&format=json")
	f.Add("domain=%22%5c%ff&format=text")
	cfg := DefaultConfig()
	cfg.Rate, cfg.Burst = 1_000_000, 1_000_000
	s := NewServer(cfg, &nodes{}, nil)
	f.Fuzz(func(t *testing.T, query string) {
		var ctx fasthttp.RequestCtx
		ctx.Init(&fasthttp.Request{}, nil, nil)
		ctx.Request.SetRequestURI("/resolve")
		ctx.URI().SetQueryString(query)
		s.handle(&ctx)
		if strings.HasPrefix(string(ctx.Response.Header.ContentType()), "application/json") && !json.Valid(ctx.Response.Body()) {
			t.Fatalf("%d %q", ctx.Response.StatusCode(), ctx.Response.Body())
		}
	})
}
