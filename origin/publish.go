package origin

import (
	"context"
	"errors"
	"time"

	"weir/discovery"
	"weir/hls"
	"weir/internal/admin"
	"weir/internal/media"
	"weir/internal/session"
	"weir/internal/stream"
	"weir/internal/vhost"
)

// publication is one name on this origin: from the moment at which a publisher
// wants it, through its publishers' absences, to the moment at which its lease
// was given back. While it is in the origin's map no other publication of the
// name begins, so that no lease is given back that a newer one relies on.
type publication struct {
	// Static.
	o      *Origin
	key    string
	target vhost.Target
	stream *stream.Stream
	since  time.Time
	over   chan struct{} // closed when the publication has left the map

	// Guarded by o.mu.
	shown     bool               // the name was claimed: players may have the stream
	ended     bool               // they may not any more
	epoch     uint64             // of the lease
	publisher *session.Publisher // nil while it is away
	name      string             // of the last publisher, as in leases
	gone      chan struct{}      // closed when publisher has let go of the stream
	standby   *standby           // goes on when publisher has left; nil for none
	claim     *claim             // not nil while publisher claims the name
	resume    *time.Timer        // runs while the publisher is away
	asked     *time.Timer        // runs while publisher has been asked to go elsewhere
	settles   time.Time          // until when load is no reason to ask it
	wayward   time.Time          // until when it is asked only if somebody wants it
	writer    *stream.Publisher  // of the publisher, once it may send
	unfollow  func()             // ends that regained is called; nil before that begins
	hls       *hls.Segmenter     // set before shown; nil without HLS
}

// claim is a publisher's question to the directory.
type claim struct {
	done    chan struct{}    // closed when it is answered
	refused error            // set before that; not nil if another node has the name
	lostTo  discovery.Lease  // guarded by o.mu; of an owner that the origin was told of meanwhile
	kicked  discovery.Kicked // guarded by o.mu; by an operator, meanwhile
}

// Reasons of sessions that the origin ends.
const (
	reasonReplaced = session.Replaced
	reasonLost     = session.LostLease
	reasonShutdown = "shutdown"
)

// Publish implements session.Role: one publisher's whole stay.
func (o *Origin) Publish(ctx context.Context, s *session.Publisher) session.PublishEnd {
	p, sb, err := o.enter(ctx, s)
	var owner *session.Redirect
	switch {
	case errors.As(err, &owner) && owner.RTMP != "" && s.Peer.Node == "": // nodes follow it
		return o.carry(ctx, s, owner)
	case err != nil:
		return session.PublishEnd{Err: err}
	}
	stop := context.AfterFunc(ctx, func() { s.End(reasonShutdown) })
	defer stop()
	var end session.PublishEnd
	var kept *stream.Stream
	took := true
	if sb != nil {
		kept = sb.log
		took, end = p.stand(sb)
	}
	if took {
		end = p.serve(s, kept)
	}
	if sb != nil && p.dismiss(sb) {
		return end
	}
	p.leave(end.Reason == session.Unpublished)
	return end
}

// enter makes s the publisher of its stream: of a new one, or of one whose
// publisher is away, or of one that it takes from its publisher. Or it makes it the
// standby publisher, which is returned then.
func (o *Origin) enter(ctx context.Context, s *session.Publisher) (*publication, *standby, error) {
	replace := s.Target.Vhost.Config.Publish.OnConflict == vhost.Replace
	name := session.PublisherName(s.Secret)
	for {
		r, err := o.reserve(s, name)
		switch {
		case err != nil:
			return nil, nil, err
		case r.standby != nil:
			return r.p, r.standby, nil
		case r.p != nil:
			r.p.follow()
			lease, err := o.owner.Claim(ctx, r.p.key, discovery.ClaimOptions{Replace: replace, Publisher: name})
			return r.p, nil, r.p.settle(lease, err)
		}
		select {
		case <-r.wait:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		if r.claim != nil && r.claim.refused != nil {
			return nil, nil, r.claim.refused
		}
	}
}

// reservation is what a newcomer gets: a place, or something to wait for before it
// tries again.
type reservation struct {
	p       *publication // where it is the publisher, before the name is claimed
	standby *standby     // not nil if it stands by there instead

	wait  <-chan struct{}
	claim *claim // under way, whose refusal would be one of the newcomer too; may be nil
}

// reserve gives s a place at the stream's publication, before the name is claimed: of
// many that come at once, one asks the directory.
func (o *Origin) reserve(s *session.Publisher, name string) (reservation, error) {
	key, policy := s.Target.Key.String(), s.Target.Vhost.Config.Publish.OnConflict
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped {
		return reservation{}, stopping()
	}
	p := o.streams[key]
	switch {
	case p == nil:
		p = &publication{
			o: o, key: key, target: s.Target, stream: stream.New(o.cfg.Play.LogLimits()),
			since: time.Now(), over: make(chan struct{}),
		}
		o.streams[key] = p
	case p.ended:
		return reservation{wait: p.over}, nil
	case p.publisher != nil && (policy == vhost.Replace || name != "" && name == p.name || p.asked != nil):
		p.publisher.End(reasonReplaced)
		return reservation{wait: p.gone}, nil
	case p.claim != nil:
		return reservation{wait: p.claim.done, claim: p.claim}, nil
	case p.publisher != nil && policy != vhost.Standby:
		return reservation{}, conflict("")
	case p.publisher != nil && p.standby == nil:
		p.standby = p.newStandby(s, name)
		return reservation{p: p, standby: p.standby}, nil
	case p.publisher != nil && name != "" && name == p.standby.name:
		p.standby.s.End(reasonReplaced)
		return reservation{wait: p.standby.gone}, nil
	case p.publisher != nil:
		return reservation{}, conflict(", and has a standby publisher")
	}
	p.stopResume()
	p.publisher, p.name, p.gone = s, name, make(chan struct{})
	p.claim = &claim{done: make(chan struct{})}
	return reservation{p: p}, nil
}

// settle ends the claim of the publication's publisher with the directory's
// answer. With an error the publisher has lost its place again.
func (p *publication) settle(lease discovery.Lease, err error) error {
	o := p.o
	var taken *discovery.ConflictError
	var ban *discovery.BannedError
	o.mu.Lock()
	c := p.claim
	p.claim = nil
	if err == nil && lease.Epoch <= c.kicked.Epoch {
		err = &discovery.BannedError{Kicked: c.kicked}
	}
	switch {
	case errors.As(err, &taken):
		c.refused = conflict(" at another node")
	case errors.As(err, &ban):
		c.refused = banned(ban)
	}
	defer close(c.done)
	if err == nil && !p.ended {
		p.epoch = max(p.epoch, lease.Epoch)
		if !p.shown {
			p.settles = time.Now().Add(settled)
			p.show()
		}
		o.mu.Unlock()
		return nil
	}
	p.publisher = nil
	defer close(p.gone)
	cause := errEnded
	switch {
	case p.ended: // by Close, which may have been before the claim
		o.mu.Unlock()
		if err == nil {
			p.release()
		}
		return stopping()
	case taken != nil:
		cause = movedTo(taken.Lease)
		p.end()
	case c.lostTo.Epoch > p.epoch:
		cause = movedTo(c.lostTo)
		p.end()
	case ban != nil:
		cause = errKicked
		p.end()
	case p.shown:
		p.pause()
	default:
		p.end()
	}
	ended := p.ended
	o.mu.Unlock()
	if ended {
		p.finish(cause)
	}
	switch {
	case taken != nil && p.target.Vhost.Config.Publish.OnConflict == vhost.Standby:
		return movedTo(taken.Lease) // where it may stand by
	case c.refused != nil:
		return c.refused
	case errors.Is(err, context.Canceled):
		return stopping()
	}
	return &session.Refusal{Code: session.Unavailable, Text: "The ownership of the stream cannot be had now.", Err: err}
}

func stopping() error {
	return &session.Refusal{Code: session.Stopping, Text: "The server is shutting down."}
}

// show lets players have the stream. o.mu is held.
func (p *publication) show() {
	o := p.o
	p.shown = true
	if cfg := p.target.Vhost.Config.HLS; cfg.Enabled {
		p.hls = hls.NewSegmenter(hls.Options{
			Config: cfg, Key: p.key, Name: p.target.Key.Name, VHost: hlsVhost(p.target.Key.Vhost),
			Epoch: p.epoch, Log: o.log, Metrics: o.set,
		})
		cursor := p.stream.Join()
		cursor.Hold()
		o.running.Go(func() { p.segment(cursor) })
	}
	delete(o.lingering, p.key)
	close(o.changed)
	o.changed = make(chan struct{})
}

// hlsVhost is the vhost as URIs of HLS files carry it: not the default one.
func hlsVhost(name string) string {
	if name == vhost.DefaultName {
		return ""
	}
	return name
}

// serve appends what the publisher sends until it ends. One that stood by was let in
// before, and begins with what was kept of it.
func (p *publication) serve(s *session.Publisher, kept *stream.Stream) session.PublishEnd {
	pub, err := p.stream.Publish()
	if err != nil {
		return session.PublishEnd{Err: &session.Refusal{Code: session.Unavailable, Text: "The stream has just ended; try again.", Err: err}}
	}
	defer pub.Close()
	p.o.mu.Lock()
	p.writer = pub
	epoch := p.epoch
	p.mark()
	p.o.mu.Unlock()
	if kept != nil {
		if err := goOn(pub, kept); err != nil {
			return session.PublishEnd{Reason: "stream_closed", Err: err}
		}
	} else {
		s.Epoch = p.o.told(epoch)
		if err := s.Accept(); err != nil {
			return session.ReadEnd(err)
		}
	}
	p.o.log.Info("publish started", "stream", p.key, "session", s.ID(), "remote", s.Remote.String(), "epoch", epoch, "encoder", s.Encoder)
	pub.Recycle(s.Gone)
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

// mark writes into the stream, and into its playlists, of which ownership it is. o.mu
// is held.
func (p *publication) mark() {
	epoch := p.o.told(p.epoch)
	if epoch == 0 {
		return
	}
	if p.hls != nil {
		p.hls.Store().SetOwnership(epoch)
	}
	if p.writer != nil {
		_ = p.writer.Append(media.EpochMark(epoch)) // only ever fails when the stream is over
	}
}

// follow has regained called until finish.
func (p *publication) follow() {
	o := p.o
	o.mu.Lock()
	begun := p.unfollow != nil
	o.mu.Unlock()
	if begun {
		return
	}
	stop := o.owner.Follow(p.key, p.regained) // without the lock, which regained takes
	o.mu.Lock()
	if begun = p.unfollow != nil; !begun {
		p.unfollow = stop
	}
	o.mu.Unlock()
	if begun {
		stop()
	}
}

// regained is told of each ownership of the stream. The directory may have granted
// the name to this origin again, with a later epoch, after it was away.
func (p *publication) regained(l discovery.Lease) {
	o := p.o
	o.mu.Lock()
	defer o.mu.Unlock()
	if l.Node == o.node && l.Epoch > p.epoch && !p.ended {
		p.epoch = l.Epoch
		p.mark()
	}
}

// leave ends the publisher's stay: the standby publisher goes on, if there is one;
// else the stream ends if the publisher said so, and otherwise waits for its return.
func (p *publication) leave(proper bool) {
	o := p.o
	o.mu.Lock()
	p.publisher, p.writer = nil, nil
	gone, last := p.gone, false
	if p.answered() { // it goes on elsewhere
		proper = false
	}
	switch {
	case p.ended:
	case p.standby != nil:
		p.promote()
	case proper || o.cfg.Publish.ResumeWindow == 0:
		last = p.end()
	default:
		p.pause()
	}
	o.mu.Unlock()
	close(gone)
	if last {
		p.finish(errEnded)
	}
}

// pause gives the publisher the resume window to return. o.mu is held.
func (p *publication) pause() {
	o := p.o
	var timer *time.Timer
	timer = time.AfterFunc(o.cfg.Publish.ResumeWindow, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if p.resume == timer && p.end() {
			o.running.Go(func() { p.finish(errEnded) })
		}
	})
	p.resume = timer
	o.owner.SetIdle(p.key, true) // under the lock, before the claim of whoever returns
}

func (p *publication) stopResume() { // o.mu is held
	if p.resume != nil {
		p.resume.Stop()
		p.resume = nil
	}
}

// end takes the stream from those who come. It reports whether this call did;
// whoever made it then calls finish. o.mu is held.
func (p *publication) end() bool {
	if p.ended {
		return false
	}
	p.ended = true
	p.stopResume()
	if p.hls != nil && p.target.Vhost.Config.HLS.Linger > 0 {
		p.o.lingering[p.key] = p.hls.Store()
	}
	return true
}

// finish closes the stream, which nobody joins any more, gives its lease back
// unless another origin has it, and makes room for the name's next publication.
func (p *publication) finish(cause error) {
	p.stream.Close(cause)
	p.o.mu.Lock()
	unfollow := p.unfollow
	p.unfollow = func() {} // from now on nobody follows
	p.o.mu.Unlock()
	if unfollow != nil {
		unfollow()
	}
	if !errors.As(cause, new(*session.Redirect)) {
		p.release()
	}
	p.o.mu.Lock()
	delete(p.o.streams, p.key)
	p.o.mu.Unlock()
	close(p.over)
}

func (p *publication) release() {
	ctx, cancel := context.WithTimeout(context.Background(), p.o.cfg.Discovery.Timeout)
	defer cancel()
	if err := p.o.owner.Release(ctx, p.key); err != nil {
		p.o.log.Debug("lease is left to run out", "stream", p.key, "err", err)
	}
}

// segmentBatch is how many tags the segmenter takes from the log at a time.
const segmentBatch = 64

// segment cuts the stream's HLS until it ends. The cursor holds its place.
func (p *publication) segment(cursor *stream.Cursor) {
	wake := make(chan struct{}, 1)
	p.stream.Subscribe(wake)
	defer p.stream.Unsubscribe(wake)
	defer cursor.LetGo()
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
		cursor.Release()
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
	p.linger()
}

func (p *publication) write(t media.Tag, info media.Info) {
	_ = p.hls.Write(t, info) // only ever fails after Close
}

// linger ends the time in which those who still play the last segments of the
// stream get its playlist.
func (p *publication) linger() {
	o, store := p.o, p.hls.Store()
	time.AfterFunc(p.target.Vhost.Config.HLS.Linger, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.lingering[p.key] == store {
			delete(o.lingering, p.key)
		}
	})
}

// info describes the stream for the admin API, but for its players. o.mu is
// held.
func (p *publication) info() admin.StreamInfo {
	st := p.stream.Stats()
	i := admin.StreamInfo{
		Key: p.key, State: "resuming", BytesIn: st.BytesIn, Bitrate: st.Bitrate,
		Codecs: p.stream.Headers().Codecs(), Epoch: p.epoch, Source: "publish",
	}
	if p.publisher != nil {
		i.State = "live"
		i.Publisher = publisherInfo(p.publisher, p.since)
	}
	if sb := p.standby; sb != nil {
		i.Standby = publisherInfo(sb.s, sb.since)
	}
	return i
}

func publisherInfo(s *session.Publisher, since time.Time) *admin.PublisherInfo {
	return &admin.PublisherInfo{Session: s.ID(), Remote: s.Remote.String(), Protocol: "rtmp", Since: since, Encoder: s.Encoder}
}
