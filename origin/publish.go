package origin

import (
	"context"
	"errors"
	"sync"
	"time"

	"weir/discovery"
	"weir/hls"
	"weir/internal/admin"
	"weir/internal/media"
	"weir/internal/session"
	"weir/internal/stream"
	"weir/internal/vhost"
)

// publication is a stream that this origin owns, with its publisher or waiting
// for its return.
type publication struct {
	// Static.
	o      *Origin
	key    string
	target vhost.Target
	stream *stream.Stream
	hls    *hls.Segmenter // nil without HLS
	since  time.Time

	mu        sync.Mutex
	epoch     uint64             // guarded by mu
	publisher *session.Publisher // guarded by mu; nil while it is away
	gone      chan struct{}      // guarded by mu; closed when publisher has let go of the stream
	resume    *time.Timer        // guarded by mu; runs while the publisher is away
	finished  bool               // guarded by mu
}

func (p *publication) epochOf() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.epoch
}

// Publish implements session.Role: one publisher's whole stay.
func (o *Origin) Publish(ctx context.Context, s *session.Publisher) session.PublishEnd {
	p, gone, err := o.enter(ctx, s)
	if err != nil {
		return session.PublishEnd{Err: err}
	}
	end := p.serve(s)
	p.leave(gone, end.Reason == session.Unpublished)
	return end
}

// enter makes s the publisher of its stream: of a new one, or of one whose
// publisher is away, or of one that it takes from its publisher.
func (o *Origin) enter(ctx context.Context, s *session.Publisher) (*publication, chan struct{}, error) {
	key := s.Target.Key.String()
	replace := s.Target.Vhost.Config.Publish.OnConflict == vhost.Replace
	for {
		if err := o.makeRoom(ctx, key, replace); err != nil {
			return nil, nil, err
		}
		lease, err := o.owner.Claim(ctx, key, discovery.ClaimOptions{Replace: replace})
		if err != nil {
			return nil, nil, claimRefused(err)
		}
		p, gone, again := o.take(s, lease.Epoch)
		if again { // another publisher was faster here
			continue
		}
		if p == nil {
			_ = o.owner.Release(ctx, key) // it ends with its TTL if this fails
			return nil, nil, &session.Refusal{Code: session.Stopping, Text: "The server is shutting down."}
		}
		return p, gone, nil
	}
}

// makeRoom deals with a publisher that the stream has here already.
func (o *Origin) makeRoom(ctx context.Context, key string, replace bool) error {
	o.mu.Lock()
	p := o.streams[key]
	o.mu.Unlock()
	if p == nil {
		return nil
	}
	p.mu.Lock()
	present, gone := p.publisher, p.gone
	p.mu.Unlock()
	if present == nil {
		return nil
	}
	if !replace {
		return conflict("")
	}
	present.End("replaced")
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func claimRefused(err error) error {
	var taken *discovery.ConflictError
	if errors.As(err, &taken) {
		return conflict(" at another node")
	}
	return &session.Refusal{Code: session.Unavailable, Text: "The ownership of the stream cannot be had now.", Err: err}
}

// take puts s into the stream's publication. again is true if there is another
// publisher in it by now; p is nil if the origin stops.
func (o *Origin) take(s *session.Publisher, epoch uint64) (p *publication, gone chan struct{}, again bool) {
	key := s.Target.Key.String()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped {
		return nil, nil, false
	}
	if p = o.streams[key]; p == nil {
		p = &publication{
			o: o, key: key, target: s.Target, stream: stream.New(o.cfg.Play.LogLimits()), since: time.Now(), epoch: epoch,
		}
		o.streams[key] = p
		if s.Target.Vhost.Config.HLS.Enabled {
			p.hls = hls.NewSegmenter(hls.Options{
				Config: s.Target.Vhost.Config.HLS, Key: key, Name: s.Target.Key.Name, VHost: hlsVhost(s.Target.Key.Vhost),
				Epoch: epoch, Log: o.log, Metrics: o.set,
			})
			cursor := p.stream.Join()
			o.running.Go(func() { p.segment(cursor) })
		}
		delete(o.ended, key)
		close(o.changed)
		o.changed = make(chan struct{})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.publisher != nil || p.finished {
		return nil, nil, true
	}
	if p.resume != nil {
		p.resume.Stop()
		p.resume = nil
	}
	p.epoch = max(p.epoch, epoch)
	p.publisher, p.gone = s, make(chan struct{})
	return p, p.gone, false
}

// hlsVhost is the vhost as URIs of HLS files carry it: not the default one.
func hlsVhost(name string) string {
	if name == vhost.DefaultName {
		return ""
	}
	return name
}

// serve appends what the publisher sends until it ends.
func (p *publication) serve(s *session.Publisher) session.PublishEnd {
	pub, err := p.stream.Publish()
	if err != nil {
		return session.PublishEnd{Err: &session.Refusal{Code: session.Unavailable, Text: "The stream has just ended; try again.", Err: err}}
	}
	defer pub.Close()
	if err := s.Accept(); err != nil {
		return session.ReadEnd(err)
	}
	p.o.log.Info("publish started", "stream", p.key, "session", s.ID(), "remote", s.Remote.String(), "epoch", p.epochOf(), "encoder", s.Encoder)
	for {
		t, err := s.ReadTag()
		if err != nil {
			return session.ReadEnd(err)
		}
		if err := pub.Append(t); err != nil {
			return session.PublishEnd{Reason: "stream_closed", Err: err}
		}
	}
}

// leave ends the publisher's stay: the stream ends if the publisher said so, and
// otherwise waits for its return.
func (p *publication) leave(gone chan struct{}, proper bool) {
	window := p.o.cfg.Publish.ResumeWindow
	p.mu.Lock()
	p.publisher = nil
	finish := !p.finished && (proper || window == 0)
	if !p.finished && !finish {
		var timer *time.Timer
		timer = time.AfterFunc(window, func() {
			p.mu.Lock()
			due := p.resume == timer
			p.mu.Unlock()
			if due {
				p.finish(errEnded)
			}
		})
		p.resume = timer
		p.o.owner.SetIdle(p.key, true)
	}
	p.mu.Unlock()
	if finish {
		p.finish(errEnded)
	}
	close(gone)
}

// cut ends the publisher, if there is one.
func (p *publication) cut(why string) {
	p.mu.Lock()
	s := p.publisher
	p.mu.Unlock()
	if s != nil {
		s.End(why)
	}
}

// finish ends the stream: it leaves the map before it closes, so that nobody
// joins a corpse, and gives its lease back unless another origin has it.
func (p *publication) finish(cause error) {
	p.mu.Lock()
	if p.finished || (p.publisher != nil && errors.Is(cause, errEnded)) {
		p.mu.Unlock()
		return
	}
	p.finished = true
	if p.resume != nil {
		p.resume.Stop()
		p.resume = nil
	}
	p.mu.Unlock()
	o := p.o
	o.mu.Lock()
	if o.streams[p.key] == p {
		delete(o.streams, p.key)
	}
	o.mu.Unlock()
	p.stream.Close(cause)
	if !errors.Is(cause, errLost) {
		ctx, cancel := context.WithTimeout(context.Background(), o.cfg.Discovery.Timeout)
		defer cancel()
		if err := o.owner.Release(ctx, p.key); err != nil {
			o.log.Debug("lease is left to run out", "stream", p.key, "err", err)
		}
	}
}

// segmentBatch is how many tags the segmenter takes from the log at a time.
const segmentBatch = 64

// segment cuts the stream's HLS until it ends.
func (p *publication) segment(cursor *stream.Cursor) {
	wake := make(chan struct{}, 1)
	p.stream.Subscribe(wake)
	defer p.stream.Unsubscribe(wake)
	var batch [segmentBatch]stream.Entry
	for {
		run, err := cursor.Next(batch[:])
		if run.Headers != nil && len(run.Entries) > 0 {
			for _, t := range run.Headers.At(run.Entries[0].Tag.Time()) {
				p.write(t, media.Sniff(t.Kind(), t.Body()))
			}
		}
		for i := range run.Entries {
			p.write(run.Entries[i].Tag, run.Entries[i].Info)
		}
		if len(run.Entries) > 0 {
			continue
		}
		if err != nil {
			break
		}
		clear(batch[:])
		<-wake
	}
	p.hls.Close()
	p.o.linger(p.key, p.hls.Store(), p.target.Vhost.Config.HLS.Linger)
}

func (p *publication) write(t media.Tag, info media.Info) {
	_ = p.hls.Write(t, info) // only ever fails after Close
}

// linger keeps the playlist of a stream that has ended for those who still play
// its last segments.
func (o *Origin) linger(key string, store *hls.Store, d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped || o.streams[key] != nil || d <= 0 {
		return
	}
	o.ended[key] = store
	time.AfterFunc(d, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.ended[key] == store {
			delete(o.ended, key)
		}
	})
}

// info describes the stream for the admin API, but for its players.
func (p *publication) info() admin.StreamInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.stream.Stats()
	i := admin.StreamInfo{
		Key: p.key, State: "resuming", BytesIn: st.BytesIn, Bitrate: st.Bitrate,
		Codecs: p.stream.Headers().Codecs(), Epoch: p.epoch, Source: "publish",
	}
	if s := p.publisher; s != nil {
		i.State = "live"
		i.Publisher = &admin.PublisherInfo{
			Session: s.ID(), Remote: s.Remote.String(), Protocol: "rtmp", Since: p.since, Encoder: s.Encoder,
		}
	}
	return i
}
