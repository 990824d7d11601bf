// Package discoverynode is the discovery server as a node: its configuration
// file, its admin interface, and the directory on the network. What it serves is
// package discovery, which knows neither of them.
package discoverynode

import (
	"errors"

	"weir/configs"
	"weir/discovery"
	"weir/discovery/autoscale"
	"weir/discovery/dns"
	"weir/discovery/httpdns"
	"weir/discovery/schedule"
	"weir/internal/admin"
	"weir/internal/node"
)

// Config is the configuration of a discovery server.
type Config struct {
	// What the file configures: `discovery`.
	Role string `yaml:"role"`
	// Who the node is.
	Node node.Config `yaml:"node"`
	// The admin interface of the node: metrics, health, API and console. It is off by default; give it an address of its own. The directory's API is answered at `listen`, not here.
	Admin admin.Config `yaml:"admin"`

	discovery.ServerConfig `yaml:",inline"`

	// How nodes are chosen for players and publishers.
	Schedule ScheduleConfig `yaml:"schedule"`
	// HTTP-DNS: where clients are told over HTTP which nodes to use.
	Resolve httpdns.Config `yaml:"resolve"`
	// DNS: names that stand for nodes.
	DNS dns.Config `yaml:"dns"`
	// Machines are started and stopped by load. Of several discovery servers over one directory one
	// acts.
	Autoscale autoscale.Config `yaml:"autoscale"`
}

// ScheduleConfig configures scheduling.
type ScheduleConfig struct {
	schedule.Config `yaml:",inline"`
	// A file that says in which region a client is: lines of a network or address and the name of
	// the region, as in `10.1.0.0/16 eu`. The longest network that holds the client's address
	// decides; `#` begins a comment. It is read when the server starts. Empty: there is none.
	Networks string `yaml:"networks"`
	// A MaxMind database for clients that `networks` does not have.
	MaxMind MaxMindConfig `yaml:"maxmind"`
}

// MaxMindConfig configures a database of regions.
type MaxMindConfig struct {
	// A file in MaxMind's format with countries or cities, as in GeoLite2-Country.mmdb. It is opened
	// when the server starts. Empty: there is none.
	File string `yaml:"file"`
	// Which region a code stands for: the ISO code of a country (DE), or else of a continent (EU).
	// Empty: the codes of the continents are the regions.
	Regions map[string]string `yaml:"regions"`
}

// Default returns the configuration of a discovery server whose file sets
// nothing. It has no admin interface.
func Default() Config {
	return Config{
		Role: "discovery", ServerConfig: discovery.DefaultServerConfig(),
		Schedule: ScheduleConfig{Config: schedule.DefaultConfig()}, Resolve: httpdns.DefaultConfig(), DNS: dns.DefaultConfig(),
		Autoscale: autoscale.DefaultConfig(),
	}
}

// Validate returns all that is wrong, each error beginning with the key.
func (c *Config) Validate() error {
	var role error
	if c.Role != "discovery" {
		role = errors.New("role: must be discovery")
	}
	return errors.Join(role, configs.Prefix("node", c.Node.Validate()), configs.Prefix("admin", c.Admin.Validate()), c.ServerConfig.Validate(),
		configs.Prefix("schedule", c.Schedule.Validate()), configs.Prefix("resolve", c.Resolve.Validate()), configs.Prefix("dns", c.DNS.Validate()),
		configs.Prefix("autoscale", c.Autoscale.Validate()))
}
