package fanout

import (
	"sync"
	"time"
)

// pace decides how often a shard sends. Its aim is that sending takes no more
// than a share of a core: the more players, the longer the batches, up to a bound.
// Below the bound latency pays for cost; at the bound the server has become as
// cheap per byte as it can be, and what comes on top costs processor time.
//
// At the bound rounds begin at fixed times of the clock, for all shards of the
// machine, so that whoever feeds the streams can bring all that is new just before
// (see Beat). Every other shard is half an interval behind: two that send at once get
// in each other's way.
type pace struct {
	most time.Duration // bound of interval
	off  time.Duration // of a round behind a multiple of most, with few groups

	perSend  time.Duration // what one send takes, smoothed
	interval time.Duration // between two rounds
	took     time.Duration // by the last round
	full     bool          // interval is at the bound
	feeding  time.Duration // how much longer a round waits behind the beat for many groups
}

const (
	sendShare  = 0.02                   // of a core that sending aims at
	firstGuess = 12 * time.Microsecond  // perSend before anything was sent
	atOnce     = 500 * time.Microsecond // intervals below this are not worth a timer
	smoothing  = 8

	// So few players are sent each frame at once, if they are of few streams: of many,
	// each frame would have the shard look through all of them.
	fewPlayers = 50
	fewGroups  = 8

	// What feeding one group more than a few takes behind the beat: a pull that is read and
	// parsed. A round that came before would leave the frames of the last ones to the next
	// round. Rounds wait for an interval divided by feedShare at most.
	perFeed   = 100 * time.Microsecond
	feedShare = 4

	// The shards take turns at as many beats. More would have a stream with few players
	// read more often than it pays.
	phases = 2

	// A shard at the bound leaves it when its players could be served in this share
	// of the interval.
	leaveFull = 0.7
)

// urgentLatency is the bound for urgent players. Without one a shard with hundreds
// of streams would look through all of them for each frame of one.
const urgentLatency = 5 * time.Millisecond

// newPace returns the pace of the shard of a slot. Behind its beat it is a little late:
// feeding takes its time, in this process and then in the others of a node. Those that
// have the same turn are a little apart, so that not all processes wake at the same
// instant; what they are apart is added to the delay of whoever comes last.
func newPace(most time.Duration, slot int) pace {
	const apart = 4
	place := slot / phases % apart
	return pace{
		most: most, perSend: firstGuess,
		off: turnOf(most, slot) + min(most/12, 10*time.Millisecond) + time.Duration(place)*min(most/24, 5*time.Millisecond),
	}
}

// turnOf returns where the beats of a slot lie behind the multiples of a bound.
func turnOf(most time.Duration, slot int) time.Duration {
	return most / phases * time.Duration(slot%phases)
}

// beatOf returns the time between two beats for so many shards at a bound.
func beatOf(most time.Duration, shards int) time.Duration {
	return most / time.Duration(max(1, min(shards, phases)))
}

// round notes a round that took d for n sends, with that many players in so many
// groups to serve the next time.
func (p *pace) round(d time.Duration, n, players, groups int) {
	p.took = d
	if n > 0 {
		p.perSend += (d/time.Duration(n) - p.perSend) / smoothing
		p.perSend = max(p.perSend, time.Microsecond)
	}
	p.plan(players, groups)
}

// plan sets the interval for a number of players in a number of groups.
func (p *pace) plan(players, groups int) {
	p.feeding = min(time.Duration(max(0, groups-fewGroups))*perFeed, p.most/feedShare)
	want := float64(p.perSend) * float64(players) / sendShare
	enough := float64(p.most)
	if p.full {
		enough *= leaveFull
	}
	p.full = p.most > urgentLatency && want >= enough
	switch p.interval = time.Duration(min(want, float64(p.most))); {
	case p.full:
		p.interval = p.most
	case p.interval < atOnce, players <= fewPlayers && groups <= fewGroups:
		p.interval = 0
	}
}

// wait returns how long the next round has to wait, when there is something to send
// and the last round began at last; not positive if it is due.
func (p *pace) wait(now, last time.Time) time.Duration {
	if !p.full || p.took > p.most/4*3 { // a busy shard cannot miss a beat
		return last.Add(p.interval).Sub(now)
	}
	return untilBeat(now, p.most, p.off+p.feeding)
}

// untilBeat returns the time to the next instant of the clock that lies off behind a
// multiple of beat: the same for all processes of a machine.
func untilBeat(now time.Time, beat, off time.Duration) time.Duration {
	return beat - time.Duration((now.UnixNano()-int64(off))%int64(beat))
}

// soloPace is the pace of the players that no shard serves. Each of them has rounds
// of its own, at times of its own, but they share the cores. Safe for concurrent use.
type soloPace struct {
	mu      sync.Mutex
	pace    pace // guarded by mu
	players int  // guarded by mu
}

// longestSend is what a write counts for at most: one that takes longer waits for
// its player.
const longestSend = time.Millisecond

// enter counts a player, or with -1 one less.
func (p *soloPace) enter(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.players += n
	p.pace.plan(p.players, 1)
}

// took notes what writing a batch took.
func (p *soloPace) took(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pace.round(min(d, longestSend), 1, p.players, 1)
}

// interval returns the time between two batches of a player.
func (p *soloPace) interval(urgent bool) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if urgent {
		return min(p.pace.interval, urgentLatency)
	}
	return p.pace.interval
}
