package origin

import (
	"errors"
	"fmt"
	"time"

	"weir/configs"
	"weir/discovery"
	"weir/internal/admin"
	"weir/internal/admission"
	"weir/internal/drain"
	"weir/internal/limit"
	"weir/internal/load"
	"weir/internal/node"
	"weir/internal/session"
	"weir/internal/vhost"
)

// Config is the configuration of an origin.
type Config struct {
	// What the file configures: `origin`.
	Role string `yaml:"role"`
	// Who the node is.
	Node node.Config `yaml:"node"`
	// The RTMP door: publishers, and edges and players that pull.
	RTMP session.RTMPConfig `yaml:"rtmp"`
	// The HTTP door: HTTP-FLV, WebSocket-FLV and HLS, and the question of other origins (weir or
	// SRS) for the owner of a stream, `/api/v1/clusters`.
	HTTP session.HTTPConfig `yaml:"http"`
	// The admin interface of the node: metrics, health, API and console.
	Admin admin.Config `yaml:"admin"`
	// Under which addresses others reach the node: these are what redirects and lookups name.
	Advertise node.Advertise `yaml:"advertise"`
	// The directory in which the origins of a cluster agree on the owner of a stream. Without it
	// the origin owns whatever is published to it.
	Discovery discovery.Config `yaml:"discovery"`
	// What players and pulling edges may cost.
	Play session.Config `yaml:"play"`
	// How busy the node counts, which discovery is told.
	Load load.Config `yaml:"load"`
	// How many newcomers the node lets in, and what it does when it is full.
	Admission admission.Config `yaml:"admission"`
	// What happens to the streams of publishers.
	Publish PublishConfig `yaml:"publish"`
	// How many connections the node takes, RTMP and HTTP together.
	Limits limit.Config `yaml:"limits"`
	// How the node is taken out of service.
	Drain drain.Config `yaml:"drain"`
	// The tenants by name. `__defaultVhost__` is the one of requests that name no other; it
	// exists also when the file does not name it.
	Vhosts vhost.Vhosts `yaml:"vhosts"`
}

// PublishConfig rules publishers.
type PublishConfig struct {
	// How long a stream keeps its name and its players after its publisher was lost, from 0s to
	// 1h; meanwhile another origin may take the name. A publisher that unpublishes ends its
	// stream at once.
	ResumeWindow time.Duration `yaml:"resume_window"`
	// While the node is over `load.soft_limit` it moves one stream in this time to an origin
	// with less load, from 1s to 10m: publishers that edges forward first, which notice nothing, then
	// encoders that understand a request to connect elsewhere. 0s moves none.
	MoveEvery time.Duration `yaml:"move_every"`
	// Whether encoders that say no more than `supportsGoAway` are asked to connect again, by a
	// message of type 0x20, when their stream is to be moved. OBS 27.2 to 29 say so and do, by the
	// URL that they have, with a gap of some tenths of a second. `false`: they stay.
	GoAway bool `yaml:"go_away"`
}

// Default returns the configuration of an origin whose file sets nothing.
func Default() Config {
	return Config{
		Role:      "origin",
		RTMP:      session.DefaultRTMPConfig(),
		HTTP:      session.DefaultHTTPConfig(),
		Admin:     admin.DefaultConfig(),
		Discovery: discovery.DefaultConfig(),
		Play:      session.DefaultConfig(0),
		Load:      load.DefaultConfig(),
		Admission: admission.DefaultConfig(),
		Publish:   PublishConfig{ResumeWindow: 10 * time.Second, MoveEvery: 5 * time.Second, GoAway: true},
		Limits:    limit.DefaultConfig(),
		Drain:     drain.DefaultConfig(),
		Vhosts:    vhost.Vhosts{},
	}
}

// Validate returns all that is wrong, each error beginning with the key.
func (c *Config) Validate() error {
	var errs []error
	add := func(key string, err error) { errs = append(errs, configs.Prefix(key, err)) }
	if c.Role != "origin" {
		errs = append(errs, fmt.Errorf("role: must be origin"))
	}
	if d := c.Publish.ResumeWindow; d < 0 || d > time.Hour {
		errs = append(errs, fmt.Errorf("publish.resume_window: %v is not between 0s and 1h", d))
	}
	if d := c.Publish.MoveEvery; d != 0 && (d < time.Second || d > 10*time.Minute) {
		errs = append(errs, fmt.Errorf("publish.move_every: %v is neither 0s nor between 1s and 10m", d))
	}
	add("node", c.Node.Validate())
	add("rtmp", c.RTMP.Validate())
	add("http", c.HTTP.Validate())
	add("admin", c.Admin.Validate())
	errs = append(errs, c.Admin.CheckApart(session.Places(c.RTMP, c.HTTP)...))
	add("advertise", c.Advertise.Validate())
	add("discovery", c.Discovery.Validate())
	add("play", c.Play.Validate())
	add("load", c.Load.Validate())
	add("admission", c.Admission.Validate())
	add("limits", c.Limits.Validate())
	add("drain", c.Drain.Validate())
	add("vhosts", c.Vhosts.Validate())
	return errors.Join(errs...)
}
