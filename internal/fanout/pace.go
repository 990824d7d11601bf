package fanout

import (
	"sync"
	"time"
)

// pace decides how often a shard sends. Its aim is that sending takes no more
// than a share of a core: the more players, the longer the batches, up to a bound.
// Below the bound latency pays for cost; at the bound the server has become as
// cheap per byte as it can be, and what comes on top costs processor time.
type pace struct {
	most time.Duration // bound of interval

	perSend  time.Duration // what one send takes, smoothed
	interval time.Duration // between two rounds
}

const (
	sendShare  = 0.04                   // of a core that sending aims at
	firstGuess = 12 * time.Microsecond  // perSend before anything was sent
	atOnce     = 500 * time.Microsecond // intervals below this are not worth a timer
	smoothing  = 8
)

// urgentLatency is the bound for urgent players. Without one a shard with hundreds
// of streams would look through all of them for each frame of one.
const urgentLatency = 5 * time.Millisecond

func newPace(most time.Duration) pace { return pace{most: most, perSend: firstGuess} }

// round notes a round that took d for n sends, with that many players to serve
// the next time.
func (p *pace) round(d time.Duration, n, players int) {
	if n > 0 {
		p.perSend += (d/time.Duration(n) - p.perSend) / smoothing
		p.perSend = max(p.perSend, time.Microsecond)
	}
	p.plan(players)
}

// plan sets the interval for a number of players.
func (p *pace) plan(players int) {
	p.interval = time.Duration(min(float64(p.most), float64(p.perSend)*float64(players)/sendShare))
	if p.interval < atOnce {
		p.interval = 0
	}
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
	p.pace.plan(p.players)
}

// took notes what writing a batch took.
func (p *soloPace) took(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pace.round(min(d, longestSend), 1, p.players)
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
