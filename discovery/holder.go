package discovery

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// HolderConfig says for whom a Holder works.
type HolderConfig struct {
	Config Config // lease_ttl, heartbeat, timeout and the cache; the rest is Open's
	Self   Self
	// Node returns the state of the node for a heartbeat. ID, Instance and Addr
	// are filled in from Self. It must not block. nil: an origin that is up.
	Node func() Node
	// Now asks for a heartbeat out of turn; may be nil.
	Now <-chan struct{}
	// OnLost is told of each lease that another owner has now (now.Epoch is the
	// larger one, except among peers). The stream is no longer held when it is
	// called; if it was claimed again since, that lease has an epoch above now's.
	// It is called from Run and from Claim, without locks, and must not block:
	// leases are not renewed meanwhile. May be nil.
	OnLost func(stream string, now Lease)
	// OnKicked is told that an operator ended the ownership of a stream that was held
	// here: its publisher is to be cut. As for OnLost; may be nil.
	OnKicked func(k Kicked)
	// Dial is how the Holder finds out whether an owner that is in the way of a claim is
	// dead, in which case it need not wait for the end of its lease. nil: it waits.
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	Logger  *slog.Logger // may be nil
	Metrics *metrics.Set // may be nil; one Holder to a set
}

// Holder keeps the leases of an origin's streams: it claims them, renews them all
// in one call every third of the TTL, and notices when one was lost. Safe for
// concurrent use.
//
// Where the directory can be watched it learns of a loss at once, else with the
// next renewal. A process that was stopped for a while and goes on renews before
// anything else, because others may have taken its streams meanwhile.
//
// When the directory is unavailable, held streams stay held, and a claim is
// granted provisionally with an epoch of the node's own clock. When it is back,
// the next renewal announces everything; for each stream the later epoch wins.
// Renewals are jittered, so that nodes come back spread over a third of the TTL.
//
// The Holder does not tell the publishers of its own node apart: a claim of a
// stream that the node holds succeeds. Calls for one stream are carried out one
// after the other. The epoch of a held lease can grow, when the directory has to
// grant it anew after an outage: Own has the one in force.
type Holder struct {
	// Static.
	cfg      HolderConfig
	dir      Directory
	resolver *Resolver
	log      *slog.Logger
	met      holderMetrics

	wake chan struct{} // holds one token if there are dirty leases
	thaw chan struct{} // holds one token if this process has been stopped for a while

	mu       sync.Mutex // guards all below; not held during calls
	held     map[string]*holding
	busy     map[string]chan struct{} // streams with a call under way; closed at its end
	doubts   map[string]struct{}      // streams; see doubt
	epochs   epochClock
	kicks    kicks // heard of lately, and bans
	renewing int   // renewals under way
	// beat and leases are what became of the last heartbeat and of the last claim
	// or renewal: nil if the directory answered.
	beat, leases error
}

// holding is guarded by Holder.mu.
type holding struct {
	lease Lease
	dirty bool // to be renewed now rather than in time
	// granted: by the directory, which knew of the bans then. One of before that is heard
	// of only now had been lifted.
	granted bool
}

type holderMetrics struct {
	provisional, lost, kicked, dead *metrics.Counter
}

// ClaimOptions are the choices of a claim.
type ClaimOptions struct {
	Replace bool // take the stream from a live owner
	// Publisher names the publisher, as in Claim.
	Publisher string
}

// NewInstance returns a random name for one run of a node.
func NewInstance() string { return rand.Text()[:16] }

// NewHolder returns a holder of leases of dir. Run must run for the leases to
// last longer than their TTL. An empty Self.Instance is filled in.
func NewHolder(dir Directory, cfg HolderConfig) *Holder {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = metrics.NewSet()
	}
	if cfg.Self.Instance == "" {
		cfg.Self.Instance = NewInstance()
	}
	h := &Holder{
		cfg: cfg, dir: dir, resolver: NewResolver(dir, cfg.Config, cfg.Logger, cfg.Metrics), log: cfg.Logger,
		met: holderMetrics{
			provisional: cfg.Metrics.NewCounter(`weir_discovery_provisional_claims_total`),
			lost:        cfg.Metrics.NewCounter(`weir_discovery_leases_lost_total`),
			kicked:      cfg.Metrics.NewCounter(`weir_discovery_leases_kicked_total`),
			dead:        cfg.Metrics.NewCounter(`weir_discovery_dead_owners_total`),
		},
		wake: make(chan struct{}, 1),
		thaw: make(chan struct{}, 1),
		held: make(map[string]*holding),
		busy: make(map[string]chan struct{}), kicks: make(kicks), doubts: make(map[string]struct{}),
	}
	cfg.Metrics.NewGauge(`weir_discovery_leases_held`, func() float64 {
		h.mu.Lock()
		defer h.mu.Unlock()
		return float64(len(h.held))
	})
	cfg.Metrics.NewGauge(`weir_discovery_connected`, func() float64 {
		if h.Connected() {
			return 1
		}
		return 0
	})
	return h
}

// Connected reports whether Err is nil.
func (h *Holder) Connected() bool { return h.Err() == nil }

// Err returns why this node is not in the directory as it should be: the failure
// of the last heartbeat or, while streams are held, of the last claim or renewal;
// else nil. An error that is not ErrUnavailable is a refusal, such as of a wrong
// token. It is for readiness and the console; nothing that runs depends on it.
func (h *Holder) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.beat == nil && len(h.held) > 0 {
		return h.leases
	}
	return h.beat
}

// Claim takes the lease of a stream for this node, or confirms it and ends its
// idle time. The error is a *ConflictError if another node holds it; then this
// node does not, and if it did before, OnLost has been told. An owner that is dead is
// none (see HolderConfig.Dial). If the directory is
// unavailable the lease is granted provisionally, unless this node has learned of
// an owner whose lease has not run out yet. Other errors are refusals (ErrFull,
// ErrInvalid, a wrong token) and the end of ctx.
func (h *Holder) Claim(ctx context.Context, stream string, opts ClaimOptions) (Lease, error) {
	done, err := h.begin(ctx, stream)
	if err != nil {
		return Lease{}, fmt.Errorf("claim stream %s: %w", stream, err)
	}
	lease, lost, err := h.claim(ctx, stream, opts)
	done()
	h.resolver.followers.deliver()
	if lost != nil { // after done: OnLost may release the stream
		h.tellLost(stream, *lost)
	}
	return lease, err
}

// claim expects the stream to be busy for this call. lost is the owner to whom a
// held lease was lost, of which the caller must tell.
func (h *Holder) claim(ctx context.Context, stream string, opts ClaimOptions) (l Lease, lost *Lease, err error) {
	c := Claim{
		Stream: stream, Node: h.cfg.Self.Node, Instance: h.cfg.Self.Instance, Addr: h.cfg.Self.Addr,
		TTL: h.cfg.Config.LeaseTTL, Replace: opts.Replace, Publisher: opts.Publisher,
	}
	if err := c.check(); err != nil { // before it could be granted provisionally
		return Lease{}, nil, fmt.Errorf("claim stream: %w", err)
	}
	_, kicker := h.dir.(Kicker)
	asked := time.Now()
	h.mu.Lock()
	if old := h.held[stream]; old != nil {
		c.Held = old.lease.Epoch
	}
	ban := h.kicks.ban(stream, asked)
	h.mu.Unlock()
	if ban != nil && !kicker { // the only one who knows
		return Lease{}, nil, ban
	}
	lease, err := h.dir.Claim(ctx, c)
	var conflict *ConflictError
	if errors.As(err, &conflict) && h.dead(ctx, conflict.Lease, true) {
		c.Dead = conflict.Lease.Epoch
		asked = time.Now()
		if l, again := h.dir.Claim(ctx, c); !errors.Is(again, ErrInvalid) { // a server of before knows no such claim
			lease, err = l, again
		}
	}
	switch {
	case ctx.Err() != nil && err != nil:
		h.doubt(stream)
		return Lease{}, nil, fmt.Errorf("claim stream %s: %w", stream, context.Cause(ctx))
	case err == nil:
		h.reached(nil)
		lease.Expires = asked.Add(c.TTL)
		if k := h.hold(lease, true); k != nil {
			return Lease{}, nil, &BannedError{*k}
		}
		return lease, nil, nil
	case errors.As(err, new(*BannedError)):
		h.reached(nil)
		return Lease{}, nil, err
	case errors.As(err, &conflict):
		h.reached(nil)
		if h.drop(stream, conflict.Lease) {
			lost = &conflict.Lease
		}
		return Lease{}, lost, conflict
	case !errors.Is(err, ErrUnavailable):
		if errors.Is(err, ErrRefused) {
			h.reached(err)
		}
		return Lease{}, nil, err
	}
	h.reached(err)
	lease = Lease{
		Stream: stream, Node: c.Node, Instance: c.Instance, Epoch: c.Held, Addr: c.Addr, Publisher: c.Publisher,
		Expires: asked.Add(c.TTL),
	}
	if ban != nil {
		return Lease{}, nil, ban
	}
	if lease.Epoch == 0 {
		owner, ok := h.resolver.known(stream)
		same := opts.Publisher != "" && owner.Publisher == opts.Publisher
		if ok && !opts.Replace && !owner.Idle && !same && time.Now().Before(owner.Expires) && owner.Instance != c.Instance &&
			!h.dead(ctx, owner, false) {
			return Lease{}, nil, &ConflictError{Lease: owner}
		}
		h.mu.Lock()
		h.epochs.see(owner.Epoch, asked)
		lease.Epoch = h.epochs.next(asked)
		h.mu.Unlock()
		h.met.provisional.Inc()
		h.log.Warn("stream taken without the directory", "stream", stream, "epoch", lease.Epoch, "err", err)
	}
	h.hold(lease, false)
	return lease, nil, nil
}

// hold records a lease that this node has, granted by the directory or else by itself,
// or returns the kick that has ended it meanwhile.
func (h *Holder) hold(l Lease, granted bool) *Kicked {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.epochs.see(l.Epoch, time.Now())
	if k := h.kicks[l.Stream]; k != nil && l.Epoch <= k.Epoch {
		return &k.Kicked
	}
	e := h.held[l.Stream]
	if e == nil {
		e = &holding{}
		h.held[l.Stream] = e
	}
	wasIdle := e.lease.Idle
	e.granted = granted || e.granted && e.lease.Epoch == l.Epoch
	e.lease = l
	h.resolver.followers.note(l, 0)
	// A renewal under way may carry the idle mark of before and arrive after
	// this claim: send another behind it.
	if h.renewing > 0 || wasIdle != l.Idle {
		h.markDirty(e)
	}
	return nil
}

// drop learns that another owner has the stream now, and reports whether this
// node held it before. The caller lets the followers be told, once the stream is
// not busy any more.
func (h *Holder) drop(stream string, now Lease) bool {
	h.mu.Lock()
	h.epochs.see(now.Epoch, time.Now())
	e := h.held[stream]
	delete(h.held, stream)
	h.mu.Unlock()
	h.resolver.learn(now)
	return e != nil
}

func (h *Holder) tellLost(stream string, now Lease) {
	h.met.lost.Inc()
	h.log.Warn("stream lost to another owner", "stream", stream, "owner", now.Node, "epoch", now.Epoch)
	if h.cfg.OnLost != nil {
		h.cfg.OnLost(stream, now)
	}
}

// SetIdle marks a held stream as one whose publisher is gone (another node may
// then claim it), or as live again. It returns at once; the directory is told by
// Run. To make sure that the stream is still held, end the idle time by Claim
// instead. Streams that are not held are ignored.
func (h *Holder) SetIdle(stream string, idle bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.held[stream]; e != nil && e.lease.Idle != idle {
		e.lease.Idle = idle
		h.markDirty(e)
	}
}

// SetPublisher says that a held stream has another publisher now; see ClaimOptions. It
// returns at once, as SetIdle does. Streams that are not held are ignored.
func (h *Holder) SetPublisher(stream, publisher string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.held[stream]; e != nil && e.lease.Publisher != publisher {
		e.lease.Publisher = publisher
		h.markDirty(e)
	}
}

// markDirty expects mu to be held.
func (h *Holder) markDirty(e *holding) {
	e.dirty = true
	select {
	case h.wake <- struct{}{}:
	default: // Run has been told already
	}
}

// Release gives a held stream up. It is no longer held when Release returns, also
// with an error; if the directory could not be told, Run tells it later, unless the
// lease has ended by then.
// Streams that are not held are ignored.
func (h *Holder) Release(ctx context.Context, stream string) error {
	done, err := h.begin(ctx, stream)
	if err != nil {
		// Somebody else is at it; at least do not renew it.
		h.letGo(stream)
		h.doubt(stream)
		h.resolver.followers.deliver()
		return fmt.Errorf("release stream %s: %w", stream, err)
	}
	defer h.resolver.followers.deliver()
	defer done()
	e := h.letGo(stream)
	if e == nil {
		return nil
	}
	err = h.dir.Release(ctx, e.lease)
	var conflict *ConflictError
	if !errors.As(err, &conflict) {
		if err != nil {
			h.doubt(stream)
		}
		return err
	}
	if now := conflict.Lease; now.Node != e.lease.Node || now.Instance != e.lease.Instance {
		h.resolver.learn(now)
		return nil // another owner came first: nothing is left to release
	}
	// A claim of ours was granted, but its answer was lost.
	if err = h.dir.Release(ctx, conflict.Lease); errors.As(err, &conflict) {
		return nil
	}
	if err != nil {
		h.doubt(stream)
	}
	return err
}

// letGo ends that a stream is held, and returns what was held. The caller lets the
// followers be told.
func (h *Holder) letGo(stream string) *holding {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.held[stream]
	if e != nil {
		delete(h.held, stream)
		h.resolver.followers.end(stream, e.lease.Epoch)
	}
	return e
}

// Lookup implements Finder: streams of this node are answered at once, others
// from the cache or the directory (see Resolver).
func (h *Holder) Lookup(ctx context.Context, stream string) (Lease, error) {
	if l, err := h.Own(ctx, stream); err == nil {
		return l, nil
	}
	l, err := h.resolver.Lookup(ctx, stream)
	if err == nil && h.cfg.Self.is(l) {
		// The directory has not heard yet that it was given up, or of this run.
		return Lease{}, fmt.Errorf("look up stream %s: %w", stream, ErrNotFound)
	}
	return l, err
}

// Nodes lists nodes as Resolver.Nodes does.
func (h *Holder) Nodes(ctx context.Context, q NodeQuery) ([]Node, string, error) {
	return h.resolver.Nodes(ctx, q)
}

// Own is a LookupFunc that knows only the streams of this node. It is what an
// origin answers SRS's clusters question with.
func (h *Holder) Own(_ context.Context, stream string) (Lease, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.held[stream]; e != nil {
		return e.lease, nil
	}
	return Lease{}, ErrNotFound
}

// Doubt makes the next Lookup of a stream of another node ask the directory (see
// Resolver.Doubt).
func (h *Holder) Doubt(stream string) { h.resolver.Doubt(stream) }

// Follow calls f with each change of the stream's ownership that this node makes
// or learns of (see Resolver.Follow): its own claims and releases are among them,
// before they return, and owners to whom a stream was lost, before OnLost. f may
// call the Holder, but not Claim and Release, which wait.
func (h *Holder) Follow(stream string, f func(Lease)) (stop func()) {
	h.mu.Lock()
	if e := h.held[stream]; e != nil {
		stop = h.resolver.followers.add(stream, f, &e.lease)
	} else {
		stop = h.resolver.follow(stream, f)
	}
	h.mu.Unlock()
	h.resolver.followers.deliver()
	return stop
}

// begin waits until no call for the stream is under way and starts one. The
// caller must call done at its end.
func (h *Holder) begin(ctx context.Context, stream string) (done func(), err error) {
	for {
		h.mu.Lock()
		other, busy := h.busy[stream]
		if !busy {
			done = h.start(stream)
			h.mu.Unlock()
			return done, nil
		}
		h.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// tryBegin is begin for callers that can come back later; done is nil if a call
// is under way.
func (h *Holder) tryBegin(stream string) (done func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, busy := h.busy[stream]; busy {
		return nil
	}
	return h.start(stream)
}

// start expects mu to be held.
func (h *Holder) start(stream string) (done func()) {
	c := make(chan struct{})
	h.busy[stream] = c
	return func() {
		h.mu.Lock()
		delete(h.busy, stream)
		h.mu.Unlock()
		close(c)
	}
}

// Run renews the leases and sends heartbeats until ctx ends. Then it gives all
// leases back and says goodbye, which takes at most the timeout of a call, and
// returns nil. Call it once.
func (h *Holder) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { heartbeats(ctx, h.dir, h.cfg.Config.Heartbeat, h.cfg.Now, h.node, h.log, h.heard) })
	wg.Go(func() { h.feelFrost(ctx) })
	h.resolver.told = func(events []Event) { h.watched(ctx, events) }
	wg.Go(func() { _ = h.resolver.Run(ctx) }) // it returns nil
	h.renewals(ctx)
	wg.Wait()

	h.mu.Lock()
	for stream, e := range h.held {
		h.resolver.followers.end(stream, e.lease.Epoch)
	}
	clear(h.held)
	h.mu.Unlock()
	h.resolver.followers.deliver()
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.cfg.Config.Timeout)
	defer cancel()
	if err := h.dir.Goodbye(bye, h.cfg.Self.Node, h.cfg.Self.Instance); err != nil {
		h.log.Warn("goodbye to the directory failed", "err", err)
	}
	return nil
}

func (h *Holder) node() Node {
	n := Node{Role: RoleOrigin, State: StateUp}
	if h.cfg.Node != nil {
		n = h.cfg.Node()
	}
	n.ID, n.Instance, n.Addr = h.cfg.Self.Node, h.cfg.Self.Instance, h.cfg.Self.Addr
	return n
}
