package edge

import (
	"context"
	"sync"
	"time"
)

// pulse notices that this process did not run for a while: it was stopped, or its
// machine was. Siblings that waited for an answer in vain have begun to pull its
// streams themselves meanwhile, and its own logs end where it stopped. It must
// catch up, or find out that its sources are gone, before anybody takes a stream
// from it: what it has is older than what others have begun with, and they would
// take it for new. The zero value has never hung. Safe for concurrent use.
type pulse struct {
	mu   sync.Mutex
	last time.Time // guarded by mu; when the process was last seen running
	hung time.Time // guarded by mu; when it went on after it had hung
}

const (
	// pulseEvery is how often the process is looked at. It may take a shorter halt for
	// a long one by as much, which costs a pull from upstream; each look costs a
	// wake-up.
	pulseEvery = aliveWithin / 2
	// catchUp is how long a process that hung gets: what its connections hold is
	// read in a moment, a dead one is found at once, and then its source is sought.
	catchUp = 2 * time.Second
)

// run looks until ctx ends.
func (p *pulse) run(ctx context.Context) {
	ticker := time.NewTicker(pulseEvery)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			p.steady(now)
		case <-ctx.Done():
			return
		}
	}
}

// steady reports whether the process has neither hung for longer than its
// siblings wait for it, nor done so less than catchUp ago.
func (p *pulse) steady(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.last.IsZero() && now.Sub(p.last) > aliveWithin {
		p.hung = now
	}
	if now.After(p.last) {
		p.last = now
	}
	return p.hung.IsZero() || now.Sub(p.hung) >= catchUp
}
