package edge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"weir/discovery"
	"weir/internal/vhost"
)

// trail is where one attempt to find a stream has been.
type trail struct {
	visited   map[string]bool
	redirects int // in a row
	max       int
	named     uint64 // epoch of the owner that discovery or a redirect has named; 0 for none
}

func newTrail(max int) *trail { return &trail{visited: map[string]bool{}, max: max} }

// visit notes that an upstream is tried; it reports false if it was before.
func (t *trail) visit(addr string) bool {
	if t.visited[addr] {
		return false
	}
	t.visited[addr] = true
	return true
}

// errLoop says that redirects lead nowhere.
var errLoop = errors.New("redirects go in a circle")

// follow notes a redirect, or says why it is not followed.
func (t *trail) follow(addr string) error {
	if t.redirects++; t.redirects > t.max {
		return fmt.Errorf("%w: more than %d (pull.max_redirects)", errLoop, t.max)
	}
	if t.visited[addr] {
		return fmt.Errorf("%w: back to %s", errLoop, addr)
	}
	return nil
}

// pullUpstream tries the upstreams that may have the stream, one after the other.
func (e *Edge) pullUpstream(ctx context.Context, t vhost.Target, via string, trail *trail) (pulled, error) {
	return tryAll(ctx, e, t, trail, func(ctx context.Context, up vhost.Upstream) (pulled, error) {
		return e.followUp(ctx, up, t, via, trail)
	})
}

// tryAll calls try for each candidate until one works. If all fail the error is
// errGone only if all said so: a stream may be where nobody answered.
func tryAll[T any](ctx context.Context, e *Edge, t vhost.Target, trail *trail, try func(context.Context, vhost.Upstream) (T, error)) (T, error) {
	var none T
	candidates, named, err := e.candidates(ctx, t, e.pulls.of(t.Key.Vhost), e.cfg.Pull.Protocol)
	if err != nil {
		return none, err
	}
	e.epochs.note(t.Key.String(), named)
	trail.named = named
	var gone, failed, loop, older error
	for _, up := range candidates {
		if trail.visited[up.Addr] {
			continue
		}
		trail.redirects = 0
		got, err := try(ctx, up)
		switch {
		case err == nil:
			return got, nil
		case ctx.Err() != nil:
			return none, ctx.Err()
		case errors.Is(err, errGone):
			gone = err
		case errors.Is(err, errLoop), errors.Is(err, errCircle):
			loop = err
		case errors.Is(err, errOlder):
			older = err
		default:
			failed = err
		}
		e.doubt(t.Key.String())
	}
	for _, err := range []error{older, failed, gone, loop} {
		if err != nil {
			return none, err
		}
	}
	return none, fmt.Errorf("%w: all upstreams were tried", errLoop)
}

// doubt has discovery asked anew for the owner of a stream that it was not got
// from.
func (e *Edge) doubt(key string) {
	if e.owners != nil {
		e.owners.Doubt(key)
	}
}

// candidates returns the upstreams to be tried for a stream: its owner, if
// discovery knows one, where it is reached by protocol, and then those of group that
// the vhost's policy picks. If discovery knows that nobody owns the stream, that is
// the answer. named is the epoch of the owner, 0 if it is not known.
func (e *Edge) candidates(ctx context.Context, t vhost.Target, group *upstreams, protocol Protocol) (list []vhost.Upstream, named uint64, err error) {
	var asked error
	if e.owners != nil {
		l, err := e.owners.Lookup(ctx, t.Key.String())
		if err == nil {
			named = l.Epoch
			if l.Addr.HTTP != "" {
				e.fetcher.owns(t.Key.String(), l.Addr.HTTP)
			}
			if up, ok := addressOf(l.Addr, protocol); ok {
				list = append(list, up)
			}
		} else if errors.Is(err, discovery.ErrNotFound) {
			return nil, 0, fmt.Errorf("%w: %w", errGone, err)
		} else {
			asked = err
		}
	}
	picked, err := group.pick(ctx, t.Key.String())
	for _, up := range picked {
		if !slices.Contains(list, up) {
			list = append(list, up)
		}
	}
	if len(list) > 0 {
		if e.health.ejectedFor(list[0].Addr) > 0 { // the owner failed a moment ago: try it last
			list = append(list[1:], list[0])
		}
		return list, named, nil
	}
	if asked != nil {
		return nil, 0, asked
	}
	return nil, 0, err
}

// addressOf returns where an owner is reached by a protocol or, if it has no address
// for that, by the other.
func addressOf(a discovery.Addr, by Protocol) (vhost.Upstream, bool) {
	rtmp, http := vhost.Upstream{Scheme: "rtmp", Addr: a.RTMP}, vhost.Upstream{Scheme: "http", Addr: a.HTTP}
	if by == PullFLV {
		rtmp, http = http, rtmp
	}
	if rtmp.Addr != "" {
		return rtmp, true
	}
	return http, http.Addr != ""
}

// followUp asks one upstream and follows its redirects.
func (e *Edge) followUp(ctx context.Context, up vhost.Upstream, t vhost.Target, via string, trail *trail) (pulled, error) {
	for {
		trail.visit(up.Addr)
		p, err := e.dial(ctx, up, t, via)
		if err == nil && p.epoch == 0 && trail.named != 0 {
			if sent := e.sentOn(ctx, p); sent != nil {
				p.Close()
				err = sent
			}
		}
		var redirect *errRedirect
		switch {
		case err == nil:
			if err := e.notOlder(t.Key.String(), p.from, p.epoch, trail.named); err != nil {
				p.Close()
				return pulled{}, err
			}
			return p, nil
		case errors.As(err, &redirect):
			if err := e.redirected(t.Key.String(), up.String(), redirect, trail); err != nil {
				return pulled{}, err
			}
			up = redirect.to
			continue
		case ctx.Err() == nil && !errors.Is(err, errGone):
			e.health.failed(up.Addr)
		}
		return pulled{}, err
	}
}

// sentOn returns the redirect that a source begins with, or nil. One that says no epoch
// is no use where the owner is known, unless it knows a later one: over RTMP a play is
// started just to be redirected. What it sends instead is lost.
func (e *Edge) sentOn(ctx context.Context, p pulled) error {
	bounded, cancel := context.WithTimeout(ctx, e.cfg.Pull.ConnectTimeout)
	defer cancel()
	defer context.AfterFunc(bounded, func() { p.Close() })()
	_, err := p.ReadTag()
	if redirect := (*errRedirect)(nil); errors.As(err, &redirect) {
		return redirect
	}
	return nil
}

// redirected counts a redirect and says whether it may be followed. One to an
// earlier owner may not: it is out of a map that is behind.
func (e *Edge) redirected(key, from string, r *errRedirect, trail *trail) error {
	e.metrics.redirects.Inc()
	e.log.Info("upstream redirects", "stream", key, "from", from, "to", r.to.String(), "epoch", r.epoch)
	if err := trail.follow(r.to.Addr); err != nil {
		e.metrics.loops.Inc()
		return err
	}
	if err := e.notOlder(key, from, r.epoch, 0); err != nil {
		return err
	}
	e.epochs.note(key, r.epoch)
	trail.named = max(trail.named, r.epoch)
	return nil
}

// nodeLister is a directory that lists its nodes.
type nodeLister interface {
	Nodes(ctx context.Context, q discovery.NodeQuery) ([]discovery.Node, string, error)
}

// liveOrigins returns a function that lists the origins that may take a
// publisher, in the order of discovery.ByLoad.
func liveOrigins(d nodeLister) func(context.Context) ([]discovery.Node, error) {
	var mu sync.Mutex
	var known []discovery.Node // guarded by mu; the last answer, for when discovery is away
	return func(ctx context.Context) ([]discovery.Node, error) {
		nodes, _, err := d.Nodes(ctx, discovery.NodeQuery{Role: discovery.RoleOrigin})
		nodes = slices.DeleteFunc(nodes, func(n discovery.Node) bool {
			return n.State != discovery.StateUp || n.Addr.RTMP == ""
		})
		mu.Lock()
		if err == nil {
			known = nodes
		}
		nodes = known
		mu.Unlock()
		if len(nodes) == 0 {
			return nil, err
		}
		return discovery.ByLoad(slices.Clone(nodes)), nil
	}
}

// byLoad puts upstreams into the order of discovery.ByLoad, by the load of the nodes
// that have their addresses. Those of which discovery knows none come last, as they
// were.
func (e *Edge) byLoad(ctx context.Context, all []vhost.Upstream) []vhost.Upstream {
	ctx, cancel := context.WithTimeout(ctx, brief)
	defer cancel()
	loads := map[vhost.Upstream]map[string]float64{}
	note := func(nodes []discovery.Node) {
		for _, n := range nodes {
			if n.State == discovery.StateUp {
				loads[vhost.Upstream{Scheme: "rtmp", Addr: n.Addr.RTMP}] = n.Load
				loads[vhost.Upstream{Scheme: "http", Addr: n.Addr.HTTP}] = n.Load
			}
		}
	}
	origins, _, _ := e.owners.Nodes(ctx, discovery.NodeQuery{Role: discovery.RoleOrigin}) // none, of a directory that is away
	note(origins)
	if slices.ContainsFunc(all, func(u vhost.Upstream) bool { return loads[u] == nil }) {
		note(e.others.ByLoad(ctx, discovery.RoleEdge)) // tiers of edges
	}
	nodes, of := make([]discovery.Node, len(all)), make(map[string]vhost.Upstream, len(all))
	for i, u := range all {
		nodes[i] = discovery.Node{ID: u.String(), Load: loads[u]}
		of[u.String()] = u
	}
	for i, n := range discovery.ByLoad(nodes) {
		all[i] = of[n.ID]
	}
	return all
}

// brief is how long is waited for what can be done without.
const brief = 100 * time.Millisecond

// publishCandidates returns the upstreams that a publisher may be forwarded to:
// the owner of the name, the vhost's upstreams, or any origin that is up.
func (e *Edge) publishCandidates(ctx context.Context, t vhost.Target) ([]vhost.Upstream, error) {
	group := e.pushes.of(t.Key.Vhost)
	list, _, err := e.candidates(ctx, t, group, PullRTMP)
	if errors.Is(err, errGone) { // a name that is free
		list, err = group.pick(ctx, t.Key.String())
	}
	list = slices.DeleteFunc(slices.Clone(list), func(u vhost.Upstream) bool { return u.Scheme != "rtmp" })
	if e.origins != nil && len(group.list) == 0 {
		patience := time.Second
		if errors.Is(err, discovery.ErrUnavailable) { // it has just been waited for
			patience = brief
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		nodes, lerr := e.origins(ctx)
		if lerr != nil && len(list) == 0 {
			return nil, lerr
		}
		for _, n := range nodes {
			if up := (vhost.Upstream{Scheme: "rtmp", Addr: n.Addr.RTMP}); !slices.Contains(list, up) {
				list = append(list, up)
			}
		}
		e.health.sort(list)
	}
	if len(list) == 0 {
		if err == nil || errors.Is(err, errGone) {
			err = errNoUpstream
		}
		return nil, fmt.Errorf("forward publisher: %w", err)
	}
	return list, nil
}
