package fanout

import (
	"encoding/binary"
	"net"

	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp/chunk"
	"weir/internal/stream"
)

// Format turns runs of a log into the bytes that one player gets. A value
// belongs to one player.
type Format interface {
	// append adds the run to pending. What must be made for this player is made
	// in scratch; slices of it in pending stay valid because scratch is grown
	// by appending before it is sliced.
	append(pending net.Buffers, scratch []byte, run stream.Run, muted [2]bool) (net.Buffers, []byte)
}

// FLV is the format of HTTP-FLV: the tags as they lie in the log.
type FLV struct{ started bool }

func (f *FLV) append(pending net.Buffers, scratch []byte, run stream.Run, muted [2]bool) (net.Buffers, []byte) {
	for t := range f.tags(run, muted) {
		pending = append(pending, t)
	}
	return pending, scratch
}

// tags yields what an FLV player gets for a run, the file header first.
func (f *FLV) tags(run stream.Run, muted [2]bool) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		if len(run.Entries) == 0 {
			return
		}
		if !f.started {
			f.started = true
			if !yield(fileHeader(run)) {
				return
			}
		}
		for t := range joined(run, muted) {
			if !yield(t) {
				return
			}
		}
	}
}

// joined yields the headers that the reader lacks and then the run's tags.
func joined(run stream.Run, muted [2]bool) func(yield func(media.Tag) bool) {
	return func(yield func(media.Tag) bool) {
		if run.Headers != nil && len(run.Entries) > 0 {
			for _, t := range run.Headers.At(run.Entries[0].Tag.Time()) {
				if !isMuted(muted, t.Kind()) && !yield(t) {
					return
				}
			}
		}
		for i := range run.Entries {
			if e := &run.Entries[i]; !isMuted(muted, e.Info.Kind) && !yield(e.Tag) {
				return
			}
		}
	}
}

// fileHeader announces the kinds that the run shows: players such as mpegts.js
// wait for every kind that is announced.
func fileHeader(run stream.Run) []byte {
	var audio, video bool
	look := func(k media.Kind) {
		audio = audio || k == media.Audio
		video = video || k == media.Video
	}
	if run.Headers != nil {
		for i := range run.Headers.Len() {
			look(run.Headers.Tag(i).Kind())
		}
	}
	for i := range run.Entries {
		look(run.Entries[i].Info.Kind)
	}
	return flv.Header(audio, video)
}

// WebSocketFLV is FLV in binary WebSocket messages (RFC 6455, section 5.2), one
// message for each run.
type WebSocketFLV struct{ flv FLV }

func (f *WebSocketFLV) append(pending net.Buffers, scratch []byte, run stream.Run, muted [2]bool) (net.Buffers, []byte) {
	at, size := len(pending), 0
	pending = append(pending, nil) // for the frame header
	for t := range f.flv.tags(run, muted) {
		pending = append(pending, t)
		size += len(t)
	}
	if size == 0 {
		return pending[:at], scratch
	}
	start := len(scratch)
	scratch = appendFrameHeader(scratch, size)
	pending[at] = scratch[start:]
	return pending, scratch
}

// appendFrameHeader opens an unmasked binary message of one frame.
func appendFrameHeader(b []byte, size int) []byte {
	const finBinary = 0x82
	switch {
	case size < 126:
		return append(b, finBinary, byte(size))
	case size < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, finBinary, 126), uint16(size))
	}
	return binary.BigEndian.AppendUint64(append(b, finBinary, 127), uint64(size))
}

// RTMP is the chunk stream of an RTMP player.
type RTMP struct {
	StreamID  uint32 // of the play
	ChunkSize int    // that was announced to the player
}

func (f *RTMP) append(pending net.Buffers, scratch []byte, run stream.Run, muted [2]bool) (net.Buffers, []byte) {
	start := len(scratch)
	for t := range joined(run, muted) {
		scratch = chunk.AppendMedia(scratch, t, f.StreamID, f.ChunkSize)
	}
	if len(scratch) > start {
		pending = append(pending, scratch[start:])
	}
	return pending, scratch
}
