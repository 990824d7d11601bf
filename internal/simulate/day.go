// Package simulate runs the decisions of scheduling and autoscaling without a
// cluster: a day of load that it makes up, decisions that were recorded, and loads
// that were recorded. The same input and seed give the same output.
package simulate

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"time"

	"weir/discovery/autoscale"
	"weir/discovery/schedule"
)

// Day describes a day of load.
type Day struct {
	Schedule  schedule.Config
	Autoscale autoscale.Config
	Players   int           // at the evening's peak
	Nodes     int           // machines that there are at most
	Capacity  float64       // of a node, in bits per second
	BitRate   float64       // of a player, in bits per second
	Session   time.Duration // mean; ends are as likely at any time
	Boot      time.Duration // from the start of a machine to its first report
	Hours     int
	Seed      uint64
}

// DefaultDay returns a day of 200 nodes and a million players.
func DefaultDay() Day {
	a := autoscale.DefaultConfig()
	a.OutAfter, a.InAfter = 30*time.Second, 2*time.Minute
	a.WarmUp, a.CoolDown, a.DrainDeadline = 5*time.Minute, 30*time.Second, 4*time.Minute
	return Day{
		Schedule: schedule.DefaultConfig(), Autoscale: a, Players: 1_000_000, Nodes: 200, Capacity: 16e9, BitRate: 2e6,
		Session: 30 * time.Minute, Boot: 90 * time.Second, Hours: 24, Seed: 1,
	}
}

// Sample is what there was in ten minutes.
type Sample struct {
	At       time.Duration
	Players  int
	Up       int     // nodes that take players
	All      int     // machines that run
	Mean     float64 // load of those that are up
	Max      float64 // in the ten minutes
	Started  int
	Drained  int
	Undrains int
	Stopped  int
}

// Result is what came of a day.
type Result struct {
	Day     Day
	Samples []Sample
	// Peak is the most players at a time, Came all that came.
	Peak, Came int
	Refused    int // that found no node
	Moved      int // of nodes that drained
	Cut        int // with a node that was stopped with them
	// Early is the number of nodes that were stopped with players before their
	// deadline, Flaps that of starts within half an hour after a drain, or the other
	// way round, and of drains that were taken back.
	Early, Flaps int
	NodeHours    float64
	MaxLoad      float64
}

const (
	dayStep     = 10 * time.Second
	sampleEvery = 10 * time.Minute
	flapWithin  = 30 * time.Minute
	// batchShare of the peak are the players that one decision places.
	batchShare = 20_000
)

// machine is one node of the simulation.
type machine struct {
	id       string
	boot     time.Duration // when it takes players
	players  int
	draining bool
	drained  time.Duration // since
	kicks    float64       // players to be moved in a step
	due      float64
}

type daySim struct {
	Day
	rng      *rand.Rand
	sched    *schedule.Scheduler
	core     *autoscale.Core
	begin    time.Time
	machines []*machine
	byID     map[string]*machine
	number   int
	batch    int
	owed     float64 // of a batch
	result   Result

	lastStart, lastDrain time.Duration
}

// Run lives through the day.
func (d Day) Run() Result {
	d.Autoscale.Max, d.Autoscale.Settle = d.Nodes, 0
	s := &daySim{
		Day: d, rng: rand.New(rand.NewPCG(d.Seed, 1)), sched: schedule.New(d.Schedule, nil, d.Seed), core: autoscale.NewCore(d.Autoscale),
		begin: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), byID: make(map[string]*machine), batch: max(1, d.Players/batchShare),
		result: Result{Day: d}, lastStart: -time.Hour, lastDrain: -time.Hour,
	}
	// The day begins with as many nodes as its first moment needs.
	players := d.curve(0)
	load := players * d.BitRate / d.Capacity
	first := min(d.Nodes, max(d.Autoscale.Min, int(math.Ceil(load/((d.Autoscale.ScaleOut+d.Autoscale.ScaleIn)/2)))))
	for range first {
		s.add(0).players = int(players) / first
	}
	sample := Sample{}
	for at := time.Duration(0); at < time.Duration(d.Hours)*time.Hour; at += dayStep {
		s.step(at, &sample)
		if (at+dayStep)%sampleEvery == 0 {
			s.close(at+dayStep, &sample)
		}
	}
	return s.result
}

// curve is the number of players at a time of the day: few at four in the morning,
// most at nine in the evening, and a match at eight that a twentieth more come for,
// within five minutes.
func (d *Day) curve(at time.Duration) float64 {
	h := math.Mod(at.Hours(), 24)
	daily := 0.5 - 0.5*math.Cos((h-4)/24*2*math.Pi)                   // 0 at 4, 1 at 16
	evening := math.Exp(-(h - 20.75) * (h - 20.75) / (2 * 2.2 * 2.2)) // around 20:45
	match := 0.05 / (1 + math.Exp(-(h-20.05)*40)) / (1 + math.Exp((h-21.8)*12))
	return float64(d.Players) * min(1, 0.12+0.33*daily+0.61*evening+match)
}

func (s *daySim) add(at time.Duration) *machine {
	s.number++
	m := &machine{id: fmt.Sprintf("edge-%03d", s.number), boot: at}
	s.machines = append(s.machines, m)
	s.byID[m.id] = m
	return m
}

// step: reports, the players that leave, those that come, those of nodes that drain,
// and what autoscaling says.
func (s *daySim) step(at time.Duration, sample *Sample) {
	now := s.begin.Add(at)
	s.report(now, at)
	total := 0
	for _, m := range s.machines {
		m.players -= s.poisson(float64(m.players)*dayStep.Seconds()/s.Session.Seconds(), m.players)
		total += m.players
	}
	// As many come as bring the players to the curve, with the noise of single persons.
	want := s.curve(at+dayStep) - float64(total)
	if want > 0 {
		coming := s.poisson(want, math.MaxInt)
		s.result.Came += coming
		s.owed += float64(coming)
	}
	for ; s.owed >= float64(s.batch); s.owed -= float64(s.batch) {
		s.place(now, s.batch)
	}
	s.drain(now)
	s.autoscale(now, at, sample)

	players := 0
	for _, m := range s.machines {
		players += m.players
		load := s.load(m)
		sample.Max = max(sample.Max, load)
		s.result.MaxLoad = max(s.result.MaxLoad, load)
	}
	s.result.Peak = max(s.result.Peak, players)
	s.result.NodeHours += float64(len(s.machines)) * dayStep.Hours()
}

func (s *daySim) load(m *machine) float64 { return float64(m.players) * s.BitRate / s.Capacity }

// report tells the scheduler what nodes say.
func (s *daySim) report(now time.Time, at time.Duration) {
	nodes := make([]schedule.Node, len(s.machines))
	for i, m := range s.machines {
		n := schedule.Node{
			ID: m.id, Role: "edge", State: "up", RTMP: m.id + ":1935", HTTP: m.id + ":8080", Load: s.load(m), Reported: true,
			Capacity: s.Capacity, Egress: float64(m.players) * s.BitRate, Sessions: float64(m.players), Seen: now,
		}
		switch {
		case at < m.boot:
			n.State, n.Reported = "starting", false
		case m.draining:
			n.State = "draining"
		}
		nodes[i] = n
	}
	s.sched.Update(now, nodes)
}

// place sends players to a node.
func (s *daySim) place(now time.Time, players int) {
	c, err := s.sched.Decide(now, schedule.Request{Action: schedule.Play, BitRate: float64(players) * s.BitRate, Limit: 1}, false)
	if err != nil {
		s.result.Refused += players
		return
	}
	s.byID[c.Nodes[0].ID].players += players
}

// drain moves the players of nodes that drain, evenly over the deadline.
func (s *daySim) drain(now time.Time) {
	for _, m := range s.machines {
		if !m.draining {
			continue
		}
		m.due += m.kicks
		for m.due >= 1 && m.players > 0 {
			n := min(s.batch, int(math.Ceil(m.due)), m.players)
			m.due -= float64(n)
			m.players -= n
			s.result.Moved += n
			s.place(now, n)
		}
	}
}

func (s *daySim) autoscale(now time.Time, at time.Duration, sample *Sample) {
	nodes := make([]autoscale.Node, len(s.machines))
	for i, m := range s.machines {
		up := at >= m.boot
		nodes[i] = autoscale.Node{
			ID: m.id, Up: up && !m.draining, Draining: m.draining, Reported: up, Load: s.load(m), Capacity: s.Capacity, Sessions: float64(m.players),
		}
	}
	a, ok := s.core.Step(now, nodes)
	if !ok {
		return
	}
	m := s.byID[a.Node]
	switch a.Kind {
	case autoscale.Start:
		sample.Started++
		if at-s.lastDrain < flapWithin {
			s.result.Flaps++
		}
		s.lastStart = at
		s.add(at + s.Boot)
	case autoscale.Drain:
		sample.Drained++
		if at-s.lastStart < flapWithin {
			s.result.Flaps++
		}
		s.lastDrain = at
		// A little faster than the deadline asks for, as a drain does.
		m.draining, m.drained = true, at
		m.kicks, m.due = 1.1*float64(m.players)*dayStep.Seconds()/a.Deadline.Seconds(), 0
	case autoscale.Undrain:
		sample.Undrains++
		s.result.Flaps++
		m.draining = false
	case autoscale.Stop:
		sample.Stopped++
		if m.players > 0 {
			s.result.Cut += m.players
			if at-m.drained < s.Autoscale.DrainDeadline {
				s.result.Early++
			}
		}
		delete(s.byID, m.id)
		for i := range s.machines {
			if s.machines[i] == m {
				s.machines = append(s.machines[:i], s.machines[i+1:]...)
				break
			}
		}
	}
}

// close ends a sample.
func (s *daySim) close(at time.Duration, sample *Sample) {
	sample.At, sample.All = at, len(s.machines)
	load := 0.0
	for _, m := range s.machines {
		sample.Players += m.players
		if at >= m.boot && !m.draining {
			sample.Up++
			load += s.load(m)
		}
	}
	if sample.Up > 0 {
		sample.Mean = load / float64(sample.Up)
	}
	s.result.Samples = append(s.result.Samples, *sample)
	*sample = Sample{}
}

// poisson returns a number of events of which mean are expected, at most most.
func (s *daySim) poisson(mean float64, most int) int {
	n := 0
	if mean > 50 {
		n = int(math.Round(mean + math.Sqrt(mean)*s.rng.NormFloat64()))
	} else {
		for p := s.rng.Float64(); p > math.Exp(-mean); p *= s.rng.Float64() {
			n++
		}
	}
	return min(max(0, n), most)
}

// WriteTable prints a line for each hour, and the sums.
func (r *Result) WriteTable(w io.Writer) error {
	p := func(format string, args ...any) (err error) { _, err = fmt.Fprintf(w, format, args...); return err }
	if err := p("  hour   players  nodes  mean load  max load  started  drained  taken back  stopped\n"); err != nil {
		return err
	}
	var sum Sample
	for _, s := range r.Samples {
		sum.Started, sum.Drained, sum.Undrains, sum.Stopped = sum.Started+s.Started, sum.Drained+s.Drained, sum.Undrains+s.Undrains, sum.Stopped+s.Stopped
		sum.Max = max(sum.Max, s.Max)
		if s.At%time.Hour == 0 {
			if err := p("%6.0f %9d %6d %10.2f %9.2f %8d %8d %11d %8d\n", s.At.Hours(), s.Players, s.Up, s.Mean, sum.Max, sum.Started, sum.Drained, sum.Undrains, sum.Stopped); err != nil {
				return err
			}
			sum = Sample{}
		}
	}
	fixed := float64(r.Day.Nodes * r.Day.Hours)
	return p("\npeak %d players; %d came, %d were refused; %d moved off nodes that drained, %d cut with a node\n"+
		"%d nodes were stopped with players before their deadline; %d flaps (the opposite within %v)\n"+
		"%.0f node-hours; %d nodes all day are %.0f: %.0f %% saved; highest load of a node %.2f\n",
		r.Peak, r.Came, r.Refused, r.Moved, r.Cut, r.Early, r.Flaps, flapWithin, r.NodeHours, r.Day.Nodes, fixed, 100*(1-r.NodeHours/fixed), r.MaxLoad)
}
