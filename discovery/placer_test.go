package discovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/discovery/schedule"
)

// loaded returns an edge with an effective load.
func loaded(id string, load float64) Node {
	return Node{
		ID: id, Instance: "i", Role: RoleEdge, State: StateUp, Addr: Addr{RTMP: id + ":1935", HTTP: id + ":8080"},
		Load: map[string]float64{LoadEffective: load},
	}
}

func mustHeartbeat(t *testing.T, m Members, nodes ...Node) {
	t.Helper()
	for _, n := range nodes {
		if err := m.Heartbeat(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
}

func newPlacing(t *testing.T, change ...func(*schedule.Config)) (*Memory, *Placer) {
	t.Helper()
	cfg := schedule.DefaultConfig()
	for _, c := range change {
		c(&cfg)
	}
	m := newMemory()
	return m, NewPlacer(m, cfg, nil, nil, nil)
}

// What a node reports is what the scheduler sees of it.
func TestSchedulable(t *testing.T) {
	n := Node{
		ID: "a", Instance: "i", Role: RoleEdge, State: StateDraining, Addr: Addr{"r:1", "h:1", "p:1"}, Seen: time.Unix(5, 0),
		Load:   map[string]float64{"cpu": 0.9, "effective": 0.7, "players": 5, "publishers": 2, "egress_bps": 3e6, "egress_capacity_bps": 1e9, "odd": 7},
		Labels: map[string]string{"region": "eu", "group": "g", "tier": "t", "cost": "0.05", "weight": "3", "odd": "x"},
	}
	want := schedule.Node{
		ID: "a", Instance: "i", Role: "edge", State: "draining", RTMP: "r:1", HTTP: "h:1", API: "p:1", Region: "eu", Group: "g", Tier: "t",
		Cost: 0.05, Weight: 3, Load: 0.7, Reported: true, Capacity: 1e9, Egress: 3e6, Sessions: 7, Seen: time.Unix(5, 0),
	}
	if got := schedulable(&n); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	f := func(load map[string]float64, want float64, reported bool) {
		t.Helper()
		if got := schedulable(&Node{Load: load}); got.Load != want || got.Reported != reported {
			t.Errorf("%v: load %v, reported %v", load, got.Load, got.Reported)
		}
	}
	f(nil, 0, false)
	f(map[string]float64{"players": 7}, 0, false)
	f(map[string]float64{"cpu": 0.2, "network": 0.4, "players": 7}, 0, false)
	f(map[string]float64{"effective": -1}, 0, true)
	for _, cost := range []string{"", "x", "-1", "NaN", "Inf", "1e300"} {
		if got := schedulable(&Node{Labels: map[string]string{"cost": cost}}); got.Cost != 0 {
			t.Errorf("cost %q is %v", cost, got.Cost)
		}
	}
}

func TestScheduleCalls(t *testing.T) {
	m, placer := newPlacing(t)
	mustHeartbeat(t, m, loaded("a", 0.1), loaded("b", 0.95))
	mustClaim(t, m, claimBy(selfA, "v/live/x"))
	if err := placer.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	h := newTestHandler(m, func(c *HandlerConfig) { c.Placer = placer })
	guarded := newTestHandler(m, func(c *HandlerConfig) { c.Placer, c.Token = placer, "secret" })
	f := func(h http.Handler, method, target string, status int, code string) *httptest.ResponseRecorder {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, "/api/v1/"+target, nil))
		var e errorJSON
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != status || e.Code != code {
			t.Errorf("%s %s: %d %s; want %d %q", method, target, w.Code, w.Body, status, code)
		}
		return w
	}
	const get = http.MethodGet
	last := func() uint64 { _, n := placer.Decisions(0, 1, 1); return n }

	f(h, get, "schedule?role=play&stream=v/live/x&ip=10.0.0.1&exclude=b,c&protocol=http&limit=16&bit_rate=1e6&why=0", 200, "")
	f(h, get, "schedule?role=play&vhost=v&ip=2001:db8::1&region=eu&node_role=edge", 200, "")
	if last() != 2 {
		t.Errorf("%d decisions are kept", last())
	}
	f(h, http.MethodHead, "schedule?role=play", 200, "")
	f(h, get, "schedule?role=play&peek=1", 200, "")
	if last() != 2 {
		t.Errorf("looking is recorded: %d decisions", last())
	}
	if w := f(h, get, "schedule?role=publish", 503, "no_node"); w.Header().Get("Retry-After") == "" || strings.Contains(w.Body.String(), "why") {
		t.Errorf("%v %s", w.Header(), w.Body)
	}
	w := f(h, get, "schedule?role=play&exclude=a&why=1", 503, "no_node")
	var e errorJSON
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Why == nil || e.Why.Filtered[schedule.OverHard] != 1 || e.Why.Filtered[schedule.Excluded] != 1 {
		t.Errorf("reasons: %v, %s", err, w.Body)
	}
	f(h, http.MethodPost, "schedule", 405, "method_not_allowed")
	f(guarded, get, "schedule?role=play", 401, "unauthorized")
	f(guarded, get, "decisions", 401, "unauthorized")
	f(newTestHandler(m), get, "schedule?role=play", 404, "not_found")

	for _, bad := range []string{
		"", "role=watch", "role=play&stream=x", "role=play&ip=x", "role=play&ip=fe80::1%25eth0", "role=play&exclude=,", "role=play&exclude=a%20b",
		"role=play&exclude=" + strings.Repeat("a,", maxExclude) + "a", "role=play&node_role=discovery", "role=play&protocol=hls",
		"role=play&bit_rate=-1", "role=play&bit_rate=NaN", "role=play&bit_rate=x", "role=play&limit=0", "role=play&limit=17", "role=play&peek=yes",
		"role=play&why=2", "role=play&what=1", "role=play&role=play", "role=play&vhost=" + strings.Repeat("v", 300), "role=play&region=%00",
	} {
		f(h, get, "schedule?"+bad, 400, "invalid")
	}

	for _, bad := range []string{"limit=0", "limit=1001", "after=x", "after=-1", "what=1"} {
		f(h, get, "decisions?"+bad, 400, "invalid")
	}
	var numbers []uint64
	for after := uint64(0); ; {
		var page decisionsJSON
		w := f(h, get, fmt.Sprintf("decisions?limit=3&after=%d", after), 200, "")
		if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil {
			t.Fatal(err)
		}
		for _, d := range page.Decisions {
			numbers = append(numbers, d.Number)
		}
		if after = page.Next; after == 0 {
			break
		}
	}
	if fmt.Sprint(numbers) != "[1 2 3 4]" {
		t.Errorf("decisions %v", numbers)
	}
}

// The last 1000 decisions are kept, and pages are bounded by their nodes.
func TestDecisionsAreBounded(t *testing.T) {
	m, placer := newPlacing(t)
	for i := range 30 {
		mustHeartbeat(t, m, loaded(fmt.Sprint("n", i), 0.1))
	}
	if err := placer.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2345 {
		if _, err := placer.Place(t.Context(), schedule.Request{Action: schedule.Play}, false); err != nil {
			t.Fatal(err)
		}
	}
	page, last := placer.Decisions(0, 5000, 1e9)
	if last != 2345 || len(page) != 1000 || page[0].Number != 1346 || page[999].Number != 2345 {
		t.Errorf("%d decisions from %d, last %d", len(page), page[0].Number, last)
	}
	if page, _ := placer.Decisions(1999, 5000, 100); len(page) != 3 || page[0].Number != 2000 {
		t.Errorf("%d decisions, want 3 of 30 nodes", len(page))
	}
	if page, _ := placer.Decisions(1999, 5000, 1); len(page) != 1 {
		t.Errorf("%d decisions, want one even if it is too large", len(page))
	}
	if page, _ := placer.Decisions(2345, 5000, 100); len(page) != 0 {
		t.Errorf("%d decisions after the last", len(page))
	}
}

// A client places over the network, with the token, and tells the errors apart.
func TestClientPlaces(t *testing.T) {
	m, placer := newPlacing(t)
	free := loaded("a", 0.25)
	free.Labels = map[string]string{"region": "eu"}
	mustHeartbeat(t, m, free, loaded("b", 0.5), loaded("full", 1))
	if err := placer.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(newTestHandler(m, func(c *HandlerConfig) { c.Placer, c.Token = placer, "secret" }))
	defer s.Close()
	client := func(url, token string) *Client {
		cfg := DefaultConfig()
		cfg.URLs, cfg.Token = []string{url}, ""
		cfg.Timeout = 10 * time.Second
		if token != "" {
			cfg.Token = "secret"
		}
		c := NewClient(cfg, nil)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	c := client(s.URL, "secret")
	p, err := c.Place(t.Context(), PlaceQuery{
		Role: "play", Stream: "v/live/ü &x", Vhost: "v", NodeRole: RoleEdge, IP: netip.MustParseAddr("10.0.0.1"), Region: "eu",
		Exclude: []string{"b", "c"}, Protocol: "http", BitRate: 1.5e6, Limit: 5,
	})
	if err != nil || p.Decision != 1 || len(p.Nodes) != 1 || p.Nodes[0] != (Placed{"a", RoleEdge, free.Addr, "eu", 0.25}) {
		t.Errorf("placed %+v, %v", p, err)
	}
	page, next, err := c.Decisions(t.Context(), 0, 0)
	if err != nil || next != 0 || len(page) != 1 {
		t.Fatalf("decisions %+v, %d, %v", page, next, err)
	}
	d := page[0]
	if d.Stream != "v/live/ü &x" || d.Client.String() != "10.0.0.1" || d.Region != "eu" || d.BitRate != 1.5e6 || d.Protocol != "http" ||
		fmt.Sprint(d.Exclude, d.Chosen, d.Filtered) != "[b c] [a] map[excluded:1 over_hard_limit:1]" || len(d.Candidates) != 3 {
		t.Errorf("decision %+v", d)
	}
	if _, err := c.Place(t.Context(), PlaceQuery{Role: "publish"}); !errors.Is(err, ErrNoNode) || errors.Is(err, ErrUnavailable) {
		t.Errorf("no origin: %v", err)
	} else if n := strings.Count(err.Error(), ErrNoNode.Error()); n != 1 {
		t.Errorf("the error repeats itself: %v", err)
	}
	if _, err := c.Place(t.Context(), PlaceQuery{Role: "sing"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("bad role: %v", err)
	}
	if _, err := client(s.URL, "").Place(t.Context(), PlaceQuery{Role: "play"}); !errors.Is(err, ErrRefused) {
		t.Errorf("no token: %v", err)
	}
	old := httptest.NewServer(newTestHandler(m))
	defer old.Close()
	if _, err := client(old.URL, "").Place(t.Context(), PlaceQuery{Role: "play"}); !errors.Is(err, ErrRefused) {
		t.Errorf("server that does not schedule: %v", err)
	}
	for _, answer := range []string{`{}`, `{"nodes":[{"id":"","rtmp":"h:1"}]}`, `{"nodes":[{"id":"a"}]}`, `{"nodes":[{"id":"a","rtmp":"nohost"}]}`} {
		odd := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(answer)) }))
		if p, err := client(odd.URL, "").Place(t.Context(), PlaceQuery{Role: "play"}); !errors.Is(err, ErrUnavailable) {
			t.Errorf("answer %s: %+v, %v", answer, p, err)
		}
		odd.Close()
	}
}

// A publisher whose stream has an owner is sent to it, although others are idle.
func TestPublishersGoToTheOwner(t *testing.T) {
	m, placer := newPlacing(t)
	for _, id := range []string{"a", "b", "c"} {
		n := loaded(id, 0.1)
		if n.Role = RoleOrigin; id == "b" {
			n.Load[LoadEffective] = 0.5
		}
		mustHeartbeat(t, m, n)
	}
	mustClaim(t, m, claimBy(Self{"b", "i", addrB}, "v/live/x"))
	if err := placer.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		c, err := placer.Place(t.Context(), schedule.Request{Action: schedule.Publish, Stream: "v/live/x"}, false)
		if err != nil || c.Nodes[0].ID != "b" {
			t.Fatalf("placed at %+v, %v", c.Nodes, err)
		}
	}
}

// sickEngine cannot list its nodes while it is sick.
type sickEngine struct {
	*Memory
	sick atomic.Bool
}

func (e *sickEngine) Nodes(ctx context.Context, q NodeQuery) ([]Node, string, error) {
	if e.sick.Load() {
		return nil, "", errCut
	}
	return e.Memory.Nodes(ctx, q)
}

// A placer that runs follows the nodes: they are placed at from their first report
// on, and not after 3 s without one. A sick engine is told once; a crowd that is
// refused is logged once in 10 s.
func TestPlacerRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		set := metrics.NewSet()
		e := &sickEngine{Memory: newMemory()}
		p := NewPlacer(e, schedule.DefaultConfig(), nil, slog.New(slog.NewTextHandler(&log, nil)), set)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		place := func(want bool) {
			t.Helper()
			synctest.Wait()
			if _, err := p.Place(ctx, schedule.Request{Action: schedule.Play}, false); (err == nil) != want {
				t.Errorf("placed: %v, want %v", err, want)
			}
		}
		place(false)
		n := loaded("a", 0)
		n.Load = nil
		mustHeartbeat(t, e, n)
		time.Sleep(placerRefresh)
		place(false)
		mustHeartbeat(t, e, loaded("a", 0))
		time.Sleep(placerRefresh)
		place(true)
		e.sick.Store(true)
		time.Sleep(2500 * time.Millisecond)
		place(true)
		time.Sleep(time.Second)
		place(false)
		e.sick.Store(false)
		time.Sleep(8 * time.Second)
		place(false)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for line, n := range map[string]int{"cannot be listed": 1, "listed again": 1, "no node for a session": 2, "sessions=3": 1} {
			if got := strings.Count(log.String(), line); got != n {
				t.Errorf("%q is logged %d times, want %d:\n%s", line, got, n, &log)
			}
		}
		var b strings.Builder
		set.WritePrometheus(&b)
		if !strings.Contains(b.String(), `weir_schedule_decisions_total{role="play",result="no_node"} 4`+"\n") ||
			!strings.Contains(b.String(), `weir_schedule_decisions_total{role="play",result="placed"} 2`+"\n") {
			t.Errorf("counted:\n%s", &b)
		}
	})
}

// Nothing that is asked may panic or end in an internal error.
func FuzzScheduleQuery(f *testing.F) {
	f.Add("role=play&stream=v/live/x&ip=10.0.0.1&exclude=a,b&protocol=http&limit=3&bit_rate=1e6&why=1&region=eu&vhost=v&node_role=edge&peek=1")
	f.Add("role=publish&stream=v/live/x")
	m := newMemory()
	if err := m.Heartbeat(context.Background(), loaded("a", 0.5)); err != nil {
		f.Fatal(err)
	}
	placer := NewPlacer(m, schedule.DefaultConfig(), nil, nil, nil)
	if err := placer.Refresh(context.Background()); err != nil {
		f.Fatal(err)
	}
	h := newTestHandler(m, func(c *HandlerConfig) { c.Placer = placer })
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest(http.MethodGet, "/api/v1/schedule", nil)
		r.URL.RawQuery = query
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError || !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%d %q", w.Code, w.Body)
		}
	})
}
