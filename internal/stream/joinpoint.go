package stream

import "weir/internal/media"

// videoTrack is what a publisher has shown of its video. It decides where
// decoding can start; the zero value is a publisher without video.
//
// With several tracks the key frames of a group come one after the other, and a
// player that knows one track only would miss its own if it started at the last
// of them. So the join points are those of one track, the main one.
type videoTrack struct {
	exists bool
	at     uint32 // log time of the last look
	silent int32  // ms of audio since the last video tag
	chosen bool   // main is valid
	main   uint16 // slot of the main track
}

// videoGone is the time in ms after which a publisher that sends audio alone
// counts as having no video any more, or never any after its header: players
// that come then get the audio instead of waiting for a key frame, and the log
// is not kept from the last one on.
const (
	videoGone = 10000
	maxSilent = 1000 // ms that one audio frame counts: a leap of the clock is no silence
)

// saw notes a video tag that was placed on l.
func (v *videoTrack) saw(l *timeline) {
	v.exists, v.at, v.silent = true, l.last, 0
}

// gone reports whether there is no video to wait for, when audio came.
func (v *videoTrack) gone(l *timeline) bool {
	if !v.exists {
		return true
	}
	if v.silent <= videoGone {
		v.silent += min(max(int32(l.last-v.at), 0), maxSilent)
		v.at = l.last
	}
	return v.silent > videoGone
}

// joinable reports whether decoding can start at a video tag that is no header.
func (v *videoTrack) joinable(info media.Info) bool {
	if info.Has(media.EndOfSequence) {
		if v.chosen && v.main == info.Slot {
			v.chosen = false
		}
		return false
	}
	if !v.chosen || info.Slot < v.main {
		v.chosen, v.main = true, info.Slot
	}
	return info.IsKeyFrame() && info.Slot == v.main
}
