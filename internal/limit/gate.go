// Package limit bounds how many connections or sessions there are, in all and
// per remote address, and accepts connections under such a bound.
package limit

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/VictoriaMetrics/metrics"
)

// Config bounds the connections of one process.
type Config struct {
	// Connections open at the same time, RTMP and HTTP together, from all clients. A node with
	// several workers applies it to each worker. 0 means no limit but the process's descriptors.
	MaxConnections int `yaml:"max_connections"`
	// Connections open at the same time from one client address, RTMP and HTTP together. An IPv6
	// client counts by its /64 network. 0 means no limit, which is the default, because one
	// address may stand for many players: a CDN, a load balancer, a provider's or a company's
	// NAT. Where clients connect directly, 100 is a fair value.
	MaxConnectionsPerAddress int `yaml:"max_connections_per_address"`
	// Addresses (`10.0.0.7`) and networks (`10.0.0.0/8`) that are never refused: other nodes of the cluster, health checks, the CDN in front. They still count towards max_connections for everybody else.
	Exempt []Prefix `yaml:"exempt"`
}

// Prefix is a network of addresses, as in `10.0.0.0/8`, or one address, as in
// `10.0.0.7`, which stands for `10.0.0.7/32`. IPv4 in IPv6's form is IPv4.
type Prefix struct{ netip.Prefix }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Prefix) UnmarshalText(text []byte) error {
	s := string(text)
	network, err := netip.ParsePrefix(s)
	if err != nil {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" {
			return fmt.Errorf("%q is neither an address (10.0.0.7) nor a network (10.0.0.0/8)", s)
		}
		network = netip.PrefixFrom(addr, addr.BitLen())
	}
	// Addresses of clients come without that form: see [Gate.Acquire].
	if addr, bits := network.Addr(), network.Bits(); addr.Is4In6() && bits >= 96 {
		network = netip.PrefixFrom(addr.Unmap(), bits-96)
	}
	p.Prefix = network
	return nil
}

// DefaultConfig returns the limits that a node has if it sets none.
func DefaultConfig() Config { return Config{MaxConnections: 100_000} }

// Validate returns all that is wrong, each error beginning with the key.
func (c *Config) Validate() error {
	var errs []error
	if c.MaxConnections < 0 {
		errs = append(errs, errors.New("max_connections: must not be negative"))
	}
	if c.MaxConnectionsPerAddress < 0 {
		errs = append(errs, errors.New("max_connections_per_address: must not be negative"))
	}
	for i, p := range c.Exempt {
		if !p.IsValid() {
			errs = append(errs, fmt.Errorf("exempt[%d]: is not a network", i))
		}
	}
	return errors.Join(errs...)
}

// Why a gate refuses.
var (
	ErrTooManyConnections = errors.New("too many connections")
	ErrTooManyPerAddress  = errors.New("too many connections from this address")
)

// addressShards is the number of locks that addresses are spread over.
const addressShards = 32

// Gate counts what is open and refuses what would be too much. Its memory is
// bounded by what is open: an address without connections is not remembered.
// Its methods are safe for concurrent use.
type Gate struct {
	limits atomic.Pointer[Config]

	left func() // static; takes one from open: made once, for thousands of connections

	open      atomic.Int64
	addresses [addressShards]addressShard // of those that came under a limit per address

	accepted          *metrics.Counter
	refusedTotal      *metrics.Counter
	refusedPerAddress *metrics.Counter
	acceptErrors      *metrics.Counter
}

type addressShard struct {
	mu   sync.Mutex
	open map[netip.Addr]int // guarded by mu
	_    [40]byte           // keeps two shards' locks out of one cache line
}

// NewGate returns a gate for what name says, a word that labels its metrics
// ("rtmp", "http").
func NewGate(cfg Config, name string, set *metrics.Set) *Gate {
	label := func(metric, labels string) string {
		return fmt.Sprintf("%s{listener=%q%s}", metric, name, labels)
	}
	g := &Gate{
		accepted:          set.GetOrCreateCounter(label("weir_connections_accepted_total", "")),
		refusedTotal:      set.GetOrCreateCounter(label("weir_connections_refused_total", `,reason="too_many_connections"`)),
		refusedPerAddress: set.GetOrCreateCounter(label("weir_connections_refused_total", `,reason="too_many_per_address"`)),
		acceptErrors:      set.GetOrCreateCounter(label("weir_accept_errors_total", "")),
	}
	g.left = func() { g.open.Add(-1) }
	g.SetLimits(cfg)
	for i := range g.addresses {
		g.addresses[i].open = map[netip.Addr]int{}
	}
	set.GetOrCreateGauge(label("weir_connections", ""), func() float64 { return float64(g.Open()) })
	return g
}

// SetLimits makes other limits count for what comes. What is open stays.
func (g *Gate) SetLimits(cfg Config) { g.limits.Store(&cfg) }

// Open returns how many are open now.
func (g *Gate) Open() int { return int(g.open.Load()) }

// Acquire takes a place for a connection from remote, or says with
// [ErrTooManyConnections] or [ErrTooManyPerAddress] why there is none. An invalid
// remote (a unix socket has no address) counts in the total only. release gives
// the place back; further calls of it do nothing.
func (g *Gate) Acquire(remote netip.Addr) (release func(), err error) {
	if release, err = g.admit(remote, true); err != nil {
		return nil, err
	}
	return sync.OnceFunc(release), nil
}

// admit is Acquire that counts what it lets in only the first time that the node does.
// Its release must be called once.
func (g *Gate) admit(remote netip.Addr, first bool) (release func(), err error) {
	release, err = g.acquire(remote)
	switch {
	case err == ErrTooManyConnections:
		g.refusedTotal.Inc()
	case err == ErrTooManyPerAddress:
		g.refusedPerAddress.Inc()
	case first:
		g.accepted.Inc()
	}
	return release, err
}

// Hold is Acquire for a connection that is still to come and is counted then.
func (g *Gate) Hold(remote netip.Addr) (release func(), ok bool) {
	release, err := g.acquire(remote)
	if err != nil {
		return nil, false
	}
	return sync.OnceFunc(release), true
}

// acquire is Acquire that counts nothing. Its release must be called once.
func (g *Gate) acquire(remote netip.Addr) (release func(), err error) {
	remote = remote.Unmap()
	limits := g.limits.Load()
	exempt := limits.isExempt(remote)
	if n := g.open.Add(1); !exempt && limits.MaxConnections > 0 && n > int64(limits.MaxConnections) {
		g.open.Add(-1)
		return nil, ErrTooManyConnections
	}
	if exempt || limits.MaxConnectionsPerAddress == 0 || !remote.IsValid() {
		return g.left, nil
	}

	// A host usually owns the whole /64 that its address is from.
	if remote.Is6() {
		remote = netip.PrefixFrom(remote.WithZone(""), 64).Masked().Addr()
	}
	shard := g.shard(remote)
	shard.mu.Lock()
	if shard.open[remote] >= limits.MaxConnectionsPerAddress {
		shard.mu.Unlock()
		g.open.Add(-1)
		return nil, ErrTooManyPerAddress
	}
	shard.open[remote]++
	shard.mu.Unlock()
	return func() {
		g.left()
		shard.mu.Lock()
		if shard.open[remote]--; shard.open[remote] == 0 {
			delete(shard.open, remote)
		}
		shard.mu.Unlock()
	}, nil
}

func (c *Config) isExempt(remote netip.Addr) bool {
	for _, p := range c.Exempt {
		if p.Contains(remote) {
			return true
		}
	}
	return false
}

// shard picks the lock of an address by its bytes (FNV-1a).
func (g *Gate) shard(a netip.Addr) *addressShard {
	b := a.As16()
	h := uint32(2166136261)
	for _, x := range b {
		h = (h ^ uint32(x)) * 16777619
	}
	return &g.addresses[(h^h>>16)%addressShards]
}

// RemoteAddr returns the address of a connection's peer without its port, or an
// invalid one if it has none.
func RemoteAddr(conn net.Conn) netip.Addr {
	switch a := conn.RemoteAddr().(type) {
	case *net.TCPAddr:
		return a.AddrPort().Addr()
	case nil:
		return netip.Addr{}
	default:
		ap, _ := netip.ParseAddrPort(a.String())
		return ap.Addr()
	}
}
