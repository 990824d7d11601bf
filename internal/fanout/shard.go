package fanout

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weir/internal/media"
	"weir/internal/stream"
)

// shard is one goroutine that writes to players. All fields without another owner
// are its goroutine's.
type shard struct {
	e    *Engine
	turn time.Duration // static; of its rounds at the bound behind multiples of that
	wake chan struct{} // capacity 1: a stream of the groups has grown
	post chan struct{} // capacity 1: there is mail
	done chan struct{} // closed by stop

	groups map[groupKey]*group
	list   []*group // the same, to be walked
	pace   pace
	last   time.Time // when the last round began
	out    *socketWriter
	batch  batch
	pays   func(bytes, players int) bool // worthPages, but in tests
	ways   ways
	sends  int  // of this round
	warm   bool // there is an opening that time has to drop

	// For the making of blocks.
	entries [8]stream.Entry
	tags    []media.Tag
	reading *stream.Cursor // that the tags are from; nil without any
	pieces  []piece        // of the block that is made
	cuts    []int          // among tags, where pieces end

	full atomic.Bool // the pace is at its bound

	mu     sync.Mutex
	letter []*Session // guarded by mu; mail not yet read
}

// groupKey is what the players of a group have in common: they get the same bytes.
type groupKey struct {
	stream *stream.Stream
	format Format
}

// batchBytes is about how much is made and sent of a group at a time: the few tags
// that exceed it included.
const batchBytes = 256 << 10

func newShard(e *Engine, latency time.Duration, slot int) *shard {
	s := &shard{
		e: e, turn: turnOf(latency, slot), wake: make(chan struct{}, 1), post: make(chan struct{}, 1), done: make(chan struct{}),
		groups: map[groupKey]*group{}, pace: newPace(latency, slot), out: newSocketWriter(e.opt.hooks.send),
		pays: e.opt.hooks.pays,
	}
	s.batch = newBatch(s.out, e.withoutRing, e.opt.Plain || e.opt.hooks.send != nil)
	if s.pays == nil {
		s.pays = worthPages
	}
	return s
}

// deliver puts a session into the shard's mail. Safe for concurrent use.
func (s *shard) deliver(p *Session) {
	s.mu.Lock()
	s.letter = append(s.letter, p)
	s.mu.Unlock()
	s.nudge()
}

// nudge has the shard look at its mail and its groups. Safe for concurrent use.
func (s *shard) nudge() {
	select {
	case s.post <- struct{}{}:
	default:
	}
}

// stop ends run. All sessions are over by then.
func (s *shard) stop() { close(s.done) }

// run is the shard's whole life.
func (s *shard) run() {
	defer s.out.pages.close()
	defer s.batch.close()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	timer.Stop()
	planned := false // the timer runs for the next round
	round := func(late time.Duration) {
		s.round(late)
		if planned = false; s.warm {
			timer.Reset(openingIdle)
		} else {
			timer.Stop()
		}
	}
	var due time.Time // of the next round, if planned
	for {
		wake := s.wake
		if planned {
			wake = nil // growing streams need not wake the shard before
		}
		select {
		case <-s.done:
			for i := len(s.list) - 1; i >= 0; i-- {
				s.drop(s.list[i]) // streams outlive the engine
			}
			return
		case <-s.post:
			s.read()
			if planned {
				continue
			}
		case <-wake:
		case <-timer.C:
			late := time.Duration(0)
			if planned {
				late = time.Since(due)
			}
			round(late)
			continue
		}
		now := time.Now()
		if left := s.pace.wait(now, s.last); left > 0 {
			timer.Reset(left)
			planned, due = true, now.Add(left)
			continue
		}
		round(0)
	}
}

// round sends what is new of all streams, that much later than planned.
func (s *shard) round(late time.Duration) {
	begun := time.Now()
	s.last = begun
	s.sends, s.out.calls, s.warm = 0, 0, false
	players, grown := 0, false
	for i := 0; i < len(s.list); i++ {
		g := s.list[i]
		grown = s.flush(g) || grown
		if g.members.Load() == 0 && s.drop(g) {
			i--
			continue
		}
		if g.opening.bytes != nil {
			if begun.Sub(g.opening.used) > openingIdle {
				g.opening = opening{}
			} else {
				s.warm = true
			}
		}
		players += len(g.healthy)
	}
	s.submit()
	if f := s.e.opt.hooks.round; f != nil {
		f(s)
	}
	took := time.Since(begun)
	s.pace.round(took, s.sends, players, len(s.list))
	s.full.Store(s.pace.full)
	if grown && s.e.opt.OnFlush != nil {
		s.e.opt.OnFlush(late, took, s.sends, s.out.calls)
	}
}

// drop forgets a group without players, unless one has just come.
func (s *shard) drop(g *group) bool {
	if !g.close() {
		return false
	}
	g.key.stream.Unsubscribe(s.wake)
	g.cursor.LetGo()
	delete(s.groups, g.key)
	i := slices.Index(s.list, g)
	s.list = slices.Delete(s.list, i, i+1)
	return true
}

// read looks after the sessions in the mail.
func (s *shard) read() {
	s.mu.Lock()
	mail := s.letter
	s.letter = nil
	s.mu.Unlock()
	for _, p := range mail {
		p.mu.Lock()
		p.mailed = false
		place := p.place
		p.mu.Unlock()
		switch place {
		case arriving:
			s.admit(p)
		case sharded:
			s.asked(p)
		}
	}
}

// admit takes a session in: a new one, or one whose chaser has caught up.
func (s *shard) admit(p *Session) {
	if p.group == nil {
		p.group = s.group(groupKey{p.p.Stream, p.p.Format})
	}
	p.move(sharded)
	if !s.asked(p) {
		return
	}
	if p.started {
		s.readmit(p)
	} else {
		s.join(p)
	}
}

// group returns the group of a key, with one member more.
func (s *shard) group(key groupKey) *group {
	g := s.groups[key]
	if g == nil {
		g = newGroup(key)
		s.groups[key] = g
		s.list = append(s.list, g)
		key.stream.Subscribe(s.wake)
	}
	g.members.Add(1)
	return g
}

// asked does what was asked of a session that the shard has. It reports false if
// the shard has it no more.
func (s *shard) asked(p *Session) bool {
	inject, wish, reason := p.take()
	switch {
	case reason != "":
		s.finish(p, reason, nil)
		return false
	case wish.special():
		s.chase(p, inject, nil)
		return false
	case len(inject) > 0:
		return s.inject(p, inject)
	}
	return true
}

// join places a new player: it gets the stream from its join point up to where
// its group is, or waits for one.
func (s *shard) join(p *Session) {
	g := p.group
	b := s.opening(p)
	if b == nil {
		g.wait(p)
		return
	}
	p.started, p.cursor = true, nil
	g.add(p)
	s.write(p, b)
}

// opening returns what a new player gets first, nil if there is no join point for
// it yet. It is made once for all that join at the same place.
func (s *shard) opening(p *Session) *block {
	g := p.group
	for {
		next := g.next.Load()
		seq, ok := p.cursor.Settle(next)
		if !ok {
			return nil
		}
		if g.opening.bytes == nil || g.opening.from != seq {
			entries, _ := s.take(g.key.stream.At(seq, nil), next, math.MaxInt, 0)
			if entries != next-seq { // the log has dropped the join point meanwhile
				s.release()
				continue
			}
			b := s.format(nil, g.key.format, true)
			b.pieces = slices.Clone(b.pieces)
			s.release()
			g.opening = opening{block: b, from: seq}
		}
		g.opening.used = time.Now()
		s.warm = true
		return &g.opening.block
	}
}

// readmit places a player that has caught up with its group, or nearly so: both
// go on meanwhile.
func (s *shard) readmit(p *Session) {
	g, cursor := p.group, p.cursor
	// Where it has just jumped to it may lack headers that the group has had.
	if at := g.next.Load(); cursor.Seq() > at || cursor.Seq() == at && cursor.Headers() != g.cursor.Headers() {
		s.flush(g)
		s.submit()
	}
	next := g.next.Load()
	entries, _ := s.take(cursor, next, math.MaxInt, 0)
	b := s.format(&s.batch, g.key.format, false)
	ahead := cursor.Seq() - next
	switch {
	case cursor.Seeking(), ahead > 0 && cursor.Skipped() > 0: // the log has dropped its place
		rest, in := s.batch.keep(&b, b.bytes)
		s.chase(p, rest, in)
	case ahead > 0:
		// The group has lost its place and waits for a join point. From now on
		// the player does, too; what it has already is not lost to it.
		p.skipBase -= ahead
		fallthrough
	default:
		p.cursor = nil
		g.add(p)
		if entries > 0 {
			s.write(p, &b)
		}
	}
	s.release()
}

// flush takes what is new of a group's stream into the batch. It reports whether there
// was anything. What comes while it sends is for the next round: a second send to each
// player would cost as much as the first.
func (s *shard) flush(g *group) (grown bool) {
	for end := g.key.stream.End(); ; {
		entries, closed := s.take(g.cursor, end, batchBytes, g.told)
		if entries == 0 {
			if closed != nil {
				s.submit()
				s.end(g)
			}
			break
		}
		if grown {
			s.submit() // nobody is in a batch twice: a socket may take the first part only
		}
		grown = true
		last := &s.pieces[len(s.pieces)-1]
		g.told += last.lost
		g.next.Store(last.next)
		if len(g.healthy) > 0 || g.opening.bytes != nil {
			s.send(g)
		}
		s.release()
	}
	if grown && len(g.waiting) > 0 {
		s.placeWaiting(g)
	}
	return grown
}

// send has a block of the tags taken sent to the healthy players of a group.
func (s *shard) send(g *group) {
	if s.batch.cramped(s.size()) {
		s.submit()
	}
	made := s.format(&s.batch, g.key.format, false)
	g.extend(&made)
	if len(g.healthy) == 0 {
		return
	}
	by, timed := s.way(g, len(made.bytes))
	if timed { // by itself
		s.drain()
	}
	begun, players := time.Now(), len(g.healthy)
	made.paged = by == byPages && s.put(made.bytes)
	b := s.batch.add(made)
	// From the last one on: who is found to be slow meanwhile is replaced by the last.
	for i := len(g.healthy) - 1; i >= 0; i-- {
		if s.batch.queue(g.healthy[i], b) {
			s.drain()
		}
	}
	if b.paged || timed { // the next block has the pages
		s.drain()
	}
	if timed && b.paged == (by == byPages) {
		s.ways.took(by, len(b.bytes), players, len(g.healthy), time.Since(begun))
	}
}

// way returns how a block of so many bytes goes to the healthy players of a group, and
// whether what that takes is to be noted. They are nearly all of a kind: there is the ring
// for all or none.
func (s *shard) way(g *group, bytes int) (by way, timed bool) {
	switch {
	case !s.pays(bytes, len(g.healthy)):
		return byRing, false
	case g.healthy[0].fd < 0 || !s.batch.rings():
		return byPages, false
	case bytes < eitherBytes:
		return byRing, false
	}
	return s.ways.choose(bytes), true
}

// submit sends the batch, and is done with its blocks.
func (s *shard) submit() {
	s.drain()
	s.batch.reset()
}

// drain sends the batch so far.
func (s *shard) drain() {
	s.batch.send()
	for i := range s.batch.sends {
		t := &s.batch.sends[i]
		s.sent(t.p, t.b, t.n, t.err)
	}
	s.batch.drained()
}

// put puts a block into the pages, if they can be had.
func (s *shard) put(b []byte) bool {
	if s.out.pages.put(b) {
		return true
	}
	if err := s.out.pages.trouble(); err != nil {
		s.e.opt.Log.Info("players are sent copies, which costs more", "err", err)
	}
	return false
}

// write sends a block to a healthy player of a group, who has got all before it.
func (s *shard) write(p *Session, b *block) {
	n, err := s.out.write(int(p.fd), p.raw, b.bytes, false)
	s.sent(p, b, n, err)
}

// sent looks at how many bytes of a block a healthy player's socket has taken.
func (s *shard) sent(p *Session, b *block, n int, err error) {
	switch {
	case !s.count(p, n, err):
	case n == len(b.bytes):
		p.lose(b.lost)
	default:
		in := b.holding(n)
		p.lose(in.lost)
		p.cursor = p.p.Stream.At(in.next, in.headers)
		rest, shared := s.batch.keep(b, b.bytes[n:in.end])
		s.chase(p, rest, shared)
	}
}

// inject sends what was injected to a player at a tag boundary. It reports false
// if the shard has the player no more.
func (s *shard) inject(p *Session, b []byte) bool {
	n, err := s.out.write(int(p.fd), p.raw, b, false)
	ok := s.count(p, n, err)
	if ok && n < len(b) {
		s.chase(p, b[n:], nil)
		return false
	}
	return ok
}

// count counts a send to a player. It reports false if the connection is broken; the
// session is over then.
func (s *shard) count(p *Session, n int, err error) bool {
	s.sends++
	p.bytes.Add(uint64(n))
	if err != nil {
		s.finish(p, classify(err), err)
		return false
	}
	return true
}

// chase gives a player whose socket is full, or who wants something special, to
// a goroutine of its own: rest, in a shared block if that is not nil, is what it
// must get before it goes on.
func (s *shard) chase(p *Session, rest []byte, in *shared) {
	g := p.group
	g.remove(p)
	if p.cursor == nil {
		p.cursor = g.key.stream.At(g.next.Load(), g.cursor.Headers())
	}
	p.chase(rest, in)
}

// finish ends a session that the shard has.
func (s *shard) finish(p *Session, why Reason, err error) {
	p.group.remove(p)
	p.finish(why, err)
}

// placeWaiting lets players in for whom there is a join point now.
func (s *shard) placeWaiting(g *group) {
	list := g.waiting
	g.waiting = nil
	for _, p := range list {
		p.at = -1
	}
	for _, p := range list {
		s.join(p)
	}
}

// end hands the players of a stream that was closed to goroutines of their own,
// which say farewell.
func (s *shard) end(g *group) {
	for len(g.healthy) > 0 {
		s.chase(g.healthy[len(g.healthy)-1], nil, nil)
	}
	for len(g.waiting) > 0 {
		s.chase(g.waiting[len(g.waiting)-1], nil, nil)
	}
}
