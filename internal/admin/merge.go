package admin

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Metrics of several processes become those of one node here. The format is
// Prometheus's text format 0.0.4
// (https://prometheus.io/docs/instrumenting/exposition_formats/), of which
// timestamps are read and dropped: a sum has no time of its own. Names are the
// classic ones; the quoted ones of newer versions are refused.

type label struct{ name, value string }

type sample struct {
	name   string
	labels []label
	value  float64
}

// merger adds up the metrics of processes. The zero value is empty.
//
// Values of the same series (name and set of labels) are summed, which is right
// for counters, for gauges that count something, and for the buckets of
// histograms, be they Prometheus's cumulative ones (le) or VictoriaMetrics'
// disjoint ones (vmrange). Series whose sum means nothing (see perProcess) get
// the label worker instead.
type merger struct {
	families []*family // in the order in which they were met
	byName   map[string]*family
	bySeries map[string]*series
}

// family is the metrics that share a HELP and a TYPE line.
type family struct {
	name       string
	help, kind string // the lines' rest, as written; empty: no such line
	series     []*series
}

type series struct {
	text  string // name and labels as they are written
	value float64
	fixed bool // of one process: never summed
}

// add merges what one process has written. worker is the label of what cannot
// be summed, "" for the supervisor, whose series get none. On an error nothing
// is merged.
func (m *merger) add(worker string, text []byte) error {
	e, err := parseExposition(text)
	if err != nil {
		if worker == "" {
			return fmt.Errorf("read own metrics: %w", err)
		}
		return fmt.Errorf("read metrics of worker %s: %w", worker, err)
	}
	for _, d := range e.descriptions {
		f := m.family(d.family)
		if d.isType && f.kind == "" {
			f.kind = d.text
		} else if !d.isType && f.help == "" {
			f.help = d.text
		}
	}
	for _, s := range e.samples {
		m.addSample(s, worker)
	}
	return nil
}

func (m *merger) addSample(s sample, worker string) {
	fixed := perProcess(&s)
	if fixed && worker != "" && !slices.ContainsFunc(s.labels, func(l label) bool { return l.name == "worker" }) {
		s.labels = append(slices.Clip(s.labels), label{"worker", worker})
	}
	key := s.key()
	known, ok := m.bySeries[key]
	if !ok {
		f := m.familyOf(s.name)
		known = &series{text: s.String(), value: s.value, fixed: fixed}
		f.series = append(f.series, known)
		if m.bySeries == nil {
			m.bySeries = make(map[string]*series)
		}
		m.bySeries[key] = known
		return
	}
	switch {
	case known.fixed, math.IsNaN(s.value):
		// The first one stands; NaN is no value.
	case math.IsNaN(known.value):
		known.value = s.value
	default:
		known.value += s.value
	}
}

// perProcess says whether the value of a series is about one process, so that
// the sum over several means nothing: quantiles, points in time, shares of a
// whole, descriptions, and what Go's runtime and the kernel say of a process.
func perProcess(s *sample) bool {
	for _, prefix := range []string{"go_", "process_"} {
		if strings.HasPrefix(s.name, prefix) {
			return true
		}
	}
	for _, suffix := range []string{"_timestamp_seconds", "_ratio", "_info"} {
		if strings.HasSuffix(s.name, suffix) {
			return true
		}
	}
	return slices.ContainsFunc(s.labels, func(l label) bool { return l.name == "quantile" })
}

// family returns the family of the name, a new one if there is none.
func (m *merger) family(name string) *family {
	f, ok := m.byName[name]
	if !ok {
		f = &family{name: name}
		m.families = append(m.families, f)
		if m.byName == nil {
			m.byName = make(map[string]*family)
		}
		m.byName[name] = f
	}
	return f
}

// familyOf returns the family to which a sample belongs: that of its name or,
// for a part of a histogram or summary whose TYPE is known, that of the whole.
func (m *merger) familyOf(name string) *family {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if whole, ok := strings.CutSuffix(name, suffix); ok {
			if f := m.byName[whole]; f != nil && (f.kind == "histogram" || f.kind == "summary") {
				return f
			}
		}
	}
	return m.family(name)
}

// writeTo writes all that was added, each family in one piece.
func (m *merger) writeTo(w *bytes.Buffer) {
	for _, f := range m.families {
		if len(f.series) == 0 {
			continue
		}
		if f.help != "" {
			fmt.Fprintf(w, "# HELP %s %s\n", f.name, f.help)
		}
		if f.kind != "" {
			fmt.Fprintf(w, "# TYPE %s %s\n", f.name, f.kind)
		}
		for _, s := range f.series {
			_, _ = io.WriteString(w, s.text)
			w.WriteByte(' ')
			w.WriteString(formatValue(s.value))
			w.WriteByte('\n')
		}
	}
}

// formatValue writes whole numbers without an exponent, as people read them.
func formatValue(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return "+Inf"
	case math.IsInf(v, -1):
		return "-Inf"
	case v == math.Trunc(v) && math.Abs(v) < 1<<63:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// key is the same for two samples exactly if they are of the same series.
func (s *sample) key() string {
	sorted := sample{name: s.name, labels: slices.SortedFunc(slices.Values(s.labels), func(a, b label) int {
		return strings.Compare(a.name, b.name)
	})}
	return sorted.String()
}

var labelEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// String writes name and labels.
func (s *sample) String() string {
	if len(s.labels) == 0 {
		return s.name
	}
	var b strings.Builder
	b.WriteString(s.name)
	for i, l := range s.labels {
		b.WriteByte("{,"[min(i, 1)])
		b.WriteString(l.name)
		b.WriteString(`="`)
		_, _ = labelEscapes.WriteString(&b, l.value)
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

// exposition is the metrics of one process.
type exposition struct {
	descriptions []description
	samples      []sample
}

// description is a HELP or TYPE line.
type description struct {
	family string
	isType bool
	text   string
}

// parseExposition reads metrics. Its errors name the line. Bytes that are no
// UTF-8 are replaced: Prometheus refuses all of a text that has any.
func parseExposition(text []byte) (*exposition, error) {
	e := new(exposition)
	number := 0
	for line := range strings.Lines(strings.ToValidUTF8(string(text), "\ufffd")) {
		number++
		line = strings.Trim(line, " \t\r\n")
		if line == "" {
			continue
		}
		if comment, ok := strings.CutPrefix(line, "#"); ok {
			if d, ok := parseDescription(comment); ok {
				e.descriptions = append(e.descriptions, d)
			}
			continue
		}
		s, err := parseSample(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		e.samples = append(e.samples, s)
	}
	return e, nil
}

// parseDescription reads a comment, of which most are just that.
func parseDescription(comment string) (description, bool) {
	word, rest := cutField(comment)
	if word != "HELP" && word != "TYPE" {
		return description{}, false
	}
	name, text := cutField(rest)
	if n := nameLength(name, true); n == 0 || n != len(name) {
		return description{}, false
	}
	return description{name, word == "TYPE", text}, true
}

const blanks = " \t"

func cutField(s string) (field, rest string) {
	s = strings.TrimLeft(s, blanks)
	if i := strings.IndexAny(s, blanks); i >= 0 {
		return s[:i], strings.TrimLeft(s[i:], blanks)
	}
	return s, ""
}

// parseSample reads `name{label="value",...} value [timestamp]`.
func parseSample(line string) (s sample, err error) {
	n := nameLength(line, true)
	if n == 0 {
		return s, fmt.Errorf("no metric name at %.40q", line)
	}
	s.name = line[:n]
	rest := strings.TrimLeft(line[n:], blanks)
	if strings.HasPrefix(rest, "{") {
		if s.labels, rest, err = parseLabels(rest[1:]); err != nil {
			return s, fmt.Errorf("metric %s: %w", s.name, err)
		}
	} else if rest == line[n:] {
		return s, fmt.Errorf("metric %s: no value", s.name)
	}
	value, rest := cutField(rest)
	timestamp, rest := cutField(rest)
	if timestamp != "" {
		if _, err := strconv.ParseInt(timestamp, 10, 64); err != nil || rest != "" {
			return s, fmt.Errorf("metric %s: %.40q after the value", s.name, timestamp+" "+rest)
		}
	}
	// ParseFloat would take hexadecimal numbers and underscores as well.
	if s.value, err = strconv.ParseFloat(value, 64); err != nil || strings.ContainsAny(value, "xX_") {
		return s, fmt.Errorf("metric %s: %.40q is no value", s.name, value)
	}
	return s, nil
}

// parseLabels reads labels behind their "{" and returns what follows the "}".
func parseLabels(text string) (labels []label, rest string, err error) {
	for {
		text = strings.TrimLeft(text, blanks)
		if rest, ok := strings.CutPrefix(text, "}"); ok {
			return labels, rest, nil
		}
		n := nameLength(text, false)
		if n == 0 {
			return nil, "", fmt.Errorf("no label name at %.40q", text)
		}
		name := text[:n]
		after, ok := strings.CutPrefix(strings.TrimLeft(text[n:], blanks), "=")
		if !ok {
			return nil, "", fmt.Errorf("label %s: no value", name)
		}
		value, after, err := parseQuoted(strings.TrimLeft(after, blanks))
		if err != nil {
			return nil, "", fmt.Errorf("label %s: %w", name, err)
		}
		if slices.ContainsFunc(labels, func(l label) bool { return l.name == name }) {
			return nil, "", fmt.Errorf("label %s: twice", name)
		}
		labels = append(labels, label{name, value})
		text = strings.TrimLeft(after, blanks)
		if next, ok := strings.CutPrefix(text, ","); ok {
			text = next
		} else if !strings.HasPrefix(text, "}") {
			return nil, "", fmt.Errorf("label %s: %.40q after the value", name, text)
		}
	}
}

// parseQuoted reads a label's value in its quotes and returns what follows.
func parseQuoted(text string) (value, rest string, err error) {
	text, ok := strings.CutPrefix(text, `"`)
	if !ok {
		return "", "", fmt.Errorf("no quote at %.40q", text)
	}
	var b strings.Builder
	for {
		i := strings.IndexAny(text, `"\`)
		if i < 0 || i == len(text)-1 && text[i] == '\\' {
			return "", "", fmt.Errorf("no end of the value %.40q", text)
		}
		b.WriteString(text[:i])
		if text[i] == '"' {
			return b.String(), text[i+1:], nil
		}
		switch text[i+1] {
		case 'n':
			b.WriteByte('\n')
		case '\\', '"':
			b.WriteByte(text[i+1])
		default:
			return "", "", fmt.Errorf("escape %q is not defined", text[i:i+2])
		}
		text = text[i+2:]
	}
}

// nameLength returns the length of the name that s begins with. Names of
// metrics may have colons.
func nameLength(s string, metric bool) int {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c|0x20 && c|0x20 <= 'z', c == '_', metric && c == ':', i > 0 && '0' <= c && c <= '9':
		default:
			return i
		}
	}
	return len(s)
}
