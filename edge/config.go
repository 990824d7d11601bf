package edge

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"weir/configs"
	"weir/discovery"
	"weir/hls"
	"weir/internal/admin"
	"weir/internal/admission"
	"weir/internal/drain"
	"weir/internal/limit"
	"weir/internal/load"
	"weir/internal/node"
	"weir/internal/session"
	"weir/internal/vhost"
	"weir/internal/worker"
)

// Config is the configuration of an edge node.
type Config struct {
	// What the file configures: `edge`.
	Role string `yaml:"role"`
	// Who the node is.
	Node node.Config `yaml:"node"`
	// The RTMP door: players, and publishers that are forwarded.
	RTMP session.RTMPConfig `yaml:"rtmp"`
	// The HTTP door: HTTP-FLV, WebSocket-FLV and HLS players.
	HTTP session.HTTPConfig `yaml:"http"`
	// The admin interface of the node: metrics, health, API and console. The supervisor answers
	// it for all workers.
	Admin admin.Config `yaml:"admin"`
	// Under which addresses others reach the node. An edge tells them to discovery.
	Advertise node.Advertise `yaml:"advertise"`
	// The number of worker processes that share the node's ports, from 0 to 256; 0 means one per
	// core. Each runs on its share of the cores, unless GOMAXPROCS in the environment says
	// otherwise.
	Workers int `yaml:"workers"`
	// How the worker processes are supervised.
	Supervision worker.Config `yaml:"supervision"`
	// The directory that says which origin owns a stream. It is asked first; without it, or
	// while it does not answer and nothing is remembered, the vhost's upstreams are asked.
	Discovery discovery.Config `yaml:"discovery"`
	// What players may cost.
	Play session.Config `yaml:"play"`
	// How busy the node counts, which discovery is told.
	Load load.Config `yaml:"load"`
	// How many newcomers the node lets in, and what it does when it is full.
	Admission admission.Config `yaml:"admission"`
	// How streams are pulled from upstream.
	Pull PullConfig `yaml:"pull"`
	// What happens to publishers at this edge: they are forwarded to an origin.
	Forward ForwardConfig `yaml:"forward"`
	// The cache of the HLS files that are fetched from upstream, per worker.
	HLSCache hls.CacheConfig `yaml:"hls_cache"`
	// How many connections the node takes, RTMP and HTTP together; per worker.
	Limits limit.Config `yaml:"limits"`
	// How the node is taken out of service.
	Drain drain.Config `yaml:"drain"`
	// The tenants by name. `__defaultVhost__` is the one of requests that name no other; it
	// exists also when the file does not name it.
	Vhosts vhost.Vhosts `yaml:"vhosts"`
}

// PullConfig rules how an edge gets streams from upstream.
type PullConfig struct {
	// What streams are pulled by: `rtmp` or `http-flv`. Upstreams of the other scheme are used
	// by a vhost that has no others. At an owner that discovery names, the address of this
	// protocol is taken, or else the other.
	Protocol Protocol `yaml:"protocol"`
	// How long a stream is still pulled after its last player left, from 0s to 1h.
	Linger time.Duration `yaml:"linger"`
	// How many redirects one pull follows, from 0 to 10. None leads to a node that the pull was
	// at already.
	MaxRedirects int `yaml:"max_redirects"`
	// How long one upstream may take to connect, and again to answer, from 50ms to 1m. Over
	// HTTP-FLV the answer may take `play.wait_publisher` longer.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// How long an upstream may send nothing before the next one is tried, from 500ms to 10m.
	// This is how a silent upstream is noticed; one that closes the connection is left at once.
	ReadTimeout time.Duration `yaml:"read_timeout"`
	// How long the machine of an upstream may leave unanswered what TCP sends it, data or
	// keep-alives, before the upstream is left, from 5s to 10m. This is how a machine that is gone
	// without a word is noticed, by pulls and by publishers that are forwarded.
	DeadAfter time.Duration `yaml:"dead_after"`
	// The pause before the second attempt, from 10ms to 1m; the first follows a failure at once.
	// It doubles up to retry_max; each pause is spread over its upper half.
	RetryMin time.Duration `yaml:"retry_min"`
	// The longest pause between two attempts, from retry_min to 10m.
	RetryMax time.Duration `yaml:"retry_max"`
	// How long players stay connected, from the last frame on, while no upstream can be had;
	// from 0s to 1h.
	GiveUp time.Duration `yaml:"give_up"`
	// How long players stay connected after upstream said that the stream has ended, in case
	// that it begins again; from 0s to 1h.
	EndAfter time.Duration `yaml:"end_after"`
	// How long an upstream that failed is tried last, from 0s to 1h.
	Eject time.Duration `yaml:"eject"`
	// How long the addresses of an upstream's name are used before it is looked up again, from
	// 1s to 24h. If that fails the old ones stay in use.
	ResolveTTL time.Duration `yaml:"resolve_ttl"`
}

// Protocol is what a stream is pulled by.
type Protocol string

// The protocols of pulls.
const (
	PullRTMP Protocol = "rtmp"
	PullFLV  Protocol = "http-flv"
)

// Choices implements configs.Chooser.
func (Protocol) Choices() []string { return []string{string(PullRTMP), string(PullFLV)} }

// ForwardConfig rules publishers at an edge.
type ForwardConfig struct {
	// How long a publisher is kept, and another upstream sought, after the upstream that it was
	// forwarded to was lost; from 0s to 1h. Upstreams that are no weir nodes, and so do not know
	// the publisher again, may need longer than `lease_ttl` of discovery.
	ResumeWindow time.Duration `yaml:"resume_window"`
	// How far (media time) forwarding may be behind the publisher before it jumps to the newest
	// key frame, from 500ms to 10m.
	MaxLag time.Duration `yaml:"max_lag"`
}

// Default returns the configuration of an edge whose file sets nothing.
func Default() Config {
	return Config{
		Role:        "edge",
		RTMP:        session.DefaultRTMPConfig(),
		HTTP:        session.DefaultHTTPConfig(),
		Admin:       admin.DefaultConfig(),
		Supervision: worker.DefaultConfig(),
		Discovery:   discovery.DefaultConfig(),
		Play:        session.DefaultConfig(5 * time.Second),
		Load:        load.DefaultConfig(),
		Admission:   admission.DefaultConfig(),
		Pull: PullConfig{
			Protocol:       PullRTMP,
			Linger:         5 * time.Second,
			MaxRedirects:   3,
			ConnectTimeout: 2 * time.Second,
			ReadTimeout:    15 * time.Second,
			DeadAfter:      5 * time.Second,
			RetryMin:       100 * time.Millisecond,
			RetryMax:       3 * time.Second,
			GiveUp:         30 * time.Second,
			EndAfter:       time.Second,
			Eject:          5 * time.Second,
			ResolveTTL:     10 * time.Second,
		},
		Forward:  ForwardConfig{ResumeWindow: 10 * time.Second, MaxLag: 10 * time.Second},
		HLSCache: hls.DefaultCacheConfig(),
		Limits:   limit.DefaultConfig(),
		Drain:    drain.DefaultConfig(),
		Vhosts:   vhost.Vhosts{},
	}
}

// Validate returns all that is wrong, each error beginning with the key.
func (c *Config) Validate() error {
	var errs []error
	add := func(key string, err error) { errs = append(errs, configs.Prefix(key, err)) }
	if c.Role != "edge" {
		errs = append(errs, fmt.Errorf("role: must be edge"))
	}
	if c.Workers < 0 || c.Workers > 256 {
		errs = append(errs, fmt.Errorf("workers: %d is not between 0 (one per core) and 256", c.Workers))
	}
	add("node", c.Node.Validate())
	add("rtmp", c.RTMP.Validate())
	add("http", c.HTTP.Validate())
	add("admin", c.Admin.Validate())
	errs = append(errs, c.Admin.CheckApart(session.Places(c.RTMP, c.HTTP)...))
	add("advertise", c.Advertise.Validate())
	add("supervision", c.Supervision.Validate())
	add("discovery", c.Discovery.Validate())
	add("play", c.Play.Validate())
	add("load", c.Load.Validate())
	add("admission", c.Admission.Validate())
	add("pull", c.Pull.Validate())
	add("forward", c.Forward.Validate())
	add("hls_cache", c.HLSCache.Validate())
	add("limits", c.Limits.Validate())
	add("drain", c.Drain.Validate())
	add("vhosts", c.Vhosts.Validate())
	errs = append(errs, c.apartFromUpstreams())
	return errors.Join(errs...)
}

func between(key string, d, low, high time.Duration) error {
	if d < low || d > high {
		return fmt.Errorf("%s: %s is not between %s and %s", key, plain(d), plain(low), plain(high))
	}
	return nil
}

// plain writes a duration as one would in the file: 1m instead of 1m0s.
func plain(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Validate returns all that is wrong, each error beginning with the key.
func (c *PullConfig) Validate() error {
	var errs []error
	if c.MaxRedirects < 0 || c.MaxRedirects > 10 {
		errs = append(errs, fmt.Errorf("max_redirects: %d is not between 0 and 10", c.MaxRedirects))
	}
	return errors.Join(append(errs,
		between("linger", c.Linger, 0, time.Hour),
		between("connect_timeout", c.ConnectTimeout, 50*time.Millisecond, time.Minute),
		between("read_timeout", c.ReadTimeout, 500*time.Millisecond, 10*time.Minute),
		between("dead_after", c.DeadAfter, 5*time.Second, 10*time.Minute),
		between("retry_min", c.RetryMin, 10*time.Millisecond, time.Minute),
		between("retry_max", c.RetryMax, c.RetryMin, 10*time.Minute),
		between("give_up", c.GiveUp, 0, time.Hour),
		between("end_after", c.EndAfter, 0, time.Hour),
		between("eject", c.Eject, 0, time.Hour),
		between("resolve_ttl", c.ResolveTTL, time.Second, 24*time.Hour),
	)...)
}

// Validate returns all that is wrong, each error beginning with the key.
func (c *ForwardConfig) Validate() error {
	return errors.Join(
		between("resume_window", c.ResumeWindow, 0, time.Hour),
		between("max_lag", c.MaxLag, 500*time.Millisecond, 10*time.Minute),
	)
}
