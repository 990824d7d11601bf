package bench

import (
	"context"
	"math"
	"sync"
	"syscall"
	"time"

	"weir/internal/media"
	"weir/internal/rtmp"
)

// pump sends the frames of many publishers: every tick those that have become due, of
// up to callsAtOnce publishers with one system call. A goroutine with a timer and a write
// for each frame of each costs most of a core with a thousand of them.
type pump struct {
	// Static.
	clock      clock
	publishers []*publisher
	outlets    []*rtmp.Outlet // of the publishers

	// Owned by run.
	next   []time.Duration // when a publisher is to be looked at, on the clock
	calls  calls
	writes [callsAtOnce]write // those of the first calls.queued, and of those that failed
	queued int                // of writes
	bytes  []byte             // that they lie in, up to pumpBytes and a frame
	tags   []media.Tag        // of the present write
	memory []byte             // of those tags

	ending sync.WaitGroup // publishes that are ended
}

// write is what a pump sends to one publisher's connection.
type write struct {
	publisher int
	bytes     []byte
	due       time.Duration // when the first of its frames was due, on the clock
	closed    error         // why it could not be tried
	hold      func(fd uintptr)
}

// A pump does not fill one write with more than writeBytes, though with one frame at
// least, nor queues much more than pumpBytes.
const (
	writeBytes = 64 << 10
	pumpBytes  = 1 << 20
)

const (
	// atOnce has a publisher looked at in every round, because something is left.
	atOnce = time.Duration(math.MinInt64)
	// never is for a publisher that has ended.
	never = time.Duration(math.MaxInt64)
)

// pumpFrom is the number of publishers from which they are pumped: a few have timers of
// their own, which are more exact than a tick.
const pumpFrom = 16

// pumpLoad is how many publishers one pump is for, if there is a core for another.
const pumpLoad = 1000

func newPump(c clock, publishers []*publisher, outlets []*rtmp.Outlet) *pump {
	p := &pump{clock: c, publishers: publishers, outlets: outlets, calls: newCalls()}
	for i := range p.writes {
		w := &p.writes[i]
		w.hold = func(fd uintptr) { // made once: one for each write would be garbage
			p.calls.send(int(fd), w.bytes)
			p.do(i + 1)
		}
	}
	for _, u := range publishers {
		p.next = append(p.next, u.begun)
	}
	return p
}

// run sends until ctx ends, and then ends the publishes.
func (p *pump) run(ctx context.Context) {
	defer p.ending.Wait()
	defer p.calls.close()
	timer := time.NewTicker(tick)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			p.round(ctx)
		case <-ctx.Done():
			p.end()
			return
		}
	}
}

// round sends what is due.
func (p *pump) round(ctx context.Context) {
	now := p.clock.now()
	for i, next := range p.next {
		if next > now {
			continue
		}
		p.look(ctx, i)
		if p.queued == len(p.writes) || len(p.bytes) >= pumpBytes {
			p.flush(ctx)
		}
	}
	p.flush(ctx)
}

// look queues what is due of a publisher.
func (p *pump) look(ctx context.Context, i int) {
	u, out := p.publishers[i], p.outlets[i]
	now := p.clock.now()
	if u.halted.Load() {
		u.skip(now)
	} else if due := u.due(); due < now && p.next[i] == atOnce {
		u.line.sentLate(now - due) // and later still
	}
	if rest := out.Rest(); len(rest) > 0 {
		p.queue(write{publisher: i, bytes: rest, due: now})
		return
	}
	from := len(p.bytes)
	b, ok, err := out.Begin(p.bytes)
	if err != nil {
		p.lose(ctx, i, err)
		return
	}
	if !ok { // what it has to answer waits for the socket
		p.next[i] = atOnce
		return
	}
	w := write{publisher: i, due: min(now, u.due())}
	if !u.opened {
		b = u.client.AppendTags(b, u.headers...)
		u.opened = true
	}
	for due := u.due(); due <= now && len(b)-from < writeBytes; due = u.due() {
		p.tags, p.memory = u.frames(p.tags[:0], p.memory[:0], now)
		b = u.client.AppendTags(b, p.tags...)
	}
	w.bytes, p.bytes = b[from:len(b):len(b)], b
	if len(w.bytes) == 0 { // halted
		_ = out.Sent(w.bytes, 0) // nothing can be late
		p.next[i] = u.due()
		return
	}
	p.queue(w)
}

func (p *pump) queue(w write) {
	w.hold = p.writes[p.queued].hold
	p.writes[p.queued] = w
	p.queued++
}

// flush sends what is queued.
func (p *pump) flush(ctx context.Context) {
	if p.queued == 0 {
		return
	}
	now := p.clock.now()
	p.do(0)
	results := p.calls.results
	for i := range p.writes[:p.queued] {
		w := &p.writes[i]
		u, out := p.publishers[w.publisher], p.outlets[w.publisher]
		u.line.sentLate(now - w.due)
		n, errno := 0, syscall.Errno(0)
		if w.closed == nil {
			n, errno = results[0].Split()
			results = results[1:]
		}
		err := w.closed
		if errno != 0 && errno != syscall.EAGAIN {
			err = errno
		}
		if err == nil {
			err = out.Sent(w.bytes, n)
		}
		switch {
		case err != nil:
			p.lose(ctx, w.publisher, err)
		case len(out.Rest()) > 0:
			p.next[w.publisher] = atOnce
		default:
			p.next[w.publisher] = u.due()
		}
		w.bytes, w.closed = nil, nil
	}
	p.queued, p.bytes = 0, p.bytes[:0]
}

// do makes the calls of the writes from i on. Each one's descriptor is held meanwhile: the
// reader of a connection may close it at any time, and a player get the number.
func (p *pump) do(i int) {
	if i == p.queued {
		p.calls.do()
		return
	}
	w := &p.writes[i]
	if w.closed = p.outlets[w.publisher].Control(w.hold); w.closed != nil {
		p.do(i + 1)
	}
}

// lose ends a publisher whose connection is lost.
func (p *pump) lose(ctx context.Context, i int, err error) {
	p.next[i] = never
	p.ending.Go(func() {
		u := p.publishers[i]
		err := p.outlets[i].Explain(err)
		u.client.Close()
		if ctx.Err() == nil {
			err = u.lost(err)
			u.failed.Store(&err)
		}
	})
}

// end ends all publishes.
func (p *pump) end() {
	for i, u := range p.publishers {
		if p.next[i] == never {
			continue
		}
		p.ending.Go(func() {
			if len(p.outlets[i].Rest()) == 0 {
				_ = u.client.Unpublish() // the connection may be gone: nothing depends on it
			}
			u.client.Close()
		})
	}
}
