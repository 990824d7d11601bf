package load

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Interval is how often is measured.
const Interval = 500 * time.Millisecond

// Process measures the process that it is in. Safe for concurrent use.
type Process struct {
	// Static.
	worker   int
	reader   *Reader // run's
	delays   *Delays
	sessions func() (players, publishers int)
	log      *slog.Logger

	measuring sync.Mutex
	usage     history[time.Duration] // guarded by measuring
	trouble   string                 // guarded by measuring; what was logged last
	asked     time.Time              // guarded by measuring; when Exchange measured

	mu     sync.Mutex
	report Report // guarded by mu
	known  bool   // guarded by mu; the rates are
	status Status // guarded by mu; of the node, as the supervisor said last
}

// ProcessOptions are what a Process is made of.
type ProcessOptions struct {
	Config Config // valid
	Root   string // of the kernel's files; empty: "/"
	Worker int    // see Report
	// Delays are how late the process's fan-out is; nil: it has none.
	Delays *Delays
	// Sessions returns the numbers of players and publishers; nil: it has none.
	Sessions func() (players, publishers int)
	Log      *slog.Logger
}

// NewProcess returns what measures this process. It fails where there is no /proc.
func NewProcess(o ProcessOptions) (*Process, error) {
	if o.Root == "" {
		o.Root = "/"
	}
	r, err := NewReader(o.Root, os.Getpid(), o.Config)
	if err != nil {
		return nil, err
	}
	return &Process{worker: o.Worker, reader: r, delays: o.Delays, sessions: o.Sessions, log: o.Log}, nil
}

// Run measures until ctx ends, as far as nobody asks by Exchange, which measures as
// well: it saves waking up twice. It returns nil. Not beside a Node that the process
// belongs to, which does so itself.
func (p *Process) Run(ctx context.Context) error {
	const patience = 4 * Interval
	tick := time.NewTicker(patience)
	defer tick.Stop()
	for {
		p.measuring.Lock()
		if now := time.Now(); now.Sub(p.asked) >= patience {
			p.measure(now)
		}
		p.measuring.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Report returns what was measured last, with the lateness and the sessions of now.
// known is false until there are rates.
func (p *Process) Report() (r Report, known bool) {
	p.mu.Lock()
	r, known = p.report, p.known
	p.mu.Unlock()
	if p.delays != nil {
		r.Lateness = p.delays.P99(time.Now())
	}
	if p.sessions != nil {
		r.Players, r.Publishers = p.sessions()
	}
	return r, known
}

// Exchange takes the status of the node, measures, and returns what Report does. It is
// what a worker answers its supervisor with, each Interval.
func (p *Process) Exchange(s Status) (Report, bool) {
	p.mu.Lock()
	p.status = s
	p.mu.Unlock()
	p.measuring.Lock()
	now := time.Now()
	if now.Sub(p.asked) >= Interval/2 { // others may ask as well
		p.asked = now
		p.measure(now)
	}
	p.measuring.Unlock()
	return p.Report()
}

// Status returns the status of the node that the supervisor said last.
func (p *Process) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// measure reads the process. The caller holds measuring, or is the only one.
func (p *Process) measure(now time.Time) {
	u, err := p.reader.Process()
	cpus, cerr := p.reader.CPUs()
	if err == nil {
		err = cerr
	}
	p.trouble = complain(p.log, "the load of the process cannot be measured in full", p.trouble, err)
	r := Report{Worker: p.worker, Descriptors: u.Descriptors.share()}
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		r.Descriptors = 1 // there is none to count them with
	}
	p.usage.add(now, u.CPU)
	old, took := p.usage.before(now)
	if took > 0 {
		r.Cores = float64(since(old, u.CPU)) / float64(took)
		limit := float64(runtime.GOMAXPROCS(0))
		if cpus > 0 {
			limit = min(limit, cpus)
		}
		r.CPU = r.Cores / limit
	}
	p.mu.Lock()
	p.report, p.known = r, took > 0
	p.mu.Unlock()
}

// complain logs an error that is not the one of before, and its end. It returns the
// text to be given to it the next time.
func complain(log *slog.Logger, message, before string, err error) string {
	if err == nil {
		return ""
	}
	if text := err.Error(); text != before {
		log.Warn(message, "err", text)
		return text
	}
	return before
}
