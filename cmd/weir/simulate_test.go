package main

import (
	"bytes"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weir/discovery"
	"weir/discovery/schedule"
)

func TestSimulate(t *testing.T) {
	f := func(code int, out, errOut string, args ...string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		got := run(append([]string{"weir", "simulate"}, args...), &stdout, &stderr)
		if got != code || !strings.Contains(stdout.String(), out) || !strings.Contains(stderr.String(), errOut) {
			t.Errorf("simulate %q: exit code %d, %s%s", args, got, &stdout, &stderr)
		}
	}
	svg := filepath.Join(t.TempDir(), "day.svg")
	f(0, "; 0 flaps ", "", "--players", "2000", "--nodes", "4", "--hours", "2", "--capacity", "2Gbit", "--svg", svg)
	if text, err := os.ReadFile(svg); err != nil || !bytes.HasPrefix(text, []byte("<svg ")) {
		t.Errorf("the plot: %v", err)
	}

	// Decisions of a running server, over the network.
	m := discovery.NewMemory(discovery.DefaultServerConfig().Memory(), nil, nil)
	for _, id := range []string{"a", "b"} {
		if err := m.Heartbeat(t.Context(), discovery.Node{
			ID: id, Role: discovery.RoleEdge, State: discovery.StateUp, Addr: discovery.Addr{RTMP: "h:1"},
			Load: map[string]float64{"effective": 0.1, "egress_capacity_bps": 1e9},
		}); err != nil {
			t.Fatal(err)
		}
	}
	p := discovery.NewPlacer(m, schedule.DefaultConfig(), nil, nil, nil)
	if err := p.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if _, err := p.Place(t.Context(), schedule.Request{Action: schedule.Play, BitRate: 1e6}, false); err != nil {
			t.Fatal(err)
		}
	}
	server := httptest.NewServer(discovery.NewHandler(discovery.HandlerConfig{Engine: m, Placer: p, Token: "secret", MaxBody: 1 << 20}))
	defer server.Close()
	f(0, "a           25    50\nb           25     0\n\n50 decisions", "", "--trace", server.URL, "--token", "secret", "--policy", "pack")
	f(exitConnect, "", "refused", "--trace", server.URL)

	listing := filepath.Join(t.TempDir(), "load.json")
	if err := os.WriteFile(listing, []byte(strings.Repeat(`{"nodes":[{"id":"a","role":"edge","state":"up","load":{"effective":0.5}}]}`, 3)), 0o600); err != nil {
		t.Fatal(err)
	}
	f(0, "       20s  start (1 nodes, at least 2)\n3 listings, 1 actions\n", "", "--load", listing)

	f(exitUsage, "", "--policy", "--policy", "best")
	f(exitUsage, "", "exclude each other", "--trace", "x", "--load", "y")
	f(exitUsage, "", "--nodes", "--nodes", "1")
	f(exitUsage, "", "--capacity", "--capacity", "much")
	f(exitUsage, "", "--every", "--load", listing, "--every", "0s")
	f(exitUsage, "", "no such file", "--trace", "/nowhere/trace")
	f(exitUsage, "", "no such file", "-c", "/nowhere/config")
}
