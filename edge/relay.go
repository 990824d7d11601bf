package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"weir/discovery"
	"weir/internal/media"
	"weir/internal/session"
	"weir/internal/stream"
	"weir/internal/vhost"
)

// relay pulls one stream while it has players, whatever happens to upstreams:
// a cursor on somebody else's log that appends to its own.
type relay struct {
	// Static.
	edge   *Edge
	key    string
	target vhost.Target // of the first player: its query goes upstream
	stream *stream.Stream
	stop   context.CancelFunc
	done   chan struct{} // closed when nothing of the relay is left
	// detach for players on the beat and others: made once, for thousands of players.
	leaveOnBeat, leaveOffBeat func()

	// Guarded by edge.mu.
	via     string // nodes that the players' requests came through; empty once one is this node's own
	players int
	linger  *time.Timer // runs while there are no players

	mu      sync.Mutex
	changed chan struct{} // guarded by mu; closed and replaced when what follows changes
	flowing bool          // guarded by mu; a frame has come
	failed  error         // guarded by mu; how the last attempt ended before a frame came
	epoch   uint64        // guarded by mu; of the source, 0 if unknown
	from    string        // guarded by mu; where the tags come from, empty between sources
	leave   func()        // guarded by mu; leaves the source, nil between sources

	offBeat atomic.Int32 // players that do not get the batches of this worker; see PlayRequest.OnBeat

	news chan struct{} // holds one token if a later owner was heard of
}

// attach returns the relay of a stream with one more player, which detach takes
// away again. The first player starts the pull; all others share it. onBeat is that of
// the PlayRequest.
func (e *Edge) attach(t vhost.Target, via string, onBeat bool) (*relay, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	key := t.Key.String()
	r := e.relays[key]
	if r == nil {
		if e.stopped {
			return nil, &session.Refusal{Code: session.Stopping, Text: "The server is shutting down."}
		}
		ctx, cancel := context.WithCancel(e.ctx)
		r = &relay{
			edge: e, key: key, target: t, via: via, stream: stream.New(e.cfg.Play.LogLimits()),
			stop: cancel, done: make(chan struct{}), changed: make(chan struct{}), news: make(chan struct{}, 1),
		}
		r.leaveOnBeat, r.leaveOffBeat = func() { r.detach(true) }, func() { r.detach(false) }
		e.epochs.use(key)
		e.relays[key] = r
		e.running.Go(func() { r.run(ctx) })
	}
	if via == "" { // whatever a client claims to be must not decide for the others
		r.via = ""
	}
	r.players++
	if !onBeat {
		r.offBeat.Add(1)
	}
	if r.linger != nil {
		r.linger.Stop()
		r.linger = nil
	}
	return r, nil
}

// detach takes one player away; the last one's leaving ends the pull after the
// linger time, or at once if nothing ever came.
func (r *relay) detach(onBeat bool) {
	if !onBeat {
		r.offBeat.Add(-1)
	}
	flowing, _, _ := r.state()
	e := r.edge
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.players--; r.players > 0 || e.relays[r.key] != r {
		return
	}
	if !flowing || e.cfg.Pull.Linger == 0 {
		r.remove()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(e.cfg.Pull.Linger, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if r.linger == timer {
			r.remove()
		}
	})
	r.linger = timer
}

// beat returns when the players are sent something next: all batches of the node while
// there are others than those of this worker.
func (r *relay) beat() (every, at time.Duration) { return r.edge.beat(r.offBeat.Load() == 0) }

func (r *relay) hasPlayers() bool {
	r.edge.mu.Lock()
	defer r.edge.mu.Unlock()
	return r.players > 0
}

// remove makes the next player start a new relay, and ends this one. It leaves
// the map before its stream closes: nobody joins a corpse. edge.mu is held.
func (r *relay) remove() {
	if r.edge.relays[r.key] == r {
		delete(r.edge.relays, r.key)
	}
	r.stop()
}

// wait returns when the stream flows. Otherwise it fails after patience, but not
// before one attempt was made; at once if upstreams lead in a circle.
func (r *relay) wait(ctx context.Context, patience time.Duration) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	bound := time.NewTimer(patience + r.edge.cfg.Pull.ConnectTimeout + time.Second)
	defer bound.Stop()
	patient := true
	for {
		r.mu.Lock()
		flowing, failed, changed := r.flowing, r.failed, r.changed
		r.mu.Unlock()
		if flowing {
			return nil
		}
		if failed != nil && (!patient || errors.Is(failed, errCircle)) {
			return failed
		}
		select {
		case <-changed:
		case <-timer.C:
			patient = false
		case <-bound.C: // an upstream accepted the pull and sends nothing
			return session.ErrNotFound
		case <-r.done:
			if failed == nil {
				failed = session.ErrNotFound
			}
			return failed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// state returns whether a frame has come, and the source.
func (r *relay) state() (flowing bool, epoch uint64, from string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.flowing, r.epoch, r.from
}

// stands reports whether there is a log of a stream for which there is no source now.
func (e *Edge) stands(key string) bool {
	e.mu.Lock()
	r := e.relays[key]
	e.mu.Unlock()
	if r == nil {
		return false
	}
	flowing, _, from := r.state()
	return flowing && from == ""
}

func (r *relay) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.changed)
	r.changed = make(chan struct{})
}

// run is the relay's whole life.
func (r *relay) run(ctx context.Context) {
	unfollow := func() {}
	if r.edge.owners != nil {
		unfollow = r.edge.owners.Follow(r.key, func(l discovery.Lease) {
			if l.Node != "" { // that it has ended, the source will say
				r.learn(l.Epoch)
			}
		})
	}
	cause := r.pull(ctx)
	unfollow()
	e := r.edge
	e.mu.Lock()
	if r.linger != nil {
		r.linger.Stop()
		r.linger = nil
	}
	r.remove()
	e.mu.Unlock()
	r.stream.Close(cause)
	e.epochs.leave(r.key)
	close(r.done)
}

// learn tells the relay of an ownership of its stream. If that is a later one than
// its source is of, the relay leaves that at once, however well it flows, and ends
// its pause.
func (r *relay) learn(epoch uint64) {
	if !r.edge.epochs.note(r.key, epoch) {
		return
	}
	r.mu.Lock()
	leave := r.leave
	if r.epoch >= epoch {
		leave = nil
	}
	r.mu.Unlock()
	if leave != nil {
		leave()
	}
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// errEnded is the cause of the end of a relay's stream after upstream's.
var errEnded = errors.New("the stream has ended")

// settled is how long a source must last for the next one to be sought without a
// pause: a broken upstream may take every pull and end it at once.
const settled = time.Second

// pull reads one source after the other into the log and returns why it stopped.
func (r *relay) pull(ctx context.Context) error {
	pub, err := r.stream.Publish()
	if err != nil {
		return err
	}
	defer pub.Close()
	cfg := r.edge.cfg.Pull
	log := r.edge.log.With("stream", r.key)
	pause := time.Duration(0) // before the next attempt
	fed := time.Now()         // when the log last grew, or the relay began
	var ended time.Time       // when upstream said that the stream has ended
	trail := newTrail(cfg.MaxRedirects)
	var next *vhost.Upstream // a redirect that came after the play had begun
	for {
		src, err := r.connect(ctx, trail, next)
		next = nil
		if err == nil {
			began, before := time.Now(), r.stream.Stats().TagsIn
			err = r.copy(ctx, pub, src)
			if r.stream.Stats().TagsIn > before { // something that the log did not have
				fed, ended = time.Now(), time.Time{}
				trail = newTrail(cfg.MaxRedirects)
				if time.Since(began) >= settled {
					pause = 0
				}
			}
			var redirect *errRedirect
			if errors.As(err, &redirect) {
				if err = r.edge.redirected(r.key, src.from, redirect, trail); err == nil {
					next = &redirect.to
					continue
				}
			}
			switch {
			case ctx.Err() != nil:
			case errors.Is(err, errMove):
				log.Info("pull moves to its worker", "from", src.from)
				trail = newTrail(cfg.MaxRedirects)
				continue
			case errors.Is(err, errLater):
				log.Info("pull leaves for a later owner", "from", src.from, "latest", r.edge.epochs.of(r.key))
				r.edge.metrics.pullEnded(err)
				r.edge.doubt(r.key)
				trail, pause = newTrail(cfg.MaxRedirects), 0
				continue
			case errors.Is(err, io.EOF):
				log.Info("upstream has ended the stream", "from", src.from)
				r.edge.metrics.pullEnded(err)
				if src.worker != noWorker || !r.hasPlayers() {
					return errEnded // the worker has waited for a new beginning already; or nobody waits
				}
				if ended.IsZero() {
					ended = time.Now()
				}
			default:
				log.Warn("pull lost", "from", src.from, "err", err)
				r.edge.metrics.pullEnded(err)
				if src.addr != "" && !errors.Is(err, errOlder) {
					r.edge.health.failed(src.addr)
				}
			}
			r.edge.doubt(r.key)
		}
		if ctx.Err() != nil {
			return errEnded
		}
		flowing, _, _ := r.state()
		r.change(func() { r.failed = r.toSession(err) })
		switch {
		case !flowing:
			// Players wait, each for its own time; the last one's leaving ends the relay.
			if pause == 0 {
				log.Info("pull failed", "err", err)
			}
		case !ended.IsZero() && time.Since(ended) >= cfg.EndAfter:
			return errEnded
		case time.Since(fed) > cfg.GiveUp:
			log.Warn("pull given up", "after", cfg.GiveUp.String(), "err", err)
			if errors.Is(err, errOlder) { // those who come now see what there is
				r.edge.epochs.forget(r.key)
			}
			return fmt.Errorf("no upstream for %v: %w", cfg.GiveUp, err)
		default:
			log.Debug("pull failed", "err", err)
		}
		heard, ok := restUnless(ctx, pause, r.news)
		if !ok {
			return errEnded
		}
		if heard {
			pause = 0
		}
		pause = min(max(2*pause, cfg.RetryMin), cfg.RetryMax)
		if !flowing {
			pause = min(pause, 4*cfg.RetryMin) // players look at an empty screen
		}
		trail = newTrail(cfg.MaxRedirects)
	}
}

// rest waits for about d. It reports false when ctx ended.
func rest(ctx context.Context, d time.Duration) bool {
	_, ok := restUnless(ctx, d, nil)
	return ok
}

// restUnless is rest that ends with the first news, and says so.
func restUnless(ctx context.Context, d time.Duration, news <-chan struct{}) (heard, ok bool) {
	if d > 0 {
		d = d/2 + rand.N(d/2+1)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false, true
	case <-news:
		return true, true
	case <-ctx.Done():
		return false, false
	}
}

// toSession says a failure in the words of the door.
func (r *relay) toSession(err error) error {
	switch {
	case errors.Is(err, errGone), errors.Is(err, io.EOF):
		return session.ErrNotFound
	case errors.Is(err, errCircle):
		return circle(err)
	case errors.Is(err, errOlder):
		return &session.Refusal{Code: session.Unavailable, Text: "Only an earlier owner of this stream can be reached.", Err: err}
	}
	return &session.Refusal{Code: session.Unavailable, Text: "No upstream can be reached for this stream.", Err: err}
}

// connect finds a source: the worker of this node that pulls the stream, or, if
// that is this one, an upstream.
func (r *relay) connect(ctx context.Context, trail *trail, next *vhost.Upstream) (pulled, error) {
	r.edge.mu.Lock()
	via := r.via
	r.edge.mu.Unlock()
	if next != nil {
		return r.edge.followUp(ctx, *next, r.target, via, trail)
	}
	src, err := r.edge.siblings.pull(ctx, r.target, via)
	if !errors.Is(err, errOwnTurn) {
		return src, err
	}
	return r.edge.pullUpstream(ctx, r.target, via, trail)
}

// errLater ends a copy because a later owner of the stream was heard of.
var errLater = errors.New("the stream has a later owner")

// errMove ends a copy because another worker of the node is to pull the stream.
var errMove = errors.New("another worker pulls this stream now")

// copy appends what the source sends until it ends, and closes it.
func (r *relay) copy(ctx context.Context, pub *stream.Publisher, src pulled) error {
	stop := context.AfterFunc(ctx, func() { src.Close() })
	defer func() {
		stop()
		src.Close()
	}()
	moved := r.edge.siblings.watch(r.key, src.worker, func() { src.Close() })
	defer moved.stop()
	var later atomic.Bool
	r.change(func() {
		r.epoch = src.epoch
		if src.worker == noWorker { // another worker hears of it, too, and goes on sending
			r.leave = func() { later.Store(true); src.Close() }
		}
	})
	defer r.change(func() { r.leave = nil })
	if src.worker == noWorker && src.epoch != 0 && src.epoch < r.edge.epochs.of(r.key) { // heard of since it was connected to
		return errLater
	}
	pub.Recycle(src.Gone)
	flowing, _, _ := r.state()
	following := false
	for first := true; ; first = false {
		t, err := src.ReadTag()
		if err != nil {
			switch {
			case later.Load():
				err = errLater
			case moved.happened():
				err = errMove
			}
			return err
		}
		epoch, marked := media.EpochOf(t)
		if marked {
			// Always among the first tags of a node, and again where its own source
			// has changed.
			if err := r.edge.notBack(r.key, src.from, epoch); err != nil {
				return err
			}
			src.epoch = epoch
			r.change(func() { r.epoch = epoch })
		}
		if first { // only now: an upstream may start a play just to redirect it
			r.begin(pub, src)
			defer r.over()
			if !marked && src.epoch != 0 {
				if err := pub.Append(media.EpochMark(src.epoch)); err != nil {
					return err
				}
			}
		}
		if marked || first {
			r.edge.epochs.show(r.key, src.epoch)
		}
		if !following && flowing && src.follow != nil {
			following = true
			src.follow(r.beat)
		}
		if err := pub.Append(t); err != nil {
			return err
		}
		if !flowing && r.stream.Joinable() {
			flowing = true
			r.change(func() { r.flowing, r.failed = true, nil })
		}
	}
}

// begin notes that a source has begun to send, and over that it has ended.
func (r *relay) begin(pub *stream.Publisher, src pulled) {
	e := r.edge
	if r.stream.Stats().TagsIn > 0 {
		pub.Resume() // the log may have what this source sends first
	}
	r.change(func() { r.from = src.from })
	e.health.worked(src.addr)
	e.metrics.pulls.Inc()
	e.log.Info("pull started", "stream", r.key, "from", src.from, "epoch", src.epoch)
}

func (r *relay) over() {
	r.change(func() { r.from = "" })
	r.edge.metrics.pulls.Dec()
}
