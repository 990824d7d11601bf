package media

import (
	"slices"
	"sync"
	"unsafe"
)

// Sizes of the pieces of memory that a Slab takes at a time, in bytes. The least is some
// tags of a stream of 1 Mbit/s, and little against the log of a slow one.
const (
	slabLeast = 16 << 10
	slabMost  = 256 << 10
)

const (
	// slabShare is the part of a piece that a tag may have: larger ones have memory of their
	// own. So many of those would fill a piece: pieces are too small then.
	slabShare = 4
	// slabLarge is how many larger ones in the time of one piece make the next pieces larger.
	slabLarge = 2
	// slabKept bounds the bytes of the pieces that are watched until their tags are gone.
	slabKept = 32 << 20
	// slabSpare is how many pieces wait to be used again: they come back one by one, as
	// they are taken.
	slabSpare = 2
	// slabAlone bounds the larger tags that are watched until they are gone.
	slabAlone = 32
	// slabRoom is the part of such a tag by which its memory is larger: key frames of a
	// stream are about of a size.
	slabRoom = 8
)

// Slab makes the memory of tags that come one after the other, and go in the same order:
// small ones lie together in one piece. A log of seconds is hundreds of tags, and each
// object costs its making and each cycle of the garbage collector.
//
// If Gone is told of the tags that are of no use any more, a piece whose tags are all gone
// is used again, as is the memory of a larger tag for one of about its size. Whatever Gone is not told, or not in about the order of Make, costs no
// more than that: the piece then lives as long as any of its tags does, as all do without
// Gone. The zero value is ready. All methods are safe for concurrent use.
type Slab struct {
	mu    sync.Mutex
	free  []byte   // guarded by mu; the rest of the newest piece
	size  int      // guarded by mu; of the next piece; 0 before the first
	large int      // guarded by mu; tags too large for a piece since the newest was taken, or pieces grew
	now   piece    // guarded by mu; the newest; without bytes if it is not to be used again
	used  []piece  // guarded by mu; those before it with tags that are not gone, from the oldest on
	spare [][]byte // guarded by mu; pieces of size, to be used again
	alone [][]byte // guarded by mu; memory of larger tags that are not gone, from the oldest on; none before the first Gone
	again []byte   // guarded by mu; that of the last one of those that went, to be used again
	told  bool     // guarded by mu; Gone was called
}

// piece is what is known of the memory of some tags.
type piece struct {
	bytes []byte
	tags  int // that were made and are not gone
}

// within reports whether a tag lies in b.
func (t Tag) within(b []byte) bool {
	from, at := uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(unsafe.Pointer(unsafe.SliceData(t)))
	return at-from < uintptr(len(b)) // below from it wraps
}

// Make returns n bytes without room behind them, which may hold anything. They are nobody
// else's until Gone.
func (s *Slab) Make(n int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.size == 0 {
		s.size = slabLeast
	}
	if n > s.size/slabShare {
		if s.large++; s.large == slabShare { // without small ones no piece ever gets full
			s.grow()
		}
		return s.makeAlone(n)
	}
	if n > len(s.free) {
		s.turn()
	}
	s.now.tags++
	b := s.free[:n:n]
	s.free = s.free[n:]
	return b
}

// makeAlone returns memory for a tag that shares none. s.mu is held.
func (s *Slab) makeAlone(n int) []byte {
	if !s.told {
		return make([]byte, n)
	}
	b := s.again
	if s.again = nil; len(b) < n || len(b)/2 > n {
		b = make([]byte, n+n/slabRoom)
	}
	if len(s.alone) == slabAlone {
		s.alone = slices.Delete(s.alone, 0, 1)
	}
	s.alone = append(s.alone, b)
	return b[:n:n]
}

// grow makes the next pieces larger, if they may be. s.mu is held.
func (s *Slab) grow() {
	if s.large = 0; s.size < slabMost {
		s.size *= 2
		s.spare = nil
	}
}

// turn begins a new piece. s.mu is held.
func (s *Slab) turn() {
	if s.large >= slabLarge {
		s.grow()
	}
	s.large = 0
	switch old := s.now; {
	case old.bytes == nil:
	case old.tags == 0:
		s.keep(old.bytes)
	default:
		if over := len(s.used) + 1 - slabKept/s.size; over > 0 {
			s.used = slices.Delete(s.used, 0, over)
		}
		s.used = append(s.used, old)
	}
	if n := len(s.spare); n > 0 {
		s.free = s.spare[n-1]
		s.spare = slices.Delete(s.spare, n-1, n)
	} else {
		s.free = make([]byte, s.size)
	}
	s.now = piece{}
	if s.told {
		s.now.bytes = s.free
	}
}

// keep has a piece used again whose tags are gone. s.mu is held.
func (s *Slab) keep(b []byte) {
	if len(s.spare) < slabSpare && len(b) == s.size {
		s.spare = append(s.spare, b)
	}
}

// Gone says that a tag in memory from Make, of its whole length, is of no use any more to
// whom it was made for. If it is unused, nobody else has it either: Make returns its
// memory again when it comes to it. Tags that are not from this Slab do not matter.
func (s *Slab) Gone(t Tag, unused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = true
	if t.within(s.now.bytes) { // is looked at when it is full
		if s.now.tags--; !unused {
			s.now.bytes = nil
		}
		return
	}
	i := slices.IndexFunc(s.used, func(p piece) bool { return t.within(p.bytes) })
	if i < 0 {
		s.goneAlone(t, unused)
		return
	}
	p := &s.used[i]
	if p.tags--; p.tags > 0 && unused {
		if i > 1 { // what is before has been passed over, but for the last of one piece
			s.used = slices.Delete(s.used, 0, i-1)
		}
		return
	}
	if unused {
		s.keep(p.bytes)
	}
	s.used = slices.Delete(s.used, i, i+1)
}

// goneAlone is Gone for a tag that shares no memory. s.mu is held.
func (s *Slab) goneAlone(t Tag, unused bool) {
	i := slices.IndexFunc(s.alone, func(b []byte) bool { return t.within(b) })
	if i < 0 {
		return
	}
	if unused {
		s.again = s.alone[i]
	}
	s.alone = slices.Delete(s.alone, i, i+1)
}

// Reset lets go of all memory.
func (s *Slab) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free, s.size, s.large, s.told = nil, 0, 0, false
	s.now, s.used, s.spare = piece{}, nil, nil
	s.alone, s.again = nil, nil
}
