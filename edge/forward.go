package edge

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"weir/discovery"
	"weir/internal/admin"
	"weir/internal/media"
	"weir/internal/rtmp"
	"weir/internal/session"
	"weir/internal/stream"
	"weir/internal/vhost"
)

// forward carries one publisher of this edge upstream. The publisher appends to
// a log of the forward's own; a cursor of it writes to the upstream, and to the
// next one when that is lost.
type forward struct {
	// Static.
	edge   *Edge
	p      *session.Publisher
	log    *slog.Logger
	ring   *stream.Stream
	from   time.Time     // since when
	secret string        // by which origins know that it is the same publisher again
	name   string        // that of the secret in leases
	orphan chan struct{} // holds one token if the lease of the upstream may have ended

	mu    sync.Mutex
	epoch uint64                  // guarded by mu; of the ownership at the upstream, 0 if it says none or there is no upstream
	leave context.CancelCauseFunc // guarded by mu; leaves the upstream, nil if there is none
	last  discovery.Lease         // guarded by mu; what was heard of last
}

// Publish implements session.Role.
func (e *Edge) Publish(ctx context.Context, p *session.Publisher) session.PublishEnd {
	f := &forward{
		edge: e, p: p, log: e.log.With("stream", p.Target.Key.String(), "session", p.ID()),
		ring: stream.New(e.cfg.Play.LogLimits()), from: time.Now(), orphan: make(chan struct{}, 1),
	}
	if f.secret = p.Secret; f.secret == "" || p.Peer.Node == "" {
		f.secret = rand.Text()
	}
	f.name = session.PublisherName(f.secret)
	via, err := e.chain(p.Peer)
	if err != nil {
		return session.PublishEnd{Err: err}
	}
	up, err := f.connect(ctx, via)
	if err != nil {
		return session.PublishEnd{Err: refusalOf(err)}
	}
	pub, err := f.ring.Publish()
	if err != nil {
		up.Close()
		return session.PublishEnd{Err: err}
	}
	cursor := f.ring.Join() // before the first tag: it gets them all
	cursor.Hold()
	if err := p.Accept(); err != nil {
		up.Close()
		return session.ReadEnd(err)
	}
	e.metrics.forwards.Inc()
	defer e.metrics.forwards.Dec()
	e.list(f, true)
	defer e.list(f, false)

	stop := context.AfterFunc(ctx, func() { p.End("shutdown") })
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	seeking, left := context.WithCancel(ctx) // nobody seeks an upstream for a publisher that has left
	defer left()
	if e.owners != nil {
		defer e.owners.Follow(p.Target.Key.String(), f.owned)()
		var watching sync.WaitGroup
		defer watching.Wait()
		defer cancel()
		watching.Go(func() { f.watch(ctx) })
	}
	sent := make(chan error, 1)
	go func() {
		err := f.send(ctx, seeking, up, cursor, via)
		switch {
		case errors.Is(err, errKicked):
			p.End(session.Kicked)
		case errors.Is(err, errTaken):
			p.End(session.LostLease)
		case err != nil:
			p.End("upstream_lost")
		}
		sent <- err
	}()
	pub.Recycle(p.Gone)
	var rerr error
	for {
		var t media.Tag
		if t, rerr = p.ReadTag(); rerr != nil {
			break
		}
		if rerr = pub.Append(t); rerr != nil {
			break
		}
	}
	end := session.ReadEnd(rerr)
	if end.Reason != session.Unpublished {
		cancel() // before the log ends: a drop is no end upstream, whose resume window begins at once
	}
	pub.Close()
	f.ring.Close(errPublisherLeft)
	left()
	if err := <-sent; err != nil {
		end.Err = err
	}
	return end
}

// list enters a forward into those of the admin API, or takes it out.
func (e *Edge) list(f *forward, on bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if on {
		e.forwards[f] = struct{}{}
	} else {
		delete(e.forwards, f)
	}
}

// info describes the forward for the admin API.
func (f *forward) info() admin.StreamInfo {
	st := f.ring.Stats()
	return admin.StreamInfo{
		Key: f.p.Target.Key.String(), State: "live", BytesIn: st.BytesIn, Bitrate: st.Bitrate,
		Codecs: f.ring.Headers().Codecs(), Source: "publish, forwarded",
		Publisher: &admin.PublisherInfo{
			Session: f.p.ID(), Remote: f.p.Remote.String(), Protocol: "rtmp", Since: f.from, Encoder: f.p.Encoder,
		},
	}
}

// errPublisherLeft closes the log of a forward.
var errPublisherLeft = errors.New("the publisher has left")

// refusalOf tells a publisher what its upstream said.
func refusalOf(err error) error {
	var s *rtmp.StatusError
	if !errors.As(err, &s) {
		return &session.Refusal{Code: session.Unavailable, Text: "No upstream can take the stream now.", Err: err}
	}
	code := session.Unavailable
	switch s.Code {
	case rtmp.CodePublishBadName:
		code = session.Conflict
	case rtmp.CodePublishDenied:
		code = session.Denied
	case rtmp.CodeConnectInvalid:
		code = session.BadRequest
	}
	text := s.Description
	if text == "" {
		text = "The upstream refused the stream."
	}
	return &session.Refusal{Code: code, Text: text, Err: err}
}

// Ends of a forward that no other upstream can make good.
var (
	errTaken  = errors.New("the stream has another publisher")
	errKicked = errors.New("the publisher was ended by an operator")
)

// errOrphan says that an upstream has lost the lease of the stream: it is frozen, or
// cut off from the directory.
var errOrphan = errors.New("the upstream does not own the stream any more")

// told returns the end of the forward that an upstream's words in mid-publish mean,
// or err if they mean only the upstream's.
func told(err error) error {
	var s *rtmp.StatusError
	switch {
	case !errors.As(err, &s):
	case s.Code == rtmp.CodePublishBadName:
		return fmt.Errorf("%w: %w", errTaken, err)
	case s.Code == rtmp.CodePublishDenied:
		return fmt.Errorf("%w: %w", errKicked, err)
	}
	return err
}

// owned is told of each ownership of the stream that this worker hears of.
func (f *forward) owned(l discovery.Lease) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = l
	f.judge()
}

// kicked ends the publishers of a stream that an operator has ended. Those that have
// no upstream now are among them.
func (e *Edge) kicked(k discovery.Kicked) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for f := range e.forwards {
		if f.p.Target.Key.String() == k.Stream && f.isOf(k) {
			f.p.End(session.Kicked)
		}
	}
}

// isOf reports whether the forward is of an ownership that a kick has ended.
func (f *forward) isOf(k discovery.Kicked) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.epoch <= k.Epoch || k.Banned(time.Now())
}

// judge decides what the last news mean for the present upstream. mu is held.
func (f *forward) judge() {
	l := f.last
	switch {
	case f.leave == nil || f.epoch == 0 || l.Epoch < f.epoch: // it is being sought, or known better
	case l.Node == "":
		select {
		case f.orphan <- struct{}{}:
		default:
		}
	case l.Epoch == f.epoch:
	case l.Publisher == f.name: // granted to the upstream again
		f.epoch = l.Epoch
	default:
		f.leave(errTaken)
	}
}

// watch leaves an upstream that does not own the stream any more, although it takes
// what is sent. A directory that has just begun knows nobody: the owner is given the
// time to tell it.
func (f *forward) watch(ctx context.Context) {
	e, key := f.edge, f.p.Target.Key.String()
	for {
		select {
		case <-f.orphan:
		case <-ctx.Done():
			return
		}
		f.mu.Lock()
		epoch := f.epoch
		f.mu.Unlock()
		if !rest(ctx, e.cfg.Discovery.LeaseTTL/2) {
			return
		}
		e.owners.Doubt(key)
		_, err := e.owners.Lookup(ctx, key)
		f.mu.Lock()
		if errors.Is(err, discovery.ErrNotFound) && f.leave != nil && f.epoch == epoch {
			f.leave(errOrphan)
		}
		f.mu.Unlock()
	}
}

// upstreamConn is a publish at an upstream.
type upstreamConn struct {
	*rtmp.Client
	addr string
}

// final reports a refusal that no other upstream can make good: the name is
// taken, the key is wrong, there is no such vhost.
func final(err error) bool {
	var s *rtmp.StatusError
	if !errors.As(err, &s) {
		return false
	}
	return s.Code == rtmp.CodePublishBadName || s.Code == rtmp.CodePublishDenied || s.Code == rtmp.CodeConnectInvalid
}

// connect finds an upstream that takes the publisher.
func (f *forward) connect(ctx context.Context, via string) (*upstreamConn, error) {
	e := f.edge
	candidates, err := e.publishCandidates(ctx, f.p.Target)
	if err != nil {
		return nil, err
	}
	trail := newTrail(e.cfg.Pull.MaxRedirects)
	var failed error
	for _, up := range candidates {
		if !trail.visit(up.Addr) {
			continue
		}
		trail.redirects = 0
		c, err := f.publish(ctx, up, via, trail)
		if err == nil {
			return c, nil
		}
		if final(err) || ctx.Err() != nil {
			return nil, err
		}
		if s := (*rtmp.StatusError)(nil); failed == nil || errors.As(err, &s) {
			failed = err // words say more than a connection that was not to be had
		}
	}
	return nil, failed
}

// publish asks one upstream and follows its redirects.
func (f *forward) publish(ctx context.Context, up vhost.Upstream, via string, trail *trail) (*upstreamConn, error) {
	e := f.edge
	for {
		c, err := f.dial(ctx, up, via)
		if err == nil {
			f.log.Info("publisher forwarded", "to", up.String())
			e.health.worked(up.Addr)
			return &upstreamConn{Client: c, addr: up.Addr}, nil
		}
		var redirect *rtmp.RedirectError
		var status *rtmp.StatusError
		switch {
		case errors.As(err, &redirect) && !redirect.TLS: // upstream is spoken to without it
			to := &errRedirect{to: vhost.Upstream{Scheme: "rtmp", Addr: redirect.Addr}, epoch: redirect.Epoch}
			if err := e.redirected(f.p.Target.Key.String(), up.String(), to, trail); err != nil {
				return nil, err
			}
			up = to.to
			trail.visit(up.Addr)
			continue
		case !errors.As(err, &status) && ctx.Err() == nil:
			e.health.failed(up.Addr)
		}
		return nil, fmt.Errorf("publish at %s: %w", up, err)
	}
}

func (f *forward) dial(ctx context.Context, up vhost.Upstream, via string) (*rtmp.Client, error) {
	u := rtmpURL(up, f.p.Target)
	cfg := rtmp.DefaultClientConfig()
	cfg.ConnectTimeout = f.edge.cfg.Pull.ConnectTimeout
	cfg.Node, cfg.Via, cfg.Publisher, cfg.Overlap = f.edge.node, via, f.secret, true
	cfg.DialContext = f.edge.tcp.DialContext
	c, err := rtmp.Dial(ctx, u, cfg)
	if err != nil {
		return nil, err
	}
	if err := c.Publish(ctx, u.Name); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// send writes the log upstream until the publisher has left and all was sent,
// or no upstream could be had for the resume window. The context seeking, which
// is one of ctx, ends the search for another upstream.
func (f *forward) send(ctx, seeking context.Context, up *upstreamConn, cursor *stream.Cursor, via string) error {
	for {
		next, from, err := f.copy(ctx, up, cursor, via)
		up.Close()
		if next != nil {
			up, cursor = next, from
			continue
		}
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if err = told(err); errors.Is(err, errTaken) || errors.Is(err, errKicked) {
			f.log.Info("publisher gives way", "upstream", up.addr, "err", err)
			return err
		}
		var redirect *rtmp.RedirectError
		if !errors.As(err, &redirect) {
			f.edge.health.failed(up.addr)
		}
		f.edge.doubt(f.p.Target.Key.String())
		f.edge.metrics.forwardLost.Inc()
		f.log.Warn("forwarding lost its upstream", "upstream", up.addr, "err", err)
		if up, err = f.reconnect(seeking, via, err); err != nil {
			if seeking.Err() != nil {
				return nil
			}
			return err
		}
		cursor = f.ring.Join() // the new upstream begins with a key frame
	}
}

// reconnect tries for the resume window. A refusal is not final here, but one by an
// operator: an origin that does not know the publisher by its secret has the name
// for the lost upstream until that one's lease has run out.
func (f *forward) reconnect(ctx context.Context, via string, cause error) (*upstreamConn, error) {
	cfg := f.edge.cfg
	deadline := time.Now().Add(cfg.Forward.ResumeWindow)
	pause := time.Duration(0)
	for {
		up, err := f.connect(ctx, via)
		if err == nil {
			return up, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err = told(err); errors.Is(err, errKicked) {
			return nil, err
		}
		if time.Now().Add(pause).After(deadline) {
			return nil, fmt.Errorf("no upstream for %v after %w: %w", cfg.Forward.ResumeWindow, cause, err)
		}
		if !rest(ctx, pause) {
			return nil, ctx.Err()
		}
		pause = min(max(2*pause, cfg.Pull.RetryMin), cfg.Pull.RetryMax, time.Second)
	}
}

// batchTags is how many tags are written upstream at a time.
const batchTags = 64

// copy writes the log to one upstream. It returns nil after the publisher's end, and
// the next upstream, with the place from which that one gets the log, if this one has
// sent the publisher there: this one gets all until that one has it.
func (f *forward) copy(ctx context.Context, up *upstreamConn, cursor *stream.Cursor, via string) (next *upstreamConn, from *stream.Cursor, err error) {
	over := f.crossing(ctx, up, via)
	defer func() {
		if to := over.end(err != nil); to != nil {
			next, from, err = to, over.cursor, nil
		}
	}()
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	epoch, _ := strconv.ParseUint(up.Started().Text(rtmp.InfoEpoch), 10, 64)
	f.mu.Lock()
	f.epoch, f.leave = epoch, leave
	f.judge()
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.epoch, f.leave = 0, nil
		f.mu.Unlock()
		if cause := context.Cause(ctx); err != nil && (errors.Is(cause, errTaken) || errors.Is(cause, errOrphan)) {
			err = cause // the connection only shows that it was closed
		}
	}()
	stop := context.AfterFunc(ctx, func() { up.Close() })
	defer stop()
	return nil, nil, f.write(ctx, up, cursor, over)
}

// write is the loop of copy. It returns nil, too, when there is a next upstream.
func (f *forward) write(ctx context.Context, up *upstreamConn, cursor *stream.Cursor, over *crossing) error {
	wake := make(chan struct{}, 1)
	f.ring.Subscribe(wake)
	defer f.ring.Unsubscribe(wake)
	cursor.Hold()
	defer cursor.LetGo()
	var batch [batchTags]stream.Entry
	var tags []media.Tag
	for !over.there() {
		if _, behind := cursor.Behind(); time.Duration(behind)*time.Millisecond > f.edge.cfg.Forward.MaxLag {
			if lost := cursor.Jump(); lost > 0 {
				f.log.Warn("upstream is too slow: jumped to the newest key frame", "upstream", up.addr, "behind_ms", behind, "lost_frames", lost)
			}
		}
		run, err := cursor.Next(batch[:])
		if len(run.Entries) > 0 {
			tags = tags[:0]
			if run.Headers != nil {
				tags = append(tags, run.Headers.At(run.Entries[0].Tag.Time())...)
			}
			for _, e := range run.Entries {
				tags = append(tags, e.Tag)
			}
			err := up.WriteTags(tags...)
			cursor.Release()
			if err != nil {
				return err
			}
			continue
		}
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			_ = up.Unpublish() // it has all; what it says now changes nothing
			return nil
		}
		select {
		case <-wake:
		case to := <-up.Redirected():
			over.begin(to)
		case <-over.done:
		case <-up.Done():
			return up.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
