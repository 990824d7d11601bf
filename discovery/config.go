package discovery

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/configs"
	"weir/internal/units"
)

// ServerConfig configures a discovery server.
type ServerConfig struct {
	// The address of the HTTP API, as host:port. Port 0 takes a free port.
	Listen string `yaml:"listen"`
	// Where the directory is kept: memory (in this process, so that there can be one server
	// only) or etcd (several servers may share it).
	Engine string `yaml:"engine"`
	// The etcd cluster, with engine: etcd.
	Etcd EtcdConfig `yaml:"etcd"`
	// The bearer token that calls which change the directory must bring, without white space.
	// Empty: none is asked for, which is for loopback and closed networks only.
	Token configs.Secret `yaml:"token"`
	// How long a stream stays with its owner without a renewal, if the owner asks for no other
	// time; from 300ms to max_lease_ttl.
	LeaseTTL time.Duration `yaml:"lease_ttl"`
	// The longest time that an owner or node can ask for, from 1s to 1h.
	MaxLeaseTTL time.Duration `yaml:"max_lease_ttl"`
	// How long a node counts as alive after its last heartbeat, if it asks for no other time;
	// from 300ms to max_lease_ttl.
	NodeTTL time.Duration `yaml:"node_ttl"`
	// The largest number of streams, from 1 to 10000000; each takes about 0.4 KB.
	MaxStreams int `yaml:"max_streams"`
	// The largest number of nodes, from 1 to 1000000.
	MaxNodes int `yaml:"max_nodes"`
	// The largest body of a request, from 1MiB to 64MiB.
	MaxBody units.Bytes `yaml:"max_body"`
	// The largest number of open connections, from 1 to 1000000; further ones are closed at
	// once. Each worker of an edge and each origin has one to watch the directory, which may
	// take three quarters of them, and some for calls now and then.
	MaxConnections int `yaml:"max_connections"`
	// How long a client may take to send a request, and again to take the answer; from 100ms to
	// 10m.
	RequestTimeout time.Duration `yaml:"request_timeout"`
	// How long calls under way may take to finish when the server stops, from 0s to 10m.
	ShutdownTimeout time.Duration `yaml:"shutdown_timeout"`
}

// DefaultServerConfig returns the configuration of a server without keys.
func DefaultServerConfig() ServerConfig {
	return ServerConfig{
		Listen:          "127.0.0.1:7070",
		Engine:          EngineMemory,
		Etcd:            DefaultEtcdConfig(),
		LeaseTTL:        5 * time.Second,
		MaxLeaseTTL:     time.Minute,
		NodeTTL:         3 * time.Second,
		MaxStreams:      200_000,
		MaxNodes:        10_000,
		MaxBody:         units.MiB,
		MaxConnections:  4096,
		RequestTimeout:  10 * time.Second,
		ShutdownTimeout: 5 * time.Second,
	}
}

// Validate returns all errors of c, each with its key in front.
func (c ServerConfig) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf(key+": "+format, args...))
	}
	if err := checkListen(c.Listen); err != nil {
		bad("listen", "%w", err)
	}
	switch c.Engine {
	case EngineMemory, "":
	case EngineEtcd:
		errs = append(errs, c.Etcd.needed(), configs.Prefix("etcd", c.Etcd.Validate()))
	default:
		bad("engine", "%q is not memory or etcd", c.Engine)
	}
	if strings.ContainsAny(string(c.Token), " \t\r\n") {
		bad("token", "must not contain white space")
	}
	if c.MaxLeaseTTL < time.Second || c.MaxLeaseTTL > time.Hour {
		bad("max_lease_ttl", "%v is not between 1s and 1h", c.MaxLeaseTTL)
	}
	if c.LeaseTTL < minTTL || c.LeaseTTL > c.MaxLeaseTTL {
		bad("lease_ttl", "%v is not between %v and max_lease_ttl (%v)", c.LeaseTTL, minTTL, c.MaxLeaseTTL)
	}
	if c.NodeTTL < minTTL || c.NodeTTL > c.MaxLeaseTTL {
		bad("node_ttl", "%v is not between %v and max_lease_ttl (%v)", c.NodeTTL, minTTL, c.MaxLeaseTTL)
	}
	if c.MaxStreams < 1 || c.MaxStreams > 10_000_000 {
		bad("max_streams", "%d is not between 1 and 10000000", c.MaxStreams)
	}
	if c.MaxNodes < 1 || c.MaxNodes > 1_000_000 {
		bad("max_nodes", "%d is not between 1 and 1000000", c.MaxNodes)
	}
	if c.MaxBody < units.MiB || c.MaxBody > 64*units.MiB {
		bad("max_body", "%v is not between 1MiB (a renewal of nodes) and 64MiB", c.MaxBody)
	}
	if c.MaxConnections < 1 || c.MaxConnections > 1_000_000 {
		bad("max_connections", "%d is not between 1 and 1000000", c.MaxConnections)
	}
	if c.RequestTimeout < 100*time.Millisecond || c.RequestTimeout > 10*time.Minute {
		bad("request_timeout", "%v is not between 100ms and 10m", c.RequestTimeout)
	}
	if c.ShutdownTimeout < 0 || c.ShutdownTimeout > 10*time.Minute {
		bad("shutdown_timeout", "%v is not between 0s and 10m", c.ShutdownTimeout)
	}
	return errors.Join(errs...)
}

// Memory returns the part of c that a memory engine needs.
func (c ServerConfig) Memory() MemoryConfig {
	return MemoryConfig{c.LeaseTTL, c.MaxLeaseTTL, c.NodeTTL, c.MaxStreams, c.MaxNodes}
}

// minTTL is the shortest life of a lease: a renewal comes every third of it.
const minTTL = 300 * time.Millisecond

// Config says how a node finds the directory. With neither urls nor peers the
// node stands alone: it owns whatever is published to it.
type Config struct {
	// etcd uses the etcd cluster directly, without a discovery server; with lease_ttl in
	// whole seconds, at least 2s. Empty: urls or peers.
	Engine string `yaml:"engine"`
	// The etcd cluster, with engine: etcd.
	Etcd EtcdConfig `yaml:"etcd"`
	// The base URLs of discovery servers that share one directory, as in http://10.0.0.1:7070.
	// They are tried in turn from the last that answered. Several servers share a directory
	// if they have the engine etcd; with the engine memory each has its own: name one.
	URLs []string `yaml:"urls"`
	// The HTTP addresses of the other origins, as host:port, to be asked instead of a discovery
	// server; at most 64, and not together with urls. SRS origins may be among them, by their
	// API address. Streams are then not exclusive: two origins may take the same name at the
	// same moment.
	Peers []string `yaml:"peers"`
	// The bearer token of the discovery servers.
	Token configs.Secret `yaml:"token"`
	// How long one call to the directory may take, over all urls; from 10ms to 1m.
	Timeout time.Duration `yaml:"timeout"`
	// How long peers may take to answer, from 10ms to 10s; a silent peer counts as one that does
	// not have the stream.
	PeerTimeout time.Duration `yaml:"peer_timeout"`
	// How long a stream stays with this origin without a renewal, from 300ms to 1h (and at most
	// the server's max_lease_ttl). It is renewed every third of it. Edges do not use it.
	LeaseTTL time.Duration `yaml:"lease_ttl"`
	// How often this node tells the directory that it lives, from 100ms to 1m.
	Heartbeat time.Duration `yaml:"heartbeat"`
	// How long a found owner is used without asking again, from 0s to 1m.
	CacheTTL time.Duration `yaml:"cache_ttl"`
	// How long a found owner is used while the directory is unavailable, from 0s to 24h.
	StaleFor time.Duration `yaml:"stale_for"`
	// The memory of all found owners together, at least 64KiB.
	CacheSize units.Bytes `yaml:"cache_size"`
	// The memory of the copy of the whole directory that the node keeps by watching it, so that
	// no lookup needs a call; at least 64KiB, or 0 for none. A stream takes about 0.2 KB. A
	// directory that is larger is asked for each stream instead. Each worker of an edge has a
	// copy. Peers cannot be watched.
	MapSize units.Bytes `yaml:"map_size"`
}

// DefaultConfig returns the configuration of a node without keys.
func DefaultConfig() Config {
	return Config{
		Etcd:        DefaultEtcdConfig(),
		Timeout:     time.Second,
		PeerTimeout: 300 * time.Millisecond,
		LeaseTTL:    5 * time.Second,
		Heartbeat:   time.Second,
		CacheTTL:    time.Second,
		StaleFor:    time.Hour,
		CacheSize:   16 * units.MiB,
		MapSize:     256 * units.MiB,
	}
}

// Validate returns all errors of c, each with its key in front.
func (c Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf(key+": "+format, args...))
	}
	switch {
	case c.Engine == EngineEtcd && len(c.URLs)+len(c.Peers) > 0:
		bad("engine", "etcd excludes urls and peers")
	case c.Engine == EngineEtcd:
		errs = append(errs, c.Etcd.needed(), configs.Prefix("etcd", c.Etcd.Validate()))
	case c.Engine != "":
		bad("engine", "%q is neither etcd nor empty", c.Engine)
	}
	if len(c.URLs) > 0 && len(c.Peers) > 0 {
		bad("peers", "urls and peers exclude each other")
	}
	for i, u := range c.URLs {
		if err := checkURL(u); err != nil {
			bad("urls["+strconv.Itoa(i)+"]", "%w", err)
		}
	}
	for i, p := range c.Peers {
		if err := checkHostPort(p); err != nil {
			bad("peers["+strconv.Itoa(i)+"]", "%w", err)
		}
	}
	if len(c.Peers) > maxPeers {
		bad("peers", "%d peers, at most %d: use a discovery server", len(c.Peers), maxPeers)
	}
	if strings.ContainsAny(string(c.Token), " \t\r\n") {
		bad("token", "must not contain white space")
	}
	within := func(key string, d, low, high time.Duration) {
		if d < low || d > high {
			bad(key, "%v is not between %v and %v", d, low, high)
		}
	}
	within("timeout", c.Timeout, 10*time.Millisecond, time.Minute)
	within("peer_timeout", c.PeerTimeout, 10*time.Millisecond, 10*time.Second)
	within("lease_ttl", c.LeaseTTL, minTTL, time.Hour)
	within("heartbeat", c.Heartbeat, 100*time.Millisecond, time.Minute)
	within("cache_ttl", c.CacheTTL, 0, time.Minute)
	within("stale_for", c.StaleFor, 0, 24*time.Hour)
	if c.CacheSize < 64*units.KiB {
		bad("cache_size", "%v is less than 64KiB", c.CacheSize)
	}
	if c.MapSize != 0 && c.MapSize < 64*units.KiB {
		bad("map_size", "%v is neither 0 nor at least 64KiB", c.MapSize)
	}
	return errors.Join(errs...)
}

// maxPeers bounds the requests that one lookup makes.
const maxPeers = 64

// The engines of a directory.
const (
	EngineMemory = "memory"
	EngineEtcd   = "etcd"
)

// EtcdOpener opens the engine of package discovery/etcd, which this package does
// not import so that what needs no etcd has none.
type EtcdOpener func(cfg EtcdConfig, limits MemoryConfig, log *slog.Logger, set *metrics.Set) (RemoteEngine, error)

// Configured reports whether c names a directory that the node shares with others.
func (c Config) Configured() bool { return c.Engine != "" || len(c.URLs)+len(c.Peers) > 0 }

// Open returns the directory that c names for the node self: etcd if that is the
// engine, else a Client if there are urls, else Peers. Close it at the end. etcd
// may be nil where c does not ask for it; log and set may be nil.
func (c Config) Open(self Self, etcd EtcdOpener, log *slog.Logger, set *metrics.Set) (Remote, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	switch {
	case c.Engine == EngineEtcd && etcd == nil:
		return nil, errors.New("open directory: this program has no etcd")
	case c.Engine == EngineEtcd:
		d, err := etcd(c.Etcd, MemoryConfig{LeaseTTL: c.LeaseTTL, NodeTTL: DefaultServerConfig().NodeTTL}, log, set)
		if err != nil {
			return nil, fmt.Errorf("open directory: %w", err)
		}
		return d, nil
	case len(c.URLs) > 0:
		return NewClient(c, set), nil
	}
	return NewPeers(c, self, log, set), nil
}

// Remote is a directory behind connections.
type Remote interface {
	Directory
	// Close closes idle connections. Calls under way go on.
	Close() error
}

// Self is how a node names itself in leases.
type Self struct {
	Node string
	// Instance tells this run of the node from earlier ones. NewInstance makes one.
	Instance string
	Addr     Addr
}

// is reports whether a lease is one of this node: of this run or one before it, or
// under a name that the node does not have any more. Whoever was sent there would
// come back here.
func (s Self) is(l Lease) bool {
	return l.Node == s.Node && (l.Instance == s.Instance || l.Addr == s.Addr) ||
		s.Addr.RTMP != "" && l.Addr.RTMP == s.Addr.RTMP || s.Addr.HTTP != "" && l.Addr.HTTP == s.Addr.HTTP
}

func checkListen(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not host:port", addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q has no port between 0 and 65535", addr)
	}
	if strings.ContainsFunc(host, notInID) {
		return fmt.Errorf("%q has no host name or IP address", addr)
	}
	return nil
}

func checkURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return fmt.Errorf("%q is not a URL", s)
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%q is not an http or https URL", s)
	case u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%q is not scheme://host:port alone", s)
	}
	return nil
}
