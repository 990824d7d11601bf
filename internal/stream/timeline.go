package stream

import "weir/internal/media"

// timeline makes the times of a log continuous at its single writer. All
// arithmetic is modulo 2^32 milliseconds, so that a wrap is no jump.
//
// The source's times pass unchanged until it jumps: then an offset is added
// that puts the first frame after the jump right behind the last one before it.
// Audio and video are interleaved loosely, so that one kind can be behind the
// jump while the other is still before it: each kind has an offset of its own
// and takes over the other's as soon as that fits.
type timeline struct {
	kinds   [2]kindTime // audio, video
	offset  uint32      // of the newest run; source time + offset = log time
	last    uint32      // largest log time given so far
	begun   bool        // last is valid
	pending bool        // the next frame starts a new run
}

type kindTime struct {
	offset uint32
	source uint32 // of the last frame
	out    uint32 // of the last frame
	seen   bool   // in this run
	placed bool   // out is valid
}

const (
	maxBack    = 500   // ms that a kind may go back before it is a jump: some encoders jitter
	maxForward = 60000 // ms that a kind may leap ahead before it is a jump: a paused encoder may leave a hole
	maxApart   = 10000 // ms within which one kind follows the other over a jump
	step       = 33    // ms put between the runs, about a frame
)

func (l *timeline) restart() {
	l.pending = l.begun
	for i := range l.kinds {
		l.kinds[i].seen = false
	}
}

// place returns the log time of a tag with the given source time.
func (l *timeline) place(info media.Info, ms uint32) uint32 {
	if info.Kind == media.Data || info.IsHeader() {
		return l.placeState(ms)
	}
	k := &l.kinds[0]
	if info.Kind == media.Video {
		k = &l.kinds[1]
	}
	switch {
	case l.pending:
		l.offset = l.last + step - ms
		l.pending = false
		k.offset = l.offset
	case !k.seen:
		k.offset = l.offset
	default:
		if d := int32(ms - k.source); d < -maxBack || d > maxForward {
			if other := int32(ms + l.offset - k.out); k.offset == l.offset || other < -maxBack || other > maxApart {
				l.offset = l.last + step - ms
			}
			k.offset = l.offset
		}
	}
	out := ms + k.offset
	if k.placed && int32(out-k.out) < 0 {
		out = k.out // jitter within the kind: hold
	}
	k.source, k.out, k.seen, k.placed = ms, out, true, true
	if !l.begun || int32(out-l.last) > 0 {
		l.last, l.begun = out, true
	}
	return out
}

// placeState places what is no frame. Encoders send headers and metadata with
// time 0 in mid-stream; such a tag belongs where it stands.
func (l *timeline) placeState(ms uint32) uint32 {
	if !l.begun {
		return ms
	}
	out := ms + l.offset
	if d := int32(out - l.last); l.pending || d < -maxBack || d > maxForward {
		return l.last
	}
	return out
}
