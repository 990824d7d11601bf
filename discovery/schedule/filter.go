package schedule

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// query is a request with what the stages need to know of it.
type query struct {
	Request
	now     time.Time
	binding *binding
	oldest  int64 // of reports that count, in nanoseconds since 1970
	number  uint64
	region  word
	role    word
	speaks  protocols // that the session can use
	family  protocols // that it must have; 0: any
}

// filter writes into reasons why nodes cannot take a session, for those that no
// filter before it has rejected. A filter goes over all nodes itself, because a
// call for each of 1000 nodes costs more than what is looked at.
type filter interface {
	reject(q *query, nodes []node, reasons []Reason)
}

// Reason is why a node cannot take a session. Its text is that of the API.
type Reason uint8

// The reasons, in the order in which they are looked for: the first is told.
const (
	able      Reason = iota
	Starting         // it is not up yet
	Draining         //
	NoReport         // it has not told its load yet, and counts as full
	Silent           // its last report is older than report_ttl
	WrongRole        // not of the role that is wanted
	Excluded         // by the request
	NotGroup         // not of the groups of the vhost
	NotTier          // not of the tiers of the vhost
	NoAddress        // none of the protocol that is wanted
	OverHard         // by its report
)

var reasonTexts = [...]string{
	"", "starting", "draining", "no_report", "silent", "role", "excluded", "group", "tier", "address", "over_hard_limit",
}

// String returns the word of the API for the reason, "" for none.
func (r Reason) String() string { return reasonTexts[r] }

// MarshalText implements encoding.TextMarshaler.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Reason) UnmarshalText(text []byte) error {
	i := slices.Index(reasonTexts[:], string(text))
	if i < 0 {
		return fmt.Errorf("%q is not a reason", text)
	}
	*r = Reason(i)
	return nil
}

type stateFilter struct{}

func (stateFilter) reject(_ *query, nodes []node, reasons []Reason) {
	for i := range nodes {
		reasons[i] = nodes[i].state
	}
}

type reportFilter struct{}

func (reportFilter) reject(q *query, nodes []node, reasons []Reason) {
	for i := range nodes {
		if reasons[i] == able && nodes[i].seen < q.oldest {
			reasons[i] = Silent
		}
	}
}

type roleFilter struct{}

func (roleFilter) reject(q *query, nodes []node, reasons []Reason) {
	for i := range nodes {
		if reasons[i] == able && nodes[i].role != q.role {
			reasons[i] = WrongRole
		}
	}
}

type excludeFilter struct{}

func (excludeFilter) reject(q *query, nodes []node, reasons []Reason) {
	if len(q.Exclude) == 0 {
		return
	}
	for i := range nodes {
		if reasons[i] == able && nodes[i].excluded == q.number {
			reasons[i] = Excluded
		}
	}
}

type groupFilter struct{}

func (groupFilter) reject(q *query, nodes []node, reasons []Reason) {
	if len(q.binding.groups) == 0 {
		return
	}
	for i := range nodes {
		if reasons[i] == able && !slices.Contains(q.binding.groups, nodes[i].group) {
			reasons[i] = NotGroup
		}
	}
}

// tierFilter looks at edges: an origin is chosen by its role.
type tierFilter struct{}

func (tierFilter) reject(q *query, nodes []node, reasons []Reason) {
	if len(q.binding.tiers) == 0 {
		return
	}
	for i := range nodes {
		if reasons[i] == able && nodes[i].role == wordEdge && !slices.Contains(q.binding.tiers, nodes[i].tier) {
			reasons[i] = NotTier
		}
	}
}

type addressFilter struct{}

func (addressFilter) reject(q *query, nodes []node, reasons []Reason) {
	for i := range nodes {
		if reasons[i] == able && (nodes[i].speaks&q.speaks == 0 || nodes[i].speaks&q.family != q.family) {
			reasons[i] = NoAddress
		}
	}
}

// hardFilter looks at the report alone: what is reserved can put a node behind
// others, but nobody is refused for sessions that have not come yet.
type hardFilter struct{ limit float64 }

func (f hardFilter) reject(_ *query, nodes []node, reasons []Reason) {
	for i := range nodes {
		if reasons[i] == able && nodes[i].load >= f.limit {
			reasons[i] = OverHard
		}
	}
}

// protocols are those for which a node has an address, and what the address is.
type protocols uint8

const (
	speaksRTMP protocols = 1 << iota
	speaksHTTP
	isIPv4
	isIPv6
)

// Family is what the address of a node is, beside a name.
type Family protocols

// The families.
const (
	IPv4 = Family(isIPv4)
	IPv6 = Family(isIPv6)
)

// speaks looks at the RTMP address for the family, or else at the HTTP address.
func speaks(n *Node) (p protocols) {
	addr := n.RTMP
	if n.HTTP != "" {
		p |= speaksHTTP
	}
	if n.RTMP != "" {
		p |= speaksRTMP
	} else {
		addr = n.HTTP
	}
	if host, err := netip.ParseAddrPort(addr); err == nil {
		if host.Addr().Unmap().Is4() {
			p |= isIPv4
		} else {
			p |= isIPv6
		}
	}
	return p
}

// wanted returns the protocols that a request takes.
func wanted(protocol string) protocols {
	switch protocol {
	case "rtmp":
		return speaksRTMP
	case "http":
		return speaksHTTP
	}
	return speaksRTMP | speaksHTTP
}
