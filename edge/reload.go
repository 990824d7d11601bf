package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"weir/configs"
	"weir/internal/drain"
	"weir/internal/reload"
	"weir/internal/worker"
)

// Keys of an edge that a reload puts in force where they are, and keys that it
// cannot change, because the supervisor, or the cluster, has built on them. All
// others are for new workers.
var (
	liveKeys  = []string{"vhosts", "limits", "play.max_sessions", "drain"}
	fixedKeys = []string{
		"role", "node", "rtmp.listen", "rtmp.tls.listen", "http.listen", "http.tls.listen", "admin", "advertise", "workers", "supervision", "discovery", "load",
	}
)

// reloader puts configurations in force at the supervisor of an edge.
type reloader struct {
	// Static.
	supervisor *worker.Supervisor
	configure  func(ctx context.Context, file []byte) error // the workers, where they are
	drained    *drain.Node
	log        *slog.Logger

	changing sync.Mutex // held by a reload and by an upgrade, for all their time
	running  Config     // guarded by changing
	file     []byte     // guarded by changing; of running
}

// errUpgrading refuses a reload.
var errUpgrading = errors.New("an upgrade is under way: reload when it is done")

// apply is a reload.Options.Apply.
func (r *reloader) apply(ctx context.Context, file []byte, name string) (reload.Outcome, error) {
	if !r.changing.TryLock() {
		return reload.Outcome{}, errUpgrading
	}
	defer r.changing.Unlock()
	cfg := Default()
	if err := configs.Parse(name, file, &cfg); err != nil {
		return reload.Outcome{}, err
	}
	changed := configs.Changed(&r.running, &cfg)
	if fixed, _ := reload.Among(changed, fixedKeys...); len(fixed) > 0 {
		again := Default()
		return reload.Outcome{}, configs.Locate(name, file, &again, reload.CannotChange(fixed))
	}
	if len(changed) == 0 {
		return reload.Outcome{}, nil
	}
	_, rest := reload.Among(changed, liveKeys...)
	roll := len(rest) > 0
	if !roll {
		err := r.configure(ctx, file)
		if err == nil {
			err = r.supervisor.Use(ctx, spec, file)
		}
		if err != nil { // a new worker will take it
			r.log.Warn("workers are rolled, not all have taken the configuration", "err", err)
			roll = true
		}
	}
	if roll {
		if err := r.supervisor.Roll(ctx, spec, nil, file); err != nil {
			if back := r.supervisor.Roll(ctx, spec, nil, r.file); back != nil {
				return reload.Outcome{}, fmt.Errorf("%w; and not all workers have the old one again: %w", err, back)
			}
			return reload.Outcome{}, err
		}
	}
	r.drained.SetConfig(cfg.Drain)
	r.running, r.file = cfg, file
	return reload.Outcome{Changed: changed, Rolled: roll}, nil
}
