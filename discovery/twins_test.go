package discovery

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A node.id that two nodes have is said once a minute, with both addresses, and not as
// changes of one node's state. A node that starts again is no second one, however often.
func TestTwoNodesHaveTheSameID(t *testing.T) {
	const ttl = 10 * time.Second
	run := func(t *testing.T, beats func(beat func(instance, addr string))) (log string, counted uint64) {
		synctest.Test(t, func(t *testing.T) {
			var text bytes.Buffer
			m := NewMemory(
				MemoryConfig{LeaseTTL: ttl, MaxLeaseTTL: time.Minute, NodeTTL: ttl, MaxStreams: 10, MaxNodes: 10},
				slog.New(slog.NewTextHandler(&text, nil)), nil)
			beats(func(instance, addr string) {
				t.Helper()
				n := Node{ID: "origin-a", Instance: instance, Role: RoleOrigin, Addr: Addr{RTMP: addr}, State: StateUp}
				if err := m.Heartbeat(t.Context(), n); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
			})
			log, counted = text.String(), m.met.twinBeats.Get()
		})
		return log, counted
	}
	const line = "two nodes have the same id"

	log, counted := run(t, func(beat func(instance, addr string)) {
		for range 45 { // a minute and a half
			beat("one", "192.0.2.1:1935")
			beat("two", "192.0.2.2:1935")
		}
	})
	if n := strings.Count(log, line); n != 2 || !strings.Contains(log, "node=origin-a") ||
		!strings.Contains(log, "192.0.2.1:1935") || !strings.Contains(log, "192.0.2.2:1935") {
		t.Errorf("said %d times in a minute and a half:\n%s", n, log)
	}
	if n := strings.Count(log, "node state changed"); n > 4 {
		t.Errorf("%d changes of state", n)
	}
	if counted < 80 {
		t.Errorf("%d heartbeats counted", counted)
	}

	log, _ = run(t, func(beat func(instance, addr string)) {
		for range 5 {
			beat("one", "192.0.2.1:1935")
			beat("two", "192.0.2.2:1935")
			beat("three", "192.0.2.3:1935")
		}
	})
	if n := strings.Count(log, line); n != 1 {
		t.Errorf("of three, said %d times:\n%s", n, log)
	}

	log, counted = run(t, func(beat func(instance, addr string)) {
		for _, instance := range strings.Fields("a a b a b b c c d e f") { // one heartbeat of a is late
			beat(instance, "192.0.2.1:1935")
		}
		time.Sleep(ttl)
		beat("a", "192.0.2.1:1935")
		beat("f", "192.0.2.1:1935")
	})
	if strings.Contains(log, line) || counted != 0 {
		t.Errorf("a node that starts again:\n%s", log)
	}
}
