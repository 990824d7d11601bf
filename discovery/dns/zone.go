package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"weir/discovery/schedule"
)

// zone is a Zone as it is looked things up in: all names are canonical.
type zone struct {
	name    string
	ns      []string
	mailbox string
	hosts   map[string]schedule.Request // what is asked of the scheduler, by name
	records map[string][]netip.Addr
	// between are the names that exist because of what is below them.
	between map[string]bool
}

// nodesLabel is the label below which each node has its name.
const nodesLabel = "nodes"

// services are the names of services and the protocols of nodes behind them.
var services = map[string]string{"_rtmp._tcp.": "rtmp", "_http._tcp.": "http"}

func newZone(z Zone) zone {
	out := zone{
		name: dns.CanonicalName(z.Name), mailbox: dns.CanonicalName(z.Mailbox),
		hosts: make(map[string]schedule.Request), records: make(map[string][]netip.Addr), between: make(map[string]bool),
	}
	for _, ns := range z.NS {
		out.ns = append(out.ns, dns.CanonicalName(ns))
	}
	full := func(name string) string {
		if name == "@" {
			return out.name
		}
		return dns.CanonicalName(name + "." + out.name)
	}
	for name, h := range z.Hosts {
		at := full(name)
		vhost := h.Vhost
		if vhost == "" {
			vhost = strings.TrimSuffix(at, ".")
		}
		out.hosts[at] = schedule.Request{Action: schedule.Action(h.Role), Vhost: vhost}
		out.above(at)
		out.between["_tcp."+at] = true
	}
	for name, addrs := range z.Records {
		out.records[full(name)] = addrs
		out.above(full(name))
	}
	out.between[nodesLabel+"."+out.name] = true
	return out
}

// above notes the names between a name and the zone.
func (z *zone) above(name string) {
	for name != z.name {
		_, rest, ok := strings.Cut(name, ".")
		if !ok || rest == z.name {
			return
		}
		z.between[rest] = true
		name = rest
	}
}

// zoneOf returns the zone that a canonical name is in: the longest.
func (s *Server) zoneOf(name string) *zone {
	var found *zone
	for i := range s.zones {
		z := &s.zones[i]
		if dns.IsSubDomain(z.name, name) && (found == nil || len(z.name) > len(found.name)) {
			found = z
		}
	}
	return found
}

// answer makes the answer to a question and says what it is counted as.
func (s *Server) answer(q *dns.Msg, remote netip.Addr) (*dns.Msg, string) {
	m := new(dns.Msg)
	if len(q.Question) != 1 {
		m.SetRcode(q, dns.RcodeFormatError)
		return m, malformed
	}
	m.SetReply(q)
	m.Authoritative = true
	client, scoped := remote, (*dns.EDNS0_SUBNET)(nil)
	if o := q.IsEdns0(); o != nil {
		m.SetEdns0(maxUDP, false)
		if o.Version() != 0 {
			m.Authoritative = false
			m.Rcode = dns.RcodeBadVers
			return m, malformed
		}
		subnet, err := clientSubnet(o)
		if err != nil {
			m.Authoritative = false
			m.Rcode = dns.RcodeFormatError
			return m, malformed
		}
		if subnet != nil {
			if a, ok := netip.AddrFromSlice(subnet.Address); ok && subnet.SourceNetmask > 0 {
				client = a.Unmap()
			}
			scoped = &dns.EDNS0_SUBNET{
				Code: dns.EDNS0SUBNET, Family: subnet.Family, SourceNetmask: subnet.SourceNetmask, Address: subnet.Address,
			}
			reply := m.IsEdns0()
			reply.Option = append(reply.Option, scoped)
		}
	}
	question := q.Question[0]
	name := dns.CanonicalName(question.Name)
	z := s.zoneOf(name)
	if z == nil || question.Qclass != dns.ClassINET || question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR {
		m.Authoritative = false
		m.Rcode = dns.RcodeRefused
		return m, refused
	}
	if question.Qtype == dns.TypeANY { // RFC 8482
		m.Answer = []dns.RR{&dns.HINFO{Hdr: s.header(question.Name, dns.TypeHINFO), Cpu: "RFC8482"}}
		return m, answered
	}
	r := reply{s: s, z: z, m: m, name: question.Name, key: name, qtype: question.Qtype, client: client}
	exists, placed, err := r.fill()
	if scoped != nil && placed {
		// The answer is for that network. For names without a choice the scope is 0:
		// they are the same for everybody.
		scoped.SourceScope = scoped.SourceNetmask
	}
	switch {
	case err != nil:
		// Nobody may keep this; the resolver asks again, or another server.
		m.Authoritative = false
		m.Answer, m.Extra = nil, keepEdns(m.Extra)
		m.Rcode = dns.RcodeServerFailure
		return m, noNode
	case len(m.Answer) > 0:
		return m, answered
	case exists:
		m.Ns = []dns.RR{s.soa(z)}
		return m, noData
	}
	m.Rcode = dns.RcodeNameError
	m.Ns = []dns.RR{s.soa(z)}
	return m, noName
}

func keepEdns(extra []dns.RR) []dns.RR {
	for _, rr := range extra {
		if rr.Header().Rrtype == dns.TypeOPT {
			return []dns.RR{rr}
		}
	}
	return nil
}

// clientSubnet returns the client's network as its resolver tells it, if it does.
func clientSubnet(o *dns.OPT) (*dns.EDNS0_SUBNET, error) {
	var found *dns.EDNS0_SUBNET
	for _, option := range o.Option {
		e, ok := option.(*dns.EDNS0_SUBNET)
		if !ok {
			continue
		}
		bits := map[uint16]uint8{0: 0, 1: 32, 2: 128}
		most, known := bits[e.Family]
		if found != nil || !known || e.SourceNetmask > most || e.SourceScope != 0 {
			return nil, errors.New("bad client subnet")
		}
		found = e
	}
	return found, nil
}

// reply fills the answer to one question.
type reply struct {
	s      *Server
	z      *zone
	m      *dns.Msg
	name   string // as it was asked
	key    string // canonical
	qtype  uint16
	client netip.Addr
}

// fill reports whether the name exists, and whether nodes were chosen for the answer.
func (r *reply) fill() (exists, placed bool, err error) {
	if r.key == r.z.name {
		exists = true
		switch r.qtype {
		case dns.TypeSOA:
			r.m.Answer = []dns.RR{r.s.soa(r.z)}
			return true, false, nil
		case dns.TypeNS:
			for _, ns := range r.z.ns {
				r.m.Answer = append(r.m.Answer, &dns.NS{Hdr: r.s.header(r.name, dns.TypeNS), Ns: ns})
				r.m.Extra = append(r.m.Extra, r.s.addresses(ns, r.z.records[ns], 0)...)
			}
			return true, false, nil
		}
	}
	if addrs, ok := r.z.records[r.key]; ok {
		r.m.Answer = r.s.addresses(r.name, addrs, r.qtype)
		return true, false, nil
	}
	if request, ok := r.z.hosts[r.key]; ok {
		placed, err = r.host(request)
		return true, placed, err
	}
	for prefix, protocol := range services {
		host, ok := strings.CutPrefix(r.key, prefix)
		if !ok {
			continue
		}
		if request, ok := r.z.hosts[host]; ok {
			request.Protocol = protocol
			placed, err = r.service(request)
			return true, placed, err
		}
	}
	if id, ok := strings.CutSuffix(r.key, "."+nodesLabel+"."+r.z.name); ok {
		if n := r.s.placer.Node(id); n != nil {
			if a, ok := hostAddr(n); ok {
				r.m.Answer = r.s.addresses(r.name, []netip.Addr{a}, r.qtype)
				return true, false, nil
			}
		}
	}
	return exists || r.z.between[r.key], false, nil
}

// host answers for a name that stands for nodes.
func (r *reply) host(request schedule.Request) (placed bool, err error) {
	switch r.qtype {
	case dns.TypeA:
		request.Family = schedule.IPv4
	case dns.TypeAAAA:
		request.Family = schedule.IPv6
	default:
		return false, nil
	}
	nodes, err := r.place(request)
	if err != nil {
		// A name with addresses of the other family has none of this one: that is an
		// answer, and must not make a client of both wait.
		other := request
		other.Family = schedule.IPv4 ^ schedule.IPv6 ^ request.Family
		other.Peek = true
		if _, e := r.place(other); e == nil {
			return true, nil
		}
		return true, err
	}
	var addrs []netip.Addr
	for _, n := range nodes {
		if a, ok := hostAddr(n.Facts); ok {
			addrs = append(addrs, a)
		}
	}
	r.m.Answer = r.s.addresses(r.name, addrs, r.qtype)
	return true, nil
}

// service answers with SRV records, the best first by priority.
func (r *reply) service(request schedule.Request) (placed bool, err error) {
	if r.qtype != dns.TypeSRV {
		return false, nil
	}
	nodes, err := r.place(request)
	if err != nil {
		return true, err
	}
	for i, n := range nodes {
		addr := n.RTMP
		if request.Protocol == "http" {
			addr = n.HTTP
		}
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			continue
		}
		p, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			continue
		}
		target := dns.CanonicalName(host)
		if a, err := netip.ParseAddr(host); err == nil {
			if target = nodeName(n.ID, r.z.name); target == "" {
				continue
			}
			r.m.Extra = append(r.m.Extra, r.s.addresses(target, []netip.Addr{a}, 0)...)
		} else if !isName(host) {
			continue
		}
		r.m.Answer = append(r.m.Answer, &dns.SRV{
			Hdr: r.s.header(r.name, dns.TypeSRV), Priority: uint16(10 * (i + 1)), Weight: 10, Port: uint16(p), Target: target,
		})
	}
	return true, nil
}

func (r *reply) place(request schedule.Request) ([]schedule.Chosen, error) {
	request.Client, request.Limit = r.client, r.s.cfg.Answers
	c, err := r.s.placer.Place(context.Background(), request, false)
	return c.Nodes, err
}

// nodeName is the name of a node in a zone, or empty if its id cannot be a label.
func nodeName(id, zone string) string {
	if len(id) > 63 {
		return ""
	}
	for _, c := range []byte(id) {
		if c == '.' || c == ':' || c == '\\' {
			return ""
		}
	}
	return dns.CanonicalName(id + "." + nodesLabel + "." + zone)
}

// hostAddr is the address that schedule.Request.Family looks at.
func hostAddr(n *schedule.Facts) (netip.Addr, bool) {
	addr := n.RTMP
	if addr == "" {
		addr = n.HTTP
	}
	a, err := netip.ParseAddrPort(addr)
	return a.Addr().Unmap(), err == nil
}

func (s *Server) header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: uint32(s.cfg.TTL.Seconds())}
}

// addresses makes A and AAAA records of those addresses that are of a type; 0 stands
// for both.
func (s *Server) addresses(name string, addrs []netip.Addr, qtype uint16) []dns.RR {
	var out []dns.RR
	for _, a := range addrs {
		a = a.Unmap()
		switch {
		case a.Is4() && (qtype == dns.TypeA || qtype == 0):
			out = append(out, &dns.A{Hdr: s.header(name, dns.TypeA), A: a.AsSlice()})
		case a.Is6() && (qtype == dns.TypeAAAA || qtype == 0):
			out = append(out, &dns.AAAA{Hdr: s.header(name, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	return out
}

// soa is the start of authority. Its last number is how long resolvers keep that
// something does not exist: as long as an answer.
func (s *Server) soa(z *zone) dns.RR {
	ns := z.ns[0]
	return &dns.SOA{
		Hdr: s.header(z.name, dns.TypeSOA), Ns: ns, Mbox: z.mailbox, Serial: s.serial,
		Refresh: 3600, Retry: 600, Expire: 86400, Minttl: uint32(s.cfg.TTL.Seconds()),
	}
}
