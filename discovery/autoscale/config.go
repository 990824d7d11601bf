package autoscale

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"weir/configs"
)

// Config configures the scaling of one group of edges.
type Config struct {
	// How machines are started and stopped: `none` (nothing is scaled), `log` (only a line in the
	// log says what would be done), `exec` or `webhook`.
	Driver DriverName `yaml:"driver"`
	// The group of edges (their label group) that is scaled. Edges without the label are the
	// group "".
	Group string `yaml:"group"`
	// The smallest number of nodes, from 1.
	Min int `yaml:"min"`
	// The largest number of nodes, from min.
	Max int `yaml:"max"`
	// The mean load of the group over which it gets a node more, from scale_in to 1. It should be
	// below the soft limit.
	ScaleOut float64 `yaml:"scale_out"`
	// The mean load under which a node is drained and stopped, from 0 to scale_out; and only if the
	// others stay under scale_out without it and without one more.
	ScaleIn float64 `yaml:"scale_in"`
	// How long the mean has to be over scale_out, from 1s to 1h.
	OutAfter time.Duration `yaml:"out_after"`
	// How long the mean has to be under scale_in, from 1s to 24h.
	InAfter time.Duration `yaml:"in_after"`
	// How long a machine that was asked for may take to come, or one that was stopped to go, from 1s
	// to 1h. Nothing else is done meanwhile.
	WarmUp time.Duration `yaml:"warm_up"`
	// How long nothing is done after something was, from 0s to 24h.
	CoolDown time.Duration `yaml:"cool_down"`
	// How long nothing is done after this server began to scale, from 0s to 1h: nodes have to tell of
	// themselves first.
	Settle time.Duration `yaml:"settle"`
	// How long a node that is drained keeps its sessions, from 1s to 24h. It is stopped when they
	// have left, and at the latest then.
	DrainDeadline time.Duration `yaml:"drain_deadline"`
	// How long to wait after an action that failed, from 1s to 1h.
	Retry time.Duration `yaml:"retry"`
	// The port of the nodes' admin interfaces. With it the server drains nodes itself, at the host
	// of their address; 0 leaves that to the driver.
	AdminPort int `yaml:"admin_port"`
	// The token of the nodes' admin interfaces.
	AdminToken configs.Secret `yaml:"admin_token"`
	// For the driver exec: the program and its arguments. The action (start, drain, undrain, stop)
	// and the node's id, which is empty for start, are added to them; WEIR_ACTION, WEIR_NODE,
	// WEIR_GROUP, WEIR_DEADLINE (seconds) and WEIR_REASON are in the environment. Status 0 is
	// success.
	Command []string `yaml:"command"`
	// For the driver webhook: the URL that gets a POST with JSON. A status of 2xx is success.
	URL string `yaml:"url"`
	// The bearer token of the webhook.
	Token configs.Secret `yaml:"token"`
	// How long an action may take, from 1s to 10m.
	Timeout time.Duration `yaml:"timeout"`
}

// DriverName names a driver.
type DriverName string

// The drivers.
const (
	None    DriverName = "none"
	Log     DriverName = "log"
	Exec    DriverName = "exec"
	Webhook DriverName = "webhook"
)

// Choices implements configs.Chooser.
func (DriverName) Choices() []string {
	return []string{string(None), string(Log), string(Exec), string(Webhook)}
}

// DefaultConfig returns the configuration without keys: nothing is scaled.
func DefaultConfig() Config {
	return Config{
		Driver: None, Min: 2, Max: 10, ScaleOut: 0.65, ScaleIn: 0.40,
		OutAfter: time.Minute, InAfter: 10 * time.Minute, WarmUp: 5 * time.Minute, CoolDown: 5 * time.Minute, Settle: 15 * time.Second,
		DrainDeadline: 30 * time.Minute, Retry: 30 * time.Second, Timeout: 30 * time.Second,
	}
}

// Validate returns all errors of c, each with its key in front.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf(key+": "+format, args...))
	}
	within := func(key string, d, low, high time.Duration) {
		if d < low || d > high {
			bad(key, "%v is not between %v and %v", d, low, high)
		}
	}
	if !slices.Contains(c.Driver.Choices(), string(c.Driver)) {
		bad("driver", "%q is not a driver", c.Driver)
	}
	if c.Min < 1 {
		bad("min", "%d is less than 1", c.Min)
	}
	if c.Max < c.Min || c.Max > 100_000 {
		bad("max", "%d is not between min (%d) and 100000", c.Max, c.Min)
	}
	if !(c.ScaleOut > 0 && c.ScaleOut <= 1) {
		bad("scale_out", "%v is not over 0 and at most 1", c.ScaleOut)
	}
	if !(c.ScaleIn >= 0 && c.ScaleIn < c.ScaleOut) {
		bad("scale_in", "%v is not from 0 to below scale_out (%v)", c.ScaleIn, c.ScaleOut)
	}
	within("out_after", c.OutAfter, time.Second, time.Hour)
	within("in_after", c.InAfter, time.Second, 24*time.Hour)
	within("warm_up", c.WarmUp, time.Second, time.Hour)
	within("cool_down", c.CoolDown, 0, 24*time.Hour)
	within("settle", c.Settle, 0, time.Hour)
	within("drain_deadline", c.DrainDeadline, time.Second, 24*time.Hour)
	within("retry", c.Retry, time.Second, time.Hour)
	within("timeout", c.Timeout, time.Second, 10*time.Minute)
	if c.AdminPort < 0 || c.AdminPort > 65535 {
		bad("admin_port", "%d is not between 0 and 65535", c.AdminPort)
	}
	if c.Driver == Exec && (len(c.Command) == 0 || c.Command[0] == "") {
		bad("command", "the driver exec needs a program")
	}
	if c.Driver == Webhook {
		if u, err := url.Parse(c.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
			bad("url", "the driver webhook needs an http or https URL")
		}
	}
	for _, s := range [...]struct{ key, value string }{{"token", string(c.Token)}, {"admin_token", string(c.AdminToken)}} {
		if strings.ContainsAny(s.value, " \t\r\n") {
			bad(s.key, "must not contain white space")
		}
	}
	return errors.Join(errs...)
}
