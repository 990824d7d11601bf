package hls

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"weir/internal/media"
)

func TestParseBodies(t *testing.T) {
	for _, test := range []struct {
		name string
		kind media.Kind
		body string
		want unit
		err  error
	}{
		{"AVC frame", media.Video, "\x17\x01\x00\x00\x50abc", unit{codec: media.H264, shift: 80, data: []byte("abc")}, nil},
		{"AVC frame, shown before it is decoded", media.Video, "\x27\x01\xff\xff\xd8abc", unit{codec: media.H264, shift: -40, data: []byte("abc")}, nil},
		{"AVC header", media.Video, "\x17\x00\x00\x00\x00abc", unit{codec: media.H264, header: true, data: []byte("abc")}, nil},
		{"AVC end of sequence", media.Video, "\x17\x02\x00\x00\x00", unit{codec: media.H264}, nil},
		{"HEVC as several vendors send it", media.Video, "\x1c\x01\x00\x00\x00abc", unit{codec: media.H265, data: []byte("abc")}, nil},
		{"Enhanced header", media.Video, "\x90hvc1abc", unit{codec: media.H265, header: true, data: []byte("abc")}, nil},
		{"Enhanced frame", media.Video, "\x91avc1\x00\x00\x28abc", unit{codec: media.H264, shift: 40, data: []byte("abc")}, nil},
		{"Enhanced frame without a time", media.Video, "\x93hvc1abc", unit{codec: media.H265, data: []byte("abc")}, nil},
		{"Enhanced frame of another codec", media.Video, "\x91av01abc", unit{codec: media.AV1, data: []byte("abc")}, nil},
		{"Enhanced frame cut short", media.Video, "\x91hvc1\x00\x00", unit{codec: media.H265}, errTruncated},
		{"Enhanced colour information", media.Video, "\x94hvc1abc", unit{codec: media.H265}, nil},
		{"ModEx", media.Video, "\x97\x02xyz\x03hvc1abc", unit{codec: media.H265, data: []byte("abc")}, nil},
		{"long ModEx", media.Video, "\x97\xff\x00\x01xy\x03hvc1abc", unit{codec: media.H265, data: []byte("abc")}, nil},
		{"ModEx cut short", media.Video, "\x97\x09xyz", unit{}, errTruncated},
		{"multitrack, track 0", media.Video, "\x96\x03hvc1\x00abc", unit{codec: media.H265, data: []byte("abc")}, nil},
		{"multitrack, track 1", media.Video, "\x96\x03hvc1\x01abc", unit{codec: media.H265}, nil},
		{"many tracks", media.Video, "\x96\x13hvc1\x01\x00\x00\x02xy\x00\x00\x00\x03abc", unit{codec: media.H265, data: []byte("abc")}, nil},
		{"many tracks cut short", media.Video, "\x96\x13hvc1\x01\x00\x00\x09xy", unit{}, errTruncated},
		{"many codecs", media.Video, "\x96\x23av01\x01\x00\x00\x02xyavc1\x00\x00\x00\x03abc", unit{codec: media.H264, data: []byte("abc")}, nil},
		{"AAC header", media.Audio, "\xaf\x00\x12\x10", unit{codec: media.AAC, header: true, data: []byte("\x12\x10")}, nil},
		{"AAC frame", media.Audio, "\xaf\x01abc", unit{codec: media.AAC, data: []byte("abc")}, nil},
		{"MP3 frame", media.Audio, "\x2fabc", unit{codec: media.MP3, data: []byte("abc")}, nil},
		{"Enhanced Opus header", media.Audio, "\x90Opusabc", unit{codec: media.Opus, header: true, data: []byte("abc")}, nil},
		{"Enhanced AAC frame", media.Audio, "\x91mp4aabc", unit{codec: media.AAC, data: []byte("abc")}, nil},
		{"Enhanced audio, track 0", media.Audio, "\x95\x01mp4a\x00abc", unit{codec: media.AAC, data: []byte("abc")}, nil},
		{"Enhanced channel layout", media.Audio, "\x94mp4aabc", unit{codec: media.AAC}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			parse := parseVideo
			if test.kind == media.Audio {
				parse = parseAudio
			}
			body := []byte(test.body)
			got, err := parse(body, media.Sniff(test.kind, body))
			if !errors.Is(err, test.err) {
				t.Fatalf("error is %v, want %v", err, test.err)
			}
			if err == nil && (got.codec != test.want.codec || got.header != test.want.header || got.shift != test.want.shift || !bytes.Equal(got.data, test.want.data)) {
				t.Errorf("%+v, want %+v", got, test.want)
			}
		})
	}
}

// A frame in the form of FLV becomes one in the form of MPEG-TS.
func TestAccessUnit(t *testing.T) {
	const header = "\x01\x64\x00\x1e\xff\xe1\x00\x02\x67S\x01\x00\x02\x68P"
	c, err := parseVideoConfig(media.H264, []byte(header))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		data string
		key  bool
		want []string // nil: an error
	}{
		{"key frame", "\x00\x00\x00\x02\x65I", true, []string{"\x67S", "\x68P", "\x65I"}},
		{"key frame with sets of its own", "\x00\x00\x00\x02\x67s\x00\x00\x00\x02\x68p\x00\x00\x00\x02\x65I", true, []string{"\x67s", "\x68p", "\x65I"}},
		{"other frame", "\x00\x00\x00\x02\x41i", false, []string{"\x41i"}},
		{"delimiter and empty units", "\x00\x00\x00\x02\x09\xf0\x00\x00\x00\x00\x00\x00\x00\x02\x41i", false, []string{"\x41i"}},
		{"only a delimiter", "\x00\x00\x00\x02\x09\xf0", true, nil},
		{"unit longer than the frame", "\x00\x00\x00\x03\x41i", false, nil},
		{"length cut short", "\x00\x00\x00\x02\x41i\x00", false, nil},
		{"largest length", "\xff\xff\xff\xff\x41i", false, nil},
		{"too many units", string(bytes.Repeat([]byte("\x00\x00\x00\x01\x41"), maxNALUs+1)), false, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			units, err := c.accessUnit(nil, []byte(test.data), test.key)
			if (err != nil) != (test.want == nil) {
				t.Fatalf("error is %v", err)
			}
			var got []string
			for _, u := range units {
				got = append(got, string(u))
			}
			if err == nil && !slices.Equal(got, test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
	for n := range len(header) {
		if _, err := parseVideoConfig(media.H264, []byte(header[:n])); err == nil {
			t.Errorf("a header cut to %d bytes is accepted", n)
		}
	}
}
