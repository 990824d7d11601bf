package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"weir/discovery"
	"weir/hls"
	"weir/internal/session"
	"weir/internal/vhost"
)

// workerHLSPath is where a worker serves HLS files to the other workers of its
// node, over its unix socket. The parameter uri is the file's.
const workerHLSPath = "/_weir/hls"

// HLS implements session.Role: files come through the worker's cache.
func (e *Edge) HLS(ctx context.Context, req session.HLSRequest) (hls.Object, error) {
	if !req.Target.Vhost.Config.HLS.Enabled {
		return hls.Object{}, session.ErrNotFound
	}
	via, err := e.chain(req.Peer)
	if err != nil {
		return hls.Object{}, err
	}
	o, err := e.fetcher.cached(ctx, req.File.URI(hlsVhost(req.Target.Key.Vhost)), via)
	switch {
	case errors.Is(err, errCircle):
		return hls.Object{}, circle(err)
	case errors.Is(err, errNoUpstream):
		return hls.Object{}, &session.Refusal{Code: session.Unavailable, Text: "HLS of this vhost needs discovery or an upstream with http://.", Err: err}
	case err != nil:
		return hls.Object{}, &session.Refusal{Code: session.Unavailable, Text: "No upstream can be reached for this stream.", Err: err}
	}
	return o, nil
}

// hlsVhost is the vhost as URIs of HLS files carry it: not the default one.
func hlsVhost(name string) string {
	if name == vhost.DefaultName {
		return ""
	}
	return name
}

// fetcher gets HLS files for the cache: from the worker that is to fetch a
// stream's files for the whole node or, if that is this one, from upstream.
type fetcher struct {
	edge    *Edge
	client  *http.Client
	workers []*http.Client // by index
	limit   int64          // bytes of one file

	mu     sync.Mutex
	vias   map[string]string // guarded by mu; by URI of what is asked for now: nodes that the first request came through
	owners map[string]owner  // guarded by mu; by stream key

	met     chan struct{} // closed when the origins have been asked for once
	meeting sync.WaitGroup
}

// owner is the HTTP address of the node that last owned a stream, which has the
// end of its playlist for a while.
type owner struct {
	addr string
	at   time.Time // when discovery named it
}

// maxOwners bounds the map of owners.
const maxOwners = 4096

func newFetcher(e *Edge) *fetcher {
	f := &fetcher{edge: e, limit: int64(e.cfg.HLSCache.MaxObjectBytes), vias: map[string]string{}, owners: map[string]owner{}, met: make(chan struct{})}
	f.client = client(&http.Transport{
		DialContext:           (&net.Dialer{Timeout: e.cfg.Pull.ConnectTimeout}).DialContext,
		ResponseHeaderTimeout: e.cfg.HLSCache.FetchTimeout,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       30 * time.Second,
		DisableCompression:    true,
	})
	for i := range e.siblings.count {
		f.workers = append(f.workers, client(&http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				c, err := e.siblings.dial(ctx, i)
				if err != nil {
					err = fmt.Errorf("%w: %w", errDead, err)
				}
				return c, err
			},
			MaxIdleConnsPerHost: 4,
			IdleConnTimeout:     30 * time.Second,
			DisableCompression:  true,
		}))
	}
	if e.origins != nil {
		f.meeting.Go(func() { f.meet(e.ctx) })
	}
	return f
}

// meetEvery is how often the origins are asked for; meetSoon is for as long as
// none is known.
const meetEvery, meetSoon = time.Minute, 5 * time.Second

// meet has the edge know the origins, which liveOrigins remembers for when the
// directory is away, until ctx ends.
func (f *fetcher) meet(ctx context.Context) {
	for first := true; ; first = false {
		asking, cancel := context.WithTimeout(ctx, f.edge.cfg.Discovery.Timeout)
		nodes, _ := f.edge.origins(asking)
		cancel()
		if first {
			close(f.met)
		}
		pause := meetEvery
		if len(nodes) == 0 {
			pause = meetSoon
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// client returns a client that hands redirects to the caller.
func client(t *http.Transport) *http.Client {
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// close is for after the end of the edge's context.
func (f *fetcher) close() {
	f.meeting.Wait()
	f.client.CloseIdleConnections()
	for _, c := range f.workers {
		c.CloseIdleConnections()
	}
}

// errDead says that a worker cannot be connected to.
var errDead = errors.New("the worker is dead")

// cached returns a file out of the worker's cache, or from where it is fetched.
// via are the nodes that the request came through; of many for one file those
// of the first count.
func (f *fetcher) cached(ctx context.Context, uri, via string) (hls.Object, error) {
	f.mu.Lock()
	_, asked := f.vias[uri]
	if !asked {
		f.vias[uri] = via
	}
	f.mu.Unlock()
	if !asked {
		defer func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.vias, uri)
		}()
	}
	return f.edge.cache.Get(ctx, uri)
}

// fetch implements hls.Fetch. The cache says in its errors what is fetched.
func (f *fetcher) fetch(ctx context.Context, uri string) (hls.Object, error) {
	f.mu.Lock()
	via := f.vias[uri]
	f.mu.Unlock()
	t, err := f.target(uri)
	if err != nil {
		return hls.Object{}, err
	}
	for _, i := range f.edge.siblings.order(t.Key.String()) {
		if i == f.edge.siblings.index {
			break
		}
		o, err := f.get(ctx, f.workers[i], "http://worker"+workerHLSPath+"?"+url.Values{"uri": {uri}}.Encode(), via)
		if errors.Is(err, errDead) {
			continue
		}
		if err == nil {
			err = f.notOlder(t, "worker "+strconv.Itoa(i), o)
		}
		return o, err
	}
	return f.upstream(ctx, t, uri, via)
}

// target returns the stream that a URI made by hls.Request.URI is of.
func (f *fetcher) target(uri string) (vhost.Target, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return vhost.Target{}, err
	}
	file, ok := hls.ParsePath(u.Path)
	if !ok {
		return vhost.Target{}, errors.New("not a file of HLS")
	}
	return f.edge.table.FromHTTP("", "/"+file.App+"/"+file.Name, u.RawQuery)
}

// upstream asks the owner, or the vhost's upstreams in turn, following redirects.
func (f *fetcher) upstream(ctx context.Context, t vhost.Target, uri, via string) (hls.Object, error) {
	candidates, guess, err := f.candidates(ctx, t)
	if errors.Is(err, errGone) {
		return hls.NotFound("stream not found: nobody publishes it"), nil
	}
	if err != nil {
		return hls.Object{}, err
	}
	trail := newTrail(f.edge.cfg.Pull.MaxRedirects)
	var failed, loop error
	var missing *hls.Object
	for _, addr := range candidates {
		if !trail.visit(addr) {
			continue
		}
		trail.redirects = 0
		o, err := f.follow(ctx, t, addr, uri, via, trail)
		if err == nil {
			err = f.notOlder(t, addr, o)
		}
		switch {
		case err == nil && o.Status != http.StatusNotFound:
			return o, nil
		case err == nil:
			missing = &o
		case ctx.Err() != nil:
			return hls.Object{}, ctx.Err()
		case errors.Is(err, errLoop), errors.Is(err, errCircle):
			loop = err
		default:
			failed = err
		}
		f.edge.doubt(t.Key.String())
	}
	switch {
	case failed != nil:
		return hls.Object{}, failed
	case missing != nil && guess != nil: // it may be where nobody was asked
		return hls.Object{}, guess
	case missing != nil:
		return *missing, nil
	case loop != nil:
		return hls.Object{}, loop
	}
	return hls.Object{}, fmt.Errorf("%w: all upstreams were tried", errLoop)
}

// notOlder returns an error if a file is a playlist of an earlier owner than one that
// was fetched before. Where playlists tell none, origins share no epochs.
func (f *fetcher) notOlder(t vhost.Target, from string, o hls.Object) error {
	epoch, ok := hls.PlaylistEpoch(o.Body)
	if o.Status != http.StatusOK || !ok {
		return nil
	}
	key := "hls " + t.Key.String() // its viewers are others than those of the relay
	if err := f.edge.notOlder(key, from, epoch, epoch); err != nil {
		return err
	}
	f.edge.epochs.show(key, epoch)
	return nil
}

// candidates returns the HTTP addresses that may have a stream's files. guess is
// not nil if they are only those of origins that the edge knows, because the
// owner cannot be found out; it says why.
func (f *fetcher) candidates(ctx context.Context, t vhost.Target) (list []string, guess, err error) {
	var asked error
	if f.edge.owners != nil {
		l, err := f.edge.owners.Lookup(ctx, t.Key.String())
		switch {
		case err == nil && l.Addr.HTTP != "":
			f.owns(t.Key.String(), l.Addr.HTTP)
			list = append(list, l.Addr.HTTP)
		case errors.Is(err, discovery.ErrNotFound):
			asked = errGone
			if addr := f.owned(t); addr != "" {
				list = append(list, addr)
			}
		case err != nil:
			asked = err
		}
	}
	picked, err := f.edge.https.of(t.Key.Vhost).pick(ctx, t.Key.String())
	for _, up := range picked {
		list = append(list, up.Addr)
	}
	if len(list) == 0 && errors.Is(asked, discovery.ErrUnavailable) {
		list, guess = f.guess(ctx, t), asked
	}
	switch {
	case len(list) > 0:
		return list, guess, nil
	case asked != nil:
		return nil, nil, asked
	case errors.Is(err, errNoUpstream):
		return nil, nil, fmt.Errorf("%w: vhost %s has no upstream with http:// for HLS", err, t.Key.Vhost)
	}
	return nil, nil, err
}

// maxGuesses is how many origins are asked for a file whose stream's owner cannot
// be found out.
const maxGuesses = 16

// guess returns the HTTP addresses of origins that the edge has heard of: of those
// that the vhost names as upstreams for RTMP or, if it has none, of all; and of
// owners of the vhost's streams. Others may not have this vhost, and another
// stream of that name. Those that failed a moment ago come last.
func (f *fetcher) guess(ctx context.Context, t vhost.Target) []string {
	var all []vhost.Upstream
	group := f.edge.pushes.of(t.Key.Vhost)
	if f.edge.origins != nil {
		upstreams, _ := group.pick(ctx, t.Key.String())
		upstreams = append(slices.Clone(upstreams), group.list...) // addresses and names
		ctx, cancel := context.WithTimeout(ctx, brief)
		defer cancel()
		nodes, _ := f.edge.origins(ctx) // those known, if the directory is silent here, too
		for _, n := range nodes {
			named := slices.ContainsFunc(upstreams, func(u vhost.Upstream) bool { return u.Addr == n.Addr.RTMP })
			if n.Addr.HTTP != "" && (named || len(group.list) == 0) {
				all = append(all, vhost.Upstream{Scheme: "http", Addr: n.Addr.HTTP})
			}
		}
	}
	owners := map[string]bool{}
	f.mu.Lock()
	for key, o := range f.owners {
		if strings.HasPrefix(key, t.Key.Vhost+"/") {
			owners[o.addr] = true
		}
	}
	f.mu.Unlock()
	for addr := range owners {
		all = append(all, vhost.Upstream{Scheme: "http", Addr: addr})
	}
	f.edge.health.sort(all)
	var list []string
	for _, up := range all {
		if len(list) < maxGuesses && !slices.Contains(list, up.Addr) {
			list = append(list, up.Addr)
		}
	}
	return list
}

// owns remembers the owner of a stream.
func (f *fetcher) owns(key, addr string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.owners[key]; !known && len(f.owners) >= maxOwners {
		clear(f.owners)
	}
	f.owners[key] = owner{addr, time.Now()}
}

// owned returns the HTTP address of the last owner of a stream that has none any
// more, while that may still have its playlist; else "".
func (f *fetcher) owned(t vhost.Target) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.owners[t.Key.String()]
	if time.Since(o.at) > t.Vhost.Config.HLS.Linger {
		delete(f.owners, t.Key.String())
		return ""
	}
	return o.addr
}

func (f *fetcher) follow(ctx context.Context, t vhost.Target, addr, uri, via string, trail *trail) (hls.Object, error) {
	for {
		o, err := f.get(ctx, f.client, "http://"+addr+uri, via)
		var redirect *errRedirect
		if !errors.As(err, &redirect) {
			if err != nil && ctx.Err() == nil {
				f.edge.health.failed(addr)
			}
			return o, err
		}
		if err := f.edge.redirected(t.Key.String(), "http://"+addr, redirect, trail); err != nil {
			return hls.Object{}, err
		}
		addr = redirect.to.Addr
		trail.visit(addr)
	}
}

// get fetches one file; a redirect is an *errRedirect.
func (f *fetcher) get(ctx context.Context, c *http.Client, target, via string) (hls.Object, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return hls.Object{}, err
	}
	req.Header.Set("User-Agent", "weir")
	req.Header.Set(session.HeaderNode, f.edge.node)
	req.Header.Set(session.HeaderVia, via)
	resp, err := c.Do(req)
	if err != nil {
		return hls.Object{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		return hls.Object{}, flvStatus(resp)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, f.limit+1))
	if err != nil {
		return hls.Object{}, err
	}
	if int64(len(body)) > f.limit {
		return hls.Object{}, hls.ErrTooLarge
	}
	if resp.StatusCode >= 500 {
		return hls.Object{}, failure(resp, body)
	}
	return hls.NewObject(resp.StatusCode, resp.Header.Get("Content-Type"), resp.Header.Get("Cache-Control"), body), nil
}

// serveWorkerHLS serves a file to another worker, out of this worker's cache.
func (e *Edge) serveWorkerHLS(w http.ResponseWriter, r *http.Request) {
	o, err := e.fetcher.cached(r.Context(), r.FormValue("uri"), r.Header.Get(session.HeaderVia))
	if err != nil {
		// The worker that asked says again what is fetched.
		text := strings.TrimPrefix(err.Error(), "fetch "+r.FormValue("uri")+": ")
		if errors.Is(err, errCircle) {
			text = circleText
		}
		http.Error(w, text, http.StatusBadGateway)
		return
	}
	h := w.Header()
	h.Set("Content-Type", o.ContentType)
	h.Set("Cache-Control", o.CacheControl)
	h.Set("Content-Length", strconv.Itoa(len(o.Body)))
	w.WriteHeader(o.Status)
	_, _ = w.Write(o.Body)
}
