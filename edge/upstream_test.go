package edge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weir/internal/vhost"
)

func group(policy vhost.Policy, lookUp func(context.Context, string) ([]string, error), addrs ...string) *upstreams {
	r := newResolver(10 * time.Second)
	r.lookUp = lookUp
	u := &upstreams{policy: policy, resolver: r, health: newHealth(5 * time.Second)}
	for _, a := range addrs {
		u.list = append(u.list, vhost.Upstream{Scheme: "rtmp", Addr: a})
	}
	return u
}

func picked(t *testing.T, u *upstreams, key string) (addrs []string) {
	t.Helper()
	all, err := u.pick(context.Background(), key)
	if err != nil {
		t.Fatal(err)
	}
	for _, up := range all {
		addrs = append(addrs, up.Addr)
	}
	return addrs
}

// Round robin has one counter for the group: ten streams that are pulled once
// each are spread as evenly as ten pulls of one.
func TestRoundRobin(t *testing.T) {
	u := group(vhost.RoundRobin, nil, "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1")
	first := map[string]int{}
	for i := range 9 {
		all := picked(t, u, fmt.Sprint("stream ", i))
		if len(all) != 3 {
			t.Fatalf("candidates: %v", all)
		}
		first[all[0]]++
	}
	for a, n := range first {
		if n != 3 {
			t.Errorf("%s is first %d times of 9", a, n)
		}
	}
}

func TestHash(t *testing.T) {
	three := group(vhost.Hash, nil, "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1")
	two := group(vhost.Hash, nil, "10.0.0.3:1", "10.0.0.1:1")
	first := map[string]int{}
	for i := range 300 {
		key := fmt.Sprint("v/live/", i)
		all := picked(t, three, key)
		if again := picked(t, three, key); !slices.Equal(again, all) {
			t.Fatalf("%s: %v, then %v", key, all, again)
		}
		first[all[0]]++
		left := slices.DeleteFunc(slices.Clone(all), func(a string) bool { return a == "10.0.0.2:1" })
		if got := picked(t, two, key); !slices.Equal(got, left) {
			t.Fatalf("%s without the second: %v, want %v", key, got, left)
		}
	}
	for a, n := range first {
		if n < 60 {
			t.Errorf("%s is first for %d of 300", a, n)
		}
	}
}

// What failed is tried last for a while, and what failed first is back first.
func TestEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, policy := range []vhost.Policy{vhost.RoundRobin, vhost.Hash} {
			u := group(policy, nil, "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1")
			u.health.failed("10.0.0.2:1")
			time.Sleep(time.Second) // of the bubble's clock
			u.health.failed("10.0.0.1:1")
			for range 3 {
				if got := picked(t, u, "k"); !slices.Equal(got, []string{"10.0.0.3:1", "10.0.0.2:1", "10.0.0.1:1"}) {
					t.Errorf("%s: %v", policy, got)
				}
			}
			u.health.worked("10.0.0.1:1")
			if got := picked(t, u, "k"); got[2] != "10.0.0.2:1" {
				t.Errorf("%s: %v", policy, got)
			}
			time.Sleep(5 * time.Second)
			if n := u.health.ejectedFor("10.0.0.2:1"); n != 0 {
				t.Errorf("still ejected for %d ms", n)
			}
		}
	})
}

// A name stands for all its addresses; it is looked up again after the TTL, and
// an answer that cannot be renewed stays in use.
func TestNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answer []string
		var failure error
		lookups := 0
		u := group(vhost.RoundRobin, func(_ context.Context, host string) ([]string, error) {
			lookups++
			if host != "origins.example" {
				t.Errorf("lookup of %s", host)
			}
			return slices.Clone(answer), failure
		}, "origins.example:1935", "10.0.0.9:1")
		failure = errors.New("no such host")
		if got := picked(t, u, "k"); !slices.Equal(got, []string{"10.0.0.9:1"}) {
			t.Errorf("with a name that is unknown: %v", got)
		}
		answer, failure = []string{"10.0.0.2", "10.0.0.1", "fd00::1"}, nil
		got := picked(t, u, "k")
		slices.Sort(got)
		if want := []string{"10.0.0.1:1935", "10.0.0.2:1935", "10.0.0.9:1", "[fd00::1]:1935"}; !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		before := lookups
		picked(t, u, "k")
		if lookups != before {
			t.Error("looked up again within the TTL")
		}
		time.Sleep(11 * time.Second)
		failure = errors.New("timeout")
		if got := picked(t, u, "k"); len(got) != 4 || lookups != before+1 {
			t.Errorf("after a lookup that failed: %v, %d lookups", got, lookups-before)
		}
		time.Sleep(11 * time.Second)
		answer, failure = []string{"10.0.0.3"}, nil
		got = picked(t, u, "k")
		slices.Sort(got)
		if want := []string{"10.0.0.3:1935", "10.0.0.9:1"}; !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	})
}

func TestNoUpstream(t *testing.T) {
	if _, err := group(vhost.RoundRobin, nil).pick(context.Background(), "k"); !errors.Is(err, errNoUpstream) {
		t.Error(err)
	}
	u := group(vhost.RoundRobin, func(context.Context, string) ([]string, error) { return nil, errors.New("no such host") }, "a:1", "b:1")
	if _, err := u.pick(context.Background(), "k"); err == nil {
		t.Error("no error")
	}
}

func TestConfig(t *testing.T) {
	cfg := Default()
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	cfg.Role, cfg.Workers, cfg.RTMP.Listen = "origin", -1, "nowhere"
	cfg.Pull = PullConfig{MaxRedirects: 11}
	cfg.Forward = ForwardConfig{}
	err := cfg.Validate()
	for _, key := range []string{
		"role:", "workers:", "rtmp.listen:", "pull.max_redirects:", "pull.connect_timeout:", "pull.read_timeout:",
		"pull.retry_min:", "pull.resolve_ttl:", "forward.max_lag:",
	} {
		if err == nil || !containsLine(err.Error(), key) {
			t.Errorf("no error of %s in %v", key, err)
		}
	}
}

func containsLine(text, prefix string) bool {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return false
}
