package chaos

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"weir/internal/clip"
	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp/amf"
)

// mark says of a frame what it is. It stands at a fixed place in the frame's
// body, with a checksum over the whole of it.
type mark struct {
	Run    uint32 // of the checker
	Stream uint32 // number of the stream
	Inc    uint32 // incarnation of the publisher: how many times the stream was published
	Seq    uint32 // of the frame among those of its kind in its incarnation, from 0
}

// markID is the UUID of the marks: that of an H.264 SEI message of user data
// (ITU-T H.264, D.1.7).
const markID = "\xb5weir\xf2chaosmark\xe7"

// Sizes in bytes. Numbers are five groups of 7 bits with the high bit set, so that
// nothing in a mark looks like a start code.
const (
	groupSize   = 5
	markSize    = len(markID) + 5*groupSize
	sumAt       = markSize - groupSize
	videoMarkAt = 5 + 4 + 3 // behind FLV's header, the length of the unit, and the heads of SEI
	audioMarkAt = 2
)

func appendGroups(b []byte, v uint32) []byte {
	for i := groupSize - 1; i >= 0; i-- {
		b = append(b, 0x80|byte(uint64(v)>>(7*i)))
	}
	return b
}

func groups(b []byte) (uint32, bool) {
	v, ok := uint64(0), true
	for _, c := range b[:groupSize] {
		ok = ok && c >= 0x80
		v = v<<7 | uint64(c&0x7f)
	}
	return uint32(v), ok && v < 1<<32
}

// frame returns a marked frame. The bytes of video are those of an H.264 picture
// to whoever looks at its units only.
func frame(m mark, video, key bool, ms uint32) media.Tag {
	size, at := 160, audioMarkAt
	if video {
		size, at = 1200, videoMarkAt
		if key {
			size = 4000
		}
	}
	kind := media.Audio
	if video {
		kind = media.Video
	}
	t := media.NewTag(kind, ms, size)
	b := t.Body()
	fill(b[at:], m)
	if video {
		unit := byte(0x41) // coded slice, not of an IDR picture
		b[0], b[1] = 0x27, 1
		if key {
			b[0], unit = 0x17, 0x65
		}
		sei := 3 + markSize + 1 // types, size, mark, stop bit
		binary.BigEndian.PutUint32(b[5:], uint32(sei))
		copy(b[9:], []byte{0x06, 5, byte(markSize)}) // SEI, user data unregistered
		b[9+sei-1] = 0x80
		binary.BigEndian.PutUint32(b[9+sei:], uint32(size-9-sei-4))
		b[9+sei+4] = unit
	} else {
		copy(b, []byte{0xaf, 1}) // AAC, raw
	}
	p := append(b[:at], markID...)
	for _, v := range []uint32{m.Run, m.Stream, m.Inc, m.Seq} {
		p = appendGroups(p, v)
	}
	appendGroups(p, checksum(b, at))
	return t
}

// fill writes bytes that are no start code and differ from frame to frame.
func fill(b []byte, m mark) {
	x := uint64(m.Run)<<32 ^ uint64(m.Stream)<<48 ^ uint64(m.Inc)<<24 ^ uint64(m.Seq) | 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x) | 1
	}
}

// checksum is that of a body without the place of the checksum itself.
func checksum(body []byte, markAt int) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(body[:markAt+sumAt]), crc32.IEEETable, body[markAt+markSize:])
}

var errDamaged = errors.New("it is not what was published")

// readMark returns the mark of a frame that nobody has changed.
func readMark(t media.Tag) (mark, error) {
	at := audioMarkAt
	if t.Kind() == media.Video {
		at = videoMarkAt
	}
	b := t.Body()
	if len(b) < at+markSize || string(b[at:at+len(markID)]) != markID {
		return mark{}, fmt.Errorf("%w: no mark in %d bytes of %v", errDamaged, len(b), t.Kind())
	}
	p := b[at+len(markID):]
	var v [5]uint32
	for i := range v {
		var ok bool
		if v[i], ok = groups(p[i*groupSize:]); !ok {
			return mark{}, fmt.Errorf("%w: a broken number", errDamaged)
		}
	}
	if v[4] != checksum(b, at) {
		return mark{}, fmt.Errorf("%w: wrong checksum of frame %d", errDamaged, v[3])
	}
	return mark{Run: v[0], Stream: v[1], Inc: v[2], Seq: v[3]}, nil
}

// headerTags returns the metadata and the decoder headers that each stream
// begins with. The latter are those of the test clip.
func headerTags() ([]media.Tag, error) {
	meta := amf.Append(nil, amf.Str("onMetaData"), amf.Obj(
		amf.P("width", amf.Num(640)), amf.P("height", amf.Num(360)), amf.P("framerate", amf.Num(videoRate)),
		amf.P("videocodecid", amf.Num(7)), amf.P("audiocodecid", amf.Num(10)), amf.P("encoder", amf.Str("weir chaos")),
	))
	t := media.NewTag(media.Data, 0, len(meta))
	copy(t.Body(), meta)
	tags := []media.Tag{t}
	r := flv.NewReader(clip.Reader(), 0)
	for len(tags) < 3 {
		t, err := r.ReadTag()
		if err == io.EOF {
			return nil, errors.New("read headers of the test clip: it has no two of them")
		}
		if err != nil {
			return nil, fmt.Errorf("read headers of the test clip: %w", err)
		}
		if t.Kind() != media.Data && media.Sniff(t.Kind(), t.Body()).IsHeader() {
			tags = append(tags, t.At(0))
		}
	}
	return tags, nil
}

// The form of all streams: frames per second, and video frames per key frame.
const (
	videoRate = 15
	audioRate = 20
	gopFrames = 15
)
