package schedule

import (
	"net/netip"
	"strings"
	"testing"
)

func TestNetworks(t *testing.T) {
	table, err := ReadNetworks(strings.NewReader(`
# clients by region
10.0.0.0/8      eu     # the longest prefix decides
10.1.0.0/16     us
10.1.2.3        asia
0.0.0.0/0       rest
2001:db8::/32	six
`))
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]string{
		"10.2.3.4": "eu", "10.1.9.9": "us", "10.1.2.3": "asia", "10.1.2.4": "us", "192.0.2.1": "rest",
		"::ffff:10.1.2.3": "asia", "2001:db8:1::1": "six", "2001:db9::1": "", "fe80::1%eth0": "",
	} {
		if got := table.Region(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is in %q, want %q", addr, got, want)
		}
	}
	if got := table.Region(netip.Addr{}); got != "" {
		t.Errorf("no address is in %q", got)
	}
	f := func(text, want string) {
		t.Helper()
		if _, err := ReadNetworks(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	f("10.0.0.0/8 eu\n10.0.0.0/8 us\n", "line 2: network 10.0.0.0/8 is given twice")
	f("\n10.0.0.0/8\n", "line 2: want a network and a region, not 1 words")
	f("10.0.0.0/8 eu west\n", "not 3 words")
	f("10.0.0.1/8 eu", "10.0.0.0/8 is meant")
	f("::ffff:10.0.0.0/104 eu", "write IPv4 networks as such")
	f("10.0.0.0/33 eu", "neither a network")
	f("host eu", "neither a network")
	f("fe80::1%eth0 eu", "neither a network")
	f("10.0.0.0/8 "+strings.Repeat("r", 65), "longer than 64 bytes")
	f(strings.Repeat("x", 1<<17), "line 1: ")
}

// Whatever is read without an error answers.
func FuzzReadNetworks(f *testing.F) {
	f.Add("10.0.0.0/8 eu\n2001:db8::/32 us # x\n10.0.0.1 asia\n")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := ReadNetworks(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, addr := range []string{"10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1"} {
			table.Region(netip.MustParseAddr(addr))
		}
	})
}
