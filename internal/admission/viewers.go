package admission

import (
	"net/netip"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/hashicorp/golang-lru/v2/simplelru"

	"weir/internal/session"
)

// viewers remembers who watches HLS here. A viewer has no session: all that is known of
// it is that somebody at its address asked for the stream a moment ago. Safe for
// concurrent use.
type viewers struct {
	mu   sync.Mutex
	seen *simplelru.LRU[viewer, seen] // guarded by mu
}

type viewer struct {
	addr   netip.Addr
	stream string
}

// seen is a viewer that was here, or was sent elsewhere.
type seen struct {
	at   time.Time
	to   *session.Redirect // nil: it is here
	node string            // that it was sent to
	hops int
}

const (
	// viewerStays is how long a viewer counts as here after its last playlist.
	viewerStays = 30 * time.Second
	// maxViewers bounds the memory, to some megabytes: beyond it the longest silent are
	// forgotten.
	maxViewers = 50_000
)

func newViewers() *viewers {
	all, _ := simplelru.NewLRU[viewer, seen](maxViewers, nil) // it fails for sizes below one only
	return &viewers{seen: all}
}

// find returns what is known of a viewer, as it was when it asked before, and notes that
// it has asked again.
func (v *viewers) find(now time.Time, w viewer) (seen, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s, ok := v.seen.Get(w)
	if !ok || now.Sub(s.at) >= viewerStays {
		return seen{}, false
	}
	again := s
	again.at = now
	v.seen.Add(w, again)
	return s, true
}

// share is a number from 0 to below 1 that a viewer has, the same in all processes.
func (w viewer) share() float64 {
	var d xxhash.Digest
	d.Reset()
	addr := w.addr.As16()
	_, _ = d.Write(addr[:])
	_, _ = d.WriteString(w.stream)
	return float64(d.Sum64()>>11) / (1 << 53)
}

// enter notes that a viewer is here or, with a redirect of Gate.send, that it was sent
// elsewhere.
func (v *viewers) enter(now time.Time, w viewer, redirect error) {
	s := seen{at: now}
	if r, ok := redirect.(*sentTo); ok {
		s.to, s.node, s.hops = &r.Redirect, r.node, r.hops
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.seen.Add(w, s)
}
