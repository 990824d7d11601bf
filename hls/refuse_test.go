package hls_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/hls"
	"weir/internal/media"
	"weir/internal/units"
)

// What MPEG-TS cannot carry is left out with a word, and a stream of nothing
// else is answered with the reason.
func TestCodecsWithoutAForm(t *testing.T) {
	av1 := func(at uint32) media.Tag { return newTag(media.Video, at, []byte{0x91, 'a', 'v', '0', '1', 1, 2, 3}) }
	g711 := func(at uint32) media.Tag { return newTag(media.Audio, at, []byte{0x72, 1, 2, 3}) }
	stream := func(makers ...func(at uint32) media.Tag) []media.Tag {
		var tags []media.Tag
		for at := uint32(0); at < 6000; at += 20 {
			for _, m := range makers {
				tags = append(tags, m(at))
			}
		}
		return tags
	}
	for _, test := range []struct {
		name    string
		tags    []media.Tag
		status  int
		text    string // in the answer or in the log
		dropped uint64
	}{
		{"nothing fits", stream(av1, g711), 404, "its video codec (AV1) cannot be carried in MPEG-TS; H.264 and H.265 can; its audio codec (G.711 A-law) cannot", 600},
		{"the sound fits", append([]media.Tag{aacHeader(2)}, stream(av1, aacFrame)...), 200, "codec=AV1", 300},
		{"the picture fits", append([]media.Tag{avcHeader(1)}, stream(func(at uint32) media.Tag { return avcFrame(at, at%1000 == 0, 9) }, g711)...), 200, "A-law", 300},
		{"MP3 of 22 kHz", stream(func(at uint32) media.Tag { return newTag(media.Audio, at, []byte{0x2a, 0xff, 0xf3, 0x40, 0xc0, 0, 0}) }), 404, "MP3", 300},
	} {
		t.Run(test.name, func(t *testing.T) {
			var log bytes.Buffer
			set := metrics.NewSet()
			s := hls.NewSegmenter(hls.Options{
				Config: hls.DefaultConfig(), Name: "a", Metrics: set,
				Log: slog.New(slog.NewTextHandler(&log, nil)),
			})
			for _, tag := range test.tags {
				if err := s.Write(tag, media.Sniff(tag.Kind(), tag.Body())); err != nil {
					t.Fatal(err)
				}
			}
			// No waiting: a test without a deadline would hang here.
			o := s.Store().Playlist(context.Background())
			if o.Status != test.status || !strings.Contains(string(o.Body)+log.String(), test.text) {
				t.Errorf("%d %s%s", o.Status, o.Body, log.String())
			}
			if n := strings.Count(log.String(), "level=WARN"); n > 2 {
				t.Errorf("%d warnings:\n%s", n, log.String())
			}
			if n := set.GetOrCreateCounter(`weir_hls_dropped_tags_total{reason="unsupported_codec"}`).Get(); n != test.dropped {
				t.Errorf("%d tags were counted", n)
			}
		})
	}
}

func TestStreamWithoutAKeyFrame(t *testing.T) {
	s := hls.NewSegmenter(hls.Options{Config: hls.DefaultConfig(), Name: "a"})
	tags := []media.Tag{avcHeader(1)}
	for at := uint32(0); at < 4000; at += 40 {
		tags = append(tags, avcFrame(at, false, 50))
	}
	for _, tag := range tags {
		_ = s.Write(tag, media.Sniff(tag.Kind(), tag.Body()))
	}
	if o := playlistNow(s.Store()); o.Status != 404 || !strings.Contains(string(o.Body), "no key frame yet") {
		t.Errorf("%d %s", o.Status, o.Body)
	}
	s.Close()
	s.Close()
	if err := s.Write(tags[1], media.Info{}); err != hls.ErrClosed {
		t.Errorf("error after Close is %v", err)
	}
}

// A video header that no video follows does not keep the sound from its players.
func TestAnnouncedVideoNeverComes(t *testing.T) {
	tags := []media.Tag{avcHeader(1), aacHeader(2)}
	for at := uint32(1 << 30); at < 1<<30+20_000; at += 23 {
		tags = append(tags, aacFrame(at))
	}
	v := cutAll(t, hls.DefaultConfig(), tags)
	if n := len(v.segments); n < 6 {
		t.Errorf("%d segments: %s", n, v.durations())
	}
}

// A publisher that changes timeline or codec with every tag gets no segments for
// it, so that numbers stay behind the clock and playlists short.
func TestFlappingPublisher(t *testing.T) {
	var tags []media.Tag
	tags = append(tags, aacHeader(2))
	for i := range uint32(3000) {
		tags = append(tags, avcHeader(byte(i)), avcFrame(i*40, true, 10), aacFrame(i*40+i%2*1_000_000))
	}
	v := cutAll(t, hls.DefaultConfig(), tags)
	if n := len(v.segments); n > 240 {
		t.Errorf("%d segments in two minutes", n)
	}
	if n := v.counter("weir_hls_discarded_segments_total"); n < 1000 {
		t.Errorf("%d segments were discarded", n)
	}
}

// hostile plays bytes as a sequence of tags: of each, a kind, a time step and a
// length come first.
func hostile(data []byte) []media.Tag {
	var tags []media.Tag
	at := uint32(0)
	for len(data) >= 5 {
		kind := []media.Kind{media.Audio, media.Video, media.Video, media.Data}[data[0]&3]
		step := int32(int16(binary.BigEndian.Uint16(data[1:])))
		if data[0]&4 != 0 {
			step *= 1 << 16
		}
		at += uint32(step)
		size := min(int(binary.BigEndian.Uint16(data[3:]))&0x3ff, len(data)-5)
		tags = append(tags, newTag(kind, at, data[5:5+size]))
		data = data[5+size:]
	}
	return tags
}

// encode is the inverse of hostile for well-behaved tags, to seed the fuzzer.
func encode(tags []media.Tag) []byte {
	var out []byte
	at := uint32(0)
	for _, tag := range tags {
		kind := map[media.Kind]byte{media.Audio: 0, media.Video: 1, media.Data: 3}[tag.Kind()]
		body := tag.Body()[:min(len(tag.Body()), 0x3ff)]
		out = append(out, kind)
		out = binary.BigEndian.AppendUint16(out, uint16(tag.Time()-at))
		out = binary.BigEndian.AppendUint16(out, uint16(len(body)))
		out = append(out, body...)
		at = tag.Time()
	}
	return out
}

// withstand writes hostile tags and checks what must hold whatever they are.
func withstand(t *testing.T, tags []media.Tag) {
	config := hls.DefaultConfig()
	config.MaxSegmentBytes, config.MaxBytes = 256*units.KiB, units.MiB
	now := epochStart
	s := hls.NewSegmenter(hls.Options{Config: config, Name: "a", Now: func() time.Time { return now }})
	target := 0
	for _, tag := range tags {
		now = now.Add(10 * time.Millisecond)
		if err := s.Write(tag, media.Sniff(tag.Kind(), tag.Body())); err != nil {
			t.Fatal(err)
		}
		st := s.Store().Stats()
		if st.Bytes > int64(config.MaxBytes) {
			t.Fatalf("%d bytes are kept", st.Bytes)
		}
		if target != 0 && st.Target != target {
			t.Fatalf("the target duration changes from %d to %d", target, st.Target)
		}
		target = st.Target
	}
	s.Close()
	o := playlistNow(s.Store())
	if o.Status == 200 {
		checkPlaylist(t, s.Store(), o)
	} else if len(o.Body) == 0 {
		t.Fatal("an empty answer")
	}
}

func FuzzSegmenter(f *testing.F) {
	short := func(tags []media.Tag) []byte { // a tag in five, so that mutations are quick
		var some []media.Tag
		for i, tag := range tags {
			if i < 2 || i%5 == 2 {
				some = append(some, tag)
			}
		}
		return encode(some)
	}
	f.Add(short(synthetic(3000, 5, 0, 2000)))
	f.Add(short(synthetic(600, 20, every(40, 600)...)))
	f.Add(short(append(synthetic(400, 5, 0), synthetic(400, 5, 0)...)))
	hvc := append([]byte{0x90, 'h', 'v', 'c', '1'}, make([]byte, 22)...)
	hvc = append(hvc, 1, 33, 0, 1, 0, 2, 0x42, 1)
	f.Add(encode([]media.Tag{newTag(media.Video, 0, hvc), newTag(media.Video, 40, []byte{0x91, 'h', 'v', 'c', '1', 0, 0, 0, 2, 0x26, 1})}))
	f.Add(encode([]media.Tag{
		newTag(media.Audio, 0, append([]byte{0x90, 'O', 'p', 'u', 's'}, "OpusHead\x01\x02\x00\x00\x00\x00\xbb\x80\x00\x00\x00"...)),
		newTag(media.Audio, 0, []byte{0x91, 'O', 'p', 'u', 's', 1, 2, 3}),
	}))
	f.Fuzz(func(t *testing.T, data []byte) { withstand(t, hostile(data)) })
}

// Real streams with bytes changed at random.
func TestDamagedStreams(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 2))
		data := encode(synthetic(4000, 300, 0, 600, 1200, 2600))
		for range 1 + r.IntN(200) {
			data[r.IntN(len(data))] = byte(r.Uint32())
		}
		withstand(t, hostile(data))
	}
}
