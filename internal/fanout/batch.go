package fanout

import (
	"slices"
	"syscall"

	"weir/internal/uring"
)

// batch collects what a shard sends in a round, of all its groups, and sends it with few
// system calls: one for 64 players by io_uring, which costs up to a third less than 64 of
// them. Where that cannot be had, and to connections whose descriptor is not the engine's
// own, each player is sent to by a call of its own. It belongs to the shard's goroutine.
type batch struct {
	out     *socketWriter
	without func(error) // told why there is no ring, once
	plain   bool        // io_uring is not wanted, or cannot be had
	ring    *uring.Ring // nil until it is needed first, and while plain

	sends  []send
	bytes  int     // of them
	blocks []block // that they are of
	pieces []piece // of the blocks
	arena  *arena  // that the next block lies in; never nil
}

// send is a block that is to be sent to a player, and what came of it.
type send struct {
	p   *Session
	b   *block
	n   int
	err error
}

// A batch is sent when it has so many sends, or they so many bytes together (more would
// keep the goroutines of this processor waiting for milliseconds), or their blocks.
const (
	batchSends     = 64
	batchSendBytes = 1 << 20
	arenaBytes     = 256 << 10
)

// ringSends is how many sends are worth the ring.
const ringSends = 2

func newBatch(out *socketWriter, without func(error), plain bool) batch {
	return batch{out: out, without: without, plain: plain, arena: new(arena)}
}

// rings reports whether there is a ring, which is made for the first who asks.
func (t *batch) rings() bool {
	if t.ring == nil && !t.plain {
		ring, err := uring.New(batchSends)
		if err != nil {
			t.giveUp(err)
			return false
		}
		t.ring = ring
	}
	return t.ring != nil
}

// giveUp goes on with a system call for each player.
func (t *batch) giveUp(err error) {
	t.close()
	t.plain = true
	t.without(err)
}

// close frees the ring. Nothing is waiting to be sent.
func (t *batch) close() {
	if t.ring != nil {
		t.ring.Close()
		t.ring = nil
	}
}

// cramped reports that the batch must be sent before another block of so many bytes is
// made.
func (t *batch) cramped(bytes int) bool {
	have := cap(t.arena.bytes)
	return len(t.blocks) == batchSends || len(t.blocks) > 0 && have >= arenaBytes && have-len(t.arena.bytes) < bytes
}

// room returns an arena with so many bytes to spare. What lies in the one before stays.
func (t *batch) room(bytes int) *arena {
	if have := cap(t.arena.bytes); have-len(t.arena.bytes) < bytes {
		size := bytes
		if len(t.blocks) > 0 { // it was too small for all of a batch
			size = max(size, min(2*have, arenaBytes))
		}
		t.arena = &arena{bytes: make([]byte, 0, size)}
	}
	return t.arena
}

// add takes a block in, to be queued for players until reset.
func (t *batch) add(b block) *block {
	if b.in == t.arena {
		b.in.bytes = b.in.bytes[:len(b.in.bytes)+len(b.bytes)]
	}
	from := len(t.pieces)
	t.pieces = append(t.pieces, b.pieces...)
	b.pieces = t.pieces[from:len(t.pieces):len(t.pieces)]
	if t.blocks == nil {
		t.blocks = make([]block, 0, batchSends) // so that they never move
	}
	t.blocks = append(t.blocks, b)
	return &t.blocks[len(t.blocks)-1]
}

// queue has a block sent to a player, and reports that the batch is due.
func (t *batch) queue(p *Session, b *block) (due bool) {
	t.sends = append(t.sends, send{p: p, b: b})
	t.bytes += len(b.bytes)
	return len(t.sends) == batchSends || t.bytes >= batchSendBytes
}

// send does all sends that are queued. What came of them stays until drained.
func (t *batch) send() {
	if len(t.sends) < ringSends || !t.rings() {
		for i := range t.sends {
			t.sendOne(&t.sends[i])
		}
		return
	}
	for i := range t.sends {
		if s := &t.sends[i]; s.together() {
			t.ring.Send(int(s.p.fd), s.b.bytes)
		}
	}
	if t.ring.Len() > 0 {
		t.out.calls++
	}
	results, err := t.ring.Do()
	for i := range t.sends {
		s := &t.sends[i]
		if !s.together() {
			t.sendOne(s)
			continue
		}
		result := results[0]
		results = results[1:]
		if n, errno := result.Split(); result == uring.Undone || errno == syscall.EINTR {
			t.sendOne(s)
		} else {
			s.n, s.err = outcome(n, errno)
		}
	}
	if err != nil {
		t.giveUp(err)
	}
}

// together reports whether the ring can send it.
func (s *send) together() bool { return s.p.fd >= 0 && !s.b.paged }

func (t *batch) sendOne(s *send) {
	s.n, s.err = t.out.write(int(s.p.fd), s.p.raw, s.b.bytes, s.b.paged)
}

// drained forgets the sends.
func (t *batch) drained() {
	clear(t.sends)
	t.sends, t.bytes = t.sends[:0], 0
}

// reset forgets the blocks, of which no send is queued. Their memory is for the next
// ones, unless it is large.
func (t *batch) reset() {
	clear(t.blocks)
	clear(t.pieces)
	t.blocks, t.pieces = t.blocks[:0], t.pieces[:0]
	if t.arena.bytes = t.arena.bytes[:0]; cap(t.arena.bytes) > 2*batchBytes {
		t.arena = new(arena)
	}
}

// keep returns rest, a part of a block, for a player to keep. A long one, which a large
// tag makes, is shared by all whose sockets it fills.
func (t *batch) keep(b *block, rest []byte) (kept []byte, in *shared) {
	if len(rest) <= 2*pieceBytes {
		return slices.Clone(rest), nil
	}
	if b.in == t.arena {
		t.arena = new(arena) // the next blocks lie elsewhere
	}
	if b.in.shared == nil {
		b.in.shared = &shared{bytes: int64(cap(b.in.bytes))}
	}
	return rest, b.in.shared
}
