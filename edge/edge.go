// Package edge is the edge role: it serves players, pulls each stream once per
// node from upstream, forwards publishers upstream, and caches HLS.
//
// A node is a supervisor (Node) with one worker process per core (Worker). Inside
// a worker an Edge relays streams; the workers of a node agree on which of them
// pulls a stream, and the others attach to that one.
package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/discovery"
	"weir/hls"
	"weir/internal/admin"
	"weir/internal/session"
	"weir/internal/vhost"
)

// Edge is one worker's role. It implements session.Role.
type Edge struct {
	// Static after New.
	cfg      Config
	node     string
	table    *vhost.Table
	log      *slog.Logger
	metrics  edgeMetrics
	owners   *discovery.Resolver // nil without discovery
	origins  func(ctx context.Context) ([]discovery.Node, error)
	pulls    groups // for pulls: the upstreams that speak pull.protocol
	pushes   groups // for publishers: those that speak RTMP
	https    groups // for HLS
	health   *health
	others   *discovery.Elsewhere
	epochs   *epochs
	tcp      *net.Dialer // to upstreams
	names    *resolver
	siblings *siblings
	beat     func(own bool) (every, at time.Duration) // of the players' batches; see Options
	cache    *hls.Cache
	fetcher  *fetcher
	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup // relays, and players on their way here

	mu       sync.Mutex
	relays   map[string]*relay     // guarded by mu; by stream key
	coming   map[string]int        // guarded by mu; players that other workers pass and that are not here yet, by stream key
	forwards map[*forward]struct{} // guarded by mu
	stopped  bool                  // guarded by mu
}

type edgeMetrics struct {
	set         *metrics.Set
	pulls       *metrics.Counter // under way; goes down as well
	redirects   *metrics.Counter
	forwards    *metrics.Counter // under way; goes down as well
	forwardLost *metrics.Counter
	carried     *metrics.Counter
	loops       *metrics.Counter
	older       *metrics.Counter
	passed      *metrics.Counter
	notPassed   *metrics.Counter
}

func newMetrics(set *metrics.Set) edgeMetrics {
	return edgeMetrics{
		set:         set,
		pulls:       set.NewCounter("weir_pulls"),
		redirects:   set.NewCounter("weir_pull_redirects_total"),
		forwards:    set.NewCounter("weir_forwards"),
		forwardLost: set.NewCounter("weir_forward_upstream_lost_total"),
		carried:     set.NewCounter("weir_forward_moved_total"),
		loops:       set.NewCounter("weir_pull_loops_total"),
		older:       set.NewCounter("weir_pull_earlier_owner_total"),
		passed:      set.NewCounter("weir_players_passed_total"),
		notPassed:   set.NewCounter("weir_players_pass_failed_total"),
	}
}

// pullEnded counts why a pull that had begun ended.
func (m *edgeMetrics) pullEnded(err error) {
	reason := "lost"
	switch {
	case errors.Is(err, io.EOF):
		reason = "stream_ended"
	case errors.Is(err, errLater), errors.Is(err, errOlder):
		reason = "earlier_owner"
	}
	m.set.GetOrCreateCounter(fmt.Sprintf("weir_pulls_ended_total{reason=%q}", reason)).Inc()
}

// Options are what an Edge needs beyond its configuration.
type Options struct {
	// Directory is the discovery that the node asks; nil without.
	Directory discovery.Remote
	// Index and Count number the worker among those of the node; DialSibling
	// connects to another one. A Count of 1 needs no DialSibling.
	Index, Count int
	DialSibling  func(ctx context.Context, index int) (net.Conn, error)
	// Beat, if not nil, returns the time between two batches that players get, 0 if
	// they get frames at once, and when they come (see fanout.Engine.Beat): upstreams are
	// read as often.
	Beat func(own bool) (every, at time.Duration)
	Log  *slog.Logger
	Set  *metrics.Set
}

// New returns the role of one worker. Close ends it.
func New(cfg Config, o Options) *Edge {
	e := &Edge{
		cfg:     cfg,
		node:    cfg.Node.Name("edge"),
		table:   vhost.NewTable(cfg.Vhosts),
		log:     o.Log,
		metrics: newMetrics(o.Set),
		health:  newHealth(cfg.Pull.Eject),
		epochs:  newEpochs(),
		tcp:     newDialer(cfg.Pull),
		relays:  map[string]*relay{}, coming: map[string]int{}, forwards: map[*forward]struct{}{},
	}
	if e.beat = o.Beat; e.beat == nil {
		e.beat = func(bool) (every, at time.Duration) { return 0, 0 }
	}
	e.others = discovery.NewElsewhere(o.Directory, e.node)
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if o.Directory != nil {
		e.owners = discovery.NewResolver(o.Directory, cfg.Discovery, o.Log, o.Set)
		e.owners.OnKicked(e.kicked)
		e.running.Go(func() { _ = e.owners.Run(e.ctx) }) // it returns nil
		if _, ok := o.Directory.(nodeLister); ok {
			e.origins = liveOrigins(e.owners)
		}
	}
	o.Set.NewGauge("weir_streams", func() float64 { n, _ := e.held(); return float64(n) })
	o.Set.NewGauge("weir_log_bytes", func() float64 { _, n := e.held(); return float64(n) })
	e.names = newResolver(cfg.Pull.ResolveTTL)
	e.SetVhosts(cfg.Vhosts)
	e.siblings = newSiblings(e, o)
	e.fetcher = newFetcher(e)
	e.cache = hls.NewCache(cfg.HLSCache, e.fetcher.fetch, o.Set)
	return e
}

// SetVhosts makes other tenants count for requests to come. Those under way, and
// pulls of a tenant that is gone, go on with what they have.
func (e *Edge) SetVhosts(v vhost.Vhosts) {
	e.table.Replace(v)
	pulls, pushes, https := map[string]*upstreams{}, map[string]*upstreams{}, map[string]*upstreams{}
	for _, v := range e.table.All() {
		pulls[v.Name] = e.group(v, preferred(v.Config.Upstreams, e.cfg.Pull.Protocol), e.names)
		pushes[v.Name] = e.group(v, withScheme(v.Config.Upstreams, "rtmp"), e.names)
		https[v.Name] = e.group(v, withScheme(v.Config.Upstreams, "http"), e.names)
	}
	e.pulls.replace(pulls)
	e.pushes.replace(pushes)
	e.https.replace(https)
}

// held returns the number of relayed streams and the memory of their logs in
// bytes.
func (e *Edge) held() (streams int, bytes int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.relays {
		bytes += r.stream.Stats().LogBytes
	}
	return len(e.relays), bytes
}

// Vhosts returns the table of the edge's tenants.
func (e *Edge) Vhosts() *vhost.Table { return e.table }

// Close ends all pulls and waits for them.
func (e *Edge) Close() {
	e.mu.Lock()
	e.stopped = true
	e.mu.Unlock()
	e.cancel()
	e.running.Wait()
	e.siblings.close()
	e.cache.Close()
	e.fetcher.close()
}

func (e *Edge) group(v *vhost.Vhost, list []vhost.Upstream, names *resolver) *upstreams {
	u := &upstreams{list: list, policy: v.Config.Policy, resolver: names, health: e.health}
	if e.owners != nil {
		u.byLoad = e.byLoad
	}
	return u
}

// preferred returns the upstreams that speak the protocol of pulls or, if none
// does, all.
func preferred(all []string, p Protocol) []vhost.Upstream {
	scheme := "rtmp"
	if p == PullFLV {
		scheme = "http"
	}
	if list := withScheme(all, scheme); len(list) > 0 {
		return list
	}
	return withScheme(all, "")
}

// withScheme parses upstreams, which the configuration has checked, and returns
// those of a scheme, or all if it is empty.
func withScheme(all []string, scheme string) []vhost.Upstream {
	var list []vhost.Upstream
	for _, s := range all {
		if u, err := vhost.ParseUpstream(s); err == nil && (scheme == "" || u.Scheme == scheme) {
			list = append(list, u)
		}
	}
	return list
}

// chain returns the nodes that a request came through and this one, or an error
// if it has been here before.
func (e *Edge) chain(p session.Peer) (string, error) {
	if p.Node == "" && p.Via == "" {
		return "", nil
	}
	via := strings.Trim(p.Via+","+p.Node, ",") // another worker of this node names no node: it is no hop
	hops := strings.Split(via, ",")
	if slices.Contains(hops, e.node) || len(hops) > maxTiers {
		e.metrics.loops.Inc()
		return "", circle(fmt.Errorf("%w: through %s to %s (node.id); at most %d nodes", errCircle, via, e.node, maxTiers))
	}
	return via, nil
}

// circleText is what an edge tells another node whose request goes in a circle,
// and what it knows that answer by.
const circleText = "The request goes in a circle."

// errCircle says that a request comes back to a node that it came through.
var errCircle = errors.New("the request goes in a circle")

func circle(cause error) error {
	return &session.Refusal{Code: session.Unavailable, Text: circleText, Err: cause}
}

// maxTiers is how many nodes a request may have come through.
const maxTiers = 8

// Play implements session.Role: it attaches the player to the stream's relay.
func (e *Edge) Play(ctx context.Context, req session.PlayRequest) (session.Feed, error) {
	via, err := e.chain(req.Peer)
	if err != nil {
		return session.Feed{}, err
	}
	r, err := e.attach(req.Target, via, req.OnBeat)
	if err != nil {
		return session.Feed{}, err
	}
	r.learn(req.Epoch)
	patience := e.cfg.Play.WaitPublisher
	if req.Peer.Node != "" {
		patience = 0 // its own players wait there, and it has other upstreams to ask
	}
	if err := r.wait(ctx, patience); err != nil {
		r.detach(req.OnBeat)
		return session.Feed{}, err
	}
	_, epoch, _ := r.state()
	leave := r.leaveOffBeat
	if req.OnBeat {
		leave = r.leaveOnBeat
	}
	return session.Feed{Stream: r.stream, Epoch: epoch, Release: leave}, nil
}

// Streams lists what is pulled and what is forwarded, for the admin API. players
// counts those of a key; a stream that is both has two entries.
func (e *Edge) Streams(players func(vhost.Key) int) []admin.StreamInfo {
	e.mu.Lock()
	all := make([]*relay, 0, len(e.relays))
	for _, r := range e.relays {
		all = append(all, r)
	}
	forwards := slices.Collect(maps.Keys(e.forwards))
	e.mu.Unlock()
	infos := make([]admin.StreamInfo, 0, len(all)+len(forwards))
	for _, f := range forwards {
		infos = append(infos, f.info())
	}
	for _, r := range all {
		flowing, epoch, from := r.state()
		state := "live"
		switch {
		case !flowing:
			state = "waiting"
		case from == "":
			state = "resuming"
		}
		st := r.stream.Stats()
		infos = append(infos, admin.StreamInfo{
			Key: r.key, State: state, Players: players(r.target.Key), BytesIn: st.BytesIn,
			Bitrate: st.Bitrate, Codecs: r.stream.Headers().Codecs(), Epoch: epoch, Source: from,
		})
	}
	return infos
}
