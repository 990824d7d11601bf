package schedule

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	good := DefaultConfig()
	if err := good.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	f := func(want string, change func(*Config)) {
		t.Helper()
		c := DefaultConfig()
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want one error about %s", err, want)
		}
	}
	f("policy: ", func(c *Config) { c.Policy = "" })
	f("vhosts.v.policy: ", func(c *Config) { c.Vhosts = map[string]Binding{"v": {Policy: "best"}, "w": {}} })
	f("prefer[0]: ", func(c *Config) { c.Prefer = []PreferenceName{"luck"} })
	f("prefer[1]: ", func(c *Config) { c.Prefer = []PreferenceName{PreferCost, PreferCost} })
	f("play_from: ", func(c *Config) { c.PlayFrom = "discovery" })
	f("publish_to: ", func(c *Config) { c.PublishTo = "" })
	f("soft_limit: ", func(c *Config) { c.SoftLimit = 0; c.Hysteresis = 0 })
	f("soft_limit: ", func(c *Config) { c.SoftLimit = 1.1; c.HardLimit = 2 })
	f("hard_limit: ", func(c *Config) { c.HardLimit = 0.7 })
	f("hard_limit: ", func(c *Config) { c.HardLimit = math.NaN() })
	f("hysteresis: ", func(c *Config) { c.Hysteresis = 0.81 })
	f("stream_slack: ", func(c *Config) { c.StreamSlack = -1 })
	f("report_ttl: ", func(c *Config) { c.ReportTTL = time.Hour })
	f("default_bit_rate: ", func(c *Config) { c.DefaultBitRate = 0 })
	f("default_capacity: ", func(c *Config) { c.DefaultCapacity = 1 })
}
