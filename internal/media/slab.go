package media

// slabSize is the memory that a Slab takes at a time, in bytes: some tags of a stream of
// 1 Mbit/s, and little against the log of a slow one.
const slabSize = 16 << 10

// Slab makes the memory of tags that come one after the other, and go in the same order:
// small ones lie together in one piece, which lives as long as any of them does. A log of
// seconds is hundreds of tags, and each object costs its making and each cycle of the
// garbage collector. The zero value is ready. It is not safe for concurrent use.
type Slab struct {
	free []byte
}

// Make returns n zeroed bytes without room behind them. They are nobody else's.
func (s *Slab) Make(n int) []byte {
	if n > slabSize/4 {
		return make([]byte, n)
	}
	if n > len(s.free) {
		s.free = make([]byte, slabSize)
	}
	b := s.free[:n:n]
	s.free = s.free[n:]
	return b
}
