package chaos

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"time"

	"weir/internal/chaos/model"
	"weir/internal/chaos/wire"
	"weir/internal/media"
	"weir/internal/rtmp"
)

// publisher publishes a stream all the time, as an encoder does that comes back
// whenever it was cut. Now and then it drops by itself.
type publisher struct {
	// Static.
	r         *run
	stream    int
	name      string
	contested bool
	rand      *rand.Rand // of run's goroutine
	places    []place    // tried in turn
	headers   []media.Tag
}

// place is a node and its address.
type place struct{ node, addr string }

// givenUp is how long the kernel sends in vain before a publisher's or player's
// connection is over.
const givenUp = 2 * time.Second

func (p *publisher) run(ctx context.Context) {
	at := p.rand.IntN(len(p.places))
	for ctx.Err() == nil {
		good := p.publish(ctx, p.places[at])
		if !good || p.rand.IntN(3) == 0 {
			at = (at + 1) % len(p.places)
		}
		pause := between(p.rand, 50*time.Millisecond, 300*time.Millisecond)
		if p.contested {
			pause = between(p.rand, 100*time.Millisecond, 700*time.Millisecond)
		}
		rest(ctx, pause)
	}
}

func between(r *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(r.Int64N(int64(high-low)))
}

// rest waits for d or the end of ctx.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// publish is one try. It reports whether the publisher was let in.
func (p *publisher) publish(ctx context.Context, at place) bool {
	rec := p.r.rec
	conn, inc := p.r.nextConn(), p.r.nextInc(p.stream)
	stay := between(p.rand, 5*time.Second, 25*time.Second)
	if p.contested {
		stay = between(p.rand, 3*time.Second, 15*time.Second)
	}
	proper := p.contested && p.rand.IntN(2) == 0
	rec.event(model.Event{Kind: model.KindPublish, Conn: conn, Stream: p.name, Node: at.node, Inc: inc})
	c, local, err := p.dial(ctx, at.addr)
	let := err == nil
	why := "left"
	if let {
		rec.event(model.Event{Kind: model.KindPublishing, Conn: conn, Stream: p.name, Node: at.node, Inc: inc, Local: local})
		err = p.send(ctx, c, inc, stay)
		if err == nil && proper {
			_ = c.Unpublish()
		}
		c.Close()
	}
	end := &model.End{Why: why}
	text := ""
	if err != nil {
		end, text = endOf(ctx, err)
	}
	rec.event(model.Event{Kind: model.KindUnpublished, Conn: conn, Stream: p.name, Node: at.node, Inc: inc, End: end, Text: text})
	return let
}

func (p *publisher) dial(ctx context.Context, addr string) (c *rtmp.Client, local string, err error) {
	cfg := rtmp.DefaultClientConfig()
	cfg.ConnectTimeout = 2 * time.Duration(p.r.cfg.Bounds.Accept) * time.Millisecond
	cfg.WriteTimeout = givenUp
	cfg.FlashVer = "FMLE/3.0 (compatible; weir chaos)"
	host := p.r.net.Host(hostPublishers)
	cfg.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := host.DialContext(wire.WithUserTimeout(ctx, givenUp), network, addr)
		if err == nil {
			local = nc.LocalAddr().String()
		}
		return nc, err
	}
	u := rtmp.URL{Addr: addr, TcURL: "rtmp://" + addr + "/" + app, App: app, Name: p.name}
	if c, err = rtmp.Dial(ctx, u, cfg); err != nil {
		return nil, "", err
	}
	if err = c.Publish(ctx, u.Name); err != nil {
		c.Close()
		return nil, "", err
	}
	return c, local, nil
}

// app is the app of all streams.
const app = "live"

// send sends frames in real time until stay is over; an error says that the other
// end has ended it.
func (p *publisher) send(ctx context.Context, c *rtmp.Client, inc int, stay time.Duration) error {
	if err := c.WriteTags(p.headers...); err != nil {
		return err
	}
	over := time.NewTimer(stay)
	defer over.Stop()
	m := mark{Run: p.r.id, Stream: uint32(p.stream), Inc: uint32(inc)}
	begun := time.Now()
	var next [2]uint32
	for {
		audio, video := frameTime(next[0], audioRate), frameTime(next[1], videoRate)
		var t media.Tag
		if video <= audio {
			m.Seq = next[1]
			t = frame(m, true, m.Seq%gopFrames == 0, uint32(video.Milliseconds()))
			next[1]++
		} else {
			m.Seq = next[0]
			t = frame(m, false, false, uint32(audio.Milliseconds()))
			next[0]++
		}
		due := time.NewTimer(time.Until(begun.Add(min(video, audio))))
		select {
		case <-due.C:
		case <-over.C:
			due.Stop()
			return nil
		case <-ctx.Done():
			due.Stop()
			return nil
		case <-c.Done():
			due.Stop()
			return c.Err()
		}
		if err := c.WriteTags(t); err != nil {
			return err
		}
	}
}

func frameTime(seq uint32, rate int) time.Duration {
	return time.Duration(seq) * time.Second / time.Duration(rate)
}

// endOf says how a connection ended in the words of the history.
func endOf(ctx context.Context, err error) (*model.End, string) {
	var status *rtmp.StatusError
	var redirect *rtmp.RedirectError
	switch {
	case errors.As(err, &redirect):
		return &model.End{Why: "redirected", Code: redirect.Addr}, ""
	case errors.As(err, &status):
		return &model.End{Why: "refused", Code: status.Code}, status.Description
	case ctx.Err() != nil:
		return &model.End{Why: "left"}, ""
	}
	return &model.End{Why: "lost"}, err.Error()
}
