package load

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"weir/internal/units"
)

// Config is the `load` section: how busy a node counts.
type Config struct {
	// From which load on the node is busy: new players are sent to a better node, if there is
	// one. Above 0 and at most 10; 0 switches the limit off.
	SoftLimit float64 `yaml:"soft_limit"`
	// From which load on the node is full: it takes no new players, and asks some of those it
	// has to leave. An origin takes no new publishers either, but those that come back to their
	// stream. From soft_limit to 10; 0 switches the limit off.
	HardLimit float64 `yaml:"hard_limit"`
	// How far below a limit the load has to fall for the node to count as under it again, from 0
	// to 0.5.
	Hysteresis float64 `yaml:"hysteresis"`
	// How long the load has to be over a limit before it counts as crossed, from 0s to 1m.
	After time.Duration `yaml:"after"`
	// How long a limit stays crossed, or not crossed, at least; from 0s to 10m.
	Hold time.Duration `yaml:"hold"`
	// The processors of the machine, whoever uses them: those that the node may run on, and the
	// quota of its cgroup.
	CPU Dimension `yaml:"cpu"`
	// The processor time of the node's own processes, of what they may use.
	ProcessCPU Dimension `yaml:"process_cpu"`
	// The bandwidth of the machine's network, in the direction that is fuller.
	Network NetworkConfig `yaml:"network"`
	// The memory in use, of the machine's or of the limit of the node's cgroup, whichever is
	// fuller. Memory that the kernel would give back does not count.
	Memory Dimension `yaml:"memory"`
	// The file descriptors of the process that has the most of them open, of its RLIMIT_NOFILE.
	Descriptors Dimension `yaml:"descriptors"`
	// The space in use on a disk.
	Disk DiskConfig `yaml:"disk"`
	// How late players get what they are to get: overload that the others do not see.
	Lateness LatenessConfig `yaml:"lateness"`
}

// Dimension is one thing that can run out.
type Dimension struct {
	// What the dimension's value, which is 1 when all is used, is multiplied by before the
	// largest one becomes the node's load; from 0 to 10. 0 leaves the dimension out.
	Weight float64 `yaml:"weight"`
}

// NetworkConfig is the dimension of bandwidth.
type NetworkConfig struct {
	Dimension `yaml:",inline"`
	// The names of the interfaces that count, as in `eth0` or `eth*`. Empty: those of the
	// machine's hardware or, where there are none, as in a container, all but loopback.
	Interfaces []string `yaml:"interfaces"`
	// What the interfaces together carry in each direction, as in `10Gbit`. 0bit: what the
	// kernel says of each (`/sys/class/net/NAME/speed`); virtual machines often know no speed,
	// and then the dimension is left out.
	Capacity units.BitRate `yaml:"capacity"`
}

// DiskConfig is the dimension of disk space.
type DiskConfig struct {
	Dimension `yaml:",inline"`
	// An absolute path on the disk. Empty: the dimension is left out.
	Path string `yaml:"path"`
}

// LatenessConfig is the dimension of lateness.
type LatenessConfig struct {
	Dimension `yaml:",inline"`
	// The delay of the fan-out behind its plan that counts as a load of 1, from 1ms to 1m. It is
	// the delay that 99 of 100 rounds of the last two seconds were below, in the worst process.
	Limit time.Duration `yaml:"limit"`
}

// DefaultConfig returns the configuration of a node whose file says nothing.
func DefaultConfig() Config {
	one := Dimension{Weight: 1}
	return Config{
		SoftLimit: 0.80, HardLimit: 0.90, Hysteresis: 0.05, After: 2 * time.Second, Hold: 10 * time.Second,
		CPU: one, ProcessCPU: one, Memory: one, Descriptors: one,
		Network:  NetworkConfig{Dimension: one},
		Disk:     DiskConfig{Dimension: one},
		Lateness: LatenessConfig{Dimension: one, Limit: 250 * time.Millisecond},
	}
}

// Validate returns all that is wrong, each error beginning with the key.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	within := func(key string, x, low, high float64) {
		if !(x >= low && x <= high) { // NaN is not
			bad("%s: %v is not between %v and %v", key, x, low, high)
		}
	}
	within("soft_limit", c.SoftLimit, 0, 10)
	within("hard_limit", c.HardLimit, 0, 10)
	if c.HardLimit != 0 && c.SoftLimit > c.HardLimit {
		bad("hard_limit: %v is less than soft_limit (%v)", c.HardLimit, c.SoftLimit)
	}
	within("hysteresis", c.Hysteresis, 0, 0.5)
	if c.After < 0 || c.After > time.Minute {
		bad("after: %v is not between 0s and 1m", c.After)
	}
	if c.Hold < 0 || c.Hold > 10*time.Minute {
		bad("hold: %v is not between 0s and 10m", c.Hold)
	}
	for _, name := range Names {
		within(string(name)+".weight", c.weight(name), 0, 10)
	}
	for i, pattern := range c.Network.Interfaces {
		if _, err := filepath.Match(pattern, ""); err != nil || pattern == "" || strings.Contains(pattern, "/") {
			bad("network.interfaces[%d]: %q is no name of an interface, such as eth0 or eth*", i, pattern)
		}
	}
	if c.Disk.Path != "" && !filepath.IsAbs(c.Disk.Path) {
		bad("disk.path: %q does not begin with /", c.Disk.Path)
	}
	if c.Lateness.Limit < time.Millisecond || c.Lateness.Limit > time.Minute {
		bad("lateness.limit: %v is not between 1ms and 1m", c.Lateness.Limit)
	}
	return errors.Join(errs...)
}

func (c *Config) weight(n Name) float64 {
	switch n {
	case CPU:
		return c.CPU.Weight
	case ProcessCPU:
		return c.ProcessCPU.Weight
	case Network:
		return c.Network.Weight
	case Memory:
		return c.Memory.Weight
	case Descriptors:
		return c.Descriptors.Weight
	case Disk:
		return c.Disk.Weight
	default:
		return c.Lateness.Weight
	}
}
