package wire

import (
	"io"
	"math/rand/v2"
	"sync"
	"time"
)

// path carries packets in one direction.
type path struct {
	// Static.
	to io.Writer

	mu sync.Mutex
	// Guarded by mu.
	now    Path
	rand   *rand.Rand
	queue  []packet // in the order of their times
	queued int      // bytes in it
	timer  *time.Timer
	counts Counts
	closed bool
}

type packet struct {
	due  time.Time
	data []byte
}

// maxQueued bounds the packets that are under way on a slow path, in bytes. More
// get lost, as in any router.
const maxQueued = 4 << 20

func (p *path) set(now Path) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = now
}

func (p *path) counted() Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// send takes a packet, which the caller may use again afterwards.
func (p *path) send(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return
	case p.now.Block, p.now.Loss > 0 && p.rand.Float64() < p.now.Loss, p.queued+len(b) > maxQueued:
		p.counts.Lost++
		return
	}
	p.counts.Carried++
	if p.now.Delay == 0 && len(p.queue) == 0 {
		_, _ = p.to.Write(b) // an interface that is going down takes nothing
		return
	}
	due := time.Now().Add(p.now.Delay)
	if n := len(p.queue); n > 0 && due.Before(p.queue[n-1].due) {
		due = p.queue[n-1].due // the order stays, whatever the delay becomes
	}
	p.queue = append(p.queue, packet{due, append([]byte(nil), b...)})
	p.queued += len(b)
	if len(p.queue) == 1 {
		p.timer = time.AfterFunc(time.Until(due), p.deliver)
	}
}

// deliver hands over what is due.
func (p *path) deliver() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	now, n := time.Now(), 0
	for n < len(p.queue) && !p.queue[n].due.After(now) {
		_, _ = p.to.Write(p.queue[n].data)
		p.queued -= len(p.queue[n].data)
		n++
	}
	p.queue = append(p.queue[:0:0], p.queue[n:]...)
	if len(p.queue) > 0 {
		p.timer = time.AfterFunc(time.Until(p.queue[0].due), p.deliver)
	}
}

func (p *path) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed, p.queue, p.queued = true, nil, 0
	if p.timer != nil {
		p.timer.Stop()
	}
}
