package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"weir/internal/clip"
	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp/amf"
)

// Form is the shape of the streams that are published.
type Form struct {
	// BitRate is that of the FLV tags of a stream, audio and video, headers of
	// the tags included, in bits per second; 100 kbit/s to 100 Mbit/s.
	BitRate int64 `json:"bit_rate"`
	// FPS is the number of video frames per second; 1 to 120.
	FPS int `json:"fps"`
	// GOP is the time from one key frame to the next; 100 ms to 20 s.
	GOP time.Duration `json:"gop"`
}

// DefaultForm returns what the figures of docs/performance.md were measured with.
func DefaultForm() Form { return Form{BitRate: 1_080_000, FPS: 25, GOP: 2 * time.Second} }

// Validate returns all that is out of range.
func (f Form) Validate() error {
	var errs []error
	if f.BitRate < 100_000 || f.BitRate > 100_000_000 {
		errs = append(errs, fmt.Errorf("bit rate: %d bit/s is not between 100k and 100M", f.BitRate))
	}
	if f.FPS < 1 || f.FPS > 120 {
		errs = append(errs, fmt.Errorf("fps: %d is not between 1 and 120", f.FPS))
	}
	if f.GOP < 100*time.Millisecond || f.GOP > 20*time.Second {
		errs = append(errs, fmt.Errorf("gop: %v is not between 100ms and 20s", f.GOP))
	}
	if len(errs) == 0 && f.sizes().video < minVideoBody {
		errs = append(errs, fmt.Errorf("bit rate: %d bit/s is too little for %d frames per second", f.BitRate, f.FPS))
	}
	return errors.Join(errs...)
}

// The audio has frames of 1024 samples at 48 kHz.
const (
	audioSamples  = 1024
	audioRate     = 48000
	audioBitRate  = 96_000
	keyFrameRatio = 6 // key frames are this much larger than others
)

// audioTime returns when an audio frame is due.
func audioTime(seq uint32) time.Duration {
	return time.Duration(seq) * audioSamples * time.Second / audioRate
}

// videoTime returns when a video frame is due.
func (f Form) videoTime(seq uint32) time.Duration {
	return time.Duration(seq) * time.Second / time.Duration(f.FPS)
}

// gopFrames returns the number of video frames of a GOP, at least 1.
func (f Form) gopFrames() int { return max(1, int(f.GOP*time.Duration(f.FPS)/time.Second)) }

// sizes are the sizes of tag bodies in bytes.
type sizes struct{ audio, video, key int }

// In front of the picture's bytes, a video body has its FLV header (5 bytes),
// and the SEI unit with the mark: length, type, payload type, payload size,
// mark, stop bit.
const (
	videoHeader  = 5
	seiSize      = 3 + markSize + 1
	minVideoBody = videoHeader + 4 + seiSize + 4 + 16
	minAudioBody = 2 + markSize
)

func (f Form) sizes() sizes {
	rate := min(audioBitRate, f.BitRate/5)
	var s sizes
	s.audio = max(minAudioBody, int(rate*audioSamples/audioRate/8)-media.TagOverhead)
	n := f.gopFrames()
	gop := float64(n) / float64(f.FPS) // s
	whole := float64(f.BitRate) / 8 * gop
	whole -= gop * audioRate / audioSamples * float64(s.audio+media.TagOverhead)
	frame := whole / float64(n-1+keyFrameRatio)
	s.video = int(frame) - media.TagOverhead
	s.key = int(whole-frame*float64(n-1)) - media.TagOverhead
	return s
}

// filler is bytes that are no start code and do not repeat soon.
type filler []byte

func newFiller() filler {
	f := make(filler, 256<<10)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range f {
		f[i] = byte(1 + r.IntN(255))
	}
	return f
}

func (f filler) fill(b []byte, seq uint32) {
	at := int(seq) * 977 % len(f)
	for len(b) > 0 {
		n := copy(b, f[at:])
		b, at = b[n:], 0
	}
}

// videoTag returns a video frame whose body has a size.
func (f filler) videoTag(m mark, at time.Duration, key bool, size int) media.Tag {
	t := make(media.Tag, media.TagOverhead+size)
	f.fillVideo(t, m, at, key)
	return t
}

// audioTag returns an audio frame whose body has a size.
func (f filler) audioTag(m mark, at time.Duration, size int) media.Tag {
	t := make(media.Tag, media.TagOverhead+size)
	f.fillAudio(t, m, at)
	return t
}

// fillVideo makes a video frame of all of t, whatever was there.
func (f filler) fillVideo(t media.Tag, m mark, at time.Duration, key bool) {
	t.Init(media.Video, uint32(at.Milliseconds()))
	b := t.Body()
	head, unit := byte(0x27), byte(0x41) // coded slice, not of an IDR picture
	if key {
		head, unit = 0x17, 0x65
	}
	p := append(b[:0], head, 1, 0, 0, 0)
	p = binary.BigEndian.AppendUint32(p, uint32(seiSize))
	p = append(p, 0x06, 5, byte(markSize)) // SEI, user data unregistered
	p = appendMark(p, m)
	p = append(p, 0x80)
	rest := len(b) - len(p) - 4
	p = binary.BigEndian.AppendUint32(p, uint32(rest))
	p = append(p, unit)
	f.fill(b[len(p):], m.Seq)
}

// fillAudio makes an audio frame of all of t.
func (f filler) fillAudio(t media.Tag, m mark, at time.Duration) {
	t.Init(media.Audio, uint32(at.Milliseconds()))
	b := t.Body()
	p := append(b[:0], 0xaf, 1) // AAC, raw
	p = appendMark(p, m)
	f.fill(b[len(p):], m.Seq)
}

// headerTags returns the metadata and the sequence headers that every stream
// begins with. The latter are those of the test clip, and so are true H.264 and
// AAC, though no frame that follows can be decoded.
func headerTags(f Form) ([]media.Tag, error) {
	meta := amf.Append(nil, amf.Str("onMetaData"), amf.Obj(
		amf.P("width", amf.Num(640)), amf.P("height", amf.Num(360)), amf.P("framerate", amf.Num(float64(f.FPS))),
		amf.P("videocodecid", amf.Num(7)), amf.P("audiocodecid", amf.Num(10)),
		amf.P("encoder", amf.Str("weir bench")),
	))
	t := media.NewTag(media.Data, 0, len(meta))
	copy(t.Body(), meta)
	tags := []media.Tag{t}
	r := flv.NewReader(clip.Reader(), 0)
	for len(tags) < 3 {
		t, err := r.ReadTag()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read headers of the test clip: %w", err)
		}
		if t.Kind() != media.Data && media.Sniff(t.Kind(), t.Body()).IsHeader() {
			tags = append(tags, t)
		}
	}
	if len(tags) < 3 {
		return nil, errors.New("read headers of the test clip: it has no two of them")
	}
	return tags, nil
}

// timeline is what was published of one stream. Safe for concurrent use.
type timeline struct {
	every int // video frames of a GOP

	mu sync.Mutex
	// Guarded by mu.
	bytes  position   // of all frames so far
	keys   []position // behind each key frame
	frames [2]uint32  // audio, video
	late   time.Duration
}

// position is a place in a stream, in bytes from its first frame on.
type position struct {
	flv  uint64 // tags with header and trailer
	rtmp uint64 // bodies with a full chunk header each
}

// rtmpHeader is the size of a full chunk header in bytes (RTMP 1.0, section
// 5.3.1.2.1, with a basic header of one byte).
const rtmpHeader = 12

func (l *timeline) add(t media.Tag, key bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes.flv += uint64(len(t))
	l.bytes.rtmp += uint64(len(t.Body()) + rtmpHeader)
	k := 0
	if t.Kind() == media.Video {
		k = 1
	}
	l.frames[k]++
	if key {
		l.keys = append(l.keys, l.bytes)
	}
}

// end returns the place behind the last frame.
func (l *timeline) end() position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// behindKey returns the place behind the key frame with a number among the
// video frames.
func (l *timeline) behindKey(seq uint32) (position, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := int(seq) / l.every
	if int(seq)%l.every != 0 || i >= len(l.keys) {
		return position{}, false
	}
	return l.keys[i], true
}

// sentLate notes how much later than it was due a frame was sent.
func (l *timeline) sentLate(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late = max(l.late, d)
}

// latest returns the greatest lateness of a frame.
func (l *timeline) latest() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.late
}
