package secure

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/internal/secure/securetest"
)

const patience = 20 * time.Second

// door is a server that says "hello" behind each handshake that succeeds and tells
// the test of the others.
type door struct {
	*Server
	t      *testing.T
	addr   string
	set    *metrics.Set
	logs   *lockedBuffer
	failed chan error
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

func open(t *testing.T, files *securetest.Files, change func(*Config)) *door {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Listen, cfg.CertFile, cfg.KeyFile = "127.0.0.1:0", files.Cert, files.Key
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	d := &door{t: t, set: metrics.NewSet(), logs: &lockedBuffer{}, failed: make(chan error, 100)}
	var err error
	if d.Server, err = New(cfg, "http", slog.New(slog.NewTextHandler(d.logs, nil)), d.set); err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	d.addr = tcp.Addr().String()
	l := d.Listener(tcp)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				if err := c.(*Conn).Handshake(); err != nil {
					d.failed <- err
					return
				}
				io.WriteString(c, "hello")
				io.Copy(io.Discard, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); running.Wait() })
	return d
}

func (d *door) metrics() string {
	var b bytes.Buffer
	d.set.WritePrometheus(&b)
	return b.String()
}

// dial does a handshake and returns the serial number of the server's certificate.
func (d *door) dial(cfg *tls.Config) (*big.Int, error) {
	d.t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", d.addr, cfg)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		d.t.Errorf("read %q, %v", b, err)
	}
	return c.ConnectionState().PeerCertificates[0].SerialNumber, nil
}

func (d *door) raw() net.Conn {
	d.t.Helper()
	c, err := net.Dial("tcp", d.addr)
	if err != nil {
		d.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	d.t.Cleanup(func() { c.Close() })
	return c
}

// failure returns the error of the next handshake that fails.
func (d *door) failure() error {
	d.t.Helper()
	select {
	case err := <-d.failed:
		return err
	case <-time.After(patience):
		d.t.Fatal("no handshake has failed")
		return nil
	}
}

func TestHandshakeFailuresByReason(t *testing.T) {
	files := securetest.New(t)
	d := open(t, files, func(c *Config) { c.HandshakeTimeout = time.Second })
	if _, err := d.dial(files.Client()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		reason string
		do     func()
	}{
		{failedPlain, func() { io.WriteString(d.raw(), "GET / HTTP/1.1\r\n\r\n") }},
		{failedTimeout, func() { d.raw() }},
		// Half a handshake, byte by byte or not at all, ends at the same time.
		{failedTimeout, func() { d.raw().Write([]byte{22, 3, 1, 2, 0, 1}) }},
		{failedClosed, func() { d.raw().Close() }},
		{failedVersion, func() {
			old := files.Client()
			old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
			if _, err := d.dial(old); err == nil {
				t.Error("TLS 1.1 is spoken")
			}
		}},
		{failedRefused, func() {
			if _, err := d.dial(securetest.New(t).Client()); err == nil {
				t.Error("a client that trusts another CA goes on")
			}
		}},
		{failedOther, func() { d.raw().Write([]byte{22, 9, 9, 0, 4, 1, 0, 0, 0}) }},
	} {
		before := d.failedBy[c.reason].Get()
		c.do()
		err := d.failure()
		if after := d.failedBy[c.reason].Get(); after != before+1 {
			t.Errorf("%s: %v; the counter went from %d to %d", c.reason, err, before, after)
		}
	}
	if !strings.Contains(d.metrics(), `weir_tls_handshakes_total{door="http"} 1`) {
		t.Error(d.metrics())
	}
}

func TestTLS12IsSpoken(t *testing.T) {
	files := securetest.New(t)
	d := open(t, files, nil)
	old := files.Client()
	old.MaxVersion = tls.VersionTLS12
	if _, err := d.dial(old); err != nil {
		t.Fatal(err)
	}
}

func TestFailuresAreLoggedOnceASecond(t *testing.T) {
	files := securetest.New(t)
	d := open(t, files, nil)
	now := time.Now()
	d.now = func() time.Time { return now }
	remote := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4}
	for range 3 {
		d.Server.failed(remote, ErrPlain)
	}
	now = now.Add(time.Second)
	d.Server.failed(remote, io.EOF)
	logs := d.logs.String()
	if strings.Count(logs, "TLS handshake failed") != 2 || !strings.Contains(logs, "reason=closed err=EOF skipped_lines=2") {
		t.Errorf("logs:\n%s", logs)
	}
}

// listen returns a listener under TLS that nothing serves, for a test that takes the
// connections itself.
func listen(t *testing.T) (net.Listener, *securetest.Files) {
	t.Helper()
	files := securetest.New(t)
	cfg := DefaultConfig()
	cfg.Listen, cfg.CertFile, cfg.KeyFile = "127.0.0.1:0", files.Cert, files.Key
	s, err := New(cfg, "http", slog.New(slog.DiscardHandler), metrics.NewSet())
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := s.Listener(tcp)
	t.Cleanup(func() { l.Close() })
	return l, files
}

// A client that does not speak TLS can be answered, and nothing of what it sent is
// lost.
func TestPlainClient(t *testing.T) {
	l, _ := listen(t)
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(client, "plain bytes"); err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := accepted.(*Conn)
	defer c.Close()
	if err := c.Handshake(); !errors.Is(err, ErrPlain) {
		t.Fatalf("Handshake: %v", err)
	}
	b := make([]byte, 11)
	if _, err := io.ReadFull(c.Plain(), b); err != nil || string(b) != "plain bytes" {
		t.Errorf("read %q, %v", b, err)
	}
	if _, err := io.WriteString(c.Plain(), "answer"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, b[:6]); err != nil || string(b[:6]) != "answer" {
		t.Errorf("client reads %q, %v", b[:6], err)
	}
}

func TestReload(t *testing.T) {
	files := securetest.New(t)
	d := open(t, files, nil)
	first, err := d.dial(files.Client())
	if err != nil {
		t.Fatal(err)
	}
	reload := func(what string, ok, failed uint64) {
		t.Helper()
		d.reload()
		if a, b := d.reloads[reloadOK].Get(), d.reloads[reloadFailed].Get(); a != ok || b != failed {
			t.Errorf("%s: %d reloads succeeded and %d failed, want %d and %d; logs:\n%s", what, a, b, ok, failed, d.logs)
		}
	}
	serves := func(what string, want *big.Int) {
		t.Helper()
		if got, err := d.dial(files.Client()); err != nil || got.Cmp(want) != 0 {
			t.Errorf("%s: serial %v, %v; want %v", what, got, err, want)
		}
	}
	reload("nothing has changed", 0, 0)

	second := files.Renew(time.Now().Add(time.Hour))
	reload("renewed", 1, 0)
	serves("renewed", second)
	if first.Cmp(second) == 0 {
		t.Error("the test's certificates are the same")
	}

	// The key is still that of the old certificate, for a moment.
	key, err := os.ReadFile(files.Key)
	if err != nil {
		t.Fatal(err)
	}
	third := files.Renew(time.Now().Add(time.Hour))
	next, err := os.ReadFile(files.Key)
	if err != nil {
		t.Fatal(err)
	}
	put(t, files.Key, key)
	reload("half replaced", 1, 1)
	reload("still half replaced", 1, 1) // told once
	serves("half replaced", second)
	put(t, files.Key, next)
	reload("replaced", 2, 1)
	serves("replaced", third)

	for _, c := range []struct{ name, content, want string }{
		{"no PEM", "certificate", "cert_file: tls: failed to find any PEM data"},
		{"empty", "", "cert_file: tls: failed to find any PEM data"},
		{"too large", strings.Repeat("x", maxFile+1), "larger than"},
	} {
		failed := d.reloads[reloadFailed].Get()
		put(t, files.Cert, []byte(c.content))
		reload(c.name, 2, failed+1)
		if !strings.Contains(d.logs.String(), c.want) {
			t.Errorf("%s: %q is not in the logs:\n%s", c.name, c.want, d.logs)
		}
		serves(c.name, third)
	}
	if err := os.Remove(files.Cert); err != nil {
		t.Fatal(err)
	}
	reload("removed", 2, 5)
	reload("still removed", 2, 5)
	serves("removed", third)

	files.Renew(time.Now().Add(-time.Hour))
	reload("expired", 2, 6)
	serves("expired", third)
	if text := d.logs.String(); strings.Contains(text, "PRIVATE") {
		t.Errorf("a key is in the logs:\n%s", text)
	}
}

func put(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRunLooksFromTimeToTime(t *testing.T) {
	files := securetest.New(t)
	first, err := readPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	files.Renew(time.Now().Add(time.Hour))
	second, err := readPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s := &Server{cfg: DefaultConfig(), log: slog.New(slog.DiscardHandler), now: time.Now, reloads: map[string]*metrics.Counter{
			reloadOK: {}, reloadFailed: {},
		}}
		s.read = func(string, string) (*pair, error) { return second, nil }
		s.pair.Store(first)
		ctx := t.Context()
		go s.Run(ctx)
		time.Sleep(s.cfg.CheckFiles - time.Second)
		synctest.Wait()
		if s.pair.Load() != first {
			t.Error("too early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s.pair.Load() != second {
			t.Error("the files were not looked at")
		}
	})
}

func TestConfig(t *testing.T) {
	files := securetest.New(t)
	other := securetest.New(t)
	good := func() Config {
		c := DefaultConfig()
		c.Listen, c.CertFile, c.KeyFile = "127.0.0.1:8443", files.Cert, files.Key
		return c
	}
	off := DefaultConfig()
	if err := off.Validate(); err != nil {
		t.Errorf("default: %v", err)
	}
	c := good()
	if err := c.Validate(); err != nil {
		t.Errorf("good: %v", err)
	}
	for _, tc := range []struct {
		want   string
		change func(*Config)
	}{
		{"listen: ", func(c *Config) { c.Listen = "8443" }},
		{"cert_file: is of no use without listen", func(c *Config) { c.Listen = "" }},
		{"key_file: is of no use without listen", func(c *Config) { c.Listen, c.CertFile = "", "" }},
		{`cert_file: cannot read "": no file is named`, func(c *Config) { c.CertFile = "" }},
		{`key_file: cannot read "": no file is named`, func(c *Config) { c.KeyFile = "" }},
		{`cert_file: cannot read "cert.pem": the path must be absolute`, func(c *Config) { c.CertFile = "cert.pem" }},
		{`no such file or directory`, func(c *Config) { c.KeyFile = "/nowhere/key.pem" }},
		{`not a regular file`, func(c *Config) { c.KeyFile = "/dev/null" }},
		{`key_file: tls: private key does not match public key`, func(c *Config) { c.KeyFile = other.Key }},
		{`cert_file: tls: failed to find certificate PEM data`, func(c *Config) { c.CertFile, c.KeyFile = files.Key, files.Cert }},
		{"handshake_timeout: ", func(c *Config) { c.HandshakeTimeout = time.Hour }},
		{"check_files: ", func(c *Config) { c.CheckFiles = 0 }},
	} {
		c := good()
		tc.change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want %q", err, tc.want)
		}
	}
}

// Whoever closes the connection of a client that does not read waits for nothing.
func TestCloseOfAStuckConnection(t *testing.T) {
	l, files := listen(t)
	shaken := make(chan *tls.Conn, 1)
	go func() {
		c, _ := tls.Dial("tcp", l.Addr().String(), files.Client())
		shaken <- c
	}()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := accepted.(*Conn)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	client := <-shaken
	defer client.Close()
	// Fill the socket below TLS until it takes nothing more, at once.
	junk := make([]byte, 1<<20)
	for err = error(nil); err == nil; {
		c.raw.TCPConn.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		_, err = c.raw.TCPConn.Write(junk)
	}
	begun := time.Now()
	if err := c.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	c.Close()
	// crypto/tls alone gives its farewell five seconds.
	if d := time.Since(begun); d > 4*time.Second {
		t.Errorf("Close took %v", d)
	}
}
