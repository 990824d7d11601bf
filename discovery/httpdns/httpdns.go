// Package httpdns answers clients over HTTP where to play or publish: nodes in the
// order in which they should be tried, with a time for which the answer holds. The
// nodes come from the scheduler of the discovery server.
package httpdns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/VictoriaMetrics/metrics"
	"github.com/valyala/fasthttp"

	"weir/discovery/schedule"
	"weir/internal/limit"
)

// Config configures HTTP-DNS.
type Config struct {
	// The address that answers `GET /resolve`, as host:port. Empty: there is none. It is meant for
	// clients anywhere; it asks for no token and shows nothing but addresses of nodes.
	Listen string `yaml:"listen"`
	// How long an answer holds, from 1s to 10m. Players that come within it are not placed anew.
	TTL time.Duration `yaml:"ttl"`
	// Which vhost a domain stands for, where they differ. A domain that is not here is a vhost.
	Domains map[string]string `yaml:"domains"`
	// How many questions one client may ask in a second, from 1 to 1000000; an IPv6 client counts by
	// its /64 network. Services that ask for many clients belong into `trusted`.
	Rate int `yaml:"rate"`
	// How many questions one client may ask at once, from 1 to 1000000.
	Burst int `yaml:"burst"`
	// Addresses and networks without a limit of rate.
	Trusted []limit.Prefix `yaml:"trusted"`
	// The largest number of open connections, from 1 to 1000000.
	MaxConnections int `yaml:"max_connections"`
	// How long a connection may be idle, or take for a request, from 1s to 10m.
	Timeout time.Duration `yaml:"timeout"`
}

// DefaultConfig returns the configuration without keys: nothing listens.
func DefaultConfig() Config {
	return Config{TTL: 10 * time.Second, Rate: 20, Burst: 100, MaxConnections: 10_000, Timeout: 30 * time.Second}
}

// Validate returns all errors of c, each with its key in front.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf(key+": "+format, args...))
	}
	if c.Listen != "" {
		if _, port, err := net.SplitHostPort(c.Listen); err != nil {
			bad("listen", "%q is not host:port", c.Listen)
		} else if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			bad("listen", "%q has no port between 0 and 65535", c.Listen)
		}
	}
	if c.TTL < time.Second || c.TTL > 10*time.Minute {
		bad("ttl", "%v is not between 1s and 10m", c.TTL)
	}
	for domain, vhost := range c.Domains {
		if canonical(domain) != domain || vhost == "" || strings.Contains(vhost, "/") {
			bad("domains."+domain, "a domain in lower case without a dot at its end stands for a vhost")
		}
	}
	for _, n := range [...]struct {
		key string
		n   int
	}{{"rate", c.Rate}, {"burst", c.Burst}, {"max_connections", c.MaxConnections}} {
		if n.n < 1 || n.n > 1_000_000 {
			bad(n.key, "%d is not between 1 and 1000000", n.n)
		}
	}
	if c.Timeout < time.Second || c.Timeout > 10*time.Minute {
		bad("timeout", "%v is not between 1s and 10m", c.Timeout)
	}
	return errors.Join(errs...)
}

// Placer chooses nodes; discovery.Placer is one.
type Placer interface {
	Place(ctx context.Context, r schedule.Request, why bool) (schedule.Choice, error)
}

// Server answers /resolve.
type Server struct {
	cfg    Config
	placer Placer
	rate   *limit.Rate
	ttl    int // seconds

	answered, noNode, invalid, limited *metrics.Counter
}

// NewServer returns a server. cfg must be valid; set may be nil.
func NewServer(cfg Config, placer Placer, set *metrics.Set) *Server {
	if set == nil {
		set = metrics.NewSet()
	}
	count := func(result string) *metrics.Counter {
		return set.NewCounter(`weir_resolve_requests_total{result="` + result + `"}`)
	}
	return &Server{
		cfg: cfg, placer: placer, rate: limit.NewRate(float64(cfg.Rate), float64(cfg.Burst), 32),
		ttl:      int(cfg.TTL.Seconds()),
		answered: count("answered"), noNode: count("no_node"), invalid: count("invalid"), limited: count("limited"),
	}
}

// Serve answers on l until ctx ends. It closes l and returns when nothing of it is
// left. Connections beyond the limit are answered 503 and closed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := &fasthttp.Server{
		Handler: s.handle, Name: "weir", Concurrency: s.cfg.MaxConnections,
		ReadTimeout: s.cfg.Timeout, WriteTimeout: s.cfg.Timeout, IdleTimeout: s.cfg.Timeout,
		ReadBufferSize: 4096, WriteBufferSize: 4096, MaxRequestBodySize: 1024,
		GetOnly: true, NoDefaultContentType: true, CloseOnShutdown: true,
		Logger: quiet{},
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve resolve: %w", err)
	case <-ctx.Done():
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	err := server.ShutdownWithContext(bound)
	<-failed
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("stop resolve: %w", err)
	}
	return nil
}

// quiet drops what the library says of broken connections.
type quiet struct{}

func (quiet) Printf(string, ...any) {}

func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	if string(ctx.Path()) != "/resolve" {
		s.fail(ctx, fasthttp.StatusNotFound, "not_found", "there is /resolve only")
		return
	}
	remote := remoteAddr(ctx.RemoteAddr())
	if !s.trusted(remote) && !s.rate.Allow(remote, time.Now()) {
		s.limited.Inc()
		ctx.Response.Header.Set("Retry-After", "1")
		s.fail(ctx, fasthttp.StatusTooManyRequests, "limited", "too many questions from this address")
		return
	}
	q, err := s.parse(ctx.QueryArgs(), remote)
	if err != nil {
		s.invalid.Inc()
		s.fail(ctx, fasthttp.StatusBadRequest, "invalid", err.Error())
		return
	}
	choice, err := s.placer.Place(ctx, q.request, false)
	if err != nil {
		s.noNode.Inc()
		ctx.Response.Header.Set("Retry-After", "1")
		s.fail(ctx, fasthttp.StatusServiceUnavailable, "no_node", "no node can take the session now")
		return
	}
	s.answered.Inc()
	h := &ctx.Response.Header
	h.Set("Cache-Control", "private, max-age="+strconv.Itoa(s.ttl))
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("X-Content-Type-Options", "nosniff")
	if q.text {
		h.SetContentType("text/plain; charset=utf-8")
		ctx.Response.SetBodyRaw(s.text(&q, choice.Nodes))
		return
	}
	h.SetContentType("application/json")
	ctx.Response.SetBodyRaw(s.json(&q, choice.Nodes))
}

func (s *Server) fail(ctx *fasthttp.RequestCtx, status int, code, message string) {
	ctx.SetStatusCode(status)
	h := &ctx.Response.Header
	h.SetContentType("application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("X-Content-Type-Options", "nosniff")
	body := append([]byte(nil), `{"code":`...)
	body = strconv.AppendQuote(body, code)
	body = append(body, `,"error":`...)
	body = appendString(body, message)
	ctx.SetBody(append(body, '}', '\n'))
}

func (s *Server) trusted(addr netip.Addr) bool {
	for _, p := range s.cfg.Trusted {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

func remoteAddr(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		addr, _ := netip.AddrFromSlice(t.IP)
		return addr.Unmap()
	}
	return netip.Addr{}
}

// question is a request that was understood.
type question struct {
	request schedule.Request
	domain  string
	text    bool
}

// Limits of a question, in bytes.
const (
	maxDomain = 255
	maxStream = 512
)

// parse reads the parameters. Each may be given once; unknown ones are errors.
func (s *Server) parse(args *fasthttp.Args, remote netip.Addr) (q question, err error) {
	seen := 0
	var stream, role string
	for key, value := range args.All() {
		bit := 0
		switch string(key) {
		case "domain":
			q.domain, bit = string(value), 1
		case "stream":
			stream, bit = string(value), 2
		case "role":
			role, bit = string(value), 4
		case "protocol":
			q.request.Protocol, bit = string(value), 8
		case "format":
			bit = 16
			switch string(value) {
			case "text":
				q.text = true
			case "json":
			default:
				return q, fmt.Errorf("format is not json or text")
			}
		case "ip":
			bit = 32
			if q.request.Client, err = netip.ParseAddr(string(value)); err != nil || q.request.Client.Zone() != "" {
				return q, fmt.Errorf("ip is not an address")
			}
		default:
			return q, fmt.Errorf("unknown parameter; there are domain, stream, ip, role, protocol and format")
		}
		if seen&bit != 0 {
			return q, fmt.Errorf("a parameter is given twice")
		}
		seen |= bit
	}
	if !q.request.Client.IsValid() {
		q.request.Client = remote
	}
	switch role {
	case "play", "":
		q.request.Action = schedule.Play
	case "publish":
		q.request.Action = schedule.Publish
	default:
		return q, fmt.Errorf("role is not play or publish")
	}
	switch q.request.Protocol {
	case "", "rtmp", "http":
	default:
		return q, fmt.Errorf("protocol is not rtmp or http")
	}
	if len(q.domain) > maxDomain || !plain(q.domain) || strings.Contains(q.domain, "/") {
		return q, fmt.Errorf("domain is not a name")
	}
	if q.domain = canonical(q.domain); q.domain == "" {
		return q, fmt.Errorf("domain is missing")
	}
	q.request.Vhost = q.domain
	if v, ok := s.cfg.Domains[q.domain]; ok {
		q.request.Vhost = v
	}
	if stream != "" {
		stream = strings.Trim(stream, "/")
		if len(stream) > maxStream || !strings.Contains(stream, "/") || strings.Contains(stream, "//") || !plain(stream) {
			return q, fmt.Errorf("stream is not app/name")
		}
		q.request.Stream = q.request.Vhost + "/" + stream
	}
	return q, nil
}

// canonical is a domain as it is compared: lower case, without a dot at its end.
func canonical(domain string) string { return strings.TrimSuffix(strings.ToLower(domain), ".") }

func plain(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, unicode.IsControl) < 0
}

// json writes an answer. It is written by hand because it is most of the cost of
// one that is not the choice.
func (s *Server) json(q *question, nodes []schedule.Chosen) []byte {
	b := make([]byte, 0, 128+160*len(nodes))
	b = append(b, `{"domain":`...)
	b = appendString(b, q.domain)
	b = append(b, `,"ttl":`...)
	b = strconv.AppendInt(b, int64(s.ttl), 10)
	b = append(b, `,"nodes":[`...)
	for i, n := range nodes {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"id":`...)
		b = appendString(b, n.ID)
		for _, f := range [...]struct{ key, value string }{{"rtmp", n.RTMP}, {"http", n.HTTP}, {"region", n.Region}} {
			if f.value != "" {
				b = append(b, ',', '"')
				b = append(b, f.key...)
				b = append(b, '"', ':')
				b = appendString(b, f.value)
			}
		}
		b = append(b, '}')
	}
	return append(b, ']', '}', '\n')
}

// text writes host:port of the protocol that was asked for, or else the hosts, one
// in each line.
func (s *Server) text(q *question, nodes []schedule.Chosen) []byte {
	var b []byte
	for _, n := range nodes {
		addr := n.RTMP
		if q.request.Protocol == "http" || addr == "" {
			addr = n.HTTP
		}
		if q.request.Protocol == "" {
			if host, _, err := net.SplitHostPort(addr); err == nil {
				addr = host
			}
		}
		b = append(append(b, addr...), '\n')
	}
	return b
}

// appendString writes a JSON string of valid UTF-8.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20:
			b = append(b, `\u00`...)
			b = append(b, "0123456789abcdef"[c>>4], "0123456789abcdef"[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
