package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// Peers is the directory of origins without a discovery server: each origin
// owns what is published to it and asks the others, as SRS coworkers do. All
// peers are asked at once, and the first that has the stream decides; a silent
// one costs no more than PeerTimeout. SRS origins may be among them. Safe for
// concurrent use.
//
// Its limits: a claim asks the peers first, but two origins that claim the same
// name within one round trip both get it; a peer that is silent cannot object;
// Replace takes the stream here and tells the old owner nothing; no lease is
// ever lost; epochs are those of the origin's own clock, and not known for SRS.
type Peers struct {
	// Static.
	self      Self
	peers     []string
	timeout   time.Duration
	ttl       time.Duration
	http      *http.Client
	transport *http.Transport
	log       *slog.Logger
	met       *metrics.Set

	mu     sync.Mutex
	epochs epochClock // guarded by mu
}

// maxPeerAnswer bounds the body of a peer's answer, in bytes.
const maxPeerAnswer = 64 << 10

// NewPeers returns the directory of cfg.Peers for the origin self. With no peers
// it stands alone: every claim is granted. log and set may be nil. Close it at
// the end.
func NewPeers(cfg Config, self Self, log *slog.Logger, set *metrics.Set) *Peers {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if set == nil {
		set = metrics.NewSet()
	}
	t := newTransport()
	return &Peers{
		self: self, peers: cfg.Peers, timeout: cfg.PeerTimeout, ttl: cfg.LeaseTTL,
		http: &http.Client{Transport: t, CheckRedirect: noRedirect}, transport: t, log: log, met: set,
	}
}

// Close closes idle connections.
func (p *Peers) Close() error {
	p.transport.CloseIdleConnections()
	return nil
}

// Claim implements Leases, with the limits of Peers.
func (p *Peers) Claim(ctx context.Context, c Claim) (Lease, error) {
	if err := c.check(); err != nil {
		return Lease{}, fmt.Errorf("claim stream: %w", err)
	}
	ttl := c.TTL
	if ttl == 0 {
		ttl = p.ttl
	}
	other, err := p.Lookup(ctx, c.Stream)
	switch {
	case err == nil && !other.Idle && !c.Replace:
		return Lease{}, &ConflictError{Lease: other}
	case ctx.Err() != nil:
		return Lease{}, fmt.Errorf("claim stream %s: %w", c.Stream, context.Cause(ctx))
	case errors.Is(err, ErrUnavailable):
		p.log.Warn("stream taken without an answer of any peer", "stream", c.Stream, "err", err)
	}
	taken := err == nil // from another owner: the old epoch ends
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.epochs.see(other.Epoch, now)
	epoch := c.Held
	if epoch == 0 || taken {
		epoch = p.epochs.next(now)
	}
	return Lease{
		Stream: c.Stream, Node: c.Node, Instance: c.Instance, Epoch: epoch, Addr: c.Addr, Expires: now.Add(ttl),
	}, nil
}

// Renew implements Leases. Nothing is lost to peers.
func (p *Peers) Renew(context.Context, Renewal) ([]Lost, error) { return nil, nil }

// Release implements Leases. Peers learn it when they ask.
func (p *Peers) Release(context.Context, Lease) error { return nil }

// Heartbeat implements Members. Peers are told nothing.
func (p *Peers) Heartbeat(context.Context, Node) error { return nil }

// Goodbye implements Members. Peers are told nothing.
func (p *Peers) Goodbye(context.Context, string, string) error { return nil }

type peerAnswer struct {
	lease Lease
	found bool
	err   error
}

// Lookup implements Finder: it asks all peers. Streams of this origin itself are
// not found. The error is ErrNotFound if at least one peer answered and none has
// the stream, and ErrUnavailable if none answered. The lease holds for one
// lease_ttl.
func (p *Peers) Lookup(ctx context.Context, stream string) (Lease, error) {
	vhost, app, name, err := SplitStream(stream)
	if err != nil {
		return Lease{}, fmt.Errorf("look up stream: %w", err)
	}
	if len(p.peers) == 0 {
		return Lease{}, fmt.Errorf("look up stream %s: %w", stream, ErrNotFound)
	}
	asking, cancel := context.WithTimeout(ctx, p.timeout)
	answers := make(chan peerAnswer, len(p.peers))
	var wg sync.WaitGroup
	defer wg.Wait() // after cancel: asking ends at once
	defer cancel()
	for _, peer := range p.peers {
		wg.Go(func() {
			l, found, err := p.ask(asking, peer, stream, clustersQueryString(vhost, app, name, peer))
			answers <- peerAnswer{l, found, err}
		})
	}
	var errs []error
	for range p.peers {
		a := <-answers
		switch {
		case a.found:
			countCall(p.met, "peer", "ok")
			a.lease.Expires = time.Now().Add(p.ttl)
			return a.lease, nil
		case a.err != nil:
			countCall(p.met, "peer", "unavailable")
			errs = append(errs, a.err)
		default:
			countCall(p.met, "peer", "not_found")
		}
	}
	if ctx.Err() != nil {
		return Lease{}, fmt.Errorf("look up stream %s: %w", stream, context.Cause(ctx))
	}
	if len(errs) == len(p.peers) {
		return Lease{}, fmt.Errorf("look up stream %s: %w: %w", stream, ErrUnavailable, errors.Join(errs...))
	}
	return Lease{}, fmt.Errorf("look up stream %s: %w", stream, ErrNotFound)
}

func (p *Peers) ask(ctx context.Context, peer, stream, query string) (Lease, bool, error) {
	// POST with an empty body, as SRS asks.
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+peer+ClustersPath+"?"+query, http.NoBody)
	if err != nil {
		return Lease{}, false, fmt.Errorf("ask peer %s: %w", peer, err)
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return Lease{}, false, fmt.Errorf("ask peer %s: %w", peer, err)
	}
	defer resp.Body.Close()
	body, err := readBounded(resp.Body, maxPeerAnswer)
	if err != nil {
		return Lease{}, false, fmt.Errorf("ask peer %s: %w", peer, err)
	}
	if resp.StatusCode != http.StatusOK {
		return Lease{}, false, fmt.Errorf("ask peer %s: status %d", peer, resp.StatusCode)
	}
	l, found, err := parseClustersAnswer(stream, body)
	if err != nil {
		return Lease{}, false, fmt.Errorf("ask peer %s: %w", peer, err)
	}
	// A list of peers that is the same on all nodes names this one too.
	if found && (l.Node == p.self.Node || p.self.is(l)) {
		found = false
	}
	return l, found, nil
}
