package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"weir/internal/media"
	"weir/internal/rtmp"
)

// maxRedirects is how many redirects a publisher follows.
const maxRedirects = 3

// ErrLost marks the loss of a publisher's connection while it published.
var ErrLost = errors.New("publisher was cut")

// publisher publishes one stream.
type publisher struct {
	// Static.
	url     rtmp.URL
	tls     *tls.Config // for rtmps
	id      uint32      // of the run
	stream  uint32
	form    Form
	sizes   sizes
	clock   clock
	filler  filler
	headers []media.Tag
	bundled bool
	allowed func(addr string) error // refuses redirects to strangers
	line    *timeline

	client *rtmp.Client // set by connect, before anybody sends

	// Owned by who sends: run, or a pump.
	opened       bool          // headers are sent
	begun        time.Duration // on the clock, when the first frame is due
	video, audio uint32        // numbers of the next frames

	halted atomic.Bool           // no more frames are sent; the publish goes on
	failed atomic.Pointer[error] // why it has ended
}

// connect begins the publish and follows redirects.
func (p *publisher) connect(ctx context.Context) error {
	u := p.url
	for hops := 0; ; hops++ {
		if err := p.allowed(u.Addr); err != nil {
			return err
		}
		cfg := rtmp.DefaultClientConfig()
		cfg.TLS = p.tls
		c, err := rtmp.Dial(ctx, u, cfg)
		if err == nil {
			if err = c.Publish(ctx, u.Name); err == nil {
				p.client = c
				return nil
			}
			c.Close()
		}
		var redirect *rtmp.RedirectError
		if !errors.As(err, &redirect) || hops == maxRedirects {
			return fmt.Errorf("publish %s: %w", u, err)
		}
		if u, err = redirect.Target(u); err != nil {
			return fmt.Errorf("publish %s: %w", p.url, err)
		}
	}
}

// due returns when the next frame is due, on the clock. If bundled, audio goes along with
// the next video frame.
func (p *publisher) due() time.Duration {
	due := p.form.videoTime(p.video)
	if !p.bundled {
		due = min(due, audioTime(p.audio))
	}
	return p.begun + due
}

// skip leaves out, while halted, what is due.
func (p *publisher) skip(now time.Duration) {
	for p.due() <= now {
		p.begun += time.Second / time.Duration(p.form.FPS)
	}
}

// frames appends the frames that are due next, marked as sent now, to tags, and their
// bytes to memory, which is not used again before they are sent.
func (p *publisher) frames(tags []media.Tag, memory []byte, now time.Duration) ([]media.Tag, []byte) {
	due := p.due() - p.begun
	frame := func(size int) (t media.Tag) {
		size += media.TagOverhead
		from := len(memory)
		memory = slices.Grow(memory, size)[:from+size]
		return memory[from:]
	}
	for ; audioTime(p.audio) <= due; p.audio++ {
		t := frame(p.sizes.audio)
		p.filler.fillAudio(t, mark{p.id, p.stream, p.audio, now}, audioTime(p.audio))
		p.line.add(t, false)
		tags = append(tags, t)
	}
	if p.form.videoTime(p.video) == due {
		key := int(p.video)%p.line.every == 0
		size := p.sizes.video
		if key {
			size = p.sizes.key
		}
		t := frame(size)
		p.filler.fillVideo(t, mark{p.id, p.stream, p.video, now}, due, key)
		p.line.add(t, key)
		tags = append(tags, t)
		p.video++
	}
	return tags, memory
}

// run sends frames, each exactly when it is due, until ctx ends or the connection breaks.
func (p *publisher) run(ctx context.Context) error {
	c := p.client
	defer c.Close()
	if err := c.WriteTags(p.headers...); err != nil {
		return p.lost(err)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var tags []media.Tag
	var memory []byte
	for {
		timer.Reset(p.due() - p.clock.now())
		select {
		case <-timer.C:
		case <-ctx.Done():
			_ = c.Unpublish() // the connection may be gone: nothing depends on it
			return nil
		case <-c.Done():
			return p.lost(c.Err())
		}
		now := p.clock.now()
		if p.halted.Load() {
			p.skip(now)
			continue
		}
		p.line.sentLate(now - p.due())
		tags, memory = p.frames(tags[:0], memory[:0], now)
		if err := c.WriteTags(tags...); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return p.lost(err)
		}
	}
}

func (p *publisher) lost(err error) error {
	return fmt.Errorf("publish %s: %w: %w", p.url, ErrLost, err)
}
