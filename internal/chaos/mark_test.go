package chaos

import (
	"errors"
	"testing"

	"weir/internal/media"
)

func TestMarksAreReadBack(t *testing.T) {
	f := func(m mark, video, key bool) {
		t.Helper()
		tag := frame(m, video, key, 1234)
		if got, err := readMark(tag); got != m || err != nil {
			t.Errorf("the mark %+v became %+v, %v", m, got, err)
		}
		info := media.Sniff(tag.Kind(), tag.Body())
		if info.IsKeyFrame() != (video && key) || info.IsHeader() || tag.Time() != 1234 {
			t.Errorf("the frame of %+v is %+v", m, info)
		}
	}
	f(mark{Run: 1, Stream: 2, Inc: 3, Seq: 4}, true, true)
	f(mark{Run: 1<<32 - 1, Stream: 1<<32 - 1, Inc: 1<<32 - 1, Seq: 1<<32 - 1}, true, false)
	f(mark{}, false, false)
	f(mark{Seq: 127}, false, false)
	f(mark{Seq: 128}, true, false)
}

// Whatever bit of a frame is changed, it is seen.
func TestEachChangeOfAFrameIsSeen(t *testing.T) {
	for _, video := range []bool{false, true} {
		tag := frame(mark{Run: 1, Stream: 2, Inc: 3, Seq: 4}, video, false, 0)
		for i := range tag.Body() {
			for bit := range 8 {
				tag.Body()[i] ^= 1 << bit
				if m, err := readMark(tag); !errors.Is(err, errDamaged) {
					t.Fatalf("video %t: bit %d of byte %d was changed: %+v, %v", video, bit, i, m, err)
				}
				tag.Body()[i] ^= 1 << bit
			}
		}
	}
}

func FuzzReadMark(f *testing.F) {
	f.Add(true, []byte(frame(mark{Run: 1, Seq: 9}, true, true, 0).Body()))
	f.Add(false, []byte(frame(mark{Run: 1, Seq: 9}, false, false, 0).Body()))
	f.Add(false, []byte("\xaf\x01"+markID))
	f.Fuzz(func(t *testing.T, video bool, body []byte) {
		if len(body) > media.MaxBodySize {
			return
		}
		kind := media.Audio
		if video {
			kind = media.Video
		}
		tag := media.NewTag(kind, 0, len(body))
		copy(tag.Body(), body)
		_, _ = readMark(tag)
	})
}

func TestHeaders(t *testing.T) {
	tags, err := headerTags()
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[media.Kind]bool{}
	for _, tag := range tags {
		kinds[tag.Kind()] = media.Sniff(tag.Kind(), tag.Body()).IsHeader()
	}
	if !kinds[media.Audio] || !kinds[media.Video] || !kinds[media.Data] || len(tags) != 3 {
		t.Errorf("headers are of %v", kinds)
	}
}
