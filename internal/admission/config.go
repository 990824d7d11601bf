package admission

import (
	"errors"
	"fmt"
	"time"
)

// Config is the `admission` section: how many newcomers a node lets in, and how many
// players it asks to leave when it is full.
type Config struct {
	// How many new sessions per second the node lets in, over all its workers, from 0 to
	// 1000000; 0 means no limit. Players beyond it wait; publishers and other nodes do not, but
	// count.
	Rate float64 `yaml:"rate"`
	// How many sessions may come at once before the rate applies, from 1 to 1000000.
	Burst int `yaml:"burst"`
	// How long a player may be made to wait, from 0s to 1m. Who would have to wait for longer is
	// refused and told when to come back; so are players of tenants over their quota, at once.
	MaxWait time.Duration `yaml:"max_wait"`
	// How long the node has to be full (`load.hard_limit`) before players are asked to leave,
	// from 0s to 10m.
	ShedAfter time.Duration `yaml:"shed_after"`
	// Which share of its players the node asks to leave per second while it is full, from 0 to 1;
	// 0 asks nobody.
	ShedRate float64 `yaml:"shed_rate"`
}

// DefaultConfig returns the configuration of a node whose file says nothing.
func DefaultConfig() Config {
	return Config{Rate: 1000, Burst: 1000, MaxWait: 3 * time.Second, ShedAfter: 5 * time.Second, ShedRate: 0.02}
}

// Validate returns all that is wrong, each error beginning with the key.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !(c.Rate >= 0 && c.Rate <= 1e6) { // NaN is neither
		bad("rate: %v is not between 0 and 1000000", c.Rate)
	}
	if c.Burst < 1 || c.Burst > 1_000_000 {
		bad("burst: %d is not between 1 and 1000000", c.Burst)
	}
	if c.MaxWait < 0 || c.MaxWait > time.Minute {
		bad("max_wait: %v is not between 0s and 1m", c.MaxWait)
	}
	if c.ShedAfter < 0 || c.ShedAfter > 10*time.Minute {
		bad("shed_after: %v is not between 0s and 10m", c.ShedAfter)
	}
	if !(c.ShedRate >= 0 && c.ShedRate <= 1) {
		bad("shed_rate: %v is not between 0 and 1", c.ShedRate)
	}
	return errors.Join(errs...)
}
