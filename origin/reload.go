package origin

import (
	"context"

	"weir/configs"
	"weir/internal/drain"
	"weir/internal/reload"
	"weir/internal/session"
)

// liveKeys are the keys of an origin that a reload puts in force. The others need
// another process, which would cut the publishers: they are refused.
var liveKeys = []string{"vhosts", "limits", "play.max_sessions", "drain"}

// reloader puts configurations in force. One call of apply at a time.
type reloader struct {
	running Config
	origin  *Origin
	door    *session.Server
	open    *session.OpenDoor
	drained *drain.Node
}

// apply is a reload.Options.Apply.
func (r *reloader) apply(_ context.Context, file []byte, name string) (reload.Outcome, error) {
	cfg := Default()
	if err := configs.Parse(name, file, &cfg); err != nil {
		return reload.Outcome{}, err
	}
	changed := configs.Changed(&r.running, &cfg)
	if _, fixed := reload.Among(changed, liveKeys...); len(fixed) > 0 {
		again := Default()
		return reload.Outcome{}, configs.Locate(name, file, &again, reload.CannotChange(fixed))
	}
	r.origin.table.Replace(cfg.Vhosts)
	r.open.SetLimits(cfg.Limits)
	r.door.SetMaxSessions(cfg.Play.MaxSessions)
	r.drained.SetConfig(cfg.Drain)
	r.running = cfg
	return reload.Outcome{Changed: changed}, nil
}
