package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/miekg/dns"

	"weir/discovery/schedule"
)

// Config configures the DNS server.
type Config struct {
	// The address that answers DNS over UDP and TCP, as host:port. Empty: there is none.
	Listen string `yaml:"listen"`
	// The zones that the server is the authority for.
	Zones []Zone `yaml:"zones"`
	// How long an answer holds, from 1s to 10m. Resolvers keep it for all their clients.
	TTL time.Duration `yaml:"ttl"`
	// The largest number of addresses in an answer, from 1 to 8.
	Answers int `yaml:"answers"`
	// How many UDP questions one network (IPv4 /24, IPv6 /64) may ask in a second, from 1 to
	// 1000000. Further ones are dropped, or told to come over TCP, which proves where they come
	// from: a forged address gets no flood.
	Rate int `yaml:"rate"`
	// How many UDP questions one network may ask at once, from 1 to 1000000.
	Burst int `yaml:"burst"`
	// The largest number of TCP connections, from 1 to 100000; further ones are closed at once.
	MaxConnections int `yaml:"max_connections"`
	// How long a TCP connection may be idle, from 1s to 1m.
	Timeout time.Duration `yaml:"timeout"`
}

// Zone is a zone that the server is the authority for. Below each name of it are
// `_rtmp._tcp` and `_http._tcp` with SRV records, and `NODE.nodes.ZONE` is the address
// of a node.
type Zone struct {
	// The name of the zone, as in cdn.example.com.
	Name string `yaml:"name"`
	// The names of the zone's servers. One inside the zone needs its addresses in `records`.
	NS []string `yaml:"ns"`
	// The mailbox of who is responsible, as a name: hostmaster.example.com.
	Mailbox string `yaml:"mailbox"`
	// The names that stand for nodes, within the zone (`play` is play.cdn.example.com, `@` the zone
	// itself).
	Hosts map[string]Host `yaml:"hosts"`
	// Names with addresses of their own, within the zone.
	Records map[string][]netip.Addr `yaml:"records"`
}

// Host is a name that stands for nodes.
type Host struct {
	// The vhost for which nodes are chosen. Empty: the name itself.
	Vhost string `yaml:"vhost"`
	// What clients of the name do: `play` or `publish`.
	Role Role `yaml:"role"`
}

// SetDefaults implements configs.Defaulter.
func (h *Host) SetDefaults() { h.Role = Role(schedule.Play) }

// Role is what clients of a name do.
type Role schedule.Action

// Choices implements configs.Chooser.
func (Role) Choices() []string { return []string{string(schedule.Play), string(schedule.Publish)} }

// DefaultConfig returns the configuration without keys: nothing listens.
func DefaultConfig() Config {
	return Config{TTL: 10 * time.Second, Answers: 2, Rate: 200, Burst: 1000, MaxConnections: 1000, Timeout: 5 * time.Second}
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
		if len(c.Zones) == 0 {
			bad("zones", "a server without a zone answers nothing")
		}
	}
	seen := map[string]bool{}
	for i, z := range c.Zones {
		at := fmt.Sprintf("zones[%d].", i)
		z.validate(func(key, format string, args ...any) { bad(at+key, format, args...) })
		if name := dns.CanonicalName(z.Name); seen[name] {
			bad(at+"name", "%s is given twice", z.Name)
		} else {
			seen[name] = true
		}
	}
	if c.TTL < time.Second || c.TTL > 10*time.Minute {
		bad("ttl", "%v is not between 1s and 10m", c.TTL)
	}
	if c.Answers < 1 || c.Answers > 8 {
		bad("answers", "%d is not between 1 and 8", c.Answers)
	}
	for _, n := range [...]struct {
		key    string
		n, max int
	}{{"rate", c.Rate, 1_000_000}, {"burst", c.Burst, 1_000_000}, {"max_connections", c.MaxConnections, 100_000}} {
		if n.n < 1 || n.n > n.max {
			bad(n.key, "%d is not between 1 and %d", n.n, n.max)
		}
	}
	if c.Timeout < time.Second || c.Timeout > time.Minute {
		bad("timeout", "%v is not between 1s and 1m", c.Timeout)
	}
	return errors.Join(errs...)
}

func (z *Zone) validate(bad func(key, format string, args ...any)) {
	if !isName(z.Name) {
		bad("name", "%q is not a domain name", z.Name)
		return
	}
	if len(z.NS) == 0 {
		bad("ns", "a zone needs the name of a server")
	}
	for i, ns := range z.NS {
		if !isName(ns) {
			bad(fmt.Sprintf("ns[%d]", i), "%q is not a domain name", ns)
		}
	}
	if !isName(z.Mailbox) {
		bad("mailbox", "%q is not a name such as hostmaster.example.com", z.Mailbox)
	}
	if len(z.Hosts) == 0 {
		bad("hosts", "no name stands for nodes")
	}
	below := func(key, name string) {
		if name != "@" && !isName(name+"."+z.Name) {
			bad(key+"."+name, "is not a name within the zone")
		}
	}
	for name, h := range z.Hosts {
		below("hosts", name)
		if h.Role != Role(schedule.Play) && h.Role != Role(schedule.Publish) {
			bad("hosts."+name+".role", "%q is not play or publish", h.Role)
		}
		if _, twice := z.Records[name]; twice {
			bad("records."+name, "stands for nodes as well")
		}
	}
	for name, addrs := range z.Records {
		below("records", name)
		if len(addrs) == 0 || len(addrs) > 16 {
			bad("records."+name, "1 to 16 addresses are needed")
		}
		for _, a := range addrs {
			if !a.IsValid() || a.Zone() != "" {
				bad("records."+name, "%v is not an address", a)
			}
		}
	}
}

// isName reports whether s is a domain name with two labels or more.
func isName(s string) bool {
	labels, ok := dns.IsDomainName(s)
	if !ok || labels < 2 || len(s) > 253 {
		return false
	}
	for _, r := range s {
		if r <= ' ' || r > '~' || r == '\\' || r == '/' || r == '@' {
			return false
		}
	}
	return true
}
