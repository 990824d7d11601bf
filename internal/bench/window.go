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

// window measures the server for the duration of the configuration.
func (r *run) window(ctx context.Context, step string) (Window, error) {
	w := Window{phase: r.phases.begin(r.clock.now())}
	from, c0 := r.clock.now(), r.count()
	cpu0, self0, idle0 := r.server.cpu(), selfCPU(), idle()
	ends0 := r.ends()
	r.eachLight(func(p *player) { p.before = p.bytes })
	err := r.pause(ctx, step, r.cfg.Duration)
	r.phases.end(r.clock.now())
	ends1 := r.ends()
	to, c1 := r.clock.now(), r.count()
	cpu1, self1, idle1 := r.server.cpu(), selfCPU(), idle()
	if err != nil {
		return w, err
	}
	if len(cpu1.gone) > 0 {
		return w, fmt.Errorf("measure server: processes %v have ended", cpu1.gone)
	}
	w.Seconds = (to - from).Seconds()
	w.Players = c1.playing
	w.Bytes = c1.bytes - c0.bytes
	w.BitRate = float64(w.Bytes) * 8 / w.Seconds
	w.LoadCPU = (self1 - self0).Seconds()
	w.IdleCores = (idle1 - idle0).Seconds() / w.Seconds
	w.UserCPU = (cpu1.user - cpu0.user).Seconds()
	w.SystemCPU = (cpu1.system - cpu0.system).Seconds()
	w.CPU = (cpu1.total() - cpu0.total()).Seconds()
	if w.Bytes > 0 {
		w.CPUPerGB = w.CPU / (float64(w.Bytes) / 1e9)
	}
	for i := range ends1 {
		w.PublishedBytes += ends1[i].flv - ends0[i].flv
	}
	r.eachLight(func(p *player) {
		due := ends1[p.stream].of(r.t.protocol) - ends0[p.stream].of(r.t.protocol)
		plays := p.kind != stalled && (p.state == playerPlaying || p.state == playerClosed)
		if plays && float64(p.bytes-p.before) < enough*float64(due) {
			w.Behind++
		}
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
