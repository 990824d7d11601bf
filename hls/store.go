package hls

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bluenviron/gohlslib/v2/pkg/playlist"
)

// minSegment is the shortest segment in media time that is published, but for
// the last one of a stream and those that the byte limit ends. Media sequence
// numbers count in this unit, see numberAt.
const minSegment = 500 * time.Millisecond

// segmentOverhead is what a kept segment costs in bytes beside its body.
const segmentOverhead = 512

// Store holds the segments of one stream, named with the epoch of the ownership in
// which it began, and the playlist that lists them. A Segmenter writes it; any number of readers may use
// it at the same time.
type Store struct {
	// Fixed at construction.
	config  Config
	name    string
	vhost   string
	epoch   uint64
	now     func() time.Time
	settled chan struct{} // closed when a waiting playlist request can be answered

	playlist atomic.Pointer[Object] // nil before the first segment

	mu sync.RWMutex
	// Guarded by mu.
	isSettled     bool
	ended         bool
	explanation   string              // why there is no playlist
	segments      map[uint64]*segment // listed and retired, by sequence
	listed        []*segment          // in the playlist, oldest first
	retired       []*segment          // removed from the playlist, oldest first
	bytes         int64               // of all segments, with overhead
	target        int                 // EXT-X-TARGETDURATION in seconds; 0 before the first segment
	independent   bool                // every segment so far begins with a key frame
	nextSeq       uint64
	ownership     uint64        // epoch that playlists tell; 0: none
	discontinuity uint64        // EXT-X-DISCONTINUITY tags that were removed, from its start value on
	longest       time.Duration // of all playlists so far
}

// segment is immutable but for goneAt.
type segment struct {
	seq           uint64
	duration      time.Duration // as in EXTINF
	start         time.Time     // EXT-X-PROGRAM-DATE-TIME
	discontinuity bool
	object        Object

	goneAt time.Time // when a retired segment may be forgotten; guarded by the store's mu
}

func (s *segment) size() int64 { return int64(cap(s.object.Body)) + segmentOverhead }

// discontinuityWrap bounds the first discontinuity sequence; see the package's
// comment.
const discontinuityWrap = 1 << 16

func newStore(config Config, name, vhost string, epoch uint64, now func() time.Time) *Store {
	number := numberAt(now())
	return &Store{
		config:        config,
		name:          name,
		vhost:         vhost,
		epoch:         epoch,
		now:           now,
		settled:       make(chan struct{}),
		segments:      make(map[uint64]*segment),
		independent:   true,
		nextSeq:       number,
		discontinuity: number % discontinuityWrap,
	}
}

// Playlist returns the playlist. Before the first segment it waits for one until
// ctx is done, or until the stream ends or turns out to have no HLS form; then
// the answer is a 404 that says so. The bytes are the same for whoever asks.
//
// ctx must not derive from a fasthttp.RequestCtx: a context that has one as its
// parent reads it after its request, which is a data race.
func (s *Store) Playlist(ctx context.Context) Object {
	if p := s.playlist.Load(); p != nil {
		return *p
	}
	select {
	case <-s.settled:
	case <-ctx.Done():
	}
	if p := s.playlist.Load(); p != nil {
		return *p
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case s.explanation != "":
		return NotFound(s.explanation)
	case s.ended:
		return NotFound("the stream ended before its first segment was complete")
	}
	return NotFound("the stream is live but its first segment is not complete yet")
}

// Segment returns a segment that is in the playlist or was in it lately, and a
// 404 for others.
func (s *Store) Segment(epoch, seq uint64) Object {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if epoch != s.epoch {
		return NotFound(fmt.Sprintf("no such segment: the stream is in epoch %d now", s.epoch))
	}
	if seg := s.segments[seq]; seg != nil {
		return seg.object
	}
	if seq >= s.nextSeq {
		return NotFound("no such segment yet")
	}
	return NotFound("no such segment any more")
}

// Get answers r, which must be about the stream of s, as Playlist and Segment
// do.
func (s *Store) Get(ctx context.Context, r Request) Object {
	if r.Segment {
		return s.Segment(r.Epoch, r.Seq)
	}
	return s.Playlist(ctx)
}

// SetOwnership has playlists tell, from now on, of which ownership the stream is: an
// edge shows none of an earlier one any more. It may be a later one than that of the
// names of the segments, if the origin was given the stream again. Without it
// playlists tell nothing: origins that share no directory have epochs of their own.
func (s *Store) SetOwnership(epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ownership = epoch; len(s.listed) > 0 {
		s.render()
	}
}

// Stats are the figures of a store at one moment.
type Stats struct {
	Listed  int   // segments in the playlist
	Retired int   // removed from it, still available
	Bytes   int64 // held by all of them
	Target  int   // declared target duration in seconds; 0 before the first segment
	Ended   bool
}

// Stats returns the present figures.
func (s *Store) Stats() Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return Stats{
		Listed: len(s.listed), Retired: len(s.retired), Bytes: s.bytes,
		Target: s.target, Ended: s.ended,
	}
}

// cut is a finished segment as the Segmenter hands it over.
type cut struct {
	body          []byte
	duration      time.Duration // media time
	start         time.Time
	discontinuity bool
	independent   bool // begins with a key frame, or has no video
}

// add publishes a segment at the end of the playlist and returns the declared
// target duration in seconds. It decides that target with the first segment.
func (s *Store) add(c cut) (target int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.target == 0 {
		first := min(c.duration, s.config.MaxDuration).Round(time.Second)
		s.target = max(wholeSeconds(s.config.TargetDuration), int(first/time.Second))
	}
	seg := &segment{
		seq: s.nextSeq,
		// A duration of zero is not one, and the rest of a stall that no frame
		// fills is not announced: a duration must round to the target at most.
		duration:      min(max(c.duration, time.Millisecond), longestFor(s.target)),
		start:         c.start,
		discontinuity: c.discontinuity,
		object:        NewObject(200, SegmentType, segmentCaching, c.body),
	}
	s.nextSeq++
	s.independent = s.independent && c.independent
	s.segments[seg.seq] = seg
	s.listed = append(s.listed, seg)
	s.bytes += seg.size()
	s.shrink()
	s.render()
	return s.target
}

// longestFor returns the longest segment duration that a target duration in
// seconds permits, a frame's rounding kept back.
func longestFor(target int) time.Duration {
	return time.Duration(target)*time.Second + 499*time.Millisecond
}

// wholeSeconds rounds up.
func wholeSeconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// end marks the stream as over: ENDLIST if there is a playlist.
func (s *Store) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if len(s.listed) > 0 {
		s.render()
	}
	s.settle()
}

// explain sets the sentence that is answered while there is no playlist. A final
// one answers the requests that wait.
func (s *Store) explain(sentence string, final bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.explanation = sentence
	if final {
		s.settle()
	}
}

func (s *Store) settle() {
	if !s.isSettled {
		s.isSettled = true
		close(s.settled)
	}
}

// shrink removes segments from the playlist that are beyond the window, and
// forgets removed ones whose time is over; before their time if the byte limit
// demands it. mu is held.
func (s *Store) shrink() {
	// A playlist must not become shorter than three target durations by a
	// removal, and a removed segment stays available for its own duration and
	// that of the longest playlist that had it (RFC 8216 section 6.2.2).
	var listed time.Duration
	for _, seg := range s.listed {
		listed += seg.duration
	}
	s.longest = max(s.longest, listed)
	now := s.now()
	retire := func() {
		seg := s.listed[0]
		s.listed = slices.Delete(s.listed, 0, 1)
		listed -= seg.duration
		if seg.discontinuity {
			s.discontinuity++
		}
		seg.goneAt = now.Add(seg.duration + s.longest)
		s.retired = append(s.retired, seg)
	}
	shortest := time.Duration(3*s.target) * time.Second
	for len(s.listed) > s.config.Window && listed-s.listed[0].duration >= shortest {
		retire()
	}

	forget := 0
	// The segment being written has a share of the limit.
	limit := int64(s.config.MaxBytes - s.config.MaxSegmentBytes)
	for {
		for forget < len(s.retired) && (s.bytes > limit || !now.Before(s.retired[forget].goneAt)) {
			seg := s.retired[forget]
			s.bytes -= seg.size()
			delete(s.segments, seg.seq)
			forget++
		}
		if s.bytes <= limit || len(s.listed) <= 1 {
			break
		}
		retire()
	}
	s.retired = slices.Delete(s.retired, 0, forget)
}

// render makes the playlist anew. mu is held, and there is a segment.
func (s *Store) render() {
	discontinuity := int(s.discontinuity)
	m := playlist.Media{
		Version:               3, // EXTINF with decimals (RFC 8216 section 7)
		IndependentSegments:   s.independent,
		TargetDuration:        s.target,
		MediaSequence:         int(s.listed[0].seq),
		DiscontinuitySequence: &discontinuity,
		Segments:              make([]*playlist.MediaSegment, len(s.listed)),
		Endlist:               s.ended,
	}
	for i, seg := range s.listed {
		m.Segments[i] = &playlist.MediaSegment{
			Duration:      seg.duration,
			URI:           segmentURI(s.name, s.epoch, seg.seq, s.vhost),
			Discontinuity: seg.discontinuity,
			DateTime:      &seg.start,
		}
	}
	body, err := m.Marshal()
	if err != nil { // it has no way to fail with these fields
		s.explanation = "the playlist cannot be written: " + err.Error()
		s.settle()
		return
	}
	if s.ownership != 0 {
		body = appendOwnership(body, s.ownership)
	}
	o := playlistObject(s.target, body)
	s.playlist.Store(&o)
	s.settle()
}
