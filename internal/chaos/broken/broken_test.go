package broken

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/internal/chaos"
	"weir/internal/chaos/model"
)

// change is a fault in the source: weir itself has no switch for it.
type change struct{ file, old, new string }

const root = "../../.."

// build builds weir with changes of its source, which stays as it is: the
// compiler reads the changed files instead.
func build(t *testing.T, changes ...change) string {
	t.Helper()
	dir := t.TempDir()
	replace := map[string]string{}
	for _, c := range changes {
		path, err := filepath.Abs(filepath.Join(root, c.file))
		if err != nil {
			t.Fatal(err)
		}
		from := path
		if changed, ok := replace[path]; ok {
			from = changed
		}
		source, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(source), c.old); n != 1 {
			t.Fatalf("%s has %d places %q: change this test with it", c.file, n, c.old)
		}
		to := filepath.Join(dir, strings.ReplaceAll(c.file, "/", "_"))
		if err := os.WriteFile(to, []byte(strings.Replace(string(source), c.old, c.new, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[path] = to
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "weir")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-overlay", list, "-ldflags", "-s -w", "-o", binary, "./cmd/weir")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build weir with a fault: %v\n%s", err, out)
	}
	return binary
}

// breaks runs a build until the checker finds that it breaks one of the rules.
func breaks(t *testing.T, weir string, configure func(*chaos.Config), rules ...model.Rule) {
	t.Helper()
	cfg := chaos.Default()
	cfg.Weir, cfg.Dir, cfg.Out, cfg.Name = weir, t.TempDir(), t.Output(), t.Name()
	cfg.Seed, cfg.Faulty = 1, time.Minute
	cfg.Origins, cfg.Streams, cfg.Contested, cfg.Players = 2, 4, 2, 16
	if configure != nil {
		configure(&cfg)
	}
	result, err := chaos.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range result.Violations {
		if slices.Contains(rules, v.Rule) {
			return
		}
	}
	t.Errorf("the checker found %v, want one of %v", result.Violations, rules)
}

// An origin that has lost its lease goes on as if it had not.
func TestNoFencing(t *testing.T) {
	t.Parallel()
	weir := build(t, change{"discovery/holder.go", "	if h.cfg.OnLost != nil {\n", "	if false {\n"})
	breaks(t, weir, func(c *chaos.Config) { c.Only = []string{"cut"}; c.Contested, c.Edges = 4, 1 },
		model.RuleOneLive, model.RuleOlder, model.RuleStuck)
}

// An edge follows redirects wherever they lead. Those come from nodes that know no
// epoch: where discovery names an owner, its epoch would end the circle as well.
func TestNoHopLimit(t *testing.T) {
	t.Parallel()
	weir := build(t,
		change{"edge/route.go", "func (t *trail) follow(addr string) error {\n", "func (t *trail) follow(addr string) error {\n	if addr != \"\" {\n		return nil\n	}\n"},
		change{"edge/route.go", "p.from, p.epoch, trail.named); err != nil {\n", "p.from, p.epoch, trail.named); err != nil && p.from == \"\" {\n"},
		change{"edge/route.go", "e.notOlder(key, from, r.epoch, 0); err != nil {\n", "e.notOlder(key, from, r.epoch, 0); err != nil && from == \"\" {\n"})
	breaks(t, weir, nil, model.RuleHops)
}

// Each worker of an edge pulls for itself.
func TestNoMerge(t *testing.T) {
	t.Parallel()
	weir := build(t, change{"edge/siblings.go", "		if i == s.index {\n", "		if i >= 0 {\n"})
	breaks(t, weir, nil, model.RuleMerge)
}

// An edge takes what a new upstream sends as new, though it has it already.
func TestNoResume(t *testing.T) {
	t.Parallel()
	weir := build(t, change{"edge/relay.go", "		pub.Resume() //", "		pub.Restart() //"})
	breaks(t, weir, func(c *chaos.Config) { c.Only = []string{"kill-worker", "stop-worker"} }, model.RuleOrder, model.RuleTime)
}

// Something stays behind of each stream that an edge has had.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	weir := build(t, change{"edge/relay.go", "	cause := r.pull(ctx)\n", "	for range 4 {\n		go func() { select {} }()\n	}\n	cause := r.pull(ctx)\n"})
	breaks(t, weir, func(c *chaos.Config) { c.Faulty = 10 * time.Second; c.Only = []string{"delay"} }, model.RuleLeft)
}
