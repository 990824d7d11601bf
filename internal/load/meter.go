package load

import (
	"math"
	"time"
)

// Machine is one reading of what the node's machine has and uses. Counters only
// grow, from a beginning that does not matter.
type Machine struct {
	// CPUs is how many processors the node may use: a whole number unless its cgroup
	// has a quota. Always above 0.
	CPUs float64
	// Busy and Idle are the processor time of those that the node may run on. Both 0:
	// not known.
	Busy, Idle time.Duration
	// Quota is what the cgroup may use, in processors, and Used what it has used. A
	// Quota of 0: there is none.
	Quota float64
	Used  time.Duration
	// Memory is what could be read of memory limits: the machine and the cgroup.
	Memory []Space
	Links  []Link
	// Disk is the file system of the configured path; nil if there is none.
	Disk *Space
}

// Space is a number of bytes that can be used, and how many are.
type Space struct{ Used, Limit uint64 }

func (s Space) share() float64 {
	if s.Limit == 0 {
		return 0
	}
	return float64(s.Used) / float64(s.Limit)
}

// Link is one interface of the network.
type Link struct {
	Name          string
	Egress        uint64  // bytes sent
	Ingress       uint64  // bytes received
	BitsPerSecond float64 // in each direction; 0 if not known
}

// window is the time over which rates are measured: long enough for the ticks of the
// kernel's counters to say something, and short enough to follow a burner within two
// seconds.
const window = time.Second

// Meter makes loads of readings. It knows no clock but the times it is given, which
// must not go back. Not safe for concurrent use.
type Meter struct {
	cfg     Config
	history history[Machine]
	soft    limit
	hard    limit
}

// NewMeter returns a meter. cfg must be valid.
func NewMeter(cfg Config) *Meter {
	return &Meter{
		cfg:  cfg,
		soft: limit{at: cfg.SoftLimit, below: cfg.SoftLimit - cfg.Hysteresis, after: cfg.After, hold: cfg.Hold},
		hard: limit{at: cfg.HardLimit, below: cfg.HardLimit - cfg.Hysteresis, after: cfg.After, hold: cfg.Hold},
	}
}

// Update returns the load at now, when m was read and the processes said what
// reports has.
func (t *Meter) Update(now time.Time, m Machine, reports []Report) Load {
	l := Load{At: now, Dimensions: map[Name]float64{}, Processes: reports}
	t.history.add(now, m)
	old, took := t.history.before(now)
	if took > 0 {
		if share, ok := cpuShare(old, m, took); ok {
			l.Dimensions[CPU] = share
		}
		t.network(&l, old, m, took)
	}
	for _, s := range m.Memory {
		if s.Limit > 0 {
			l.atLeast(Memory, s.share())
		}
	}
	if m.Disk != nil {
		l.Dimensions[Disk] = m.Disk.share()
	}
	cores := 0.0
	for _, r := range reports {
		cores += r.Cores
		l.Players += r.Players
		l.Publishers += r.Publishers
		// A process may be bound more closely than the node: see GOMAXPROCS.
		l.atLeast(ProcessCPU, r.CPU)
		l.atLeast(Descriptors, r.Descriptors)
		l.atLeast(Lateness, float64(r.Lateness)/float64(t.cfg.Lateness.Limit))
	}
	if len(reports) > 0 && m.CPUs > 0 {
		l.atLeast(ProcessCPU, cores/m.CPUs)
	}
	if took == 0 || len(reports) == 0 {
		return l // nothing is known of the rates, and the limits stay as they are
	}
	for _, name := range Names {
		v, ok := l.Dimensions[name]
		if w := t.cfg.weight(name); ok && w > 0 && (l.Worst == "" || v*w > l.Effective) {
			l.Effective, l.Worst = v*w, name
		}
	}
	if l.Worst == "" { // nothing that counts is known, so nothing says that the node is busy
		l.Worst = ProcessCPU
	}
	l.Soft = t.soft.update(now, l.Effective)
	l.Hard = t.hard.update(now, l.Effective)
	return l
}

func (l *Load) atLeast(name Name, v float64) { l.Dimensions[name] = max(l.Dimensions[name], v) }

// cpuShare returns how much of the processors was used between two readings,
// whichever is fuller: the processors or the quota.
func cpuShare(old, now Machine, took time.Duration) (share float64, ok bool) {
	busy, idle := since(old.Busy, now.Busy), since(old.Idle, now.Idle)
	if busy+idle > 0 {
		share, ok = float64(busy)/float64(busy+idle), true
	}
	if now.Quota > 0 {
		used := float64(since(old.Used, now.Used)) / float64(took)
		share, ok = max(share, used/now.Quota), true
	}
	return share, ok
}

// network sets the rates and the dimension. With a configured capacity all
// interfaces share it; else each has its own, and the fullest counts.
func (t *Meter) network(l *Load, old, now Machine, took time.Duration) {
	before := make(map[string]Link, len(old.Links))
	for _, k := range old.Links {
		before[k.Name] = k
	}
	worst, known := 0.0, false
	for _, k := range now.Links {
		b, ok := before[k.Name]
		if !ok {
			b = k // it has just come
		}
		out := 8 * float64(since(b.Egress, k.Egress)) / took.Seconds()
		in := 8 * float64(since(b.Ingress, k.Ingress)) / took.Seconds()
		l.Egress += out
		l.Ingress += in
		if k.BitsPerSecond > 0 {
			l.EgressCapacity += k.BitsPerSecond
			worst, known = max(worst, max(out, in)/k.BitsPerSecond), true
		}
	}
	if c := float64(t.cfg.Network.Capacity); c > 0 {
		l.EgressCapacity = c
		worst, known = max(l.Egress, l.Ingress)/c, true
	}
	if known {
		l.Dimensions[Network] = worst
	}
}

// since returns how far a counter has come, 0 if it began anew.
func since[T ~uint64 | ~int64](old, now T) T {
	if now < old {
		return 0
	}
	return now - old
}

// history keeps readings for as long as rates need them.
type history[T any] struct{ readings []reading[T] }

type reading[T any] struct {
	at time.Time
	v  T
}

func (h *history[T]) add(at time.Time, v T) {
	for len(h.readings) > 1 && at.Sub(h.readings[1].at) >= window {
		h.readings = h.readings[1:]
	}
	h.readings = append(h.readings, reading[T]{at, v})
}

// before returns the reading that the newest one is compared with, and how long ago
// it was; 0 while there is none that is old enough to say something.
func (h *history[T]) before(now time.Time) (v T, took time.Duration) {
	r := h.readings[0]
	if took = now.Sub(r.at); took < window/2 {
		return v, 0
	}
	return r.v, took
}

// limit is a limit that the load is over or not. It flips once in hold at most, up
// only after the load was over it for after, and down only from below.
type limit struct {
	at, below   float64 // at 0 it is switched off
	after, hold time.Duration

	over    bool
	crossed time.Time // since when the load asks for the other side; zero: it does not
	flipped time.Time
}

func (m *limit) update(now time.Time, load float64) bool {
	if m.at == 0 || math.IsNaN(load) {
		return m.over
	}
	wants, after := load >= m.at, m.after
	if m.over {
		wants, after = load < m.below, 0
	}
	if !wants {
		m.crossed = time.Time{}
		return m.over
	}
	if m.crossed.IsZero() {
		m.crossed = now
	}
	if now.Sub(m.crossed) >= after && (m.flipped.IsZero() || now.Sub(m.flipped) >= m.hold) {
		m.over, m.flipped, m.crossed = !m.over, now, time.Time{}
	}
	return m.over
}
