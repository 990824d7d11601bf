package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Limit is what the search for the capacity of a server bears.
type Limit struct {
	// P99 is the longest delay that 99 of 100 frames keep; 0 means any.
	P99 time.Duration `json:"p99"`
	// Slow is the largest share of players that may get less than 95 % of the
	// stream, or none of it; in [0, 1].
	Slow float64 `json:"slow"`
	// Growth is by how much the players grow in a step; over 1.
	Growth float64 `json:"growth"`
}

// DefaultLimit returns a limit that viewers do not notice.
func DefaultLimit() Limit { return Limit{P99: 180 * time.Millisecond, Slow: 0.01, Growth: 1.25} }

// Validate returns all that is out of range.
func (l *Limit) Validate() error {
	var errs []error
	if l.P99 < 0 {
		errs = append(errs, errors.New("limit p99: must not be negative"))
	}
	if l.Slow < 0 || l.Slow > 1 {
		errs = append(errs, fmt.Errorf("limit slow: %v is not between 0%% and 100%%", l.Slow))
	}
	if l.Growth < 1.01 || l.Growth > 10 {
		errs = append(errs, fmt.Errorf("growth: %v is not between 1.01 and 10", l.Growth))
	}
	return errors.Join(errs...)
}

// Capacity is how many players a server bore.
type Capacity struct {
	Limit Limit `json:"limit"`
	// Good is the largest number of players at which all limits held, Bad the
	// first at which one did not: 0 if none was found.
	Good  int    `json:"good"`
	Bad   int    `json:"bad"`
	Why   string `json:"why"` // the search ended
	Steps []Step `json:"steps"`
}

// Step is one number of players, and what Limit judges it by.
type Step struct {
	Players  int     `json:"players"`
	P99MS    float64 `json:"p99_ms"`
	Slow     float64 `json:"slow"`
	CPUPerGB float64 `json:"cpu_seconds_per_gb"`
}

// judge says which limit a step breaks, "" if none.
func (l *Limit) judge(s Step) string {
	switch {
	case l.P99 > 0 && s.P99MS > millis(l.P99):
		return fmt.Sprintf("p99 delay of %.1f ms is over %v", s.P99MS, l.P99)
	case s.Slow > l.Slow:
		return fmt.Sprintf("%.2f %% of the players are slow or failed, over %.2f %%", 100*s.Slow, 100*l.Slow)
	}
	return ""
}

// findCapacity adds players until a limit breaks. The window that was measured
// is the first step.
func (r *run) findCapacity(ctx, loadCtx context.Context) error {
	c := &Capacity{Limit: *r.cfg.Limit}
	r.report.Capacity = c
	room, err := roomForFiles()
	if err != nil {
		return err
	}
	w, players := r.report.Window, r.cfg.Players
	for {
		n := r.count()
		s := Step{
			Players: players, P99MS: w.Delay.P99MS, CPUPerGB: w.CPUPerGB,
			Slow: float64(w.Behind+n.failed+n.waiting) / float64(max(1, players)),
		}
		c.Steps = append(c.Steps, s)
		if c.Why = c.Limit.judge(s); c.Why != "" {
			c.Bad = players
			return nil
		}
		c.Good = players
		next := max(players+1, int(float64(players)*c.Limit.Growth))
		if next+r.cfg.connections()-r.cfg.Players > room {
			c.Why = fmt.Sprintf("no limit was reached: more than %d players need more open files than this process may have (ulimit -Hn)", players)
			return nil
		}
		r.join(ctx, loadCtx, next-players, r.cfg.Ramp, ofRun)
		players = next
		step := fmt.Sprintf("capacity, %d players", players)
		if err := r.settle(ctx, step); err != nil {
			return err
		}
		if w, err = r.window(ctx, step); err != nil {
			return err
		}
	}
}
