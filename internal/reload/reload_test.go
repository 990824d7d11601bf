package reload

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metrics"
)

// Each result has its place in the status, one line and one counter.
func TestReload(t *testing.T) {
	var log strings.Builder
	set := metrics.NewSet()
	file, readErr, outcome, applyErr := "one", error(nil), Outcome{}, error(nil)
	var applied []string
	n := New(Options{
		File: []byte("one"), Log: slog.New(slog.NewTextHandler(&log, nil)), Set: set,
		Read: func() ([]byte, string, error) { return []byte(file), "node.yaml", readErr },
		Apply: func(_ context.Context, f []byte, name string) (Outcome, error) {
			applied = append(applied, name+" "+string(f))
			return outcome, applyErr
		},
	})
	f := func(version int, result Result, line string) {
		t.Helper()
		s, err := n.Reload(t.Context(), "test")
		if (err != nil) != (result == Refused) {
			t.Errorf("Reload: %v", err)
		}
		if s.Version != version || s.Last.Result != result {
			t.Errorf("%+v %+v, want version %d %s", s, s.Last, version, result)
		}
		if !strings.Contains(log.String(), line) || strings.Count(log.String(), "\n") != 1 {
			t.Errorf("log %q, want %q", log.String(), line)
		}
		log.Reset()
	}
	first := n.Status()
	f(1, Unchanged, "configuration is unchanged")
	file, outcome = "two", Outcome{Changed: []string{"vhosts", "limits.max_connections"}}
	f(2, Applied, `changed="vhosts limits.max_connections" rolled=false`)
	if n.Status().Hash == first.Hash {
		t.Error("another file has the same hash")
	}
	second := n.Status().Hash
	file, applyErr = "three", errors.New("node.yaml:3: x: bad")
	f(2, Refused, "configuration refused, the one before stays in force")
	if s := n.Status(); s.Last.Error != "node.yaml:3: x: bad" || s.Hash != second {
		t.Errorf("%+v %+v", s, s.Last)
	}
	readErr = errors.New("gone")
	f(2, Refused, "err=gone")
	if want := []string{"node.yaml one", "node.yaml two", "node.yaml three"}; !slices.Equal(applied, want) {
		t.Errorf("applied %q, want %q", applied, want)
	}
	var text bytes.Buffer
	set.WritePrometheus(&text)
	for _, line := range []string{
		"weir_config_version 2", `weir_config_reloads_total{result="refused"} 2`,
		`weir_config_reloads_total{result="applied"} 1`, `weir_config_reloads_total{result="unchanged"} 1`,
	} {
		if !strings.Contains(text.String(), line) {
			t.Errorf("no %s in %s", line, text.String())
		}
	}
}

func TestANodeWithoutAFileRefuses(t *testing.T) {
	n := New(Options{Log: slog.New(slog.DiscardHandler), Set: metrics.NewSet()})
	if s, err := n.Reload(t.Context(), "test"); err == nil || s.Last.Result != Refused || s.Version != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestAmong(t *testing.T) {
	in, out := Among([]string{"limits.max", "limitsx.max", "play.max_sessions", "play.max_lag", "role"}, "limits", "play.max_sessions", "role")
	if !slices.Equal(in, []string{"limits.max", "play.max_sessions", "role"}) || !slices.Equal(out, []string{"limitsx.max", "play.max_lag"}) {
		t.Errorf("%q and %q", in, out)
	}
	if err := CannotChange([]string{"a", "b"}); err == nil || err.Error() != "a: cannot change while the node runs\nb: cannot change while the node runs" {
		t.Errorf("%v", err)
	}
}
