package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"weir/internal/bench"
)

func TestPage(t *testing.T) {
	dir := t.TempDir()
	save := func(name string, r bench.Report) {
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	save("flv-2000", bench.Report{
		Protocol: bench.HTTPFLV, Streams: 1, Players: 2000, Window: bench.Window{CPUPerGB: 0.5},
		Floor: []bench.Floor{{IntervalMS: 120, Players: 2000, CPUPerGB: 0.4, Ratio: 1.25}},
	})
	save("rtmp-2000", bench.Report{Protocol: bench.RTMP, Streams: 1, Players: 2000, Window: bench.Window{CPUPerGB: 0.6}})
	save("slow-2", bench.Report{Streams: 1, Players: 1000, Slow: &bench.Slow{Players: 1, Stalled: 1}})
	save("crowd-5000", bench.Report{Streams: 1, Players: 1000, Crowd: &bench.Crowd{Players: 5000, Seconds: 5}})
	results, err := read(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := write(&b, results); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, want := range []string{
		"| HTTP-FLV, 2000 players | bare loop of sends every 120 ms, same run | **1.25** |",
		"| RTMP, 1 × 2000 players | HTTP-FLV, 1 × 2000 | **1.20** |",
		"| every 120 ms | 2000 | 0.400 |",
		"## Slow players", "| 1000 | 5000 in 5 s |",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("page lacks %q:\n%s", want, page)
		}
	}
}

// Every run that the script makes has its place on the page.
func TestRunsOfTheScript(t *testing.T) {
	script, err := os.ReadFile("../bench.sh")
	if err != nil {
		t.Fatal(err)
	}
	made := regexp.MustCompile(`(?m)^\s*run (\S+)`).FindAllStringSubmatch(string(script), -1)
	if len(made) != len(runs) {
		t.Fatalf("the script makes %d runs, the page has %d", len(made), len(runs))
	}
	for i, m := range made {
		if m[1] != runs[i].name {
			t.Errorf("run %d of the script is %s, of the page %s", i, m[1], runs[i].name)
		}
	}
}

func TestNoResults(t *testing.T) {
	if _, err := read(t.TempDir()); err == nil {
		t.Error("an empty folder is no error")
	}
}
