package load

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// NodeOptions are what a Node is made of.
type NodeOptions struct {
	Config Config // valid
	Root   string // of the kernel's files; empty: "/"
	// Process is the one that the Node is in. The Node runs it.
	Process *Process
	// Workers tells the node's workers its status and returns what they say of
	// themselves. It has to end within a second or so. nil: the node is one process.
	Workers func(ctx context.Context, s Status) []Report
	// Count is the number of workers; 0: the node is one process.
	Count int
	Log   *slog.Logger
	Set   *metrics.Set
}

// Node measures a node for as long as it runs. Safe for concurrent use.
type Node struct {
	// Static.
	opt   NodeOptions
	jumps chan struct{} // capacity 1

	meter    *Meter // Run's
	trouble  string // Run's
	load     atomic.Pointer[Load]
	reported atomic.Uint64 // bits of the effective load that went out last
}

// jump is how far the load moves before the directory is told out of turn.
const jump = 0.1

// NewNode returns what measures a node. Run measures.
func NewNode(o NodeOptions) *Node {
	n := &Node{opt: o, meter: NewMeter(o.Config), jumps: make(chan struct{}, 1)}
	n.load.Store(&Load{})
	for _, name := range Names {
		o.Set.NewGauge(fmt.Sprintf("weir_load{dimension=%q}", name), func() float64 {
			l := n.load.Load()
			if v, ok := l.Dimensions[name]; ok {
				return v
			}
			return math.NaN()
		})
	}
	o.Set.NewGauge(`weir_load{dimension="effective"}`, func() float64 {
		if l := n.load.Load(); l.Known() {
			return l.Effective
		}
		return math.NaN()
	})
	for i := range o.Count {
		for name, of := range perWorker {
			o.Set.NewGauge(fmt.Sprintf(`weir_worker_load{dimension=%q,worker="%d"}`, name, i), func() float64 {
				for _, r := range n.load.Load().Processes {
					if r.Worker == i {
						return of(r, o.Config)
					}
				}
				return math.NaN()
			})
		}
	}
	o.Set.NewGauge(`weir_load_egress_bits`, func() float64 { return n.load.Load().Egress })
	o.Set.NewGauge(`weir_load_ingress_bits`, func() float64 { return n.load.Load().Ingress })
	return n
}

// Status returns the part of the load that decides about sessions.
func (n *Node) Status() Status { return n.load.Load().Status() }

// perWorker are the dimensions that are measured in each process.
var perWorker = map[Name]func(Report, Config) float64{
	ProcessCPU:  func(r Report, _ Config) float64 { return r.CPU },
	Descriptors: func(r Report, _ Config) float64 { return r.Descriptors },
	Lateness:    func(r Report, c Config) float64 { return float64(r.Lateness) / float64(c.Lateness.Limit) },
}

// Load returns the last measured load.
func (n *Node) Load() Load { return *n.load.Load() }

// Heartbeat returns the load as a heartbeat carries it (see Load.Report), and takes it
// as told: jumps count from there.
func (n *Node) Heartbeat() map[string]float64 {
	l := n.load.Load()
	n.reported.Store(math.Float64bits(l.Effective))
	return l.Report()
}

// Jumps gets a token when the load has moved so far since the last Heartbeat that the
// directory should know at once.
func (n *Node) Jumps() <-chan struct{} { return n.jumps }

// Run measures until ctx ends. It returns an error only if nothing can be measured.
func (n *Node) Run(ctx context.Context) error {
	reader, err := NewReader(n.root(), os.Getpid(), n.opt.Config)
	if err != nil {
		return err
	}
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		n.measure(ctx, reader)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (n *Node) root() string {
	if n.opt.Root == "" {
		return "/"
	}
	return n.opt.Root
}

func (n *Node) measure(ctx context.Context, reader *Reader) {
	before := n.load.Load()
	var reports []Report
	if n.opt.Workers != nil {
		reports = n.opt.Workers(ctx, before.Status())
	}
	now := time.Now()
	n.opt.Process.measure(now)
	own, known := n.opt.Process.Report()
	machine, err := reader.Machine()
	n.trouble = complain(n.opt.Log, "the load of the machine cannot be measured in full", n.trouble, err)
	if known {
		reports = append(reports, own)
	} else {
		reports = nil
	}
	l := n.meter.Update(now, machine, reports)
	if ctx.Err() != nil {
		return
	}
	n.load.Store(&l)
	n.tell(before, &l)
	if !before.Known() && l.Known() || math.Abs(l.Effective-math.Float64frombits(n.reported.Load())) > jump ||
		before.Soft != l.Soft || before.Hard != l.Hard {
		select {
		case n.jumps <- struct{}{}:
		default: // to be told already
		}
	}
}

// tell logs a limit that was crossed.
func (n *Node) tell(before, l *Load) {
	for _, c := range []struct {
		was, is     bool
		name        string
		over, under string
		at          float64
	}{
		{before.Soft, l.Soft, "soft", "load is over the soft limit", "load is under the soft limit again", n.opt.Config.SoftLimit},
		{before.Hard, l.Hard, "hard", "load is over the hard limit", "load is under the hard limit again", n.opt.Config.HardLimit},
	} {
		if c.was == c.is {
			continue
		}
		message := c.under
		if c.is {
			message = c.over
		}
		n.opt.Log.Warn(message, "load", rounded(l.Effective), "dimension", string(l.Worst), "limit", c.at,
			"players", l.Players, "publishers", l.Publishers)
		n.opt.Set.GetOrCreateCounter(fmt.Sprintf(`weir_load_crossings_total{limit=%q,to=%q}`, c.name, side(c.is))).Inc()
	}
}

func side(over bool) string {
	if over {
		return "over"
	}
	return "under"
}

func rounded(x float64) float64 { return math.Round(x*1000) / 1000 }
