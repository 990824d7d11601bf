package autoscale

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// Member is a node of the group with where its admin interface is.
type Member struct {
	Node
	Host string // of its address
}

// Source tells a Scaler what there is.
type Source interface {
	// Nodes returns the edges of a group.
	Nodes(ctx context.Context, group string) ([]Member, error)
	// Lead reports whether this server is the one that acts, of those that share a
	// directory. It is asked before each step, and the answer holds for some seconds.
	Lead(ctx context.Context, group string) (bool, error)
}

// Driver carries actions out. It is called for one action at a time, and blocks until
// it is done or ctx ends. host is that of the node; empty for a start.
type Driver interface {
	Do(ctx context.Context, a Action, host string) error
}

// Scaler keeps a group at its size: it feeds a Core and has a driver do what it says.
type Scaler struct {
	cfg    Config
	source Source
	driver Driver
	log    *slog.Logger
	set    *metrics.Set
}

// stepEvery is how often the nodes are looked at.
const stepEvery = time.Second

// New returns a scaler of cfg, which must be valid and have a driver. log and set may
// be nil.
func New(cfg Config, source Source, log *slog.Logger, set *metrics.Set) *Scaler {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if set == nil {
		set = metrics.NewSet()
	}
	return &Scaler{cfg: cfg, source: source, driver: newDriver(cfg), log: log.With("group", cfg.Group), set: set}
}

// Run acts until ctx ends, whenever this server leads. It returns nil.
func (s *Scaler) Run(ctx context.Context) error {
	tick := time.NewTicker(stepEvery)
	defer tick.Stop()
	var core *Core
	failure := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		lead, err := s.source.Lead(ctx, s.cfg.Group)
		var members []Member
		if err == nil && lead {
			members, err = s.source.Nodes(ctx, s.cfg.Group)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			// What is not known is not acted on; nor is this server the leader when it
			// cannot say so.
			if core = nil; failure == "" {
				s.log.Warn("autoscaling pauses: the directory cannot be asked", "err", err)
			}
			failure = err.Error()
			continue
		case !lead:
			if core != nil {
				s.log.Info("another discovery server scales now")
			}
			core, failure = nil, ""
			continue
		case core == nil:
			s.log.Info("this discovery server scales", "driver", s.cfg.Driver, "nodes", len(members))
			core = NewCore(s.cfg)
		}
		failure = ""
		s.step(ctx, core, members)
	}
}

func (s *Scaler) step(ctx context.Context, core *Core, members []Member) {
	nodes, hosts := make([]Node, len(members)), make(map[string]string, len(members))
	for i, m := range members {
		nodes[i], hosts[m.ID] = m.Node, m.Host
	}
	a, ok := core.Step(time.Now(), nodes)
	if !ok {
		return
	}
	bound, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	err := s.driver.Do(bound, a, hosts[a.Node])
	result := "ok"
	if err != nil {
		result = "failed"
		core.Failed(time.Now())
		s.log.Error("scaling failed", "action", a.Kind, "node", a.Node, "reason", a.Reason, "retry_in", s.cfg.Retry, "err", err)
	} else {
		s.log.Info("scaling", "action", a.Kind, "node", a.Node, "reason", a.Reason, "driver", s.cfg.Driver)
	}
	s.set.GetOrCreateCounter(fmt.Sprintf(`weir_autoscale_actions_total{action=%q,result=%q}`, a.Kind, result)).Inc()
}
