package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
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
	if _, err := e.chain(req.Peer); err != nil {
		return hls.Object{}, err
	}
	o, err := e.cache.Get(ctx, req.File.URI(hlsVhost(req.Target.Key.Vhost)))
	if err != nil {
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
}

func newFetcher(e *Edge) *fetcher {
	f := &fetcher{edge: e, limit: int64(e.cfg.HLSCache.MaxObjectBytes)}
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
				return e.siblings.dial(ctx, i)
			},
			MaxIdleConnsPerHost: 4,
			IdleConnTimeout:     30 * time.Second,
			DisableCompression:  true,
		}))
	}
	return f
}

// client returns a client that hands redirects to the caller.
func client(t *http.Transport) *http.Client {
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (f *fetcher) close() {
	f.client.CloseIdleConnections()
	for _, c := range f.workers {
		c.CloseIdleConnections()
	}
}

// fetch implements hls.Fetch.
func (f *fetcher) fetch(ctx context.Context, uri string) (hls.Object, error) {
	t, err := f.target(uri)
	if err != nil {
		return hls.Object{}, err
	}
	for _, i := range f.edge.siblings.order(t.Key.String()) {
		if i == f.edge.siblings.index {
			break
		}
		o, err := f.get(ctx, f.workers[i], "http://worker"+workerHLSPath+"?"+url.Values{"uri": {uri}}.Encode())
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" { // the worker is dead
			continue
		}
		return o, err
	}
	return f.upstream(ctx, t, uri)
}

// target returns the stream that a URI made by hls.Request.URI is of.
func (f *fetcher) target(uri string) (vhost.Target, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return vhost.Target{}, err
	}
	file, ok := hls.ParsePath(u.Path)
	if !ok {
		return vhost.Target{}, fmt.Errorf("fetch %s: not a file of HLS", uri)
	}
	return f.edge.table.FromHTTP("", "/"+file.App+"/"+file.Name, u.RawQuery)
}

// upstream asks the owner, or the vhost's upstreams in turn, following redirects.
func (f *fetcher) upstream(ctx context.Context, t vhost.Target, uri string) (hls.Object, error) {
	candidates, err := f.candidates(ctx, t)
	if errors.Is(err, errGone) {
		return hls.NotFound("stream not found: nobody publishes it"), nil
	}
	if err != nil {
		return hls.Object{}, fmt.Errorf("fetch %s: %w", uri, err)
	}
	trail := newTrail(f.edge.cfg.Pull.MaxRedirects)
	var failed error
	var missing *hls.Object
	for _, addr := range candidates {
		if !trail.visit(addr) {
			continue
		}
		o, err := f.follow(ctx, addr, uri, trail)
		switch {
		case err == nil && o.Status != http.StatusNotFound:
			return o, nil
		case err == nil:
			missing = &o
		case ctx.Err() != nil:
			return hls.Object{}, ctx.Err()
		default:
			failed = err
		}
		if f.edge.owners != nil {
			f.edge.owners.Doubt(t.Key.String())
		}
	}
	if failed == nil && missing != nil {
		return *missing, nil
	}
	return hls.Object{}, failed
}

// candidates returns the HTTP addresses that may have a stream's files.
func (f *fetcher) candidates(ctx context.Context, t vhost.Target) ([]string, error) {
	var list []string
	var asked error
	if f.edge.owners != nil {
		l, err := f.edge.owners.Lookup(ctx, t.Key.String())
		switch {
		case err == nil && l.Addr.HTTP != "":
			list = append(list, l.Addr.HTTP)
		case errors.Is(err, discovery.ErrNotFound):
			asked = errGone
		case err != nil:
			asked = err
		}
	}
	picked, err := f.edge.https[t.Key.Vhost].pick(ctx, t.Key.String())
	for _, up := range picked {
		list = append(list, up.Addr)
	}
	switch {
	case len(list) > 0:
		return list, nil
	case asked != nil:
		return nil, asked
	case errors.Is(err, errNoUpstream):
		return nil, fmt.Errorf("%w: vhost %s has no upstream with http:// for HLS", err, t.Key.Vhost)
	}
	return nil, err
}

func (f *fetcher) follow(ctx context.Context, addr, uri string, trail *trail) (hls.Object, error) {
	for {
		o, err := f.get(ctx, f.client, "http://"+addr+uri)
		var redirect *errRedirect
		if !errors.As(err, &redirect) {
			if err != nil && ctx.Err() == nil {
				f.edge.health.failed(addr)
			}
			return o, err
		}
		f.edge.metrics.redirects.Inc()
		if err := trail.follow(redirect.to.Addr); err != nil {
			f.edge.metrics.loops.Inc()
			return hls.Object{}, err
		}
		addr = redirect.to.Addr
		trail.visit(addr)
	}
}

// get fetches one file; a redirect is an *errRedirect.
func (f *fetcher) get(ctx context.Context, c *http.Client, target string) (hls.Object, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return hls.Object{}, err
	}
	req.Header.Set("User-Agent", "weir")
	req.Header.Set(session.HeaderNode, f.edge.node)
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
		return hls.Object{}, fmt.Errorf("upstream answered %s: %.200s", resp.Status, strings.TrimSpace(string(body)))
	}
	return hls.NewObject(resp.StatusCode, resp.Header.Get("Content-Type"), resp.Header.Get("Cache-Control"), body), nil
}

// serveWorkerHLS serves a file to another worker, out of this worker's cache.
func (e *Edge) serveWorkerHLS(w http.ResponseWriter, r *http.Request) {
	o, err := e.cache.Get(r.Context(), r.FormValue("uri"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	h := w.Header()
	h.Set("Content-Type", o.ContentType)
	h.Set("Cache-Control", o.CacheControl)
	h.Set("Content-Length", strconv.Itoa(len(o.Body)))
	w.WriteHeader(o.Status)
	_, _ = w.Write(o.Body)
}
