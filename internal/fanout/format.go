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
	// begin returns what precedes the first tags that a player gets, whose kinds
	// tags show.
	begin(tags []media.Tag) []byte
	// append adds whole tags to dst; begin is nil but before a player's first ones.
	append(dst, begin []byte, tags []media.Tag) []byte
}

// FLV is the format of HTTP-FLV: the tags as they lie in the log.
type FLV struct {
	// Marks are for other nodes of weir: players do not get them.
	Marks bool
}

func (FLV) begin(tags []media.Tag) []byte { return fileHeader(tags) }

func (f FLV) append(dst, begin []byte, tags []media.Tag) []byte {
	if len(tags) == 0 {
		return dst
	}
	dst = append(dst, begin...)
	for _, t := range tags {
		if f.Marks || !media.IsMark(t) {
			dst = append(dst, t...)
		}
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
// message for each run of tags.
type WebSocketFLV struct{}

func (WebSocketFLV) begin(tags []media.Tag) []byte { return fileHeader(tags) }

func (WebSocketFLV) append(dst, begin []byte, tags []media.Tag) []byte {
	if len(tags) == 0 {
		return dst
	}
	size := len(begin)
	for _, t := range tags {
		if !media.IsMark(t) {
			size += len(t)
		}
	}
	if size == 0 {
		return dst
	}
	return FLV{}.append(appendFrameHeader(dst, size), begin, tags)
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
	Marks     bool   // as of FLV
}

// begin returns nothing: the session has announced the stream.
func (RTMP) begin([]media.Tag) []byte { return nil }

func (f RTMP) append(dst, _ []byte, tags []media.Tag) []byte {
	for _, t := range tags {
		if f.Marks || !media.IsMark(t) {
			dst = chunk.AppendMedia(dst, t, f.StreamID, f.ChunkSize)
		}
	}
	return dst
}
