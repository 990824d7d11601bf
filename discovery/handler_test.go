package discovery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/discovery/schedule"
)

func newTestHandler(e Engine, change ...func(*HandlerConfig)) http.Handler {
	cfg := HandlerConfig{Engine: e, MaxBody: 1 << 20}
	for _, c := range change {
		c(&cfg)
	}
	return NewHandler(cfg)
}

const claimBody = `{"stream":"v/live/x","node":"a","rtmp":"10.0.0.1:1935"}`

func TestHandlerStatuses(t *testing.T) {
	m := newMemory()
	open := newTestHandler(m)
	guarded := newTestHandler(m, func(c *HandlerConfig) { c.Token = "secret" })
	f := func(h http.Handler, method, target, body string, status int, code string, header ...string) *httptest.ResponseRecorder {
		t.Helper()
		r := httptest.NewRequest(method, target, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		var e errorJSON
		if w.Code != http.StatusNoContent {
			if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
				t.Errorf("%s %s: body %q: %v", method, target, w.Body, err)
			}
		}
		if w.Code != status || e.Code != code || (code == "") != (e.Error == "") {
			t.Errorf("%s %s %.80s\n got %d %s; want %d %q", method, target, body, w.Code, w.Body, status, code)
		}
		return w
	}
	const claim, renew, release = "/api/v1/leases/claim", "/api/v1/leases/renew", "/api/v1/leases/release"
	const heartbeat, goodbye = "/api/v1/nodes/heartbeat", "/api/v1/nodes/goodbye"

	f(open, "POST", claim, claimBody, 200, "")
	f(open, "POST", claim, claimBody+" \n", 200, "")
	w := f(open, "POST", claim, strings.Replace(claimBody, `"a"`, `"b"`, 1), 409, "conflict")
	var e errorJSON
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Lease == nil || e.Lease.Node != "a" || e.Lease.Epoch == 0 {
		t.Errorf("conflict carries %s", w.Body)
	}
	f(open, "POST", release, `{"stream":"v/live/x","node":"b","epoch":1}`, 409, "conflict")
	f(open, "POST", renew, `{"node":"b","http":"h:1","leases":[]}`, 200, "")
	f(open, "POST", heartbeat, `{"id":"a","role":"edge","state":"up","load":{"cpu":1e-3},"labels":{"region":"eu"},"ttl_ms":1}`, 204, "")
	f(open, "POST", goodbye, `{"id":"nobody"}`, 204, "")
	f(open, "GET", "/api/v1/lookup?stream=v/live/x", "", 200, "")
	f(open, "HEAD", "/api/v1/lookup?stream=v%2Flive%2Fx", "", 200, "")
	f(open, "GET", "/api/v1/lookup?stream=v/live/y", "", 404, "not_found")
	f(open, "GET", "/api/v1/streams?vhost=v&node=a&after=v/live&limit=1", "", 200, "")
	f(open, "GET", "/api/v1/nodes?role=edge&after=0&limit=1000", "", 200, "")
	f(open, "GET", "/healthz", "", 200, "")
	f(open, "GET", "/readyz", "", 200, "")
	f(newTestHandler(m, func(c *HandlerConfig) {
		c.Ready = func(context.Context) error { return errors.New("no quorum") }
	}), "GET", "/readyz", "", 503, "unavailable")

	// Methods and paths.
	f(open, "GET", claim, "", 405, "method_not_allowed")
	if w := f(open, "DELETE", "/api/v1/lookup", "", 405, "method_not_allowed"); w.Header().Get("Allow") != "GET, HEAD" {
		t.Errorf("Allow: %q", w.Header().Get("Allow"))
	}
	f(open, "GET", "/api/v2/streams", "", 404, "not_found")

	// Bodies.
	bad := func(target, body string) { t.Helper(); f(open, "POST", target, body, 400, "invalid") }
	bad(claim, ``)
	bad(claim, `null`)
	bad(claim, `[]`)
	bad(claim, `{`)
	bad(claim, claimBody+`{}`)
	bad(claim, strings.Replace(claimBody, "{", `{"extra":1,`, 1))
	bad(claim, strings.Replace(claimBody, "{", `{"ttl_ms":-1,`, 1))
	bad(claim, strings.Replace(claimBody, "{", `{"ttl_ms":9223372036854775807,`, 1))
	bad(claim, strings.Replace(claimBody, "{", `{"held":-1,`, 1))
	bad(claim, strings.Replace(claimBody, "{", `{"instance":"a b",`, 1))
	bad(claim, strings.Replace(claimBody, "{", `{"http":"nohost",`, 1))
	bad(claim, strings.Replace(claimBody, "{", `{"api":"h:0",`, 1))
	bad(claim, strings.Replace(claimBody, `"a"`, `""`, 1))
	bad(claim, strings.Replace(claimBody, `,"rtmp":"10.0.0.1:1935"`, ``, 1))
	for _, key := range []string{"", "x", "v/x", "/live/x", "v//x", "v/live/", "v/live/\\u0000", strings.Repeat("k", 600)} {
		bad(claim, strings.Replace(claimBody, "v/live/x", key, 1))
	}
	bad(renew, `{"node":"b","http":"h:1","leases":[{"stream":"nokey","epoch":1}]}`)
	bad(renew, `{"node":"b","leases":[]}`)
	bad(release, `{"stream":"","node":"b","epoch":1}`)
	bad(goodbye, `{}`)
	bad(heartbeat, `{"id":"a","role":"king","state":"up"}`)
	bad(heartbeat, `{"id":"a","role":"edge","state":"asleep"}`)
	bad(heartbeat, `{"id":"a","role":"edge","state":"up","load":{"c p u":1}}`)
	bad(heartbeat, `{"id":"a","role":"edge","state":"up","age_ms":1}`)
	bad(heartbeat, `{"id":"a","role":"edge","state":"up","labels":{"x":"`+strings.Repeat("y", 300)+`"}}`)
	f(open, "POST", claim, `{"stream":"`+strings.Repeat("x", 1<<20)+`"}`, 413, "too_large")
	f(open, "POST", claim, claimBody, 415, "unsupported_media_type", "Content-Type", "text/plain")
	f(open, "POST", claim, claimBody, 200, "", "Content-Type", "application/json; charset=utf-8")

	// Queries.
	badQuery := func(target string) { t.Helper(); f(open, "GET", target, "", 400, "invalid") }
	badQuery("/api/v1/lookup")
	badQuery("/api/v1/lookup?stream=v/live/x&stream=v/live/y")
	badQuery("/api/v1/lookup?name=v/live/x&stream=v/live/x")
	badQuery("/api/v1/streams?limit=0")
	badQuery("/api/v1/streams?limit=1001")
	badQuery("/api/v1/streams?limit=x")
	badQuery("/api/v1/streams?vhost=v&prefix=v/live/")
	badQuery("/api/v1/nodes?limit=-1")

	// The token guards what changes the directory, before its body is looked at.
	f(guarded, "POST", claim, claimBody, 401, "unauthorized")
	f(guarded, "POST", claim, `{`, 401, "unauthorized", "Authorization", "Bearer wrong")
	f(guarded, "POST", claim, claimBody, 401, "unauthorized", "Authorization", "secret")
	f(guarded, "POST", claim, claimBody, 401, "unauthorized", "Authorization", "Basic secret")
	f(guarded, "POST", heartbeat, `{}`, 401, "unauthorized")
	f(guarded, "POST", claim, claimBody, 200, "", "Authorization", "Bearer secret")
	f(guarded, "POST", claim, claimBody, 200, "", "Authorization", "bearer secret")
	f(guarded, "GET", "/api/v1/lookup?stream=v/live/x", "", 200, "")

	full := newTestHandler(newMemory(func(c *MemoryConfig) { c.MaxStreams = 0 }))
	if w := f(full, "POST", claim, claimBody, 503, "full"); w.Header().Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

// The examples of docs/discovery-api.md are run in their order against a live
// handler at a fixed time, and their answers compared byte for byte.
func TestExamplesOfTheDocumentation(t *testing.T) {
	doc, err := os.ReadFile("../docs/discovery-api.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```http\n(.*?)\n```").FindAllSubmatch(doc, -1)
	if len(blocks) < 2*20 || len(blocks)%2 != 0 {
		t.Fatalf("%d examples of requests and answers", len(blocks))
	}
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)))
		m := newMemory()
		m.feed.id = "ku4wd"
		placer := NewPlacer(m, schedule.DefaultConfig(), nil, nil, nil)
		h := newTestHandler(m, func(c *HandlerConfig) { c.Token, c.Placer = "TOKEN", placer })
		for i := 0; i < len(blocks); i += 2 {
			time.Sleep(100 * time.Millisecond) // between two examples
			if err := placer.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			request, want := string(blocks[i][1]), string(blocks[i+1][1])
			head, body, _ := strings.Cut(request, "\n\n")
			lines := strings.Split(head, "\n")
			method, target, _ := strings.Cut(lines[0], " ")
			r := httptest.NewRequest(method, target, strings.NewReader(body))
			for _, l := range lines[1:] {
				name, value, _ := strings.Cut(l, ": ")
				r.Header.Set(name, value)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond) // a watch would not end
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r.WithContext(ctx))
			cancel()
			res := w.Result()
			var got bytes.Buffer
			got.WriteString(res.Status + "\n")
			for _, name := range []string{"Allow", "WWW-Authenticate", "Retry-After"} {
				if v := res.Header.Get(name); v != "" {
					got.WriteString(name + ": " + v + "\n")
				}
			}
			if w.Body.Len() > 0 {
				got.WriteByte('\n')
				got.Write(w.Body.Bytes())
			}
			if g := strings.TrimRight(got.String(), "\n"); g != want {
				t.Errorf("%s\n\ngot:\n%s\n\nthe page says:\n%s", request, g, want)
			}
		}
	})
}

// Nothing that is posted may panic or end in an internal error, and every answer
// is JSON.
func FuzzRequests(f *testing.F) {
	paths := []string{
		"/api/v1/leases/claim", "/api/v1/leases/renew", "/api/v1/leases/release",
		"/api/v1/nodes/heartbeat", "/api/v1/nodes/goodbye", "/api/v1/streams/kick",
	}
	f.Add(uint8(0), claimBody)
	f.Add(uint8(1), `{"node":"a","instance":"i","rtmp":"h:1","ttl_ms":1,"leases":[{"stream":"v/a/n","epoch":1,"idle":true}]}`)
	f.Add(uint8(2), `{"stream":"v/a/n","node":"a","epoch":1}`)
	f.Add(uint8(3), `{"id":"a","instance":"i","role":"edge","rtmp":"h:1","state":"up","load":{"cpu":0.5},"labels":{"r":"e"},"version":"1","ttl_ms":5}`)
	f.Add(uint8(4), `{"id":"a","instance":"i"}`)
	f.Add(uint8(5), `{"stream":"v/a/n","ban_ms":5,"reason":"x"}`)
	m := newMemory(func(c *MemoryConfig) { c.MaxStreams, c.MaxNodes = 100, 100 })
	h := newTestHandler(m, func(c *HandlerConfig) { c.MaxBody = 4096 })
	f.Fuzz(func(t *testing.T, path uint8, body string) {
		r := httptest.NewRequest(http.MethodPost, paths[int(path)%len(paths)], strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError || w.Code != http.StatusNoContent && !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%d %q", w.Code, w.Body)
		}
		page, _, err := m.Streams(t.Context(), StreamQuery{})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range page {
			if l.check() != nil {
				t.Fatalf("took %+v", l)
			}
		}
	})
}

func FuzzQueries(f *testing.F) {
	f.Add("/api/v1/lookup", "stream=v/live/x")
	f.Add("/api/v1/streams", "vhost=v&node=a&after=v/live&limit=1")
	f.Add("/api/v1/nodes", "role=edge&after=0&limit=1000")
	m := newMemory()
	if _, err := m.Claim(context.Background(), claimBy(selfA, "v/live/x")); err != nil {
		f.Fatal(err)
	}
	h := newTestHandler(m)
	f.Fuzz(func(t *testing.T, path, query string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL.Path, r.URL.RawQuery = path, query
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError {
			t.Fatalf("%d %q", w.Code, w.Body)
		}
		if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") {
			if body, _ := io.ReadAll(w.Body); !json.Valid(body) {
				t.Fatalf("%d %q", w.Code, body)
			}
		}
	})
}

// Calls without the token are counted, and logged once a minute for each host.
func TestRefusedCallsAreNoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		set := metrics.NewSet()
		h := newTestHandler(newMemory(), func(c *HandlerConfig) {
			c.Token, c.Logger, c.Metrics = "secret", slog.New(slog.NewTextHandler(&log, nil)), set
		})
		call := func(remote, token string) {
			r := httptest.NewRequest("POST", "/api/v1/nodes/heartbeat", strings.NewReader("{}"))
			r.Header.Set("Content-Type", "application/json")
			if token != "" {
				r.Header.Set("Authorization", "Bearer "+token)
			}
			r.RemoteAddr = remote
			h.ServeHTTP(httptest.NewRecorder(), r)
		}
		want := func(lines ...string) {
			t.Helper()
			got := strings.Split(strings.TrimSpace(log.String()), "\n")
			if log.Len() == 0 {
				got = nil
			}
			if len(got) != len(lines) {
				t.Fatalf("logged %q, want %q", got, lines)
			}
			for i, l := range lines {
				if !strings.Contains(got[i], l) || strings.Contains(got[i], "secre") {
					t.Errorf("logged %s, want %s", got[i], l)
				}
			}
			log.Reset()
		}
		call("10.0.0.1:1000", "secret")
		want()
		for port := range 60 {
			call(fmt.Sprint("10.0.0.1:", 1000+port), "")
			time.Sleep(time.Second)
		}
		call("10.0.0.2:1", "secret2")
		call("10.0.0.1:1", "")
		want(`cause="no token" remote=10.0.0.1:1000 path=/api/v1/nodes/heartbeat calls=1`,
			`cause="wrong token" remote=10.0.0.2:1 `, `remote=10.0.0.1:1 path=/api/v1/nodes/heartbeat calls=60`)
		var b bytes.Buffer
		set.WritePrometheus(&b)
		if !strings.Contains(b.String(), "weir_discovery_unauthorized_total 62\n") {
			t.Errorf("counted %s", &b)
		}
		// Many hosts take a bounded part of the memory and of the log.
		for i := range 3000 {
			call(fmt.Sprintf("[2001:db8::%x]:1", i), "")
		}
		if n := strings.Count(log.String(), "\n"); n > 1001 {
			t.Errorf("%d lines", n)
		}
		log.Reset()
		time.Sleep(time.Minute)
		call("10.0.0.3:1", "")
		want("remote=10.0.0.3:1")
	})
}
