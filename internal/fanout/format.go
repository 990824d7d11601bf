package fanout

import (
	"encoding/binary"
	"net"

	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp/chunk"
)

// Format turns tags into the bytes that one player gets. A value belongs to one
// player.
type Format interface {
	// append adds whole tags, in their order, to pending. What must be made for
	// this player is made in scratch; slices of it in pending stay valid because
	// scratch is grown by appending before it is sliced.
	append(pending net.Buffers, scratch []byte, tags []media.Tag) (net.Buffers, []byte)
}

// FLV is the format of HTTP-FLV: the tags as they lie in the log.
type FLV struct{ started bool }

func (f *FLV) append(pending net.Buffers, scratch []byte, tags []media.Tag) (net.Buffers, []byte) {
	if len(tags) == 0 {
		return pending, scratch
	}
	if !f.started {
		f.started = true
		pending = append(pending, fileHeader(tags))
	}
	for _, t := range tags {
		pending = append(pending, t)
	}
	return pending, scratch
}

// fileHeader announces the kinds that the first tags show: players such as
// mpegts.js wait for every kind that is announced.
func fileHeader(tags []media.Tag) []byte {
	var audio, video bool
	for _, t := range tags {
		audio = audio || t.Kind() == media.Audio
		video = video || t.Kind() == media.Video
	}
	return flv.Header(audio, video)
}

// WebSocketFLV is FLV in binary WebSocket messages (RFC 6455, section 5.2), one
// message for each batch of tags.
type WebSocketFLV struct{ flv FLV }

func (f *WebSocketFLV) append(pending net.Buffers, scratch []byte, tags []media.Tag) (net.Buffers, []byte) {
	if len(tags) == 0 {
		return pending, scratch
	}
	at := len(pending)
	pending = append(pending, nil) // for the frame header
	pending, scratch = f.flv.append(pending, scratch, tags)
	size := 0
	for _, b := range pending[at:] {
		size += len(b)
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

func (f *RTMP) append(pending net.Buffers, scratch []byte, tags []media.Tag) (net.Buffers, []byte) {
	start := len(scratch)
	for _, t := range tags {
		scratch = chunk.AppendMedia(scratch, t, f.StreamID, f.ChunkSize)
	}
	if len(scratch) > start {
		pending = append(pending, scratch[start:])
	}
	return pending, scratch
}
