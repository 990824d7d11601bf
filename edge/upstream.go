package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"weir/internal/vhost"
)

// errNoUpstream says that a vhost has no upstream of the wanted kind.
var errNoUpstream = errors.New("no upstream is configured")

// upstreams are the configured upstreams of one vhost that speak one scheme,
// with what is known about their health. Safe for concurrent use.
type upstreams struct {
	list     []vhost.Upstream
	policy   vhost.Policy
	resolver *resolver
	health   *health
	byLoad   func(context.Context, []vhost.Upstream) []vhost.Upstream // orders them; nil without discovery
	turn     atomic.Uint64                                            // of round robin: one counter for the group, whatever the stream
}

// groups are the upstreams by vhost. Safe for concurrent use; the zero value has
// none.
type groups struct {
	mu      sync.RWMutex
	byVhost map[string]*upstreams // guarded by mu
}

// of returns the upstreams of a vhost, empty for one that there never was.
func (g *groups) of(vhost string) *upstreams {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if u := g.byVhost[vhost]; u != nil {
		return u
	}
	return &upstreams{}
}

// replace takes new groups over. Those of vhosts that are not among them stay, for
// the sessions of theirs that go on.
func (g *groups) replace(now map[string]*upstreams) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name, u := range g.byVhost {
		if now[name] == nil {
			now[name] = u
		}
	}
	g.byVhost = now
}

// pick returns the addresses to be tried for a stream, best first. Ejected ones
// come last: with nothing else left, a bad chance is better than none.
func (u *upstreams) pick(ctx context.Context, key string) ([]vhost.Upstream, error) {
	if len(u.list) == 0 {
		return nil, errNoUpstream
	}
	var all []vhost.Upstream
	var failed error
	for _, up := range u.list {
		addrs, err := u.resolver.lookup(ctx, up.Addr)
		if err != nil {
			failed = err
			continue
		}
		for _, a := range addrs {
			all = append(all, vhost.Upstream{Scheme: up.Scheme, Addr: a})
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("resolve upstreams: %w", failed)
	}
	switch u.policy {
	case vhost.Hash:
		slices.SortFunc(all, func(a, b vhost.Upstream) int {
			ha, hb := rendezvous(key, a.Addr), rendezvous(key, b.Addr)
			switch {
			case ha > hb:
				return -1
			case ha < hb:
				return 1
			}
			return 0
		})
	default:
		n := int((u.turn.Add(1) - 1) % uint64(len(all)))
		all = append(all[n:len(all):len(all)], all[:n]...)
	}
	if u.policy == vhost.LeastLoad && u.byLoad != nil {
		all = u.byLoad(ctx, all)
	}
	u.health.sort(all)
	return all, nil
}

// rendezvous is the weight of a node for a key (highest random weight
// hashing): when a node goes, only its keys move.
func rendezvous(key, node string) uint64 {
	var d xxhash.Digest
	d.Reset()
	_, _ = d.WriteString(key)
	_, _ = d.Write([]byte{0})
	_, _ = d.WriteString(node)
	return d.Sum64()
}

// health remembers upstreams that failed, for a while. Safe for concurrent use.
type health struct {
	eject time.Duration

	mu    sync.Mutex
	until map[string]time.Time // guarded by mu; holds configured and resolved addresses only
}

func newHealth(eject time.Duration) *health {
	return &health{eject: eject, until: map[string]time.Time{}}
}

// maxHealth bounds the map against redirects to ever new addresses.
const maxHealth = 4096

func (h *health) failed(addr string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.until) >= maxHealth {
		clear(h.until)
	}
	h.until[addr] = time.Now().Add(h.eject)
}

func (h *health) worked(addr string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.until, addr)
}

// sort puts the ejected ones last, the one that comes back first before the
// others; else it keeps the order.
func (h *health) sort(all []vhost.Upstream) {
	ejected := make(map[string]int, len(all))
	for _, up := range all {
		ejected[up.Addr] = h.ejectedFor(up.Addr)
	}
	slices.SortStableFunc(all, func(a, b vhost.Upstream) int { return ejected[a.Addr] - ejected[b.Addr] })
}

// ejectedFor returns how many milliseconds an address stays ejected, at least 1
// if it is, 0 if it is not.
func (h *health) ejectedFor(addr string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, ok := h.until[addr]
	if !ok {
		return 0
	}
	d := time.Until(t)
	if d <= 0 {
		delete(h.until, addr)
		return 0
	}
	return int(d.Milliseconds()) + 1
}

// resolver turns host names into addresses and remembers them for a while; an
// answer that cannot be renewed stays in use.
type resolver struct {
	ttl    time.Duration
	lookUp func(ctx context.Context, host string) ([]string, error)

	mu    sync.Mutex
	cache map[string]resolved // guarded by mu; keys are configured names only
}

type resolved struct {
	addrs []string // host part only
	until time.Time
}

func newResolver(ttl time.Duration) *resolver {
	return &resolver{ttl: ttl, lookUp: net.DefaultResolver.LookupHost, cache: map[string]resolved{}}
}

func (r *resolver) lookup(ctx context.Context, addr string) ([]string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if net.ParseIP(host) != nil {
		return []string{addr}, nil
	}
	r.mu.Lock()
	known, ok := r.cache[host]
	r.mu.Unlock()
	if !ok || time.Now().After(known.until) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		hosts, err := r.lookUp(ctx, host)
		if err != nil && !ok {
			return nil, fmt.Errorf("look up upstream %s: %w", host, err)
		}
		if err == nil {
			slices.Sort(hosts)
			known.addrs = hosts
		}
		known.until = time.Now().Add(r.ttl)
		r.mu.Lock()
		r.cache[host] = known
		r.mu.Unlock()
	}
	addrs := make([]string, len(known.addrs))
	for i, h := range known.addrs {
		addrs[i] = net.JoinHostPort(h, port)
	}
	return addrs, nil
}
