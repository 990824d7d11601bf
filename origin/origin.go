// Package origin is the origin role: it takes publishers, owns their streams in
// the cluster, serves them to edges and players, cuts their HLS, and sends
// whoever asks for another origin's stream to its owner.
package origin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/discovery"
	"weir/hls"
	"weir/internal/admin"
	"weir/internal/session"
	"weir/internal/vhost"
)

// Owner is what an origin needs of discovery: the leases of its streams.
// *discovery.Holder is one.
type Owner interface {
	Claim(ctx context.Context, stream string, opts discovery.ClaimOptions) (discovery.Lease, error)
	SetIdle(stream string, idle bool)
	SetPublisher(stream, publisher string)
	Release(ctx context.Context, stream string) error
	Lookup(ctx context.Context, stream string) (discovery.Lease, error)
	Follow(stream string, f func(discovery.Lease)) (stop func())
}

// Origin is the role. It implements session.Role. Safe for concurrent use.
type Origin struct {
	// Static.
	cfg      Config
	node     string
	table    *vhost.Table
	owner    Owner
	log      *slog.Logger
	set      *metrics.Set
	askedFor time.Duration  // the constant, less in tests
	running  sync.WaitGroup // HLS of the publications, and their ends

	others *discovery.Elsewhere
	placer placer // nil: nobody schedules

	redirects *metrics.Counter
	takeovers *metrics.Counter // by standby publishers
	carried   *metrics.Counter // publishers at their owners now; goes down as well

	mu        sync.Mutex              // guards all below, and the publications
	streams   map[string]*publication // by stream key
	lingering map[string]*hls.Store   // playlists of streams that have ended
	changed   chan struct{}           // closed and replaced when a stream comes
	stopped   bool
}

// New returns the role. owner may be set later, before anything is served.
func New(cfg Config, log *slog.Logger, set *metrics.Set) *Origin {
	o := &Origin{
		cfg: cfg, node: cfg.Node.Name("origin"), askedFor: askedFor, table: vhost.NewTable(cfg.Vhosts), log: log, set: set,
		others:    discovery.NewElsewhere(nil, ""),
		redirects: set.NewCounter("weir_redirects_total"),
		takeovers: set.NewCounter("weir_standby_takeovers_total"),
		carried:   set.NewCounter("weir_forwards"),
		streams:   map[string]*publication{}, lingering: map[string]*hls.Store{}, changed: make(chan struct{}),
	}
	set.NewCounter("weir_moves_failed_total")
	set.NewGauge("weir_streams", func() float64 { n, _, _ := o.held(); return float64(n) })
	set.NewGauge("weir_standby_publishers", func() float64 { _, n, _ := o.held(); return float64(n) })
	set.NewGauge("weir_log_bytes", func() float64 { _, _, n := o.held(); return float64(n) })
	return o
}

// held returns the number of streams and of standby publishers, and the memory of their
// logs in bytes.
func (o *Origin) held() (streams, standbys int, bytes int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range o.streams {
		bytes += p.stream.Stats().LogBytes
		if p.standby != nil {
			standbys++
			bytes += p.standby.log.Stats().LogBytes
		}
	}
	return len(o.streams), standbys, bytes
}

// SetOwner gives the origin its leases. To be called once, before it serves.
func (o *Origin) SetOwner(owner Owner) { o.owner = owner }

// SetDirectory tells the origin where it finds other nodes. To be called once,
// before it serves.
func (o *Origin) SetDirectory(d discovery.Directory) {
	o.others = discovery.NewElsewhere(d, o.node)
	o.placer, _ = d.(placer)
}

// Vhosts returns the table of the origin's tenants.
func (o *Origin) Vhosts() *vhost.Table { return o.table }

// Close ends all streams and waits for their HLS.
func (o *Origin) Close() {
	var present []*session.Publisher
	o.mu.Lock()
	o.stopped = true
	for _, p := range o.streams {
		present = append(present, p.publishers()...)
		if p.end() {
			o.running.Go(func() { p.finish(errShutdown) })
		}
	}
	o.mu.Unlock()
	for _, s := range present {
		s.End(reasonShutdown)
	}
	o.running.Wait()
}

var (
	errShutdown = errors.New("the origin stops")
	errEnded    = errors.New("the stream has ended")
	errKicked   = errors.New("the stream was ended by an operator")
)

// movedTo is the cause that the stream of a lost lease is closed with.
func movedTo(now discovery.Lease) error {
	return &session.Redirect{RTMP: now.Addr.RTMP, HTTP: now.Addr.HTTP, Epoch: now.Epoch}
}

// Lost tells the origin that another one owns a stream now.
func (o *Origin) Lost(stream string, now discovery.Lease) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.streams[stream]
	switch {
	case p == nil || p.epoch >= now.Epoch: // claimed again meanwhile
		return
	case p.claim != nil: // its answer is the later one
		if now.Epoch > p.claim.lostTo.Epoch {
			p.claim.lostTo = now
		}
		return
	case !p.end():
		return
	}
	o.log.Warn("stream lost to another origin", "stream", stream, "owner", now.Node, "epoch", now.Epoch)
	all := p.publishers()
	// Not from here: leases are not renewed while the caller waits.
	o.running.Go(func() {
		for _, s := range all {
			s.End(reasonLost)
		}
		p.finish(movedTo(now))
	})
}

// Kicked tells the origin that an operator has ended a stream that it had. Its lease
// has ended.
func (o *Origin) Kicked(k discovery.Kicked) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.streams[k.Stream]
	switch {
	case p == nil || p.epoch > k.Epoch && !k.Banned(time.Now()): // claimed again meanwhile
		return
	case p.claim != nil: // it may have been granted before
		p.claim.kicked = k
		return
	case !p.end():
		return
	}
	all := p.publishers()
	o.running.Go(func() { // not from here, as in Lost
		for _, s := range all {
			s.End(session.Kicked)
		}
		p.finish(errKicked)
	})
}

// banned is the answer to a publisher of a stream that nobody may publish now.
func banned(b *discovery.BannedError) error {
	text := fmt.Sprintf("Nobody may publish this stream for another %v.", b.Left())
	if b.Kicked.Reason != "" {
		text = fmt.Sprintf("Nobody may publish this stream for another %v: %s", b.Left(), b.Kicked.Reason)
	}
	return &session.Refusal{Code: session.Banned, Text: text}
}

// live returns the publication that players may have, or nil. o.mu is held.
func (o *Origin) live(key string) *publication {
	if p := o.streams[key]; p != nil && p.shown && !p.ended {
		return p
	}
	return nil
}

// Play implements session.Role.
func (o *Origin) Play(ctx context.Context, r session.PlayRequest) (session.Feed, error) {
	var feed session.Feed
	err := o.find(ctx, r.Target, o.patience(r.Peer), func(p *publication) {
		feed = session.Feed{Stream: p.stream, Epoch: o.told(p.epoch), Release: func() {}}
	})
	return feed, err
}

// HLS implements session.Role.
func (o *Origin) HLS(ctx context.Context, r session.HLSRequest) (hls.Object, error) {
	if !r.Target.Vhost.Config.HLS.Enabled {
		return hls.Object{}, session.ErrNotFound
	}
	key, patience := r.Target.Key.String(), o.patience(r.Peer)
	o.mu.Lock()
	store := o.lingering[key]
	o.mu.Unlock()
	if store != nil { // a viewer of its end is not to wait for a new beginning
		patience = 0
	}
	err := o.find(ctx, r.Target, patience, func(p *publication) { store = p.hls.Store() })
	if err != nil && (store == nil || !errors.Is(err, session.ErrNotFound)) {
		return hls.Object{}, err
	}
	wait, cancel := context.WithTimeout(ctx, r.Target.Vhost.Config.HLS.Wait)
	defer cancel()
	return store.Get(wait, r.File), nil
}

// patience is how long a request waits for a publisher. A node is answered at
// once: its own players wait there, and it has other upstreams to ask.
func (o *Origin) patience(p session.Peer) time.Duration {
	if p.Node != "" {
		return 0
	}
	return o.cfg.Play.WaitPublisher
}

// lookEvery is how often the directory is asked while players wait for a stream
// that may come anywhere.
const lookEvery = 300 * time.Millisecond

// find calls found, with mu held, with the stream if it is here. Otherwise the
// error says where it is, or that it was nowhere for as long as patience.
func (o *Origin) find(ctx context.Context, t vhost.Target, patience time.Duration, found func(*publication)) error {
	key := t.Key.String()
	deadline := time.Now().Add(patience)
	for {
		o.mu.Lock()
		changed, p := o.changed, o.live(key)
		if p != nil {
			found(p)
		}
		o.mu.Unlock()
		if p != nil {
			return nil
		}
		err := o.elsewhere(ctx, key)
		left := time.Until(deadline)
		if !errors.Is(err, session.ErrNotFound) || left <= 0 {
			return err
		}
		timer := time.NewTimer(min(left, lookEvery))
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// elsewhere asks who owns a stream that is not here.
func (o *Origin) elsewhere(ctx context.Context, key string) error {
	l, err := o.owner.Lookup(ctx, key)
	switch {
	case errors.Is(err, discovery.ErrNotFound):
		return session.ErrNotFound
	case err != nil:
		return &session.Refusal{Code: session.Unavailable, Text: "The owner of the stream cannot be found out now.", Err: err}
	case l.Node == o.node: // a lease of this node's last run: it has no stream any more
		return session.ErrNotFound
	}
	o.redirects.Inc()
	return movedTo(l)
}

// told returns an epoch as other nodes are told it. An origin that shares no
// directory with others says nothing: epochs of such origins, to which an encoder
// may publish at the same time, do not tell a later owner from an earlier one.
func (o *Origin) told(epoch uint64) uint64 {
	if !o.cfg.Discovery.Configured() {
		return 0
	}
	return epoch
}

// Streams lists the streams for the admin API. players counts those of a key.
func (o *Origin) Streams(players func(vhost.Key) int) []admin.StreamInfo {
	var keys []vhost.Key
	var infos []admin.StreamInfo
	o.mu.Lock()
	for key, p := range o.streams {
		if o.live(key) != nil {
			keys, infos = append(keys, p.target.Key), append(infos, p.info())
		}
	}
	o.mu.Unlock()
	for i, key := range keys {
		infos[i].Players = players(key)
	}
	return infos
}

// conflict is the answer to a publisher whose name is taken.
func conflict(where string) error {
	return &session.Refusal{Code: session.Conflict, Text: fmt.Sprintf("This stream is being published already%s.", where)}
}
