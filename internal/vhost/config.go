package vhost

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"weir/configs"
	"weir/hls"
)

// Conflict is what happens to a second publisher of a live stream.
type Conflict string

// The conflict policies.
const (
	Reject  Conflict = "reject"  // the second gets NetStream.Publish.BadName
	Replace Conflict = "replace" // the second takes over with a new epoch, the first is cut
	Standby Conflict = "standby" // the second is kept, and goes on when the first stops
)

// Choices implements configs.Chooser.
func (Conflict) Choices() []string { return []string{string(Reject), string(Replace), string(Standby)} }

// Policy is how an edge picks among the upstreams of a vhost.
type Policy string

// The policies.
const (
	RoundRobin Policy = "round_robin" // one counter for the vhost's group, not one per stream
	Hash       Policy = "hash"        // rendezvous hashing of the stream over the upstreams
	LeastLoad  Policy = "least_load"  // by the load that discovery is told
)

// Choices implements configs.Chooser.
func (Policy) Choices() []string {
	return []string{string(RoundRobin), string(Hash), string(LeastLoad)}
}

// Config is one tenant.
type Config struct {
	// Other host names that select this vhost, without a port. Letter case does not matter. No
	// two vhosts may share one.
	Aliases []string `yaml:"aliases"`
	// Where an edge pulls this vhost's streams from and forwards its publishers to, when
	// discovery does not say: origins or other edges, as `rtmp://HOST:PORT`, `http://HOST:PORT`
	// or `HOST:PORT` (RTMP). Without discovery HLS needs those with http:// and publishers need
	// those with rtmp://. A name may resolve to several addresses. The edge itself must not be
	// among them. Origins do not use it.
	Upstreams []string `yaml:"upstreams"`
	// How an edge picks among the upstreams: `round_robin` (in turn, one counter for the vhost),
	// `hash` (a stream stays with an upstream while that lives) or `least_load` (the more often the
	// less load it reports to discovery; in turn while none is known). Publishers of a vhost without
	// upstreams go to the origins that discovery knows, by their load.
	Policy Policy `yaml:"policy"`
	// Who may publish to this vhost.
	Publish PublishConfig `yaml:"publish"`
	// How many players this vhost may have.
	Play PlayConfig `yaml:"play"`
	// How the HLS of this vhost's streams is cut. An edge uses only `enabled`; the rest is the
	// origin's.
	HLS hls.Config `yaml:"hls"`
}

// PublishConfig rules a vhost's publishers.
type PublishConfig struct {
	// A publisher must give one of these as `?key=KEY` behind the stream name (or behind the
	// server URL). Without keys anybody may publish. Edges and origins both check, so give them
	// the same list.
	Keys []configs.Secret `yaml:"keys"`
	// What a second publisher of a live stream gets at an origin: `reject` (refused with
	// NetStream.Publish.BadName), `replace` (takes the stream over, the first is cut) or `standby`
	// (is kept, and goes on with the stream when the first stops; a third is refused).
	OnConflict Conflict `yaml:"on_conflict"`
	// How long a publisher may send nothing before its standby publisher goes on in its place,
	// from 200ms to 1m; the first is cut then. Only with `on_conflict: standby`.
	StandbyAfter time.Duration `yaml:"standby_after"`
}

// PlayConfig limits a vhost's players.
type PlayConfig struct {
	// The number of players of this vhost per process (an edge has one process per worker), HLS
	// viewers not counted; 0 means no limit.
	MaxPlayers int `yaml:"max_players"`
	// The number of players that this vhost is to have room for, per process, HLS viewers not
	// counted; 0 means no quota. While the node has room it may have more. When the node is busy
	// (`load.soft_limit`) new ones above the quota are refused, and when it is full these are the
	// first that are asked to leave.
	Quota int `yaml:"quota"`
	// The number of players of one stream per process, HLS viewers not counted; 0 means no
	// limit.
	MaxPlayersPerStream int `yaml:"max_players_per_stream"`
}

// Default returns what a vhost is that sets nothing.
func Default() Config {
	return Config{
		Policy:  RoundRobin,
		Publish: PublishConfig{OnConflict: Reject, StandbyAfter: time.Second},
		HLS:     hls.DefaultConfig(),
	}
}

// SetDefaults implements configs.Defaulter.
func (c *Config) SetDefaults() { *c = Default() }

// Validate returns all that is wrong, each error beginning with the key.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if d := c.Publish.StandbyAfter; d < 200*time.Millisecond || d > time.Minute {
		bad("publish.standby_after: %v is not between 200ms and 1m", d)
	}
	for i, a := range c.Aliases {
		if err := checkHost(a); err != nil {
			bad("aliases[%d]: %w", i, err)
		}
	}
	for i, u := range c.Upstreams {
		if _, err := ParseUpstream(u); err != nil {
			bad("upstreams[%d]: %w", i, err)
		}
	}
	for i, k := range c.Publish.Keys {
		if k == "" {
			bad("publish.keys[%d]: must not be empty", i)
		}
	}
	if c.Play.MaxPlayers < 0 {
		bad("play.max_players: must not be negative")
	}
	if c.Play.Quota < 0 {
		bad("play.quota: must not be negative")
	}
	if c.Play.MaxPlayersPerStream < 0 {
		bad("play.max_players_per_stream: must not be negative")
	}
	if err := c.HLS.Validate(); err != nil {
		errs = append(errs, configs.Prefix("hls", err))
	}
	return errors.Join(errs...)
}

func checkHost(h string) error {
	for i := range len(h) {
		c := h[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_') {
			return fmt.Errorf("%q is not a host name (letters, digits, dots, - and _)", h)
		}
	}
	if len(h) > 253 || strings.Trim(h, ".") == "" {
		return fmt.Errorf("%q is not a host name", h)
	}
	return nil
}

// Upstream is one address that an edge pulls from.
type Upstream struct {
	Scheme string // "rtmp" or "http" (HTTP-FLV)
	Addr   string // host:port
}

// String returns scheme://addr.
func (u Upstream) String() string { return u.Scheme + "://" + u.Addr }

// ParseUpstream reads rtmp://host[:port], http://host[:port] or host[:port].
func ParseUpstream(s string) (Upstream, error) {
	full := s
	if !strings.Contains(s, "://") {
		full = "rtmp://" + s
	}
	u, err := url.Parse(full)
	if err != nil || checkHost(u.Hostname()) != nil && net.ParseIP(u.Hostname()) == nil {
		return Upstream{}, fmt.Errorf("%q is not rtmp://HOST:PORT or http://HOST:PORT", s)
	}
	if (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return Upstream{}, fmt.Errorf("%q has more than a host and a port: app and stream are those that the player asks for", s)
	}
	port := u.Port()
	switch u.Scheme {
	case "rtmp":
		if port == "" {
			port = "1935"
		}
	case "http":
		if port == "" {
			port = "80"
		}
	default:
		return Upstream{}, fmt.Errorf("%q: scheme %s is not supported (rtmp, http)", s, u.Scheme)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return Upstream{}, fmt.Errorf("%q has no port between 1 and 65535", s)
	}
	return Upstream{Scheme: u.Scheme, Addr: net.JoinHostPort(u.Hostname(), port)}, nil
}

// MayPublish reports whether a publisher that gave key may publish. The time
// that it takes does not tell how much of a key was right.
func (c *Config) MayPublish(key string) bool {
	if len(c.Publish.Keys) == 0 {
		return true
	}
	given := sha256.Sum256([]byte(key))
	ok := 0
	for _, k := range c.Publish.Keys {
		want := sha256.Sum256([]byte(k))
		ok |= subtle.ConstantTimeCompare(given[:], want[:])
	}
	return ok == 1
}
