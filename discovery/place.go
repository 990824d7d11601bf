package discovery

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"weir/discovery/schedule"
)

// This file is the schedule and decisions calls of API v1: both ends, and their JSON.

// PlaceQuery asks for nodes that a session may go to.
type PlaceQuery struct {
	Role     string     // of the session: "play" or "publish"
	Stream   string     // vhost/app/name, or empty if it is not known
	Vhost    string     // of the stream; empty: that of Stream
	NodeRole Role       // of the node wanted; empty: the server's choice for the role
	IP       netip.Addr // of the player or encoder; may be invalid
	Region   string     // of the client; empty: found from IP
	Exclude  []string   // ids of nodes that must not be chosen, at most maxExclude
	Protocol string     // "rtmp" or "http": the address that the node must have; empty: any
	BitRate  float64    // of the session in bits per second; 0: not known
	Limit    int        // nodes wanted at most, 1 to 16; 0: 3
	Peek     bool       // only look: nothing is reserved
}

// Placement is where a session may go.
type Placement struct {
	Decision uint64   `json:"decision,omitempty"` // its number; 0: it was not kept
	Nodes    []Placed `json:"nodes"`              // in the order in which they should be tried
	// Why has the reasons, if they were asked for.
	Why *schedule.Decision `json:"why,omitempty"`
}

// Placed is one node of a placement.
type Placed struct {
	ID   string `json:"id"`
	Role Role   `json:"role"`
	Addr
	Region string  `json:"region,omitempty"`
	Load   float64 `json:"load"` // effective, with what is reserved
}

// maxExclude bounds the nodes that one query excludes.
const maxExclude = 64

// Place asks for nodes. The first of the placement has the session's bit rate
// reserved for 10 s, or until it reports it. The error is ErrNoNode if there is
// none, and ErrRefused if the server is of a version that does not schedule.
func (c *Client) Place(ctx context.Context, q PlaceQuery) (Placement, error) {
	v := url.Values{"role": {q.Role}}
	setNonEmpty(v, "stream", q.Stream)
	setNonEmpty(v, "vhost", q.Vhost)
	setNonEmpty(v, "node_role", string(q.NodeRole))
	if q.IP.IsValid() {
		v.Set("ip", q.IP.WithZone("").String())
	}
	setNonEmpty(v, "region", q.Region)
	setNonEmpty(v, "exclude", strings.Join(q.Exclude, ","))
	setNonEmpty(v, "protocol", q.Protocol)
	if q.BitRate > 0 {
		v.Set("bit_rate", strconv.FormatFloat(q.BitRate, 'f', 0, 64))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Peek {
		v.Set("peek", "1")
	}
	var p Placement
	err := c.call(ctx, "schedule", http.MethodGet, "/api/v1/schedule?"+v.Encode(), nil, &p)
	switch {
	case err == nil:
		err = p.check()
	case errors.Is(err, ErrNotFound):
		err = fmt.Errorf("%w: the server does not know the call", ErrRefused)
	}
	if err != nil {
		return Placement{}, fmt.Errorf("place session: %w", err)
	}
	return p, nil
}

// check refuses an answer from the network that nobody could use.
func (p *Placement) check() error {
	if len(p.Nodes) == 0 {
		return fmt.Errorf("%w: the answer has no node", ErrUnavailable)
	}
	for _, n := range p.Nodes {
		if err := checkOwner(n.ID, "", n.Addr, 0); err != nil {
			return fmt.Errorf("%w: decode answer: %w", ErrUnavailable, err)
		}
	}
	return nil
}

// Decisions lists the last decisions of the server, the oldest first: up to limit
// (1 to MaxPage; 0 for MaxPage) with a number over after. next is the after of the
// following page, or 0 at the end.
func (c *Client) Decisions(ctx context.Context, after uint64, limit int) (page []schedule.Decision, next uint64, err error) {
	v := url.Values{}
	if after > 0 {
		v.Set("after", strconv.FormatUint(after, 10))
	}
	if limit != 0 {
		v.Set("limit", strconv.Itoa(limit))
	}
	var answer decisionsJSON
	if err := c.call(ctx, "decisions", http.MethodGet, "/api/v1/decisions?"+v.Encode(), nil, &answer); err != nil {
		return nil, 0, fmt.Errorf("list decisions: %w", err)
	}
	return answer.Decisions, answer.Next, nil
}

type decisionsJSON struct {
	Decisions []schedule.Decision `json:"decisions"`
	Next      uint64              `json:"next,omitempty"`
}

// decisionNodes bounds the nodes in one page of decisions, to some megabytes.
const decisionNodes = 20_000

func (h *handler) schedule(r *http.Request) (any, error) {
	q, err := query(r, "role", "stream", "vhost", "node_role", "ip", "region", "exclude", "protocol", "bit_rate", "limit", "peek", "why")
	if err != nil {
		return nil, err
	}
	why, err := flag("why", q["why"])
	if err != nil {
		return nil, err
	}
	request, err := placeRequest(q)
	if err != nil {
		return nil, err
	}
	if r.Method == http.MethodHead {
		request.Peek = true
	}
	c, err := h.cfg.Placer.Place(r.Context(), request, why)
	if err != nil {
		if why {
			return nil, &noNode{err, c.Decision}
		}
		return nil, err
	}
	answer := Placement{Decision: c.Decision.Number, Nodes: make([]Placed, len(c.Nodes))}
	for i, n := range c.Nodes {
		answer.Nodes[i] = Placed{n.ID, Role(n.Role), Addr{n.RTMP, n.HTTP, n.API}, n.Region, n.Load}
	}
	if why {
		answer.Why = &c.Decision
	}
	return answer, nil
}

// noNode is ErrNoNode with its reasons.
type noNode struct {
	err error
	why schedule.Decision
}

func (e *noNode) Error() string { return e.err.Error() }
func (e *noNode) Unwrap() error { return e.err }

func (h *handler) decisions(r *http.Request) (any, error) {
	q, err := query(r, "after", "limit")
	if err != nil {
		return nil, err
	}
	limit, err := queryLimit(q["limit"])
	if err != nil {
		return nil, err
	}
	if limit == 0 {
		limit = MaxPage
	}
	var after uint64
	if s := q["after"]; s != "" {
		if after, err = strconv.ParseUint(s, 10, 64); err != nil {
			return nil, fmt.Errorf("%w: after %q is not a number of a decision", ErrInvalid, s)
		}
	}
	page, last := h.cfg.Placer.Decisions(after, limit, decisionNodes)
	answer := decisionsJSON{Decisions: page}
	if len(page) == 0 {
		answer.Decisions = []schedule.Decision{}
	} else if end := page[len(page)-1].Number; end < last {
		answer.Next = end
	}
	return answer, nil
}

func clientAddr(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%w: ip %q is not an address", ErrInvalid, s)
	}
	return a.Unmap(), nil
}

func nodeList(s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	ids := strings.Split(s, ",")
	if len(ids) > maxExclude {
		return nil, fmt.Errorf("%w: more than %d nodes are excluded", ErrInvalid, maxExclude)
	}
	for _, id := range ids {
		if err := checkID("exclude", id); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// flag reads a parameter that is 1, or 0 or nothing.
func flag(name, s string) (bool, error) {
	switch s {
	case "", "0":
		return false, nil
	case "1":
		return true, nil
	}
	return false, fmt.Errorf("%w: %s %q is not 0 or 1", ErrInvalid, name, s)
}
