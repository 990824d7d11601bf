package fanout

import (
	"sort"

	"weir/internal/stream"
)

// block is what players of a group get at a time: consecutive tags in their format.
type block struct {
	bytes  []byte
	pieces []piece
	lost   uint64 // tags that the group lost in front of the last piece
	in     *arena // that bytes lie in
	paged  bool   // bytes lie in the shard's pages, too
}

// piece is a part of a block behind which a player can go on by itself. A player
// whose socket is full has to take the rest of its piece, and may jump then.
type piece struct {
	end     int             // of the piece in the block's bytes
	next    uint64          // entry that follows
	headers *stream.Headers // that the player has by then
	lost    uint64          // tags that the group lost in front of it, within the block
}

// arena is memory that blocks lie in one behind the other.
type arena struct {
	bytes  []byte  // up to where blocks have it
	shared *shared // what it is counted as while players keep parts of it, nil until one does
}

// pieceBytes is the size of a piece, the tag that exceeds it included.
const pieceBytes = 32 << 10

// holding returns the piece that a player is in, or just behind, that has taken n
// bytes.
func (b *block) holding(n int) *piece {
	i := sort.Search(len(b.pieces), func(i int) bool { return b.pieces[i].end >= n })
	return &b.pieces[i]
}

// extend adds what follows.
func (b *block) extend(o *block) {
	base, size := len(b.bytes), cap(b.bytes)
	b.bytes = append(b.bytes, o.bytes...)
	if cap(b.bytes) != size {
		b.in = new(arena)
	}
	b.in.bytes = b.bytes
	for _, p := range o.pieces {
		p.end += base
		b.pieces = append(b.pieces, p)
	}
}

// take reads entries before end for a block, until they have limit bytes or a few
// tags more. What cursor has skipped beyond told counts as lost in front of them.
// It returns how many entries there are and, behind the last of a closed stream,
// the cause of closing. The shard has the tags until format, or release.
func (s *shard) take(cursor *stream.Cursor, end uint64, limit int, told uint64) (entries uint64, closed error) {
	var (
		last piece // as far as it goes
		open int   // bytes of it
	)
	cut := func() {
		if open > 0 {
			s.pieces, s.cuts, open = append(s.pieces, last), append(s.cuts, len(s.tags)), 0
		}
	}
	for size := 0; size < limit; {
		var run stream.Run
		if run, closed = cursor.NextUntil(s.entries[:], end); len(run.Entries) == 0 {
			break
		}
		s.reading = cursor
		lost := cursor.Skipped() - told
		if lost != last.lost { // who went on by itself here would lose the same
			cut()
		}
		if run.Headers != nil {
			for _, t := range run.Headers.At(run.Entries[0].Tag.Time()) {
				s.tags = append(s.tags, t)
				size += len(t)
				open += len(t)
			}
		}
		seq := cursor.Seq() - uint64(len(run.Entries))
		for i := range run.Entries {
			e := &run.Entries[i]
			s.tags = append(s.tags, e.Tag)
			size += len(e.Tag)
			open += len(e.Tag)
			seq++
			last = piece{next: seq, headers: e.Headers, lost: lost}
			if open >= pieceBytes {
				cut()
			}
		}
		entries += uint64(len(run.Entries))
	}
	cut()
	return entries, closed
}

// format makes a block of the tags taken: in the arena of a batch, or memory of its own
// with nil. Its pieces are the shard's until release.
func (s *shard) format(in *batch, f Format, first bool) block {
	size := s.size()
	var begin []byte
	if first {
		begin = f.begin(s.tags)
		size += len(begin)
	}
	b := block{pieces: s.pieces}
	if in != nil {
		b.in = in.room(size)
	} else {
		b.in = &arena{bytes: make([]byte, 0, size)}
	}
	used := len(b.in.bytes)
	b.bytes = b.in.bytes[used:]
	from := 0
	for i := range s.pieces {
		b.bytes = f.append(b.bytes, begin, s.tags[from:s.cuts[i]])
		begin, from = nil, s.cuts[i]
		s.pieces[i].end = len(b.bytes)
	}
	if cap(b.bytes) > cap(b.in.bytes)-used { // it did not fit
		b.in = new(arena)
	}
	if in == nil || b.in != in.arena {
		b.in.bytes = b.bytes
	}
	if n := len(b.pieces); n > 0 {
		b.lost = b.pieces[n-1].lost
	}
	s.giveBack()
	return b
}

// giveBack gives the log its tags back: the block has copies.
func (s *shard) giveBack() {
	if s.reading != nil {
		s.reading.Release()
		s.reading = nil
	}
}

// size returns at least how many bytes the tags taken are in any format: messages and
// chunks have headers.
func (s *shard) size() int {
	size := 64
	for _, t := range s.tags {
		size += len(t)
	}
	return size + size/8
}

// release lets go of what take and format hold.
func (s *shard) release() {
	clear(s.entries[:])
	clear(s.tags)
	clear(s.pieces)
	s.tags, s.pieces, s.cuts = s.tags[:0], s.pieces[:0], s.cuts[:0]
	s.giveBack()
}
