package schedule

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// Networks is a table of regions by network: the longest prefix that holds an
// address decides. It never changes and is safe for concurrent use.
type Networks struct {
	// byBits has the networks of each length, the longest first; IPv4 and IPv6 apart,
	// because a prefix of one never holds an address of the other.
	v4, v6 []networksOf
}

type networksOf struct {
	bits    int
	regions map[netip.Prefix]string
}

// Limits of a table of networks.
const (
	maxNetworks  = 1_000_000
	maxRegionLen = 64
)

// ReadNetworks reads a table: lines of a network (10.0.0.0/8) or an address and the
// name of its region, with blanks between. A # begins a comment. A network that is
// given twice, or has bits behind its length, is an error with its line.
func ReadNetworks(r io.Reader) (*Networks, error) {
	t := &Networks{}
	in := bufio.NewScanner(r)
	line, count := 0, 0
	for in.Scan() {
		line++
		text, _, _ := strings.Cut(in.Text(), "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		fail := func(format string, args ...any) error {
			return fmt.Errorf("line %d: "+format, append([]any{line}, args...)...)
		}
		if len(words) != 2 {
			return nil, fail("want a network and a region, not %d words", len(words))
		}
		network, err := parseNetwork(words[0])
		switch {
		case err != nil:
			return nil, fail("%w", err)
		case len(words[1]) > maxRegionLen:
			return nil, fail("the name of the region is longer than %d bytes", maxRegionLen)
		case !t.add(network, words[1]):
			return nil, fail("network %s is given twice", network)
		}
		if count++; count > maxNetworks {
			return nil, fail("more than %d networks", maxNetworks)
		}
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", line+1, err)
	}
	return t, nil
}

func parseNetwork(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is neither a network (10.0.0.0/8) nor an address", s)
		}
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is neither a network (10.0.0.0/8) nor an address", s)
	}
	if p.Addr().Is4In6() {
		return p, fmt.Errorf("%q: write IPv4 networks as such", s)
	}
	if p.Masked() != p {
		return p, fmt.Errorf("%q has bits behind its length: %s is meant", s, p.Masked())
	}
	return p, nil
}

func (t *Networks) add(p netip.Prefix, region string) bool {
	list := &t.v6
	if p.Addr().Is4() {
		list = &t.v4
	}
	i, ok := slices.BinarySearchFunc(*list, p.Bits(), func(n networksOf, bits int) int { return bits - n.bits })
	if !ok {
		*list = slices.Insert(*list, i, networksOf{p.Bits(), make(map[netip.Prefix]string)})
	}
	if _, twice := (*list)[i].regions[p]; twice {
		return false
	}
	(*list)[i].regions[p] = region
	return true
}

// Region implements Locator.
func (t *Networks) Region(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	list := t.v6
	if addr.Is4() {
		list = t.v4
	}
	for _, n := range list {
		p, err := addr.Prefix(n.bits)
		if err != nil {
			return "" // not a valid address
		}
		if region, ok := n.regions[p]; ok {
			return region
		}
	}
	return ""
}
