package media

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func TestTagRoundTrip(t *testing.T) {
	f := func(kind Kind, ms uint32, size int) {
		t.Helper()
		tag := NewTag(kind, ms, size)
		if len(tag) != TagOverhead+size || len(tag.Body()) != size {
			t.Fatalf("%v of %d bytes: tag of %d with a body of %d", kind, size, len(tag), len(tag.Body()))
		}
		for i := range tag.Body() {
			tag.Body()[i] = byte(i)
		}
		if tag.Kind() != kind || tag.Time() != ms {
			t.Errorf("%v at %d: reads back as %v at %d", kind, ms, tag.Kind(), tag.Time())
		}
		if got := int(tag[1])<<16 | int(tag[2])<<8 | int(tag[3]); got != size {
			t.Errorf("size field %d, want %d", got, size)
		}
		if !bytes.Equal(tag[8:11], []byte{0, 0, 0}) {
			t.Errorf("stream id % x, want 0", tag[8:11])
		}
		if got := binary.BigEndian.Uint32(tag[len(tag)-4:]); got != uint32(size+TagHeaderSize) {
			t.Errorf("trailing size %d, want %d", got, size+TagHeaderSize)
		}
	}
	for _, kind := range []Kind{Audio, Video, Data} {
		for _, ms := range []uint32{0, 1, 0xffffff, 0x1000000, 0x7fffffff, 0xffffffff} {
			f(kind, ms, 0)
			f(kind, ms, 1)
			f(kind, ms, 300)
		}
	}
	f(Video, 0x12345678, MaxBodySize)
}

func TestTagHeaderOnTheWire(t *testing.T) {
	tag := NewTag(Video, 0x89abcdef, 2)
	copy(tag.Body(), "\x17\x02")
	// Annex E.4.1: the upper eight bits of the time come after the lower 24.
	want := []byte{9, 0, 0, 2, 0xab, 0xcd, 0xef, 0x89, 0, 0, 0, 0x17, 2, 0, 0, 0, 13}
	if !bytes.Equal(tag, want) {
		t.Errorf("got  % x\nwant % x", []byte(tag), want)
	}
}

func TestInitReplacesWhatWasThere(t *testing.T) {
	tag := Tag(bytes.Repeat([]byte{0xff}, TagOverhead+3))
	tag.Init(Data, 7)
	if tag.Kind() != Data || tag.Time() != 7 || !bytes.Equal(tag.Body(), []byte{0xff, 0xff, 0xff}) {
		t.Errorf("got % x", []byte(tag))
	}
}

func TestKindHidesTheFilterBits(t *testing.T) {
	tag := NewTag(Audio, 0, 0)
	tag[0] |= 0xe0
	if tag.Kind() != Audio {
		t.Errorf("kind %v, want audio", tag.Kind())
	}
}

func TestAtCopies(t *testing.T) {
	tag := NewTag(Audio, 5, 3)
	copy(tag.Body(), "abc")
	later := tag.At(0xfedcba98)
	if tag.Time() != 5 {
		t.Errorf("the original now has time %d", tag.Time())
	}
	if later.Time() != 0xfedcba98 || string(later.Body()) != "abc" {
		t.Errorf("copy has time %d and body %q", later.Time(), later.Body())
	}
	later.Body()[0] = 'X'
	if string(tag.Body()) != "abc" {
		t.Error("the copy shares its bytes with the original")
	}
}

func TestKindNames(t *testing.T) {
	for kind, want := range map[Kind]string{Audio: "audio", Video: "video", Data: "data", 0: "unknown", 15: "unknown"} {
		if kind.String() != want {
			t.Errorf("kind %d is %q, want %q", kind, kind.String(), want)
		}
	}
}
