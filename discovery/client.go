package discovery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/internal/quiet"
)

// Client is the directory behind one or more discovery servers, over API v1. It
// is an Engine without upkeep of its own. Each call takes at most the configured
// timeout over all servers: a server that does not answer within its share, or
// fails, is followed by the next, and the one that answered is asked first from
// then on. Safe for concurrent use.
//
// Answers become the errors of this package: ErrNotFound, *ConflictError, *BannedError,
// ErrFull, ErrInvalid, ErrRefused, and ErrUnavailable when no server gave an
// answer. A call whose context ends returns the context's error.
type Client struct {
	// Static.
	urls      []string // without a slash at the end
	token     string
	timeout   time.Duration
	http      *http.Client
	transport *http.Transport
	met       *metrics.Set

	preferred atomic.Uint32 // index of the server that answered last
}

// maxAnswer bounds the body of an answer: the largest is a page of MaxPage nodes
// with all loads and labels that they may have.
const maxAnswer = 32 << 20

// renewBatch is the number of leases in one renewal on the wire. With keys of
// MaxStreamLen bytes, each of them escaped as JSON can double it, it stays below
// the smallest body limit of a server.
const renewBatch = 800

// NewClient returns a client of cfg.URLs, of which there must be one. set may be
// nil. Close it at the end.
func NewClient(cfg Config, set *metrics.Set) *Client {
	if set == nil {
		set = metrics.NewSet()
	}
	c := &Client{token: string(cfg.Token), timeout: cfg.Timeout, transport: newTransport(), met: set}
	for _, u := range cfg.URLs {
		c.urls = append(c.urls, strings.TrimRight(u, "/"))
	}
	c.http = &http.Client{Transport: c.transport, CheckRedirect: noRedirect}
	return c
}

// newTransport returns a transport that goes straight to its host: the cluster's
// own traffic has no business with a proxy of the environment.
func newTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
	return &http.Transport{
		// A watch is told something each second at least, in every process of an edge.
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return quiet.New(c), nil
		},
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        50 * time.Second, // below the server's minute
		MaxResponseHeaderBytes: 16 << 10,
		DisableCompression:     true,
	}
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Close closes idle connections.
func (c *Client) Close() error {
	c.transport.CloseIdleConnections()
	return nil
}

// Claim implements Leases.
func (c *Client) Claim(ctx context.Context, cl Claim) (Lease, error) {
	var l Lease
	err := c.call(ctx, "claim", http.MethodPost, "/api/v1/leases/claim", claimJSON{
		Stream: cl.Stream, Node: cl.Node, Instance: cl.Instance, Addr: cl.Addr,
		TTLms: cl.TTL.Milliseconds(), Replace: cl.Replace, Publisher: cl.Publisher, Dead: cl.Dead, Held: cl.Held,
	}, &l)
	if err == nil && l.Stream != cl.Stream {
		err = fmt.Errorf("%w: the answer is about another stream", ErrUnavailable)
	}
	if err != nil {
		return Lease{}, fmt.Errorf("claim stream %s: %w", cl.Stream, err)
	}
	return l, nil
}

// Renew implements Leases. It sends large renewals in several calls, each with a
// timeout of its own, and stops at the first that fails.
func (c *Client) Renew(ctx context.Context, r Renewal) ([]Lost, error) {
	var lost []Lost
	for part := range slices.Chunk(r.Leases, renewBatch) {
		var answer lostJSON
		if err := c.call(ctx, "renew", http.MethodPost, "/api/v1/leases/renew", renewalJSON{
			Node: r.Node, Instance: r.Instance, Addr: r.Addr, TTLms: r.TTL.Milliseconds(), Leases: part,
		}, &answer); err != nil {
			return lost, fmt.Errorf("renew leases: %w", err)
		}
		lost = append(lost, answer.Lost...)
	}
	return lost, nil
}

// Release implements Leases.
func (c *Client) Release(ctx context.Context, l Lease) error {
	if err := c.call(ctx, "release", http.MethodPost, "/api/v1/leases/release", releaseJSON{l.Stream, l.Node, l.Epoch}, nil); err != nil {
		return fmt.Errorf("release stream %s: %w", l.Stream, err)
	}
	return nil
}

// Lookup implements Finder.
func (c *Client) Lookup(ctx context.Context, stream string) (Lease, error) {
	var l Lease
	err := c.call(ctx, "lookup", http.MethodGet, "/api/v1/lookup?stream="+url.QueryEscape(stream), nil, &l)
	if err == nil && l.Stream != stream {
		err = fmt.Errorf("%w: the answer is about another stream", ErrUnavailable)
	}
	if err != nil {
		return Lease{}, fmt.Errorf("look up stream %s: %w", stream, err)
	}
	return l, nil
}

// Kick implements Kicker.
func (c *Client) Kick(ctx context.Context, k Kick) (Kicked, error) {
	var done Kicked
	if err := c.call(ctx, "kick", http.MethodPost, "/api/v1/streams/kick", kickJSON{k.Stream, k.Ban.Milliseconds(), k.Reason}, &done); err != nil {
		return Kicked{}, fmt.Errorf("kick stream %s: %w", k.Stream, err)
	}
	return done, nil
}

// Heartbeat implements Members.
func (c *Client) Heartbeat(ctx context.Context, n Node) error {
	if err := c.call(ctx, "heartbeat", http.MethodPost, "/api/v1/nodes/heartbeat", n.wire(), nil); err != nil {
		return fmt.Errorf("send heartbeat: %w", err)
	}
	return nil
}

// Goodbye implements Members.
func (c *Client) Goodbye(ctx context.Context, id, instance string) error {
	if err := c.call(ctx, "goodbye", http.MethodPost, "/api/v1/nodes/goodbye", goodbyeJSON{id, instance}, nil); err != nil {
		return fmt.Errorf("send goodbye: %w", err)
	}
	return nil
}

// Streams lists leases, as Engine.Streams does.
func (c *Client) Streams(ctx context.Context, q StreamQuery) ([]Lease, string, error) {
	v := url.Values{}
	setNonEmpty(v, "prefix", q.Prefix)
	setNonEmpty(v, "node", q.Node)
	setPage(v, q.After, q.Limit)
	var answer streamsJSON
	if err := c.call(ctx, "streams", http.MethodGet, "/api/v1/streams?"+v.Encode(), nil, &answer); err != nil {
		return nil, "", fmt.Errorf("list streams: %w", err)
	}
	return answer.Streams, answer.Next, nil
}

// Nodes lists nodes, as Engine.Nodes does.
func (c *Client) Nodes(ctx context.Context, q NodeQuery) ([]Node, string, error) {
	v := url.Values{}
	setNonEmpty(v, "role", string(q.Role))
	setPage(v, q.After, q.Limit)
	var answer nodesJSON
	if err := c.call(ctx, "nodes", http.MethodGet, "/api/v1/nodes?"+v.Encode(), nil, &answer); err != nil {
		return nil, "", fmt.Errorf("list nodes: %w", err)
	}
	out := make([]Node, len(answer.Nodes))
	for i, w := range answer.Nodes {
		n, err := w.node()
		if err == nil {
			var age time.Duration
			age, err = fromMillis(w.AgeMs)
			n.Seen = time.Now().Add(-age)
		}
		if err != nil {
			return nil, "", fmt.Errorf("list nodes: decode answer: %w", err)
		}
		out[i] = n
	}
	return out, answer.Next, nil
}

func setNonEmpty(v url.Values, key, value string) {
	if value != "" {
		v.Set(key, value)
	}
}

func setPage(v url.Values, after string, limit int) {
	setNonEmpty(v, "after", after)
	if limit != 0 {
		v.Set("limit", strconv.Itoa(limit))
	}
}

// call makes one call and counts its result.
func (c *Client) call(ctx context.Context, name, method, path string, in, out any) error {
	err := c.try(ctx, method, path, in, out)
	result := "error"
	var conflict *ConflictError
	var banned *BannedError
	switch {
	case err == nil:
		result = "ok"
	case errors.Is(err, ErrNotFound):
		result = "not_found"
	case errors.Is(err, ErrNoNode):
		result = "no_node"
	case errors.As(err, &conflict):
		result = "conflict"
	case errors.As(err, &banned):
		result = "banned"
	case errors.Is(err, ErrUnavailable):
		result = "unavailable"
	case errors.Is(err, ErrRefused):
		result = "refused"
	}
	countCall(c.met, name, result)
	return err
}

func countCall(set *metrics.Set, call, result string) {
	set.GetOrCreateCounter(`weir_discovery_calls_total{call="` + call + `",result="` + result + `"}`).Inc()
}

func (c *Client) try(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = encode(in); err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
	}
	deadline := time.Now().Add(c.timeout)
	first := int(c.preferred.Load())
	var errs []error
	for i := range c.urls {
		at := (first + i) % len(c.urls)
		share := time.Until(deadline) / time.Duration(len(c.urls)-i)
		err := c.ask(ctx, share, method, c.urls[at]+path, body, out)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !errors.Is(err, ErrUnavailable) {
			c.preferred.Store(uint32(at))
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ask asks one server. ErrUnavailable means that another server may do better.
func (c *Client) ask(ctx context.Context, timeout time.Duration, method, target string, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer resp.Body.Close()
	answer, err := readBounded(resp.Body, maxAnswer)
	if err != nil {
		return fmt.Errorf("%w: read answer of %s: %w", ErrUnavailable, target, err)
	}
	switch {
	case resp.StatusCode == http.StatusNoContent && out == nil:
		return nil
	case resp.StatusCode == http.StatusOK:
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(answer, out); err != nil {
			return fmt.Errorf("%w: decode answer of %s: %w", ErrUnavailable, target, err)
		}
		if l, ok := out.(*Lease); ok {
			if err := l.check(); err != nil {
				return fmt.Errorf("%w: answer of %s: %w", ErrUnavailable, target, err)
			}
		}
		return nil
	}
	return answerError(resp.StatusCode, target, answer)
}

// answerError turns an error answer into an error of this package. Only answers
// of API v1 count: a proxy's 404 says nothing about a stream.
func answerError(status int, target string, body []byte) error {
	var e errorJSON
	if err := json.Unmarshal(body, &e); err != nil || e.Code == "" {
		return fmt.Errorf("%w: %s answered with status %d", ErrUnavailable, target, status)
	}
	switch e.Code {
	case codeNotFound:
		return ErrNotFound
	case codeConflict:
		if e.Lease != nil && e.Lease.check() == nil {
			return &ConflictError{Lease: *e.Lease}
		}
	case codeBanned:
		if e.Kicked != nil && e.Kicked.check() == nil {
			return &BannedError{Kicked: *e.Kicked}
		}
	case codeFull:
		return ErrFull
	case codeNoNode:
		return fmt.Errorf("%w: %s", ErrNoNode, strings.TrimPrefix(e.Error, ErrNoNode.Error()+": "))
	case codeInvalid, codeTooLarge:
		return fmt.Errorf("%w: %s", ErrInvalid, e.Error)
	case codeUnauthorized, codeMethod, codeMediaType:
		return fmt.Errorf("%w: %s: %s", ErrRefused, target, e.Error)
	}
	return fmt.Errorf("%w: %s answered with status %d: %s", ErrUnavailable, target, status, e.Error)
}

func readBounded(r io.Reader, limit int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(body)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return body, err
}
