// Package node holds what the configuration of every node has: who it is, where
// it listens, and under which addresses others reach it.
package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Config says who the node is.
type Config struct {
	// The name of the node in the cluster: in logs, leases and redirects. Printable ASCII
	// without blanks, commas and double quotes; a discovery server takes at most 64 letters,
	// digits or `. _ : -`. Each node of a cluster needs its own. Empty: the host's name with the
	// role, as in `host7-edge`.
	ID string `yaml:"id"`
	// The group of nodes that it is in, as in `live-edges`. This, the keys below and its version
	// are announced with the node and listed by discovery. Words of up to 64 letters, digits or
	// `. _ : -`.
	Group string `yaml:"group"`
	// The region that the node is in, as in `eu-west`.
	Region string `yaml:"region"`
	// The tier that the node is in, as in `core` or `outer`.
	Tier string `yaml:"tier"`
	// What a gigabyte that the node sends costs, in whatever currency all nodes use; from 0 to
	// 1000000.
	Cost float64 `yaml:"cost"`
	// More of the kind, by name; values are up to 256 bytes of printable text, and there are at
	// most 24. `group`, `region`, `tier` and `cost` have keys of their own.
	Labels map[string]string `yaml:"labels"`
}

// Names of labels that have keys of their own.
const (
	LabelGroup  = "group"
	LabelRegion = "region"
	LabelTier   = "tier"
	LabelCost   = "cost" // per GB, a decimal number
)

// What discovery takes as an id.
const (
	maxID     = 64  // bytes
	maxValue  = 256 // bytes of a label's value
	maxLabels = 24
	idRunes   = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-"
)

// Validate returns all that is wrong, each error beginning with the key.
func (c *Config) Validate() error {
	var errs []error
	word := func(key, s string) {
		if len(s) > maxID {
			errs = append(errs, fmt.Errorf("%s: longer than %d bytes", key, maxID))
			return
		}
		for _, r := range s {
			if !strings.ContainsRune(idRunes, r) {
				errs = append(errs, fmt.Errorf("%s: %q has the character %q; letters, digits and . _ : - are allowed", key, s, r))
				return
			}
		}
	}
	word("id", c.ID)
	word(LabelGroup, c.Group)
	word(LabelRegion, c.Region)
	word(LabelTier, c.Tier)
	if !(c.Cost >= 0 && c.Cost <= 1e6) {
		errs = append(errs, fmt.Errorf("%s: %v is not between 0 and 1000000", LabelCost, c.Cost))
	}
	if len(c.Labels) > maxLabels {
		errs = append(errs, fmt.Errorf("labels: more than %d", maxLabels))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Labels)) {
		value := c.Labels[name]
		switch name {
		case "":
			errs = append(errs, errors.New("labels: a name is empty"))
			continue
		case LabelGroup, LabelRegion, LabelTier, LabelCost:
			errs = append(errs, fmt.Errorf("labels.%s: is set as node.%s", name, name))
			continue
		}
		word("labels."+name, name)
		if len(value) > maxValue || !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) {
			errs = append(errs, fmt.Errorf("labels.%s: is longer than %d bytes or not printable", name, maxValue))
		}
	}
	return errors.Join(errs...)
}

// AllLabels returns what discovery is told that the node is: Labels and those with
// keys of their own that are set; nil if there is nothing.
func (c *Config) AllLabels() map[string]string {
	all := map[string]string{}
	maps.Copy(all, c.Labels)
	for name, value := range map[string]string{LabelGroup: c.Group, LabelRegion: c.Region, LabelTier: c.Tier} {
		if value != "" {
			all[name] = value
		}
	}
	if c.Cost != 0 {
		all[LabelCost] = strconv.FormatFloat(c.Cost, 'f', -1, 64)
	}
	if len(all) == 0 {
		return nil
	}
	return all
}

// Name returns the id, or one made from the host's name and the role.
func (c *Config) Name(role string) string {
	if c.ID != "" {
		return c.ID
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	host = host[:min(len(host), maxID-1-len(role))]
	return strings.Map(func(r rune) rune {
		if !strings.ContainsRune(idRunes, r) {
			return '-'
		}
		return r
	}, host) + "-" + role
}

// Advertise is where other nodes and players reach this one, apart from where
// it listens.
type Advertise struct {
	// The address for RTMP, as HOST:PORT, that redirects and lookups name; not 0.0.0.0. Empty:
	// the address that the node listens on, which is of no use to others if that is 0.0.0.0.
	RTMP string `yaml:"rtmp"`
	// The address for HTTP-FLV and HLS, as HOST:PORT, that redirects and lookups name. Empty:
	// the address that the node listens on.
	HTTP string `yaml:"http"`
	// The address of the HTTP API, as HOST:PORT, that peers are told. Empty: the address for
	// HTTP, where an origin answers `/api/v1/clusters`.
	API string `yaml:"api"`
}

// Validate returns all that is wrong, each error beginning with the key.
func (a *Advertise) Validate() error {
	var errs []error
	for _, f := range []struct{ key, value string }{{"rtmp", a.RTMP}, {"http", a.HTTP}, {"api", a.API}} {
		if f.value == "" {
			continue
		}
		host, port, err := net.SplitHostPort(f.value)
		n, perr := strconv.ParseUint(port, 10, 16)
		ip := net.ParseIP(host)
		switch {
		case err != nil || perr != nil || n == 0 || ip == nil && !isHostName(host):
			errs = append(errs, fmt.Errorf("%s: %q is not HOST:PORT", f.key, f.value))
		case ip.IsUnspecified():
			errs = append(errs, fmt.Errorf("%s: %s is every address of this machine: give one that others can reach", f.key, host))
		}
	}
	return errors.Join(errs...)
}

// isHostName reports whether h can stand in a URL as a name.
func isHostName(h string) bool {
	return h != "" && len(h) <= 253 && !strings.ContainsFunc(h, func(r rune) bool {
		return r != '.' && r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

// Or returns a with the addresses that are empty taken from where the node
// listens.
func (a Advertise) Or(rtmp, http net.Addr) Advertise {
	if a.RTMP == "" {
		a.RTMP = rtmp.String()
	}
	if a.HTTP == "" {
		a.HTTP = http.String()
	}
	if a.API == "" {
		a.API = a.HTTP
	}
	return a
}

// CheckListen returns an error that begins with key unless addr can be listened
// on: HOST:PORT with a port of 0 for any that is free.
func CheckListen(key, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%s: %q is not HOST:PORT", key, addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%s: %q has no port between 0 and 65535", key, addr)
	}
	if host != "" && host != "localhost" && net.ParseIP(host) == nil {
		return fmt.Errorf("%s: %q is not an IP address to listen on", key, host)
	}
	return nil
}

// Listen opens a TCP listener. The error names the address and the key of the
// configuration that it is from.
func Listen(ctx context.Context, key, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err == nil {
		return l, nil
	}
	cause := err
	var call *os.SyscallError
	if errors.As(err, &call) {
		cause = call.Err // net repeats the address
	}
	return nil, fmt.Errorf("listen %s (%s): %w", addr, key, cause)
}
