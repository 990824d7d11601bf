package drain

import (
	"errors"
	"fmt"
	"time"
)

// Config is the `drain` section of a node's configuration.
type Config struct {
	// How long sessions may stay once the node drains by SIGTERM, or by `weir drain` without
	// --deadline; from 0s to 24h. Players are moved within it, spread evenly; what is left at its
	// end is cut. A node without sessions does not wait. 0s: SIGTERM ends everything at once.
	// Whoever starts the node must let it live for as long and a little more (TimeoutStopSec of
	// systemd, terminationGracePeriodSeconds of Kubernetes).
	Deadline time.Duration `yaml:"deadline"`
	// How many players are moved per second, over all workers of the node, from 0 to 1000000. 0
	// spreads them over the deadline. A rate that is too small for the deadline leaves players
	// to be cut at its end.
	KickRate float64 `yaml:"kick_rate"`
}

// DefaultConfig returns the configuration of a node whose file says nothing: its
// end comes before the 30 s that Kubernetes waits, and the 90 s of systemd.
func DefaultConfig() Config { return Config{Deadline: 20 * time.Second} }

// Limits of an order, by whomever it is given.
const (
	MaxDeadline = 24 * time.Hour
	MaxKickRate = 1e6
)

// Validate returns all that is wrong, each error beginning with the key.
func (c *Config) Validate() error {
	var errs []error
	if c.Deadline < 0 || c.Deadline > MaxDeadline {
		errs = append(errs, fmt.Errorf("deadline: %v is not between 0s and 24h", c.Deadline))
	}
	if !(c.KickRate >= 0 && c.KickRate <= MaxKickRate) { // NaN is neither
		errs = append(errs, fmt.Errorf("kick_rate: %v is not between 0 and 1000000", c.KickRate))
	}
	return errors.Join(errs...)
}
