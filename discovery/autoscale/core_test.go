package autoscale

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The files of testdata are scripts: what is seen, and what is to be done.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d scripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { runScript(t, file) })
	}
}

func runScript(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var (
		core  *Core
		now   time.Time
		nodes []Node
		got   string
		begin = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	)
	for i, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s:%d: %v", file, i+1, err)
			}
		}
		if got != "" { // the line after a step
			if want := strings.Join(words, " "); got != want {
				t.Fatalf("%s:%d: got %q, want %q", file, i+1, got, want)
			}
			got = ""
			continue
		}
		switch words[0] {
		case "config":
			cfg := DefaultConfig()
			set := map[string]any{
				"min": &cfg.Min, "max": &cfg.Max, "out_after": &cfg.OutAfter, "in_after": &cfg.InAfter, "warm_up": &cfg.WarmUp,
				"cool_down": &cfg.CoolDown, "drain_deadline": &cfg.DrainDeadline, "retry": &cfg.Retry,
			}
			for _, w := range words[1:] {
				key, value, _ := strings.Cut(w, "=")
				var err error
				switch p := set[key].(type) {
				case *int:
					*p, err = strconv.Atoi(value)
				case *time.Duration:
					*p, err = time.ParseDuration(value)
				default:
					err = fmt.Errorf("unknown key %s", key)
				}
				must(err)
			}
			must(cfg.Validate())
			core = NewCore(cfg)
		case "at":
			d, err := time.ParseDuration(words[1])
			must(err)
			now = begin.Add(d)
		case "node":
			n := Node{ID: words[1], Up: words[2] == "up", Draining: words[2] == "draining", Reported: true}
			for _, w := range words[3:] {
				key, value, _ := strings.Cut(w, "=")
				x, err := strconv.ParseFloat(value, 64)
				must(err)
				switch key {
				case "load":
					n.Load = x
				case "sessions":
					n.Sessions = x
				case "cost":
					n.Cost = x
				case "capacity":
					n.Capacity = x
				default:
					must(fmt.Errorf("unknown key %s", key))
				}
			}
			if j := slices.IndexFunc(nodes, func(o Node) bool { return o.ID == n.ID }); j >= 0 {
				nodes[j] = n
			} else {
				nodes = append(nodes, n)
			}
		case "gone":
			nodes = slices.DeleteFunc(nodes, func(n Node) bool { return n.ID == words[1] })
		case "fail":
			core.Failed(now)
		case "step":
			got = "-"
			if a, ok := core.Step(now, nodes); ok {
				got = a.String()
			}
		default:
			t.Fatalf("%s:%d: unknown line %q", file, i+1, line)
		}
	}
}

// A node of ten times the capacity counts ten times.
func TestMeanIsWeightedByCapacity(t *testing.T) {
	c := NewCore(DefaultConfig())
	s := c.look([]Node{{ID: "big", Up: true, Reported: true, Load: 0.1, Capacity: 10e9}, {ID: "small", Up: true, Reported: true, Load: 0.98, Capacity: 1e9}})
	if s.mean < 0.179 || s.mean > 0.181 {
		t.Errorf("mean %v, want 0.18", s.mean)
	}
}
