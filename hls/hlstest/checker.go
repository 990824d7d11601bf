package hlstest

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Checker holds what a player has seen of one playlist over time. It is not safe
// for concurrent use. The zero value is ready.
type Checker struct {
	// AllowTakeover accepts that all segments are replaced at once by ones with
	// larger numbers, as when another origin takes the stream over.
	AllowTakeover bool

	last     *Playlist
	known    map[uint64]Segment // by media sequence number
	checked  map[uint64]bool    // segments whose bytes were checked
	times    map[uint16]int64   // last decoding time by PID
	counters map[uint16]uint8
	prev     uint64 // media sequence number of the segment checked last
	hasPrev  bool

	// Takeovers counts the changes that AllowTakeover accepted.
	Takeovers int
}

// maxDiscontinuity is the largest discontinuity sequence that does not slow players
// down.
const maxDiscontinuity = 1 << 20

// Playlist checks one more copy of the playlist against RFC 8216: by itself
// (section 4), and against the copies before (section 6.2). It returns the
// segments that are new, and all breaches joined.
func (c *Checker) Playlist(body []byte) (*Playlist, []Segment, error) {
	p, err := Parse(body)
	errs := []error{err}
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(p.Segments) == 0 {
		fail("the playlist is empty")
		return p, nil, errors.Join(errs...)
	}
	if p.Discontinuity > maxDiscontinuity {
		fail("discontinuity sequence %d: hls.js keeps a table of that length", p.Discontinuity)
	}
	if c.known == nil {
		c.known = map[uint64]Segment{}
	}

	if old := c.last; old != nil {
		switch {
		case c.AllowTakeover && takeover(old, p):
			c.Takeovers++
			if p.MediaSequence < old.MediaSequence+uint64(len(old.Segments)) {
				fail("takeover: media sequence goes from %d+%d back to %d", old.MediaSequence, len(old.Segments), p.MediaSequence)
			}
			if end := old.Segments[len(old.Segments)-1].DiscontinuityNumber; p.Segments[0].DiscontinuityNumber == end {
				fail("takeover: the discontinuity number is %d as before", end)
			}
		default:
			c.reload(old, p, fail)
		}
	}

	var fresh []Segment
	for i, s := range p.Segments {
		if i > 0 {
			continuousDates(p.Segments[i-1], s, fail)
		}
		if seen, ok := c.known[s.Sequence]; ok {
			if seen.URI != s.URI || seen.Duration != s.Duration || !seen.Start.Equal(s.Start) {
				fail("segment %d was %v and is %v now (section 6.2.1)", s.Sequence, seen, s)
			}
			if seen.DiscontinuityNumber != s.DiscontinuityNumber || seen.Discontinuity != s.Discontinuity {
				fail("segment %d had the discontinuity number %d and has %d now (section 6.2.2)",
					s.Sequence, seen.DiscontinuityNumber, s.DiscontinuityNumber)
			}
			continue
		}
		c.known[s.Sequence] = s
		fresh = append(fresh, s)
	}
	for _, s := range fresh {
		for n, other := range c.known {
			if n != s.Sequence && other.URI == s.URI {
				fail("segments %d and %d have the same URI %s", n, s.Sequence, s.URI)
			}
		}
	}
	c.last = p
	return p, fresh, errors.Join(errs...)
}

// takeover reports whether no segment of the old playlist is in the new one.
func takeover(old, p *Playlist) bool {
	uris := map[string]bool{}
	for _, s := range old.Segments {
		uris[s.URI] = true
	}
	for _, s := range p.Segments {
		if uris[s.URI] {
			return false
		}
	}
	return true
}

// reload checks a newer copy against an older one of the same playlist.
func (c *Checker) reload(old, p *Playlist, fail func(string, ...any)) {
	if p.MediaSequence < old.MediaSequence {
		fail("media sequence goes back from %d to %d (section 6.2.2)", old.MediaSequence, p.MediaSequence)
	}
	oldEnd, end := old.MediaSequence+uint64(len(old.Segments)), p.MediaSequence+uint64(len(p.Segments))
	if end < oldEnd {
		fail("the playlist ended before segment %d and ends before %d now (section 6.2.1)", oldEnd, end)
	}
	if p.Target != old.Target {
		fail("target duration changes from %d to %d (section 4.3.3.1)", old.Target, p.Target)
	}
	if p.Version != old.Version {
		fail("version changes from %d to %d (section 6.2.1)", old.Version, p.Version)
	}
	if p.Independent && !old.Independent {
		fail("EXT-X-INDEPENDENT-SEGMENTS appears (section 6.2.1)")
	}
	if p.Discontinuity < old.Discontinuity {
		fail("discontinuity sequence goes back from %d to %d (section 6.2.2)", old.Discontinuity, p.Discontinuity)
	}
	if old.End && !p.End {
		fail("EXT-X-ENDLIST disappears (section 6.2.1)")
	}
	if old.End && end != oldEnd {
		fail("segments are added after EXT-X-ENDLIST (section 6.2.1)")
	}
	if p.MediaSequence > old.MediaSequence && !p.End {
		var sum time.Duration
		for _, s := range p.Segments {
			sum += s.Duration
		}
		if sum < time.Duration(3*p.Target)*time.Second {
			fail("segments were removed although %v is less than three target durations (section 6.2.2)", sum)
		}
	}
}

// continuousDates checks that the dates of two neighbours agree with the
// duration between them unless there is a discontinuity.
func continuousDates(a, b Segment, fail func(string, ...any)) {
	if b.Discontinuity || a.Start.IsZero() || b.Start.IsZero() {
		return
	}
	if off := b.Start.Sub(a.Start) - a.Duration; off < -100*time.Millisecond || off > time.Second {
		fail("segment %s starts %v after %s, which lasts %v", b.URI, b.Start.Sub(a.Start), a.URI, a.Duration)
	}
}

// Segment checks the bytes of a segment of the playlist: their structure
// (ISO/IEC 13818-1), program tables in front (RFC 8216 section 3.2), a key frame
// in front if the playlist says so, a duration near the one that is listed; and,
// if it follows the segment checked last without a discontinuity, that
// continuity counters and time stamps go on. It returns what is in it.
func (c *Checker) Segment(s Segment, body []byte) (*Content, error) {
	content, err := Inspect(body)
	errs := []error{err}
	fail := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("segment %s: "+format, append([]any{s.URI}, args...)...))
	}
	if c.checked == nil {
		c.checked = map[uint64]bool{}
	}
	if c.checked[s.Sequence] {
		fail("checked twice")
	}
	c.checked[s.Sequence] = true
	follows := c.hasPrev && c.prev+1 == s.Sequence && !s.Discontinuity
	if !follows {
		c.counters, c.times = nil, nil
	}
	c.prev, c.hasPrev = s.Sequence, true

	if c.last != nil && c.last.Independent && !content.Independent {
		fail("EXT-X-INDEPENDENT-SEGMENTS, but the first picture is no key frame")
	}
	for pid, first := range content.FirstCounter {
		if last, ok := c.counters[pid]; ok && first != (last+1)&0xf {
			fail("continuity counter of PID %#x goes from %d to %d", pid, last, first)
		}
	}
	if c.times == nil {
		c.times, c.counters = map[uint16]int64{}, map[uint16]uint8{}
	}
	for pid, last := range content.LastCounter {
		c.counters[pid] = last
	}
	// One track may be silent for a while, but not all of them.
	nearest, known := int64(math.MaxInt64), false
	for _, t := range content.Tracks {
		if len(t.DTS) == 0 {
			continue
		}
		if last, ok := c.times[t.PID]; ok {
			gap := diff33(t.DTS[0], last)
			if gap <= 0 {
				fail("time stamps of PID %#x go back by %d ticks", t.PID, -gap)
			}
			nearest, known = min(nearest, gap), true
		}
		c.times[t.PID] = t.DTS[len(t.DTS)-1]
	}
	if known && c.last != nil && nearest > int64(c.last.Target+1)*90000 {
		fail("time stamps go on after %d ticks", nearest)
	}
	if span := content.Duration(); s.Duration > 0 && (span > s.Duration+time.Second || span < s.Duration-time.Second) {
		fail("lasts %v, EXTINF says %v", span, s.Duration)
	}
	return content, errors.Join(errs...)
}
