package limit

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// Rate bounds how often one client may ask: a token bucket for each address, IPv6
// by its /64 network and IPv4 by a network of the length given. Its memory is
// fixed: addresses whose hashes fall together share a bucket, so that a flood from
// many addresses makes it strict, never large. Safe for concurrent use.
type Rate struct {
	perSecond, burst float64
	bits4            int
	seed             maphash.Seed
	shards           [64]rateShard
}

type rateShard struct {
	mu      sync.Mutex
	buckets [1024]bucket // guarded by mu
	_       [64]byte     // shards do not share a cache line
}

type bucket struct {
	tokens float64
	at     int64 // nanoseconds since 1970
}

// NewRate returns a limit of perSecond questions with bursts of up to burst, both
// at least 1. bits4 is the length of IPv4 networks that count as one client, 32 for
// each address. It takes 1 MiB.
func NewRate(perSecond, burst float64, bits4 int) *Rate {
	return &Rate{perSecond: perSecond, burst: burst, bits4: bits4, seed: maphash.MakeSeed()}
}

// Allow reports whether a client may ask at a time, and counts it if so.
func (r *Rate) Allow(addr netip.Addr, now time.Time) bool {
	addr = addr.Unmap().WithZone("")
	bits := 64
	if addr.Is4() {
		bits = r.bits4
	}
	if p, err := addr.Prefix(bits); err == nil {
		addr = p.Addr()
	}
	key := addr.As16()
	h := maphash.Bytes(r.seed, key[:])
	s := &r.shards[h%uint64(len(r.shards))]
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &s.buckets[h>>8%uint64(len(s.buckets))]
	at := now.UnixNano()
	if b.at == 0 {
		b.tokens = r.burst
	} else if past := at - b.at; past > 0 {
		b.tokens = min(r.burst, b.tokens+float64(past)/1e9*r.perSecond)
	}
	b.at = max(b.at, at)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
