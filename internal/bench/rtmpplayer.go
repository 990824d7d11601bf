package bench

import (
	"context"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/media"
	"weir/internal/rtmp"
)

// A player over RTMP or TLS joins in a goroutine of its own, because its conversation
// has turns, and becomes a light player behind the first key frame. Under TLS it drops
// from then on what it could not read either: nobody pays for the decryption.

// joinStep is how much such a joining player reads at once, in bytes. The bytes
// between the key frame and the end of what was read are not counted, so it
// bounds that error.
const joinStep = 1 << 10

// stepped is a connection that is read in small steps.
type stepped struct {
	*net.TCPConn
	read uint64
}

func (s *stepped) Read(p []byte) (int, error) {
	n, err := s.TCPConn.Read(p[:min(len(p), joinStep)])
	s.read += uint64(n)
	return n, err
}

// joinAlone plays for a player that l holds, up to the first key frame, and hands
// the connection over to l.
func (r *run) joinAlone(ctx context.Context, l *loop, p *player) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	window := 0
	if p.kind == stalled {
		window = slowWindow
	}
	got, err := r.playAhead(ctx, p.stream, window)
	if err != nil {
		l.refused(p, err)
		return
	}
	l.adopt(p, got)
}

// beginning is what a player had when its first key frame was complete.
type beginning struct {
	fd      int
	read    uint64
	at      time.Duration
	headers headerSet
	key     mark
	marked  bool
}

func (r *run) playAhead(ctx context.Context, stream, window int) (got beginning, err error) {
	var conn *stepped
	c, err := r.openBy(ctx, stream, func(ctx context.Context, _, _ string) (net.Conn, error) {
		nc, err := r.dial(ctx, window)
		if err != nil {
			return nil, err
		}
		conn = &stepped{TCPConn: nc}
		return conn, nil
	})
	if err != nil {
		return got, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	for {
		t, err := c.ReadTag()
		if err != nil {
			return got, err
		}
		info := media.Sniff(t.Kind(), t.Body())
		got.headers |= headerOf(t.Kind(), info)
		if !info.IsKeyFrame() {
			continue
		}
		got.key, got.marked = findMark(t.Body())
		if got.marked && got.key.Run != r.id {
			continue
		}
		got.at, got.read = r.clock.now(), conn.read
		got.fd, err = takeOver(conn.TCPConn)
		return got, err
	}
}

// dial connects to the players' server from the next source address. window is
// the size of the receive buffer in bytes, 0 for what the system makes it.
func (r *run) dial(ctx context.Context, window int) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: joinTimeout}
	if len(r.sources) > 0 {
		d.LocalAddr = &net.TCPAddr{IP: r.sources[int(r.dialed.Add(1))%len(r.sources)].AsSlice()}
	}
	d.Control = func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { prepareSocket(int(fd), window) })
	}
	c, err := d.DialContext(ctx, "tcp", r.addr.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// rtmpURL is where a stream is played over RTMP.
func (t *targets) rtmpURL(c *Config, i int) rtmp.URL {
	name := c.streamName(i)
	if t.play.RawQuery != "" {
		name += "?" + t.play.RawQuery
	}
	u, _ := rtmp.ParseURL(t.play.Scheme + "://" + t.play.Host + t.play.EscapedPath() + "/" + name) // checked with the configuration
	return u
}

// headerOf says which header a tag is, if any.
func headerOf(k media.Kind, info media.Info) headerSet {
	if !info.IsHeader() {
		return 0
	}
	switch k {
	case media.Data:
		return hasMetadata
	case media.Video:
		return hasVideoHeader
	case media.Audio:
		return hasAudioHeader
	}
	return 0
}

// hold makes a player known that joins by itself.
func (l *loop) hold(p *player, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.enter(p)
	p.begun, p.state = now, playerJoining
}

// refused notes why a player that joined by itself got no stream.
func (l *loop) refused(p *player, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.state, p.err = playerFailed, err
}

// adopt takes over the connection of a player that joined by itself.
func (l *loop) adopt(p *player, got beginning) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.bytes = got.read
	p.firstKF = got.at - p.begun
	p.from, p.marked, p.headers = got.key.Seq, got.marked, got.headers
	if l.closed {
		unix.Close(got.fd)
		p.state = playerGone
		return
	}
	p.fd, p.state = got.fd, playerPlaying
	if err := l.watch(p); err != nil {
		l.end(p, playerFailed, err)
	}
}
