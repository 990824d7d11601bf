package discovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// within fails the test if f does not become true.
func within(t *testing.T, d time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !f(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, d)
		}
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
		}
	}
}

func TestWatchOverHTTP(t *testing.T) {
	m := newMemory()
	one, two := startServer(t, m), startServer(t, m) // two servers of one engine
	for i := range 900 {
		mustClaim(t, m, claimBy(selfA, fmt.Sprintf("v/live/%d", i)))
	}
	if err := m.Heartbeat(t.Context(), Node{
		ID: "a", Instance: "a1", Role: RoleOrigin, State: StateUp, Addr: addrA,
		Load: map[string]float64{"cpu": 0.5}, Labels: map[string]string{"region": strings.Repeat("<é>", 60)},
	}); err != nil {
		t.Fatal(err)
	}
	if err := m.Heartbeat(t.Context(), Node{ID: "e", Role: RoleEdge, State: StateUp}); err != nil {
		t.Fatal(err)
	}
	c := newCopy()
	c.catchUp(t, newTestClient(t, time.Second, one), RoleOrigin)
	if _, ok := c.nodes["e"]; ok || len(c.nodes) != 1 {
		t.Errorf("an edge is told to who asks for origins: %v", c.nodes)
	}
	// The other server goes on where this one has left off.
	mustClaim(t, m, claimBy(selfB, demo))
	c.catchUp(t, newTestClient(t, time.Second, two), RoleOrigin)
	c.catchUp(t, newTestClient(t, time.Second, "http://"+dead(t), two), RoleOrigin)
	if len(c.streams) != 901 || c.resets != 1 || c.streams[demo].Node != "b" {
		t.Errorf("%d streams after %d snapshots", len(c.streams), c.resets)
	}
	if err := m.Goodbye(t.Context(), "e", ""); err != nil {
		t.Fatal(err)
	}
	c.mark = ""
	c.catchUp(t, newTestClient(t, time.Second, two), "")
	c.wantSame(t, m)
}

// A watch ends with its server, and with one that says nothing or nonsense.
func TestWatchBreaks(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := NewServer(DefaultServerConfig(), newMemory(), nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	begun := time.Now()
	err = newTestClient(t, time.Second, "http://"+l.Addr().String()).Watch(t.Context(), WatchQuery{}, func([]Event) error {
		cancel() // the server stops, and does not wait for who watches
		return nil
	})
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("Watch of a server that stops: %v", err)
	}
	if err := <-served; err != nil || time.Since(begun) > 4*time.Second {
		t.Errorf("the server stopped after %v: %v", time.Since(begun), err)
	}

	f := func(what string, want error, answer http.HandlerFunc) {
		t.Helper()
		ts := httptest.NewServer(answer)
		defer ts.Close()
		told := 0
		err := newTestClient(t, time.Second, ts.URL).Watch(t.Context(), WatchQuery{}, func(events []Event) error {
			told += len(events)
			return nil
		})
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", what, err)
		}
		if told > 1 {
			t.Errorf("%s: %d events", what, told)
		}
	}
	say := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, s) }
	}
	f("no JSON", ErrUnavailable, say("hello\n"))
	f("half a line", ErrUnavailable, say(`{"reset":true}`+"\n"+`{"syn`))
	f("an endless line", ErrUnavailable, say(strings.Repeat("x", 2*maxEventLen)))
	f("a lease of nobody", ErrUnavailable, say(`{"lease":{"stream":"v/a/n","epoch":1,"ttl_ms":1}}`+"\n"))
	f("what a later version says", ErrUnavailable, say(`{"later":1}`+"\n"+`{"synced":"x-1"}`+"\n"))
	f("no such call", ErrNotFound, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"code":"not_found","error":"no such call"}`)
	})
	f("somebody else's 404", ErrUnavailable, http.NotFound)
	begun = time.Now()
	f("silence", ErrUnavailable, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"reset":true}`+"\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	if took := time.Since(begun); took < watchSilence {
		t.Errorf("a silent watch was given up after %v", took)
	}
}

// Watchers are bounded in number, and one that does not take what it is told is
// cut.
func TestWatchersAreBounded(t *testing.T) {
	m := newMemory()
	set := metrics.NewSet()
	h := newTestHandler(m, func(c *HandlerConfig) {
		c.MaxWatches, c.WriteTimeout, c.Metrics = 1, 200*time.Millisecond, set
	})
	ts := httptest.NewServer(h)
	defer ts.Close()
	for i := range 50_000 { // more than sockets hold
		mustClaim(t, m, claimBy(selfA, fmt.Sprintf("v/live/%d", i)))
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(ts.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /api/v1/watch HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	value := func(name string) string {
		var b strings.Builder
		set.WritePrometheus(&b)
		for _, line := range strings.Split(b.String(), "\n") {
			if rest, ok := strings.CutPrefix(line, name+" "); ok {
				return rest
			}
		}
		return ""
	}
	within(t, 10*time.Second, "the watch begins", func() bool { return value("weir_discovery_watches") == "1" })
	var refused atomic.Bool
	err = newTestClient(t, time.Second, ts.URL).Watch(t.Context(), WatchQuery{}, func([]Event) error { refused.Store(true); return nil })
	if !errors.Is(err, ErrUnavailable) || refused.Load() {
		t.Errorf("a watcher too many: %v", err)
	}
	within(t, 10*time.Second, "the slow watcher is cut", func() bool { return value("weir_discovery_watches_slow_total") == "1" })
	within(t, 10*time.Second, "its place is free", func() bool { return value("weir_discovery_watches") == "0" })
	if got := value("weir_discovery_watches_refused_total"); got != "1" {
		t.Errorf("%s watches refused, want 1", got)
	}
}

func TestWatchCallMistakes(t *testing.T) {
	h := newTestHandler(newMemory())
	for _, c := range []struct {
		method, query string
		status        int
	}{{"POST", "", 405}, {"HEAD", "", 405}, {"GET", "?sinse=x", 400}, {"GET", "?role=king", 400}, {"GET", "?since=a&since=b", 400}} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, "/api/v1/watch"+c.query, http.NoBody))
		if w.Code != c.status {
			t.Errorf("%s %s: status %d, want %d", c.method, c.query, w.Code, c.status)
		}
	}
}
