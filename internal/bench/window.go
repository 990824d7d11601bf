package bench

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Window is a time in which the server was measured while nobody came or left.
type Window struct {
	Seconds        float64 `json:"seconds"`
	Players        int     `json:"players"`
	Bytes          uint64  `json:"bytes"`           // received by all players
	PublishedBytes uint64  `json:"published_bytes"` // FLV tags of all streams
	BitRate        float64 `json:"bit_rate"`        // of all players together
	// CPU is the processor time of the server under test in seconds, all its
	// processes; CPUPerGB is per 1e9 bytes received.
	CPU       float64 `json:"cpu_seconds"`
	UserCPU   float64 `json:"cpu_user_seconds"`
	SystemCPU float64 `json:"cpu_system_seconds"`
	CPUPerGB  float64 `json:"cpu_seconds_per_gb"`
	LoadCPU   float64 `json:"load_cpu_seconds"` // of this tool
	IdleCores float64 `json:"idle_cores"`       // of the machine, on average
	// Delay is that of the frames that were published in the window, from the
	// publisher's write to the frame's last byte at a probe.
	Delay Delays `json:"delay"`
	// Behind are the light players that got less than 95 % of what was published
	// in the window. It is exact to one flush of the server.
	Behind int `json:"behind"`

	phase int
}

// sample is what a window is the difference of two of. Its parts are taken in
// the same order each time, because with a busy machine that takes a while.
type sample struct {
	at        time.Duration
	count     count
	cpu       usage
	self      time.Duration
	idle      time.Duration
	ends      []position
	perPlayer []uint64 // bytes of the light players, loop by loop
}

func (r *run) sample() sample {
	s := sample{at: r.clock.now(), count: r.count(), cpu: r.server.cpu(), self: selfCPU(), idle: idle(), ends: r.ends()}
	r.eachLight(func(p *player) { s.perPlayer = append(s.perPlayer, p.bytes) })
	return s
}

// window measures the server for the duration of the configuration. Nobody joins
// meanwhile.
func (r *run) window(ctx context.Context, step string) (Window, error) {
	a := r.sample()
	w := Window{phase: r.phases.begin(r.clock.now())}
	err := r.pause(ctx, step, r.cfg.Duration)
	r.phases.end(r.clock.now())
	b := r.sample()
	if err != nil {
		return w, err
	}
	if len(b.cpu.gone) > 0 {
		return w, fmt.Errorf("measure server: processes %v have ended", b.cpu.gone)
	}
	w.Seconds = (b.at - a.at).Seconds()
	w.Players = b.count.playing
	w.Bytes = b.count.bytes - a.count.bytes
	w.BitRate = float64(w.Bytes) * 8 / w.Seconds
	w.LoadCPU = (b.self - a.self).Seconds()
	w.IdleCores = (b.idle - a.idle).Seconds() / w.Seconds
	w.UserCPU = (b.cpu.user - a.cpu.user).Seconds()
	w.SystemCPU = (b.cpu.system - a.cpu.system).Seconds()
	w.CPU = (b.cpu.total() - a.cpu.total()).Seconds()
	if w.Bytes > 0 {
		w.CPUPerGB = w.CPU / (float64(w.Bytes) / 1e9)
	}
	for i := range b.ends {
		w.PublishedBytes += b.ends[i].flv - a.ends[i].flv
	}
	i := 0
	r.eachLight(func(p *player) {
		got := b.perPlayer[i] - a.perPlayer[i]
		due := b.ends[p.stream].of(r.t.protocol) - a.ends[p.stream].of(r.t.protocol)
		plays := p.kind != stalled && (p.state == playerPlaying || p.state == playerClosed)
		if plays && float64(got) < enough*float64(due) {
			w.Behind++
		}
		i++
	})
	w.Delay = r.delays(w.phase)
	return w, nil
}

// delays are those of a phase at all probes.
func (r *run) delays(phase int) Delays {
	var h histogram
	for _, p := range r.probes {
		if s := p.snapshot(); phase < len(s.delays) {
			h.merge(&s.delays[phase])
		}
	}
	for _, p := range r.hls {
		if s := p.snapshot(); phase < len(s.delays) {
			h.merge(&s.delays[phase])
		}
	}
	return h.delays()
}

func (r *run) eachLight(f func(p *player)) {
	for _, l := range r.loops {
		l.each(f)
	}
}

// ends are the ends of all streams.
func (r *run) ends() []position {
	ends := make([]position, len(r.lines))
	for i, l := range r.lines {
		ends[i] = l.end()
	}
	return ends
}

// of returns a position in bytes as a protocol sends them.
func (p position) of(protocol Protocol) uint64 {
	if protocol == RTMP {
		return p.rtmp
	}
	return p.flv
}

// selfCPU is the processor time of this process.
func selfCPU() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
