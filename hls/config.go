// Package hls cuts a stream of FLV tags into MPEG-TS segments in memory, lists
// them in a media playlist, serves both to players, and keeps copies of what
// another node serves. It knows tags, not roles: an origin feeds a Segmenter and
// answers from its Store; an edge answers from a Cache.
//
// Formats: RFC 8216 (HTTP Live Streaming), ISO/IEC 13818-1 (MPEG-TS).
//
// # How long segments are
//
// RFC 8216 section 4.3.3.1 wants one target duration for the whole life of a
// playlist and no segment that, rounded to whole seconds, is longer. The
// distance of key frames is the encoder's choice, so the target is declared
// when the first segment is complete: the configured target in whole seconds,
// or the length of that first segment where the encoder's key frames are
// further apart. From then on:
//
//   - a segment ends at the first key frame after the configured target, or at
//     an earlier one if, by the key frame distances seen of late, waiting for the
//     next would overrun the declared target;
//   - a group of pictures that overruns it all the same is cut between two
//     frames. No frame is lost, but the next segment does not open with a key
//     frame; so EXT-X-INDEPENDENT-SEGMENTS, true until then, is left out of the
//     playlist from then on. RFC 8216 section 6.2.1 does not provide for a tag
//     that disappears. A tag that says what is not so would be worse.
//
// # Numbers and names
//
// A segment is called NAME-EPOCH-SEQUENCE.ts. The epoch is the one of the
// stream's ownership and keeps the names of two owners apart. The sequence is
// the segment's media sequence number; the first one of a Segmenter is the
// number of half seconds since 2020-01-01 UTC at its start. Segments last half
// a second or more on the average, so numbers grow more slowly than that clock,
// and the playlist of the next owner goes on with larger ones, wherever it runs.
// The discontinuity sequence starts from the same clock, but wraps every nine
// hours: players keep tables that are as long as the number is large (hls.js 1.7.4
// stops the page for seconds at 435 million). After a takeover it is another number
// than before, which is what players need, and seldom a smaller one.
package hls

import (
	"errors"
	"fmt"
	"time"

	"weir/internal/units"
)

// Config is the HLS section of a vhost.
type Config struct {
	// Whether there is HLS: an origin cuts streams into segments as they come in, and .m3u8
	// requests are answered.
	Enabled bool `yaml:"enabled"`
	// TargetDuration is how long a segment should be, from 1s to 60s. It ends at
	// the first key frame after this time, so an encoder whose key frames are
	// further apart makes longer ones. Players start about three segments behind.
	TargetDuration time.Duration `yaml:"target_duration"`
	// MaxDuration is how long the first segment may be at most while the distance
	// of the encoder's key frames is not yet known; at least target_duration and
	// at most 60s. A first group of pictures that is longer is cut without a key
	// frame.
	MaxDuration time.Duration `yaml:"max_duration"`
	// Window is the number of segments in the playlist, from 3 to 1000. There are
	// more where the playlist would otherwise be shorter than three target
	// durations.
	Window int `yaml:"window"`
	// The size at which a segment ends whatever its length, from 256KiB to 1GiB. A single frame
	// that is larger than this is left out.
	MaxSegmentBytes units.Bytes `yaml:"max_segment_bytes"`
	// The memory of one stream's segments: those of the playlist, the removed ones that slow
	// players may still ask for, and the one being written. At least four times
	// max_segment_bytes.
	MaxBytes units.Bytes `yaml:"max_bytes"`
	// Wait is how long a playlist request waits for the first segment of a stream
	// that has just begun, at most 60s; 0s answers 404 at once.
	Wait time.Duration `yaml:"wait"`
	// Linger is how long the playlist and segments of a stream that has ended
	// stay available, at most 1h.
	Linger time.Duration `yaml:"linger"`
}

// DefaultConfig returns the values that hold where a configuration says
// nothing.
func DefaultConfig() Config {
	return Config{
		Enabled:         true,
		TargetDuration:  2 * time.Second,
		MaxDuration:     10 * time.Second,
		Window:          6,
		MaxSegmentBytes: 16 * units.MiB,
		MaxBytes:        96 * units.MiB,
		Wait:            10 * time.Second,
		Linger:          30 * time.Second,
	}
}

// Validate reports every value that is out of range; each message begins with
// its key.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.TargetDuration >= time.Second && c.TargetDuration <= time.Minute,
		"target_duration: must be between 1s and 60s, is %v", c.TargetDuration)
	check(c.MaxDuration >= c.TargetDuration && c.MaxDuration <= time.Minute,
		"max_duration: must be between target_duration (%v) and 60s, is %v", c.TargetDuration, c.MaxDuration)
	check(c.Window >= 3 && c.Window <= 1000,
		"window: must be between 3 and 1000, is %d", c.Window)
	check(c.MaxSegmentBytes >= 256*units.KiB && c.MaxSegmentBytes <= units.GiB,
		"max_segment_bytes: must be between 256KiB and 1GiB, is %v", c.MaxSegmentBytes)
	check(c.MaxBytes >= 4*c.MaxSegmentBytes,
		"max_bytes: must be at least four times max_segment_bytes (%v), is %v", c.MaxSegmentBytes, c.MaxBytes)
	check(c.Wait >= 0 && c.Wait <= time.Minute,
		"wait: must be between 0s and 60s, is %v", c.Wait)
	check(c.Linger >= 0 && c.Linger <= time.Hour,
		"linger: must be between 0s and 1h, is %v", c.Linger)
	return errors.Join(errs...)
}
