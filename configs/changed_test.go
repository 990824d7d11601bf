package configs

import (
	"errors"
	"slices"
	"testing"
)

func TestChanged(t *testing.T) {
	f := func(a, b string, want ...string) {
		t.Helper()
		a, b = "role: edge\n"+a, "role: edge\n"+b
		x, y := defaultNode(), defaultNode()
		if err := errors.Join(Parse("a", []byte(a), &x), Parse("b", []byte(b), &y)); err != nil {
			t.Fatal(err)
		}
		if got := Changed(&x, &y); !slices.Equal(got, want) {
			t.Errorf("%q and %q: %q, want %q", a, b, got, want)
		}
	}
	f("", "")
	f("play: {max_lag: 2s}", "play: {max_lag: 2000ms}")
	f("play: {max_lag: 2s, cors: true}", "play: {max_lag: 3s}\nlog_level: debug", "play.max_lag", "play.cors", "log_level")
	f("peers: [a]", "peers: [a, b]", "peers")
	f("tenants: [{name: a, keys: [hush-hush]}]", "tenants: [{name: a, keys: [hush-hush2]}]", "tenants")
	f("", "hosts: {b: {weight: 1}}", "hosts")
	f("", "tls: {certificate: c}", "tls")
	f("allow: [10.0.0.0/8]", "allow: [10.0.0.0/8]")
}

func TestLocate(t *testing.T) {
	x := defaultNode()
	text := "role: edge\nplay:\n  cors: true\n  max_lag: 2s\n"
	err := Locate("node.yaml", []byte(text), &x, errors.Join(errors.New("play.max_lag: cannot change"), errors.New("peers: cannot change")))
	const want = "node.yaml:1: peers: cannot change\nnode.yaml:4: play.max_lag: cannot change"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}
