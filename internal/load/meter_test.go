package load

import (
	"math"
	"testing"
	"time"
)

// clocked is a meter with a clock, fed twice a second.
type clocked struct {
	*Meter
	now time.Time
	m   Machine
}

func newClocked(cfg Config) *clocked {
	return &clocked{
		Meter: NewMeter(cfg), now: time.Unix(1_700_000_000, 0),
		m: Machine{CPUs: 2, Memory: []Space{{100, 1000}}, Links: []Link{{Name: "eth0", BitsPerSecond: 1e9}}},
	}
}

// step lets half a second pass in which so many processors were busy.
func (c *clocked) step(busy float64, r Report) Load {
	c.now = c.now.Add(Interval)
	c.m.Busy += time.Duration(busy * float64(Interval))
	c.m.Idle += time.Duration((2 - busy) * float64(Interval))
	return c.Update(c.now, c.m, []Report{r})
}

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 0.005 {
		t.Errorf("%s is %.3f, want %.3f", what, got, want)
	}
}

// Nothing is known until there are rates; then a burner that takes one of two
// processors is half of them, within two seconds.
func TestBurner(t *testing.T) {
	c := newClocked(DefaultConfig())
	if l := c.step(0.2, Report{}); l.Known() || l.Report() != nil {
		t.Errorf("known from one reading: %+v", l)
	}
	for range 4 {
		c.step(0.2, Report{})
	}
	l := c.step(0.2, Report{})
	near(t, "calm", l.Effective, 0.1)
	for range 4 { // two seconds
		l = c.step(1.2, Report{})
	}
	near(t, "with the burner", l.Effective, 0.6)
	if l.Worst != CPU {
		t.Errorf("worst is %s", l.Worst)
	}
}

func TestDimensions(t *testing.T) {
	with := func(change func(*Config)) Config {
		cfg := DefaultConfig()
		change(&cfg)
		return cfg
	}
	for name, c := range map[string]struct {
		cfg       Config
		machine   func(m *Machine) // each half second
		report    Report
		dimension Name
		value     float64
		effective float64
	}{
		"egress": {
			DefaultConfig(), func(m *Machine) { m.Links[0].Egress += 25e6; m.Links[0].Ingress += 1e6 },
			Report{}, Network, 0.4, 0.4,
		},
		"ingress": {DefaultConfig(), func(m *Machine) { m.Links[0].Ingress += 25e6 }, Report{}, Network, 0.4, 0.4},
		"configured capacity": {
			with(func(c *Config) { c.Network.Capacity = 2e9 }), func(m *Machine) { m.Links[0].Egress += 25e6 },
			Report{}, Network, 0.2, 0.2,
		},
		"unknown capacity": {
			DefaultConfig(), func(m *Machine) { m.Links[0].BitsPerSecond = 0; m.Links[0].Egress += 1e9 },
			Report{}, Network, -1, 0.1,
		},
		"memory": {DefaultConfig(), func(m *Machine) { m.Memory = []Space{{950, 1000}, {100, 1000}} }, Report{}, Memory, 0.95, 0.95},
		"weight": {
			with(func(c *Config) { c.Memory.Weight = 0.5 }), func(m *Machine) { m.Memory = []Space{{950, 1000}} },
			Report{}, Memory, 0.95, 0.475,
		},
		"left out": {
			with(func(c *Config) { c.Memory.Weight = 0 }), func(m *Machine) { m.Memory = []Space{{950, 1000}} },
			Report{}, Memory, 0.95, 0,
		},
		"disk":                        {DefaultConfig(), func(m *Machine) { m.Disk = &Space{3, 4} }, Report{}, Disk, 0.75, 0.75},
		"processes":                   {DefaultConfig(), nil, Report{Cores: 1.5, CPU: 0.5}, ProcessCPU, 0.75, 0.75},
		"one process bound to a core": {DefaultConfig(), nil, Report{Cores: 0.9, CPU: 0.9}, ProcessCPU, 0.9, 0.9},
		"descriptors":                 {DefaultConfig(), nil, Report{Descriptors: 0.7}, Descriptors, 0.7, 0.7},
		"lateness":                    {DefaultConfig(), nil, Report{Lateness: 500 * time.Millisecond}, Lateness, 2, 2},
		"quota": {
			DefaultConfig(), func(m *Machine) { m.CPUs, m.Quota, m.Used = 0.5, 0.5, m.Used+Interval/2 },
			Report{}, CPU, 1, 1,
		},
		"counters that begin anew": {
			DefaultConfig(), func(m *Machine) { m.Links[0].Egress = 1000 - min(m.Links[0].Egress, 1000) },
			Report{}, Network, 0, 0.1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newClocked(c.cfg)
			var l Load
			for range 6 {
				k.m.Links = append([]Link(nil), k.m.Links...)
				if c.machine != nil {
					c.machine(&k.m)
				}
				l = k.step(0, c.report)
			}
			got, ok := l.Dimensions[c.dimension]
			if c.value < 0 {
				if ok {
					t.Errorf("%s is known: %v", c.dimension, got)
				}
			} else {
				near(t, string(c.dimension), got, c.value)
			}
			near(t, "effective", l.Effective, c.effective)
			if r := l.Report(); r[KeyEffective] != l.Effective || ok && r[string(c.dimension)] != got {
				t.Errorf("reported %v", r)
			}
		})
	}
}

// A node of several processes counts their sum, and the worst of them.
func TestProcessesAddUp(t *testing.T) {
	m, now := NewMeter(DefaultConfig()), time.Unix(1_700_000_000, 0)
	var l Load
	for range 4 {
		now = now.Add(Interval)
		l = m.Update(now, Machine{CPUs: 4}, []Report{
			{Worker: 0, Cores: 1, CPU: 0.5, Players: 10, Publishers: 1}, {Worker: 1, Cores: 0.8, CPU: 0.4, Descriptors: 0.1, Players: 5},
		})
	}
	near(t, "process_cpu", l.Dimensions[ProcessCPU], 0.5)
	near(t, "descriptors", l.Dimensions[Descriptors], 0.1)
	if l.Players != 15 || l.Publishers != 1 {
		t.Errorf("%d players, %d publishers", l.Players, l.Publishers)
	}
}

// A limit is crossed after two seconds, stays crossed for ten, and is left only from
// hysteresis below it.
func TestLimits(t *testing.T) {
	c := newClocked(DefaultConfig())
	at := func(load float64, d time.Duration) (l Load) {
		for range int(d / Interval) {
			l = c.step(2*load, Report{})
		}
		return l
	}
	expect := func(what string, l Load, soft, hard bool) {
		t.Helper()
		if l.Soft != soft || l.Hard != hard {
			t.Errorf("%s: soft %t, hard %t, load %v", what, l.Soft, l.Hard, l.Effective)
		}
	}
	expect("calm", at(0.2, 5*time.Second), false, false)
	expect("a short peak", at(1, time.Second), false, false)
	expect("after the peak", at(0.2, 2*time.Second), false, false)
	expect("busy", at(0.85, 4*time.Second), true, false)
	expect("full", at(0.95, 4*time.Second), true, true)
	expect("calm for a moment", at(0.2, 2*time.Second), true, true)
	expect("calm for longer", at(0.2, 8*time.Second), false, false)
	expect("full again, but it has just flipped", at(1, 4*time.Second), false, false)
	expect("full for longer", at(1, 8*time.Second), true, true)
	expect("just below the limits", at(0.78, 20*time.Second), true, false)
	expect("below hysteresis", at(0.7, 2*time.Second), false, false)
}

// Whatever the load does, no limit flips twice in ten seconds.
func TestNothingFlipsTwiceInHold(t *testing.T) {
	c := newClocked(DefaultConfig())
	var was Load
	var soft, hard time.Time
	for i := range 2000 {
		busy := 1 + math.Sin(float64(i)*0.15) + 0.3*math.Sin(float64(i)*0.7)
		l := c.step(max(0, min(busy, 2)), Report{})
		for _, f := range []struct {
			name    string
			flipped bool
			last    *time.Time
		}{{"soft", l.Soft != was.Soft, &soft}, {"hard", l.Hard != was.Hard, &hard}} {
			if !f.flipped {
				continue
			}
			if !f.last.IsZero() && c.now.Sub(*f.last) < 10*time.Second {
				t.Fatalf("%s flipped %v after its last time", f.name, c.now.Sub(*f.last))
			}
			*f.last = c.now
		}
		was = l
	}
	if soft.IsZero() || hard.IsZero() {
		t.Error("nothing ever flipped")
	}
}

// Players are asked to leave only if that helps: not where others take the processors.
func TestShedOnlyWhatHelps(t *testing.T) {
	for name, c := range map[string]struct {
		busy float64
		r    Report
		hard bool
		shed bool
	}{
		"calm":                  {0.2, Report{}, false, false},
		"a burner":              {2, Report{Cores: 0.1, CPU: 0.05}, true, false},
		"the node itself":       {2, Report{Cores: 1.5, CPU: 0.75}, true, true},
		"late, whoever does it": {2, Report{Cores: 0.1, Lateness: time.Second}, true, true},
	} {
		k := newClocked(DefaultConfig())
		var l Load
		for range 20 {
			l = k.step(c.busy, c.r)
		}
		if s := l.Status(); s.Hard != c.hard || s.Shed != c.shed || s.Effective != l.Effective {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func TestLimitsSwitchedOff(t *testing.T) {
	cfg := DefaultConfig()
	cfg.SoftLimit, cfg.HardLimit = 0, 0
	c := newClocked(cfg)
	for range 40 {
		if l := c.step(2, Report{}); l.Soft || l.Hard {
			t.Fatalf("over a limit: %+v", l)
		}
	}
}

func TestDelays(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	var d Delays
	if got := d.P99(now); got != 0 {
		t.Errorf("%v of nothing", got)
	}
	for i := range 1000 {
		late := time.Millisecond
		if i%200 == 0 { // one in 200
			late = time.Second
		}
		d.Observe(now, late)
	}
	if got := d.P99(now); got < time.Millisecond || got > 1125*time.Microsecond {
		t.Errorf("p99 %v, want 1ms to an eighth", got)
	}
	for range 20 {
		d.Observe(now, 300*time.Millisecond)
	}
	if got := d.P99(now); got < 300*time.Millisecond || got > 338*time.Millisecond {
		t.Errorf("p99 %v, want 300ms to an eighth", got)
	}
	if got := d.P99(now.Add(1500 * time.Millisecond)); got == 0 {
		t.Error("forgotten after 1.5 s")
	}
	if got := d.P99(now.Add(2250 * time.Millisecond)); got != 0 {
		t.Errorf("p99 %v after more than two seconds", got)
	}
	d.Observe(now, time.Hour)
	d.Observe(now, -time.Second)
}

// Buckets are in order, without gaps, and tight.
func TestDelayBuckets(t *testing.T) {
	last := 0
	for late := time.Duration(0); late < time.Minute; late += max(time.Microsecond, late/50) {
		b := bucketOf(late)
		if b < last || b > last+1 {
			t.Fatalf("bucket %d of %v follows %d", b, late, last)
		}
		last = b
		if b > 0 && (boundOf(b) < late || boundOf(b) > late+late/perOctave+1) {
			t.Fatalf("bound %v of %v", boundOf(b), late)
		}
	}
}

func TestConfig(t *testing.T) {
	good := DefaultConfig()
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for key, change := range map[string]func(*Config){
		"soft_limit":            func(c *Config) { c.SoftLimit = -1 },
		"hard_limit":            func(c *Config) { c.HardLimit = 0.5 },
		"hysteresis":            func(c *Config) { c.Hysteresis = math.NaN() },
		"after":                 func(c *Config) { c.After = time.Hour },
		"hold":                  func(c *Config) { c.Hold = -1 },
		"network.weight":        func(c *Config) { c.Network.Weight = 11 },
		"lateness.weight":       func(c *Config) { c.Lateness.Weight = -1 },
		"network.interfaces[0]": func(c *Config) { c.Network.Interfaces = []string{"[eth0"} },
		"disk.path":             func(c *Config) { c.Disk.Path = "data" },
		"lateness.limit":        func(c *Config) { c.Lateness.Limit = 0 },
	} {
		c := DefaultConfig()
		change(&c)
		if err := c.Validate(); err == nil || len(err.Error()) < len(key) || err.Error()[:len(key)] != key {
			t.Errorf("%s: %v", key, err)
		}
	}
}
