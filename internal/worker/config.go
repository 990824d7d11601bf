package worker

import (
	"errors"
	"fmt"
	"time"
)

// Config is the part of a node's configuration that says how its processes are
// supervised. The zero value is not valid; begin with DefaultConfig.
type Config struct {
	// The time from the start of a process until it must have said that it is ready; one that
	// takes longer is killed. More than 0s.
	ReadyTimeout time.Duration `yaml:"ready_timeout"`

	// The time that a process gets between SIGTERM and SIGKILL, and between the death of its
	// supervisor and its own. More than 0s.
	StopGrace time.Duration `yaml:"stop_grace"`

	// How long a worker that is rolled (a reload or an upgrade) may go on beside the one that
	// takes its place: its players are moved within it, spread evenly, and those that are left at
	// its end are cut; from 0s to 1h. 0s: it ends before the other one starts, with all that it has.
	RollGrace time.Duration `yaml:"roll_grace"`

	// How long a worker that is rolled may go on for the publishers that it has, which would be
	// cut else; from 0s to 168h. It counts from the roll; less than roll_grace means as long as
	// that.
	PublisherGrace time.Duration `yaml:"publisher_grace"`

	// The pause before the second restart in a row. The first one has none; each later one
	// doubles it, up to restart_max. The pause taken is spread evenly over its upper half. More
	// than 0s.
	RestartMin time.Duration `yaml:"restart_min"`

	// The longest pause before a restart, at least restart_min.
	RestartMax time.Duration `yaml:"restart_max"`

	// How long a process has to have lived for its death to count as the first one again. More
	// than 0s.
	RestartReset time.Duration `yaml:"restart_reset"`
}

// DefaultConfig returns the configuration of a node whose file says nothing.
func DefaultConfig() Config {
	return Config{
		ReadyTimeout:   10 * time.Second,
		StopGrace:      5 * time.Second,
		RollGrace:      30 * time.Second,
		PublisherGrace: 12 * time.Hour,
		RestartMin:     100 * time.Millisecond,
		RestartMax:     5 * time.Second,
		RestartReset:   10 * time.Second,
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
	if c.RollGrace < 0 || c.RollGrace > time.Hour {
		wrong = append(wrong, fmt.Errorf("roll_grace: %v is not between 0s and 1h", c.RollGrace))
	}
	if c.PublisherGrace < 0 || c.PublisherGrace > 7*24*time.Hour {
		wrong = append(wrong, fmt.Errorf("publisher_grace: %v is not between 0s and 168h", c.PublisherGrace))
	}
	positive("restart_min", c.RestartMin)
	positive("restart_reset", c.RestartReset)
	if c.RestartMax < c.RestartMin {
		wrong = append(wrong, fmt.Errorf("restart_max: %v is less than restart_min, %v", c.RestartMax, c.RestartMin))
	}
	return errors.Join(wrong...)
}
