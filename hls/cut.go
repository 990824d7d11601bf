package hls

import (
	"time"

	"weir/internal/media"
)

// Where a stream is cut into segments: the Segmenter asks place for each frame whether
// it goes into the open segment or begins the next one.

// Times in milliseconds of the media clock.
const (
	// videoQuiet is when audio alone ends segments, and videoLate when it ends
	// one that would become too long.
	videoQuiet = 1_000
	videoLate  = 250
)

// frame is what decides where a frame goes.
type frame struct {
	kind media.Kind
	at   int64 // milliseconds
	key  bool
	size int
}

// place ends the open segment and begins one, if the frame is to be the first of
// a new one. change says that it needs a segment of its own configuration.
func (s *Segmenter) place(f frame, change bool) {
	if !s.open {
		s.begin(f)
		return
	}
	d := f.at - s.start
	limit := s.limit()
	if s.jumps(f, limit) {
		s.leave(s.end(), "timeline")
		s.videoLast, s.audioLast = lastTime{}, lastTime{}
		s.anchorWall = time.Time{}
		s.begin(f)
		return
	}
	forced := ""
	switch {
	case f.kind == media.Video && f.key && (s.muxer.video != s.video || s.muxer.audio != s.audio), change:
		s.leave(f.at, "codec")
		s.begin(f)
		return
	case s.muxer.size(f.size+s.bundle.bytes) > int(s.config.MaxSegmentBytes):
		forced = "bytes"
	case f.kind == media.Video && f.key:
		if d < s.target && (d < minSegment.Milliseconds() || d+s.gop(f.at) <= s.gopLimit()) {
			return
		}
	case f.kind == media.Video:
		if d+s.interval < limit {
			return
		}
		forced = "duration"
	case s.muxer.video == nil || f.at-s.videoSince.at >= videoQuiet:
		if d < s.target {
			return
		}
	case f.at-s.videoSince.at >= videoLate:
		if d+videoLate/2 < limit {
			return
		}
	default:
		// Audio may run ahead of the video a little, and leaves the cut to it.
		if d < limit+videoLate {
			return
		}
		forced = "duration"
	}
	if forced != "" {
		s.forced(forced)
	}
	s.finish(f.at)
	s.begin(f)
}

// jumps reports whether a frame is not on the timeline of the open segment: a
// step back, or a gap that no segment can have or that would make this one
// longer by a second than may be declared.
func (s *Segmenter) jumps(f frame, limit int64) bool {
	last := s.audioLast
	if f.kind == media.Video {
		last = s.videoLast
	}
	return last.known && f.at < last.at-backwards || f.at < s.latest-skew ||
		f.at-s.latest > limit || f.at-s.start > limit+1000
}

// limit returns how long a segment may be in milliseconds.
func (s *Segmenter) limit() int64 {
	if s.declared == 0 {
		return s.config.MaxDuration.Milliseconds()
	}
	return longestFor(s.declared).Milliseconds()
}

// gopLimit is the limit by which a key frame is judged that comes before the
// target: the declared one, or the one that will be if key frames are near.
func (s *Segmenter) gopLimit() int64 {
	target := s.declared
	if target == 0 {
		target = wholeSeconds(s.config.TargetDuration)
	}
	return longestFor(target).Milliseconds()
}

// gop returns the largest of the latest key frame distances, up to a key frame
// that is at the given time.
func (s *Segmenter) gop(at int64) int64 {
	longest := int64(0)
	for _, g := range s.gops {
		longest = max(longest, g)
	}
	if s.keyAt.known {
		longest = max(longest, at-s.keyAt.at)
	}
	if longest == 0 {
		longest = s.target
	}
	return longest
}

// begin opens a segment with the frame.
func (s *Segmenter) begin(f frame) {
	video := s.video
	if f.kind == media.Audio {
		// Video that has no key frame yet, or waits for one, comes in with it.
		video = nil
		if s.muxer != nil {
			video = s.muxer.video
		}
	}
	if s.muxer == nil || (s.muxer.video != video || s.muxer.audio != s.audio) && !s.muxer.adopt(video, s.audio) {
		s.muxer = newMuxer(video, s.audio)
	}
	s.open = true
	s.start, s.latest = f.at, f.at
	s.hasVideo, s.independent = false, true
	if s.anchorWall.IsZero() {
		s.anchorWall, s.anchor = s.now(), f.at
	}
}

// end returns where the open segment ends if nothing follows: when the last frame
// of the track that ends segments has been shown.
func (s *Segmenter) end() int64 {
	last := s.latest
	if s.hasVideo && last-s.videoLast.at < videoQuiet {
		last = s.videoLast.at
	}
	return last + s.interval
}

// leave closes the open segment at the given time because the next does not
// continue it. One that is too short is thrown away: whoever changes timeline or
// codec with every tag makes no segments.
func (s *Segmenter) leave(end int64, reason string) {
	s.count("weir_hls_discontinuities_total", "reason", reason)
	if end-s.start >= minSegment.Milliseconds() {
		s.finish(end)
	} else {
		s.flushAudio()
		s.muxer.discard()
		s.open = false
		s.count("weir_hls_discarded_segments_total", "", "")
	}
	s.discontinuity = true
	s.keyAt = lastTime{}
	clear(s.gops[:])
}

// finish closes the open segment at the given time and publishes it.
func (s *Segmenter) finish(end int64) {
	s.flushAudio()
	s.open = false
	if len(s.muxer.out) == 0 {
		s.discontinuity = true // no frame of its time could be written: a hole
		return
	}
	body := s.muxer.take()
	start := s.anchorWall.Add(time.Duration(s.start-s.anchor) * time.Millisecond)
	s.declared = s.store.add(cut{
		body:          body,
		duration:      time.Duration(end-s.start) * time.Millisecond,
		start:         start.UTC().Truncate(time.Millisecond),
		discontinuity: s.discontinuity,
		independent:   s.independent,
	})
	s.discontinuity = false
	s.count("weir_hls_segments_total", "", "")
	s.metrics.GetOrCreateCounter("weir_hls_segment_bytes_total").Add(len(body))
}

// forced notes a cut that is not at a key frame.
func (s *Segmenter) forced(reason string) {
	s.count("weir_hls_forced_cuts_total", "reason", reason)
	if s.saidForced {
		return
	}
	s.saidForced = true
	s.log.Warn("hls: segment cut without a key frame; set a fixed key frame distance at the encoder, or raise hls.target_duration or hls.max_segment_bytes",
		"reason", reason, "limit", time.Duration(s.limit())*time.Millisecond)
}

func (s *Segmenter) tooLarge(size int) bool {
	return withOverhead(size) > int(s.config.MaxSegmentBytes)
}

// size returns what the segment will have at most in bytes after a frame of n.
func (m *muxer) size(n int) int { return len(m.out) + withOverhead(n) }

// withOverhead bounds what n bytes of a frame take in MPEG-TS: 184 of 188 bytes
// of a packet are payload; headers, tables, parameter sets and longer start codes
// come on top.
func withOverhead(n int) int { return n + n/32 + 8<<10 }
