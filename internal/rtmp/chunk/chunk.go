// Package chunk reads and writes the RTMP chunk stream: it turns bytes into
// messages and messages into bytes. It knows no commands and does no network
// I/O; it works on an io.Reader and on byte slices.
//
// Format: Adobe RTMP 1.0, section 5.3 (chunking) and 5.4 (protocol control).
package chunk

import (
	"errors"
	"fmt"

	"weir/internal/media"
)

// Types of messages (RTMP 1.0, sections 5.4, 6.2 and 7.1).
const (
	TypeSetChunkSize     = 1
	TypeAbort            = 2
	TypeAck              = 3
	TypeUserControl      = 4
	TypeWindowAckSize    = 5
	TypeSetPeerBandwidth = 6
	TypeAudio            = 8
	TypeVideo            = 9
	TypeDataAMF3         = 15
	TypeSharedAMF3       = 16
	TypeCommandAMF3      = 17
	TypeData             = 18
	TypeSharedAMF0       = 19
	TypeCommand          = 20
	TypeAggregate        = 22
	TypeGoAway           = 32 // of live services, not of the specification
)

// Chunk sizes in bytes.
const (
	// DefaultSize is the chunk size of both sides until SetChunkSize.
	DefaultSize = 128
	// MaxSize is the largest chunk size with a meaning: no message is larger.
	MaxSize = 1<<24 - 1
)

// Message is one complete RTMP message.
type Message struct {
	Type        uint8
	StreamID    uint32
	Time        uint32 // milliseconds; wraps after 2^32
	ChunkStream uint32

	// Payload is the body of the message. For audio, video and AMF0 data it is
	// Tag.Body() and the caller's to keep; for all other types it is valid until
	// the next call of ReadMessage.
	Payload []byte
	// Tag is the whole FLV tag of an audio, video or AMF0 data message, nil for
	// all others. It was assembled in place: one allocation for one message.
	Tag media.Tag
}

// ErrProtocol marks all errors that the peer's bytes are to blame for, as
// opposed to those of the reader below.
var ErrProtocol = errors.New("RTMP protocol error")

func protocolError(format string, args ...any) error {
	return fmt.Errorf("read chunk: %s: %w", fmt.Sprintf(format, args...), ErrProtocol)
}

// Limits bound what one peer can make a Reader hold. All sizes are in bytes.
type Limits struct {
	// MaxMessage is the largest audio, video, data or aggregate message.
	MaxMessage int
	// MaxCommand is the largest message of any other type.
	MaxCommand int
	// MaxPending bounds the memory of all unfinished messages together.
	MaxPending int
	// MaxChunkStreams is the largest number of chunk stream ids in use.
	MaxChunkStreams int
	// Trusted is the declared size up to which the memory of a message is taken
	// at once; that of a larger one grows with the bytes that arrive.
	Trusted int
	// Buffer is the size of the read buffer, at least 1 KiB.
	Buffer int
	// Shared has all readers that say so share their buffers while nothing is in them and
	// the source, if it is an Awaiter, waits: thousands that read in turn use a few, which
	// stay in the processor's caches.
	Shared bool
}

// limit returns the largest size of a message of a type.
func (l *Limits) limit(typ uint8) int {
	switch typ {
	case TypeAudio, TypeVideo, TypeData, TypeDataAMF3, TypeAggregate:
		return l.MaxMessage
	}
	return l.MaxCommand
}
