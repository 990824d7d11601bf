package fanout

import (
	"encoding/binary"

	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp/chunk"
)

// Format turns tags into the bytes that players get. What all players of a
// stream in a format get is the same, and is made once: two formats that are
// equal (==) make the same bytes.
type Format interface {
	// append adds whole tags to dst. first says that they are the first that the
	// player gets.
	append(dst []byte, first bool, tags []media.Tag) []byte
}

// FLV is the format of HTTP-FLV: the tags as they lie in the log.
type FLV struct{}

func (FLV) append(dst []byte, first bool, tags []media.Tag) []byte {
	if len(tags) == 0 {
		return dst
	}
	if first {
		dst = append(dst, fileHeader(tags)...)
	}
	for _, t := range tags {
		dst = append(dst, t...)
	}
	return dst
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
type WebSocketFLV struct{}

func (WebSocketFLV) append(dst []byte, first bool, tags []media.Tag) []byte {
	if len(tags) == 0 {
		return dst
	}
	size := 0
	if first {
		size = flv.HeaderSize
	}
	for _, t := range tags {
		size += len(t)
	}
	return FLV{}.append(appendFrameHeader(dst, size), first, tags)
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

func (f RTMP) append(dst []byte, _ bool, tags []media.Tag) []byte {
	for _, t := range tags {
		dst = chunk.AppendMedia(dst, t, f.StreamID, f.ChunkSize)
	}
	return dst
}
