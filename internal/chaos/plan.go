package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// The kinds of faults.
const (
	faultKill       = "kill"        // kill -9 of a node; it is started again
	faultPower      = "power"       // the same, and no packet leaves the host from before the end on
	faultKillWorker = "kill-worker" // kill -9 of a worker of an edge
	faultStop       = "stop"        // SIGSTOP to all processes of a node, then SIGCONT
	faultStopWorker = "stop-worker" // the same to one worker
	faultIsolate    = "isolate"     // a host reaches no other
	faultCut        = "cut"         // two hosts do not reach each other
	faultOneWay     = "one-way"     // the first host does not reach the second, whose packets arrive
	faultDelay      = "delay"       // packets from and to a host take 500 ms
	faultLoss       = "loss"        // 5 to 30 % of them get lost
	faultDiskFull   = "disk-full"   // no node can write its log
)

var faultKinds = []string{
	faultKill, faultPower, faultKillWorker, faultStop, faultStopWorker, faultIsolate, faultCut, faultOneWay, faultDelay, faultLoss,
	faultDiskFull,
}

// theDisk stands where other faults have a host: all nodes have the same disk.
const theDisk = "disk"

// fault is something to be done to the cluster.
type fault struct {
	what   string
	a, b   string        // hosts; b of cut and one-way only
	after  time.Duration // from the begin of the round
	hold   time.Duration
	loss   float64
	worker int // the one meant is this modulo how many there are
}

func (f fault) String() string {
	s := f.what + " " + f.a
	switch f.what {
	case faultCut:
		s += " and " + f.b
	case faultOneWay:
		s += " to " + f.b
	case faultLoss:
		s += fmt.Sprintf(" %.0f %%", 100*f.loss)
	case faultDiskFull:
		s = f.what
	case faultKillWorker, faultStopWorker:
		s += fmt.Sprintf(" worker %d", f.worker)
	}
	return s + fmt.Sprintf(" after %v for %v", f.after, f.hold)
}

// down reports whether nobody can use the host meanwhile.
func (f fault) down() bool {
	return slices.Contains([]string{faultKill, faultPower, faultStop, faultIsolate}, f.what)
}

// planner draws the faults of one round after the other. They depend on the seed
// and the configuration alone.
type planner struct {
	cfg  *Config
	rand *rand.Rand
}

func newPlanner(cfg *Config) *planner {
	return &planner{cfg, rand.New(rand.NewPCG(cfg.Seed, 1))}
}

// Times of a round. The longest fault decides how long TCP takes to send again
// after it, and so how long nodes get to settle.
const (
	longestFault = 4 * time.Second
	shortest     = 700 * time.Millisecond
)

// round returns the faults of the next round, 1 to 3. One origin is always
// spared, so that there is one to go to.
func (p *planner) round() []fault {
	var faults []fault
	want := 1 + p.rand.IntN(3)
	for tries := 0; len(faults) < want && tries < 100; tries++ {
		if f := p.draw(); p.fits(f, faults) {
			faults = append(faults, f)
		}
	}
	return faults
}

func (p *planner) draw() fault {
	kinds := faultKinds
	if len(p.cfg.Only) > 0 {
		kinds = p.cfg.Only
	}
	ms := func(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
	f := fault{
		what: pick(p.rand, kinds), after: ms(between(p.rand, 0, time.Second)), hold: ms(between(p.rand, shortest, longestFault)),
		loss: float64(5+p.rand.IntN(26)) / 100, worker: p.rand.IntN(p.cfg.Workers),
	}
	// Origins are hit most: it is for them that the cluster is one.
	nodes := slices.Concat(p.cfg.origins(), p.cfg.origins(), p.cfg.edges(), []string{nodeDiscovery}, p.cfg.members())
	f.a = pick(p.rand, nodes)
	switch f.what {
	case faultKillWorker, faultStopWorker:
		f.a = pick(p.rand, p.cfg.edges())
	case faultDiskFull:
		f.a = theDisk
	case faultCut, faultOneWay:
		pair := pick(p.rand, p.pairs())
		if p.rand.IntN(2) == 0 {
			pair[0], pair[1] = pair[1], pair[0]
		}
		f.a, f.b = pair[0], pair[1]
	}
	return f
}

// pairs returns the hosts that talk to each other.
func (p *planner) pairs() [][2]string {
	var pairs [][2]string
	members := p.cfg.members()
	for i, o := range p.cfg.origins() {
		directory := nodeDiscovery
		if len(members) > 0 {
			directory = members[i%len(members)]
		}
		pairs = append(pairs, [2]string{o, directory}, [2]string{o, directory}, [2]string{hostPublishers, o})
		for _, e := range p.cfg.edges() {
			pairs = append(pairs, [2]string{e, o})
		}
	}
	for _, e := range p.cfg.edges() {
		pairs = append(pairs, [2]string{e, nodeDiscovery}, [2]string{hostViewers, e}, [2]string{hostPublishers, e})
	}
	for i, m := range members {
		pairs = append(pairs, [2]string{m, nodeDiscovery}, [2]string{m, members[(i+1)%len(members)]})
	}
	return pairs
}

// fits reports whether a fault goes with those that a round has already: one
// fault a host, one origin spared, and most members of the etcd.
func (p *planner) fits(f fault, others []fault) bool {
	origins, members := 0, 0
	for _, o := range append(others[:len(others):len(others)], f) {
		switch {
		case slices.Contains(p.cfg.members(), o.a): // a slow one is missing, too
			members++
		case o.down() && slices.Contains(p.cfg.origins(), o.a):
			origins++
		}
	}
	if origins >= p.cfg.Origins || members > 1 {
		return false
	}
	for _, o := range others {
		for _, h := range []string{o.a, o.b} {
			if h != "" && (h == f.a || h == f.b) {
				return false
			}
		}
	}
	return true
}

// FaultKinds returns the kinds of faults.
func FaultKinds() []string { return slices.Clone(faultKinds) }
