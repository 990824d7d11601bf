package discovery

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"weir/discovery/schedule"
)

// This file holds the JSON forms of API v1 (docs/discovery-api.md). Times travel
// as milliseconds from now, so that the clocks of two machines need not agree.

type leaseJSON struct {
	Stream   string `json:"stream"`
	Node     string `json:"node"`
	Instance string `json:"instance,omitempty"`
	Epoch    uint64 `json:"epoch"`
	Addr
	Publisher string `json:"publisher,omitempty"`
	Idle      bool   `json:"idle"`
	TTLms     int64  `json:"ttl_ms"`
}

// MarshalJSON writes the lease with the time it has left from now on.
func (l Lease) MarshalJSON() ([]byte, error) {
	return json.Marshal(leaseJSON{
		Stream: l.Stream, Node: l.Node, Instance: l.Instance, Epoch: l.Epoch, Addr: l.Addr, Publisher: l.Publisher, Idle: l.Idle,
		TTLms: max(0, time.Until(l.Expires).Milliseconds()),
	})
}

// UnmarshalJSON reads what MarshalJSON wrote; Expires is on the local clock.
func (l *Lease) UnmarshalJSON(data []byte) error {
	var w leaseJSON
	if err := json.Unmarshal(data, &w); err != nil {
		return fmt.Errorf("decode lease: %w", err)
	}
	ttl, err := fromMillis(w.TTLms)
	if err != nil {
		return fmt.Errorf("decode lease: %w", err)
	}
	*l = Lease{
		Stream: w.Stream, Node: w.Node, Instance: w.Instance, Epoch: w.Epoch, Addr: w.Addr, Publisher: w.Publisher, Idle: w.Idle,
		Expires: time.Now().Add(ttl),
	}
	return nil
}

// check refuses a lease from the network that nobody could use.
func (l Lease) check() error {
	if err := CheckStream(l.Stream); err != nil {
		return err
	}
	return checkOwner(l.Node, l.Instance, l.Addr, 0)
}

type nodeJSON struct {
	ID       string `json:"id"`
	Instance string `json:"instance,omitempty"`
	Role     Role   `json:"role"`
	Addr
	State   State              `json:"state"`
	Load    map[string]float64 `json:"load,omitempty"`
	Labels  map[string]string  `json:"labels,omitempty"`
	Version string             `json:"version,omitempty"`
	TTLms   int64              `json:"ttl_ms,omitempty"`
}

type listedNodeJSON struct {
	nodeJSON
	AgeMs int64 `json:"age_ms"` // since the last heartbeat
}

func (n Node) wire() nodeJSON {
	return nodeJSON{n.ID, n.Instance, n.Role, n.Addr, n.State, n.Load, n.Labels, n.Version, n.TTL.Milliseconds()}
}

func (w nodeJSON) node() (Node, error) {
	ttl, err := fromMillis(w.TTLms)
	return Node{
		ID: w.ID, Instance: w.Instance, Role: w.Role, Addr: w.Addr, State: w.State,
		Load: w.Load, Labels: w.Labels, Version: w.Version, TTL: ttl,
	}, err
}

type claimJSON struct {
	Stream   string `json:"stream"`
	Node     string `json:"node"`
	Instance string `json:"instance,omitempty"`
	Addr
	TTLms     int64  `json:"ttl_ms,omitempty"`
	Replace   bool   `json:"replace,omitempty"`
	Publisher string `json:"publisher,omitempty"`
	Dead      uint64 `json:"dead,omitempty"`
	Held      uint64 `json:"held,omitempty"`
}

type renewalJSON struct {
	Node     string `json:"node"`
	Instance string `json:"instance,omitempty"`
	Addr
	TTLms  int64  `json:"ttl_ms,omitempty"`
	Leases []Held `json:"leases"`
}

type lostJSON struct {
	Lost []Lost `json:"lost"`
}

type releaseJSON struct {
	Stream string `json:"stream"`
	Node   string `json:"node"`
	Epoch  uint64 `json:"epoch"`
}

type goodbyeJSON struct {
	ID       string `json:"id"`
	Instance string `json:"instance,omitempty"`
}

type streamsJSON struct {
	Streams []Lease `json:"streams"`
	Next    string  `json:"next,omitempty"`
}

type nodesJSON struct {
	Nodes []listedNodeJSON `json:"nodes"`
	Next  string           `json:"next,omitempty"`
}

type errorJSON struct {
	Code   string  `json:"code"`
	Error  string  `json:"error"`
	Lease  *Lease  `json:"lease,omitempty"`  // with code "conflict"
	Kicked *Kicked `json:"kicked,omitempty"` // with code "banned"
	// Why has the reasons with code "no_node", if they were asked for.
	Why *schedule.Decision `json:"why,omitempty"`
}

// The codes of error answers.
const (
	codeInvalid      = "invalid"
	codeUnauthorized = "unauthorized"
	codeNotFound     = "not_found"
	codeMethod       = "method_not_allowed"
	codeConflict     = "conflict"
	codeBanned       = "banned"
	codeTooLarge     = "too_large"
	codeMediaType    = "unsupported_media_type"
	codeFull         = "full"
	codeNoNode       = "no_node"
	codeUnavailable  = "unavailable"
	codeInternal     = "internal"
)

func fromMillis(ms int64) (time.Duration, error) {
	if ms < 0 || ms > math.MaxInt64/int64(time.Millisecond) {
		return 0, fmt.Errorf("%w: %d ms is out of range", ErrInvalid, ms)
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// decodeStrict reads exactly one JSON value without unknown keys.
func decodeStrict(r io.Reader, into any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value")
	}
	return nil
}

// encode writes v on one line, with <, > and & as they are.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
