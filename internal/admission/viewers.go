package admission

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// viewers remembers who watches HLS here. A viewer has no session: all that is known of
// it is that somebody at its address asked for the stream a moment ago. Safe for
// concurrent use.
type viewers struct {
	mu   sync.Mutex
	seen *simplelru.LRU[viewer, time.Time] // guarded by mu
}

type viewer struct {
	addr   netip.Addr
	stream string
}

const (
	// viewerStays is how long a viewer counts as here after its last playlist.
	viewerStays = 30 * time.Second
	// maxViewers bounds the memory, to some megabytes: beyond it the longest silent are
	// forgotten.
	maxViewers = 50_000
)

func newViewers() *viewers {
	seen, _ := simplelru.NewLRU[viewer, time.Time](maxViewers, nil) // it fails for sizes below one only
	return &viewers{seen: seen}
}

// here reports whether a viewer was here, and notes that it is if it was, or if enter
// is set.
func (v *viewers) here(now time.Time, w viewer, enter bool) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	at, ok := v.seen.Get(w)
	known := ok && now.Sub(at) < viewerStays
	if known || enter {
		v.seen.Add(w, now)
	}
	return known
}
