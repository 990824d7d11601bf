package discovery

import (
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"
)

func TestConfigErrorsNameTheirKeys(t *testing.T) {
	node := func(change func(*Config), keys ...string) {
		t.Helper()
		c := DefaultConfig()
		change(&c)
		wantKeys(t, c.Validate(), keys)
	}
	node(func(*Config) {})
	node(func(c *Config) { c.URLs = []string{"http://a:7070", "https://b", "http://[::1]:7070/"} })
	node(func(c *Config) { c.Peers = []string{"a:1985", "[::1]:1985"} })
	node(func(c *Config) { c.URLs, c.Peers = []string{"http://a:1"}, []string{"b:1"} }, "peers")
	node(func(c *Config) {
		c.URLs = []string{"http://ok:1", "a:7070", "ftp://a", "http://", "http://a/x", "http://u@a", "http://a?q", "http://a b"}
	}, "urls[1]", "urls[2]", "urls[3]", "urls[4]", "urls[5]", "urls[6]", "urls[7]")
	node(func(c *Config) { c.Peers = []string{"a", "a:0", ":1", "a:1", "http://a:1"} },
		"peers[0]", "peers[1]", "peers[2]", "peers[4]")
	node(func(c *Config) { c.Peers = strings.Split(strings.Repeat("a:1 ", 65)+"a:1", " ") }, "peers")
	node(func(c *Config) { *c = Config{Token: "a b"} },
		"token", "timeout", "peer_timeout", "lease_ttl", "heartbeat", "cache_size")
	node(func(c *Config) { c.CacheTTL, c.StaleFor = -1, 25*time.Hour }, "cache_ttl", "stale_for")

	server := func(change func(*ServerConfig), keys ...string) {
		t.Helper()
		c := DefaultServerConfig()
		change(&c)
		wantKeys(t, c.Validate(), keys)
	}
	server(func(*ServerConfig) {})
	server(func(c *ServerConfig) { c.Listen = ":0" })
	server(func(c *ServerConfig) { c.Listen = "[::1]:7070" })
	server(func(c *ServerConfig) { c.Listen = "7070" }, "listen")
	server(func(c *ServerConfig) { c.Listen = "a:http" }, "listen")
	server(func(c *ServerConfig) { c.Listen = "a/b:1" }, "listen")
	server(func(c *ServerConfig) { c.LeaseTTL = 2 * time.Minute }, "lease_ttl")
	server(func(c *ServerConfig) { *c = ServerConfig{Listen: "a:1", Token: "\n", ShutdownTimeout: -1} },
		"token", "max_lease_ttl", "lease_ttl", "node_ttl", "max_streams", "max_nodes", "max_body", "max_connections",
		"request_timeout", "shutdown_timeout")
}

func wantKeys(t *testing.T, err error, keys []string) {
	t.Helper()
	var lines []string
	if err != nil {
		lines = strings.Split(err.Error(), "\n")
	}
	if len(lines) != len(keys) {
		t.Errorf("got %q, want errors of %v", lines, keys)
		return
	}
	for i, l := range lines {
		if !strings.HasPrefix(l, keys[i]+": ") {
			t.Errorf("error %q, want it to start with %s:", l, keys[i])
		}
	}
}

func TestConfigIsReadFromYAML(t *testing.T) {
	server := DefaultServerConfig()
	if err := yaml.Unmarshal([]byte("listen: 10.0.0.1:7070\nlease_ttl: 3s\nmax_streams: 5\nmax_body: 2MiB\n"), &server); err != nil {
		t.Fatal(err)
	}
	if server.Listen != "10.0.0.1:7070" || server.LeaseTTL != 3*time.Second || server.MaxStreams != 5 || server.MaxBody != 2<<20 ||
		server.NodeTTL != 3*time.Second {
		t.Errorf("got %+v", server)
	}
	node := DefaultConfig()
	if err := yaml.Unmarshal([]byte("peers: [\"a:1\"]\npeer_timeout: 200ms\ncache_size: 1MiB\n"), &node); err != nil {
		t.Fatal(err)
	}
	if node.Peers[0] != "a:1" || node.PeerTimeout != 200*time.Millisecond || node.CacheSize != 1<<20 || node.Timeout != time.Second {
		t.Errorf("got %+v", node)
	}
}

func TestOpenPicksTheDirectory(t *testing.T) {
	cfg := DefaultConfig()
	alone, err := cfg.Open(selfA, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	mustClaim(t, alone, claimBy(selfA, demo))
	wantOwner(t, alone, demo, "") // of another node

	cfg.URLs = []string{"http://127.0.0.1:1"}
	remote, err := cfg.Open(selfA, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	if _, ok := remote.(*Client); !ok {
		t.Errorf("urls open a %T", remote)
	}
	cfg.Peers = []string{"a:1"}
	if _, err := cfg.Open(selfA, nil, nil, nil); err == nil {
		t.Error("urls and peers together open")
	}
}

func TestSplitStream(t *testing.T) {
	f := func(key, vhost, app, name string) {
		t.Helper()
		v, a, n, err := SplitStream(key)
		if v != vhost || a != app || n != name || (err == nil) != (vhost != "") {
			t.Errorf("SplitStream(%q) = %q %q %q, %v", key, v, a, n, err)
		}
	}
	f("v/live/x", "v", "live", "x")
	f("v/a/b/x", "v", "a/b", "x")
	f("v/ä/ö", "v", "ä", "ö")
	f(demo, DefaultVhost, "live", "demo")
	f("v/x/"+strings.Repeat("n", MaxStreamLen-4), "v", "x", strings.Repeat("n", MaxStreamLen-4))
	f("v/x/"+strings.Repeat("n", MaxStreamLen-3), "", "", "")
	for _, bad := range []string{"", "/", "//", "///", "v", "v/x", "v//x", "v/a//x", "/a/x", "v/a/", "v/a/\x00", "v/a/\x7f", "v/a/\xff", "v/a/\u0085"} {
		f(bad, "", "", "")
	}
}
