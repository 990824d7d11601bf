package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
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

	halted atomic.Bool           // no more frames are sent; the publish goes on
	failed atomic.Pointer[error] // why run has ended
}

// connect begins the publish and follows redirects.
func (p *publisher) connect(ctx context.Context) (*rtmp.Client, error) {
	u := p.url
	for hops := 0; ; hops++ {
		if err := p.allowed(u.Addr); err != nil {
			return nil, err
		}
		cfg := rtmp.DefaultClientConfig()
		cfg.TLS = p.tls
		c, err := rtmp.Dial(ctx, u, cfg)
		if err == nil {
			if err = c.Publish(ctx, u.Name); err == nil {
				return c, nil
			}
			c.Close()
		}
		var redirect *rtmp.RedirectError
		if !errors.As(err, &redirect) || hops == maxRedirects {
			return nil, fmt.Errorf("publish %s: %w", u, err)
		}
		if u, err = redirect.Target(u); err != nil {
			return nil, fmt.Errorf("publish %s: %w", p.url, err)
		}
	}
}

// run sends frames, each when it is due, until ctx ends or the connection
// breaks. If bundled, audio goes along with the next video frame.
func (p *publisher) run(ctx context.Context, c *rtmp.Client) error {
	defer c.Close()
	if err := c.WriteTags(p.headers...); err != nil {
		return p.lost(err)
	}
	var video, audio uint32
	begin := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var tags []media.Tag
	for {
		due := p.form.videoTime(video)
		if !p.bundled {
			due = min(due, audioTime(audio))
		}
		timer.Reset(time.Until(begin.Add(due)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			_ = c.Unpublish() // the connection may be gone: nothing depends on it
			return nil
		case <-c.Done():
			return p.lost(c.Err())
		}
		if p.halted.Load() {
			begin = begin.Add(time.Second / time.Duration(p.form.FPS))
			continue
		}
		p.line.sentLate(time.Since(begin.Add(due)))
		tags = tags[:0]
		now := p.clock.now()
		for ; audioTime(audio) <= due; audio++ {
			t := p.filler.audioTag(mark{p.id, p.stream, audio, now}, audioTime(audio), p.sizes.audio)
			p.line.add(t, false)
			tags = append(tags, t)
		}
		if p.form.videoTime(video) == due {
			key := int(video)%p.line.every == 0
			size := p.sizes.video
			if key {
				size = p.sizes.key
			}
			t := p.filler.videoTag(mark{p.id, p.stream, video, now}, due, key, size)
			p.line.add(t, key)
			tags = append(tags, t)
			video++
		}
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
