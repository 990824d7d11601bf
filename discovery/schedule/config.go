package schedule

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"weir/internal/units"
)

// Config configures a scheduler.
type Config struct {
	Binding `yaml:",inline"`
	// How the sessions of a vhost are placed, by its name: what it does not set is as above.
	Vhosts map[string]Binding `yaml:"vhosts"`
	// What comes before the policy, the most important first: `region` (nodes in the client's
	// region, then those that `near` lists, then others), `stream` (nodes that others were sent to
	// for the same stream; for publishers its owner), `cost` (nodes with the lowest label cost).
	// Nodes over the soft limit come after all others in any case.
	Prefer []PreferenceName `yaml:"prefer"`
	// The role of the nodes that players are sent to: `edge` or `origin`.
	PlayFrom NodeRole `yaml:"play_from"`
	// The role of the nodes that publishers are sent to: `edge` or `origin`.
	PublishTo NodeRole `yaml:"publish_to"`
	// The effective load at which a node is chosen only if all others have it too, from 0.01 to 1.
	SoftLimit float64 `yaml:"soft_limit"`
	// The effective load at which a node is not chosen at all, from soft_limit to 10.
	HardLimit float64 `yaml:"hard_limit"`
	// How far below soft_limit a node's load must fall before it is chosen like others again, from
	// 0 to soft_limit.
	Hysteresis float64 `yaml:"hysteresis"`
	// How old the last report of a node may be, from 100ms to 1m. An older one is a node that is
	// gone.
	ReportTTL time.Duration `yaml:"report_ttl"`
	// For the preference `stream`: how much more load than the least loaded a node may have to be
	// preferred, from 0 to 1. The smaller it is, the more evenly a crowd spreads, and the more
	// nodes pull its stream.
	StreamSlack float64 `yaml:"stream_slack"`
	// For the preference `region`: which regions come next if there is no room in a client's own,
	// by that region.
	Near map[string][]string `yaml:"near"`
	// The bit rate that a session is expected to take before nodes have reported any sessions, from
	// 1kbit to 1Gbit.
	DefaultBitRate units.BitRate `yaml:"default_bit_rate"`
	// What a node can send if it does not say, from 1Mbit to 10000Gbit.
	DefaultCapacity units.BitRate `yaml:"default_capacity"`
}

// Binding says how sessions are placed.
type Binding struct {
	// The policy: `round_robin`, `least_load` (the less loaded of two taken at random), `pack` (fill
	// one node first), `most_used`, `random`, `weighted` (by the label weight, else the capacity) or
	// `hash` (one node for each stream, more when it is busy). In a vhost, empty means the general
	// one.
	Policy PolicyName `yaml:"policy"`
	// The groups of nodes (their label group) that take the sessions. Empty means all, or in a vhost
	// the general ones. A node without the label is in the group "".
	Groups []string `yaml:"groups"`
	// The tiers of edges (their label tier) that take the sessions. Empty means all, or in a vhost
	// the general ones.
	Tiers []string `yaml:"tiers"`
}

// NodeRole is a role of nodes that take sessions.
type NodeRole string

// Choices implements configs.Chooser.
func (NodeRole) Choices() []string { return []string{"edge", "origin"} }

// DefaultConfig returns the configuration of a scheduler without keys.
func DefaultConfig() Config {
	return Config{
		Binding:     Binding{Policy: LeastLoad},
		Prefer:      []PreferenceName{PreferRegion, PreferStream, PreferCost},
		PlayFrom:    "edge",
		PublishTo:   "origin",
		SoftLimit:   0.80,
		HardLimit:   0.90,
		Hysteresis:  0.05,
		ReportTTL:   3 * time.Second,
		StreamSlack: 0.05,

		DefaultBitRate:  2 * units.Mbit,
		DefaultCapacity: units.Gbit,
	}
}

func (c *Config) roleFor(a Action) string {
	if a == Publish {
		return string(c.PublishTo)
	}
	return string(c.PlayFrom)
}

// Validate returns all errors of c, each with its key in front.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf(key+": "+format, args...))
	}
	within := func(key string, x, low, high float64) {
		if infinite(x) || x < low || x > high {
			bad(key, "%v is not between %v and %v", x, low, high)
		}
	}
	c.Binding.validate("", false, bad)
	for _, name := range slices.Sorted(maps.Keys(c.Vhosts)) {
		c.Vhosts[name].validate("vhosts."+name+".", true, bad)
	}
	for i, p := range c.Prefer {
		if !slices.Contains(p.Choices(), string(p)) {
			bad(fmt.Sprintf("prefer[%d]", i), "%q is not a preference", p)
		}
		if slices.Contains(c.Prefer[:i], p) {
			bad(fmt.Sprintf("prefer[%d]", i), "%s is given twice", p)
		}
	}
	for _, r := range [...]struct {
		key  string
		role NodeRole
	}{{"play_from", c.PlayFrom}, {"publish_to", c.PublishTo}} {
		if !slices.Contains(r.role.Choices(), string(r.role)) {
			bad(r.key, "%q is not edge or origin", r.role)
		}
	}
	within("soft_limit", c.SoftLimit, 0.01, 1)
	within("hard_limit", c.HardLimit, c.SoftLimit, 10)
	within("hysteresis", c.Hysteresis, 0, c.SoftLimit)
	within("stream_slack", c.StreamSlack, 0, 1)
	if c.ReportTTL < 100*time.Millisecond || c.ReportTTL > time.Minute {
		bad("report_ttl", "%v is not between 100ms and 1m", c.ReportTTL)
	}
	if c.DefaultBitRate < units.Kbit || c.DefaultBitRate > maxRate {
		bad("default_bit_rate", "%v is not between 1kbit and 1Gbit", c.DefaultBitRate)
	}
	if c.DefaultCapacity < units.Mbit || c.DefaultCapacity > 10_000*units.Gbit {
		bad("default_capacity", "%v is not between 1Mbit and 10000Gbit", c.DefaultCapacity)
	}
	return errors.Join(errs...)
}

func (b Binding) validate(at string, inherits bool, bad func(key, format string, args ...any)) {
	if !slices.Contains(b.Policy.Choices(), string(b.Policy)) && !(inherits && b.Policy == "") {
		bad(at+"policy", "%q is not a policy", b.Policy)
	}
}
