package discovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// startServer serves a memory engine on a free port until the test ends.
func startServer(t *testing.T, m *Memory, change ...func(*ServerConfig)) (url string) {
	t.Helper()
	cfg := DefaultServerConfig()
	cfg.Listen = "127.0.0.1:0"
	for _, c := range change {
		c(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	s := NewServer(cfg, m, nil)
	l, err := s.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return "http://" + l.Addr().String()
}

func newTestClient(t *testing.T, timeout time.Duration, urls ...string) *Client {
	t.Helper()
	cfg := DefaultConfig()
	cfg.URLs, cfg.Timeout, cfg.Token = urls, timeout, "secret"
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	c := NewClient(cfg, nil)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestClientAndServer(t *testing.T) {
	m := newMemory()
	url := startServer(t, m, func(c *ServerConfig) { c.Token = "secret" })
	var d Directory = newTestClient(t, 5*time.Second, url+"/")
	c := d.(*Client)
	ctx := t.Context()

	wantOwner(t, d, demo, "")
	a := mustClaim(t, d, claimBy(selfA, demo))
	if left := time.Until(a.Expires); left < ttl-time.Second || left > ttl+time.Second {
		t.Errorf("lease for %v", left)
	}
	if l := wantOwner(t, d, demo, "a"); l.Epoch != a.Epoch || l.Addr != addrA || l.Instance != "a1" || l.Idle {
		t.Errorf("owner %+v", l)
	}
	_, err := d.Claim(ctx, claimBy(selfB, demo))
	if l := mustConflict(t, err, "a"); l.Epoch != a.Epoch || l.Addr != addrA {
		t.Errorf("conflict %+v", l)
	}
	// A key that needs escaping in JSON and in a URL.
	odd := `v/a&b/n"=+%ä<>?#`
	l := mustClaim(t, d, claimBy(selfA, odd))
	wantOwner(t, d, odd, "a")
	l.Idle = true
	if lost := mustRenew(t, d, renewalBy(selfA, l)); len(lost) != 0 {
		t.Errorf("lost %+v", lost)
	}
	replace := claimBy(selfB, demo)
	replace.Replace = true
	b := mustClaim(t, d, replace)
	long := func(r Renewal) Renewal { r.TTL = time.Minute; return r } // however slow this machine is
	lost := mustRenew(t, d, long(renewalBy(selfA, a, l, Lease{Stream: "v/live/never", Epoch: 1})))
	if len(lost) != 1 || lost[0].Now == nil || lost[0].Now.Epoch != b.Epoch || lost[0].Epoch != a.Epoch {
		t.Errorf("lost %+v", lost)
	}
	mustConflict(t, d.Release(ctx, a), "b")
	if err := d.Release(ctx, b); err != nil {
		t.Error(err)
	}
	if lost := mustRenew(t, d, renewalBy(selfB, b)); len(lost) != 1 || lost[0].Now != nil {
		t.Errorf("lost %+v", lost)
	}

	// A renewal of more leases than go into one body.
	var many []Lease
	for i := range 2*renewBatch + 1 {
		stream := fmt.Sprintf("v/live/%04d-", i)
		stream += strings.Repeat(`"`, MaxStreamLen-len(stream)) // each escaped
		c := claimBy(selfA, stream)
		c.TTL = time.Minute
		many = append(many, mustClaim(t, m, c))
	}
	many[3].Epoch--
	if lost := mustRenew(t, d, long(renewalBy(selfA, many...))); len(lost) != 1 || lost[0].Stream != many[3].Stream {
		t.Errorf("lost %d", len(lost))
	}
	listed := 0
	for q := (StreamQuery{Prefix: "v/live/", Node: "a", Limit: 600}); ; {
		page, next, err := c.Streams(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		listed += len(page)
		if q.After = next; next == "" {
			break
		}
	}
	if listed != len(many)+1 {
		t.Errorf("%d streams are listed, want %d", listed, len(many)+1)
	}

	n := Node{
		ID: "e", Instance: "e1", Role: RoleEdge, Addr: addrA, State: StateDraining, Version: "1.2",
		Load: map[string]float64{"cpu": 0.25}, Labels: map[string]string{"region": "eu"}, TTL: 7 * time.Second,
	}
	if err := d.Heartbeat(ctx, n); err != nil {
		t.Fatal(err)
	}
	nodes, next, err := c.Nodes(ctx, NodeQuery{Role: RoleEdge, Limit: 5})
	if err != nil || next != "" || len(nodes) != 1 {
		t.Fatalf("nodes %+v, %q, %v", nodes, next, err)
	}
	if age := time.Since(nodes[0].Seen); age < 0 || age > time.Minute {
		t.Errorf("seen %v ago", age)
	}
	nodes[0].Seen = time.Time{}
	if fmt.Sprintf("%+v", nodes[0]) != fmt.Sprintf("%+v", n) {
		t.Errorf("node\n%+v, want\n%+v", nodes[0], n)
	}
	if err := d.Goodbye(ctx, "e", "e1"); err != nil {
		t.Error(err)
	}

	// Refusals are told apart.
	if _, err := d.Claim(ctx, claimBy(selfA, "nokey")); !errors.Is(err, ErrInvalid) {
		t.Errorf("bad key: %v", err)
	}
	c.token = "wrong"
	_, err = d.Claim(ctx, claimBy(selfA, demo))
	if err == nil || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "token") {
		t.Errorf("wrong token: %v", err)
	}
}

func TestClientTriesTheNextServer(t *testing.T) {
	t.Parallel() // it waits for silent servers most of its time
	m := newMemory()
	up := startServer(t, m)
	broken := "http://" + peerServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "bad gateway", http.StatusBadGateway)
	}))
	stranger := "http://" + peerServer(t, http.NotFoundHandler())
	liar := "http://" + peerServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, 200, []byte(`{"stream":"x/y/z","node":"","epoch":1}`))
	}))
	mover := "http://" + peerServer(t, http.RedirectHandler(up+"/api/v1/lookup?stream="+demo, http.StatusFound))
	flood := "http://" + peerServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		chunk := bytes.Repeat([]byte(" "), 1<<20)
		for range maxAnswer>>20 + 1 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}))
	gone, mute := "http://"+dead(t), "http://"+silent(t)

	claim := claimBy(selfA, demo)
	claim.TTL = time.Minute // the silent servers take seconds, and more on a busy machine
	mustClaim(t, m, claim)
	timeout := 4 * time.Second
	f := func(name string, urls ...string) {
		t.Helper()
		c := newTestClient(t, timeout, urls...)
		wantOwner(t, c, demo, "a")
		if int(c.preferred.Load()) != len(urls)-1 {
			t.Errorf("%s: the server that answered is not asked first", name)
		}
		wantOwner(t, c, "v/live/none", "")
	}
	f("dead", gone, up)
	f("silent", mute, up)
	f("broken", broken, up)
	f("not ours", stranger, up)
	f("nonsense", liar, up)
	f("redirect", mover, up)
	timeout = time.Minute // so much takes its time on a busy machine
	f("too much", flood, up)
	timeout = 4 * time.Second
	f("all", gone, mute, broken, stranger, liar, up)

	c := newTestClient(t, 100*time.Millisecond, gone, mute, broken)
	start := time.Now()
	if _, err := c.Lookup(t.Context(), demo); !errors.Is(err, ErrUnavailable) {
		t.Errorf("none answers: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v with a timeout of 100ms", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Lookup(ctx, demo); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		t.Errorf("caller gone: %v", err)
	}
}

func TestHolderOverHTTP(t *testing.T) {
	url := startServer(t, newMemory())
	var stop []func()
	holder := func(self Self, onLost func(string, Lease)) *Holder {
		cfg := DefaultConfig()
		cfg.LeaseTTL = minTTL
		h := NewHolder(newTestClient(t, 5*time.Second, url), HolderConfig{Config: cfg, Self: self, OnLost: onLost})
		ctx, cancel := context.WithCancel(context.Background())
		ran := make(chan error)
		go func() { ran <- h.Run(ctx) }()
		stop = append(stop, func() { cancel(); <-ran })
		return h
	}
	lost := make(chan Lease, 1)
	a := holder(selfA, func(_ string, now Lease) { lost <- now })
	b := holder(selfB, nil)
	defer func() {
		for _, s := range stop {
			s()
		}
	}()
	if _, err := a.Claim(t.Context(), demo, ClaimOptions{}); err != nil {
		t.Fatal(err)
	}
	won, err := b.Claim(t.Context(), demo, ClaimOptions{Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case now := <-lost:
		if now.Node != "b" || now.Epoch != won.Epoch || now.Addr != addrB {
			t.Errorf("lost to %+v, want %+v", now, won)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a never learns of its loss")
	}
}

// closing counts the connections of a listener that the server has closed.
type closing struct {
	net.Listener
	closed chan struct{}
}

type closingConn struct {
	*net.TCPConn
	once func()
}

func (l closing) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return closingConn{c.(*net.TCPConn), sync.OnceFunc(func() { l.closed <- struct{}{} })}, nil
}

func (c closingConn) Close() error {
	defer c.once()
	return c.TCPConn.Close()
}

// A frozen directory goes on and finds the claim and the release of a stream that
// has ended meanwhile, in any order: nobody owns it.
func TestClaimsOfThoseWhoHaveGoneAreDropped(t *testing.T) {
	cfg := DefaultServerConfig()
	cfg.Listen = "127.0.0.1:0"
	m := newMemory()
	s := NewServer(cfg, m, nil)
	l, err := s.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The kernel takes the calls; nobody reads them.
	h := NewHolder(newTestClient(t, 50*time.Millisecond, "http://"+l.Addr().String()), HolderConfig{Config: DefaultConfig(), Self: selfA})
	const streams = 10
	for i := range streams {
		stream := fmt.Sprint("v/live/", i)
		if _, err := h.Claim(t.Context(), stream, ClaimOptions{}); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			h.renew(t.Context(), false)
		}
		if err := h.Release(t.Context(), stream); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Release: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	closed := make(chan struct{}, 100)
	served := make(chan error)
	go func() { served <- s.Serve(ctx, closing{l, closed}) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}()
	for range 2*streams + streams/2 {
		select {
		case <-closed:
		case <-time.After(10 * time.Second):
			t.Fatal("the waiting calls are not answered")
		}
	}
	if page, _, _ := m.Streams(t.Context(), StreamQuery{}); len(page) != 0 {
		t.Errorf("%d streams are owned that have ended: %+v", len(page), page)
	}
	// Whoever waits for the answer gets the stream, also on a connection with
	// one call after the other.
	c := newTestClient(t, 5*time.Second, "http://"+l.Addr().String())
	for i := range streams {
		mustClaim(t, c, claimBy(selfA, fmt.Sprint("v/live/", i)))
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	url := startServer(t, newMemory(), func(c *ServerConfig) { c.MaxConnections = 2 })
	addr := strings.TrimPrefix(url, "http://")
	var conns []net.Conn
	answered := func(c net.Conn) bool {
		fmt.Fprintf(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, _ := c.Read(make([]byte, 1))
		return n == 1
	}
	for i := range 3 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := answered(c); got != (i < 2) {
			t.Errorf("connection %d answered: %v", i, got)
		}
		conns = append(conns, c)
	}
	// A place that becomes free is given again.
	conns[0].Close()
	deadline := time.Now().Add(10 * time.Second)
	for {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		ok := answered(c)
		c.Close()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of a closed connection is never given again")
		}
	}
}

func TestServerStopsCleanly(t *testing.T) {
	cfg := DefaultServerConfig()
	cfg.Listen = "127.0.0.1:0"
	// Also when it is told to stop before it began.
	s := NewServer(cfg, newMemory(), nil)
	l, err := s.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Serve(ctx, l); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("the listener is still open")
	}
	// A listener that fails ends it with an error.
	s = NewServer(cfg, newMemory(), nil)
	if l, err = s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := s.Serve(t.Context(), l); err == nil {
		t.Error("Serve on a closed listener returned nil")
	}
	// A port in use names the key.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg.Listen = taken.Addr().String()
	if _, err := NewServer(cfg, newMemory(), nil).Listen(t.Context()); err == nil || !strings.Contains(err.Error(), "key listen") {
		t.Errorf("Listen on a port in use: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	set := metrics.NewSet()
	m := NewMemory(DefaultServerConfig().Memory(), nil, set)
	mustClaim(t, m, claimBy(selfA, demo))
	_, _ = m.Claim(t.Context(), claimBy(selfB, demo))
	_, _ = m.Lookup(t.Context(), demo)
	_, _ = m.Lookup(t.Context(), "v/live/none")
	node := metrics.NewSet()
	cfg := DefaultConfig()
	cfg.URLs = []string{startServer(t, newMemory())}
	c := NewClient(cfg, node)
	defer c.Close()
	NewHolder(c, HolderConfig{Config: cfg, Self: selfA, Metrics: node})
	_, _ = c.Lookup(t.Context(), demo)
	var b bytes.Buffer
	set.WritePrometheus(&b)
	node.WritePrometheus(&b)
	for _, want := range []string{
		`weir_discovery_claims_total{result="granted"} 1`, `weir_discovery_claims_total{result="conflict"} 1`,
		`weir_discovery_lookups_total{result="found"} 1`, `weir_discovery_lookups_total{result="not_found"} 1`,
		`weir_discovery_leases 1`, `weir_discovery_nodes 0`, `weir_discovery_leases_held 0`, `weir_discovery_connected 1`,
		`weir_discovery_calls_total{call="lookup",result="not_found"} 1`,
	} {
		if !strings.Contains(b.String(), want+"\n") {
			t.Errorf("no %s in\n%s", want, &b)
		}
	}
}

func TestTwoNodesRaceOverHTTP(t *testing.T) {
	url := startServer(t, newMemory())
	a, b := newTestClient(t, 10*time.Second, url), newTestClient(t, 10*time.Second, url)
	for i := range 100 {
		stream := fmt.Sprintf("v/live/%d", i)
		var errA, errB error
		var wg sync.WaitGroup
		wg.Go(func() { _, errA = a.Claim(t.Context(), claimBy(selfA, stream)) })
		wg.Go(func() { _, errB = b.Claim(t.Context(), claimBy(selfB, stream)) })
		wg.Wait()
		if (errA == nil) == (errB == nil) {
			t.Fatalf("race %d: %v, %v", i, errA, errB)
		}
	}
}

func BenchmarkClientLookup(b *testing.B) {
	m := newMemory()
	if _, err := m.Claim(b.Context(), claimBy(selfA, demo)); err != nil {
		b.Fatal(err)
	}
	m.cfg.LeaseTTL = time.Hour
	cfg := DefaultServerConfig()
	cfg.Listen = "127.0.0.1:0"
	s := NewServer(cfg, m, nil)
	l, err := s.Listen(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	served := make(chan error)
	go func() { served <- s.Serve(ctx, l) }()
	node := DefaultConfig()
	node.URLs = []string{"http://" + l.Addr().String()}
	c := NewClient(node, nil)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = c.Lookup(b.Context(), demo)
	}
	c.Close()
	cancel()
	<-served
}
