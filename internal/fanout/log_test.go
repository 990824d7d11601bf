package fanout

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weir/internal/media"
	"weir/internal/rtmp/chunk"
	"weir/internal/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits on real sockets; none is expected to use it.
const patience = 30 * time.Second

// source publishes numbered frames and keeps copies of what it published: the memory of
// what has left the log is used again.
type source struct {
	t       testing.TB
	s       *stream.Stream
	p       *stream.Publisher
	slab    media.Slab
	version byte        // of the video header in force
	frames  []media.Tag // as they lie in the log; their number is in the body
	all     []media.Tag // headers included
}

// shortLog is how much of a log is kept while nobody is behind.
const shortLog = 2 * time.Second

func newSource(t testing.TB) *source {
	t.Helper()
	return newSourceWith(t, stream.Limits{MaxBytes: 64 << 20, MaxTime: 8 * time.Second, MinTime: shortLog})
}

func newSourceWith(t testing.TB, limits stream.Limits) *source {
	t.Helper()
	s := stream.New(limits)
	p, err := s.Publish()
	if err != nil {
		t.Fatal(err)
	}
	source := &source{t: t, s: s, p: p}
	p.Recycle(source.slab.Gone)
	return source
}

func (s *source) append(kind media.Kind, ms int, body []byte) media.Tag {
	s.t.Helper()
	tag := media.Tag(s.slab.Make(media.TagOverhead + len(body)))
	tag.Init(kind, uint32(ms))
	copy(tag.Body(), body)
	if err := s.p.Append(tag); err != nil {
		s.t.Fatal(err)
	}
	tag = slices.Clone(tag) // it is not made again before the next one
	s.all = append(s.all, tag)
	return tag
}

// headers appends metadata and both decoder headers, of a new version.
func (s *source) headers(ms int) {
	s.t.Helper()
	s.version++
	s.append(media.Data, ms, append([]byte("\x02\x00\x0aonMetaData\x08\x00\x00\x00\x00\x00\x00\x09"), s.version))
	s.append(media.Video, ms, []byte{0x17, 0, 0, 0, 0, s.version})
	s.append(media.Audio, ms, []byte{0xaf, 0, s.version})
}

// frame appends a frame with its number, the version of its headers and size
// bytes: 'K' a key frame, 'P' another video frame, 'A' audio.
func (s *source) frame(what byte, ms, size int) {
	s.t.Helper()
	kind, body := media.Video, []byte{0x27, 1, 0, 0, 0}
	switch what {
	case 'K':
		body[0] = 0x17
	case 'A':
		kind, body = media.Audio, []byte{0xaf, 1, 0, 0, 0}
	}
	n := len(s.frames)
	body = binary.BigEndian.AppendUint32(append(body, s.version), uint32(n))
	for i := range size {
		body = append(body, byte(n+i))
	}
	s.frames = append(s.frames, s.append(kind, ms, body))
}

// group appends a group of pictures of one second: 25 video frames and 25 of audio.
func (s *source) group(ms, size int) {
	s.t.Helper()
	for i := range 25 {
		what := byte('P')
		if i == 0 {
			what = 'K'
		}
		s.frame(what, ms+40*i, size)
		s.frame('A', ms+40*i+20, 100)
	}
}

func isFrame(t media.Tag) bool { return t.Kind() != media.Data && t.Body()[1] == 1 }
func isKey(t media.Tag) bool {
	return t.Kind() == media.Video && t.Body()[0] == 0x17 && t.Body()[1] == 1
}
func number(t media.Tag) int { return int(binary.BigEndian.Uint32(t.Body()[6:])) }
func versionOf(t media.Tag) int { // of a header, or of the headers of a frame
	b := t.Body()
	if isFrame(t) {
		return int(b[5])
	}
	return int(b[len(b)-1])
}

// verify checks what a player got against the log: frames unchanged and in
// order, a beginning and every gap followed by a key frame, and in front of each
// frame the headers that it was made with. It returns the number of frames that
// are missing between the first and the last.
func (s *source) verify(got []media.Tag) (lost int, err error) {
	last, have := -1, map[media.Kind]int{}
	for i, t := range got {
		if !isFrame(t) {
			have[t.Kind()] = versionOf(t)
			continue
		}
		n := number(t)
		switch {
		case n >= len(s.frames) || !bytes.Equal(t, s.frames[n]):
			return 0, fmt.Errorf("tag %d: frame %d is not as it lies in the log", i, n)
		case n <= last:
			return 0, fmt.Errorf("tag %d: frame %d after frame %d", i, n, last)
		case n != last+1 && !isKey(t):
			return 0, fmt.Errorf("tag %d: frame %d after frame %d is no key frame", i, n, last)
		}
		for _, k := range []media.Kind{media.Data, media.Video, media.Audio} {
			if have[k] != versionOf(t) {
				return 0, fmt.Errorf("tag %d: frame %d needs %s header %d, the player has %d", i, n, k, versionOf(t), have[k])
			}
		}
		if last >= 0 {
			lost += n - last - 1
		}
		last = n
	}
	return lost, nil
}

// The parsers below share nothing with the code that they check.

// parseFLV reads an FLV file of whole tags (Adobe FLV 10.1, annex E).
func parseFLV(b []byte) (flags byte, tags []media.Tag, err error) {
	if len(b) < 13 || string(b[:4]) != "FLV\x01" || binary.BigEndian.Uint32(b[5:]) != 9 || binary.BigEndian.Uint32(b[9:]) != 0 {
		return 0, nil, fmt.Errorf("not an FLV header: %x", b[:min(len(b), 13)])
	}
	flags, b = b[4], b[13:]
	for len(b) > 0 {
		if len(b) < 11 {
			return flags, tags, io.ErrUnexpectedEOF
		}
		size := int(b[1])<<16 | int(b[2])<<8 | int(b[3])
		if len(b) < 11+size+4 {
			return flags, tags, io.ErrUnexpectedEOF
		}
		if back := binary.BigEndian.Uint32(b[11+size:]); int(back) != 11+size {
			return flags, tags, fmt.Errorf("tag %d: PreviousTagSize is %d, want %d", len(tags), back, 11+size)
		}
		tags = append(tags, media.Tag(b[:11+size+4]))
		b = b[11+size+4:]
	}
	return flags, tags, nil
}

// frameWS is a WebSocket frame.
type frameWS struct {
	opcode byte
	data   []byte
}

// parseWebSocket reads unmasked, unfragmented frames (RFC 6455, section 5.2).
func parseWebSocket(b []byte) (frames []frameWS, err error) {
	for len(b) > 0 {
		if len(b) < 2 {
			return frames, io.ErrUnexpectedEOF
		}
		if b[0]&0xf0 != 0x80 || b[1]&0x80 != 0 {
			return frames, fmt.Errorf("frame %d: begins with %x", len(frames), b[:2])
		}
		size, at := uint64(b[1]), 2
		switch {
		case size == 126 && len(b) >= 4:
			if size, at = uint64(binary.BigEndian.Uint16(b[2:])), 4; size < 126 {
				return frames, fmt.Errorf("frame %d: %d in two bytes", len(frames), size)
			}
		case size == 127 && len(b) >= 10:
			if size, at = binary.BigEndian.Uint64(b[2:]), 10; size < 1<<16 {
				return frames, fmt.Errorf("frame %d: %d in eight bytes", len(frames), size)
			}
		}
		if uint64(len(b)-at) < size {
			return frames, io.ErrUnexpectedEOF
		}
		frames = append(frames, frameWS{b[0] & 0x0f, b[at : at+int(size)]})
		b = b[at+int(size):]
	}
	return frames, nil
}

// parseRTMP reads chunks of a size; tags of other message streams are an error.
func parseRTMP(b []byte, streamID uint32, chunkSize int) (tags []media.Tag, commands []string, err error) {
	size := binary.BigEndian.AppendUint32(nil, uint32(chunkSize))
	first := chunk.AppendMessage(nil, chunk.StreamControl, chunk.TypeSetChunkSize, 0, 0, size, chunk.DefaultSize)
	r := chunk.NewReader(io.MultiReader(bytes.NewReader(first), bytes.NewReader(b)), chunk.Limits{
		MaxMessage: chunk.MaxSize, MaxCommand: 64 << 10, MaxPending: chunk.MaxSize, MaxChunkStreams: 8, Trusted: 1 << 20, Buffer: 16 << 10,
	})
	for {
		m, err := r.ReadMessage()
		if err == io.EOF {
			return tags, commands, nil
		}
		if err != nil {
			return tags, commands, err
		}
		switch {
		case m.Type == chunk.TypeCommand:
			commands = append(commands, string(m.Payload))
		case m.Tag == nil:
			return tags, commands, fmt.Errorf("message of type %d", m.Type)
		case m.StreamID != streamID:
			return tags, commands, fmt.Errorf("tag on message stream %d", m.StreamID)
		default:
			tags = append(tags, m.Tag)
		}
	}
}

// testEngine returns an engine with two shards that sends each frame at once.
func testEngine(t testing.TB) *Engine {
	e := New(Options{Shards: 2, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(e.Close)
	return e
}
