package e2e

import (
	"bufio"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// metrics are the values of a node by series, as in
// `weir_sessions_total{kind="play"}`.
type metrics map[string]float64

// parseMetrics reads the Prometheus text format; timestamps are not expected.
func parseMetrics(text string) (metrics, error) {
	m := make(metrics)
	lines := bufio.NewScanner(strings.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		if at < 0 {
			return nil, fmt.Errorf("read metrics: line %d has no value: %q", n, line)
		}
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("read metrics: line %d: %w", n, err)
		}
		series := strings.TrimSpace(line[:at])
		if _, twice := m[series]; twice {
			return nil, fmt.Errorf("read metrics: line %d: %s is there twice", n, series)
		}
		m[series] = value
	}
	return m, lines.Err()
}

// sum adds up all series of a metric that carry the given labels, each as
// `name="value"`.
func (m metrics) sum(name string, labels ...string) float64 {
	total := 0.0
	for series, value := range m {
		rest, ok := strings.CutPrefix(series, name)
		if !ok || rest != "" && rest[0] != '{' {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(rest, "{"+l) && !strings.Contains(rest, ","+l) {
				ok = false
			}
		}
		if ok {
			total += value
		}
	}
	return total
}

// scrape reads the metrics of the node whose admin server is at addr.
func scrape(t testing.TB, addr string) metrics {
	t.Helper()
	answer := get(t, "http://"+addr+"/metrics")
	if answer.status != 200 {
		t.Fatalf("metrics of %s: HTTP status %d", addr, answer.status)
	}
	m, err := parseMetrics(string(answer.body))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestParseMetrics(t *testing.T) {
	m, err := parseMetrics("# HELP a b\na 1\nb{x=\"1\",y=\"2 3\"} 2.5\nb{x=\"2\",y=\"2 3\"} 1e3\nbc 7\n")
	if err != nil {
		t.Fatal(err)
	}
	f := func(want float64, name string, labels ...string) {
		t.Helper()
		if got := m.sum(name, labels...); got != want {
			t.Errorf("sum of %s %v is %v, want %v", name, labels, got, want)
		}
	}
	f(1, "a")
	f(1002.5, "b")
	f(2.5, "b", `x="1"`)
	f(1000, "b", `x="2"`, `y="2 3"`)
	f(0, "b", `x="3"`)
	f(0, "c")
	for _, bad := range []string{"a", "a b", "a 1\na 1"} {
		if _, err := parseMetrics(bad); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}
