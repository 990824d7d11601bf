package chunk

import (
	"encoding/binary"
	"slices"

	"weir/internal/media"
)

// Chunk streams that weir sends on. Ids 2 to 63 take one byte.
const (
	StreamControl = 2 // protocol control and user control (section 5.4)
	StreamCommand = 3 // commands of the connection
	StreamAudio   = 4
	StreamStatus  = 5 // commands of a message stream
	StreamVideo   = 6
	StreamData    = 7
)

// AppendMessage appends a message to dst as chunks: a full header (type 0),
// then type-3 chunks that repeat an extended timestamp. csid must be in
// [2, 65599], the payload at most MaxSize bytes, chunkSize at least 1.
func AppendMessage(dst []byte, csid uint32, typ uint8, streamID, time uint32, payload []byte, chunkSize int) []byte {
	chunks := 1
	if len(payload) > chunkSize {
		chunks += (len(payload) - 1) / chunkSize
	}
	if room := len(payload) + 18 + (chunks-1)*7; dst == nil {
		dst = make([]byte, 0, room)
	} else {
		dst = slices.Grow(dst, room)
	}

	dst = appendBasic(dst, 0, csid)
	short := min(time, extendedMark)
	size := len(payload)
	dst = append(dst, byte(short>>16), byte(short>>8), byte(short),
		byte(size>>16), byte(size>>8), byte(size), typ)
	dst = binary.LittleEndian.AppendUint32(dst, streamID)
	if short == extendedMark {
		dst = binary.BigEndian.AppendUint32(dst, time)
	}
	for {
		n := min(len(payload), chunkSize)
		dst = append(dst, payload[:n]...)
		if payload = payload[n:]; len(payload) == 0 {
			return dst
		}
		dst = appendBasic(dst, 3, csid)
		if short == extendedMark {
			dst = binary.BigEndian.AppendUint32(dst, time)
		}
	}
}

// AppendMedia appends a tag to dst as one RTMP message. Its header is complete
// (type 0), so that a player may start at any tag of shared bytes.
func AppendMedia(dst []byte, tag media.Tag, streamID uint32, chunkSize int) []byte {
	csid := uint32(StreamData)
	switch tag.Kind() {
	case media.Audio:
		csid = StreamAudio
	case media.Video:
		csid = StreamVideo
	}
	return AppendMessage(dst, csid, uint8(tag.Kind()), streamID, tag.Time(), tag.Body(), chunkSize)
}

// appendBasic appends the basic header in its shortest form (section 5.3.1.1).
func appendBasic(dst []byte, format byte, csid uint32) []byte {
	switch {
	case csid < 64:
		return append(dst, format<<6|byte(csid))
	case csid < 64+256:
		return append(dst, format<<6, byte(csid-64))
	}
	csid -= 64
	return append(dst, format<<6|1, byte(csid), byte(csid>>8))
}
