package node

import (
	"maps"
	"math"
	"net"
	"strings"
	"testing"
)

func TestConfig(t *testing.T) {
	for id, ok := range map[string]bool{
		"": true, "edge-1": true, "a.b:c_d": true, strings.Repeat("x", 64): true,
		strings.Repeat("x", 65): false, "a/b": false, "a b": false, "a,b": false, "a\"b": false, "a\nb": false, "ä": false, "a\x7f": false,
	} {
		c := Config{ID: id}
		err := c.Validate()
		if (err == nil) != ok || err != nil && !strings.HasPrefix(err.Error(), "id: ") {
			t.Errorf("id %q: %v", id, err)
		}
	}
	if name := (&Config{ID: "x"}).Name("edge"); name != "x" {
		t.Error(name)
	}
	if name := (&Config{}).Name("edge"); !strings.HasSuffix(name, "-edge") || len(name) < len("x-edge") {
		t.Error(name)
	}
}

func TestLabels(t *testing.T) {
	for key, c := range map[string]Config{
		"":            {Group: "live", Region: "eu-west", Tier: "outer", Cost: 0.05, Labels: map[string]string{"rack": "Zürich 7"}},
		"group":       {Group: "a b"},
		"region":      {Region: strings.Repeat("x", 65)},
		"tier":        {Tier: "a/b"},
		"cost":        {Cost: math.NaN()},
		"labels.cost": {Labels: map[string]string{"cost": "1"}},
		"labels.a b":  {Labels: map[string]string{"a b": "1"}},
		"labels.a":    {Labels: map[string]string{"a": "1\n"}},
		"labels.b":    {Labels: map[string]string{"b": strings.Repeat("x", 257)}},
		"labels":      {Labels: map[string]string{"": "1"}},
	} {
		err := c.Validate()
		if (err == nil) != (key == "") || err != nil && !strings.HasPrefix(err.Error(), key+": ") {
			t.Errorf("%s: %v", key, err)
		}
	}
	c := Config{Group: "live", Cost: 0.05, Labels: map[string]string{"rack": "7"}}
	if got := c.AllLabels(); !maps.Equal(got, map[string]string{"group": "live", "cost": "0.05", "rack": "7"}) {
		t.Errorf("labels %v", got)
	}
	if got := (&Config{ID: "x"}).AllLabels(); got != nil {
		t.Errorf("labels %v of a node without any", got)
	}
}

func TestAdvertise(t *testing.T) {
	f := func(a Advertise, want ...string) {
		t.Helper()
		var got []string
		if err := a.Validate(); err != nil {
			got = strings.Split(err.Error(), "\n")
		}
		if len(got) != len(want) {
			t.Fatalf("got %q, want %q", got, want)
		}
		for i := range want {
			if !strings.HasPrefix(got[i], want[i]+": ") {
				t.Errorf("got %q, want the key %s", got[i], want[i])
			}
		}
	}
	f(Advertise{})
	f(Advertise{RTMP: "host:1935", HTTP: "10.0.0.1:80", API: "[::1]:65535"})
	f(Advertise{RTMP: "host", HTTP: ":80", API: "host:0"}, "rtmp", "http", "api")
	f(Advertise{RTMP: "host:65536", HTTP: "host:+80", API: "::1:80"}, "rtmp", "http", "api")
	f(Advertise{RTMP: "0.0.0.0:1935", HTTP: "[::]:80", API: "rtmp://h:80"}, "rtmp", "http", "api")
	f(Advertise{RTMP: "h/live:1935", HTTP: "a b:80", API: "h?x:80"}, "rtmp", "http", "api")
}

func TestAdvertiseOr(t *testing.T) {
	rtmp, http := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1935}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 80}
	if a := (Advertise{}).Or(rtmp, http); a != (Advertise{RTMP: "10.0.0.1:1935", HTTP: "10.0.0.1:80", API: "10.0.0.1:80"}) {
		t.Errorf("%+v", a)
	}
	if a := (Advertise{RTMP: "r:1", HTTP: "h:2"}).Or(rtmp, http); a != (Advertise{RTMP: "r:1", HTTP: "h:2", API: "h:2"}) {
		t.Errorf("%+v", a)
	}
}

func TestListen(t *testing.T) {
	for addr, ok := range map[string]bool{
		"127.0.0.1:0": true, ":1935": true, "localhost:1": true, "[::1]:65535": true, "0.0.0.0:80": true,
		"": false, "127.0.0.1": false, "127.0.0.1:65536": false, "127.0.0.1:-1": false, "127.0.0.1:+1": false, "127.0.0.1:http": false, "example.com:80": false,
	} {
		err := CheckListen("rtmp.listen", addr)
		if (err == nil) != ok || err != nil && !strings.HasPrefix(err.Error(), "rtmp.listen: ") {
			t.Errorf("%q: %v", addr, err)
		}
	}
	l, err := Listen(t.Context(), "rtmp.listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().String()
	if _, err := Listen(t.Context(), "rtmp.listen", addr); err == nil || err.Error() != "listen "+addr+" (rtmp.listen): address already in use" {
		t.Errorf("a taken port gives %v", err)
	}
}
