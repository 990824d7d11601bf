// Command benchtable turns the results of scripts/bench.sh into a page of
// Markdown: benchtable FOLDER, with one NAME.json of `weir bench` for each run.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"weir/internal/bench"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: benchtable FOLDER")
		os.Exit(2)
	}
	results, err := read(os.Args[1])
	if err == nil {
		err = write(os.Stdout, results)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchtable:", err)
		os.Exit(1)
	}
}

// runs are the runs of scripts/bench.sh in the order of the page, with what each
// stands for.
var runs = []struct{ name, work string }{
	{"flv-50", "HTTP-FLV, few players"},
	{"flv-2000", "HTTP-FLV"},
	{"flv-2000-350ms", "HTTP-FLV, `play.max_latency: 350ms`"},
	{"ws-2000", "WebSocket-FLV"},
	{"rtmp-2000", "RTMP"},
	{"https-1000", "HTTP-FLV under TLS"},
	{"flv-10000", "HTTP-FLV, many players"},
	{"streams-1x5000", "HTTP-FLV, one stream"},
	{"streams-1000x5", "HTTP-FLV, many streams"},
	{"slow-2", "HTTP-FLV, before the slow ones"},
	{"slow-500", "HTTP-FLV, before the stalled ones"},
	{"crowd-5000", "HTTP-FLV, before the crowd"},
}

// work returns what a run stands for.
func work(name string) string {
	for _, run := range runs {
		if run.name == name {
			return run.work
		}
	}
	return name
}

// read returns the results by name. Runs that were not made are missing.
func read(dir string) (map[string]*bench.Report, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	results := map[string]*bench.Report{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var r bench.Report
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		results[strings.TrimSuffix(filepath.Base(file), ".json")] = &r
	}
	if len(results) == 0 {
		return nil, errors.New("there are no results in " + dir)
	}
	return results, nil
}

// write writes the page.
func write(out io.Writer, results map[string]*bench.Report) error {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	for _, r := range results { // all of one machine
		p("Machine: %d cores, %s, %s, %.0f GB. Streams of %.2f Mbit/s, origin → edge → players over the loopback, the load tool beside them.",
			r.Machine.Cores, r.Machine.Model, r.Machine.Kernel, float64(r.Machine.Memory)/1e9, float64(r.Form.BitRate)/1e6)
		break
	}
	writeRatios(p, results)
	writeRuns(p, results)
	writeSlow(p, results)
	_, err := io.WriteString(out, b.String())
	return err
}

type printer func(format string, args ...any)

// writeRatios writes what does not depend on the machine, as far as anything.
func writeRatios(p printer, results map[string]*bench.Report) {
	p("\n## Ratios\n")
	p("| CPU per byte | against | ratio |")
	p("|---|---|---|")
	for _, run := range runs {
		r := results[run.name]
		if r == nil {
			continue
		}
		for _, f := range r.Floor {
			p("| %s, %d players | bare loop of sends every %g ms, same run | **%.2f** |", run.work, r.Players, f.IntervalMS, f.Ratio)
		}
	}
	against := func(name, base string) {
		r, to := results[name], results[base]
		if r == nil || to == nil || to.Window.CPUPerGB == 0 {
			return
		}
		p("| %s, %d × %d players | %s, %d × %d | **%.2f** |", work(name), r.Streams, r.Players/r.Streams,
			work(base), to.Streams, to.Players/to.Streams, r.Window.CPUPerGB/to.Window.CPUPerGB)
	}
	against("ws-2000", "flv-2000")
	against("rtmp-2000", "flv-2000")
	against("https-1000", "slow-2") // before its slow ones came
	against("streams-1000x5", "streams-1x5000")
}

func writeRuns(p printer, results map[string]*bench.Report) {
	p("\n## Runs\n")
	p("| work | streams × players | CPU s per GB | delay p50 / p99 / max ms | first key frame p99 ms | KB per player | least share | failed | cores idle |")
	p("|---|---|---|---|---|---|---|---|---|")
	for _, run := range runs {
		r := results[run.name]
		if r == nil {
			continue
		}
		memory := "–"
		if r.Memory.KBPerPlayer != 0 {
			memory = fmt.Sprintf("%.2f", r.Memory.KBPerPlayer)
		}
		d := r.Window.Delay
		p("| %s | %d × %d | %.3f | %.1f / %.1f / %.1f | %.1f | %s | %.2f %% | %d | %.2f |",
			run.work, r.Streams, r.Players/r.Streams, r.Window.CPUPerGB, d.P50MS, d.P99MS, d.MaxMS, r.FirstKeyFrame.P99MS,
			memory, 100*r.Light.Min, r.Failed+r.Closed, r.Window.IdleCores)
	}
	floor := false
	for _, run := range runs {
		r := results[run.name]
		if r == nil || len(r.Floor) == 0 {
			continue
		}
		if !floor {
			p("\n| bare loop, one process | players | CPU s per GB |")
			p("|---|---|---|")
			floor = true
		}
		for _, f := range r.Floor {
			p("| every %g ms | %d | %.3f |", f.IntervalMS, f.Players, f.CPUPerGB)
		}
	}
}

func writeSlow(p printer, results map[string]*bench.Report) {
	slow := false
	for _, run := range runs {
		r := results[run.name]
		if r == nil || r.Slow == nil {
			continue
		}
		if !slow {
			p("\n## Slow players\n")
			p("| beside | slow / stalled | p99 of the others before → with, ms | server memory before → after, MB | slow ones cut | gaps, of those not up to a key frame |")
			p("|---|---|---|---|---|---|")
			slow = true
		}
		s := r.Slow
		p("| %d | %d / %d | %.1f → %.1f | %.1f → %.1f | %d | %d, %d |", r.Players, s.Players, s.Stalled,
			r.Window.Delay.P99MS, s.Window.Delay.P99MS, mb(s.MemoryBegin), mb(s.MemoryEnd), s.Cut+s.StalledCut, s.Seen.Gaps, s.Seen.Torn)
	}
	crowd := false
	for _, run := range runs {
		r := results[run.name]
		if r == nil || r.Crowd == nil {
			continue
		}
		if !crowd {
			p("\n## Flash crowd\n")
			p("| beside | crowd | first key frame p50 / p99 / max ms | failed | delay of the others p99 before → meanwhile, ms | publisher late, ms |")
			p("|---|---|---|---|---|---|")
			crowd = true
		}
		c := r.Crowd
		p("| %d | %d in %g s | %.1f / %.1f / %.1f | %d | %.1f → %.1f | %.1f |", r.Players, c.Players, c.Seconds,
			c.FirstKeyFrame.P50MS, c.FirstKeyFrame.P99MS, c.FirstKeyFrame.MaxMS, c.Failed, r.Window.Delay.P99MS, c.Delay.P99MS, r.PublishLateMS)
	}
}

func mb(n uint64) float64 { return float64(n) / 1e6 }
