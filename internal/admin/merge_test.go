package admin

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metrics"
)

func merged(t testing.TB, sources ...string) string {
	t.Helper()
	var m merger
	for i, text := range sources {
		worker := fmt.Sprint(i - 1)
		if i == 0 {
			worker = ""
		}
		if err := m.add(worker, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	m.writeTo(&out)
	return out.String()
}

func TestMerge(t *testing.T) {
	f := func(want string, sources ...string) {
		t.Helper()
		if got := merged(t, sources...); got != want {
			t.Errorf("merge of %q:\n%s\nwant:\n%s", sources, got, want)
		}
	}
	f("")
	f("", "\n# just a remark\n#\n# TYPE\n# EOF\n", "")

	// Counters and gauges add up, whatever the order of their labels.
	f("a 6\nb{x=\"1\",y=\"2\"} 4\nb{x=\"2\"} 1\n",
		"a 1\n", "b{x=\"1\",y=\"2\"} 3\na 2\n", "a 3\nb{y=\"2\",x=\"1\"} 1\nb{x=\"2\"} 1")

	// HELP and TYPE come once, before their family, which stays in one piece.
	f("# HELP a what it is\n# TYPE a counter\na{x=\"1\"} 2\na{x=\"2\"} 1\nb 1\n",
		"# HELP a what it is\n# TYPE a counter\na{x=\"1\"} 1\nb 1\n",
		"# HELP a other words\n# TYPE a counter\na{x=\"1\"} 1\na{x=\"2\"} 1\n")

	// Histograms, of both kinds; the parts stay with the whole.
	f("# TYPE h histogram\n"+`h_bucket{le="1"} 3`+"\n"+`h_bucket{le="+Inf"} 7`+"\nh_sum 2.5\nh_count 7\n",
		"# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 3\nh_sum 1\nh_count 3\n",
		"# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 4\nh_sum 1.5\nh_count 4\n")
	f("h_bucket{vmrange=\"1.000e+00...1.136e+00\"} 5\nh_bucket{vmrange=\"2.000e+00...2.200e+00\"} 1\n",
		"h_bucket{vmrange=\"1.000e+00...1.136e+00\"} 2\n",
		"h_bucket{vmrange=\"1.000e+00...1.136e+00\"} 3\nh_bucket{vmrange=\"2.000e+00...2.200e+00\"} 1\n")

	// What is about one process keeps its process.
	f("process_start_time_seconds 100\nprocess_start_time_seconds{worker=\"0\"} 200\nprocess_start_time_seconds{worker=\"1\"} 300\n",
		"process_start_time_seconds 100\n", "process_start_time_seconds 200\n", "process_start_time_seconds 300\n")
	f("s{quantile=\"0.5\",worker=\"0\"} 1\ns{quantile=\"0.5\",worker=\"1\"} 2\ns_sum 5\n",
		"", "s{quantile=\"0.5\"} 1\ns_sum 2\n", "s{quantile=\"0.5\"} 2\ns_sum 3\n")
	f("weir_load_ratio{worker=\"7\"} 0.5\nlast_timestamp_seconds{worker=\"0\"} 7\nbuild_info{v=\"1\",worker=\"0\"} 1\n",
		"", "weir_load_ratio{worker=\"7\"} 0.5\nweir_load_ratio{worker=\"7\"} 0.5\nlast_timestamp_seconds 7\nbuild_info{v=\"1\"} 1\n")

	// Values as they are written, timestamps dropped, NaN without a voice.
	f("a 20000000\nb 0.25\nc +Inf\nd -Inf\ne 3\nf NaN\n",
		"a 1e7 1700000000000\nb .125\nc Inf\nd -Inf\ne NaN\nf NaN\n", "a\t10000000\nb{} 0.125\ne 3\nf NaN\r\n", "e NaN\n")

	// One label that is no UTF-8 would cost the reader all of the metrics.
	f("a{p=\"x\ufffd\"} 1\n", "a{p=\"x\xff\"} 1\n")

	// Label values travel through their escapes.
	f(`a{p="C:\\x \"y\"\nz, } é"} 2`+"\n", `a{ p = "C:\\x \"y\"\nz, } é" , } 1`, `a{p="C:\\x \"y\"\nz, } é"}1`)
}

// The updates of one set spread over three processes make the same metrics.
func TestMergeOfRealMetricsIsTheWhole(t *testing.T) {
	whole := metrics.NewSet()
	parts := []*metrics.Set{metrics.NewSet(), metrics.NewSet(), metrics.NewSet()}
	for i := range 3000 {
		for _, set := range []*metrics.Set{whole, parts[i%3]} {
			set.GetOrCreateCounter(fmt.Sprintf(`c_total{kind="%d"}`, i%5)).Add(i)
			set.GetOrCreateHistogram(`h_seconds{x="y"}`).Update(float64(i*i) / 64) // sums are exact
		}
	}
	text := func(set *metrics.Set) string {
		var b bytes.Buffer
		set.WritePrometheus(&b)
		return b.String()
	}
	got := values(t, merged(t, text(parts[0]), text(parts[1]), text(parts[2])))
	want := values(t, merged(t, text(whole)))
	if len(got) != len(want) || len(want) < 50 {
		t.Errorf("%d series, want %d", len(got), len(want))
	}
	for key, value := range want {
		// The library writes sums with six digits.
		if math.Abs(got[key]-value) > 1e-5*math.Abs(value) {
			t.Errorf("%s: %v, want %v", key, got[key], value)
		}
	}
}

func values(t testing.TB, text string) map[string]float64 {
	t.Helper()
	e, err := parseExposition([]byte(text))
	if err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	all := map[string]float64{}
	for _, s := range e.samples {
		if _, twice := all[s.key()]; twice {
			t.Errorf("%s: twice", s.key())
		}
		all[s.key()] = s.value
	}
	return all
}

func TestBadMetricsAreRefused(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		var m merger
		err := m.add("3", []byte("good 1\n"+text))
		if err == nil || !strings.HasPrefix(err.Error(), "read metrics of worker 3: line 2: "+want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
		if len(m.families) != 0 {
			t.Errorf("%q: half of it was merged", text)
		}
	}
	f(`1a 1`, `no metric name at "1a 1"`)
	f(`{"a b"} 1`, `no metric name`)
	f(`<html>`, `no metric name`)
	f(`a`, `metric a: no value`)
	f(`a-b 1`, `metric a: no value`)
	f(`a x`, `metric a: "x" is no value`)
	f(`a{}`, `metric a: "" is no value`)
	f(`a 0x1p4`, `metric a: "0x1p4" is no value`)
	f(`a 1_000`, `metric a: "1_000" is no value`)
	f(`a 1e999`, `metric a: "1e999" is no value`)
	f(`a 1 x`, `metric a: "x " after the value`)
	f(`a 1 2 3`, `metric a: "2 3" after the value`)
	f(`a{`, `metric a: no label name at ""`)
	f(`a{,} 1`, `metric a: no label name at ",} 1"`)
	f(`a{b:c="1"} 1`, `metric a: label b: no value`)
	f(`a{b} 1`, `metric a: label b: no value`)
	f(`a{b=1} 1`, `metric a: label b: no quote at "1} 1"`)
	f(`a{b="1} 1`, `metric a: label b: no end of the value`)
	f(`a{b="1\`, `metric a: label b: no end of the value`)
	f(`a{b="\t"} 1`, `metric a: label b: escape "\\t" is not defined`)
	f(`a{b="1"c="2"} 1`, `metric a: label b: "c=\"2\"} 1" after the value`)
	f(`a{b="1",b="2"} 1`, `metric a: label b: twice`)
}

// Whatever is read can be written and read again with the same meaning, and
// merged with itself it doubles, as far as it may be summed.
func FuzzMerge(f *testing.F) {
	f.Add("# HELP a b\n# TYPE a counter\na{x=\"1\",y=\"\\\\\\\"\\n\"} 1 2\n")
	f.Add("# TYPE h histogram\nh_bucket{le=\"+Inf\"} 3\nh_sum 1\nh_count 3\n")
	f.Add("h_bucket{vmrange=\"1...2\"} 1e7\nprocess_x 1\ns{quantile=\"0.5\"} NaN\n")
	f.Add("a{ } -Inf\r\n:b .5\n")
	f.Fuzz(func(t *testing.T, text string) {
		var once, again merger
		if once.add("0", []byte(text)) != nil {
			return
		}
		var out bytes.Buffer
		once.writeTo(&out)
		first := out.String()
		if err := again.add("0", out.Bytes()); err != nil {
			t.Fatalf("%v in %q", err, first)
		}
		var second bytes.Buffer
		again.writeTo(&second)
		if first != second.String() {
			t.Fatalf("%q becomes %q", first, second.String())
		}
		if err := again.add("0", out.Bytes()); err != nil {
			t.Fatal(err)
		}
		for key, s := range again.bySeries {
			want := 2 * once.bySeries[key].value
			if s.fixed {
				want = once.bySeries[key].value
			}
			if s.value != want && !(math.IsNaN(s.value) && math.IsNaN(want)) {
				t.Fatalf("%s: %v, want %v", key, s.value, want)
			}
		}
	})
}
