package discovery

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// MemoryConfig holds the limits of a Memory. ServerConfig makes it from its keys.
type MemoryConfig struct {
	LeaseTTL    time.Duration // of claims and renewals that ask for none
	MaxLeaseTTL time.Duration // longer wishes, also of nodes, are cut to this
	NodeTTL     time.Duration // of heartbeats that ask for none
	MaxStreams  int
	MaxNodes    int
}

// Memory is the engine that keeps the directory in one process. It starts empty
// and is restored by the renewals of the nodes. It keeps up to MaxStreams leases
// (about 0.4 KB each), the epochs of as many that ended, and MaxNodes nodes.
// Leases and nodes end on time for every reader; Run gives their memory back.
// Safe for concurrent use.
//
// What a restart can cost: an ownership that began and ended before it is
// forgotten, so a node that was cut off since before then may restore its older
// lease; and a claim that comes before the owner's next renewal is granted, as
// the later ownership.
type Memory struct {
	// Static.
	cfg MemoryConfig
	log *slog.Logger
	set *metrics.Set
	met memoryMetrics
	// feed has the changes of streams and nodes. Its lock is taken under mu.
	feed *feed

	mu sync.RWMutex // guards all below; never held while logging
	// streams may hold leases that have expired; nobody may see those.
	streams map[string]*Lease
	nodes   map[string]*Node
	// toldNodes is what the feed last said of nodes, and when (Seen).
	toldNodes map[string]*Node
	// twins are of ids that have had more than one instance.
	twins  twins
	epochs epochClock
	// ended remembers the last epoch of streams without a lease, so that an
	// older one cannot be restored after it.
	ended map[string]ended
	// kicks are those of the last MaxLeaseTTL, in which owners renew and hear of them,
	// and bans.
	kicks kicks
	// forgotten is the largest epoch that was dropped from ended: of streams
	// that are in neither map, only later epochs can be restored.
	forgotten uint64
	lastSweep time.Time
}

type ended struct {
	epoch    uint64
	at       time.Time
	released bool // by its holder: the epoch itself cannot be restored either
}

// endedFor is how long the epoch of an ended lease is remembered by name. It
// only has to outlast the outages after which nodes should keep their epochs.
const endedFor = 10 * time.Minute

// sweepEvery is how often the memory of expired entries is given back.
const sweepEvery = time.Second

// lockedSteps is the number of entries that a long walk handles before it lets
// others have the lock: some tens of microseconds.
const lockedSteps = 256

type memoryMetrics struct {
	granted, kept, taken, conflict, banned, full *metrics.Counter // claims
	found, notFound                              *metrics.Counter // lookups
	renewed, restored, lost                      *metrics.Counter // leases of renewals
	expired, kicked                              *metrics.Counter
	twinBeats                                    *metrics.Counter
}

// NewMemory returns an empty directory. cfg must be valid (see ServerConfig).
// log and set may be nil. Only one Memory can report to a set.
func NewMemory(cfg MemoryConfig, log *slog.Logger, set *metrics.Set) *Memory {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if set == nil {
		set = metrics.NewSet()
	}
	m := &Memory{
		cfg: cfg,
		log: log,
		set: set,
		met: memoryMetrics{
			granted:   set.NewCounter(`weir_discovery_claims_total{result="granted"}`),
			kept:      set.NewCounter(`weir_discovery_claims_total{result="kept"}`),
			taken:     set.NewCounter(`weir_discovery_claims_total{result="taken_over"}`),
			conflict:  set.NewCounter(`weir_discovery_claims_total{result="conflict"}`),
			banned:    set.NewCounter(`weir_discovery_claims_total{result="banned"}`),
			full:      set.NewCounter(`weir_discovery_claims_total{result="full"}`),
			found:     set.NewCounter(`weir_discovery_lookups_total{result="found"}`),
			notFound:  set.NewCounter(`weir_discovery_lookups_total{result="not_found"}`),
			renewed:   set.NewCounter(`weir_discovery_renewals_total{result="kept"}`),
			restored:  set.NewCounter(`weir_discovery_renewals_total{result="restored"}`),
			lost:      set.NewCounter(`weir_discovery_renewals_total{result="lost"}`),
			expired:   set.NewCounter(`weir_discovery_leases_expired_total`),
			kicked:    set.NewCounter(`weir_discovery_kicks_total`),
			twinBeats: set.NewCounter(`weir_discovery_twin_heartbeats_total`),
		},
		feed:      newFeed(),
		streams:   make(map[string]*Lease),
		nodes:     make(map[string]*Node),
		toldNodes: make(map[string]*Node),
		twins:     make(twins),
		ended:     make(map[string]ended),
		kicks:     make(kicks),
	}
	set.NewGauge(`weir_discovery_leases`, func() float64 { return float64(m.countLeases()) })
	set.NewGauge(`weir_discovery_nodes`, func() float64 { return float64(m.countNodes()) })
	return m
}

// Metrics returns the set that the engine reports to. A Server of it counts there
// as well.
func (m *Memory) Metrics() *metrics.Set { return m.set }

// change is one ownership change, collected under the lock and logged after it.
type change struct {
	lease Lease
	from  string // owner before, if any
	cause string
}

func (m *Memory) logChanges(changes []change) {
	for _, c := range changes {
		m.log.Info("stream ownership changed", "stream", c.lease.Stream, "cause", c.cause,
			"node", c.lease.Node, "epoch", c.lease.Epoch, "from", c.from)
	}
}

// Claim implements Leases.
func (m *Memory) Claim(_ context.Context, c Claim) (Lease, error) {
	if err := c.check(); err != nil {
		return Lease{}, fmt.Errorf("claim stream: %w", err)
	}
	lease, changes, err := m.claim(c)
	m.logChanges(changes)
	return lease, err
}

func (m *Memory) claim(c Claim) (Lease, []change, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	fresh := Lease{Stream: c.Stream, Node: c.Node, Instance: c.Instance, Addr: c.Addr, Publisher: c.Publisher, Expires: now.Add(m.leaseTTL(c.TTL))}

	cur, changes := m.current(c.Stream, now)
	if err := m.kicks.ban(c.Stream, now); err != nil {
		m.met.banned.Inc()
		return Lease{}, changes, err
	}
	if cur == nil {
		room, swept := m.roomForStream(now)
		changes = append(changes, swept...)
		if !room {
			m.met.full.Inc()
			return Lease{}, changes, fmt.Errorf("claim stream %s: %w: %d streams", c.Stream, ErrFull, m.cfg.MaxStreams)
		}
		cause := "claimed"
		if m.restorable(c.Stream, c.Held, now) {
			fresh.Epoch, cause = c.Held, "restored"
		} else {
			fresh.Epoch = m.epochs.next(now)
		}
		m.put(fresh, now)
		m.met.granted.Inc()
		return fresh, append(changes, change{fresh, "", cause}), nil
	}

	later := c.Held > cur.Epoch && plausible(c.Held, now)
	var cause string
	switch {
	case cur.Node == c.Node && cur.Instance == c.Instance:
		fresh.Epoch = cur.Epoch
		if later {
			fresh.Epoch = c.Held
			m.epochs.see(c.Held, now)
		}
		changed := cur.Idle || !sameOwnership(*cur, fresh) || cur.Publisher != fresh.Publisher
		*cur = fresh
		if changed {
			m.tell(fresh)
		}
		m.met.kept.Inc()
		return fresh, changes, nil
	case later:
		cause = "later epoch"
	case cur.Node == c.Node:
		cause = "node restarted"
	case cur.Idle:
		cause = "claimed while idle"
	case c.Publisher != "" && c.Publisher == cur.Publisher:
		cause = "same publisher"
	case c.Dead != 0 && c.Dead == cur.Epoch:
		cause = "owner dead"
	case c.Replace:
		cause = "replaced"
	default:
		m.met.conflict.Inc()
		return Lease{}, changes, &ConflictError{Lease: *cur}
	}
	from := cur.Node
	if later {
		fresh.Epoch = c.Held
	} else {
		fresh.Epoch = m.epochs.next(now)
	}
	m.put(fresh, now)
	m.met.taken.Inc()
	return fresh, append(changes, change{fresh, from, cause}), nil
}

// Renew implements Leases. The leases of one renewal are not prolonged in one
// atomic step.
func (m *Memory) Renew(ctx context.Context, r Renewal) ([]Lost, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("renew leases: %w", err)
	}
	var lost []Lost
	restored := 0
	for part := range slices.Chunk(r.Leases, lockedSteps) {
		if err := ctx.Err(); err != nil {
			return lost, fmt.Errorf("renew leases: %w", err)
		}
		var changes []change
		m.mu.Lock()
		now := time.Now()
		for _, h := range part {
			gone, back, ch := m.renew(r, h, now)
			if gone != nil {
				lost = append(lost, *gone)
			}
			if back {
				restored++
			}
			changes = append(changes, ch...)
		}
		m.mu.Unlock()
		m.logChanges(changes)
	}
	if restored > 0 {
		m.met.restored.Add(restored)
		m.log.Info("leases restored", "node", r.Node, "count", restored)
	}
	m.met.lost.Add(len(lost))
	m.met.renewed.Add(len(r.Leases) - len(lost) - restored)
	return lost, nil
}

// renew handles one lease of a renewal. restored is set if it came back from
// nowhere; those are logged once per renewal.
func (m *Memory) renew(r Renewal, h Held, now time.Time) (gone *Lost, restored bool, changes []change) {
	expires := now.Add(m.leaseTTL(r.TTL))
	cur, changes := m.current(h.Stream, now)
	kicked := m.kicks.ended(h.Stream, h.Epoch, now)
	switch {
	case cur == nil && kicked != nil:
		return &Lost{Stream: h.Stream, Epoch: h.Epoch, Kicked: kicked}, false, changes
	case cur == nil:
		room, swept := m.roomForStream(now)
		changes = append(changes, swept...)
		if !room || !m.restorable(h.Stream, h.Epoch, now) {
			return &Lost{Stream: h.Stream, Epoch: h.Epoch}, false, changes
		}
		m.put(Lease{Stream: h.Stream, Node: r.Node, Instance: r.Instance, Epoch: h.Epoch, Addr: r.Addr, Publisher: h.Publisher, Idle: h.Idle, Expires: expires}, now)
		return nil, true, changes
	case cur.Epoch == h.Epoch && cur.Node == r.Node && cur.Instance == r.Instance:
		changed := cur.Idle != h.Idle || cur.Addr != r.Addr || cur.Publisher != h.Publisher
		cur.Idle, cur.Publisher, cur.Expires = h.Idle, h.Publisher, expires
		if changed {
			cur.Addr = r.Addr
			m.tell(*cur)
		}
		return nil, false, changes
	case h.Epoch > cur.Epoch && plausible(h.Epoch, now):
		from := cur.Node
		l := Lease{Stream: h.Stream, Node: r.Node, Instance: r.Instance, Epoch: h.Epoch, Addr: r.Addr, Publisher: h.Publisher, Idle: h.Idle, Expires: expires}
		m.put(l, now)
		return nil, false, append(changes, change{l, from, "later epoch"})
	}
	l := *cur
	return &Lost{Stream: h.Stream, Epoch: h.Epoch, Now: &l}, false, changes
}

// Release implements Leases.
func (m *Memory) Release(_ context.Context, l Lease) error {
	if err := CheckStream(l.Stream); err != nil {
		return fmt.Errorf("release lease: %w", err)
	}
	m.mu.Lock()
	cur, changes := m.current(l.Stream, time.Now())
	var err error
	switch {
	case cur == nil:
	case cur.Node == l.Node && cur.Epoch == l.Epoch:
		changes = append(changes, m.end(cur, "released", time.Now()))
	default:
		err = &ConflictError{Lease: *cur}
	}
	m.mu.Unlock()
	m.logChanges(changes)
	return err
}

// Lookup implements Finder. It does not allocate when the stream is found.
func (m *Memory) Lookup(_ context.Context, stream string) (Lease, error) {
	m.mu.RLock()
	l := m.streams[stream]
	if l == nil || !time.Now().Before(l.Expires) {
		m.mu.RUnlock()
		m.met.notFound.Inc()
		if err := CheckStream(stream); err != nil {
			return Lease{}, fmt.Errorf("look up stream: %w", err)
		}
		return Lease{}, fmt.Errorf("look up stream %s: %w", stream, ErrNotFound)
	}
	found := *l
	m.mu.RUnlock()
	m.met.found.Inc()
	return found, nil
}

// endLeases ends all leases that match and returns their number.
func (m *Memory) endLeases(cause string, match func(*Lease) bool) int {
	var changes []change
	m.mu.Lock()
	steps := 0
	for _, l := range m.streams {
		if match(l) {
			changes = append(changes, m.end(l, cause, time.Now()))
		}
		// The loop steps with the lock held, so others may change the map here.
		if steps++; steps%lockedSteps == 0 {
			m.mu.Unlock()
			m.mu.Lock()
		}
	}
	m.mu.Unlock()
	m.logChanges(changes)
	return len(changes)
}

// Streams implements Engine. The page is no snapshot: leases that change during
// the walk may be seen before or after their change.
func (m *Memory) Streams(_ context.Context, q StreamQuery) ([]Lease, string, error) {
	limit, err := pageLimit(q.Limit)
	if err != nil {
		return nil, "", fmt.Errorf("list streams: %w", err)
	}
	now := time.Now()
	return page(m, m.streams, q.After, limit, func(key string, l *Lease) bool {
		return now.Before(l.Expires) && strings.HasPrefix(key, q.Prefix) && (q.Node == "" || l.Node == q.Node)
	})
}

// Nodes implements Engine. Each node's maps are shared with other readers: do
// not change them.
func (m *Memory) Nodes(_ context.Context, q NodeQuery) ([]Node, string, error) {
	limit, err := pageLimit(q.Limit)
	if err != nil {
		return nil, "", fmt.Errorf("list nodes: %w", err)
	}
	now := time.Now()
	return page(m, m.nodes, q.After, limit, func(_ string, n *Node) bool {
		return n.alive(now) && (q.Role == "" || n.Role == q.Role)
	})
}

// page returns the limit smallest keys after a key that match, and the key to go
// on after. It walks the whole map and keeps at most two pages.
func page[V any](m *Memory, all map[string]*V, after string, limit int, match func(string, *V) bool) ([]V, string, error) {
	type item struct {
		key string
		val V
	}
	byKey := func(a, b item) int { return strings.Compare(a.key, b.key) }
	keep := limit + 1 // one more than a page tells whether another follows
	var best []item
	cut := "" // keys from here on cannot be in the page
	steps := 0
	m.mu.RLock()
	for key, v := range all {
		if key > after && (cut == "" || key < cut) && match(key, v) {
			best = append(best, item{key, *v})
			if len(best) == 2*keep {
				slices.SortFunc(best, byKey)
				best = best[:keep]
				cut = best[keep-1].key
			}
		}
		// As in Goodbye: writers may have the lock between two steps.
		if steps++; steps%lockedSteps == 0 {
			m.mu.RUnlock()
			m.mu.RLock()
		}
	}
	m.mu.RUnlock()
	slices.SortFunc(best, byKey)
	next := ""
	if len(best) > limit {
		best = best[:limit]
		next = best[limit-1].key
	}
	out := make([]V, len(best))
	for i := range best {
		out[i] = best[i].val
	}
	return out, next, nil
}

// Run sweeps expired leases and nodes until ctx ends. It returns nil.
func (m *Memory) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			m.sweep()
		}
	}
}

func (m *Memory) sweep() {
	var changes []change
	steps := 0
	m.mu.Lock()
	for _, l := range m.streams {
		if now := time.Now(); !now.Before(l.Expires) {
			changes = append(changes, m.end(l, "expired", now))
		}
		// As in Goodbye.
		if steps++; steps%lockedSteps == 0 {
			m.mu.Unlock()
			m.mu.Lock()
		}
	}
	for stream, e := range m.ended {
		if time.Since(e.at) >= endedFor {
			m.forgotten = max(m.forgotten, e.epoch)
			delete(m.ended, stream)
		}
		if steps++; steps%lockedSteps == 0 {
			m.mu.Unlock()
			m.mu.Lock()
		}
	}
	m.kicks.sweep(m.cfg.MaxLeaseTTL, time.Now())
	gone := m.sweepNodes(time.Now())
	m.mu.Unlock()
	m.logChanges(changes)
	for _, id := range gone {
		m.log.Warn("node is silent", "node", id)
	}
}

// The functions below expect mu to be held for writing.

// current returns the lease of a stream that is in force, or nil. An expired one
// is ended here.
func (m *Memory) current(stream string, now time.Time) (*Lease, []change) {
	l := m.streams[stream]
	if l == nil || now.Before(l.Expires) {
		return l, nil
	}
	return nil, []change{m.end(l, "expired", now)}
}

func (m *Memory) put(l Lease, now time.Time) {
	m.epochs.see(l.Epoch, now)
	delete(m.ended, l.Stream)
	m.streams[l.Stream] = &l
	m.tell(l)
}

func (m *Memory) end(l *Lease, cause string, now time.Time) change {
	delete(m.streams, l.Stream)
	m.feed.add(Event{Ended: &End{l.Stream, l.Epoch}})
	if cause == "expired" {
		m.met.expired.Inc()
	}
	if len(m.ended) >= m.cfg.MaxStreams {
		for _, e := range m.ended {
			m.forgotten = max(m.forgotten, e.epoch)
		}
		clear(m.ended)
	}
	m.ended[l.Stream] = ended{epoch: l.Epoch, at: now, released: cause != "expired"}
	return change{Lease{Stream: l.Stream, Epoch: l.Epoch}, l.Node, cause}
}

// restorable reports whether a lease of this epoch may come back for a stream
// that has none: it must not be older than an ownership that was in force here.
func (m *Memory) restorable(stream string, epoch uint64, now time.Time) bool {
	if !plausible(epoch, now) {
		return false
	}
	if e, ok := m.ended[stream]; ok {
		return epoch > e.epoch || epoch == e.epoch && !e.released
	}
	return epoch > m.forgotten
}

// roomForStream reports whether one more stream fits. A full directory is swept
// for room, but not more than once per sweepEvery: it walks the whole map.
func (m *Memory) roomForStream(now time.Time) (room bool, changes []change) {
	if len(m.streams) < m.cfg.MaxStreams {
		return true, nil
	}
	if now.Sub(m.lastSweep) < sweepEvery {
		return false, nil
	}
	m.lastSweep = now
	for _, l := range m.streams {
		if !now.Before(l.Expires) {
			changes = append(changes, m.end(l, "expired", now))
		}
	}
	return len(m.streams) < m.cfg.MaxStreams, changes
}

func (m *Memory) sweepNodes(now time.Time) (gone []string) {
	for id, n := range m.nodes {
		if !n.alive(now) {
			m.dropNode(id)
			gone = append(gone, id)
		}
	}
	return gone
}

func (m *Memory) leaseTTL(wish time.Duration) time.Duration {
	if wish == 0 {
		wish = m.cfg.LeaseTTL
	}
	return min(wish, m.cfg.MaxLeaseTTL)
}

func (m *Memory) countLeases() (n int) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	now := time.Now()
	for _, l := range m.streams {
		if now.Before(l.Expires) {
			n++
		}
	}
	return n
}

func (m *Memory) countNodes() (n int) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	now := time.Now()
	for _, node := range m.nodes {
		if node.alive(now) {
			n++
		}
	}
	return n
}

func (n *Node) alive(now time.Time) bool { return now.Before(n.Seen.Add(n.TTL)) }
