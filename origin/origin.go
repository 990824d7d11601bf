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
	Release(ctx context.Context, stream string) error
	Lookup(ctx context.Context, stream string) (discovery.Lease, error)
}

// Origin is the role. It implements session.Role. Safe for concurrent use.
type Origin struct {
	// Static.
	cfg     Config
	node    string
	table   *vhost.Table
	owner   Owner
	log     *slog.Logger
	set     *metrics.Set
	running sync.WaitGroup // HLS of the publications

	redirects *metrics.Counter

	mu      sync.Mutex
	streams map[string]*publication // guarded by mu; by stream key
	ended   map[string]*hls.Store   // guarded by mu; playlists that linger
	changed chan struct{}           // guarded by mu; closed and replaced when a stream comes
	stopped bool                    // guarded by mu
}

// New returns the role. owner may be set later, before anything is served.
func New(cfg Config, log *slog.Logger, set *metrics.Set) *Origin {
	o := &Origin{
		cfg: cfg, node: cfg.Node.Name("origin"), table: vhost.NewTable(cfg.Vhosts), log: log, set: set,
		redirects: set.NewCounter("weir_redirects_total"),
		streams:   map[string]*publication{}, ended: map[string]*hls.Store{}, changed: make(chan struct{}),
	}
	set.NewGauge("weir_streams", func() float64 { n, _ := o.held(); return float64(n) })
	set.NewGauge("weir_log_bytes", func() float64 { _, n := o.held(); return float64(n) })
	return o
}

// held returns the number of streams and the memory of their logs in bytes.
func (o *Origin) held() (streams int, bytes int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range o.streams {
		bytes += p.stream.Stats().LogBytes
	}
	return len(o.streams), bytes
}

// SetOwner gives the origin its leases. To be called once, before it serves.
func (o *Origin) SetOwner(owner Owner) { o.owner = owner }

// Vhosts returns the table of the origin's tenants.
func (o *Origin) Vhosts() *vhost.Table { return o.table }

// Close ends all streams and waits for their HLS.
func (o *Origin) Close() {
	o.mu.Lock()
	o.stopped = true
	all := make([]*publication, 0, len(o.streams))
	for _, p := range o.streams {
		all = append(all, p)
	}
	o.mu.Unlock()
	for _, p := range all {
		p.finish(errShutdown)
	}
	o.running.Wait()
}

var (
	errShutdown = errors.New("the origin stops")
	errEnded    = errors.New("the stream has ended")
	errLost     = errors.New("the stream belongs to another origin now")
)

// Lost tells the origin that another one owns a stream now.
func (o *Origin) Lost(stream string, now discovery.Lease) {
	o.mu.Lock()
	p := o.streams[stream]
	o.mu.Unlock()
	if p == nil || p.epochOf() >= now.Epoch {
		return
	}
	o.log.Warn("stream lost to another origin", "stream", stream, "owner", now.Node, "epoch", now.Epoch)
	// Not from here: the caller must not be kept waiting for the publisher.
	o.running.Go(func() {
		p.cut("lost_lease")
		p.finish(errLost)
	})
}

// Play implements session.Role.
func (o *Origin) Play(ctx context.Context, r session.PlayRequest) (session.Feed, error) {
	var feed session.Feed
	err := o.find(ctx, r.Target, func(p *publication) {
		feed = session.Feed{Stream: p.stream, Epoch: p.epochOf(), Release: func() {}}
	})
	return feed, err
}

// HLS implements session.Role.
func (o *Origin) HLS(ctx context.Context, r session.HLSRequest) (hls.Object, error) {
	if !r.Target.Vhost.Config.HLS.Enabled {
		return hls.Object{}, session.ErrNotFound
	}
	var store *hls.Store
	err := o.find(ctx, r.Target, func(p *publication) { store = p.hls.Store() })
	if errors.Is(err, session.ErrNotFound) {
		o.mu.Lock()
		store = o.ended[r.Target.Key.String()]
		o.mu.Unlock()
		if store == nil {
			return hls.Object{}, err
		}
		err = nil
	}
	if err != nil {
		return hls.Object{}, err
	}
	wait, cancel := context.WithTimeout(ctx, r.Target.Vhost.Config.HLS.Wait)
	defer cancel()
	return store.Get(wait, r.File), nil
}

// lookEvery is how often the directory is asked while players wait for a stream
// that may come anywhere.
const lookEvery = 300 * time.Millisecond

// find calls found with the stream if it is here. Otherwise the error says where
// it is, or that it is nowhere, after the time that players may wait for it.
func (o *Origin) find(ctx context.Context, t vhost.Target, found func(*publication)) error {
	key := t.Key.String()
	deadline := time.Now().Add(o.cfg.Play.WaitPublisher)
	for {
		o.mu.Lock()
		p, changed := o.streams[key], o.changed
		o.mu.Unlock()
		if p != nil {
			found(p)
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
	return &session.Redirect{RTMP: l.Addr.RTMP, HTTP: l.Addr.HTTP}
}

// Streams lists the streams for the admin API. players counts those of a key.
func (o *Origin) Streams(players func(vhost.Key) int) []admin.StreamInfo {
	o.mu.Lock()
	all := make([]*publication, 0, len(o.streams))
	for _, p := range o.streams {
		all = append(all, p)
	}
	o.mu.Unlock()
	infos := make([]admin.StreamInfo, len(all))
	for i, p := range all {
		infos[i] = p.info()
		infos[i].Players = players(p.target.Key)
	}
	return infos
}

// conflict is the answer to a publisher whose name is taken.
func conflict(where string) error {
	return &session.Refusal{Code: session.Conflict, Text: fmt.Sprintf("This stream is being published already%s.", where)}
}
