package hls

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/internal/media"
)

// ErrClosed is returned by a Segmenter that was closed.
var ErrClosed = errors.New("segmenter is closed")

// Times in milliseconds of the media clock, which is what FLV counts in.
const (
	// backwards is how far a track may step back before that is a new timeline.
	backwards = 500
	// skew is how far the tracks may be apart.
	skew = 10_000
	// holdTime and holdBytes bound the audio that waits for a key frame.
	holdTime  = 1_000
	holdBytes = 256 << 10
	// videoGone is when a video track that is announced but sends nothing that
	// can be decoded is no longer waited for.
	videoGone = 5_000
	// maxShift bounds the composition time.
	maxShift = 10_000
	// unsupportedFor is how long a stream without any track that fits in
	// MPEG-TS is given before waiting playlist requests are told so.
	unsupportedFor = 2_000
)

// Audio frames share a PES packet. Beside video they must not come later than
// their time on the program clock, which runs 100 ms behind; alone, fewer and
// larger packets save the program tables that the writer repeats.
const (
	bundleWithVideo = 60 * clockRate / 1000
	bundleAlone     = 280 * clockRate / 1000
	// bundleJitter is how far a frame's own time may be off the end of the frame
	// before it in the same PES packet, in which it has no time stamp.
	bundleJitter = 10 * clockRate / 1000
	bundleBytes  = 16 << 10
)

// Options are what a Segmenter is made of.
type Options struct {
	// Config must be valid.
	Config Config
	// Key is the stream's key, vhost/app/name, for the log.
	Key string
	// Name is the stream's name, the first part of the names of its segments.
	Name string
	// VHost is written into the query of segment URIs; empty for the default
	// vhost.
	VHost string
	// Epoch is the epoch of the stream's ownership, for the names of the segments.
	Epoch uint64
	// Now is the wall clock; nil means time.Now.
	Now func() time.Time
	// Log receives what a person should know about the stream; nil discards it.
	Log *slog.Logger
	// Metrics receives the counters weir_hls_*; nil means none are kept.
	Metrics *metrics.Set
}

// Segmenter turns the tags of one stream into the segments of its Store. It is
// used from one goroutine, a reader of the stream's log; the Store is for all.
//
// H.264, H.265, AAC, MP3 and Opus are carried, of tracks the first one. What
// MPEG-TS has no form for is left out, counted, and logged once for each codec.
// Hostile bodies cost their own frame: whatever is written, no call panics, and
// memory stays within Config.MaxBytes plus the present tag.
type Segmenter struct {
	// Fixed at construction.
	store   *Store
	config  Config
	now     func() time.Time
	log     *slog.Logger
	metrics *metrics.Set
	target  int64 // configured, milliseconds

	// Owned by the goroutine that calls Write.
	closed   bool
	declared int // target duration of the playlist in seconds; 0 before the first segment

	// Latest decoder configurations; the muxer adopts them with a new segment.
	video *videoConfig
	audio *audioConfig
	muxer *muxer // nil before the first segment

	// Media clock.
	started bool
	rawTime uint32 // of the last frame
	clock   int64  // rawTime without the wrap, milliseconds

	// Open segment.
	open          bool      // muxer is not nil then
	start         int64     // time of the frame that opened it
	latest        int64     // largest time in it
	interval      int64     // distance of the last two frames of the track that ends segments
	discontinuity bool      // the segment follows one that it does not continue
	independent   bool      // no video so far, or its first frame is a key frame
	hasVideo      bool      // it has a video frame
	anchorWall    time.Time // wall clock time at anchor
	anchor        int64

	// Per track, within the present timeline.
	videoLast, audioLast lastTime
	videoDTS, audioPTS   int64    // last written, ticks
	needKey              bool     // the next video frame must be a key frame
	videoSince           lastTime // when video was seen last, or could have been since it was announced
	keyAt                lastTime
	gops                 [8]int64 // latest key frame distances
	gopIndex             int

	held      []audioFrame // waits for a segment with its configuration
	heldBytes int
	bundle    bundle

	// For messages.
	unsupportedVideo, unsupportedAudio uint64 // bit sets of media.Codec
	unsupportedSince                   lastTime
	saidForced, saidNoKey              bool
}

// lastTime is a time that may not be known yet.
type lastTime struct {
	at    int64
	known bool
}

func (l *lastTime) set(at int64) { l.at, l.known = at, true }

// audioFrame is a frame that waits to be written.
type audioFrame struct {
	data     []byte
	at       int64 // milliseconds
	duration int64 // ticks
}

// bundle is the PES packet of audio that is being filled.
type bundle struct {
	frames [][]byte
	bytes  int
	pts    int64 // of the first frame, ticks
	next   int64 // where the frame after the last one should be
}

// NewSegmenter returns a Segmenter with an empty Store. Close it when the stream
// ends.
func NewSegmenter(o Options) *Segmenter {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Metrics == nil {
		o.Metrics = metrics.NewSet()
	}
	return &Segmenter{
		store:         newStore(o.Config, o.Name, o.VHost, o.Epoch, o.Now),
		config:        o.Config,
		now:           o.Now,
		log:           o.Log.With("stream", o.Key, "epoch", o.Epoch),
		metrics:       o.Metrics,
		target:        o.Config.TargetDuration.Milliseconds(),
		discontinuity: true, // another owner's segments may have come before
	}
}

// Store returns the store that the segmenter fills.
func (s *Segmenter) Store() *Store { return s.store }

// Write takes the next tag of the stream with what media.Sniff says about it:
// frames in the order of the log, and headers as they come up, those in force at
// the first frame before it. The tag is neither changed nor kept. The error is ErrClosed after
// Close and nil otherwise: what cannot be used is counted and passed over.
func (s *Segmenter) Write(tag media.Tag, info media.Info) error {
	if s.closed {
		return ErrClosed
	}
	if len(tag) < media.TagOverhead || info.Flags&media.Malformed != 0 || len(tag.Body()) == 0 {
		s.drop("malformed")
		return nil
	}
	var u unit
	var err error
	switch info.Kind {
	case media.Video:
		u, err = parseVideo(tag.Body(), info)
	case media.Audio:
		u, err = parseAudio(tag.Body(), info)
	default:
		return nil
	}
	switch {
	case err != nil:
		s.drop("malformed")
	case len(u.data) == 0: // end of sequence, colour information, another track, ...
	case u.header:
		s.header(info.Kind, u)
	case info.Kind == media.Video:
		s.videoFrame(u, info.IsKeyFrame(), s.unwrap(tag.Time()))
	default:
		s.audioFrame(u, s.unwrap(tag.Time()))
	}
	return nil
}

// Close publishes what the last segment has and ends the playlist. It may be
// called more than once.
func (s *Segmenter) Close() {
	if s.closed {
		return
	}
	s.closed = true
	if s.open {
		for _, f := range s.takeHeld() {
			s.writeHeld(f)
		}
		s.finish(s.end())
	}
	s.store.end()
}

// unwrap continues the media clock over the wrap of 32-bit times.
func (s *Segmenter) unwrap(raw uint32) int64 {
	if !s.started {
		s.started, s.clock = true, int64(raw)
	} else {
		s.clock += int64(int32(raw - s.rawTime))
	}
	s.rawTime = raw
	return s.clock
}

// header takes a decoder configuration. It comes into force with the next
// segment that can have it.
func (s *Segmenter) header(kind media.Kind, u unit) {
	switch {
	case kind == media.Video && (u.codec == media.H264 || u.codec == media.H265):
		if s.video != nil && s.video.codec == u.codec && bytes.Equal(s.video.raw, u.data) {
			return
		}
		c, err := parseVideoConfig(u.codec, u.data)
		if err != nil {
			s.refuse(err)
			return
		}
		s.video, s.videoSince = c, lastTime{}
	case kind == media.Audio && (u.codec == media.AAC || u.codec == media.Opus):
		if s.audio != nil && s.audio.codec == u.codec && bytes.Equal(s.audio.raw, u.data) {
			return
		}
		c, err := parseAudioConfig(u.codec, u.data)
		if err != nil {
			s.refuse(err)
			return
		}
		s.audio = c
	default:
		s.unsupported(kind, u.codec, s.clock)
	}
}

func (s *Segmenter) videoFrame(u unit, key bool, at int64) {
	switch {
	case u.codec != media.H264 && u.codec != media.H265:
		s.unsupported(media.Video, u.codec, at)
		return
	case s.video == nil || s.video.codec != u.codec:
		s.drop("no_header")
		return
	case !key && (s.needKey || s.muxer == nil || s.muxer.video != s.video):
		s.drop("no_key_frame")
		if s.muxer == nil && !s.saidNoKey {
			s.saidNoKey = true
			s.store.explain("the stream is live but has sent no key frame yet", false)
		}
		return
	}
	size := len(u.data)
	if key {
		size += s.video.size
	}
	if s.tooLarge(size) {
		s.drop("too_large")
		s.needKey = true
		return
	}
	s.flushBefore(at)
	s.place(frame{media.Video, at, key, size}, false)

	dts := at * 90
	if s.videoLast.known {
		dts = max(dts, s.videoDTS+1)
		if d := at - s.videoLast.at; d > 0 {
			s.interval = min(d, 1000)
		}
	}
	shift := u.shift
	if shift < 0 || shift > maxShift {
		shift = 0 // a picture cannot be shown before it is decoded
	}
	pts := max(dts, (at+int64(shift))*90)
	if err := s.muxer.writeVideo(u.data, key, pts, dts); err != nil {
		s.drop("malformed")
		s.needKey = s.needKey || key
		return
	}
	s.videoDTS = dts
	s.videoLast.set(at)
	s.latest = max(s.latest, at)
	s.videoSince.set(at)
	s.needKey = false
	if !s.hasVideo {
		s.hasVideo, s.independent = true, key
	}
	if key {
		if s.keyAt.known && at > s.keyAt.at {
			s.gops[s.gopIndex] = at - s.keyAt.at
			s.gopIndex = (s.gopIndex + 1) % len(s.gops)
		}
		s.keyAt.set(at)
	}
	for _, f := range s.takeHeld() {
		s.writeHeld(f)
	}
}

func (s *Segmenter) audioFrame(u unit, at int64) {
	switch u.codec {
	case media.MP3:
		if s.audio == nil || s.audio.codec != media.MP3 {
			c, err := parseAudioConfig(media.MP3, u.data)
			if err != nil {
				s.unsupported(media.Audio, u.codec, at)
				return
			}
			s.audio = c
		}
	case media.AAC, media.Opus:
		if s.audio == nil || s.audio.codec != u.codec {
			s.drop("no_header")
			return
		}
	default:
		s.unsupported(media.Audio, u.codec, at)
		return
	}
	duration, err := s.audio.frameDuration(u.data)
	if err != nil {
		s.drop("malformed")
		return
	}
	if s.tooLarge(len(u.data)) {
		s.drop("too_large")
		return
	}
	f := audioFrame{bytes.Clone(u.data), at, duration} // it waits

	// A segment of a stream with video opens with a key frame where it can:
	// audio that needs another segment than the open one waits for it.
	ready := s.open && s.muxer.audio == s.audio
	if !s.videoSince.known {
		s.videoSince.set(at)
	}
	wait := at - s.videoSince.at
	if !ready && s.video != nil && wait < videoGone && wait > -videoGone {
		s.hold(f)
		return
	}
	for _, h := range s.takeHeld() {
		s.placeAudio(h)
	}
	s.placeAudio(f)
}

// hold keeps a frame until a key frame opens its segment. When that takes too
// long the oldest go if there is no segment yet; else one is opened without a
// key frame.
func (s *Segmenter) hold(f audioFrame) {
	s.held = append(s.held, f)
	s.heldBytes += len(f.data)
	over := func() bool {
		return s.heldBytes > holdBytes || f.at-s.held[0].at > holdTime || f.at < s.held[0].at-backwards
	}
	if !over() {
		return
	}
	if s.open {
		for _, h := range s.takeHeld() {
			s.placeAudio(h)
		}
		return
	}
	for len(s.held) > 1 && over() {
		s.heldBytes -= len(s.held[0].data)
		s.held[0] = audioFrame{}
		s.held = s.held[1:]
		s.drop("no_key_frame")
	}
}

func (s *Segmenter) takeHeld() []audioFrame {
	held := s.held
	s.held, s.heldBytes = nil, 0
	return held
}

// placeAudio writes a frame, in a new segment where it needs one.
func (s *Segmenter) placeAudio(f audioFrame) {
	s.place(frame{media.Audio, f.at, false, len(f.data)}, s.muxer == nil || s.muxer.audio != s.audio)
	if s.audioLast.known && s.muxer.video == nil {
		if d := f.at - s.audioLast.at; d > 0 {
			s.interval = min(d, 1000)
		}
	}
	s.addAudio(f)
}

// writeHeld writes a frame that waited into the segment that is open now.
func (s *Segmenter) writeHeld(f audioFrame) {
	if s.muxer.audio != s.audio || f.at < s.start-videoGone || f.at > s.latest+skew ||
		s.muxer.size(len(f.data)) > int(s.config.MaxSegmentBytes) {
		s.drop("no_key_frame")
		return
	}
	s.addAudio(f)
}

// addAudio puts a frame into the bundle.
func (s *Segmenter) addAudio(f audioFrame) {
	pts := f.at * 90
	b := &s.bundle
	if off := pts - b.next; len(b.frames) > 0 && (off > bundleJitter || off < -bundleJitter) {
		s.flushAudio()
	}
	if len(b.frames) == 0 {
		if s.audioLast.known {
			pts = max(pts, s.audioPTS+1)
		}
		b.pts, b.next = pts, pts
	}
	b.frames = append(b.frames, f.data)
	b.bytes += len(f.data)
	b.next += f.duration
	s.audioPTS = b.next - f.duration
	s.audioLast.set(f.at)
	s.latest = max(s.latest, f.at)
	span := int64(bundleAlone)
	if s.muxer.video != nil {
		span = bundleWithVideo
	}
	if b.next-b.pts+f.duration > span || b.bytes > bundleBytes || s.audio.codec == media.Opus {
		s.flushAudio()
	}
}

// flushBefore ends the bundle if it would come too late after a video frame of
// that time.
func (s *Segmenter) flushBefore(at int64) {
	if len(s.bundle.frames) > 0 && at*90-s.bundle.pts > bundleWithVideo {
		s.flushAudio()
	}
}

func (s *Segmenter) flushAudio() {
	b := &s.bundle
	if len(b.frames) == 0 {
		return
	}
	if err := s.muxer.writeAudio(b.frames, b.pts); err != nil {
		for range b.frames {
			s.drop("malformed")
		}
	}
	clear(b.frames)
	*b = bundle{frames: b.frames[:0]}
}

func (s *Segmenter) drop(reason string) {
	s.count("weir_hls_dropped_tags_total", "reason", reason)
}

func (s *Segmenter) count(name, label, value string) {
	if label != "" {
		name += "{" + label + "=\"" + value + "\"}"
	}
	s.metrics.GetOrCreateCounter(name).Inc()
}

// refuse notes a decoder configuration that cannot be used.
func (s *Segmenter) refuse(err error) {
	s.drop("bad_header")
	s.log.Warn("hls: decoder configuration left out", "error", err)
	s.store.explain("the stream has no HLS form: "+err.Error(), false)
}

// unsupported notes a tag whose codec has no form in MPEG-TS.
func (s *Segmenter) unsupported(kind media.Kind, codec media.Codec, at int64) {
	s.drop("unsupported_codec")
	set := &s.unsupportedAudio
	can := "AAC, MP3 (from 32 kHz on) and Opus can"
	if kind == media.Video {
		set, can = &s.unsupportedVideo, "H.264 and H.265 can"
	}
	if bit := uint64(1) << (codec & 63); *set&bit == 0 {
		*set |= bit
		s.log.Warn("hls: track left out: its codec has no form in MPEG-TS; "+can, "kind", kind, "codec", codec)
		s.store.explain(s.whyNothing(), false)
	}
	if s.video != nil || s.audio != nil {
		return
	}
	if !s.unsupportedSince.known {
		s.unsupportedSince.set(at)
	}
	if at-s.unsupportedSince.at >= unsupportedFor {
		s.store.explain(s.whyNothing(), true)
	}
}

func (s *Segmenter) whyNothing() string {
	var parts []string
	for codec := range media.Codec(64) {
		if s.unsupportedVideo>>codec&1 != 0 {
			parts = append(parts, fmt.Sprintf("its video codec (%v) cannot be carried in MPEG-TS; H.264 and H.265 can", codec))
		}
		if s.unsupportedAudio>>codec&1 != 0 {
			parts = append(parts, fmt.Sprintf("its audio codec (%v) cannot be carried in MPEG-TS; AAC, MP3 (from 32 kHz on) and Opus can", codec))
		}
	}
	return "the stream has no HLS form: " + strings.Join(parts, "; ")
}
