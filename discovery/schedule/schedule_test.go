package schedule

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var t0 = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)

func configured(change func(*Config)) Config {
	c := DefaultConfig()
	if change != nil {
		change(&c)
	}
	if err := c.Validate(); err != nil {
		panic(err)
	}
	return c
}

// edge returns an edge that is up, has just reported a load, and sends 1 Gbit/s.
func edge(id string, load float64, change ...func(*Node)) Node {
	n := Node{
		ID: id, Instance: "i", Role: "edge", State: "up", RTMP: id + ":1935", HTTP: id + ":8080",
		Load: load, Reported: true, Capacity: 1e9, Seen: t0,
	}
	for _, c := range change {
		c(&n)
	}
	return n
}

func ids(c Choice) string {
	var out []string
	for _, n := range c.Nodes {
		out = append(out, n.ID)
	}
	return strings.Join(out, " ")
}

// Every filter takes its node out, and says why.
func TestFilters(t *testing.T) {
	f := func(want Reason, cfg func(*Config), change func(*Node), r func(*Request)) {
		t.Helper()
		s := New(configured(cfg), nil, 1)
		bad := edge("bad", 0)
		if change != nil {
			change(&bad)
		}
		s.Update(t0, []Node{edge("good", 0.5), bad})
		q := Request{Action: Play, Stream: "v/live/x"}
		if r != nil {
			r(&q)
		}
		c, err := s.Decide(t0, q, true)
		if err != nil {
			t.Errorf("%s: %v", want, err)
			return
		}
		if got := ids(c); got != "good" {
			t.Errorf("%s: chosen %q", want, got)
		}
		if got := c.Decision.Candidates[0]; got.ID != "bad" || got.Filtered != want || c.Decision.Filtered[want] != 1 {
			t.Errorf("filtered for %q (%v), want %q", got.Filtered, c.Decision.Filtered, want)
		}
	}
	f(Starting, nil, func(n *Node) { n.State = "starting" }, nil)
	f(Draining, nil, func(n *Node) { n.State = "draining" }, nil)
	f(NoReport, nil, func(n *Node) { n.Reported = false }, nil)
	f(Silent, nil, func(n *Node) { n.Seen = t0.Add(-3001 * time.Millisecond) }, nil)
	f(WrongRole, nil, func(n *Node) { n.Role = "origin" }, nil)
	f(Excluded, nil, nil, func(r *Request) { r.Exclude = []string{"other", "bad"} })
	f(NotGroup, func(c *Config) { c.Groups = []string{""} }, func(n *Node) { n.Group = "paid" }, nil)
	f(NotGroup, func(c *Config) { c.Vhosts = map[string]Binding{"v": {Groups: []string{""}}} }, func(n *Node) { n.Group = "paid" }, nil)
	f(NotTier, func(c *Config) { c.Tiers = []string{""} }, func(n *Node) { n.Tier = "mid" }, nil)
	f(NoAddress, nil, func(n *Node) { n.HTTP = "" }, func(r *Request) { r.Protocol = "http" })
	f(NoAddress, nil, func(n *Node) { n.RTMP = "" }, func(r *Request) { r.Protocol = "rtmp" })
	f(NoAddress, nil, func(n *Node) { n.RTMP, n.HTTP = "", "" }, nil)
	f(OverHard, nil, func(n *Node) { n.Load = 0.9 }, nil)
	ip := func(rtmp, http string) func(*Node) { return func(n *Node) { n.RTMP, n.HTTP = rtmp, http } }
	for _, other := range []func(*Node){ip("[2001:db8::1]:1935", "10.0.0.1:80"), ip("", "[2001:db8::1]:80"), ip("host:1935", "")} {
		s := New(configured(nil), nil, 1)
		s.Update(t0, []Node{edge("four", 0.5, ip("10.0.0.1:1935", "")), edge("other", 0, other)})
		if c, err := s.Decide(t0, Request{Action: Play, Family: IPv4}, false); err != nil || ids(c) != "four" {
			t.Errorf("IPv4: %s, %v", ids(c), err)
		}
	}
}

// A vhost that is bound to a group has its nodes, and a vhost that is not has the
// general ones.
func TestVhostsAreBoundToGroups(t *testing.T) {
	s := New(configured(func(c *Config) {
		c.Groups = []string{""}
		c.Vhosts = map[string]Binding{"paid.example": {Groups: []string{"paid"}, Policy: MostUsed}, "all.example": {Groups: []string{"", "paid"}}}
	}), nil, 1)
	s.Update(t0, []Node{edge("a", 0.1), edge("b", 0.2, func(n *Node) { n.Group = "paid" }), edge("c", 0.3, func(n *Node) { n.Group = "paid" })})
	f := func(stream, want string) {
		t.Helper()
		c, err := s.Decide(t0, Request{Action: Play, Stream: stream, Peek: true}, false)
		got := strings.Fields(ids(c))
		slices.Sort(got)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %s, %v; want %s", stream, got, err, want)
		}
	}
	f("paid.example/live/x", "b c")
	f("all.example/live/x", "a b c")
	f("other/live/x", "a")
	c, _ := s.Decide(t0, Request{Action: Play, Vhost: "paid.example"}, false)
	if c.Nodes[0].ID != "c" || c.Decision.Policy != MostUsed {
		t.Errorf("policy of the vhost: %+v", c)
	}
}

func TestNoNode(t *testing.T) {
	s := New(configured(nil), nil, 1)
	_, err := s.Decide(t0, Request{Action: Play}, false)
	if !errors.Is(err, ErrNoNode) || !strings.HasSuffix(err.Error(), ": no node is known") {
		t.Error(err)
	}
	s.Update(t0, []Node{edge("a", 0.95), edge("b", 0.9), edge("c", 0, func(n *Node) { n.State = "draining" })})
	c, err := s.Decide(t0, Request{Action: Play}, false)
	if !errors.Is(err, ErrNoNode) || !strings.HasSuffix(err.Error(), ": 1 draining, 2 over_hard_limit") {
		t.Error(err)
	}
	if len(c.Decision.Candidates) != 3 {
		t.Errorf("a refusal without its reasons: %+v", c.Decision)
	}
}

// The soft limit puts a node behind all others, until its load is below it by the
// hysteresis.
func TestSoftLimit(t *testing.T) {
	s := New(configured(func(c *Config) { c.Policy = MostUsed }), nil, 1)
	now := t0
	f := func(loadOfA float64, want string) {
		t.Helper()
		now = now.Add(time.Second)
		at := func(n *Node) { n.Seen = now }
		s.Update(now, []Node{edge("a", loadOfA, at), edge("b", 0.1, at), edge("c", 0.85, at)})
		c, err := s.Decide(now, Request{Action: Play, Peek: true}, false)
		if got := ids(c); err != nil || got != want {
			t.Errorf("load %v: %s, %v; want %s", loadOfA, got, err, want)
		}
	}
	f(0.79, "a b c")
	f(0.80, "b a c")
	f(0.76, "b a c")
	f(0.75, "a b c")
	f(0.79, "a b c")
	f(0.90, "b c")
}

// What is reserved puts a node behind others, but nobody is refused for it.
func TestReservationsNeverRefuse(t *testing.T) {
	s := New(configured(func(c *Config) { c.Policy = Pack }), nil, 1)
	s.Update(t0, []Node{edge("a", 0.5), edge("b", 0.6)})
	seen := map[string]int{}
	for range 2000 {
		c, err := s.Decide(t0, Request{Action: Play, BitRate: 1e6}, false)
		if err != nil {
			t.Fatal(err)
		}
		seen[c.Nodes[0].ID]++
		if n := seen["a"]; n == 301 && seen["b"] < 200 {
			t.Fatal("over the soft limit although there is room elsewhere")
		}
	}
	// Over the limit they share what comes by load, so both end at the same load.
	if seen["a"] != 1050 || seen["b"] != 950 {
		t.Errorf("%v", seen)
	}
}

func TestPreferences(t *testing.T) {
	table, err := ReadNetworks(strings.NewReader("10.1.0.0/16 eu\n10.2.0.0/16 us\n10.3.0.0/16 asia\n"))
	if err != nil {
		t.Fatal(err)
	}
	in := func(region string, cost float64) func(*Node) {
		return func(n *Node) { n.Region, n.Cost = region, cost }
	}
	nodes := []Node{
		edge("eu-dear", 0.1, in("eu", 0.09)), edge("eu-cheap", 0.3, in("eu", 0.02)),
		edge("us", 0.2, in("us", 0.01)), edge("nowhere", 0, in("", 0.01)),
	}
	f := func(prefer []PreferenceName, ip, want string) {
		t.Helper()
		s := New(configured(func(c *Config) {
			c.Prefer, c.Policy, c.Near = prefer, RoundRobin, map[string][]string{"asia": {"us", "eu"}}
		}), table, 1)
		s.Update(t0, nodes)
		c, err := s.Decide(t0, Request{Action: Play, Client: netip.MustParseAddr(ip), Limit: 4}, false)
		if got := ids(c); err != nil || got != want {
			t.Errorf("%v %s: %s, %v; want %s", prefer, ip, got, err, want)
		}
	}
	f([]PreferenceName{PreferRegion, PreferCost}, "10.1.2.3", "eu-cheap eu-dear nowhere us")
	f([]PreferenceName{PreferRegion}, "::ffff:10.2.0.1", "us nowhere eu-dear eu-cheap")
	f([]PreferenceName{PreferRegion, PreferCost}, "10.3.0.1", "us eu-cheap eu-dear nowhere")
	f([]PreferenceName{PreferCost}, "10.1.2.3", "nowhere us eu-cheap eu-dear")
	f([]PreferenceName{PreferCost, PreferRegion}, "10.2.2.3", "us nowhere eu-cheap eu-dear")
	f(nil, "10.1.2.3", "eu-cheap eu-dear nowhere us") // by id: none was chosen before
}

// Players of one stream are kept together while that costs no evenness, and a
// publisher goes to the owner of its stream.
func TestStreamPreference(t *testing.T) {
	s := New(configured(func(c *Config) { c.Prefer = []PreferenceName{PreferStream} }), nil, 1)
	nodes := []Node{edge("a", 0.2), edge("b", 0.2), edge("c", 0.2)}
	s.Update(t0, nodes)
	f := func(now time.Time, stream string) string {
		t.Helper()
		c, err := s.Decide(now, Request{Action: Play, Stream: stream, BitRate: 1e6}, false)
		if err != nil {
			t.Fatal(err)
		}
		return c.Nodes[0].ID
	}
	first := f(t0, "v/live/x")
	for range 40 {
		if got := f(t0, "v/live/x"); got != first {
			t.Fatalf("sent to %s and %s", first, got)
		}
	}
	for range 100 { // 0.041 is reserved there: the slack is used up soon
		f(t0, "v/live/x")
	}
	for i := range nodes {
		n := s.nodes[s.byID[nodes[i].ID]]
		load := n.load + n.reserved
		if load < 0.22 || load > 0.26 {
			t.Errorf("load of %s is %v", nodes[i].ID, load)
		}
	}
	// A minute later, others are as good.
	later := t0.Add(2 * time.Minute)
	for i := range nodes {
		nodes[i].Seen = later
	}
	s.Update(later, nodes)
	seen := map[string]bool{}
	for i := range 30 {
		seen[f(later, fmt.Sprintf("v/live/%d", i))] = true
	}
	if len(seen) != 3 {
		t.Errorf("streams without players are all on %v", seen)
	}
	origin := func(id string) Node { return edge(id, 0.1, func(n *Node) { n.Role, n.Seen = "origin", later }) }
	s.Update(later, []Node{origin("o1"), origin("o2"), origin("o3")})
	for range 20 {
		c, err := s.Decide(later, Request{Action: Publish, Stream: "v/live/x", Owner: "o3", BitRate: 1e6}, false)
		if err != nil || c.Nodes[0].ID != "o3" {
			t.Fatalf("%s, %v; want the owner", ids(c), err)
		}
	}
}

func TestPolicies(t *testing.T) {
	f := func(policy PolicyName, n int, check func(order []string)) {
		t.Helper()
		s := New(configured(func(c *Config) { c.Policy, c.Prefer = policy, nil }), nil, 1)
		s.Update(t0, []Node{
			edge("a", 0.30), edge("b", 0.70), edge("c", 0.10, func(n *Node) { n.Weight = 6 }), edge("d", 0.50),
		})
		var order []string
		for i := range n {
			c, err := s.Decide(t0, Request{Action: Play, Stream: fmt.Sprintf("v/live/%d", i), BitRate: 1000}, false)
			if err != nil {
				t.Fatal(err)
			}
			order = append(order, c.Nodes[0].ID)
		}
		check(order)
	}
	is := func(want string) func([]string) {
		return func(order []string) {
			t.Helper()
			if got := strings.Join(order, ""); got != want {
				t.Errorf("chosen %s, want %s", got, want)
			}
		}
	}
	shares := func(want map[string]float64) func([]string) {
		return func(order []string) {
			t.Helper()
			got := map[string]float64{}
			for _, id := range order {
				got[id] += 1 / float64(len(order))
			}
			for _, id := range []string{"a", "b", "c", "d"} {
				if math.Abs(got[id]-want[id]) > 0.03 {
					t.Errorf("%s has a share of %.3f, want %.3f", id, got[id], want[id])
				}
			}
		}
	}
	f(RoundRobin, 9, is("abcdabcda"))
	f(Pack, 5, is("aaaaa"))
	f(MostUsed, 5, is("bbbbb"))
	f(Random, 4000, shares(map[string]float64{"a": .25, "b": .25, "c": .25, "d": .25}))
	f(Weighted, 4000, shares(map[string]float64{"a": 1. / 9, "b": 1. / 9, "c": 6. / 9, "d": 1. / 9}))
	// Of two at random the better: the best in 1/2 of the pairs, then 1/3, 1/6, never.
	f(LeastLoad, 4000, shares(map[string]float64{"a": 1. / 3, "b": 0, "c": 1. / 2, "d": 1. / 6}))
	// b and d are over the bound of 1.25 times the mean (0.5): b is.
	f(Hash, 4000, shares(map[string]float64{"a": 1. / 3, "b": 0, "c": 1. / 3, "d": 1. / 3}))
}

// Round robin is fair to clients of two regions that come in turn.
func TestRoundRobinOverSubsets(t *testing.T) {
	s := New(configured(func(c *Config) { c.Policy = RoundRobin }), nil, 1)
	in := func(region string) func(*Node) { return func(n *Node) { n.Region = region } }
	s.Update(t0, []Node{edge("a", 0, in("eu")), edge("b", 0, in("eu")), edge("c", 0, in("us")), edge("d", 0, in("us"))})
	seen := map[string]int{}
	for i := range 40 {
		c, err := s.Decide(t0, Request{Action: Play, Region: []string{"eu", "us"}[i%2], BitRate: 1000}, false)
		if err != nil {
			t.Fatal(err)
		}
		seen[c.Nodes[0].ID]++
	}
	for id, n := range seen {
		if n != 10 {
			t.Errorf("%s was chosen %d times of 40: %v", id, n, seen)
		}
	}
}

// A stream stays on its node when another node comes or goes.
func TestHashMovesFewStreams(t *testing.T) {
	cfg := configured(func(c *Config) { c.Policy, c.Prefer = Hash, nil })
	choose := func(n int) map[string]string {
		s := New(cfg, nil, 1)
		var nodes []Node
		for i := range n {
			nodes = append(nodes, edge(fmt.Sprintf("n%02d", i), 0.1))
		}
		s.Update(t0, nodes)
		out := map[string]string{}
		for i := range 1000 {
			stream := fmt.Sprintf("v/live/%d", i)
			c, err := s.Decide(t0, Request{Action: Play, Stream: stream, Peek: true}, false)
			if err != nil {
				t.Fatal(err)
			}
			out[stream] = c.Nodes[0].ID
		}
		return out
	}
	ten, eleven := choose(10), choose(11)
	moved := 0
	for stream, id := range ten {
		if eleven[stream] != id {
			moved++
			if eleven[stream] != "n10" {
				t.Fatalf("%s moved from %s to %s", stream, id, eleven[stream])
			}
		}
	}
	if moved < 50 || moved > 140 {
		t.Errorf("%d of 1000 streams moved, want about 91", moved)
	}
}

// crowd sends 1000 players in one second to 10 nodes that report once a second, each
// at a moment of its own, its sessions and its mean rate of the second before, and
// returns how the players were spread.
func crowd(t *testing.T, cfg Config, streams int) (maxOverMean float64, counts map[string]int) {
	t.Helper()
	s := New(cfg, nil, 7)
	const rate = 2e6
	type truth struct {
		came     []time.Time // its players
		seen     time.Time
		reported int
		egress   float64
	}
	nodes := make([]truth, 10)
	id := func(i int) string { return fmt.Sprintf("n%d", i) }
	index := map[string]int{}
	for i := range nodes {
		index[id(i)] = i
		nodes[i].seen = t0.Add(-time.Duration(i) * 100 * time.Millisecond)
	}
	update := func(now time.Time) {
		var in []Node
		for i := range nodes {
			n := &nodes[i]
			for now.Sub(n.seen) >= time.Second { // a report, with the sessions of this moment
				n.seen, n.reported, n.egress = n.seen.Add(time.Second), 0, 0
				for _, at := range n.came {
					if past := n.seen.Sub(at); past > 0 {
						n.reported++
						n.egress += min(1, past.Seconds()) * rate
					}
				}
			}
			in = append(in, edge(id(i), n.egress/1e9, func(e *Node) {
				e.Seen, e.Egress, e.Sessions = n.seen, n.egress, float64(n.reported)
			}))
		}
		s.Update(now, in)
	}
	for i := range 1000 {
		now := t0.Add(time.Duration(i) * time.Millisecond)
		if i%50 == 0 {
			update(now)
		}
		c, err := s.Decide(now, Request{Action: Play, Stream: fmt.Sprintf("v/live/%d", i%streams), BitRate: rate}, false)
		if err != nil {
			t.Fatal(err)
		}
		n := &nodes[index[c.Nodes[0].ID]]
		n.came = append(n.came, now)
	}
	most := 0
	counts = map[string]int{}
	for i := range nodes {
		most = max(most, len(nodes[i].came))
		counts[id(i)] = len(nodes[i].came)
	}
	return float64(most) / 100, counts
}

// A crowd of 1000 plays in one second over 10 nodes with load of a second ago ends
// evenly: the busiest node has at most 1.3 times the mean.
func TestACrowdIsSpread(t *testing.T) {
	for _, policy := range []PolicyName{RoundRobin, LeastLoad, Random, Weighted, Hash} {
		for _, streams := range []int{1, 1000} {
			got, counts := crowd(t, configured(func(c *Config) { c.Policy = policy }), streams)
			t.Logf("%-12s %4d streams: max/mean %.2f", policy, streams, got)
			if got > 1.3 {
				t.Errorf("%s, %d streams: max/mean is %.2f: %v", policy, streams, got, counts)
			}
		}
	}
	// The others are for filling nodes, and do: 1000 players of 2 Mbit/s are 2.5 nodes
	// of 0.8 Gbit/s.
	for _, policy := range []PolicyName{Pack, MostUsed} {
		_, counts := crowd(t, configured(func(c *Config) { c.Policy = policy }), 1)
		used := 0
		for _, n := range counts {
			if n > 0 {
				used++
			}
			if n > 401 {
				t.Errorf("%s: a node is over its soft limit: %v", policy, counts)
			}
		}
		if used != 3 {
			t.Errorf("%s uses %d nodes: %v", policy, used, counts)
		}
	}
}
