// Package session is the door of a node for publishers and players: it takes
// RTMP and HTTP connections, finds out which stream of which vhost each is for,
// asks the node's role about it, serves the player from a stream's log, and
// writes down how each session ended. What differs between an origin and an
// edge stands behind the interface Role.
package session

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"weir/hls"
	"weir/internal/media"
	"weir/internal/rtmp"
	"weir/internal/stream"
	"weir/internal/ticket"
	"weir/internal/units"
	"weir/internal/vhost"
)

// Role is what an origin or an edge does with a request. Its methods are called
// concurrently.
type Role interface {
	// Play finds the stream that a player asks for, waiting for it as long as
	// the role sees fit. The errors that players get told apart are
	// ErrNotFound, *Redirect and *Refusal.
	Play(ctx context.Context, r PlayRequest) (Feed, error)

	// Publish takes over a publisher that may publish, until it ends. It calls
	// Accept, or returns an error (*Refusal) that the publisher is told.
	Publish(ctx context.Context, p *Publisher) PublishEnd

	// HLS returns a playlist or a segment, or an error as Play does.
	HLS(ctx context.Context, r HLSRequest) (hls.Object, error)
}

// Peer is the node that a request came from, when it said that it is one.
type Peer struct {
	Node string // its id; empty for an ordinary player or publisher
	Via  string // nodes that the request came through, joined by commas
}

// PlayRequest is a player's wish.
type PlayRequest struct {
	Target vhost.Target
	Remote netip.AddrPort
	Peer   Peer
	// Epoch is that of the latest ownership of the stream that another worker of
	// the node knows of; 0 for all who are no worker.
	Epoch uint64
	// OnBeat says that the player gets what is new in the batches of this process
	// (Server.Beat), once there are many players: it is no node and no worker, which have
	// players of their own, and not under TLS.
	OnBeat bool
}

// Newcomer is a request that would begin a session, or one for an HLS playlist,
// before the role is asked about it.
type Newcomer struct {
	Kind   string // KindPublish, KindPlay or KindHLS
	Target vhost.Target
	Remote netip.AddrPort
	Peer   Peer
	// Protocol is "rtmp", "http-flv", "ws-flv" or "hls".
	Protocol string
	// Secure says that it came over TLS: nodes know only plain addresses of others.
	Secure bool
	// Ticket is what a node that sent it here gave it; see package ticket.
	Ticket string
	// OverQuota says that the vhost has as many players as its quota or more; never of
	// nodes and publishers.
	OverQuota bool
	// Leaving says that this is a player that is here and is to leave: only where it
	// should go is asked.
	Leaving bool
}

// Kinds of newcomers. Those of sessions are the words of logs and metrics, too.
const (
	KindPublish = "publish"
	KindPlay    = "play"
	KindHLS     = "hls"
)

// HLSRequest is an HLS viewer's wish for one file.
type HLSRequest struct {
	Target vhost.Target // the stream
	File   hls.Request  // its playlist, or one of its segments
	Remote netip.AddrPort
	Peer   Peer
}

// Feed is a stream that a player may read.
type Feed struct {
	Stream *stream.Stream
	// Epoch of the ownership that the stream's data is of; 0 when not known.
	Epoch uint64
	// Release must be called once, when the player has left. It is kept for each player:
	// a closure of its own would be much of what that costs.
	Release func()
}

// ErrNotFound says that nobody publishes the stream.
var ErrNotFound = errors.New("stream not found")

// Redirect says that another node has the stream.
//
// It is also the cause that a stream is closed with which another node has taken
// over: players that can follow are told where it is, the others are cut.
type Redirect struct {
	RTMP  string // host:port that the owner is reached at; empty if unknown
	HTTP  string // likewise for HTTP
	Epoch uint64 // of its ownership; 0 if not known. Only nodes of weir are told
	// Ticket goes into the query of the URL, if it fits; empty: none (package ticket).
	Ticket string
}

// query returns the query of the URL that a redirect leads to.
func (r *Redirect) query(t vhost.Target) string {
	q := t.KeptQuery()
	if r.Ticket == "" {
		return q
	}
	if with := ticket.Put(q, r.Ticket); len(with) <= vhost.MaxQuery {
		return with
	}
	return q
}

// Error returns the addresses of the node that has the stream. The ticket is not in it.
func (r *Redirect) Error() string {
	return fmt.Sprintf("redirect to the owner (RTMP %q, HTTP %q)", r.RTMP, r.HTTP)
}

// Code says which answer a refusal is.
type Code string

// The codes of refusals; the words are those of logs and metrics.
const (
	Conflict    Code = "conflict"    // another publisher has the name
	Denied      Code = "denied"      // wrong or missing key
	Banned      Code = "banned"      // an operator lets nobody publish the stream now
	BadRequest  Code = "bad_request" // unknown vhost, bad name
	Limit       Code = "limit"       // of players, sessions
	Unavailable Code = "unavailable" // upstream or discovery cannot be reached
	Stopping    Code = "shutdown"    // the node stops
	Draining    Code = "draining"    // the node takes no new sessions
	Overload    Code = "overload"    // the node has too much to do
)

// Refusal is a request that was understood and is not granted.
type Refusal struct {
	Code Code
	Text string // a sentence for the person at the other end
	Err  error  // cause for the log; may be nil
	// RetryAfter is when to come back, for those who can be told; 0: the usual time.
	RetryAfter time.Duration
}

// Error returns the text and the cause in one line, or only the cause if it has the words of
// the text, as what another node answered often has.
func (r *Refusal) Error() string {
	if r.Err == nil {
		return r.Text
	}
	text, cause := strings.TrimSuffix(r.Text, "."), r.Err.Error()
	if strings.Contains(strings.ToLower(cause), strings.ToLower(text)) {
		return cause
	}
	return text + ": " + cause
}

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Err }

// PublishEnd tells how a publisher's session ended.
type PublishEnd struct {
	Reason string // for log and metrics, as "unpublished", "replaced", "lost_lease"
	Err    error  // cause; a *Refusal before Accept is told to the publisher
}

// tagReader is what a role reads a publisher from.
type tagReader interface {
	AcceptPublish(info ...rtmp.Property) error
	ReadTag() (media.Tag, error)
	Gone(t media.Tag, unused bool)
	Tell(notice []byte) error
	OutChunkSize() int
}

// Publisher is a publisher's session as a role sees it.
type Publisher struct {
	Target vhost.Target
	Remote netip.AddrPort
	Peer   Peer
	// Name is the stream name as the publisher sent it, query included.
	Name string
	// Encoder is what the publisher calls itself.
	Encoder string
	// Secret is what the node that forwards the publisher proves with that it is
	// the same one as before; empty for others.
	Secret string
	// Epoch of the ownership that the publisher has, to be set before Accept for
	// nodes to be told; 0 for none.
	Epoch uint64

	conn     tagReader
	ways     ways
	accepted bool
	live     *live
	id       string // of the session
}

// PublisherName returns the name in leases of the publisher that has a secret, ""
// for none. It does not tell the secret: everybody may read it in the directory.
func PublisherName(secret string) string {
	if secret == "" {
		return ""
	}
	sum := sha256.Sum256([]byte("weir publisher " + secret))
	return hex.EncodeToString(sum[:16])
}

// Accept tells the publisher to send.
func (p *Publisher) Accept() error {
	p.accepted = true
	return p.conn.AcceptPublish(epochInfo(p.Epoch)...)
}

// ReadTag returns the publisher's next tag. io.EOF means that it unpublished.
// Marks of weir's own are left out: no publisher speaks for a node.
func (p *Publisher) ReadTag() (media.Tag, error) {
	for {
		t, err := p.conn.ReadTag()
		p.live.bytes.Add(uint64(len(t)))
		if err != nil || !media.IsMark(t) {
			return t, err
		}
	}
}

// Gone lets the memory of a tag that ReadTag has returned be used again (see
// media.Slab.Gone).
func (p *Publisher) Gone(t media.Tag, unused bool) { p.conn.Gone(t, unused) }

// ID returns the id of the session, as in the admin API.
func (p *Publisher) ID() string { return p.id }

// End makes ReadTag fail, and why the reason of the session's end. The publisher is
// told, if it is one of the reasons of this package, and its connection closed. End
// does not block, and is safe for concurrent use.
func (p *Publisher) End(why string) { p.live.end(why) }

// Config is the `play` section: what players may cost.
type Config struct {
	// How long a frame may wait to be sent together with others, from 0 (never) to 5s. With few players each frame goes out at once; the more there are, the longer the batches, up to this, and the less a player costs.
	MaxLatency time.Duration `yaml:"max_latency"`
	// Whether what many players get at a time is sent by io_uring, one system call for up to 64 of them, where the kernel has it (Linux 5.6) and lets the process use it; batches of 32 KB and more only if that is cheaper on the machine than a call for each that copies nothing. Elsewhere, and with false, each player costs system calls of its own, which takes up to half more processor time.
	IOURing bool `yaml:"io_uring"`
	// How far (media time) a player may fall behind the newest frame before it jumps to the
	// newest key frame, from 500ms to 10m. The log of a stream keeps as much for those that are
	// behind, within max_log_bytes.
	MaxLag time.Duration `yaml:"max_lag"`
	// How long a player's connection may take no byte before it is cut, from 100ms to 10m.
	WriteTimeout time.Duration `yaml:"write_timeout"`
	// The memory that is kept, in each process, for all players together whose connections take
	// no bytes now, from 1MiB to 64GiB: the frames that they are in the middle of. When it is not
	// enough, those are cut that have taken nothing for the longest time.
	MaxSlowBytes units.Bytes `yaml:"max_slow_bytes"`
	// The memory of one stream's log, from 256KiB to 4GiB. A group of pictures that is larger
	// cannot be joined at its key frame. An edge has one log per worker that serves the stream,
	// and one for each publisher that is forwarded.
	MaxLogBytes units.Bytes `yaml:"max_log_bytes"`
	// How long a player waits for a stream that nobody publishes yet before it is told so, from
	// 0s to 10m; 0s answers at once.
	WaitPublisher time.Duration `yaml:"wait_publisher"`
	// The number of sessions (players and publishers together, HLS viewers not counted) per
	// process; 0 means no limit beyond that on connections.
	MaxSessions int `yaml:"max_sessions"`
}

// DefaultConfig returns the defaults, with the role's own time to wait for a
// publisher.
func DefaultConfig(waitPublisher time.Duration) Config {
	return Config{
		MaxLatency:    120 * time.Millisecond,
		IOURing:       true,
		MaxLag:        8 * time.Second,
		WriteTimeout:  10 * time.Second,
		MaxSlowBytes:  64 * units.MiB,
		MaxLogBytes:   32 * units.MiB,
		WaitPublisher: waitPublisher,
	}
}

// Validate returns all that is wrong, each error beginning with the key.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.MaxLatency < 0 || c.MaxLatency > 5*time.Second {
		bad("max_latency: %v is not between 0s and 5s", c.MaxLatency)
	}
	if c.MaxLag < 500*time.Millisecond || c.MaxLag > 10*time.Minute {
		bad("max_lag: %v is not between 500ms and 10m", c.MaxLag)
	}
	if c.WriteTimeout < 100*time.Millisecond || c.WriteTimeout > 10*time.Minute {
		bad("write_timeout: %v is not between 100ms and 10m", c.WriteTimeout)
	}
	if c.MaxSlowBytes < units.MiB || c.MaxSlowBytes > 64*units.GiB {
		bad("max_slow_bytes: %v is not between 1MiB and 64GiB", c.MaxSlowBytes)
	}
	if c.MaxLogBytes < 256*units.KiB || c.MaxLogBytes > 4*units.GiB {
		bad("max_log_bytes: %v is not between 256KiB and 4GiB", c.MaxLogBytes)
	}
	if c.WaitPublisher < 0 || c.WaitPublisher > 10*time.Minute {
		bad("wait_publisher: %v is not between 0s and 10m", c.WaitPublisher)
	}
	if c.MaxSessions < 0 {
		bad("max_sessions: must not be negative")
	}
	return errors.Join(errs...)
}

// recent is how much of a stream's log is kept, beyond what a batch has, while nobody is
// behind: nodes that lose a source find in it where the next one goes on, and players on
// their way between a shard and a goroutine of their own what they go on with.
const recent = 2 * time.Second

// LogLimits returns the bounds of a stream's log.
func (c *Config) LogLimits() stream.Limits {
	return stream.Limits{MaxBytes: int64(c.MaxLogBytes), MaxTime: c.MaxLag, MinTime: recent + c.MaxLatency}
}
