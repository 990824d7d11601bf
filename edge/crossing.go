package edge

import (
	"context"
	"errors"

	"weir/internal/rtmp"
	"weir/internal/stream"
	"weir/internal/vhost"
)

// crossing takes a publisher from one upstream to the next while the first still gets
// what it sends. It belongs to one goroutine; the next upstream is asked in another.
type crossing struct {
	// Static.
	f      *forward
	from   *upstreamConn
	via    string
	ctx    context.Context
	cancel context.CancelFunc

	// cursor is where the next one begins: with a key frame that the first one has had,
	// and those behind it, too, so that they recognise the place.
	cursor *stream.Cursor

	done chan struct{} // closed when the next one has answered; nil while none is asked
	next *upstreamConn // valid after done; nil if it does not take the publisher
	to   string
	err  error // valid after done
}

func (f *forward) crossing(ctx context.Context, from *upstreamConn, via string) *crossing {
	c := &crossing{f: f, from: from, via: via}
	c.ctx, c.cancel = context.WithCancel(ctx)
	return c
}

// begin asks the upstream that a redirect names, unless one is asked already.
func (c *crossing) begin(to *rtmp.RedirectError) {
	if c.done != nil {
		return
	}
	c.done, c.to, c.cursor = make(chan struct{}), to.Addr, c.f.ring.JoinOverlapping()
	c.cursor.Hold() // the answer may take seconds
	go func() {     // awaited by end
		defer close(c.done)
		switch {
		case to.TLS: // upstream is spoken to without it
			c.err = errors.New("it is under TLS")
			return
		case to.Addr == c.from.addr:
			c.err = errLoop
			return
		}
		trail := newTrail(c.f.edge.cfg.Pull.MaxRedirects)
		trail.visit(c.from.addr)
		trail.visit(to.Addr)
		c.next, c.err = c.f.publish(c.ctx, vhost.Upstream{Scheme: "rtmp", Addr: to.Addr}, c.via, trail)
	}()
}

// there reports whether the next upstream has the publisher. If it has refused, the
// first one keeps it.
func (c *crossing) there() bool {
	if c.done == nil {
		return false
	}
	select {
	case <-c.done:
	default:
		return false
	}
	if c.next == nil {
		c.f.log.Warn("publisher stays at its upstream, the next one does not take it", "upstream", c.from.addr, "to", c.to, "err", c.err)
		c.done = nil
		c.cursor.LetGo()
		return false
	}
	return true
}

// end returns the next upstream, nil if there is none. If the first one is lost, an
// answer that is on its way is waited for: it may have been left because the next one
// has the stream.
func (c *crossing) end(lost bool) *upstreamConn {
	defer c.cancel()
	if c.done == nil {
		return nil
	}
	if !lost {
		select {
		case <-c.done:
		default:
			c.cancel()
		}
	}
	<-c.done
	if c.next == nil || c.ctx.Err() != nil {
		c.cursor.LetGo()
		if c.next != nil {
			c.next.Close()
		}
		return nil
	}
	c.f.edge.metrics.carried.Inc()
	c.f.log.Info("publisher carried over", "from", c.from.addr, "to", c.next.addr)
	return c.next
}
