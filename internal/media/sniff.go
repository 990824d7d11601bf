package media

// Codec names the coding of a tag body. The zero value means "not known".
type Codec uint8

// Codecs that weir names; others travel untouched as Unknown.
const (
	Unknown Codec = iota
	H264
	H265
	AV1
	VP8
	VP9
	H263
	VP6
	H266
	AAC
	MP3
	Opus
	AC3
	EAC3
	FLAC
	G711A
	G711U
	Speex
	PCM
)

var codecNames = [...]string{
	Unknown: "unknown", H264: "H.264", H265: "H.265", AV1: "AV1", VP8: "VP8", VP9: "VP9", H263: "H.263", VP6: "VP6",
	H266: "H.266",
	AAC:  "AAC", MP3: "MP3", Opus: "Opus", AC3: "AC-3", EAC3: "E-AC-3", FLAC: "FLAC",
	G711A: "G.711 A-law", G711U: "G.711 mu-law", Speex: "Speex", PCM: "PCM",
}

// String returns the usual name of the codec, "unknown" for others.
func (c Codec) String() string {
	if int(c) < len(codecNames) {
		return codecNames[c]
	}
	return codecNames[Unknown]
}

// Flags are the facts about one tag that decide where a reader may start.
type Flags uint8

const (
	// KeyFrame marks a video frame at which decoding can start.
	KeyFrame Flags = 1 << iota
	// Header marks decoder state instead of a frame: a video or audio sequence
	// header, an audio channel layout, colour information, or metadata.
	Header
	// Enhanced marks a body with the Enhanced RTMP header (FourCC).
	Enhanced
	// Multitrack marks an Enhanced RTMP body that carries several tracks or a
	// track other than the first.
	Multitrack
	// EndOfSequence marks the end of a video or audio sequence; it carries no
	// frame.
	EndOfSequence
	// Malformed marks a body that is too short for its own header or that
	// contradicts itself. It has none of KeyFrame, Header and EndOfSequence.
	Malformed
)

// Info is what Sniff found out about a tag.
type Info struct {
	Kind  Kind
	Codec Codec
	Flags Flags
	// Slot is the track number of an Enhanced RTMP track (0 without
	// multitrack), or SlotManyTracks. With the Header flag it tells which
	// decoder state of its kind the tag replaces, and one of the other special
	// slots below may be added: only slots under SlotMultichannel hold sequence
	// headers. Of kind Data it is 0 for metadata and SlotEpoch for an epoch mark.
	Slot uint16
}

// Slots of headers that are not one track's sequence header.
const (
	SlotManyTracks   = 0x100 // one body with the headers of several tracks
	SlotMultichannel = 0x200 // added to the track: audio channel layout
	SlotMetadata     = 0x400 // added to the track: video metadata, such as colorInfo
)

// Has reports whether all of the given flags are set.
func (i Info) Has(f Flags) bool { return i.Flags&f == f }

// IsKeyFrame reports a video frame that decoding can start at.
func (i Info) IsKeyFrame() bool { return i.Flags&KeyFrame != 0 }

// IsHeader reports a sequence header or metadata.
func (i Info) IsHeader() bool { return i.Flags&Header != 0 }

// Sniff looks at the first bytes of a tag body and says what it is. It never
// fails: what it does not know is Unknown, and what is cut short is Malformed.
//
// Formats: Adobe FLV 10.1 annex E.4.2 (audio) and E.4.3 (video); Enhanced RTMP
// v2 "Enhanced Audio" and "Enhanced Video".
func Sniff(kind Kind, body []byte) Info {
	switch kind {
	case Audio:
		return sniffAudio(body)
	case Video:
		return sniffVideo(body)
	case Data:
		return sniffData(body)
	}
	return Info{Kind: kind}
}

// Frame types and packet types of video bodies.
const (
	frameKey          = 1
	frameGeneratedKey = 4
	frameCommand      = 5

	avcSequenceHeader = 0
	avcEndOfSequence  = 2

	exSequenceStart = 0
	exCodedFrames   = 1
	exSequenceEnd   = 2
	exCodedFramesX  = 3
	exMetadata      = 4
	exMPEG2TSStart  = 5
	exMultitrack    = 6
	exModEx         = 7
)

func sniffVideo(b []byte) Info {
	i := Info{Kind: Video}
	if len(b) == 0 {
		i.Flags = Malformed
		return i
	}
	frame := b[0] >> 4 & 7
	if b[0]&0x80 != 0 {
		return sniffExVideo(i, b, frame)
	}
	switch b[0] & 0x0f {
	case 2:
		i.Codec = H263
	case 4, 5:
		i.Codec = VP6
	case 7:
		i.Codec = H264
	case 12: // not in the specification: HEVC as several vendors send it
		i.Codec = H265
	case 13: // likewise AV1
		i.Codec = AV1
	}
	if frame == frameCommand { // one byte follows whatever the codec, and no frame
		if len(b) < 2 {
			i.Flags = Malformed
		}
		return i
	}
	if i.Codec == H264 || i.Codec == H265 || i.Codec == AV1 {
		if len(b) < 5 { // AVCPacketType and composition time
			i.Flags = Malformed
			return i
		}
		switch b[1] {
		case avcSequenceHeader:
			i.Flags = Header
			return i
		case avcEndOfSequence:
			i.Flags = EndOfSequence
			return i
		}
	}
	if frame == frameKey || frame == frameGeneratedKey {
		i.Flags |= KeyFrame
	}
	return i
}

func sniffExVideo(i Info, b []byte, frame byte) Info {
	i.Flags = Enhanced
	packet, rest, ok := skipModEx(b[0]&0x0f, b[1:])
	if !ok {
		i.Flags |= Malformed
		return i
	}
	if frame == frameCommand && packet != exMetadata {
		if len(rest) < 1 { // the command; no FourCC and no frame follow it
			i.Flags |= Malformed
		}
		return i
	}
	if packet == exMultitrack {
		i.Flags |= Multitrack
		if i.Slot, packet, rest, ok = openMultitrack(rest); !ok || packet == exMultitrack {
			i.Flags |= Malformed
			return i
		}
	}
	if len(rest) < 4 {
		i.Flags |= Malformed
		return i
	}
	i.Codec = videoFourCC(rest)
	switch packet {
	case exSequenceStart, exMPEG2TSStart:
		i.Flags |= Header
	case exSequenceEnd:
		i.Flags |= EndOfSequence
	case exMetadata: // in force until the next one, so it is state; the frame type is ignored
		i.Flags |= Header
		i.Slot |= SlotMetadata
	case exCodedFrames, exCodedFramesX:
		if frame == frameKey || frame == frameGeneratedKey {
			i.Flags |= KeyFrame
		}
	}
	return i
}

// openMultitrack reads what follows the packet type of a multitrack body: the
// multitrack type with the packet type of the tracks, the FourCC (of all tracks
// or of the first), the first track's number and, unless it is the only one, its
// size. The rest that it returns opens with the FourCC.
func openMultitrack(b []byte) (slot uint16, packet byte, rest []byte, ok bool) {
	const oneTrack = 0
	if len(b) < 1+4+1 {
		return 0, 0, nil, false
	}
	packet, rest = b[0]&0x0f, b[1:]
	if b[0]>>4 == oneTrack {
		return uint16(rest[4]), packet, rest, true
	}
	return SlotManyTracks, packet, rest, len(rest) >= 4+1+3
}

// skipModEx steps over the ModEx prefixes of an Enhanced RTMP v2 body and
// returns the packet type that they lead to and what follows them.
func skipModEx(packet byte, b []byte) (byte, []byte, bool) {
	for packet == exModEx {
		if len(b) < 1 {
			return 0, nil, false
		}
		size := int(b[0]) + 1
		b = b[1:]
		if size == 256 {
			if len(b) < 2 {
				return 0, nil, false
			}
			size = (int(b[0])<<8 | int(b[1])) + 1
			b = b[2:]
		}
		if len(b) < size+1 {
			return 0, nil, false
		}
		packet = b[size] & 0x0f // high nibble: kind of the extension
		b = b[size+1:]
	}
	return packet, b, true
}

func videoFourCC(b []byte) Codec {
	switch string(b[:4]) {
	case "avc1":
		return H264
	case "hvc1", "hev1":
		return H265
	case "av01":
		return AV1
	case "vp08":
		return VP8
	case "vp09":
		return VP9
	case "vvc1":
		return H266
	}
	return Unknown
}

func audioFourCC(b []byte) Codec {
	switch string(b[:4]) {
	case "mp4a":
		return AAC
	case ".mp3":
		return MP3
	case "Opus":
		return Opus
	case "ac-3":
		return AC3
	case "ec-3":
		return EAC3
	case "fLaC":
		return FLAC
	}
	return Unknown
}

// Packet types of Enhanced RTMP audio bodies.
const (
	exAudioSequenceStart = 0
	exAudioSequenceEnd   = 2
	exAudioMultichannel  = 4
	exAudioMultitrack    = 5
)

func sniffAudio(b []byte) Info {
	i := Info{Kind: Audio}
	if len(b) == 0 {
		i.Flags = Malformed
		return i
	}
	switch b[0] >> 4 {
	case 0, 3:
		i.Codec = PCM
	case 2, 14:
		i.Codec = MP3
	case 7:
		i.Codec = G711A
	case 8:
		i.Codec = G711U
	case 11:
		i.Codec = Speex
	case 13: // not in the specification: Opus as several vendors send it
		i.Codec = Opus
		i.Flags = packetTypeFlags(b)
	case 10:
		i.Codec = AAC
		i.Flags = packetTypeFlags(b)
	case 9:
		return sniffExAudio(i, b)
	}
	return i
}

// packetTypeFlags judges a legacy audio body whose second byte says whether it
// is a sequence header (AACPacketType).
func packetTypeFlags(b []byte) Flags {
	switch {
	case len(b) < 2:
		return Malformed
	case b[1] == 0:
		return Header
	}
	return 0
}

func sniffExAudio(i Info, b []byte) Info {
	i.Flags = Enhanced
	packet, rest, ok := skipModEx(b[0]&0x0f, b[1:])
	if !ok {
		i.Flags |= Malformed
		return i
	}
	if packet == exAudioMultitrack {
		i.Flags |= Multitrack
		if i.Slot, packet, rest, ok = openMultitrack(rest); !ok || packet == exAudioMultitrack {
			i.Flags |= Malformed
			return i
		}
	}
	if len(rest) < 4 {
		i.Flags |= Malformed
		return i
	}
	i.Codec = audioFourCC(rest)
	switch packet {
	case exAudioSequenceStart:
		i.Flags |= Header
	case exAudioSequenceEnd:
		i.Flags |= EndOfSequence
	case exAudioMultichannel:
		i.Flags |= Header
		i.Slot |= SlotMultichannel
	}
	return i
}

// onMetaData as the AMF0 string that opens the body of a metadata tag.
var onMetaData = []byte("\x02\x00\x0aonMetaData")

// onWeirEpoch likewise opens the body of an epoch mark.
var onWeirEpoch = []byte("\x02\x00\x0b" + epochName)

func sniffData(b []byte) Info {
	i := Info{Kind: Data}
	if len(b) == 0 {
		i.Flags = Malformed
	} else if len(b) >= len(onMetaData) && string(b[:len(onMetaData)]) == string(onMetaData) {
		i.Flags = Header
	} else if len(b) >= len(onWeirEpoch) && string(b[:len(onWeirEpoch)]) == string(onWeirEpoch) {
		i.Flags, i.Slot = Header, SlotEpoch
	}
	return i
}
