package chaos

import (
	"fmt"
	"slices"
	"testing"
)

func rounds(cfg Config, n int) [][]fault {
	p := newPlanner(&cfg)
	all := make([][]fault, n)
	for i := range all {
		all[i] = p.round()
	}
	return all
}

func TestTheSeedDecides(t *testing.T) {
	cfg := Default()
	cfg.Seed = 5
	first := fmt.Sprint(rounds(cfg, 50))
	if fmt.Sprint(rounds(cfg, 50)) != first {
		t.Error("one seed gave two plans")
	}
	cfg.Seed = 6
	if fmt.Sprint(rounds(cfg, 50)) == first {
		t.Error("two seeds gave one plan")
	}
}

func TestPlans(t *testing.T) {
	cfg := Default()
	seen := map[string]bool{}
	for _, round := range rounds(cfg, 500) {
		if len(round) == 0 || len(round) > 3 {
			t.Fatalf("a round has %d faults", len(round))
		}
		down, hosts := 0, map[string]bool{}
		for _, f := range round {
			seen[f.what] = true
			if f.hold < shortest || f.hold > longestFault {
				t.Errorf("%v lasts %v", f, f.hold)
			}
			if f.what == faultLoss && (f.loss < 0.05 || f.loss > 0.30) {
				t.Errorf("%v loses %v", f, f.loss)
			}
			if f.down() && slices.Contains(cfg.origins(), f.a) {
				down++
			}
			for _, h := range []string{f.a, f.b} {
				if h != "" && hosts[h] {
					t.Errorf("%v hits %s twice", round, h)
				}
				hosts[h] = true
			}
		}
		if down == cfg.Origins {
			t.Errorf("no origin is spared: %v", round)
		}
	}
	for _, kind := range faultKinds {
		if !seen[kind] {
			t.Errorf("500 rounds have no fault %q", kind)
		}
	}
}

// With an etcd its members have faults like all others, but most are always there.
func TestPlansOverEtcd(t *testing.T) {
	cfg := Default()
	cfg.Engine = EngineEtcd
	hit := map[string]bool{}
	for _, round := range rounds(cfg, 500) {
		down := 0
		for _, f := range round {
			hit[f.a], hit[f.b] = true, true
			if slices.Contains(cfg.members(), f.a) {
				down++
			}
		}
		if down > 1 {
			t.Errorf("a majority is missing: %v", round)
		}
	}
	for _, name := range cfg.hosts() {
		if !hit[name] && name != hostLiarA && name != hostLiarB {
			t.Errorf("500 rounds have no fault of %s", name)
		}
	}
}

func TestOnly(t *testing.T) {
	cfg := Default()
	cfg.Only = []string{faultDelay, faultLoss}
	for _, round := range rounds(cfg, 50) {
		for _, f := range round {
			if !slices.Contains(cfg.Only, f.what) {
				t.Errorf("%v was drawn though only %v may be", f, cfg.Only)
			}
		}
	}
}

func TestValidate(t *testing.T) {
	cfg := Default()
	if err := cfg.Validate(); err != nil {
		t.Errorf("the default is refused: %v", err)
	}
	bad := Config{Only: []string{"fire"}}
	const want = "time: 0s is not between 10s and 24h\norigins: 0 is not between 2 and 5\nedges: 0 is not between 1 and 4\n" +
		"workers: 0 is not between 1 and 8\nengine: \"\" is neither memory nor etcd\nstreams: 0 is not between 1 and 50\nplayers: 0 is not between 4 and 1000\n" +
		`faults: "fire" is none of kill, power, kill-worker, stop, stop-worker, isolate, cut, one-way, delay, loss, disk-full`
	if err := bad.Validate(); err == nil || err.Error() != want {
		t.Errorf("the errors are %v, want %s", err, want)
	}
}

func TestSeries(t *testing.T) {
	const text = "# TYPE go_goroutines gauge\ngo_goroutines 12\ngo_goroutines{worker=\"0\"} 1.5e3\n"
	f := func(name string, want int64, is bool) {
		t.Helper()
		if got, ok := series(text, name); got != want || ok != is {
			t.Errorf("%s is %d, %t", name, got, ok)
		}
	}
	f("go_goroutines", 12, true)
	f(`go_goroutines{worker="0"}`, 1500, true)
	f("go_gorout", 0, false)
}
