// Package clip carries the looping test clip of weir: a moving test picture
// with a clock and a frame counter, and a gliding tone with a tick every
// second. The demo publishes it, and the end-to-end tests compare against it.
//
// The clip is an FLV file of 16 s: H.264 main profile without B-frames, 640x360,
// 25 frames/s, a key frame every 2 s; AAC-LC, 48 kHz, stereo. It is made by
// scripts/make-clip.sh so that a next round, begun exactly Duration later,
// continues the last one in picture rate and in sound, and so that no two tags
// have the same body.
package clip

import (
	_ "embed"
	"strings"
	"time"
)

// Duration is the length of one round: the tag at time t of round n belongs at
// n*Duration + t of an endless stream.
const Duration = 16 * time.Second

//go:embed clip.flv
var file string // a string, because nobody can change it

// Bytes returns the FLV file. The slice is a copy, the caller's to keep.
func Bytes() []byte { return []byte(file) }

// Reader returns a reader over the FLV file, from its start. Readers are
// independent of each other and share the clip's memory.
func Reader() *strings.Reader { return strings.NewReader(file) }
