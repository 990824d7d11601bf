package limit

import (
	"net/netip"
	"testing"
	"time"
)

func TestRate(t *testing.T) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	r := NewRate(10, 3, 24)
	f := func(addr string, after time.Duration, want bool) {
		t.Helper()
		now = now.Add(after)
		if got := r.Allow(netip.MustParseAddr(addr), now); got != want {
			t.Errorf("%s: allowed %v, want %v", addr, got, want)
		}
	}
	for range 3 {
		f("10.0.0.1", 0, true)
	}
	f("10.0.0.1", 0, false)
	f("::ffff:10.0.0.200", 0, false) // the same network
	f("10.0.1.1", 0, true)
	f("2001:db8::1", 0, true)
	f("2001:db8::2", 0, true)
	f("2001:db8:0:0:ffff::1", 0, true)
	f("2001:db8::3%eth0", 0, false)
	f("2001:db8:0:1::1", 0, true)
	f("10.0.0.1", 99*time.Millisecond, false)
	f("10.0.0.1", time.Millisecond, true)
	f("10.0.0.1", -time.Second, false) // a clock that is set back gives nothing
	f("10.0.0.1", 101*time.Second, true)
	f("10.0.0.1", 0, true)
	f("10.0.0.1", 0, true)
	f("10.0.0.1", 0, false)
}
