package bench

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
)

// enough is the share of a stream under which a player counts as slow.
const enough = 0.95

// Report is the outcome of a run.
type Report struct {
	Machine  Machine  `json:"machine"`
	Protocol Protocol `json:"protocol"`
	TLS      bool     `json:"tls,omitempty"` // of the players
	Streams  int      `json:"streams"`
	Players  int      `json:"players"`
	Form     Form     `json:"form"`
	Elapsed  float64  `json:"elapsed_seconds"`

	// Window is what the server cost while all players were there.
	Window Window `json:"window"`
	Memory Memory `json:"memory"`
	// Probes are the players that read every frame, Light the others.
	Probes Probes `json:"probes"`
	Light  Shares `json:"light_share"`
	// FirstKeyFrame is the time from the beginning of a player's connect to the
	// last byte of its first key frame.
	FirstKeyFrame Delays `json:"first_key_frame"`

	Slow     *Slow     `json:"slow,omitempty"`
	Crowd    *Crowd    `json:"crowd,omitempty"`
	Capacity *Capacity `json:"capacity,omitempty"`
	HLS      *HLSSight `json:"hls,omitempty"`
	Floor    []Floor   `json:"floor,omitempty"`

	Failed         int `json:"failed"`          // got no stream
	Closed         int `json:"closed_early"`    // lost it
	HeadersMissing int `json:"headers_missing"` // had not all headers before the first key frame
	Unmarked       int `json:"unmarked"`        // began with a key frame that was not ours
	// Errors are the reasons of those, and how many players had each.
	Errors map[string]int `json:"errors,omitempty"`
	// PublishLateMS is how late the publisher was at most: more than some
	// milliseconds mean that the machine was too busy to measure.
	PublishLateMS float64 `json:"publish_late_ms"`
}

// Memory is the resident memory of the server under test, in bytes.
type Memory struct {
	Before       uint64 `json:"before"` // any publisher or player
	First        uint64 `json:"first"`  // with the first players
	FirstPlayers int    `json:"first_players"`
	After        uint64 `json:"after"` // with all, at the end of the window
	// KBPerPlayer is per player beyond the first; 1 KB is 1024 bytes. It is 0 if
	// there are too few of them to say.
	KBPerPlayer float64 `json:"kb_per_player"`
}

// enoughPlayers is how many players beyond the first it takes to tell their
// memory from the ups and downs of the server's own.
const enoughPlayers = 100

func (m *Memory) perPlayer(players int) {
	if n := players - m.FirstPlayers; n >= enoughPlayers {
		m.KBPerPlayer = (float64(m.After) - float64(m.First)) / 1024 / float64(n)
	}
}

// Sight is what players saw that read every frame.
type Sight struct {
	Count      int    `json:"count"`
	Frames     uint64 `json:"frames"`
	Gaps       int    `json:"gaps"`
	LostFrames int    `json:"lost_frames"`
	Torn       int    `json:"torn_gaps"` // gaps of the video that did not end with a key frame
	Disorder   int    `json:"disorder"`
	Foreign    int    `json:"foreign_frames"` // not of the stream that was asked for
}

// Probes is what the probes saw from the first frame to the last.
type Probes struct {
	Sight
	Share Shares `json:"share"`
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

// Slow is a second window with slow players beside those of the run.
type Slow struct {
	Players int   `json:"players"`
	Rate    int64 `json:"rate"` // bits per second
	Stalled int   `json:"stalled"`
	// Window is that of the players of the run.
	Window      Window `json:"window"`
	MemoryBegin uint64 `json:"memory_begin"` // of the window, bytes
	MemoryEnd   uint64 `json:"memory_end"`
	// Seen is what the slow players saw, Cut how many of them the server cut, and
	// CutAfter when.
	Seen     Sight  `json:"seen"`
	Cut      int    `json:"cut"`
	CutAfter Delays `json:"cut_after"`
	// StalledCut is how many of those that read nothing were seen to be cut. The
	// end of a connection may wait behind what is not read: then it is not seen.
	StalledCut int `json:"stalled_cut"`
}

// Crowd is a flash crowd beside the players of the run.
type Crowd struct {
	Players int     `json:"players"`
	Seconds float64 `json:"seconds"` // in which they joined
	Failed  int     `json:"failed"`  // got no stream
	// FirstKeyFrame is that of the crowd, Delay that of the probes meanwhile.
	FirstKeyFrame Delays `json:"first_key_frame"`
	Delay         Delays `json:"delay"`

	phase int
}

// Write writes the report as a table for people.
func (r *Report) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t"+format+"\n", append([]any{name}, args...)...)
	}
	row("machine", "%d cores, %s, %s", r.Machine.Cores, r.Machine.Model, r.Machine.Kernel)
	over := string(r.Protocol)
	if r.TLS {
		over += " under TLS"
	}
	row("players", "%d over %s, streams: %d of %.2f Mbit/s", r.Players, over, r.Streams, float64(r.Form.BitRate)/1e6)
	r.Window.write(row)
	if m := r.Memory; m.After > 0 {
		row("server memory", "%.1f MB before, %.1f MB with %d players, %.1f MB with all", mib(m.Before), mib(m.First), m.FirstPlayers, mib(m.After))
		if r.Players-m.FirstPlayers >= enoughPlayers {
			row("", "%.2f KB per player beyond the first %d", m.KBPerPlayer, m.FirstPlayers)
		}
	}
	if r.Probes.Count > 0 {
		r.Probes.write(row, "probes")
	}
	if r.Probes.Share.Count > 0 {
		row("", "share of the stream min %.2f %%, mean %.2f %%", 100*r.Probes.Share.Min, 100*r.Probes.Share.Mean)
	}
	if l := r.Light; l.Count > 0 {
		row("share of the stream", "min %.2f %%, p1 %.2f %%, mean %.2f %%; %d of %d under 95 %%", 100*l.Min, 100*l.P1, 100*l.Mean, l.Slow, l.Count)
	}
	if r.HLS != nil {
		r.HLS.write(row)
	}
	f := r.FirstKeyFrame
	row("first key frame", "p50 %.1f ms, p99 %.1f ms, max %.1f ms after the connect", f.P50MS, f.P99MS, f.MaxMS)
	row("players failed", "%d got no stream, %d lost it, %d missed a header, %d began with a foreign frame", r.Failed, r.Closed, r.HeadersMissing, r.Unmarked)
	for _, why := range slices.Sorted(maps.Keys(r.Errors)) {
		row("", "%d × %s", r.Errors[why], why)
	}
	row("load tool", "%.2f CPU s, %.2f cores idle, publisher at most %.1f ms late", r.Window.LoadCPU, r.Window.IdleCores, r.PublishLateMS)
	if s := r.Slow; s != nil {
		row("", "")
		row("slow players", "%d at %d kbit/s, %d stalled; of those %d and %d were cut", s.Players, s.Rate/1000, s.Stalled, s.Cut, s.StalledCut)
		if s.Cut > 0 {
			row("", "cut after p50 %.1f s, max %.1f s", s.CutAfter.P50MS/1000, s.CutAfter.MaxMS/1000)
		}
		s.Seen.write(row, "they saw")
		s.Window.write(row)
		row("", "p99 delay of the others grew by %.1f ms", s.Window.Delay.P99MS-r.Window.Delay.P99MS)
		if s.MemoryEnd > 0 {
			row("server memory", "%.1f MB, then %.1f MB", mib(s.MemoryBegin), mib(s.MemoryEnd))
		}
	}
	if c := r.Crowd; c != nil {
		row("", "")
		row("flash crowd", "%d in %.1f s, %d failed", c.Players, c.Seconds, c.Failed)
		row("first key frame", "p50 %.1f ms, p99 %.1f ms, max %.1f ms", c.FirstKeyFrame.P50MS, c.FirstKeyFrame.P99MS, c.FirstKeyFrame.MaxMS)
		row("delay meanwhile", "p50 %.1f ms, p99 %.1f ms, max %.1f ms", c.Delay.P50MS, c.Delay.P99MS, c.Delay.MaxMS)
	}
	if c := r.Capacity; c != nil {
		row("", "")
		for _, s := range c.Steps {
			row(fmt.Sprintf("%d players", s.Players), "p99 %.1f ms, %.2f %% slow, %.3f CPU s per GB", s.P99MS, 100*s.Slow, s.CPUPerGB)
		}
		row("capacity", "%d players are well; %s", c.Good, c.Why)
	}
	if len(r.Floor) > 0 {
		row("", "")
	}
	for _, f := range r.Floor {
		row(fmt.Sprintf("floor, %g ms", f.IntervalMS), "%.3f CPU s per GB: the server takes %.2f times that (%d players, %d late rounds, %d short sends)",
			f.CPUPerGB, f.Ratio, f.Players, f.LateRounds, f.ShortSends)
	}
	return t.Flush()
}

type rowFunc func(name, format string, args ...any)

func (w *Window) write(row rowFunc) {
	row("received", "%.1f MB in %.1f s, %.0f Mbit/s", float64(w.Bytes)/1e6, w.Seconds, w.BitRate/1e6)
	if w.CPU > 0 {
		row("server CPU", "%.3f s per GB (%.2f s: user %.2f, system %.2f)", w.CPUPerGB, w.CPU, w.UserCPU, w.SystemCPU)
	}
	if d := w.Delay; d.Count > 0 {
		row("delay", "p50 %.1f ms, p99 %.1f ms, max %.1f ms", d.P50MS, d.P99MS, d.MaxMS)
	}
}

func (s *Sight) write(row rowFunc, name string) {
	row(name, "%d with %d frames: %d gaps of %d frames, %d of them not up to a key frame, %d out of order, %d foreign",
		s.Count, s.Frames, s.Gaps, s.LostFrames, s.Torn, s.Disorder, s.Foreign)
}

func mib(n uint64) float64 { return float64(n) / (1 << 20) }
