package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp"
)

// tagSource is a stream that is being played.
type tagSource interface {
	ReadTag() (media.Tag, error)
	Close() error
}

// probe is a player that reads every tag and judges it.
type probe struct {
	// Static.
	id     uint32 // of the run
	stream int
	clock  clock
	open   func(ctx context.Context) (tagSource, error)

	mu sync.Mutex
	// Guarded by mu.
	seen sight
}

// sight is what a probe has seen.
type sight struct {
	begun    time.Duration // when it asked for the stream
	firstKF  time.Duration // from then to the first key frame
	from     uint32        // number of that one
	headers  headerSet     // that came before it
	bytes    uint64        // of tags behind it
	frames   uint64
	gaps     int         // holes in the numbers of a kind
	lost     int         // frames that are missing in them
	torn     int         // holes in the video that do not end with a key frame
	disorder int         // frames older than one before them
	foreign  int         // frames without a mark, or of another stream
	delays   []histogram // by phase
	playing  bool
	ended    error         // why the server or the connection ended it
	lasted   time.Duration // from begun to then
	next     [2]uint32
	known    [2]bool
}

// phases are the times of which delays are counted, one after the other. Safe
// for concurrent use.
type phases struct {
	mu sync.Mutex
	// Guarded by mu: frames that were sent in [from, to) count; to is 0 while a
	// phase lasts.
	spans []span
}

type span struct{ from, to time.Duration }

// begin starts a phase and returns its number.
func (p *phases) begin(now time.Duration) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spans = append(p.spans, span{from: now})
	return len(p.spans) - 1
}

// end ends the last phase.
func (p *phases) end(now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spans[len(p.spans)-1].to = now
}

// of returns the phase that a frame counts for by the time when it was sent.
func (p *phases) of(t time.Duration) (int, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.spans) - 1; i >= 0; i-- {
		if s := p.spans[i]; t >= s.from {
			return i, s.to == 0 || t < s.to
		}
	}
	return 0, false
}

// run plays until ctx ends or the server closes the connection.
func (p *probe) run(ctx context.Context, ph *phases) {
	p.mu.Lock()
	p.seen.begun = p.clock.now()
	p.mu.Unlock()
	err := p.play(ctx, ph)
	if ctx.Err() == nil {
		p.finish(err)
	}
}

// finish notes why the stream ended.
func (p *probe) finish(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen.ended, p.seen.lasted = err, p.clock.now()-p.seen.begun
}

func (p *probe) play(ctx context.Context, ph *phases) error {
	src, err := p.open(ctx)
	if err != nil {
		return err
	}
	defer src.Close()
	stop := context.AfterFunc(ctx, func() { src.Close() })
	defer stop()
	for {
		t, err := src.ReadTag()
		if errors.Is(err, io.EOF) {
			return errors.New("closed by the server")
		}
		if err != nil {
			return err
		}
		p.look(t, ph)
	}
}

// look judges one tag.
func (p *probe) look(t media.Tag, ph *phases) {
	now := p.clock.now()
	info := media.Sniff(t.Kind(), t.Body())
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.seen
	if info.IsHeader() {
		if !s.playing {
			s.headers |= headerOf(t.Kind(), info)
		}
		return
	}
	if t.Kind() == media.Data {
		return
	}
	m, ok := findMark(t.Body())
	if s.playing && ok && m.Run == p.id {
		s.bytes += uint64(len(t))
	}
	if !s.playing && ok && m.Run == p.id && info.IsKeyFrame() {
		s.playing = true
		s.firstKF = now - s.begun
		s.from = m.Seq
	}
	p.judge(t.Kind(), m, ok, info.IsKeyFrame(), now, ph)
}

// frame judges one frame of which only the mark is known.
func (p *probe) frame(k media.Kind, m mark, marked, key bool, now time.Duration, ph *phases) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.judge(k, m, marked, key, now, ph)
}

// judge is frame for who holds the lock.
func (p *probe) judge(k media.Kind, m mark, marked, key bool, now time.Duration, ph *phases) {
	s := &p.seen
	if marked && m.Run != p.id && s.frames == 0 {
		return // left from an earlier run
	}
	if !marked || m.Run != p.id || m.Stream != uint32(p.stream) {
		s.foreign++
		return
	}
	s.frames++
	i := 0
	if k == media.Video {
		i = 1
	}
	s.order(i, m.Seq, key)
	// The frames that a player gets to begin with are from before its request.
	if m.Sent < s.begun {
		return
	}
	if i, ok := ph.of(m.Sent); ok {
		for len(s.delays) <= i {
			s.delays = append(s.delays, histogram{})
		}
		s.delays[i].add(now - m.Sent)
	}
}

func (s *sight) order(k int, seq uint32, key bool) {
	video := k == 1
	switch {
	case !s.known[k]:
		s.known[k] = true
	case seq == s.next[k]:
	case seq < s.next[k]:
		s.disorder++
		return
	default:
		s.gaps++
		s.lost += int(seq - s.next[k])
		if video && !key {
			s.torn++
		}
	}
	s.next[k] = seq + 1
}

// state says whether the probe plays, and why it does not any more.
func (p *probe) state() (playing bool, ended error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen.playing, p.seen.ended
}

// snapshot returns what was seen so far.
func (p *probe) snapshot() sight {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.seen
	s.delays = make([]histogram, len(p.seen.delays))
	for i := range s.delays {
		s.delays[i].merge(&p.seen.delays[i])
	}
	return s
}

// rated reads at most so many bytes per second, evenly.
type rated struct {
	net.Conn
	rate int // bytes per second
	next time.Time
}

// slowStep is how often a slow player reads.
const slowStep = 100 * time.Millisecond

func (r *rated) Read(p []byte) (int, error) {
	if d := time.Until(r.next); d > 0 {
		timer := time.NewTimer(d)
		<-timer.C
	}
	n, err := r.Conn.Read(p[:min(len(p), max(1, int(int64(r.rate)*int64(slowStep)/int64(time.Second))))])
	r.next = time.Now().Add(time.Duration(n) * time.Second / time.Duration(r.rate))
	return n, err
}

// flvSource is a stream over HTTP.
type flvSource struct {
	*flv.Reader
	io.Closer
}

// openFLV asks for a stream over HTTP-FLV or, with webSocket, WebSocket-FLV, on
// a connection that becomes the source's.
func openFLV(conn net.Conn, request []byte, webSocket bool) (tagSource, error) {
	if _, err := conn.Write(request); err != nil {
		return nil, fmt.Errorf("send request: %w", err)
	}
	r := bufio.NewReaderSize(conn, 32<<10)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, fmt.Errorf("read response: %w", err)
	}
	if webSocket {
		if resp.StatusCode != http.StatusSwitchingProtocols {
			return nil, fmt.Errorf("%w: HTTP %s", errRefused, resp.Status)
		}
		return flvSource{flv.NewReader(&unframer{r: r}, 0), conn}, nil
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: HTTP %s", errRefused, resp.Status)
	}
	return flvSource{flv.NewReader(resp.Body, 0), conn}, nil
}

// unframer reads the payload of the WebSocket frames that a server sends, which
// are not masked (RFC 6455, section 5.1). Control frames are passed over.
type unframer struct {
	r    *bufio.Reader
	left uint64
}

func (u *unframer) Read(p []byte) (int, error) {
	for u.left == 0 {
		var h [8]byte
		if _, err := io.ReadFull(u.r, h[:2]); err != nil {
			return 0, err
		}
		opcode, size := h[0]&0x0f, uint64(h[1]&0x7f)
		extra := map[uint64]int{126: 2, 127: 8}[size]
		if extra > 0 {
			if _, err := io.ReadFull(u.r, h[:extra]); err != nil {
				return 0, err
			}
			size = binary.BigEndian.Uint64(append(make([]byte, 8-extra), h[:extra]...))
		}
		switch {
		case opcode == 8:
			return 0, io.EOF
		case opcode > 2:
			if size > 125 {
				return 0, fmt.Errorf("%w: WebSocket control frame of %d bytes", errNotStream, size)
			}
			if _, err := u.r.Discard(int(size)); err != nil {
				return 0, err
			}
		default:
			u.left = size
		}
	}
	n, err := u.r.Read(p[:min(uint64(len(p)), u.left)])
	u.left -= uint64(n)
	return n, err
}

// httpRequest is the request of a player.
func httpRequest(host, target string, webSocket bool) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: weir-bench\r\n", target, host)
	if webSocket {
		// The key is the example of RFC 6455, section 1.3: nobody here is fooled by caches.
		b.WriteString("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// openRTMP plays over RTMP.
func openRTMP(ctx context.Context, u rtmp.URL, secure *tls.Config, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (*rtmp.Client, error) {
	cfg := rtmp.DefaultClientConfig()
	cfg.ReadTimeout = time.Minute
	cfg.ConnectTimeout = joinTimeout
	cfg.DialContext = dial
	cfg.TLS = secure
	c, err := rtmp.Dial(ctx, u, cfg)
	if err != nil {
		return nil, err
	}
	if _, err := c.Play(ctx, u.Name); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// joinTimeout is how long a player waits for its stream.
const joinTimeout = 30 * time.Second
