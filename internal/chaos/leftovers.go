package chaos

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"weir/internal/chaos/model"
)

// held is what a process holds, by the word of the history.
type held map[string]int64

// holdings returns what each process of the cluster holds, by node or, for the
// workers of an edge, node and number.
func (c *cluster) holdings(ctx context.Context) (map[string]held, error) {
	all := map[string]held{}
	for _, n := range c.nodes {
		if n.role == roleEtcd { // what it holds is its own affair
			continue
		}
		var text string
		if err := n.ask(ctx, "/metrics", &text); err != nil {
			return nil, fmt.Errorf("ask %s for its metrics: %w", n.name, err)
		}
		pids := map[string]int{"": 0}
		pids[""], _ = n.pid()
		if n.role == "edge" {
			var info nodeInfo
			if err := n.ask(ctx, "/api/v1/node", &info); err != nil {
				return nil, fmt.Errorf("ask %s for its workers: %w", n.name, err)
			}
			for _, w := range info.Workers {
				pids[strconv.Itoa(w.Index)] = w.PID
			}
		}
		for worker, pid := range pids {
			h := held{}
			label, name := "", n.name
			if worker != "" {
				label, name = `{worker="`+worker+`"}`, n.name+" worker "+worker
			}
			for what, metric := range map[string]string{"goroutines": "go_goroutines", "memory": "go_memstats_heap_inuse_bytes"} {
				v, ok := series(text, metric+label)
				if !ok {
					return nil, fmt.Errorf("%s does not say %s", n.name, metric+label)
				}
				h[what] = v
			}
			entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
			if err != nil {
				return nil, fmt.Errorf("descriptors of %s: %w", name, err)
			}
			h["descriptors"] = int64(len(entries))
			all[name] = h
		}
	}
	return all, nil
}

// series returns the value of a series in Prometheus's text format.
func series(text, name string) (int64, bool) {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return int64(v), err == nil
		}
	}
	return 0, false
}

// awaitLeast waits, at most for patience, until no process holds more than it may, and
// returns what each holds then. Without a before it waits until that does not
// fall any more.
func (c *cluster) awaitLeast(ctx context.Context, before map[string]held, b model.Bounds, patience time.Duration) (map[string]held, error) {
	end := time.Now().Add(patience)
	var least map[string]held
	for {
		now, err := c.holdings(ctx)
		if err == nil {
			fallen := least == nil
			for name, h := range now {
				for what, v := range h {
					if least == nil {
						continue
					}
					if old, ok := least[name][what]; ok && what != "memory" && v < old {
						fallen = true
					}
				}
			}
			least = now
			if before != nil && within(before, now, b) || before == nil && !fallen && time.Until(end) < patience/2 {
				return now, nil
			}
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return least, err
		}
		rest(ctx, 500*time.Millisecond)
	}
}

func within(before, after map[string]held, b model.Bounds) bool {
	for name, h := range after {
		for what, v := range h {
			old, ok := before[name][what]
			if ok && v > old+b.Allowed(what) {
				return false
			}
		}
	}
	return true
}
