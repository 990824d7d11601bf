// Package rtmp is the RTMP session layer of weir: the server side of publish
// and play, and a client for both. It turns connections into requests and FLV
// tags and knows nothing of streams, vhosts or roles.
//
// Formats: Adobe RTMP 1.0 (of 2012) and Enhanced RTMP v2 (Veovera, 2024).
package rtmp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
	"weir/internal/units"
)

// ServerConfig holds the limits and timers of RTMP connections that are accepted.
type ServerConfig struct {
	// The time that a client has from the accept to its publish or play command, in whatever
	// pace it sends; from 100ms to 10m.
	HandshakeTimeout time.Duration `yaml:"handshake_timeout"`
	// The time that one write of an answer may take before the connection is cut, from 100ms to
	// 10m. The media of players is ruled by `play.write_timeout`.
	WriteTimeout time.Duration `yaml:"write_timeout"`
	// How long a publisher may send no bytes before it is cut, from 1s to 1h.
	PublishIdleTimeout time.Duration `yaml:"publish_idle_timeout"`
	// The time that a client which was refused gets to read the answer and close before the
	// connection is cut, from 0s to 1m.
	CloseTimeout time.Duration `yaml:"close_timeout"`
	// The time that a redirected client gets to react before the connection is closed, from 0s
	// to 1m.
	RedirectWait time.Duration `yaml:"redirect_wait"`

	// The largest command, from 4KiB to 64KiB. Until publish or play has been granted it is also
	// the largest message, and the most memory that all unfinished messages of a connection may
	// hold.
	MaxCommand units.Bytes `yaml:"max_command"`
	// The longest app, stream name or other text of a command that is kept for the session, from
	// 64B to 4KiB.
	MaxName units.Bytes `yaml:"max_name"`
	// The largest message of a publisher that was let in, in practice its largest key frame;
	// from 64KiB to 16777215B.
	MaxMessage units.Bytes `yaml:"max_message"`
	// The most memory that the unfinished messages of a publisher that was let in may hold
	// together, from max_message to 1GiB.
	MaxUnfinished units.Bytes `yaml:"max_unfinished"`
	// The number of chunk streams that a client may use, from 8 to 1024.
	MaxChunkStreams int `yaml:"max_chunk_streams"`
	// How deep the objects of a command may nest, from 2 to 32.
	MaxAMFDepth int `yaml:"max_amf_depth"`
	// The number of values in one command, those inside objects and arrays included; from 32 to
	// 512.
	MaxAMFValues int `yaml:"max_amf_values"`

	// The number of bytes after which each side acknowledges what it received, from 64KiB to
	// 1GiB.
	WindowAckSize units.Bytes `yaml:"window_ack_size"`
	// The size of the chunks that are sent, from 128B to 16777215B. Large chunks cost less.
	ChunkSize units.Bytes `yaml:"chunk_size"`
}

// DefaultServerConfig returns the values that suit the internet.
func DefaultServerConfig() ServerConfig {
	return ServerConfig{
		HandshakeTimeout:   10 * time.Second,
		WriteTimeout:       10 * time.Second,
		PublishIdleTimeout: 15 * time.Second,
		CloseTimeout:       2 * time.Second,
		RedirectWait:       3 * time.Second,
		MaxCommand:         64 * units.KiB,
		MaxName:            4 * units.KiB,
		MaxMessage:         8 * units.MiB,
		MaxUnfinished:      16 * units.MiB,
		MaxChunkStreams:    64,
		MaxAMFDepth:        8,
		MaxAMFValues:       512,
		WindowAckSize:      2500000,
		ChunkSize:          60000,
	}
}

// Validate reports every field that is out of its range, each as an error that
// starts with the key of the field and a colon.
func (c *ServerConfig) Validate() error {
	return errors.Join(
		inRange("handshake_timeout", c.HandshakeTimeout, 100*time.Millisecond, 10*time.Minute),
		inRange("write_timeout", c.WriteTimeout, 100*time.Millisecond, 10*time.Minute),
		inRange("publish_idle_timeout", c.PublishIdleTimeout, time.Second, time.Hour),
		inRange("close_timeout", c.CloseTimeout, 0, time.Minute),
		inRange("redirect_wait", c.RedirectWait, 0, time.Minute),
		inRange("max_command", c.MaxCommand, 4*units.KiB, 64*units.KiB),
		inRange("max_name", c.MaxName, 64, 4*units.KiB),
		inRange("max_message", c.MaxMessage, 64*units.KiB, chunk.MaxSize),
		inRange("max_unfinished", c.MaxUnfinished, c.MaxMessage, units.GiB),
		inRange("max_chunk_streams", number(c.MaxChunkStreams), 8, 1024),
		inRange("max_amf_depth", number(c.MaxAMFDepth), 2, 32),
		inRange("max_amf_values", number(c.MaxAMFValues), 32, 512),
		inRange("window_ack_size", c.WindowAckSize, 64*units.KiB, units.GiB),
		inRange("chunk_size", c.ChunkSize, chunk.DefaultSize, chunk.MaxSize),
	)
}

// ClientConfig holds the limits and timers of RTMP connections that are made.
type ClientConfig struct {
	// ConnectTimeout bounds the set-up up to the answer to connect, and again
	// that of publish or play; 100ms to 10m.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// ReadTimeout ends a play in which no bytes arrive for this long; 500ms to 1h.
	ReadTimeout time.Duration `yaml:"read_timeout"`
	// WriteTimeout is the time that one write may take before the connection is
	// given up; 100ms to 10m.
	WriteTimeout time.Duration `yaml:"write_timeout"`
	// MaxMessage is the largest message that is read; 64KiB to 16777215B.
	MaxMessage units.Bytes `yaml:"max_message"`
	// ChunkSize is the size of the chunks that are sent; 128B to 16777215B.
	ChunkSize units.Bytes `yaml:"chunk_size"`

	// What follows is set by the program, not by a file.

	// Node is the name of this node, sent in connect so that another weir knows
	// its peer; "" leaves the weir properties out.
	Node string `yaml:"-"`
	// Via is handed to the server together with Node: the nodes that this
	// request came through, as text that this package does not read.
	Via string `yaml:"-"`
	// Publisher is handed to the server together with Node: a secret name of the
	// publisher on whose behalf this client publishes; "" for none.
	Publisher string `yaml:"-"`
	// Overlap has the publish go on after a redirect, which Redirected tells, until the
	// server ends it: the next one can begin before. Without it a redirect is the end.
	Overlap bool `yaml:"-"`
	// FlashVer is the flashVer property of connect; "" means that of weir.
	FlashVer string `yaml:"-"`
	// TLS is what URLs with rtmps are spoken by; nil trusts the CAs of the system.
	// The name of the server is that of the address, unless it is set.
	TLS *tls.Config `yaml:"-"`
	// DialContext makes the connection; nil means that of net.Dialer.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error) `yaml:"-"`
}

// DefaultClientConfig returns the values for links between data centres.
func DefaultClientConfig() ClientConfig {
	return ClientConfig{
		ConnectTimeout: 3 * time.Second,
		ReadTimeout:    10 * time.Second,
		WriteTimeout:   10 * time.Second,
		MaxMessage:     8 * units.MiB,
		ChunkSize:      60000,
	}
}

// Validate reports every field that is out of its range, each as an error that
// starts with the key of the field and a colon.
func (c *ClientConfig) Validate() error {
	return errors.Join(
		inRange("connect_timeout", c.ConnectTimeout, 100*time.Millisecond, 10*time.Minute),
		inRange("read_timeout", c.ReadTimeout, 500*time.Millisecond, time.Hour),
		inRange("write_timeout", c.WriteTimeout, 100*time.Millisecond, 10*time.Minute),
		inRange("max_message", c.MaxMessage, 64*units.KiB, chunk.MaxSize),
		inRange("chunk_size", c.ChunkSize, chunk.DefaultSize, chunk.MaxSize),
	)
}

type number int64

func inRange[T ~int64](key string, v, low, high T) error {
	if v < low || v > high {
		return fmt.Errorf("%s: must be from %v to %v, not %v", key, low, high, v)
	}
	return nil
}

const (
	// trusted is the declared size up to which the memory of an authorised
	// peer's message is taken at once.
	trusted = 256 << 10
	// Read buffers. A server has a thousand publishers, of whom a frame of 1 Mbit/s comes with
	// one read, and larger ones past the buffer; a client reads one stream for many, and at an
	// edge what 120 ms of 1 Mbit/s are.
	smallBuffer     = 4 << 10 // of those who have not said what they want
	publisherBuffer = 8 << 10
	clientBuffer    = 32 << 10
)

func (c *ServerConfig) strangerLimits() chunk.Limits {
	return chunk.Limits{
		MaxMessage: int(c.MaxCommand), MaxCommand: int(c.MaxCommand), MaxPending: int(c.MaxCommand),
		MaxChunkStreams: c.MaxChunkStreams, Trusted: smallBuffer, Buffer: smallBuffer,
	}
}

func (c *ServerConfig) publisherLimits() chunk.Limits {
	return chunk.Limits{
		MaxMessage: int(c.MaxMessage), MaxCommand: int(c.MaxCommand), MaxPending: int(c.MaxUnfinished),
		MaxChunkStreams: c.MaxChunkStreams, Trusted: trusted, Buffer: publisherBuffer,
	}
}

func (c *ServerConfig) amfLimits() amf.Limits {
	return amf.Limits{Depth: c.MaxAMFDepth, Values: c.MaxAMFValues}
}

func (c *ClientConfig) limits() chunk.Limits {
	return chunk.Limits{
		MaxMessage: int(c.MaxMessage), MaxCommand: 64 << 10, MaxPending: 2 * int(c.MaxMessage),
		MaxChunkStreams: 64, Trusted: trusted, Buffer: clientBuffer, Shared: true,
	}
}

func (c *ClientConfig) amfLimits() amf.Limits { return amf.Limits{Depth: 8, Values: 512} }
