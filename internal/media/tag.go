// Package media holds what every part of weir agrees on about media: the FLV
// tag as the unit of transport, the kinds and codecs, and the few facts that a
// relay must know about a tag body (is it a key frame, is it a decoder header).
// It is a leaf: it imports nothing of ours and does no I/O.
package media

import "encoding/binary"

// Sizes of the parts of an FLV tag in bytes (Adobe FLV 10.1, annex E.4.1).
const (
	TagHeaderSize  = 11 // type, body size, timestamp, stream id
	TagTrailerSize = 4  // PreviousTagSize that follows the tag
	TagOverhead    = TagHeaderSize + TagTrailerSize

	// MaxBodySize is the largest body that the 24-bit size field can hold.
	MaxBodySize = 1<<24 - 1
)

// Kind is the type of a tag. The values are those of FLV and of RTMP messages.
type Kind uint8

// The kinds that carry media or data.
const (
	Audio Kind = 8
	Video Kind = 9
	Data  Kind = 18 // AMF0 script data, such as onMetaData
)

// String returns "audio", "video", "data" or "unknown".
func (k Kind) String() string {
	switch k {
	case Audio:
		return "audio"
	case Video:
		return "video"
	case Data:
		return "data"
	}
	return "unknown"
}

// Tag is one complete FLV tag in one slice: an 11-byte header, the body, and
// the 4-byte size of header and body. HTTP-FLV sends the slice as it is; an RTMP
// payload is its middle. A Tag belongs to its maker until it is appended to a
// stream; from then on nobody changes it, and everybody may read it who has it from a
// cursor. When it has left the log, and no cursor has it, its memory may be used again.
type Tag []byte

// NewTag allocates a tag with its header and trailer written and a zeroed body
// of bodySize bytes for the caller to fill. bodySize must be in [0, MaxBodySize].
// time is in milliseconds.
func NewTag(kind Kind, time uint32, bodySize int) Tag {
	t := make(Tag, TagOverhead+bodySize)
	t.Init(kind, time)
	return t
}

// Init writes header and trailer around the body of t, whose length must be
// TagOverhead plus the size of the body.
func (t Tag) Init(kind Kind, time uint32) {
	size := uint32(len(t) - TagOverhead)
	t[0] = byte(kind)
	t[1], t[2], t[3] = byte(size>>16), byte(size>>8), byte(size)
	t.SetTime(time)
	t[8], t[9], t[10] = 0, 0, 0
	binary.BigEndian.PutUint32(t[len(t)-TagTrailerSize:], size+TagHeaderSize)
}

// Kind returns the type of the tag without the encryption bit.
func (t Tag) Kind() Kind { return Kind(t[0] & 0x1f) }

// Time returns the decoding time in milliseconds; it wraps after 2^32.
func (t Tag) Time() uint32 {
	return uint32(t[7])<<24 | uint32(t[4])<<16 | uint32(t[5])<<8 | uint32(t[6])
}

// SetTime changes the decoding time. Only the owner of a tag that was not yet
// appended may call it.
func (t Tag) SetTime(ms uint32) {
	t[4], t[5], t[6], t[7] = byte(ms>>16), byte(ms>>8), byte(ms), byte(ms>>24)
}

// Body returns the bytes between header and trailer. It shares memory with t.
func (t Tag) Body() []byte { return t[TagHeaderSize : len(t)-TagTrailerSize] }

// At returns a copy of t with another time. It is for decoder headers, which
// are sent again at the time of the frame that a player starts at.
func (t Tag) At(ms uint32) Tag {
	c := make(Tag, len(t))
	copy(c, t)
	c.SetTime(ms)
	return c
}
