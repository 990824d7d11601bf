package secure

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/internal/repeat"
)

// ErrPlain is the error of a handshake with a client that does not speak TLS.
var ErrPlain = errors.New("the client does not speak TLS")

// Why a handshake fails; labels of weir_tls_handshake_failures_total.
const (
	failedPlain   = "not_tls"
	failedTimeout = "timeout"
	failedClosed  = "closed"   // the client went away, or the node stopped
	failedVersion = "version"  // the client speaks older versions only
	failedRefused = "refused"  // the client does not accept what it was offered, above all the certificate
	failedOther   = "protocol" // all else that breaks TLS
	reloadOK      = "ok"       // the results of weir_tls_reloads_total
	reloadFailed  = "failed"   //
	minVersion    = tls.VersionTLS12
)

var failures = []string{failedPlain, failedTimeout, failedClosed, failedVersion, failedRefused, failedOther}

// Server makes connections of one door into connections under TLS. Its methods
// are safe for concurrent use.
type Server struct {
	// Static after New.
	cfg  Config
	tls  *tls.Config
	log  *slog.Logger
	now  func() time.Time
	read func(certFile, keyFile string) (*pair, error)

	handshakes *metrics.Counter
	failedBy   map[string]*metrics.Counter
	reloads    map[string]*metrics.Counter

	pair atomic.Pointer[pair]

	refused *pair // owned by Run: the last pair that was refused, not to be told of twice
	trouble string

	said repeat.Filter[struct{}] // failures, all of one kind
}

// New returns a server with the pair that the configuration names, which must be
// enabled and valid. door, a word, labels its metrics and log lines ("rtmp",
// "http").
func New(cfg Config, door string, log *slog.Logger, set *metrics.Set) (*Server, error) {
	s := &Server{
		cfg: cfg, log: log.With("door", door), now: time.Now, read: readPair, said: repeat.Filter[struct{}]{Every: time.Second},
		failedBy: map[string]*metrics.Counter{}, reloads: map[string]*metrics.Counter{},
	}
	p, err := s.read(cfg.CertFile, cfg.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("load certificate of %s.tls: %w", door, err)
	}
	s.pair.Store(p)
	if s.expired(p) {
		s.log.Warn("the TLS certificate has expired", "cert_file", cfg.CertFile, "not_after", p.notAfter())
	}
	s.tls = &tls.Config{
		MinVersion: minVersion,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &s.pair.Load().cert, nil
		},
		NextProtos: []string{"http/1.1"},
		// Small records first suit pages. Here they would cost more than they give.
		DynamicRecordSizingDisabled: true,
	}
	if door == "rtmp" {
		s.tls.NextProtos = nil // a client that offers protocols is refused if none fits
	}
	s.handshakes = set.GetOrCreateCounter(fmt.Sprintf(`weir_tls_handshakes_total{door=%q}`, door))
	for _, reason := range failures {
		s.failedBy[reason] = set.GetOrCreateCounter(fmt.Sprintf(`weir_tls_handshake_failures_total{door=%q,reason=%q}`, door, reason))
	}
	for _, result := range []string{reloadOK, reloadFailed} {
		s.reloads[result] = set.GetOrCreateCounter(fmt.Sprintf(`weir_tls_reloads_total{door=%q,result=%q}`, door, result))
	}
	set.GetOrCreateGauge(fmt.Sprintf(`weir_tls_certificate_not_after_timestamp_seconds{door=%q}`, door), func() float64 {
		return float64(s.pair.Load().notAfter().Unix())
	})
	return s, nil
}

// Run looks at the files of the pair from time to time and takes them over when
// they have changed, until ctx ends. Connections keep the certificate that they
// began with.
func (s *Server) Run(ctx context.Context) {
	ticker := time.NewTicker(s.cfg.CheckFiles)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.reload()
		case <-ctx.Done():
			return
		}
	}
}

// reload takes a changed pair over. Files that are being replaced one after the
// other do not fit together for a moment: they are looked at again the next time.
func (s *Server) reload() {
	p, err := s.read(s.cfg.CertFile, s.cfg.KeyFile)
	current := s.pair.Load()
	switch {
	case err == nil && p.same(current):
		s.refused, s.trouble = nil, ""
		return
	case err == nil && s.expired(p) && !s.expired(current):
		err = fmt.Errorf("cert_file: it has expired at %v", p.notAfter().UTC())
	}
	if err == nil {
		s.pair.Store(p)
		s.refused, s.trouble = nil, ""
		s.reloads[reloadOK].Inc()
		s.log.Info("TLS certificate renewed", "cert_file", s.cfg.CertFile, "not_after", p.notAfter())
		return
	}
	known := s.trouble == err.Error() && (p == nil) == (s.refused == nil) && (p == nil || p.same(s.refused))
	if s.refused, s.trouble = p, err.Error(); known {
		return
	}
	s.reloads[reloadFailed].Inc()
	s.log.Error("the changed TLS certificate cannot be used; the one in force stays", "err", err, "not_after", current.notAfter())
}

func (s *Server) expired(p *pair) bool { return s.now().After(p.notAfter()) }

// Listener returns l with connections that are *Conn. Accept does no handshake.
// l must be one of TCP.
func (s *Server) Listener(l net.Listener) net.Listener { return listener{l, s} }

type listener struct {
	net.Listener
	s *Server
}

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("accept for TLS: %T is no TCP connection", c)
	}
	raw := &rawConn{TCPConn: tcp}
	return &Conn{Conn: tls.Server(raw, l.s.tls), raw: raw, server: l.s}, nil
}

// failed counts a failed handshake, writes at most one line a second, and returns
// the error.
func (s *Server) failed(remote net.Addr, err error) error {
	reason := reasonOf(err)
	s.failedBy[reason].Inc()
	n, _ := s.said.Due(struct{}{}, s.now())
	if n == 0 {
		return err
	}
	args := []any{"remote", remote.String(), "reason", reason, "err", err}
	if n > 1 {
		args = append(args, "skipped_lines", n-1)
	}
	s.log.Warn("TLS handshake failed", args...)
	return err
}

// reasonOf returns the word for a failed handshake.
func reasonOf(err error) string {
	var remote *net.OpError
	switch {
	case errors.Is(err, ErrPlain):
		return failedPlain
	case errors.Is(err, os.ErrDeadlineExceeded):
		return failedTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return failedClosed
	case errors.As(err, &remote) && remote.Op == "remote error": // an alert of the client's
		return failedRefused
	case strings.Contains(err.Error(), "unsupported versions"): // crypto/tls has no name for it
		return failedVersion
	}
	return failedOther
}

// refusal is a fatal alert internal_error (RFC 8446, section 6.2): TLS has no word
// for a server that is full.
var refusal = []byte{21, 3, 1, 0, 2, 2, 80}

// Refuse tells a client before any handshake that it is not served. It does not
// block; the caller closes.
func (c *Conn) Refuse() {
	_ = c.raw.SetDeadline(time.Now().Add(farewellTime))
	_, _ = c.raw.Write(refusal)
}
