package edge

import (
	"errors"
	"fmt"
	"time"

	"weir/configs"
	"weir/discovery"
	"weir/hls"
	"weir/internal/admin"
	"weir/internal/httpserver"
	"weir/internal/limit"
	"weir/internal/node"
	"weir/internal/rtmp"
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
	// RTMP: players, and publishers that are forwarded.
	RTMP RTMPConfig `yaml:"rtmp"`
	// HTTP: HTTP-FLV, WebSocket-FLV and HLS players.
	HTTP HTTPConfig `yaml:"http"`
	// Admin interface of the node: metrics, health, API.
	Admin admin.Config `yaml:"admin"`
	// Under which addresses others reach the node.
	Advertise node.Advertise `yaml:"advertise"`
	// Worker processes that share the node's ports; 0 means one per core.
	Workers int `yaml:"workers"`
	// How the worker processes are supervised.
	Supervision worker.Config `yaml:"supervision"`
	// Directory that says which origin owns a stream. Without it the vhosts' upstreams are asked.
	Discovery discovery.Config `yaml:"discovery"`
	// Players.
	Play session.Config `yaml:"play"`
	// Pulls from upstream.
	Pull PullConfig `yaml:"pull"`
	// Publishers that are forwarded.
	Forward ForwardConfig `yaml:"forward"`
	// HLS files fetched from upstream.
	HLSCache hls.CacheConfig `yaml:"hls_cache"`
	// Limits on connections, per worker.
	Limits limit.Config `yaml:"limits"`
	// Tenants by name. `__defaultVhost__` is the one of requests that name no other.
	Vhosts vhost.Vhosts `yaml:"vhosts"`
}

// RTMPConfig is the RTMP door.
type RTMPConfig struct {
	// Address to listen on, as HOST:PORT.
	Listen string `yaml:"listen"`

	rtmp.ServerConfig `yaml:",inline"`
}

// HTTPConfig is the HTTP door.
type HTTPConfig struct {
	// Address to listen on, as HOST:PORT.
	Listen string `yaml:"listen"`

	httpserver.Config `yaml:",inline"`
}

// PullConfig rules how an edge gets streams from upstream.
type PullConfig struct {
	// Protocol of pulls: `rtmp` or `http-flv`. Upstreams of the other scheme are used when a vhost has no others.
	Protocol Protocol `yaml:"protocol"`
	// How long a stream is still pulled after its last player left.
	Linger time.Duration `yaml:"linger"`
	// How many redirects one pull follows, never to a node it was at.
	MaxRedirects int `yaml:"max_redirects"`
	// How long one upstream may take to connect and to answer.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// How long an upstream may send nothing before the next one is tried.
	ReadTimeout time.Duration `yaml:"read_timeout"`
	// Pause before the second attempt; the first follows a failure at once. Doubles up to retry_max, with jitter.
	RetryMin time.Duration `yaml:"retry_min"`
	// Longest pause between two attempts.
	RetryMax time.Duration `yaml:"retry_max"`
	// How long players stay connected while no upstream can be had.
	GiveUp time.Duration `yaml:"give_up"`
	// How long players stay connected after upstream said that the stream has ended, in case that it begins again.
	EndAfter time.Duration `yaml:"end_after"`
	// How long an upstream that failed is tried last.
	Eject time.Duration `yaml:"eject"`
	// How long the addresses of an upstream's name are used before it is looked up again.
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
	// How long a publisher is kept, and another upstream sought, after the upstream that it was forwarded to was lost.
	ResumeWindow time.Duration `yaml:"resume_window"`
	// How far (media time) the forwarding may be behind the publisher before it jumps to the newest key frame.
	MaxLag time.Duration `yaml:"max_lag"`
}

// Default returns the configuration of an edge whose file sets nothing.
func Default() Config {
	return Config{
		Role:        "edge",
		RTMP:        RTMPConfig{Listen: "127.0.0.1:1935", ServerConfig: rtmp.DefaultServerConfig()},
		HTTP:        HTTPConfig{Listen: "127.0.0.1:8080", Config: httpserver.DefaultConfig()},
		Admin:       admin.DefaultConfig(),
		Supervision: worker.DefaultConfig(),
		Discovery:   discovery.DefaultConfig(),
		Play:        session.DefaultConfig(5 * time.Second),
		Pull: PullConfig{
			Protocol:       PullRTMP,
			Linger:         5 * time.Second,
			MaxRedirects:   3,
			ConnectTimeout: 2 * time.Second,
			ReadTimeout:    10 * time.Second,
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
	errs = append(errs, node.CheckListen("rtmp.listen", c.RTMP.Listen), node.CheckListen("http.listen", c.HTTP.Listen))
	add("node", c.Node.Validate())
	add("rtmp", c.RTMP.ServerConfig.Validate())
	add("http", c.HTTP.Config.Validate())
	add("admin", c.Admin.Validate())
	add("advertise", c.Advertise.Validate())
	add("supervision", c.Supervision.Validate())
	add("discovery", c.Discovery.Validate())
	add("play", c.Play.Validate())
	add("pull", c.Pull.Validate())
	add("forward", c.Forward.Validate())
	add("hls_cache", c.HLSCache.Validate())
	add("limits", c.Limits.Validate())
	add("vhosts", c.Vhosts.Validate())
	return errors.Join(errs...)
}

func between(key string, d, low, high time.Duration) error {
	if d < low || d > high {
		return fmt.Errorf("%s: %v is not between %v and %v", key, d, low, high)
	}
	return nil
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
