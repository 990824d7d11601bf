package discoverynode

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"weir/configs"
	"weir/discovery"
)

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// run runs a discovery server until the test ends.
func run(t *testing.T, text string) {
	t.Helper()
	cfg := Default()
	if err := configs.Parse("test", []byte(text), &cfg); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- Run(ctx, cfg, Options{Log: slog.New(slog.DiscardHandler), Ready: func() { close(ready) }})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- err
		t.Fatal(err)
	case <-time.After(20 * time.Second):
		t.Fatal("not ready after 20 s")
	}
}

// A discovery server tells clients over HTTP and over DNS where to go, by the network
// that they are in, from what nodes tell it.
func TestClientsAreTold(t *testing.T) {
	networks := filepath.Join(t.TempDir(), "networks")
	if err := os.WriteFile(networks, []byte("192.0.2.0/24 eu\n198.51.100.0/24 us\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	api, resolve, names := freeAddr(t), freeAddr(t), freeAddr(t)
	run(t, fmt.Sprintf(`role: discovery
listen: %s
schedule: {networks: %s}
resolve: {listen: %s}
dns:
  listen: %s
  zones:
    - {name: cdn.example.com, ns: [ns.example.net], mailbox: hostmaster.example.com, hosts: {play: {}}}
`, api, networks, resolve, names))

	cfg := discovery.DefaultConfig()
	cfg.URLs, cfg.Timeout = []string{"http://" + api}, 10*time.Second
	client := discovery.NewClient(cfg, nil)
	defer client.Close()
	heartbeats := func() {
		for i, region := range []string{"eu", "us"} {
			if err := client.Heartbeat(t.Context(), discovery.Node{
				ID: region, Instance: "i", Role: discovery.RoleEdge, State: discovery.StateUp, TTL: time.Minute,
				Addr: discovery.Addr{RTMP: fmt.Sprintf("10.0.0.%d:1935", i+1)},
				Load: map[string]float64{"effective": 0.1}, Labels: map[string]string{"region": region},
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually := func(what string, ask func() (string, error), want string) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; {
			heartbeats()
			got, err := ask()
			if err == nil && strings.HasPrefix(got, want) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %q, %v; want %q", what, got, err, want)
			}
		}
	}
	for ip, want := range map[string]string{"192.0.2.7": "10.0.0.1\n", "198.51.100.7": "10.0.0.2\n"} {
		eventually("resolve "+ip, func() (string, error) {
			resp, err := http.Get("http://" + resolve + "/resolve?format=text&domain=v&ip=" + ip)
			if err != nil {
				return "", err
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			return string(text), err
		}, want)
		eventually("dns "+ip, func() (string, error) {
			m := new(dns.Msg)
			m.SetQuestion("play.cdn.example.com.", dns.TypeA)
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 32, Address: net.ParseIP(ip).To4()}}
			r, _, err := (&dns.Client{Timeout: 10 * time.Second}).Exchange(m, names)
			if err != nil || len(r.Answer) == 0 {
				return "", err
			}
			return r.Answer[0].(*dns.A).A.String() + "\n", nil
		}, want)
	}
}

// What cannot be used is an error with its key, and nothing is left listening.
func TestBadFrontsAreErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	f := func(want string, change func(*Config)) {
		t.Helper()
		cfg := Default()
		cfg.Listen = "127.0.0.1:0"
		change(&cfg)
		ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
		defer stop()
		if err := Run(ctx, cfg, Options{Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error about %s", err, want)
		}
	}
	f("resolve.listen", func(c *Config) { c.Resolve.Listen = taken.Addr().String() })
	f("dns.listen", func(c *Config) { c.DNS.Listen = taken.Addr().String() })
	f("schedule.networks", func(c *Config) { c.Schedule.Networks = "/nowhere/networks" })
	f("schedule.networks", func(c *Config) { c.Schedule.Networks = "node_test.go" })
	f("schedule.maxmind.file", func(c *Config) { c.Schedule.MaxMind.File = "node_test.go" })
}
