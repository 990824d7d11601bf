package discovery

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// silent is a peer that takes connections and never answers.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var conns []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			conns = append(conns, c)
		}
		for _, c := range conns {
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// dead is a peer that refuses connections.
func dead(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func peerServer(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func newPeers(t *testing.T, self Self, timeout time.Duration, peers ...string) *Peers {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Peers, cfg.PeerTimeout = peers, timeout
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	p := NewPeers(cfg, self, nil, nil)
	t.Cleanup(func() { p.Close() })
	return p
}

func owns(l Lease) LookupFunc {
	return func(_ context.Context, stream string) (Lease, error) {
		if stream == l.Stream {
			return l, nil
		}
		return Lease{}, ErrNotFound
	}
}

func TestPeersAnswerWithinTheBound(t *testing.T) {
	has := Lease{Stream: demo, Node: "b", Instance: "b1", Epoch: 42, Addr: addrB, Idle: true}
	with := peerServer(t, ClustersHandler(owns(has)))
	without := peerServer(t, ClustersHandler(owns(Lease{})))
	mute, gone := silent(t), dead(t)

	f := func(name, want string, timeout, below time.Duration, peers ...string) {
		t.Helper()
		p := newPeers(t, selfA, timeout, peers...)
		start := time.Now()
		l, err := p.Lookup(t.Context(), demo)
		took := time.Since(start)
		got := l.Node
		switch {
		case errors.Is(err, ErrNotFound):
			got = "not found"
		case errors.Is(err, ErrUnavailable):
			got = "unavailable"
		}
		if got != want {
			t.Errorf("%s: got %s (%v), want %s", name, got, err, want)
		}
		if took > below {
			t.Errorf("%s: took %v, want less than %v", name, took, below)
		}
		if want == "b" && (l.Epoch != 42 || l.Addr != addrB || !l.Idle || l.Instance != "b1") {
			t.Errorf("%s: lost something on the way: %+v", name, l)
		}
	}
	// A bound that no test run reaches, where the answer must not wait for it.
	const never = 10 * time.Second
	f("the one who has it answers", "b", never, never/2, mute, without, gone, with, mute)
	f("nobody has it", "not found", never, never/2, without, gone)
	f("nobody has it, one is silent", "not found", 100*time.Millisecond, 5*time.Second, without, mute)
	f("nobody answers", "unavailable", 100*time.Millisecond, 5*time.Second, mute, gone)
	f("no peers", "not found", never, never/2)
}

func TestPeersMayBeSRS(t *testing.T) {
	var got string
	srs := peerServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Method + " " + r.URL.Path + "?" + r.URL.RawQuery
		if body, _ := io.ReadAll(r.Body); len(body) > 0 {
			t.Errorf("asked with body %q", body)
		}
		// SRS knows nothing of weir=1, and ends its answers with a newline or not.
		io.WriteString(w, `{"code":0,"data":{"query":{"ip":"","vhost":"__defaultVhost__","app":"live","stream":"demo"},"origin":{"ip":"10.0.0.9","port":19350,"vhost":"__defaultVhost__","api":"10.0.0.9:1985","routers":["10.0.0.9:1985"]}}}`)
	}))
	p := newPeers(t, selfA, 5*time.Second, srs)
	_, err := p.Claim(t.Context(), claimBy(selfA, demo))
	if l := mustConflict(t, err, "10.0.0.9:19350"); l.Addr != (Addr{RTMP: "10.0.0.9:19350", API: "10.0.0.9:1985"}) || l.Epoch != 0 {
		t.Errorf("SRS has %+v", l)
	}
	want := "POST /api/v1/clusters?vhost=__defaultVhost__&ip=&app=live&stream=demo&coworker=" + srs + "&weir=1"
	if got != want {
		t.Errorf("asked\n%s, want\n%s", got, want)
	}
}

func TestTwoOriginsAsPeers(t *testing.T) {
	var a, b *Holder // asked only once both are there
	atA := peerServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { ClustersHandler(a.Own).ServeHTTP(w, r) }))
	atB := peerServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { ClustersHandler(b.Own).ServeHTTP(w, r) }))
	holder := func(self Self) *Holder {
		cfg := DefaultConfig()
		cfg.CacheTTL = 0
		// Both nodes have the same list, which names each of them too.
		return NewHolder(newPeers(t, self, 5*time.Second, atA, atB), HolderConfig{Config: cfg, Self: self})
	}
	a, b = holder(selfA), holder(selfB)

	first, err := a.Claim(t.Context(), demo, ClaimOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := a.Claim(t.Context(), demo, ClaimOptions{}); err != nil || again.Epoch != first.Epoch {
		t.Errorf("a claims again: %+v, %v", again, err)
	}
	_, err = b.Claim(t.Context(), demo, ClaimOptions{})
	mustConflict(t, err, "a")
	if l := wantOwner(t, b, demo, "a"); l.Addr != addrA || l.Epoch != first.Epoch {
		t.Errorf("b finds %+v", l)
	}
	wantOwner(t, b, "v/live/other", "")

	a.SetIdle(demo, true)
	second, err := b.Claim(t.Context(), demo, ClaimOptions{})
	if err != nil || second.Epoch <= first.Epoch {
		t.Errorf("b takes the idle stream: %+v, %v", second, err)
	}
	// a's publisher comes back too late.
	_, err = a.Claim(t.Context(), demo, ClaimOptions{})
	mustConflict(t, err, "b")
	if err := b.Release(t.Context(), demo); err != nil {
		t.Fatal(err)
	}
	if l, err := a.Claim(t.Context(), demo, ClaimOptions{}); err != nil || l.Epoch <= second.Epoch {
		t.Errorf("a after the release: %+v, %v", l, err)
	}
}

func TestPeersEndWithTheirCaller(t *testing.T) {
	p := newPeers(t, selfA, 10*time.Second, silent(t))
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("player left")
	cancel(why)
	if _, err := p.Lookup(ctx, demo); !errors.Is(err, why) {
		t.Errorf("Lookup: %v", err)
	}
	if _, err := p.Claim(ctx, claimBy(selfA, demo)); !errors.Is(err, why) {
		t.Errorf("Claim: %v", err)
	}
}
