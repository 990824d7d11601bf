package media

import (
	"strings"
	"testing"
)

// modEx is one Enhanced RTMP modifier of size bytes that leads to packet.
func modEx(size int, packet byte) string {
	data := strings.Repeat("\x01", size)
	if size < 256 {
		return string([]byte{byte(size - 1)}) + data + string([]byte{packet})
	}
	return string([]byte{0xff, byte((size - 1) >> 8), byte(size - 1)}) + data + string([]byte{packet})
}

func TestSniff(t *testing.T) {
	f := func(name string, kind Kind, body string, want Info) {
		t.Helper()
		want.Kind = kind
		if got := Sniff(kind, []byte(body)); got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, want)
		}
	}

	// Legacy video: FLV 10.1, E.4.3.
	video := func(name, body string, codec Codec, flags Flags) {
		t.Helper()
		f(name, Video, body, Info{Codec: codec, Flags: flags})
	}
	video("H.263 key", "\x12\x00", H263, KeyFrame)
	video("H.263 inter", "\x22\x00", H263, 0)
	video("H.263 disposable", "\x32\x00", H263, 0)
	video("VP6 key", "\x14\x00", VP6, KeyFrame)
	video("VP6 with alpha, key", "\x15\x00", VP6, KeyFrame)
	video("screen video, key", "\x13\x00", Unknown, KeyFrame)
	video("AVC sequence header", "\x17\x00\x00\x00\x00avcC", H264, Header)
	video("AVC sequence header marked inter", "\x27\x00\x00\x00\x00avcC", H264, Header)
	video("AVC key", "\x17\x01\x00\x00\x00nalu", H264, KeyFrame)
	video("AVC key, made by a server", "\x47\x01\x00\x00\x00nalu", H264, KeyFrame)
	video("AVC inter", "\x27\x01\x00\x00\x00nalu", H264, 0)
	video("AVC end", "\x17\x02\x00\x00\x00", H264, EndOfSequence)
	video("AVC cut", "\x17\x01\x00\x00", H264, Malformed)
	video("AVC first byte only", "\x17", H264, Malformed)
	video("AVC seek command", "\x57\x00", H264, 0)
	video("AVC seek command with padding", "\x57\x00\x00\x00\x00", H264, 0)
	video("seek command without its byte", "\x57", H264, Malformed)
	video("HEVC by number, header", "\x1c\x00\x00\x00\x00hvcC", H265, Header)
	video("HEVC by number, key", "\x1c\x01\x00\x00\x00x", H265, KeyFrame)
	video("AV1 by number, header", "\x1d\x00\x00\x00\x00av1C", AV1, Header)
	video("empty", "", Unknown, Malformed)

	// Legacy audio: E.4.2.
	audio := func(name, body string, codec Codec, flags Flags) {
		t.Helper()
		f(name, Audio, body, Info{Codec: codec, Flags: flags})
	}
	audio("PCM, platform endian", "\x0fx", PCM, 0)
	audio("ADPCM", "\x1fx", Unknown, 0)
	audio("MP3", "\x2fx", MP3, 0)
	audio("PCM, little endian", "\x3fx", PCM, 0)
	audio("Nellymoser", "\x6fx", Unknown, 0)
	audio("A-law", "\x7fx", G711A, 0)
	audio("mu-law", "\x8fx", G711U, 0)
	audio("AAC header", "\xaf\x00\x12\x10", AAC, Header)
	audio("AAC frame", "\xaf\x01x", AAC, 0)
	audio("AAC cut", "\xaf", AAC, Malformed)
	audio("Speex", "\xbfx", Speex, 0)
	audio("Opus by number, header", "\xdf\x00x", Opus, Header)
	audio("Opus by number, frame", "\xdf\x01x", Opus, 0)
	audio("Opus by number, cut", "\xdf", Opus, Malformed)
	audio("MP3 at 8 kHz", "\xefx", MP3, 0)
	audio("device specific", "\xffx", Unknown, 0)
	audio("empty", "", Unknown, Malformed)

	// Enhanced video. The first byte is 1, three bits of frame type, packet type.
	for fourCC, codec := range map[string]Codec{
		"avc1": H264, "hvc1": H265, "hev1": H265, "vvc1": H266, "av01": AV1, "vp08": VP8, "vp09": VP9, "zzzz": Unknown,
	} {
		video(fourCC+" sequence start", "\x90"+fourCC+"x", codec, Enhanced|Header)
		video(fourCC+" key", "\x91"+fourCC+"x", codec, Enhanced|KeyFrame)
		video(fourCC+" inter", "\xa1"+fourCC+"x", codec, Enhanced)
		video(fourCC+" sequence end", "\x92"+fourCC, codec, Enhanced|EndOfSequence)
		video(fourCC+" key without composition time", "\x93"+fourCC+"x", codec, Enhanced|KeyFrame)
		video(fourCC+" inter without composition time", "\xa3"+fourCC+"x", codec, Enhanced)
		video(fourCC+" MPEG-2 TS sequence start", "\x95"+fourCC+"x", codec, Enhanced|Header)
	}
	video("reserved packet type marked key", "\x98hvc1x", H265, Enhanced)
	video("FourCC cut", "\x91hvc", Unknown, Enhanced|Malformed)
	video("header FourCC missing", "\x90", Unknown, Enhanced|Malformed)
	video("command", "\xd0\x00", Unknown, Enhanced)
	video("command without its byte", "\xd0", Unknown, Enhanced|Malformed)
	f("colour information is state", Video, "\x94hvc1\x02\x00\x09colorInfo",
		Info{Codec: H265, Flags: Enhanced | Header, Slot: SlotMetadata})
	f("metadata ignores the frame type", Video, "\xd4hvc1x",
		Info{Codec: H265, Flags: Enhanced | Header, Slot: SlotMetadata})

	// Enhanced audio: 9, packet type.
	for fourCC, codec := range map[string]Codec{
		"mp4a": AAC, ".mp3": MP3, "Opus": Opus, "ac-3": AC3, "ec-3": EAC3, "fLaC": FLAC, "zzzz": Unknown,
	} {
		audio(fourCC+" sequence start", "\x90"+fourCC+"x", codec, Enhanced|Header)
		audio(fourCC+" frame", "\x91"+fourCC+"x", codec, Enhanced)
		audio(fourCC+" sequence end", "\x92"+fourCC, codec, Enhanced|EndOfSequence)
		f(fourCC+" channel layout", Audio, "\x94"+fourCC+"\x01\x02\x00\x00\x00\x03",
			Info{Codec: codec, Flags: Enhanced | Header, Slot: SlotMultichannel})
	}
	audio("enhanced FourCC cut", "\x91Opu", Unknown, Enhanced|Malformed)
	audio("channel layout without FourCC", "\x94\x01\x02", Unknown, Enhanced|Malformed)

	// ModEx prefixes, which may be chained and may lead to multitrack.
	video("ModEx then key", "\x97"+modEx(3, 0x01)+"av01x", AV1, Enhanced|KeyFrame)
	video("ModEx of an unknown kind then inter", "\xa7"+modEx(1, 0xf3)+"av01x", AV1, Enhanced)
	video("two ModEx then header", "\x97"+modEx(3, 0x07)+modEx(5, 0x00)+"hvc1x", H265, Enhanced|Header)
	video("ModEx of 255 bytes", "\x97"+modEx(255, 0x01)+"hvc1x", H265, Enhanced|KeyFrame)
	video("ModEx of 256 bytes", "\x97"+modEx(256, 0x01)+"hvc1x", H265, Enhanced|KeyFrame)
	video("ModEx of 1000 bytes", "\x97"+modEx(1000, 0x01)+"hvc1x", H265, Enhanced|KeyFrame)
	video("ModEx of 65536 bytes", "\x97"+modEx(65536, 0x01)+"hvc1x", H265, Enhanced|KeyFrame)
	video("ModEx then command", "\xd7"+modEx(3, 0x01)+"\x01", Unknown, Enhanced)
	f("command, ModEx, metadata", Video, "\xd7"+modEx(3, 0x04)+"hvc1x",
		Info{Codec: H265, Flags: Enhanced | Header, Slot: SlotMetadata})
	audio("ModEx then audio header", "\x97"+modEx(3, 0x00)+"Opusx", Opus, Enhanced|Header)
	for _, cut := range []string{"", "\x02", "\x02\x01\x01", "\x02\x01\x01\x01", "\xff", "\xff\x00", "\xff\xff\xff\x00"} {
		video("ModEx cut", "\x97"+cut, Unknown, Enhanced|Malformed)
		audio("ModEx cut", "\x97"+cut, Unknown, Enhanced|Malformed)
	}

	// Multitrack: type and packet type, FourCC, track number, size.
	multi := Enhanced | Multitrack
	f("one track, header", Video, "\x96\x00hvc1\x03x", Info{Codec: H265, Flags: multi | Header, Slot: 3})
	f("one track, key", Video, "\x96\x01hvc1\x02x", Info{Codec: H265, Flags: multi | KeyFrame, Slot: 2})
	f("one track, end", Video, "\x96\x02hvc1\xff", Info{Codec: H265, Flags: multi | EndOfSequence, Slot: 255})
	f("one track, metadata", Video, "\x96\x04hvc1\x02x", Info{Codec: H265, Flags: multi | Header, Slot: SlotMetadata | 2})
	f("many tracks, header", Video, "\x96\x10av01\x00\x00\x00\x01x\x01\x00\x00\x01x",
		Info{Codec: AV1, Flags: multi | Header, Slot: SlotManyTracks})
	f("many tracks, many codecs", Video, "\xa6\x21av01\x00\x00\x00\x01xhvc1\x01\x00\x00\x01x",
		Info{Codec: AV1, Flags: multi, Slot: SlotManyTracks})
	f("ModEx then multitrack", Video, "\x97"+modEx(3, 0x06)+"\x01avc1\x01x", Info{Codec: H264, Flags: multi | KeyFrame, Slot: 1})
	f("audio track, header", Audio, "\x95\x00mp4a\x01\x12\x10", Info{Codec: AAC, Flags: multi | Header, Slot: 1})
	f("audio track, frame", Audio, "\x95\x01Opus\x01x", Info{Codec: Opus, Flags: multi, Slot: 1})
	f("audio track, layout", Audio, "\x95\x04Opus\x01\x00\x02", Info{Codec: Opus, Flags: multi | Header, Slot: SlotMultichannel | 1})
	f("audio tracks, headers", Audio, "\x95\x10mp4a\x00\x00\x00\x01x\x01\x00\x00\x01x",
		Info{Codec: AAC, Flags: multi | Header, Slot: SlotManyTracks})
	for _, kind := range []Kind{Video, Audio} {
		first, nested := "\x96", "\x96\x06hvc1\x00\x00\x00\x00"
		if kind == Audio {
			first, nested = "\x95", "\x95\x05mp4a\x00\x00\x00\x00"
		}
		for _, cut := range []string{"", "\x01", "\x01hvc", "\x01hvc1", "\x11hvc1\x00\x00\x00"} {
			got := Sniff(kind, []byte(first+cut))
			if !got.Has(multi|Malformed) || got.Flags&(KeyFrame|Header|EndOfSequence) != 0 {
				t.Errorf("%v multitrack cut after %q: %+v", kind, cut, got)
			}
		}
		if got := Sniff(kind, []byte(nested)); !got.Has(Malformed) {
			t.Errorf("%v multitrack within multitrack: %+v", kind, got)
		}
	}

	// Data.
	f("onMetaData", Data, "\x02\x00\x0aonMetaData\x08\x00\x00\x00\x00", Info{Flags: Header})
	f("onMetaData alone", Data, "\x02\x00\x0aonMetaData", Info{Flags: Header})
	f("onMetaData cut", Data, "\x02\x00\x0aonMetaDat", Info{})
	f("a longer name", Data, "\x02\x00\x0bonMetaDataX", Info{})
	f("another event", Data, "\x02\x00\x0aonCuePoint\x05", Info{})
	f("AMF0 number", Data, "\x00\x00", Info{})
	f("empty data", Data, "", Info{Flags: Malformed})
	f("another kind", 15, "\x17\x00\x00\x00\x00", Info{})
}

func TestCodecNames(t *testing.T) {
	seen := map[string]bool{}
	for c := Unknown; c <= PCM; c++ {
		if c.String() == "" || seen[c.String()] {
			t.Errorf("codec %d has the name %q", c, c.String())
		}
		seen[c.String()] = true
	}
	if Codec(255).String() != "unknown" {
		t.Errorf("codec 255 is %q", Codec(255).String())
	}
}

func TestSniffDoesNotAllocate(t *testing.T) {
	body := []byte("\x97" + modEx(3, 0x06) + "\x01avc1\x01x")
	if n := testing.AllocsPerRun(100, func() { Sniff(Video, body) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzSniff(f *testing.F) {
	for _, body := range []string{
		"", "\x17\x00\x00\x00\x00x", "\x17\x01\x00\x00\x00", "\x90hvc1x", "\x96\x10av01\x00\x00\x00\x01x",
		"\x97" + modEx(3, 0x06) + "\x01avc1\x01x", "\x97" + modEx(256, 0x07) + modEx(1, 0), "\xaf\x00\x12\x10",
		"\x95\x04Opus\x01\x00\x02", "\x02\x00\x0aonMetaData",
	} {
		for _, kind := range []byte{8, 9, 18} {
			f.Add(kind, []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		i := Sniff(Kind(kind), body)
		if i.Kind != Kind(kind) {
			t.Fatalf("kind %v became %v", kind, i.Kind)
		}
		roles := 0
		for _, role := range []Flags{KeyFrame, Header, EndOfSequence, Malformed} {
			if i.Has(role) {
				roles++
			}
		}
		if roles > 1 {
			t.Fatalf("%+v is several things at once", i)
		}
		if i.IsKeyFrame() && i.Kind != Video {
			t.Fatalf("key frame of kind %v", i.Kind)
		}
		if i.Slot != 0 && !i.Has(Multitrack) && !i.IsHeader() {
			t.Fatalf("%+v has a slot without tracks", i)
		}
		if len(body) == 0 && (i.Kind == Audio || i.Kind == Video || i.Kind == Data) && !i.Has(Malformed) {
			t.Fatal("an empty body is fine")
		}
	})
}
