package edge

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"weir/internal/admin"
	"weir/internal/session"
	"weir/internal/vhost"
)

// apartFromUpstreams returns an error for each upstream that is this edge itself: it
// would send its players and publishers in a circle. It is found out from what the file
// says, without looking up a name; what it misses is noticed when a request comes back.
func (c *Config) apartFromUpstreams() error {
	listens := session.Places(c.RTMP, c.HTTP)
	advertised := []admin.Place{{Key: "advertise.rtmp", Listen: c.Advertise.RTMP}, {Key: "advertise.http", Listen: c.Advertise.HTTP}}
	itself := func(up string) (admin.Place, bool) {
		for _, p := range listens {
			if reaches(up, p.Listen) {
				return p, true
			}
		}
		for _, p := range advertised {
			if samePlace(up, p.Listen) {
				return p, true
			}
		}
		return admin.Place{}, false
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(c.Vhosts)) {
		for i, text := range c.Vhosts[name].Upstreams {
			up, err := vhost.ParseUpstream(text)
			if err != nil {
				continue // said by its own check
			}
			if p, ok := itself(up.Addr); ok {
				errs = append(errs, fmt.Errorf("vhosts.%s.upstreams[%d]: %s is this edge itself, by %s (%s)", name, i, text, p.Key, p.Listen))
			}
		}
	}
	return errors.Join(errs...)
}

// reaches reports whether who dials addr on this machine comes to the server that
// listens on listen. A port of 0 is any that is free, and so none that can be named.
func reaches(addr, listen string) bool {
	host, port, err := net.SplitHostPort(listen)
	if err != nil || port == "0" {
		return false
	}
	upHost, upPort, _ := net.SplitHostPort(addr)
	if upPort != port {
		return false
	}
	up := dialed(upHost)
	switch ip, _ := netip.ParseAddr(host); {
	case host == "" || ip.IsUnspecified(): // for Go all addresses of both families
		return up.IsLoopback()
	default:
		return up.IsValid() && up == dialed(host)
	}
}

// dialed returns the address of this machine or another that a host is, as Go dials it;
// the zero Addr for a name that would have to be looked up.
func dialed(host string) netip.Addr {
	if plainHost(host) == "localhost" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	ip, _ := netip.ParseAddr(host)
	switch ip = ip.Unmap(); ip {
	case netip.IPv4Unspecified():
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case netip.IPv6Unspecified():
		return netip.IPv6Loopback()
	}
	return ip
}

// samePlace reports whether two HOST:PORT are the same by their text, apart from the
// forms of an IP address and the letter case of a name.
func samePlace(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB {
		return false
	}
	if ip := dialed(hostA); ip.IsValid() {
		return ip == dialed(hostB)
	}
	return plainHost(hostA) == plainHost(hostB)
}

func plainHost(h string) string { return strings.ToLower(strings.TrimSuffix(h, ".")) }
