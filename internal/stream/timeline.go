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
//
// From the first frame on, the times of one kind never go back.
type timeline struct {
	kinds   [3]kindTime // audio, video, data and the rest
	offset  uint32      // the one chosen last; source time + offset = log time
	last    uint32      // largest log time of a frame so far
	begun   bool        // last is valid
	pending bool        // the next frame starts a new run
}

type kindTime struct {
	offset uint32
	out    uint32 // largest log time of a frame; valid when seen
	floor  uint32 // largest log time of any tag; valid when placed
	seen   bool   // a frame came in this run
	placed bool
}

const (
	maxBack    = 500   // ms that a kind may go back before it is a jump: some encoders jitter
	maxForward = 60000 // ms that a frame may leap ahead of all before it is a jump: a paused encoder may leave a hole
	maxApart   = 10000 // ms within which one kind follows the other over a jump
	step       = 33    // ms put between the runs, about a frame
)

// kindIndex returns the place of audio and video in timeline.kinds and -1 for
// what has no frames.
func kindIndex(k media.Kind) int {
	switch k {
	case media.Audio:
		return 0
	case media.Video:
		return 1
	}
	return -1
}

func (l *timeline) restart() {
	l.pending = l.begun
	for i := range l.kinds {
		l.kinds[i].seen = false
	}
}

// align makes offset lead from the times of a source that is known to be on the
// log's timeline to that timeline.
func (l *timeline) align(offset uint32) {
	l.offset, l.pending = offset, false
	for i := range l.kinds {
		l.kinds[i].offset = offset
	}
}

// follows reports whether a frame of a source that nothing else is known of is the next
// one of its kind, if it has the times of the source before.
func (l *timeline) follows(kind int, ms uint32) bool {
	k := &l.kinds[kind]
	d := int32(ms + k.offset - k.out)
	return k.seen && !l.pending && k.offset == l.offset && d > 0 && d <= maxBack
}

// has reports whether the log has come to the given time of an aligned source
// for a kind.
func (l *timeline) has(kind int, ms uint32) bool {
	k := &l.kinds[kind]
	return k.seen && int32(ms+l.offset-k.out) <= 0
}

// place returns the log time of a tag with the given source time.
func (l *timeline) place(info media.Info, ms uint32) uint32 {
	n := kindIndex(info.Kind)
	if n < 0 {
		return l.placeState(&l.kinds[2], ms)
	}
	k := &l.kinds[n]
	if info.IsHeader() {
		return l.placeState(k, ms)
	}
	switch {
	case l.pending:
		l.offset = l.last + step - ms
		l.pending = false
		k.offset = l.offset
	case !k.seen:
		k.offset = l.offset
		if l.begun && !l.near(ms+k.offset) { // audio and video have different clocks
			k.offset = l.last + step - ms
		}
	default:
		l.follow(k, &l.kinds[1-n], ms)
	}
	out := ms + k.offset
	if !k.seen || int32(out-k.out) > 0 {
		k.out, k.seen = out, true
	}
	if !l.begun || int32(out-l.last) > 0 {
		l.last, l.begun = out, true
	}
	return k.raise(out)
}

// follow gives k another offset if its source has jumped to ms. o is the other
// kind, whose offset is taken if that fits: it has jumped before, or k comes back
// to it.
func (l *timeline) follow(k, o *kindTime, ms uint32) {
	out, joined := ms+k.offset, ms+o.offset
	d := int32(out - k.out)
	jump := d < -maxBack || int32(out-l.last) > maxForward
	switch {
	case o.seen && o.offset != k.offset && (jump || (d > maxBack && l.distance(joined) < l.distance(out))) &&
		l.near(joined) && int32(joined-k.out) >= -maxBack:
		k.offset = o.offset
	case jump:
		k.offset = l.last + step - ms
	default:
		return
	}
	l.offset = k.offset
}

// placeState places what is no frame. Encoders send headers and metadata with
// time 0 in mid-stream; such a tag belongs where it stands.
func (l *timeline) placeState(k *kindTime, ms uint32) uint32 {
	if !l.begun {
		return ms
	}
	out := ms + l.offset
	if k.seen {
		out = ms + k.offset
	}
	switch here := l.here(k); {
	case l.pending:
		out = l.last
	case int32(out-here) < -maxBack || int32(out-l.last) > maxBack:
		out = here
	}
	return k.raise(out)
}

// here is the time of a tag of kind k that comes now and has none of its own.
func (l *timeline) here(k *kindTime) uint32 {
	if k.seen {
		return k.out
	}
	return l.last
}

// near reports whether a log time is close enough to the newest one to be of
// the same clock.
func (l *timeline) near(out uint32) bool { return l.distance(out) <= maxApart }

// distance is how far in ms a log time is from the newest one, either way.
func (l *timeline) distance(out uint32) int64 {
	d := int64(int32(out - l.last))
	return max(d, -d)
}

// raise returns out, or the largest time before it if that is larger: jitter
// within a kind is held.
func (k *kindTime) raise(out uint32) uint32 {
	if !k.placed || int32(out-k.floor) > 0 {
		k.floor, k.placed = out, true
	}
	return k.floor
}
