package admission

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/internal/load"
)

// Sessions are the players of a process. *session.Server is one.
type Sessions interface {
	// Sheddable returns the ids of the players that can be asked to leave and have not
	// been, in the order in which they should be.
	Sheddable() []string
	// Shed asks one to leave. It reports whether there was one.
	Shed(id string) bool
}

// Shedder asks players to leave while the node is full.
type Shedder struct {
	// Static.
	cfg      Config
	status   func() load.Status
	sessions Sessions
	log      *slog.Logger
	shed     *metrics.Counter
}

// NewShedder returns a shedder. Run has to run for it to act. cfg must be valid.
func NewShedder(cfg Config, status func() load.Status, s Sessions, log *slog.Logger, set *metrics.Set) *Shedder {
	return &Shedder{cfg: cfg, status: status, sessions: s, log: log, shed: set.NewCounter("weir_shed_players_total")}
}

// Run asks players to leave until ctx ends: ShedRate of them a second, one by one, once
// the node has been full for ShedAfter, until it is so no more. It returns nil.
func (s *Shedder) Run(ctx context.Context) error {
	if s.cfg.ShedRate == 0 {
		return nil
	}
	var since time.Time // when the node became full; zero: it is not
	debt, asked := 0.0, 0
	for {
		// The second is cut into the gaps between those who leave.
		gap, due := time.Second, []string(nil)
		full := s.status().Shed
		switch now := time.Now(); {
		case !full && !since.IsZero():
			if asked > 0 {
				s.log.Info("no more players are asked to leave", "asked", asked)
			}
			since, debt, asked = time.Time{}, 0, 0
		case full && since.IsZero():
			since = now
		}
		if full && time.Since(since) >= s.cfg.ShedAfter {
			list := s.sessions.Sheddable()
			debt += s.cfg.ShedRate * float64(len(list))
			n := min(int(debt), len(list))
			debt -= float64(n)
			if due = list[:n]; n > 0 {
				gap = time.Second / time.Duration(n)
			}
		}
		for {
			if len(due) > 0 {
				if s.sessions.Shed(due[0]) {
					if asked++; asked == 1 {
						s.log.Warn("players are asked to leave: the node is full", "share_per_second", s.cfg.ShedRate)
					}
					s.shed.Inc()
				}
				due = due[1:]
			}
			// Spread, so that those who come back do not keep in step.
			timer := time.NewTimer(gap/2 + rand.N(gap))
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case <-timer.C:
			}
			if len(due) == 0 {
				break
			}
		}
	}
}
