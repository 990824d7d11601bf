package fanout

import (
	"slices"
	"sync"
	"time"

	"weir/internal/media"
	"weir/internal/stream"
)

// shard is one goroutine that writes to players. All fields without another owner
// are its goroutine's.
type shard struct {
	e    *Engine
	wake chan struct{} // capacity 1: a stream of the groups has grown
	post chan struct{} // capacity 1: there is mail
	done chan struct{} // closed by stop

	groups map[groupKey]*group
	list   []*group // the same, to be walked
	pace   pace
	last   time.Time // when the last round began
	out    *socketWriter
	sends  int // of this round

	entries [64]stream.Entry
	tags    []media.Tag

	mu     sync.Mutex
	letter []*Session // guarded by mu; mail not yet read
}

// groupKey is what the players of a group have in common: they get the same bytes.
type groupKey struct {
	stream *stream.Stream
	format Format
}

// batchBytes bounds what is made and sent of a group at a time, the tag that
// exceeds it included.
const batchBytes = 256 << 10

func newShard(e *Engine, latency time.Duration) *shard {
	return &shard{
		e: e, wake: make(chan struct{}, 1), post: make(chan struct{}, 1), done: make(chan struct{}),
		groups: map[groupKey]*group{}, pace: newPace(latency), out: newSocketWriter(),
	}
}

// deliver puts a session into the shard's mail. Safe for concurrent use.
func (s *shard) deliver(p *Session) {
	s.mu.Lock()
	s.letter = append(s.letter, p)
	s.mu.Unlock()
	select {
	case s.post <- struct{}{}:
	default:
	}
}

// stop ends run. All sessions are over by then.
func (s *shard) stop() { close(s.done) }

// run is the shard's whole life.
func (s *shard) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	planned := false // the timer runs: the next round is planned
	for {
		wake, due := s.wake, timer.C
		if planned {
			wake = nil // growing streams need not wake the shard before
		} else {
			due = nil
		}
		select {
		case <-s.done:
			return
		case <-s.post:
			s.read()
			if planned {
				continue
			}
		case <-wake:
		case <-due:
			planned = false
			s.round()
			continue
		}
		if left := time.Until(s.last.Add(s.pace.interval)); left > 0 {
			timer.Reset(left)
			planned = true
			continue
		}
		s.round()
	}
}

// round sends what is new of all streams.
func (s *shard) round() {
	begun := time.Now()
	late := max(0, begun.Sub(s.last)-s.pace.interval)
	s.last = begun
	s.sends = 0
	players, grown := 0, false
	for i := 0; i < len(s.list); i++ {
		g := s.list[i]
		grown = s.flush(g) || grown
		if g.members.Load() == 0 && s.drop(g) {
			i--
			continue
		}
		players += len(g.healthy)
	}
	took := time.Since(begun)
	s.pace.round(took, s.sends, players)
	if grown && s.e.opt.OnFlush != nil {
		if s.pace.interval == 0 {
			late = 0 // without a plan nothing can be late
		}
		s.e.opt.OnFlush(late, took)
	}
}

// drop forgets a group without players, unless one has just come.
func (s *shard) drop(g *group) bool {
	if !g.close() {
		return false
	}
	g.key.stream.Unsubscribe(s.wake)
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
		s.chase(p, inject)
		return false
	case len(inject) > 0:
		return s.write(p, inject)
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
func (s *shard) opening(p *Session) []byte {
	g := p.group
	seq, ok := p.cursor.Settle(g.next.Load())
	if !ok {
		return nil
	}
	if g.opening.bytes == nil || g.opening.from != seq {
		cursor := g.key.stream.At(seq, nil)
		var tags []media.Tag
		for {
			run, _ := cursor.NextUntil(s.entries[:], g.next.Load())
			if len(run.Entries) == 0 {
				break
			}
			tags = appendRun(tags, run)
		}
		clear(s.entries[:])
		if len(tags) == 0 { // the join point has left the log meanwhile
			return nil
		}
		g.opening = opening{from: seq, bytes: g.key.format.append(nil, true, tags)}
	}
	g.opening.idle = 0
	return g.opening.bytes
}

// appendRun adds the tags of a run, after the headers that it needs.
func appendRun(tags []media.Tag, run stream.Run) []media.Tag {
	if run.Headers != nil && len(run.Entries) > 0 {
		tags = append(tags, run.Headers.At(run.Entries[0].Tag.Time())...)
	}
	for i := range run.Entries {
		tags = append(tags, run.Entries[i].Tag)
	}
	return tags
}

// readmit places a player that has caught up with its group, or nearly so: both
// go on meanwhile.
func (s *shard) readmit(p *Session) {
	g, cursor := p.group, p.cursor
	if cursor.Seq() > g.next.Load() {
		s.flush(g)
	}
	p.cursor = nil
	g.add(p)
	if cursor.Seq() == g.next.Load() {
		return
	}
	var tags []media.Tag
	for {
		run, _ := cursor.NextUntil(s.entries[:], g.next.Load())
		if len(run.Entries) == 0 {
			break
		}
		tags = appendRun(tags, run)
	}
	clear(s.entries[:])
	p.skipBase += cursor.Skipped()
	p.skipped.Store(p.skipBase)
	if len(tags) > 0 {
		s.write(p, g.key.format.append(nil, !p.started, tags))
		p.started = true
	}
}

// flush sends what is new of a group's stream. It reports whether there was
// anything.
func (s *shard) flush(g *group) (grown bool) {
	for {
		size, lost := 0, g.cursor.Skipped()
		var end error
		for size < batchBytes {
			var run stream.Run
			if run, end = g.cursor.Next(s.entries[:]); len(run.Entries) == 0 {
				break
			}
			from := len(s.tags)
			s.tags = appendRun(s.tags, run)
			for _, t := range s.tags[from:] {
				size += len(t)
			}
		}
		if len(s.tags) == 0 {
			if end != nil {
				s.end(g)
			}
			break
		}
		grown = true
		block := g.key.format.append(make([]byte, 0, size+size/8+64), false, s.tags)
		clear(s.tags)
		clear(s.entries[:])
		s.tags = s.tags[:0]
		g.next.Store(g.cursor.Seq())
		g.extend(block)
		s.send(g, block, g.cursor.Skipped()-lost)
	}
	if len(g.waiting) > 0 {
		s.placeWaiting(g)
	}
	return grown
}

// send gives a block to all healthy players of a group.
func (s *shard) send(g *group, block []byte, lost uint64) {
	for i := 0; i < len(g.healthy); {
		p := g.healthy[i]
		if lost > 0 {
			p.skipBase += lost
			p.skipped.Store(p.skipBase)
		}
		if s.write(p, block) {
			i++
		}
	}
}

// write sends bytes to a player of the group that has got all before them. It
// reports false if the player is not among the healthy ones any more.
func (s *shard) write(p *Session, b []byte) bool {
	n, err := s.out.write(p.fd, p.raw, b)
	s.sends++
	p.bytes.Add(uint64(n))
	switch {
	case n == len(b):
		return true
	case err != nil:
		s.finish(p, classify(err), err)
	default:
		s.chase(p, b[n:])
	}
	return false
}

// chase gives a player whose socket is full, or who wants something special, to
// a goroutine of its own: rest is what it must get before it goes on.
func (s *shard) chase(p *Session, rest []byte) {
	g := p.group
	g.remove(p)
	if p.cursor == nil {
		p.cursor = g.key.stream.At(g.next.Load(), g.cursor.Headers())
	}
	p.rest = rest
	p.chase()
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
		s.chase(g.healthy[len(g.healthy)-1], nil)
	}
	for len(g.waiting) > 0 {
		s.chase(g.waiting[len(g.waiting)-1], nil)
	}
}
