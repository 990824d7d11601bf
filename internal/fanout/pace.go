package fanout

import "time"

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
