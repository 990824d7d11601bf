package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"weir/discovery/schedule"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// placer is a scheduler whose reports never grow old.
type placer struct{ *schedule.Scheduler }

func (p placer) Place(_ context.Context, r schedule.Request, why bool) (schedule.Choice, error) {
	return p.Decide(time.Now(), r, why)
}

func node(id, rtmp string, change ...func(*schedule.Node)) schedule.Node {
	n := schedule.Node{
		ID: id, Role: "edge", State: "up", RTMP: rtmp, HTTP: strings.Replace(rtmp, ":1935", ":8080", 1),
		Load: 0.1, Reported: true, Seen: time.Now().Add(24 * time.Hour),
	}
	for _, c := range change {
		c(&n)
	}
	return n
}

// cluster: two edges of each of two regions, one of them with IPv6, one that is known
// by a name in a group of its own, and an origin.
func cluster(t testing.TB) placer {
	t.Helper()
	networks, err := schedule.ReadNetworks(strings.NewReader("192.0.2.0/24 eu\n198.51.100.0/24 us\n2001:db8:1::/48 us\n"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := schedule.DefaultConfig()
	cfg.Policy = schedule.RoundRobin
	cfg.Groups = []string{""}
	cfg.Vhosts = map[string]schedule.Binding{"named.example": {Groups: []string{"named"}}, "full.example": {Groups: []string{"none"}}}
	s := schedule.New(cfg, networks, 1)
	in := func(region string) func(*schedule.Node) { return func(n *schedule.Node) { n.Region = region } }
	s.Update(time.Now(), []schedule.Node{
		node("eu-1", "10.1.0.1:1935", in("eu")), node("EU-2", "10.1.0.2:1935", in("eu")),
		node("us-1", "10.2.0.1:1935", in("us")), node("us-6", "[2001:db8:2::1]:1935", in("us")),
		node("named", "edge.example.net:1935", func(n *schedule.Node) { n.Group = "named" }),
		node("o.1", "10.9.0.1:1935", func(n *schedule.Node) { n.Role = "origin" }),
	})
	return placer{s}
}

func testConfig() Config {
	c := DefaultConfig()
	c.Zones = []Zone{{
		Name: "cdn.example.com", NS: []string{"ns1.cdn.example.com", "ns.example.net"}, Mailbox: "hostmaster.example.com",
		Hosts: map[string]Host{
			"@": {Role: "play"}, "play": {Role: "play"}, "ingest.eu": {Role: "publish"},
			"named": {Role: "play", Vhost: "named.example"}, "full": {Role: "play", Vhost: "full.example"},
		},
		Records: map[string][]netip.Addr{"ns1": {netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")}},
	}}
	return c
}

// start serves until the test ends, and returns the address of both protocols.
func start(t *testing.T, cfg Config, set *metrics.Set) string {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := NewServer(cfg, cluster(t), set)
	go func() { done <- s.Serve(ctx, udp, tcp) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return tcp.Addr().String()
}

func ask(t *testing.T, network, server string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: network, Timeout: 20 * time.Second}
	reply, _, err := c.Exchange(m, server)
	if err != nil {
		t.Fatalf("%s %v: %v", network, m.Question, err)
	}
	return reply
}

func question(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	return m
}

// withSubnet adds EDNS with a client's network.
func withSubnet(m *dns.Msg, network string) *dns.Msg {
	m.SetEdns0(1232, false)
	p := netip.MustParsePrefix(network)
	family := uint16(1)
	if p.Addr().Is6() {
		family = 2
	}
	m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_SUBNET{
		Code: dns.EDNS0SUBNET, Family: family, SourceNetmask: uint8(p.Bits()), Address: p.Addr().AsSlice(),
	})
	return m
}

// short writes a section as name type data, in order.
func short(rrs []dns.RR) string {
	var out []string
	for _, rr := range rrs {
		if rr.Header().Rrtype == dns.TypeOPT {
			continue
		}
		f := strings.Fields(rr.String())
		out = append(out, f[0]+" "+strings.Join(f[3:], " "))
	}
	return strings.Join(out, "; ")
}

func TestAnswers(t *testing.T) {
	server := start(t, testConfig(), nil)
	f := func(m *dns.Msg, rcode int, answer string) *dns.Msg {
		t.Helper()
		var last *dns.Msg
		for _, network := range []string{"udp", "tcp"} {
			r := ask(t, network, server, m)
			if r.Rcode != rcode || !regexp.MustCompile("^"+answer+"$").MatchString(short(r.Answer)) {
				t.Errorf("%s %s: %s %q; want %s %q", network, short2(m), dns.RcodeToString[r.Rcode], short(r.Answer), dns.RcodeToString[rcode], answer)
			}
			if r.RecursionAvailable || r.Authoritative == (rcode == dns.RcodeRefused || rcode == dns.RcodeServerFailure || rcode == dns.RcodeBadVers || rcode == dns.RcodeFormatError) {
				t.Errorf("%s %s: flags %+v", network, short2(m), r.MsgHdr)
			}
			for _, rr := range r.Answer {
				if rr.Header().Ttl != 10 {
					t.Errorf("TTL of %v", rr)
				}
			}
			last = r
		}
		return last
	}
	const ok = dns.RcodeSuccess
	const eu, us = `(10.1.0.1|10.1.0.2)`, `10.2.0.1`

	// Addresses by the client's network, with the name as it was asked.
	r := f(withSubnet(question("play.cdn.example.com.", dns.TypeA), "192.0.2.0/24"), ok, "play.cdn.example.com. A "+eu+"; play.cdn.example.com. A "+eu)
	if e := subnetOf(r); e == nil || e.SourceScope != 24 || e.SourceNetmask != 24 || e.Address.String() != "192.0.2.0" {
		t.Errorf("client subnet in the answer: %v", e)
	}
	f(withSubnet(question("pLaY.CDN.example.com.", dns.TypeA), "198.51.100.0/24"), ok, "pLaY.CDN.example.com. A "+us+"; pLaY.CDN.example.com. A 10.*")
	f(withSubnet(question("play.cdn.example.com.", dns.TypeA), "2001:db8:1::/48"), ok, "play.cdn.example.com. A "+us+"; .*")
	f(question("cdn.example.com.", dns.TypeA), ok, "cdn.example.com. A 10.*")
	f(question("play.cdn.example.com.", dns.TypeAAAA), ok, "play.cdn.example.com. AAAA 2001:db8:2::1")
	f(question("ingest.eu.cdn.example.com.", dns.TypeA), ok, "ingest.eu.cdn.example.com. A 10.9.0.1")

	// Services, with the addresses of their targets.
	r = f(withSubnet(question("_rtmp._tcp.play.cdn.example.com.", dns.TypeSRV), "192.0.2.0/24"), ok,
		`_rtmp._tcp.play.cdn.example.com. SRV 10 10 1935 eu-[12].nodes.cdn.example.com.; _rtmp._tcp.play.cdn.example.com. SRV 20 10 1935 eu-[12].nodes.cdn.example.com.`)
	if got := short(r.Extra); !regexp.MustCompile(`^eu-[12].nodes.cdn.example.com. A ` + eu + `; eu-[12].nodes.cdn.example.com. A ` + eu + `$`).MatchString(got) {
		t.Errorf("addresses of the targets: %q", got)
	}
	f(question("_http._tcp.named.cdn.example.com.", dns.TypeSRV), ok, `_http._tcp.named.cdn.example.com. SRV 10 10 8080 edge.example.net.`)
	f(question("_rtmp._tcp.ingest.eu.cdn.example.com.", dns.TypeSRV), ok, "") // its node's id is no label
	f(question("Eu-2.nodes.cdn.example.com.", dns.TypeA), ok, "Eu-2.nodes.cdn.example.com. A 10.1.0.2")

	// The zone itself.
	f(question("cdn.example.com.", dns.TypeSOA), ok, `cdn.example.com. SOA ns1.cdn.example.com. hostmaster.example.com. \d+ 3600 600 86400 10`)
	r = f(question("cdn.example.com.", dns.TypeNS), ok, "cdn.example.com. NS ns1.cdn.example.com.; cdn.example.com. NS ns.example.net.")
	if got := short(r.Extra); got != "ns1.cdn.example.com. A 192.0.2.53; ns1.cdn.example.com. AAAA 2001:db8::53" {
		t.Errorf("addresses of the zone's servers: %q", got)
	}
	f(question("ns1.cdn.example.com.", dns.TypeA), ok, "ns1.cdn.example.com. A 192.0.2.53")
	f(question("cdn.example.com.", dns.TypeANY), ok, `cdn.example.com. HINFO "RFC8482" ""`)

	// What has no data, or does not exist: with the SOA, that it may be kept.
	for name, qtype := range map[string]uint16{
		"play.cdn.example.com.": dns.TypeTXT, "eu.cdn.example.com.": dns.TypeA, "nodes.cdn.example.com.": dns.TypeA, "_tcp.play.cdn.example.com.": dns.TypeSRV,
		"us-1.nodes.cdn.example.com.": dns.TypeAAAA, "ingest.eu.cdn.example.com.": dns.TypeAAAA,
	} {
		if r := f(question(name, qtype), ok, ""); !strings.Contains(short(r.Ns), "cdn.example.com. SOA ") {
			t.Errorf("%s: no SOA in %v", name, r.Ns)
		}
	}
	for _, name := range []string{"nobody.cdn.example.com.", "x.play.cdn.example.com.", "none.nodes.cdn.example.com.", "_udp.play.cdn.example.com."} {
		if r := f(question(name, dns.TypeA), dns.RcodeNameError, ""); !strings.Contains(short(r.Ns), "cdn.example.com. SOA ") {
			t.Errorf("%s: no SOA in %v", name, r.Ns)
		}
	}
	// No node is nothing to keep.
	f(question("full.cdn.example.com.", dns.TypeA), dns.RcodeServerFailure, "")
	f(question("_rtmp._tcp.full.cdn.example.com.", dns.TypeSRV), dns.RcodeServerFailure, "")

	// Not ours, not for everybody, not understood.
	f(question("example.com.", dns.TypeA), dns.RcodeRefused, "")
	f(question("xcdn.example.com.", dns.TypeA), dns.RcodeRefused, "")
	f(question(".", dns.TypeNS), dns.RcodeRefused, "")
	f(question("cdn.example.com.", dns.TypeIXFR), dns.RcodeRefused, "")
	chaos := question("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	f(chaos, dns.RcodeRefused, "")
	bad := withSubnet(question("play.cdn.example.com.", dns.TypeA), "192.0.2.0/24")
	bad.IsEdns0().Option = append(bad.IsEdns0().Option, bad.IsEdns0().Option[0])
	f(bad, dns.RcodeFormatError, "")
	old := question("play.cdn.example.com.", dns.TypeA)
	old.SetEdns0(1232, false)
	old.IsEdns0().SetVersion(1)
	f(old, dns.RcodeBadVers, "")
	update := new(dns.Msg)
	update.SetUpdate("cdn.example.com.")
	if r := ask(t, "udp", server, update); r.Rcode != dns.RcodeNotImplemented || len(r.Answer) > 0 {
		t.Errorf("update: %v", r)
	}
	// A client that wants its network kept to itself gets an answer without it.
	if r := f(withSubnet(question("play.cdn.example.com.", dns.TypeA), "0.0.0.0/0"), ok, ".*"); subnetOf(r) == nil || subnetOf(r).SourceScope != 0 {
		t.Errorf("scope of an answer for everybody: %v", subnetOf(r))
	}
}

func short2(m *dns.Msg) string {
	return m.Question[0].Name + " " + dns.TypeToString[m.Question[0].Qtype]
}

func subnetOf(m *dns.Msg) *dns.EDNS0_SUBNET {
	if o := m.IsEdns0(); o != nil {
		for _, option := range o.Option {
			if e, ok := option.(*dns.EDNS0_SUBNET); ok {
				return e
			}
		}
	}
	return nil
}

// Answers over UDP stay within what the client takes, and 1232 bytes; what does not
// fit is marked, and whole over TCP.
func TestTruncation(t *testing.T) {
	cfg := testConfig()
	var many []netip.Addr
	for i := range 16 {
		many = append(many, netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1)))
	}
	cfg.Zones[0].Records["many"] = many
	cfg.Zones[0].NS = nil
	for i := range 60 {
		cfg.Zones[0].NS = append(cfg.Zones[0].NS, fmt.Sprintf("server-%d.quite-a-long-name.example.net", i))
	}
	server := start(t, cfg, nil)
	f := func(name string, qtype, size uint16, most int, truncated bool) {
		t.Helper()
		m := question(name, qtype)
		if size > 0 {
			m.SetEdns0(size, false)
		}
		r := ask(t, "udp", server, m)
		r.Compress = true // as it was sent
		if r.Truncated != truncated || r.Len() > most {
			t.Errorf("%s size %d: truncated %v, %d bytes", name, size, r.Truncated, r.Len())
		}
	}
	f("many.cdn.example.com.", dns.TypeAAAA, 0, 512, false) // compressed it fits: 16 of 28 bytes
	f("cdn.example.com.", dns.TypeNS, 0, 512, true)
	f("cdn.example.com.", dns.TypeNS, 600, 600, true)
	f("cdn.example.com.", dns.TypeNS, 4096, maxUDP, true)
	if r := ask(t, "tcp", server, question("cdn.example.com.", dns.TypeNS)); r.Truncated || len(r.Answer) != 60 {
		t.Errorf("over TCP: truncated %v, %d servers", r.Truncated, len(r.Answer))
	}
}

// A network that asks too often gets nothing, or is told to come over TCP, where it
// is answered.
func TestRateOfQuestions(t *testing.T) {
	cfg := testConfig()
	cfg.Rate, cfg.Burst = 1, 5
	set := metrics.NewSet()
	server := start(t, cfg, set)
	conn, err := net.Dial("udp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	count := func(result string) (n int) {
		var b strings.Builder
		set.WritePrometheus(&b)
		m := regexp.MustCompile(`weir_dns_questions_total{result="` + result + `"} (\d+)`).FindStringSubmatch(b.String())
		_, _ = fmt.Sscan(m[1], &n)
		return n
	}
	const asked = 60
	for i := range asked {
		m := question("play.cdn.example.com.", dns.TypeA)
		m.Id = uint16(i)
		packet, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(packet); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); count("answered")+count("limited") <= i; { // one after the other: none is lost
			if time.Now().After(deadline) {
				t.Fatalf("%d answered, %d limited", count("answered"), count("limited"))
			}
			runtime.Gosched()
		}
	}
	answered := count("answered")
	if answered < 5 || answered > 30 {
		t.Errorf("%d answers", answered)
	}
	// What came back: the answers, and half of the rest as empty and truncated.
	full, empty := 0, 0
	buf := make([]byte, 4096)
	for full+empty < answered+(asked-answered)/2 {
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%d answers, %d empty: %v", full, empty, err)
		}
		var m dns.Msg
		if err := m.Unpack(buf[:n]); err != nil {
			t.Fatal(err)
		}
		if m.Truncated && len(m.Answer) == 0 {
			empty++
		} else {
			full++
		}
	}
	if full != answered {
		t.Errorf("%d answers and %d empty ones came; %d were counted", full, empty, answered)
	}
	if r := ask(t, "tcp", server, question("play.cdn.example.com.", dns.TypeA)); len(r.Answer) == 0 {
		t.Errorf("over TCP: %v", r)
	}
}

// Connections are bounded, and one that says nothing is ended.
func TestConnectionsAreBounded(t *testing.T) {
	cfg := testConfig()
	cfg.MaxConnections, cfg.Timeout = 1, time.Second
	server := start(t, cfg, nil)
	first, err := dns.Dial("tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	_ = first.SetDeadline(time.Now().Add(20 * time.Second))
	if err := first.WriteMsg(question("play.cdn.example.com.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	if _, err := first.ReadMsg(); err != nil {
		t.Fatal(err)
	}
	second, err := net.Dial("tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	_ = second.SetDeadline(time.Now().Add(20 * time.Second))
	if n, err := second.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("the second connection is served")
	}
	if m, err := first.ReadMsg(); err == nil {
		t.Errorf("a silent connection got %v", m)
	}
}

// dig, which none of us wrote, understands the answers.
func TestDig(t *testing.T) {
	server := start(t, testConfig(), nil)
	_, port, _ := net.SplitHostPort(server)
	dig := func(args ...string) string {
		t.Helper()
		args = append([]string{"@127.0.0.1", "-p", port, "+time=20", "+tries=1"}, args...)
		out, err := exec.Command("dig", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("dig %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	lines := strings.Fields(dig("+short", "+subnet=192.0.2.0/24", "play.cdn.example.com", "A"))
	slices.Sort(lines)
	if fmt.Sprint(lines) != "[10.1.0.1 10.1.0.2]" {
		t.Errorf("A: %q", lines)
	}
	if got := strings.TrimSpace(dig("+short", "+tcp", "play.cdn.example.com", "AAAA")); got != "2001:db8:2::1" {
		t.Errorf("AAAA: %q", got)
	}
	text := dig("+subnet=192.0.2.0/24", "_rtmp._tcp.play.cdn.example.com", "SRV")
	for _, want := range []string{"status: NOERROR", "flags: qr aa rd;", "CLIENT-SUBNET: 192.0.2.0/24/24", "SRV\t10 10 1935 eu-", "ADDITIONAL: 3"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if strings.Contains(strings.ToLower(text), "malformed") || strings.Contains(text, "Warning: Message parser") {
		t.Errorf("dig complains:\n%s", text)
	}
	if text := dig("www.example.org", "A"); !strings.Contains(text, "status: REFUSED") {
		t.Errorf("a foreign name:\n%s", text)
	}
}

func TestValidate(t *testing.T) {
	good := testConfig()
	good.Listen = "127.0.0.1:53"
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	none := DefaultConfig()
	if err := none.Validate(); err != nil {
		t.Error(err)
	}
	f := func(want string, change func(*Config, *Zone)) {
		t.Helper()
		c := testConfig()
		change(&c, &c.Zones[0])
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want an error about %s", err, want)
		}
	}
	f("listen: ", func(c *Config, _ *Zone) { c.Listen = "x" })
	f("listen: ", func(c *Config, _ *Zone) { c.Listen = "h:99999" })
	f("zones: ", func(c *Config, _ *Zone) { c.Listen, c.Zones = "h:53", nil })
	f("zones[1].name: ", func(c *Config, z *Zone) { c.Zones = append(c.Zones, *z); c.Zones[1].Name = "CDN.example.com." })
	f("zones[0].name: ", func(_ *Config, z *Zone) { z.Name = "com" })
	f("zones[0].name: ", func(_ *Config, z *Zone) { z.Name = "a b.com" })
	f("zones[0].ns: ", func(_ *Config, z *Zone) { z.NS = nil })
	f("zones[0].ns[0]: ", func(_ *Config, z *Zone) { z.NS = []string{"10.0.0.1/8"} })
	f("zones[0].mailbox: ", func(_ *Config, z *Zone) { z.Mailbox = "root@example.com" })
	f("zones[0].hosts: ", func(_ *Config, z *Zone) { z.Hosts = nil })
	f("zones[0].hosts.a b: ", func(_ *Config, z *Zone) { z.Hosts = map[string]Host{"a b": {Role: "play"}} })
	f("zones[0].hosts.play.role: ", func(_ *Config, z *Zone) { z.Hosts = map[string]Host{"play": {}} })
	f("zones[0].records.play: ", func(_ *Config, z *Zone) { z.Records["play"] = z.Records["ns1"] })
	f("zones[0].records.none: ", func(_ *Config, z *Zone) { z.Records["none"] = nil })
	f("ttl: ", func(c *Config, _ *Zone) { c.TTL = 0 })
	f("answers: ", func(c *Config, _ *Zone) { c.Answers = 9 })
	f("rate: ", func(c *Config, _ *Zone) { c.Rate = 0 })
	f("burst: ", func(c *Config, _ *Zone) { c.Burst = 0 })
	f("max_connections: ", func(c *Config, _ *Zone) { c.MaxConnections = 0 })
	f("timeout: ", func(c *Config, _ *Zone) { c.Timeout = 0 })
}

// Whatever is asked, the answer is for that question, can be packed, and is small.
func FuzzAnswer(f *testing.F) {
	for _, m := range []*dns.Msg{
		question("play.cdn.example.com.", dns.TypeA), question("_rtmp._tcp.play.cdn.example.com.", dns.TypeSRV), question("cdn.example.com.", dns.TypeNS),
		withSubnet(question("play.cdn.example.com.", dns.TypeAAAA), "2001:db8::/32"), question("\\000.nodes.cdn.example.com.", dns.TypeA),
	} {
		packet, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet)
	}
	s := NewServer(testConfig(), cluster(f), nil)
	f.Fuzz(func(t *testing.T, packet []byte) {
		var q dns.Msg
		if q.Unpack(packet) != nil {
			return
		}
		m, result := s.answer(&q, netip.MustParseAddr("192.0.2.1"))
		if m.Id != q.Id || !m.Response || s.results[result] == nil {
			t.Fatalf("%v is answered %v (%s)", q, m, result)
		}
		m.Truncate(dns.MinMsgSize)
		if out, err := m.Pack(); err == nil && len(out) > dns.MinMsgSize && len(out) > len(packet)+dns.MinMsgSize {
			t.Fatalf("%d bytes for %d", len(out), len(packet))
		} else if err != nil {
			t.Fatalf("%v: %v", m, err)
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	s := NewServer(testConfig(), cluster(b), nil)
	q := withSubnet(question("play.cdn.example.com.", dns.TypeA), "192.0.2.0/24")
	client := netip.MustParseAddr("192.0.2.1")
	b.ReportAllocs()
	for b.Loop() {
		if m, _ := s.answer(q, client); len(m.Answer) != 2 {
			b.Fatal(m)
		}
	}
}
