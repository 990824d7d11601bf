package admin

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"weir/configs"
	"weir/internal/node"
)

// Config is the part of a node's configuration that is about its admin server.
type Config struct {
	// The TCP address to listen on, as HOST:PORT. HOST is an IP address, `localhost`, or empty for
	// all addresses. Empty: no admin server.
	Listen string `yaml:"listen"`

	// What requests have to carry as `Authorization: Bearer TOKEN`, or as the password of HTTP
	// Basic with any user name, which is what a browser can do; visible ASCII. /healthz and
	// /readyz never ask for it. Empty: nobody is asked.
	Token configs.Secret `yaml:"token"`

	// Whether the profiles of Go's runtime are served at /debug/pprof/. They show memory of the
	// process: leave it off where others reach the address, or set a token.
	Pprof bool `yaml:"pprof"`
}

// DefaultConfig returns the configuration of a node whose file says nothing.
func DefaultConfig() Config {
	return Config{Listen: "127.0.0.1:9090"}
}

// Validate returns all that is wrong with c, joined; each message begins with
// the key that it is about.
func (c Config) Validate() error {
	var wrong []error
	if c.Listen != "" {
		wrong = append(wrong, node.CheckListen("listen", c.Listen))
	}
	// Header values are visible characters (RFC 6750, section 2.1, allows
	// fewer), and a space would end the token.
	if strings.ContainsFunc(string(c.Token), func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		wrong = append(wrong, errors.New("token: has characters other than visible ASCII"))
	}
	return errors.Join(wrong...)
}

// Place is an address that a node listens on beside that of its admin interface.
type Place struct {
	Key    string // in the node's configuration
	Listen string // empty for none
}

// CheckApart returns an error if two of the addresses that a node listens on are the
// same, or one takes in the other, as 0.0.0.0 does. It begins with the second one's
// key in the node's configuration. Addresses that cannot be listened on are passed
// over; a port of 0 is never the same as another.
func (c Config) CheckApart(places ...Place) error {
	places = append(places[:len(places):len(places)], Place{"admin.listen", c.Listen})
	var wrong []error
	for i, b := range places {
		for _, a := range places[:i] {
			if overlap(a.Listen, b.Listen) {
				wrong = append(wrong, fmt.Errorf("%s: %s is taken by %s (%s)", b.Key, b.Listen, a.Key, a.Listen))
				break
			}
		}
	}
	return errors.Join(wrong...)
}

// overlap reports whether no two servers can listen on a and b at the same time.
func overlap(a, b string) bool {
	if node.CheckListen("", a) != nil || node.CheckListen("", b) != nil {
		return false
	}
	ipA, portA := listenAddr(a)
	ipB, portB := listenAddr(b)
	// For Go either unspecified address is all of both families.
	return portA == portB && portA != 0 && (ipA == ipB || ipA.IsUnspecified() || ipB.IsUnspecified())
}

// listenAddr splits an address that node.CheckListen finds good.
func listenAddr(addr string) (ip netip.Addr, port int) {
	host, number, _ := net.SplitHostPort(addr)
	port, _ = net.LookupPort("tcp", number)
	switch host {
	case "":
		return netip.IPv6Unspecified(), port
	case "localhost":
		host = "127.0.0.1" // where Go listens
	}
	ip, _ = netip.ParseAddr(host)
	return ip.Unmap(), port
}
