package hls

import (
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h265"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mpegts"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mpegts/codecs"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mpegts/substructs"

	"weir/internal/media"
)

// clockRate is the rate of MPEG-TS time stamps in Hz.
const clockRate = 90000

// clockOffset is added to all time stamps: the program clock reference, which
// runs 100 ms behind, is then not negative at the start of a stream.
const clockOffset = clockRate

// timestamp turns 90 kHz ticks into a time stamp of 33 bits (ISO/IEC 13818-1
// section 2.4.3.7).
func timestamp(ticks int64) int64 { return (ticks + clockOffset) & (1<<33 - 1) }

// muxer writes MPEG-TS into a growing slice that the segmenter takes at the end
// of each segment. One muxer lives across segments, so that the continuity
// counters go on. It is owned by its segmenter.
type muxer struct {
	writer mpegts.Writer
	out    []byte

	video      *videoConfig // nil: no video track
	audio      *audioConfig // nil: no audio track
	videoTrack *mpegts.Track
	audioTrack *mpegts.Track

	leading media.Kind // track of the clock reference; 0 before the first frame
	atStart bool       // nothing was written to this segment
	units   [][]byte   // scratch
}

func newMuxer(video *videoConfig, audio *audioConfig) *muxer {
	m := &muxer{video: video, audio: audio, atStart: true}
	if video != nil {
		m.videoTrack = &mpegts.Track{Codec: &codecs.H264{}}
		if video.codec == media.H265 {
			m.videoTrack.Codec = &codecs.H265{}
		}
		m.writer.Tracks = append(m.writer.Tracks, m.videoTrack)
	}
	if audio != nil {
		m.audioTrack = &mpegts.Track{Codec: audioCodec(audio)}
		m.writer.Tracks = append(m.writer.Tracks, m.audioTrack)
	}
	m.writer.W = m
	if err := m.writer.Initialize(); err != nil {
		panic(err) // only for two tracks of one PID, and it chooses the PIDs
	}
	return m
}

func audioCodec(c *audioConfig) codecs.Codec {
	switch c.codec {
	case media.MP3:
		return &codecs.MPEG1Audio{}
	case media.Opus:
		return &codecs.Opus{
			// Channel configurations 1 to 8 are that many channels in the order
			// of Vorbis (ETSI TS Opus 0.1.3 draft, table 4-3).
			Desc: &substructs.OpusAudioDescriptor{ChannelConfigCode: uint8(c.channels)},
		}
	}
	return &codecs.MPEG4Audio{Config: c.aac}
}

// adopt takes other decoder configurations and reports whether it could: those
// that leave the program map as it is.
func (m *muxer) adopt(video *videoConfig, audio *audioConfig) bool {
	if (video == nil) != (m.video == nil) || (audio == nil) != (m.audio == nil) {
		return false
	}
	if video != nil && video.codec != m.video.codec {
		return false
	}
	if audio != nil && audio != m.audio {
		if audio.codec != m.audio.codec || audio.codec == media.Opus {
			return false
		}
		m.audioTrack.Codec = audioCodec(audio)
	}
	m.video, m.audio = video, audio
	return true
}

// Write implements io.Writer for the MPEG-TS writer.
func (m *muxer) Write(p []byte) (int, error) {
	m.out = append(m.out, p...)
	return len(p), nil
}

// take returns the segment that was written and starts the next one. A slice
// that grew far beyond its content is copied, so that a kept segment costs
// little more than its bytes.
func (m *muxer) take() []byte {
	out := m.out
	if spare := cap(out) - len(out); spare > len(out)/8 {
		out = append(make([]byte, 0, len(out)), out...)
	}
	m.out, m.atStart = make([]byte, 0, len(out)+len(out)/16), true
	return out
}

// discard throws away what was written since take.
func (m *muxer) discard() { m.out, m.atStart = m.out[:0], true }

// tables sees to it that a segment opens with PAT and PMT. The writer puts them
// in front of its first frame, and of every frame of random access on the track
// of the clock reference; elsewhere they are written here.
func (m *muxer) tables(kind media.Kind, randomAccess bool) error {
	if !m.atStart {
		return nil
	}
	m.atStart = false
	if m.leading == 0 {
		m.leading = kind
		return nil
	}
	if kind == m.leading && randomAccess {
		return nil
	}
	_, err := m.writer.WriteTables()
	return err
}

// writeVideo writes a frame in the length-prefixed form of FLV; times are in
// ticks of 90 kHz.
func (m *muxer) writeVideo(data []byte, key bool, pts, dts int64) error {
	units, err := m.video.accessUnit(m.units[:0], data, key)
	defer func() { clear(units[:cap(units)]); m.units = units[:0] }() // do not keep the frame alive
	if err != nil {
		return err
	}
	if m.video.codec == media.H265 {
		if err := m.tables(media.Video, h265.IsRandomAccess(units)); err != nil {
			return err
		}
		return m.writer.WriteH265(m.videoTrack, timestamp(pts), timestamp(dts), units)
	}
	if err := m.tables(media.Video, h264.IsRandomAccess(units)); err != nil {
		return err
	}
	return m.writer.WriteH264(m.videoTrack, timestamp(pts), timestamp(dts), units)
}

// writeAudio writes frames that follow each other without a gap as one PES
// packet.
func (m *muxer) writeAudio(frames [][]byte, pts int64) error {
	if err := m.tables(media.Audio, true); err != nil {
		return err
	}
	switch m.audio.codec {
	case media.MP3:
		return m.writer.WriteMPEG1Audio(m.audioTrack, timestamp(pts), frames)
	case media.Opus:
		return m.writer.WriteOpus(m.audioTrack, timestamp(pts), frames)
	}
	return m.writer.WriteMPEG4Audio(m.audioTrack, timestamp(pts), frames)
}
