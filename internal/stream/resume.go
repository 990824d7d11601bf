package stream

import (
	"bytes"

	"weir/internal/media"
)

// resume is how far a publisher has got in going on with a log from a source
// that may send again what the log already has.
type resume uint8

const (
	resumed  resume = iota // all that comes is new
	matching               // looking for the source's first frame in the log
	skipping               // it was found: what the log has is passed over
)

// heldTag is a header that waits for the decision whether its source is a new
// one.
type heldTag struct {
	info media.Info
	tag  media.Tag
}

// Resume tells the log that what comes next is from another source, which may
// carry the same stream and then begins with frames that the log has: a relay
// that lost its upstream and found another one. If the source's first frame is
// in the log, by its bytes, the log goes on seamlessly: what it has is passed
// over, and the times are put on its timeline. If it is not, but comes next by the
// times of the source before, it is taken as the next frame of the same stream. Else
// Resume is a Restart.
func (p *Publisher) Resume() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.s.publisher == p {
		p.resume, p.held, p.passed = matching, nil, [2]bool{}
		p.waiting = false
	}
}

// isNew reports whether a tag that came after Resume is to be appended now.
// p.s.mu is held.
func (p *Publisher) isNew(info media.Info, t media.Tag) bool {
	if p.resume == matching && !p.match(info, t) {
		return false
	}
	if p.resume == resumed {
		return true
	}
	s := p.s
	k := kindIndex(info.Kind)
	switch {
	case info.IsHeader():
		return !s.headers.Has(info, t)
	case k < 0: // script data belongs between the frames
		return int32(t.Time()+s.timeline.offset-s.timeline.last) > 0
	case !p.passed[k] && s.timeline.has(k, t.Time()):
		if !info.IsKeyFrame() || !s.spans(t.Time()+s.timeline.offset) {
			return false
		}
		if _, ok := s.find(info, t); ok {
			return false
		}
		// By its time the log would have it, but it has not: the source, another log,
		// went on after a gap, and its times are its own from there on.
		p.resume = resumed
		s.timeline.restart()
		return true
	}
	p.passed[k] = true
	if p.passed[0] && p.passed[1] {
		p.resume = resumed
	}
	return true
}

// match decides with the first frame whether the source carries what the log
// has. It reports whether the decision is made. p.s.mu is held.
func (p *Publisher) match(info media.Info, t media.Tag) bool {
	s := p.s
	if info.IsHeader() {
		if len(p.held) < maxHeaders {
			p.held = append(p.held, heldTag{info, t})
		}
		return false
	}
	if kindIndex(info.Kind) < 0 {
		return false // lost between two sources
	}
	if info.Kind == media.Audio && p.expectsVideo() && !p.waitedForVideo(t.Time()) {
		return false // lost likewise; video decides
	}
	held := p.held
	if at, ok := s.find(info, t); ok {
		p.resume, p.held = skipping, nil
		s.timeline.align(at - t.Time())
	} else if s.timeline.follows(kindIndex(info.Kind), t.Time()) {
		p.resume, p.held = skipping, nil
		s.timeline.align(s.timeline.offset)
	} else {
		p.restart()
	}
	for _, h := range held {
		if !s.headers.Has(h.info, h.tag) {
			p.append(h.info, h.tag)
		}
	}
	return true
}

// videoWait is how many ms of the source's audio are given up to wait for its
// video, which decides better: silence looks alike everywhere.
const videoWait = 2000

// waitedForVideo reports whether the source's audio has gone on for videoWait
// when it reaches time ms. p.s.mu is held.
func (p *Publisher) waitedForVideo(ms uint32) bool {
	if !p.waiting {
		p.waiting, p.waitFrom = true, ms
	}
	return int32(ms-p.waitFrom) >= videoWait
}

// expectsVideo reports whether the log or the source has video. p.s.mu is held.
func (p *Publisher) expectsVideo() bool {
	for _, h := range p.held {
		if h.info.Kind == media.Video {
			return true
		}
	}
	return p.video.exists
}

// spans reports whether a log time is not before what the log still has. s.mu is held.
func (s *Stream) spans(ms uint32) bool {
	if s.next == s.head {
		return false
	}
	oldest := s.ring[s.head&uint64(len(s.ring)-1)].Tag.Time()
	return int32(ms-oldest) >= 0
}

// find returns the time of the newest entry with the same body. s.mu is held.
func (s *Stream) find(info media.Info, t media.Tag) (uint32, bool) {
	mask := uint64(len(s.ring) - 1)
	for n := s.next; n > s.head; n-- {
		e := &s.ring[(n-1)&mask]
		if e.Info == info && len(e.Tag) == len(t) && bytes.Equal(e.Tag.Body(), t.Body()) {
			return e.Tag.Time(), true
		}
	}
	return 0, false
}
