package discovery

import (
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// DefaultVhost is the vhost of streams that name none. It is SRS's word, so that
// mixed clusters agree.
const DefaultVhost = "__defaultVhost__"

// Limits of what the directory takes in, in bytes and entries.
const (
	MaxStreamLen = 512 // of a stream key
	MaxMarkLen   = 128 // of a Watcher's mark
	maxNameLen   = 64  // of ids, instances, versions, label and load names
	maxValueLen  = 256 // of label values
	maxAddrLen   = 261 // a DNS name of 255 bytes, a colon and a port
	maxFacts     = 32  // loads and labels of a node, each
)

// SplitStream cuts a stream key into its parts: vhost up to the first slash, name
// after the last, app between. It fails if a part is empty, the key is longer
// than MaxStreamLen, or it holds control characters or invalid UTF-8, which JSON
// would turn into another key.
func SplitStream(stream string) (vhost, app, name string, err error) {
	if err = CheckStream(stream); err != nil {
		return "", "", "", err
	}
	first, last := strings.IndexByte(stream, '/'), strings.LastIndexByte(stream, '/')
	return stream[:first], stream[first+1 : last], stream[last+1:], nil
}

// CheckStream returns the error that SplitStream would return. It does not
// allocate for a good key.
func CheckStream(stream string) error {
	first, last := strings.IndexByte(stream, '/'), strings.LastIndexByte(stream, '/')
	switch {
	case len(stream) > MaxStreamLen:
		return fmt.Errorf("check stream: %w: key of %d bytes, at most %d are allowed", ErrInvalid, len(stream), MaxStreamLen)
	case first <= 0 || last <= first+1 || last == len(stream)-1 || strings.Contains(stream, "//"):
		return fmt.Errorf("check stream: %w: %q is not vhost/app/name", ErrInvalid, stream)
	case !printable(stream):
		return fmt.Errorf("check stream: %w: %q has control characters or is not UTF-8", ErrInvalid, stream)
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, unicode.IsControl) < 0
}

func checkID(what, id string) error {
	if id == "" || len(id) > maxNameLen || strings.ContainsFunc(id, notInID) {
		return fmt.Errorf("%w: %s %q is not 1 to %d letters, digits or . _ : -", ErrInvalid, what, id, maxNameLen)
	}
	return nil
}

const idAlphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-"

func notInID(r rune) bool { return !strings.ContainsRune(idAlphabet, r) }

// checkHostPort accepts host:port with a numeric port and a host that can stand
// in a URL as it is.
func checkHostPort(addr string) error {
	if len(addr) > maxAddrLen {
		return fmt.Errorf("%w: address of %d bytes", ErrInvalid, len(addr))
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%w: %q is not host:port", ErrInvalid, addr)
	}
	if p, err := strconv.ParseUint(port, 10, 16); err != nil || p == 0 {
		return fmt.Errorf("%w: %q has no port between 1 and 65535", ErrInvalid, addr)
	}
	if host == "" || strings.ContainsFunc(host, notInID) {
		return fmt.Errorf("%w: %q has no host name or IP address", ErrInvalid, addr)
	}
	return nil
}

func (a Addr) check() error {
	var errs []error
	for _, f := range [...]struct{ name, addr string }{{"rtmp", a.RTMP}, {"http", a.HTTP}, {"api", a.API}} {
		if f.addr == "" {
			continue
		}
		if err := checkHostPort(f.addr); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.name, err))
		}
	}
	return errors.Join(errs...)
}

func checkOwner(node, instance string, addr Addr, ttl time.Duration) error {
	if err := checkID("node", node); err != nil {
		return err
	}
	if instance != "" {
		if err := checkID("instance", instance); err != nil {
			return err
		}
	}
	if addr.RTMP == "" && addr.HTTP == "" {
		return fmt.Errorf("%w: an owner needs an rtmp or an http address", ErrInvalid)
	}
	if ttl < 0 {
		return fmt.Errorf("%w: ttl below zero", ErrInvalid)
	}
	return addr.check()
}

func (c Claim) check() error {
	if err := CheckStream(c.Stream); err != nil {
		return err
	}
	if c.Publisher != "" {
		if err := checkID("publisher", c.Publisher); err != nil {
			return err
		}
	}
	return checkOwner(c.Node, c.Instance, c.Addr, c.TTL)
}

func (r Renewal) check() error {
	if err := checkOwner(r.Node, r.Instance, r.Addr, r.TTL); err != nil {
		return err
	}
	for _, h := range r.Leases {
		if err := CheckStream(h.Stream); err != nil {
			return err
		}
		if h.Publisher != "" {
			if err := checkID("publisher", h.Publisher); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n Node) check() error {
	if err := checkID("id", n.ID); err != nil {
		return err
	}
	if n.Instance != "" {
		if err := checkID("instance", n.Instance); err != nil {
			return err
		}
	}
	switch n.Role {
	case RoleOrigin, RoleEdge, RoleDiscovery:
	default:
		return fmt.Errorf("%w: role %q is not origin, edge or discovery", ErrInvalid, n.Role)
	}
	switch n.State {
	case StateStarting, StateUp, StateDraining:
	default:
		return fmt.Errorf("%w: state %q is not starting, up or draining", ErrInvalid, n.State)
	}
	if len(n.Load) > maxFacts || len(n.Labels) > maxFacts {
		return fmt.Errorf("%w: more than %d loads or labels", ErrInvalid, maxFacts)
	}
	for name, v := range n.Load {
		if err := checkID("load", name); err != nil {
			return err
		}
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("%w: load %s is not a number", ErrInvalid, name)
		}
	}
	for name, v := range n.Labels {
		if err := checkID("label", name); err != nil {
			return err
		}
		if len(v) > maxValueLen || !printable(v) {
			return fmt.Errorf("%w: label %s is longer than %d bytes or not printable", ErrInvalid, name, maxValueLen)
		}
	}
	if len(n.Version) > maxNameLen || !printable(n.Version) {
		return fmt.Errorf("%w: version is longer than %d bytes or not printable", ErrInvalid, maxNameLen)
	}
	if n.TTL < 0 {
		return fmt.Errorf("%w: ttl below zero", ErrInvalid)
	}
	return n.Addr.check()
}

func (q WatchQuery) check() error {
	switch q.Role {
	case "", RoleOrigin, RoleEdge, RoleDiscovery:
	default:
		return fmt.Errorf("watch the directory: %w: role %q is not origin, edge or discovery", ErrInvalid, q.Role)
	}
	if len(q.Since) > MaxMarkLen {
		return fmt.Errorf("watch the directory: %w: mark of %d bytes, at most %d are allowed", ErrInvalid, len(q.Since), MaxMarkLen)
	}
	return nil
}

func pageLimit(limit int) (int, error) {
	if limit < 0 || limit > MaxPage {
		return 0, fmt.Errorf("%w: limit %d is not between 1 and %d", ErrInvalid, limit, MaxPage)
	}
	if limit == 0 {
		return MaxPage, nil
	}
	return limit, nil
}
