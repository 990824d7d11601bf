package hls_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"weir/hls"
	"weir/internal/media"
	"weir/internal/units"
)

// What ffmpeg made goes in; what ffmpeg decodes of all segments together must be
// the same pictures and the same sound.
func TestSegmentsHaveEveryFrame(t *testing.T) {
	t.Parallel()
	join := func(parts ...[]string) []string { return slices.Concat(parts...) }
	for _, test := range []struct {
		name      string
		args      []string
		file      string
		tracks    string
		start     uint32 // time of the first tag
		seconds   float64
		durations string
	}{
		{"key frames each second", join(x264(25, 0), aac), "a.flv", "va", 0, 7, "|2s 2s 2s 1s"},
		{"B-frames", join(x264(50, 3), aac), "a.flv", "va", 0, 7, "|2s 2s 2s 1s"},
		{"key frames further apart than the target", join(x264(100, 2), aac), "a.flv", "va", 0, 9, "|4s 4s 1s"},
		{"1.5 s between key frames", join(x264(37, 0), aac), "a.flv", "va", 0, 6, "|1.48s 1.48s 1.48s 1.48s 80ms"},
		{"video only", join(x264(25, 2), []string{"-an"}), "a.flv", "v", 0, 5, "|2s 2s 1s"},
		{"audio only", join([]string{"-vn"}, aac), "a.flv", "a", 0, 5, ""},
		{"MP3", join(x264(25, 0), []string{"-c:a", "libmp3lame"}), "a.flv", "va", 0, 5, "|2s 2s 1s"},
		{"MP3 alone", []string{"-vn", "-c:a", "libmp3lame"}, "a.flv", "a", 0, 5, ""},
		{"32-bit RTMP time wraps", join(x264(25, 2), aac), "a.flv", "va", 1<<32 - 3100, 7, "|2s 2s 2s 1s"},
		// 2^33 ticks of 90 kHz are 95443717 ms, less the offset of one second.
		{"33-bit MPEG-TS time wraps", join(x264(25, 2), aac), "a.flv", "va", 95443717 - 1000 - 3100, 7, "|2s 2s 2s 1s"},
		{"H.265 by Enhanced RTMP", join([]string{
			"-c:v", "libx265", "-preset", "ultrafast", "-threads", "1",
			"-x265-params", "keyint=25:min-keyint=25:bframes=2:log-level=none:pools=1", "-an"}), "a.ts", "v", 0, 5, "|2s 2s 1s"},
		{"Opus by Enhanced RTMP", []string{"-vn", "-c:a", "libopus"}, "a.ts", "a", 0, 5, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			input := record(t, test.file, test.seconds, test.args...)
			var tags []media.Tag
			if strings.HasSuffix(test.file, ".ts") {
				tags = enhancedTags(t, input)
			} else {
				tags = readFLV(t, input)
			}
			v := cutAll(t, hls.DefaultConfig(), shift(tags, test.start))
			sameFrames(t, input, v, strings.Split(test.tracks, "")...)
			if got := v.durations(); test.durations != "" && got != test.durations {
				t.Errorf("segments last %s, want %s", got, test.durations)
			}
			for _, p := range v.playlists {
				if !p.Independent {
					t.Fatal("a playlist does not say that segments are independent")
				}
			}
			if last := v.playlists[len(v.playlists)-1]; !last.End {
				t.Error("the playlist of the ended stream has no end")
			}
		})
	}
}

// How long segments become, and where the decoding may begin.
func TestWhereSegmentsEnd(t *testing.T) {
	for _, test := range []struct {
		name string
		tags []media.Tag
		want string // | discontinuity in front, ! no key frame in front
		goal int    // declared target
	}{
		{"a scene cut between two key frames", synthetic(9000, 50, 0, 2000, 3320, 5320, 7320), "|2s 1.32s 2s 2s 1.68s", 2},
		{"a scene cut in the first segment", synthetic(6400, 50, 0, 1320, 3320, 5320), "|1.32s 2s 2s 1.08s", 2},
		{"a key frame too few", synthetic(8000, 50, 0, 2000, 6000), "|2s 2.48s 1.52s! 2s", 2},
		{"key frames all of a sudden far apart", synthetic(12000, 50, 0, 2000, 4000), "|2s 2s 2.48s 2.48s! 2.48s! 560ms!", 2},
		{"one key frame and then none", synthetic(21000, 50, 0), "|9.96s 10.48s! 560ms!", 10},
		{"jitter", jitter(synthetic(8000, 50, every(2000, 8000)...), 4, 15), "", 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := cutAll(t, hls.DefaultConfig(), test.tags)
			if got := v.durations(); test.want != "" && got != test.want {
				t.Errorf("segments last %s, want %s", got, test.want)
			}
			if got := v.playlists[0].Target; got != test.goal {
				t.Errorf("target duration is %d, want %d", got, test.goal)
			}
			frames := 0
			for _, s := range v.segments {
				frames += len(s.Content.Track(true).DTS)
			}
			want := 0
			for _, tag := range test.tags {
				if i := media.Sniff(tag.Kind(), tag.Body()); i.Kind == media.Video && !i.IsHeader() {
					want++
				}
			}
			if frames != want {
				t.Errorf("%d video frames in, %d out", want, frames)
			}
		})
	}
}

func TestSegmentsEndByBytes(t *testing.T) {
	config := hls.DefaultConfig()
	config.MaxSegmentBytes, config.MaxBytes = 256*units.KiB, 16*units.MiB
	v := cutAll(t, config, synthetic(20000, 20_000, every(2000, 20000)...))
	for _, s := range v.segments {
		if len(s.Body) > int(config.MaxSegmentBytes) {
			t.Errorf("segment of %d bytes", len(s.Body))
		}
	}
	if n := v.counter(`weir_hls_forced_cuts_total{reason="bytes"}`); n == 0 {
		t.Error("no forced cut was counted")
	}
	if n := len(v.segments); n < 40 {
		t.Errorf("only %d segments", n)
	}
}

// A frame that no segment can hold is left out, and what cannot be decoded
// without it.
func TestFrameOverTheSegmentLimit(t *testing.T) {
	config := hls.DefaultConfig()
	config.MaxSegmentBytes, config.MaxBytes = 256*units.KiB, units.MiB
	tags := synthetic(4000, 50, 0, 2000)
	for i, tag := range tags {
		if tag.Time() == 2000 && tag.Kind() == media.Video {
			tags[i] = avcFrame(2000, true, 300_000)
		}
	}
	v := cutAll(t, config, tags)
	if n := v.counter(`weir_hls_dropped_tags_total{reason="too_large"}`); n != 1 {
		t.Errorf("%d frames counted as too large", n)
	}
	if n := v.counter(`weir_hls_dropped_tags_total{reason="no_key_frame"}`); n != 49 {
		t.Errorf("%d frames counted as undecodable", n)
	}
}

// A stream whose pictures change size, whose sound changes, whose publisher
// comes back on another timeline, or pauses.
func TestDiscontinuities(t *testing.T) {
	first := synthetic(4000, 50, 0, 2000)
	renewed := func(variant, channels byte) []media.Tag {
		tags := slices.Clone(synthetic(4000, 50, 0, 2000))
		tags[0], tags[1] = avcHeader(variant), aacHeader(channels)
		return tags
	}
	for _, test := range []struct {
		name string
		tags []media.Tag
		want string
	}{
		{"nothing changes", append(first, shift(renewed(1, 2), 4000)...), "|2s 2s 2s 2s"},
		{"another picture", append(first, shift(renewed(2, 2), 4000)...), "|2s 2s |2s 2s"},
		{"another sound", append(first, shift(renewed(1, 1), 4000)...), "|2s 2s |2s 2s"},
		{"both", append(first, shift(renewed(2, 1), 4000)...), "|2s 2s |2s 2s"},
		{"time begins anew", append(first, first...), "|2s 2s |2s 2s"},
		{"a pause of a minute", append(first, shift(first, 64000)...), "|2s 2s |2s 2s"},
		{"a pause of one second", append(first, shift(first, 5000)...), "|2s 2.5s 2s 2s"},
		{"a sound later on", slices.Concat([]media.Tag{avcHeader(1)}, videoOf(first),
			[]media.Tag{aacHeader(2)}, shift(first[2:], 4000)), "|2s 2s |2s 2s"},
		{"a picture later on", slices.Concat([]media.Tag{aacHeader(2)}, audioOf(first),
			[]media.Tag{avcHeader(1)}, shift(first[2:], 4000)), "|2.02s 1.98s |2s 2s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := cutAll(t, hls.DefaultConfig(), test.tags)
			if got := v.durations(); got != test.want {
				t.Errorf("segments last %s, want %s", got, test.want)
			}
			// The list is longer than the window: the numbers must have stayed
			// right, which cutAll checks; and dates go with the times.
			for i, s := range v.segments {
				if s.Start.Before(epochStart.Add(-time.Second)) || s.Start.After(epochStart.Add(15*time.Second)) {
					t.Errorf("segment %d begins at %v", i, s.Start)
				}
			}
		})
	}
}

// Many discontinuities push each other out of the window.
func TestDiscontinuitySequenceGrows(t *testing.T) {
	config := hls.DefaultConfig()
	config.Window = 3
	var tags []media.Tag
	for i := range 12 {
		part := synthetic(2000, 50, 0)
		part[0] = avcHeader(byte(i + 1))
		tags = append(tags, shift(part, uint32(i)*2000)...)
	}
	v := cutAll(t, config, tags)
	first, last := v.playlists[0], v.playlists[len(v.playlists)-1]
	if grown := last.Discontinuity - first.Discontinuity; grown != 9 {
		t.Errorf("discontinuity sequence grew by %d, want 9", grown)
	}
	if len(last.Segments) != 3 {
		t.Errorf("%d segments are listed", len(last.Segments))
	}
}

func videoOf(tags []media.Tag) []media.Tag { return only(tags, media.Video) }
func audioOf(tags []media.Tag) []media.Tag { return only(tags, media.Audio) }

// only returns the frames of one kind.
func only(tags []media.Tag, kind media.Kind) []media.Tag {
	return slices.DeleteFunc(slices.Clone(tags), func(tag media.Tag) bool {
		return tag.Kind() != kind || media.Sniff(kind, tag.Body()).IsHeader()
	})
}

// Video that stops while the sound goes on, and comes back.
func TestVideoGoesAway(t *testing.T) {
	var tags []media.Tag
	for _, tag := range synthetic(20000, 50, every(2000, 20000)...) {
		if tag.Kind() == media.Video && tag.Time() >= 4000 && tag.Time() < 14000 {
			continue
		}
		tags = append(tags, tag)
	}
	v := cutAll(t, hls.DefaultConfig(), tags)
	var sum time.Duration
	for _, s := range v.segments {
		sum += s.Duration
	}
	if sum < 19900*time.Millisecond || sum > 20100*time.Millisecond {
		t.Errorf("%v are listed: %s", sum, v.durations())
	}
}
