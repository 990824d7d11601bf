package bench

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// enough is the share of a stream under which a player counts as slow.
const enough = 0.95

// Report is the outcome of a run.
type Report struct {
	Machine  Machine  `json:"machine"`
	Protocol Protocol `json:"protocol"`
	Streams  int      `json:"streams"`
	Players  int      `json:"players"`
	Form     Form     `json:"form"`
	Elapsed  float64  `json:"elapsed_seconds"`

	// Window is what the server cost while all players were there.
	Window Window       `json:"window"`
	Memory MemoryReport `json:"memory"`
	// Probes are the players that read every frame, Light the others.
	Probes Probes `json:"probes"`
	Light  Shares `json:"light_share"`
	// FirstKeyFrame is the time from the beginning of a player's connect to the
	// last byte of its first key frame.
	FirstKeyFrame Delays `json:"first_key_frame"`

	Floor []Floor `json:"floor,omitempty"`

	Failed         int            `json:"failed"`          // got no stream
	Closed         int            `json:"closed_early"`    // lost it
	HeadersMissing int            `json:"headers_missing"` // had not all headers before the first key frame
	Unmarked       int            `json:"unmarked"`        // began with a key frame that was not ours
	Errors         map[string]int `json:"errors,omitempty"`
	// PublishLateMS is how late the publisher was at most: more than some
	// milliseconds mean that the machine was too busy to measure.
	PublishLateMS float64 `json:"publish_late_ms"`
}

// Window is the measuring window.
type Window struct {
	Seconds        float64 `json:"seconds"`
	Bytes          uint64  `json:"bytes"` // received by all players
	PublishedBytes uint64  `json:"published_bytes"`
	BitRate        float64 `json:"bit_rate"` // of all players together
	// Processor seconds of the server under test, all its processes.
	CPU       float64 `json:"cpu_seconds"`
	UserCPU   float64 `json:"cpu_user_seconds"`
	SystemCPU float64 `json:"cpu_system_seconds"`
	CPUPerGB  float64 `json:"cpu_seconds_per_gb"` // 1e9 bytes received
	LoadCPU   float64 `json:"load_cpu_seconds"`   // of this tool
	IdleCores float64 `json:"idle_cores"`         // of the machine, on average
}

// MemoryReport is the resident memory of the server under test, in bytes.
type MemoryReport struct {
	Before       uint64  `json:"before"` // any publisher or player
	First        uint64  `json:"first"`  // with the first players
	FirstPlayers int     `json:"first_players"`
	After        uint64  `json:"after"`         // with all, at the end of the window
	KBPerPlayer  float64 `json:"kb_per_player"` // of those beyond the first; 1 KB is 1024 bytes
}

type memoryReport MemoryReport

func (m memoryReport) perPlayer(players int, measured bool) MemoryReport {
	if !measured {
		return MemoryReport{}
	}
	base, n := m.First, players-m.FirstPlayers
	if n <= 0 {
		base, n = m.Before, players
	}
	if n > 0 {
		m.KBPerPlayer = (float64(m.After) - float64(base)) / 1024 / float64(n)
	}
	return MemoryReport(m)
}

// Probes is what the players saw that read every frame.
type Probes struct {
	Count      int    `json:"count"`
	Frames     uint64 `json:"frames"`
	Delay      Delays `json:"delay"` // from the publisher's write to the last byte at the player, in the window
	Gaps       int    `json:"gaps"`
	LostFrames int    `json:"lost_frames"`
	Torn       int    `json:"torn_gaps"` // gaps of the video that did not end with a key frame
	Disorder   int    `json:"disorder"`
	Foreign    int    `json:"foreign_frames"` // not of the stream that was asked for
	Share      Shares `json:"share"`
}

// Shares says how much of what was published players got, from their first key
// frame to the end; 1 is all.
type Shares struct {
	Count int     `json:"count"`
	Min   float64 `json:"min"`
	P1    float64 `json:"p1"`
	Mean  float64 `json:"mean"`
	Slow  int     `json:"slow"` // players with less than 95 %
}

// Write writes the report as a table for people.
func (r *Report) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t"+format+"\n", append([]any{name}, args...)...)
	}
	row("machine", "%d × %s, %s", r.Machine.Cores, r.Machine.Model, r.Machine.Kernel)
	row("players", "%d over %s, %d streams of %.2f Mbit/s", r.Players, r.Protocol, r.Streams, float64(r.Form.BitRate)/1e6)
	row("received", "%.1f MB in %.1f s, %.0f Mbit/s", float64(r.Window.Bytes)/1e6, r.Window.Seconds, r.Window.BitRate/1e6)
	if r.Window.CPU > 0 {
		row("server CPU", "%.3f s per GB (%.2f s: user %.2f, system %.2f)", r.Window.CPUPerGB, r.Window.CPU, r.Window.UserCPU, r.Window.SystemCPU)
		row("server memory", "%.1f MB before, %.1f MB with %d players, %.1f MB with all: %.2f KB per player",
			mib(r.Memory.Before), mib(r.Memory.First), r.Memory.FirstPlayers, mib(r.Memory.After), r.Memory.KBPerPlayer)
	}
	d := r.Probes.Delay
	row("delay", "p50 %.1f ms, p99 %.1f ms, max %.1f ms (%d frames at %d probes)", d.P50MS, d.P99MS, d.MaxMS, d.Count, r.Probes.Count)
	row("probes", "%d gaps, %d frames lost, %d out of order, %d torn, %d foreign; share min %.2f %%",
		r.Probes.Gaps, r.Probes.LostFrames, r.Probes.Disorder, r.Probes.Torn, r.Probes.Foreign, 100*r.Probes.Share.Min)
	if l := r.Light; l.Count > 0 {
		row("share of the stream", "min %.2f %%, p1 %.2f %%, mean %.2f %%; %d of %d under 95 %%", 100*l.Min, 100*l.P1, 100*l.Mean, l.Slow, l.Count)
	}
	f := r.FirstKeyFrame
	row("first key frame", "p50 %.1f ms, p99 %.1f ms, max %.1f ms", f.P50MS, f.P99MS, f.MaxMS)
	row("failed", "%d got no stream, %d lost it, %d missed a header, %d began with a foreign frame", r.Failed, r.Closed, r.HeadersMissing, r.Unmarked)
	for why, n := range r.Errors {
		row("", "%d × %s", n, why)
	}
	row("load tool", "%.2f CPU s, %.2f cores idle, publisher at most %.1f ms late", r.Window.LoadCPU, r.Window.IdleCores, r.PublishLateMS)
	for _, f := range r.Floor {
		row(fmt.Sprintf("floor, %g ms", f.IntervalMS), "%.3f CPU s per GB: the server takes %.2f times that (%d players, %d late rounds, %d short sends)",
			f.CPUPerGB, f.Ratio, f.Players, f.LateRounds, f.ShortSends)
	}
	return t.Flush()
}

func mib(n uint64) float64 { return float64(n) / (1 << 20) }
