package limit

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newGate(cfg Config) (*Gate, *metrics.Set) {
	set := metrics.NewSet()
	return NewGate(cfg, "test", set), set
}

func metricsText(set *metrics.Set) string {
	var b strings.Builder
	set.WritePrometheus(&b)
	return b.String()
}

func TestGate(t *testing.T) {
	// Each step takes a place ("+addr", with the expected error) or gives the
	// oldest place of an address back ("-addr").
	type step struct {
		do   string
		want error
	}
	f := func(name string, cfg Config, open int, steps ...step) {
		t.Helper()
		g, _ := newGate(cfg)
		held := map[string][]func(){}
		for i, s := range steps {
			addr := s.do[1:]
			if s.do[0] == '-' {
				held[addr][0]()
				held[addr][0]() // a second release must not free a second place
				held[addr] = held[addr][1:]
				continue
			}
			var remote netip.Addr
			if addr != "unix" {
				remote = netip.MustParseAddr(addr)
			}
			release, err := g.Acquire(remote)
			if !errors.Is(err, s.want) || (err == nil) != (release != nil) {
				t.Errorf("%s, step %d (%s): %v, want %v", name, i, s.do, err, s.want)
			}
			if err == nil {
				held[addr] = append(held[addr], release)
			}
		}
		if g.Open() != open {
			t.Errorf("%s: %d open at the end, want %d", name, g.Open(), open)
		}
		for _, releases := range held {
			for _, release := range releases {
				release()
			}
		}
		if g.Open() != 0 {
			t.Errorf("%s: %d open after all were released", name, g.Open())
		}
		for i := range g.addresses {
			if n := len(g.addresses[i].open); n != 0 {
				t.Errorf("%s: %d addresses still remembered", name, n)
			}
		}
	}

	f("no limits", Config{}, 3, step{"+10.0.0.1", nil}, step{"+10.0.0.1", nil}, step{"+unix", nil})
	f("total", Config{MaxConnections: 2}, 2,
		step{"+10.0.0.1", nil}, step{"+10.0.0.2", nil}, step{"+10.0.0.3", ErrTooManyConnections},
		step{"-10.0.0.1", nil}, step{"+10.0.0.3", nil}, step{"+unix", ErrTooManyConnections})
	f("per address", Config{MaxConnectionsPerAddress: 1}, 2,
		step{"+10.0.0.1", nil}, step{"+10.0.0.1", ErrTooManyPerAddress}, step{"+10.0.0.2", nil},
		step{"-10.0.0.1", nil}, step{"+10.0.0.1", nil})
	f("an IPv6 network is one client", Config{MaxConnectionsPerAddress: 1}, 2,
		step{"+2001:db8::1", nil}, step{"+2001:db8::2", ErrTooManyPerAddress}, step{"+2001:db8:0:1::1", nil})
	f("mapped IPv4 is IPv4", Config{MaxConnectionsPerAddress: 1}, 1,
		step{"+10.0.0.1", nil}, step{"+::ffff:10.0.0.1", ErrTooManyPerAddress})
	f("a refusal per address does not use up the total", Config{MaxConnections: 2, MaxConnectionsPerAddress: 1}, 2,
		step{"+10.0.0.1", nil}, step{"+10.0.0.1", ErrTooManyPerAddress}, step{"+10.0.0.1", ErrTooManyPerAddress},
		step{"+10.0.0.2", nil}, step{"+10.0.0.3", ErrTooManyConnections})
	f("exempt", Config{MaxConnections: 2, MaxConnectionsPerAddress: 1, Exempt: []Prefix{prefix(t, "10.0.0.0/8")}}, 3,
		step{"+10.0.0.1", nil}, step{"+10.0.0.1", nil}, step{"+192.0.2.1", ErrTooManyConnections},
		step{"+::ffff:10.0.0.1", nil})
}

func TestGateUnderContention(t *testing.T) {
	g, set := newGate(Config{MaxConnections: 50, MaxConnectionsPerAddress: 5})
	var wg sync.WaitGroup
	for i := range 40 {
		addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(i % 20)})
		wg.Go(func() {
			for range 500 {
				if release, err := g.Acquire(addr); err == nil {
					if n := g.Open(); n > 50+40 { // refused ones are counted for a moment
						t.Errorf("%d open", n)
					}
					release()
				}
			}
		})
	}
	wg.Wait()
	if g.Open() != 0 {
		t.Errorf("%d open at the end", g.Open())
	}
	if text := metricsText(set); !strings.Contains(text, `weir_connections{listener="test"} 0`) {
		t.Errorf("metrics:\n%s", text)
	}
}

func TestDefaultsLetOneHostBringManyPlayers(t *testing.T) {
	g, _ := newGate(DefaultConfig())
	for i := range 10_000 {
		if _, err := g.Acquire(netip.MustParseAddr("127.0.0.1")); err != nil {
			t.Fatalf("player %d: %v", i, err)
		}
	}
}

func TestValidate(t *testing.T) {
	cfg := DefaultConfig()
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	cfg = Config{MaxConnections: -1, MaxConnectionsPerAddress: -1, Exempt: []Prefix{{}}}
	want := "max_connections: must not be negative\nmax_connections_per_address: must not be negative\nexempt[0]: is not a network"
	if err := cfg.Validate(); err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
}

func prefix(t *testing.T, text string) Prefix {
	t.Helper()
	var p Prefix
	if err := p.UnmarshalText([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPrefix(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.0/8": "10.0.0.0/8", "10.0.0.1": "10.0.0.1/32", "10.0.0.1/32": "10.0.0.1/32",
		"2001:db8::1": "2001:db8::1/128", "2001:db8::/32": "2001:db8::/32",
		"::ffff:10.0.0.1": "10.0.0.1/32", "::ffff:10.0.0.0/104": "10.0.0.0/8", "::/0": "::/0",
	} {
		p := prefix(t, text)
		if got, err := p.MarshalText(); err != nil || string(got) != want || !p.IsValid() {
			t.Errorf("%s is %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "10.0.0", "10.0.0.1/33", "host", "fe80::1%eth0", "10.0.0.1:80", "10.0.0.1 "} {
		var p Prefix
		if err := p.UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), "10.0.0.0/8") || strings.Contains(err.Error(), "netip") {
			t.Errorf("%q: %v, %v", text, p, err)
		}
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// await receives from c, or ends the test after a while.
func await[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(5 * time.Second):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g, set := newGate(Config{MaxConnections: 1})
	ctx, cancel := context.WithCancel(t.Context())
	entered, leave := make(chan struct{}), make(chan struct{})
	served := make(chan error)
	go func() {
		served <- Serve(ctx, l, g, quiet(), func(conn net.Conn) {
			entered <- struct{}{}
			<-leave
		})
	}()
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		return c
	}

	alice := dial()
	defer alice.Close()
	await(t, entered)
	bob := dial() // one too many
	defer bob.Close()
	if _, err := bob.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("bob was not refused: %v", err)
	}
	leave <- struct{}{}
	if _, err := alice.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("alice was not closed after her handler returned: %v", err)
	}
	// The place is given back after the connection was closed, not before.
	for deadline := time.Now().Add(5 * time.Second); g.Open() > 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("alice's place was not given back")
		}
	}
	cathy := dial()
	defer cathy.Close()
	await(t, entered)

	// The end of the context stops accepting, but waits for cathy's handler.
	cancel()
	select {
	case err := <-served:
		t.Fatalf("Serve returned before its handler: %v", err)
	default:
	}
	leave <- struct{}{}
	if err := await(t, served); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if g.Open() != 0 {
		t.Errorf("%d open at the end", g.Open())
	}
	if text := metricsText(set); !strings.Contains(text, `weir_connections_refused_total{listener="test",reason="too_many_connections"} 1`) {
		t.Errorf("metrics:\n%s", text)
	}
}

// scriptedListener fails as the script says, then blocks until it is closed.
type scriptedListener struct {
	script []error
	calls  []time.Time
	closed chan struct{}
	once   sync.Once
}

func (l *scriptedListener) Accept() (net.Conn, error) {
	l.calls = append(l.calls, time.Now())
	if len(l.script) > 0 {
		err := l.script[0]
		l.script = l.script[1:]
		if err != nil {
			return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", err)}
		}
		server, client := net.Pipe()
		client.Close()
		return server, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}
func (l *scriptedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}
func (l *scriptedListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestServeSurvivesRunningOutOfDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines strings.Builder
		log := slog.New(slog.NewTextHandler(&lines, nil))
		l := &scriptedListener{closed: make(chan struct{})}
		for range 12 {
			l.script = append(l.script, syscall.EMFILE)
		}
		l.script = append(l.script, nil, syscall.ENFILE)
		g, set := newGate(Config{})
		ctx, cancel := context.WithCancel(t.Context())
		handled := 0
		served := make(chan error)
		start := time.Now()
		go func() { served <- Serve(ctx, l, g, log, func(net.Conn) { handled++ }) }()
		time.Sleep(time.Minute) // of the bubble's clock
		synctest.Wait()
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}

		var pauses []time.Duration
		for i, at := range l.calls[1:] {
			pauses = append(pauses, at.Sub(l.calls[i]))
		}
		want := []time.Duration{5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000, 1000, 0, 5}
		for i := range want {
			if i >= len(pauses) || pauses[i] != want[i]*time.Millisecond {
				t.Fatalf("pauses %v, want %v ms", pauses, want)
			}
		}
		if handled != 1 {
			t.Errorf("%d connections handled, want 1", handled)
		}
		if n, s := strings.Count(lines.String(), "\n"), l.calls[13].Sub(start).Seconds(); float64(n) > s+1 || n < 3 {
			t.Errorf("%d log lines in %.1f s:\n%s", n, s, lines.String())
		}
		if text := metricsText(set); !strings.Contains(text, `weir_accept_errors_total{listener="test"} 13`) {
			t.Errorf("metrics:\n%s", text)
		}
	})
}

func TestServeEndsWithABrokenListener(t *testing.T) {
	f := func(cause error) {
		t.Helper()
		l := &scriptedListener{script: []error{cause}, closed: make(chan struct{})}
		g, _ := newGate(Config{})
		if err := Serve(t.Context(), l, g, quiet(), func(net.Conn) {}); !errors.Is(err, cause) {
			t.Errorf("Serve: %v, want %v", err, cause)
		}
	}
	f(syscall.EBADF)
	f(syscall.EINVAL)
}

func TestServeStopsDuringAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &scriptedListener{closed: make(chan struct{})}
		for range 1000 {
			l.script = append(l.script, syscall.EMFILE)
		}
		g, _ := newGate(Config{})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		if err := Serve(ctx, l, g, quiet(), func(net.Conn) {}); err != nil {
			t.Errorf("Serve: %v", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("stopped after %v, want 10s", took)
		}
	})
}

func BenchmarkAcquire(b *testing.B) {
	for name, cfg := range map[string]Config{"total": {MaxConnections: 1 << 30}, "per address": {MaxConnectionsPerAddress: 1 << 30}} {
		b.Run(name, func(b *testing.B) {
			g, _ := newGate(cfg)
			addr := netip.MustParseAddr("192.0.2.1")
			b.ReportAllocs()
			for b.Loop() {
				release, err := g.Acquire(addr)
				if err != nil {
					b.Fatal(err)
				}
				release()
			}
		})
	}
}
