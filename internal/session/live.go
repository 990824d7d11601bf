package session

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/internal/admin"
	"weir/internal/fanout"
	"weir/internal/repeat"
	"weir/internal/vhost"
)

// Protocols of sessions.
const (
	protoRTMP = "rtmp"
	protoFLV  = "http-flv"
	protoWS   = "ws-flv"
	protoPull = "worker" // another worker of the node, over its unix socket
)

// live is one session from its begin to its end. Of its memory an edge has thousands.
type live struct {
	// Static once it has begun.
	*alike
	number  uint64 // of the session in its ledger; its id says it
	remote  netip.AddrPort
	since   time.Duration                  // its begin, after the ledger's
	goodbye func(why fanout.Reason) []byte // what a player is told that is moved; nil if words mean nothing to it

	bytes   atomic.Uint64                    // of a publisher
	told    atomic.Bool                      // to go elsewhere
	why     atomic.Pointer[string]           // set by whoever ends the session before it ends by itself
	close   atomic.Pointer[func(why string)] // ends the connection; safe to call at any time; nil once playing does
	playing atomic.Pointer[fanout.Session]   // of a player
	result  atomic.Pointer[fanout.Result]    // of a player that has left
}

// traits are what many sessions have in common.
type traits struct {
	kind     string
	protocol string
	stream   string       // key
	vhost    *vhost.Vhost // of a player
	node     string       // id of the node that the peer is, empty for none
	encoder  string
}

// alike are sessions of the same traits: thousands of players of one stream share it.
type alike struct {
	traits     // static once a session has begun
	n      int // guarded by ledger.mu; sessions under way
}

// newLive returns a session that has not begun.
func newLive(t traits, remote netip.AddrPort) *live {
	return &live{alike: &alike{traits: t}, remote: remote}
}

// onEnd sets what ends the connection until the session plays.
func (l *live) onEnd(close func(why string)) { l.close.Store(&close) }

// play notes that the session is a player in the fan-out, which has its connection.
func (l *live) play(p *fanout.Session) {
	l.playing.Store(p)
	l.close.Store(nil)
}

func (l *live) end(why string) {
	l.why.CompareAndSwap(nil, &why)
	p := l.playing.Load()
	if p == nil {
		if end := l.close.Load(); end != nil {
			(*end)(why)
			return
		}
		p = l.playing.Load() // since just now
	}
	p.End(fanout.Reason(why)) // closes the connection too
}

// reason returns why the session ended: what somebody ended it for, or own.
func (l *live) reason(own string) string {
	if w := l.why.Load(); w != nil {
		return *w
	}
	return own
}

// moved returns the bytes of the session so far and the tags that were lost.
func (l *live) moved() (bytes, skipped uint64) {
	if r := l.result.Load(); r != nil {
		return r.Bytes, r.Skipped
	}
	if p := l.playing.Load(); p != nil {
		return p.Bytes(), p.Skipped()
	}
	return l.bytes.Load(), 0
}

// isPlayer reports a session that counts as a player: another worker of the node
// that attaches here has its players counted there.
func (l *live) isPlayer() bool { return l.kind == KindPlay && l.protocol != protoPull }

func (l *live) remoteName() string { return remoteName(l.remote) }

// remoteName returns the address of a peer; other workers of the node have none.
func remoteName(a netip.AddrPort) string {
	if !a.IsValid() {
		return "local"
	}
	return a.String()
}

func (l *live) peerLabel() string {
	if l.node != "" {
		return "node"
	}
	return "client"
}

// ledger holds the sessions of a process: it numbers them, counts them, lists
// them, and writes their last line. Safe for concurrent use.
type ledger struct {
	log    *slog.Logger
	set    *metrics.Set
	prefix string // of ids: tells the workers of a node apart
	begun  time.Time
	said   repeat.Filter[refusalKind]

	mu       sync.Mutex
	closed   bool              // guarded by mu; no session begins any more
	next     uint64            // guarded by mu
	sessions map[uint64]*live  // guarded by mu; by number
	alike    map[traits]*alike // guarded by mu; of the sessions
	pulls    int               // guarded by mu; of the sessions, those of other workers
	playing  int               // guarded by mu; of the sessions, the players
	streams  map[string]int    // guarded by mu; players by stream key
	vhosts   map[string]int    // guarded by mu; players by vhost
}

func newLedger(log *slog.Logger, set *metrics.Set, prefix string) *ledger {
	return &ledger{
		log: log, set: set, prefix: prefix, begun: time.Now(),
		sessions: map[uint64]*live{}, alike: map[traits]*alike{}, streams: map[string]int{}, vhosts: map[string]int{},
	}
}

// bounds are limits that a new session must fit in; 0 means none.
type bounds struct {
	sessions, players, playersOfStream int
}

// begin enters a session. It fails with a *Refusal over a limit and once all
// sessions were ended. The pulls of other workers are the node's own: they count
// in no limit.
func (g *ledger) begin(l *live, vhostName string, max bounds) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.roomFor(l, vhostName, max); err != nil {
		return err
	}
	if a := g.alike[l.traits]; a != nil {
		l.alike = a
	} else {
		g.alike[l.traits] = l.alike
	}
	l.alike.n++
	g.next++
	l.number, l.since = g.next, time.Since(g.begun)
	g.sessions[l.number] = l
	if l.protocol == protoPull {
		g.pulls++
	}
	if l.isPlayer() {
		g.playing++
		g.streams[l.stream]++
		g.vhosts[vhostName]++
	}
	g.gauge(l).Inc()
	return nil
}

// id returns the id of a session that has begun.
func (g *ledger) id(l *live) string { return g.prefix + strconv.FormatUint(l.number, 36) }

// fits reports why a session could not begin now, nil if it could.
func (g *ledger) fits(l *live, vhostName string, max bounds) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.roomFor(l, vhostName, max)
}

// roomFor is fits. g.mu is held.
func (g *ledger) roomFor(l *live, vhostName string, max bounds) error {
	switch {
	case g.closed:
		return errStopping
	case l.protocol == protoPull:
	case max.sessions > 0 && len(g.sessions)-g.pulls >= max.sessions:
		return &Refusal{Code: Limit, Text: "This node has as many sessions as it may (play.max_sessions)."}
	case !l.isPlayer():
	case max.players > 0 && g.vhosts[vhostName] >= max.players:
		return &Refusal{Code: Limit, Text: "This vhost has as many players as it may (play.max_players)."}
	case max.playersOfStream > 0 && g.streams[l.stream] >= max.playersOfStream:
		return &Refusal{Code: Limit, Text: "This stream has as many players as it may (play.max_players_per_stream)."}
	}
	return nil
}

// withdraw takes a session out that is then refused.
func (g *ledger) withdraw(l *live, vhostName string) {
	g.mu.Lock()
	delete(g.sessions, l.number)
	if l.alike.n--; l.alike.n == 0 {
		delete(g.alike, l.traits)
	}
	if l.protocol == protoPull {
		g.pulls--
	}
	if l.isPlayer() {
		g.playing--
		count(g.streams, l.stream)
		count(g.vhosts, vhostName)
	}
	g.mu.Unlock()
	g.gauge(l).Dec()
}

// finish takes a session out and writes its line.
func (g *ledger) finish(l *live, vhostName, reason string, err error) {
	g.withdraw(l, vhostName)
	if reason = l.reason(reason); l.leftAsAsked(reason) {
		reason, err = string(fanout.Moved), nil
	}
	bytes, skipped := l.moved()
	g.set.GetOrCreateCounter(fmt.Sprintf(`weir_sessions_ended_total{kind=%q,protocol=%q,peer=%q,reason=%q}`, l.kind, l.protocol, l.peerLabel(), reason)).Inc()
	g.set.GetOrCreateCounter(fmt.Sprintf(`weir_session_bytes_total{kind=%q,protocol=%q,peer=%q}`, l.kind, l.protocol, l.peerLabel())).Add(int(bytes))
	if skipped > 0 {
		g.set.GetOrCreateCounter("weir_skipped_tags_total").Add(int(skipped))
	}
	args := []any{
		"id", g.id(l), "kind", l.kind, "protocol", l.protocol, "stream", l.stream, "remote", l.remoteName(),
		"reason", reason, "duration", (time.Since(g.begun) - l.since).Round(time.Millisecond).String(), "bytes", bytes, "lost_frames", skipped,
	}
	if l.node != "" {
		args = append(args, "node", l.node)
	}
	if l.encoder != "" {
		args = append(args, "client", l.encoder)
	}
	if err != nil {
		args = append(args, "err", err)
	}
	g.log.Info("session ended", args...)
}

func count(m map[string]int, key string) {
	if m[key]--; m[key] <= 0 {
		delete(m, key)
	}
}

func (g *ledger) gauge(l *live) *metrics.Counter {
	// A Counter goes down as well; a Gauge with a callback would need one per label set.
	return g.set.GetOrCreateCounter(fmt.Sprintf(`weir_sessions{kind=%q,protocol=%q,peer=%q}`, l.kind, l.protocol, l.peerLabel()))
}

// refusalKind is what refusals have in common that share a line of the log.
type refusalKind struct {
	kind, protocol, reason string
	text                   string     // which of the reasons of that name
	stream                 string     // empty if the reason is no matter of the stream
	host                   netip.Addr // likewise of the client
}

// kindOfRefusal returns what a refusal is one more of. What the node cannot or will not
// do, as when discovery is away, is the same for all streams and clients; what a client
// does wrong is its own; the rest is a matter of the stream.
func kindOfRefusal(kind, protocol, reason, stream string, remote netip.AddrPort, err error) refusalKind {
	k := refusalKind{kind: kind, protocol: protocol, reason: reason}
	switch Code(reason) {
	case Unavailable, Limit:
		if r := (*Refusal)(nil); errors.As(err, &r) {
			k.text = r.Text
		}
	case Stopping, Draining, Overload:
	case Denied:
		k.stream, k.host = stream, remote.Addr()
	default:
		if k.stream = stream; stream == "" {
			k.host = remote.Addr()
		}
	}
	return k
}

// refused counts a request that did not become a session, and logs it unless another of
// its kind was logged within the last minute: clients try again and again. All but
// stream and remote are words of weir's own: they are labels.
func (g *ledger) refused(kind, protocol, reason, stream string, remote netip.AddrPort, err error) {
	g.set.GetOrCreateCounter(fmt.Sprintf(`weir_refused_total{kind=%q,protocol=%q,reason=%q}`, kind, protocol, reason)).Inc()
	n, since := g.said.Due(kindOfRefusal(kind, protocol, reason, stream, remote, err), time.Now())
	if n == 0 {
		return
	}
	args := []any{"kind", kind, "protocol", protocol, "stream", stream, "remote", remoteName(remote), "reason", reason, "err", err}
	if n > 1 {
		args = append(args, "refusals", n, "since", since)
	}
	g.log.Info("session refused", args...)
}

// players returns the number of players of a stream.
func (g *ledger) players(stream string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.streams[stream]
}

// overQuota reports whether a vhost has as many players as its quota or more.
func (g *ledger) overQuota(v *vhost.Vhost) bool {
	quota := v.Config.Play.Quota
	if quota == 0 {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.vhosts[v.Name] >= quota
}

func (g *ledger) list() []admin.SessionInfo {
	g.mu.Lock()
	all := make([]*live, 0, len(g.sessions))
	for _, l := range g.sessions {
		all = append(all, l)
	}
	g.mu.Unlock()
	infos := make([]admin.SessionInfo, len(all))
	for i, l := range all {
		bytes, skipped := l.moved()
		infos[i] = admin.SessionInfo{
			ID: g.id(l), Kind: l.kind, Stream: l.stream, Remote: l.remoteName(), Protocol: l.protocol,
			Since: g.begun.Add(l.since), Bytes: bytes, LostFrames: skipped,
		}
	}
	return infos
}

// find returns the session under way of an id, nil if there is none.
func (g *ledger) find(id string) *live {
	digits, ok := strings.CutPrefix(id, g.prefix)
	number, err := strconv.ParseUint(digits, 36, 64)
	if !ok || err != nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if l := g.sessions[number]; l != nil && g.id(l) == id { // no other spelling
		return l
	}
	return nil
}

// endAll ends all sessions, and those that are about to begin.
func (g *ledger) endAll(why string) {
	g.mu.Lock()
	g.closed = true
	all := make([]*live, 0, len(g.sessions))
	for _, l := range g.sessions {
		all = append(all, l)
	}
	g.mu.Unlock()
	for _, l := range all {
		l.end(why)
	}
}
