package hls

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h265"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg1audio"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg4audio"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/opus"

	"weir/internal/media"
)

// unit is what a tag body carries for the first track of its kind.
type unit struct {
	codec  media.Codec
	header bool   // data is a decoder configuration
	shift  int32  // composition time in milliseconds; 0 for audio
	data   []byte // shares memory with the tag; empty when there is nothing to write
}

var errTruncated = errors.New("body is cut short")

// Packet types of Enhanced RTMP v2, "Enhanced Video" and "Enhanced Audio".
const (
	packetSequenceStart = 0
	packetCodedFrames   = 1
	packetCodedFramesX  = 3 // video: without a composition time
	packetModEx         = 7

	packetVideoMultitrack = 6
	packetAudioMultitrack = 5
)

// parseVideo reads a video body (Adobe FLV 10.1 annex E.4.3; Enhanced RTMP v2).
// codec is what media.Sniff said.
func parseVideo(body []byte, info media.Info) (unit, error) {
	if info.Flags&media.Enhanced != 0 {
		packet, codec, data, err := parseEnhanced(body, packetVideoMultitrack, media.Video)
		u := unit{codec: codec}
		if err != nil {
			return u, err
		}
		switch packet {
		case packetSequenceStart:
			u.header, u.data = true, data
		case packetCodedFramesX:
			u.data = data
		case packetCodedFrames:
			if codec != media.H264 && codec != media.H265 {
				u.data = data
				break
			}
			if len(data) < 3 {
				return u, errTruncated
			}
			u.shift, u.data = signed24(data), data[3:]
		}
		return u, nil
	}
	u := unit{codec: info.Codec}
	switch info.Codec {
	case media.H264, media.H265, media.AV1:
	default:
		if len(body) > 1 {
			u.data = body[1:]
		}
		return u, nil
	}
	if len(body) < 5 {
		return u, errTruncated
	}
	switch body[1] {
	case 0:
		u.header, u.data = true, body[5:]
	case 1:
		u.shift, u.data = signed24(body[2:]), body[5:]
	}
	return u, nil
}

// parseAudio reads an audio body (Adobe FLV 10.1 annex E.4.2; Enhanced RTMP v2).
func parseAudio(body []byte, info media.Info) (unit, error) {
	if info.Flags&media.Enhanced != 0 {
		packet, codec, data, err := parseEnhanced(body, packetAudioMultitrack, media.Audio)
		u := unit{codec: codec}
		if err != nil {
			return u, err
		}
		switch packet {
		case packetSequenceStart:
			u.header, u.data = true, data
		case packetCodedFrames:
			u.data = data
		}
		return u, nil
	}
	u := unit{codec: info.Codec}
	skip := 1
	if info.Codec == media.AAC || info.Codec == media.Opus {
		skip, u.header = 2, info.IsHeader()
	}
	if len(body) < skip {
		return u, errTruncated
	}
	u.data = body[skip:]
	return u, nil
}

// parseEnhanced reads the extended header of a body and returns the packet type
// and the data of track 0; no data where the body is about other tracks only.
func parseEnhanced(body []byte, multitrack byte, kind media.Kind) (packet byte, codec media.Codec, data []byte, err error) {
	packet, b := body[0]&0x0f, body[1:]
	for packet == packetModEx {
		if len(b) < 1 {
			return 0, 0, nil, errTruncated
		}
		size := int(b[0]) + 1
		b = b[1:]
		if size == 256 {
			if len(b) < 2 {
				return 0, 0, nil, errTruncated
			}
			size = int(binary.BigEndian.Uint16(b)) + 1
			b = b[2:]
		}
		if len(b) < size+1 {
			return 0, 0, nil, errTruncated
		}
		packet, b = b[size]&0x0f, b[size+1:]
	}
	if packet != multitrack {
		if len(b) < 4 {
			return 0, 0, nil, errTruncated
		}
		return packet, fourCC(b, kind), b[4:], nil
	}

	if len(b) < 1 {
		return 0, 0, nil, errTruncated
	}
	const oneTrack, manyTracks, manyCodecs = 0, 1, 2
	layout := b[0] >> 4
	packet, b = b[0]&0x0f, b[1:]
	if layout != manyCodecs {
		if len(b) < 4 {
			return 0, 0, nil, errTruncated
		}
		codec, b = fourCC(b, kind), b[4:]
	}
	switch layout {
	case oneTrack:
		if len(b) < 1 {
			return 0, 0, nil, errTruncated
		}
		if b[0] != 0 {
			return packet, codec, nil, nil
		}
		return packet, codec, b[1:], nil
	case manyTracks, manyCodecs:
		for len(b) > 0 {
			if layout == manyCodecs {
				if len(b) < 4 {
					return 0, 0, nil, errTruncated
				}
				codec, b = fourCC(b, kind), b[4:]
			}
			if len(b) < 4 {
				return 0, 0, nil, errTruncated
			}
			track, size := b[0], int(b[1])<<16|int(b[2])<<8|int(b[3])
			if len(b) < 4+size {
				return 0, 0, nil, errTruncated
			}
			if track == 0 {
				return packet, codec, b[4 : 4+size], nil
			}
			b = b[4+size:]
		}
		return packet, codec, nil, nil
	}
	return 0, 0, nil, fmt.Errorf("multitrack layout %d is not known", layout)
}

// fourCC returns the codec of the first four bytes of b. Codecs of MPEG-TS and
// those that are worth naming in an explanation are known here.
func fourCC(b []byte, kind media.Kind) media.Codec {
	// A body of its own that opens with this FourCC is what media.Sniff reads.
	probe := [9]byte{0x80}
	if kind == media.Audio {
		probe[0] = 0x90
	}
	copy(probe[1:], b[:4])
	return media.Sniff(kind, probe[:]).Codec
}

func signed24(b []byte) int32 {
	return int32(uint32(b[0])<<24|uint32(b[1])<<16|uint32(b[2])<<8) >> 8
}

// maxHeader bounds a decoder configuration in bytes.
const maxHeader = 64 << 10

// videoConfig is the decoder configuration of H.264 or H.265. It is immutable.
type videoConfig struct {
	codec      media.Codec
	raw        []byte   // as it came, to compare with the next
	lengthSize int      // bytes of the length in front of each NAL unit
	parameters [][]byte // parameter sets, in the order in which they go in front of a key frame
	size       int      // of the parameter sets with their start codes, bytes
}

func parseVideoConfig(codec media.Codec, raw []byte) (*videoConfig, error) {
	if len(raw) > maxHeader {
		return nil, fmt.Errorf("%v configuration of %d bytes is too large", codec, len(raw))
	}
	c := &videoConfig{codec: codec, raw: bytes.Clone(raw)}
	var err error
	if codec == media.H265 {
		err = c.readHVCC(c.raw)
	} else {
		err = c.readAVCC(c.raw)
	}
	if err != nil {
		return nil, fmt.Errorf("read %v configuration: %w", codec, err)
	}
	if c.lengthSize == 3 {
		return nil, fmt.Errorf("read %v configuration: NAL unit lengths of 3 bytes do not exist", codec)
	}
	if len(c.parameters) == 0 {
		return nil, fmt.Errorf("read %v configuration: no parameter sets", codec)
	}
	for _, p := range c.parameters {
		c.size += len(p) + 4
	}
	return c, nil
}

// readAVCC reads an AVCDecoderConfigurationRecord (ISO/IEC 14496-15 section
// 5.3.3.1). The extension that High profiles append is not needed.
func (c *videoConfig) readAVCC(b []byte) error {
	if len(b) < 7 {
		return errTruncated
	}
	c.lengthSize = int(b[4]&3) + 1
	sets, b := int(b[5]&0x1f), b[6:]
	b, err := c.readSets(b, sets)
	if err != nil {
		return err
	}
	if len(b) < 1 {
		return errTruncated
	}
	_, err = c.readSets(b[1:], int(b[0]))
	return err
}

// readHVCC reads an HEVCDecoderConfigurationRecord (ISO/IEC 14496-15 section
// 8.3.3.1): VPS, SPS and PPS; SEI are left out.
func (c *videoConfig) readHVCC(b []byte) error {
	if len(b) < 23 {
		return errTruncated
	}
	c.lengthSize = int(b[21]&3) + 1
	arrays, b := int(b[22]), b[23:]
	for range arrays {
		if len(b) < 3 {
			return errTruncated
		}
		kind, sets := h265.NALUType(b[0]&0x3f), int(binary.BigEndian.Uint16(b[1:]))
		before := len(c.parameters)
		var err error
		if b, err = c.readSets(b[3:], sets); err != nil {
			return err
		}
		switch kind {
		case h265.NALUType_VPS_NUT, h265.NALUType_SPS_NUT, h265.NALUType_PPS_NUT:
		default:
			c.parameters = c.parameters[:before]
		}
	}
	return nil
}

// readSets takes n NAL units with 16-bit lengths from b; empty ones are passed
// over.
func (c *videoConfig) readSets(b []byte, n int) ([]byte, error) {
	for range n {
		if len(b) < 2 {
			return nil, errTruncated
		}
		size := int(binary.BigEndian.Uint16(b))
		b = b[2:]
		if len(b) < size {
			return nil, errTruncated
		}
		if size >= c.shortest() {
			c.parameters = append(c.parameters, b[:size])
		}
		b = b[size:]
	}
	return b, nil
}

// shortest is the size in bytes of a NAL unit's header.
func (c *videoConfig) shortest() int {
	if c.codec == media.H265 {
		return 2
	}
	return 1
}

// maxNALUs bounds the NAL units of one frame, so that a frame of tiny ones costs
// no more memory than its bytes.
const maxNALUs = 1024

// accessUnit splits a frame into NAL units, appended to dst. Access unit
// delimiters are left out (the muxer writes its own), and the parameter sets go
// in front of a key frame that does not bring them. The units share memory with
// data and c.
func (c *videoConfig) accessUnit(dst [][]byte, data []byte, key bool) ([][]byte, error) {
	start := len(dst)
	if key {
		dst = append(dst, c.parameters...)
	}
	brought, first := false, len(dst)
	for len(data) > 0 {
		if len(data) < c.lengthSize {
			return dst, errTruncated
		}
		size := 0
		for _, b := range data[:c.lengthSize] {
			size = size<<8 | int(b)
		}
		data = data[c.lengthSize:]
		if size > len(data) {
			return dst, errTruncated
		}
		nal := data[:size]
		data = data[size:]
		if size < c.shortest() || c.isDelimiter(nal) {
			continue
		}
		if len(dst)-first == maxNALUs {
			return dst, fmt.Errorf("more than %d NAL units in a frame", maxNALUs)
		}
		brought = brought || c.isSPS(nal)
		dst = append(dst, nal)
	}
	if len(dst) == first {
		return dst[:start], errors.New("frame without a NAL unit")
	}
	if brought && key {
		dst = append(dst[:start], dst[first:]...)
	}
	return dst, nil
}

func (c *videoConfig) isDelimiter(nal []byte) bool {
	if c.codec == media.H265 {
		return h265.NALUType(nal[0]>>1&0x3f) == h265.NALUType_AUD_NUT
	}
	return h264.NALUType(nal[0]&0x1f) == h264.NALUTypeAccessUnitDelimiter
}

func (c *videoConfig) isSPS(nal []byte) bool {
	if c.codec == media.H265 {
		return h265.NALUType(nal[0]>>1&0x3f) == h265.NALUType_SPS_NUT
	}
	return h264.NALUType(nal[0]&0x1f) == h264.NALUTypeSPS
}

// audioConfig is the decoder configuration of an audio codec. It is immutable.
type audioConfig struct {
	codec    media.Codec
	raw      []byte // as it came, to compare with the next
	aac      mpeg4audio.AudioSpecificConfig
	channels int // of Opus
}

func parseAudioConfig(codec media.Codec, raw []byte) (*audioConfig, error) {
	if len(raw) > maxHeader {
		return nil, fmt.Errorf("%v configuration of %d bytes is too large", codec, len(raw))
	}
	c := &audioConfig{codec: codec, raw: bytes.Clone(raw)}
	switch codec {
	case media.AAC:
		if err := c.aac.Unmarshal(raw); err != nil {
			return nil, fmt.Errorf("read AAC configuration: %w", err)
		}
		// Not every configuration has an ADTS form.
		if _, err := c.adts([][]byte{{0}}).Marshal(); err != nil {
			return nil, fmt.Errorf("read AAC configuration: %w", err)
		}
	case media.MP3: // has no configuration: raw is the first frame
		var h mpeg1audio.FrameHeader
		if err := h.Unmarshal(raw); err != nil {
			return nil, fmt.Errorf("read MP3 frame: %w", err)
		}
		if h.MPEG2 {
			return nil, fmt.Errorf("read MP3 frame: sampling rate of %d Hz (MPEG-2)", h.SampleRate)
		}
		c.raw = nil
	case media.Opus:
		var h opus.IDHeader
		if err := h.Unmarshal(raw); err != nil {
			return nil, fmt.Errorf("read Opus configuration: %w", err)
		}
		if h.ChannelCount < 1 || h.ChannelCount > 8 {
			return nil, fmt.Errorf("read Opus configuration: %d channels", h.ChannelCount)
		}
		c.channels = int(h.ChannelCount)
	}
	return c, nil
}

func (c *audioConfig) adts(frames [][]byte) mpeg4audio.ADTSPackets {
	packets := make(mpeg4audio.ADTSPackets, len(frames))
	for i, f := range frames {
		packets[i] = &mpeg4audio.ADTSPacket{
			Type: c.aac.Type, SampleRate: c.aac.SampleRate, ChannelConfig: c.aac.ChannelConfig, AU: f,
		}
	}
	return packets
}

// Largest audio frames: the 13-bit length of ADTS with its header, and what
// leaves the 16-bit length of a PES packet room for headers.
const (
	maxAACFrame = 1<<13 - 1 - 7
	maxPESAudio = 60 << 10
)

// frameDuration checks one frame and returns how long it plays in 90 kHz ticks.
func (c *audioConfig) frameDuration(frame []byte) (int64, error) {
	if len(frame) == 0 {
		return 0, errors.New("empty audio frame")
	}
	switch c.codec {
	case media.AAC:
		if len(frame) > maxAACFrame {
			return 0, fmt.Errorf("AAC frame of %d bytes", len(frame))
		}
		samples := int64(1024)
		if c.aac.FrameLengthFlag {
			samples = 960
		}
		return samples * clockRate / int64(c.aac.SampleRate), nil
	case media.MP3:
		var h mpeg1audio.FrameHeader
		if err := h.Unmarshal(frame); err != nil {
			return 0, fmt.Errorf("read MP3 frame: %w", err)
		}
		if h.MPEG2 {
			return 0, fmt.Errorf("read MP3 frame: sampling rate of %d Hz (MPEG-2)", h.SampleRate)
		}
		if len(frame) > maxPESAudio {
			return 0, fmt.Errorf("MP3 frame of %d bytes", len(frame))
		}
		return int64(h.SampleCount()) * clockRate / int64(h.SampleRate), nil
	}
	if len(frame) > maxPESAudio/2 { // an Opus control header has a byte for each 255
		return 0, fmt.Errorf("%v frame of %d bytes", c.codec, len(frame))
	}
	return int64(20 * clockRate / 1000), nil
}
