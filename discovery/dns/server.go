// Package dns is an authoritative DNS server whose answers are nodes that the
// scheduler of the discovery server has chosen for the client: by its address, or by
// the network that its resolver tells of it (EDNS client subnet, RFC 7871).
//
// It answers for its own zones only and asks nobody. So that it is of no use for
// attacking others, answers over UDP are small, and bounded in number for each
// network that asks; a client that is over the bound is told to come over TCP.
package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/miekg/dns"

	"weir/discovery/schedule"
	"weir/internal/limit"
)

// Placer chooses nodes and knows where they are; discovery.Placer is one.
type Placer interface {
	Place(ctx context.Context, r schedule.Request, why bool) (schedule.Choice, error)
	// Node returns what is known of a node, by its id in lower case; nil if there is
	// none.
	Node(id string) *schedule.Facts
}

// Server answers DNS.
type Server struct {
	cfg    Config
	zones  []zone
	placer Placer
	rate   *limit.Rate
	serial uint32

	over atomic.Uint32 // questions over the rate so far

	results map[string]*metrics.Counter
}

// The results of questions that are counted.
const (
	answered  = "answered"
	noData    = "no_data"
	noName    = "no_name"
	noNode    = "no_node"
	refused   = "refused"
	malformed = "malformed"
	limited   = "limited" // dropped, or told to come over TCP
)

// NewServer returns a server. cfg must be valid; set may be nil.
func NewServer(cfg Config, placer Placer, set *metrics.Set) *Server {
	if set == nil {
		set = metrics.NewSet()
	}
	s := &Server{
		cfg: cfg, placer: placer, rate: limit.NewRate(float64(cfg.Rate), float64(cfg.Burst), 24),
		serial: uint32(time.Now().Unix()), results: make(map[string]*metrics.Counter),
	}
	for _, z := range cfg.Zones {
		s.zones = append(s.zones, newZone(z))
	}
	for _, r := range []string{answered, noData, noName, noNode, refused, malformed, limited} {
		s.results[r] = set.NewCounter(`weir_dns_questions_total{result="` + r + `"}`)
	}
	return s
}

// Serve answers on both until ctx ends or one fails. It closes them and returns when
// nothing of it is left.
func (s *Server) Serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	common := func() *dns.Server {
		return &dns.Server{
			Handler: dns.HandlerFunc(s.serve), MsgAcceptFunc: s.accept, UDPSize: maxUDP,
			ReadTimeout: s.cfg.Timeout, WriteTimeout: s.cfg.Timeout, MaxTCPQueries: 128,
			IdleTimeout: func() time.Duration { return s.cfg.Timeout },
		}
	}
	u, t := common(), common()
	u.PacketConn, t.Listener = udp, &bounded{Listener: tcp, server: s, open: make(map[net.Conn]bool)}
	run, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, server := range []*dns.Server{u, t} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() {
			defer stop()
			errs[i] = server.ActivateAndServe()
		})
		wg.Go(func() {
			<-run.Done()
			select {
			case <-started:
				// It waits for the questions under way, not for idle connections.
				_ = server.Shutdown()
			case <-time.After(s.cfg.Timeout):
			}
		})
	}
	<-run.Done()
	t.Listener.(*bounded).closeAll()
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("serve dns: %w", err)
	}
	return nil
}

// bounded is a listener with a bound on its connections.
type bounded struct {
	net.Listener
	server *Server

	mu   sync.Mutex
	open map[net.Conn]bool // guarded by mu; nil when all were closed
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		b.mu.Lock()
		if b.open == nil || len(b.open) >= b.server.cfg.MaxConnections {
			b.mu.Unlock()
			b.server.results[limited].Inc()
			_ = c.Close()
			continue
		}
		counted := &countedConn{Conn: c, of: b}
		b.open[counted] = true
		b.mu.Unlock()
		return counted, nil
	}
}

func (b *bounded) closeAll() {
	b.mu.Lock()
	open := b.open
	b.open = nil
	b.mu.Unlock()
	for c := range open {
		_ = c.Close()
	}
}

type countedConn struct {
	net.Conn
	of *bounded
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// maxUDP is the largest answer over UDP: what passes without fragments.
const maxUDP = 1232

// accept decides on the header of a message, before the rest is read. Answers get no
// answer; what is refused here costs nobody more than its header.
func (s *Server) accept(h dns.Header) dns.MsgAcceptAction {
	const response, opcode = 1 << 15, 0xf << 11
	switch {
	case h.Bits&response != 0:
		s.results[malformed].Inc()
		return dns.MsgIgnore
	case h.Bits&opcode != 0:
		s.results[refused].Inc()
		return dns.MsgRejectNotImplemented
	case h.Qdcount != 1 || h.Ancount != 0 || h.Nscount != 0 || h.Arcount > 2:
		s.results[malformed].Inc()
		return dns.MsgReject
	}
	return dns.MsgAccept
}

func (s *Server) serve(w dns.ResponseWriter, q *dns.Msg) {
	remote := addrOf(w.RemoteAddr())
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	if udp && !s.rate.Allow(remote, time.Now()) {
		s.results[limited].Inc()
		if s.over.Add(1)%2 == 0 { // half of them: an attacker's victim gets less than was sent
			m := new(dns.Msg)
			m.SetReply(q)
			m.Truncated = true
			_ = w.WriteMsg(m)
		}
		return
	}
	m, result := s.answer(q, remote)
	s.results[result].Inc()
	size := dns.MaxMsgSize
	if udp {
		size = dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = min(max(size, int(o.UDPSize())), maxUDP)
		}
	}
	m.Truncate(size)
	_ = w.WriteMsg(m) // an error is the client's having gone
}

func addrOf(a net.Addr) netip.Addr {
	var ip net.IP
	switch a := a.(type) {
	case *net.UDPAddr:
		ip = a.IP
	case *net.TCPAddr:
		ip = a.IP
	}
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}
