package worker

import (
	"errors"
	"fmt"
	"time"
)

// Config is the part of a node's configuration that says how its processes are
// supervised. The zero value is not valid; begin with DefaultConfig.
type Config struct {
	// ReadyTimeout bounds the time from the start of a process until it says
	// that it is ready. One that takes longer is killed. More than 0.
	ReadyTimeout time.Duration `yaml:"ready_timeout"`

	// StopGrace is what a process gets between SIGTERM and SIGKILL, and
	// between the death of its supervisor and its own. More than 0.
	StopGrace time.Duration `yaml:"stop_grace"`

	// RestartMin is the pause before the second restart in a row. The first
	// one has none; each later one doubles it, up to RestartMax. The pause
	// taken is spread evenly over its upper half. More than 0.
	RestartMin time.Duration `yaml:"restart_min"`

	// RestartMax is the longest pause before a restart. At least RestartMin.
	RestartMax time.Duration `yaml:"restart_max"`

	// RestartReset is how long a process has to have lived for its death to
	// count as the first one again. More than 0.
	RestartReset time.Duration `yaml:"restart_reset"`
}

// DefaultConfig returns the configuration of a node whose file says nothing.
func DefaultConfig() Config {
	return Config{
		ReadyTimeout: 10 * time.Second,
		StopGrace:    5 * time.Second,
		RestartMin:   100 * time.Millisecond,
		RestartMax:   5 * time.Second,
		RestartReset: 10 * time.Second,
	}
}

// Validate returns all that is wrong with c, joined; each message begins with
// the key that it is about.
func (c Config) Validate() error {
	var wrong []error
	positive := func(key string, d time.Duration) {
		if d <= 0 {
			wrong = append(wrong, fmt.Errorf("%s: %v is not more than 0", key, d))
		}
	}
	positive("ready_timeout", c.ReadyTimeout)
	positive("stop_grace", c.StopGrace)
	positive("restart_min", c.RestartMin)
	positive("restart_reset", c.RestartReset)
	if c.RestartMax < c.RestartMin {
		wrong = append(wrong, fmt.Errorf("restart_max: %v is less than restart_min, %v", c.RestartMax, c.RestartMin))
	}
	return errors.Join(wrong...)
}
