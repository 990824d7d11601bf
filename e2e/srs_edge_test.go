package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"weir/internal/media"
	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

// What SRS 7.0.18 says on the wire, in both roles, as docs/protocols.md describes it.
// It is written here anew: weir's own client and server know more, and would hide
// what only they understand.
const (
	srsWindow    = 2_500_000
	srsChunkSize = 60_000
	// srsPatience bounds each read and write of an SRS edge until it has asked for its
	// stream. It is fixed, and so is the pause before it tries again.
	srsPatience = 500 * time.Millisecond
	srsPause    = 3 * time.Second
)

// srsConn is a connection of an SRS, with the chunk size that it sends with.
type srsConn struct {
	net.Conn
	in   *chunk.Reader
	size int

	mu   sync.Mutex
	seen bytes.Buffer // guarded by mu; what came, up to recordLimit
}

// record keeps what was read.
func (c *srsConn) record(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen.Write(p[:min(len(p), recordLimit-c.seen.Len())])
}

// said returns what came so far.
func (c *srsConn) said() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.seen.Bytes())
}

// recorder records what is read through it.
type recorder struct{ c *srsConn }

func (r recorder) Read(p []byte) (int, error) {
	n, err := r.c.Conn.Read(p)
	r.c.record(p[:n])
	return n, err
}

func newSRSConn(nc net.Conn) *srsConn {
	c := &srsConn{Conn: nc, size: chunk.DefaultSize}
	c.in = chunk.NewReader(recorder{c}, chunk.Limits{
		MaxMessage: 4 << 20, MaxCommand: 64 << 10, MaxPending: 8 << 20, MaxChunkStreams: 64, Trusted: 64 << 10, Buffer: 16 << 10,
	})
	return c
}

// send writes one message, as SRS does: each in a write of its own.
func (c *srsConn) send(csid uint32, typ uint8, stream uint32, payload []byte) error {
	_, err := c.Write(chunk.AppendMessage(nil, csid, typ, stream, 0, payload, c.size))
	return err
}

func (c *srsConn) call(csid, stream uint32, values ...amf.Value) error {
	return c.send(csid, chunk.TypeCommand, stream, amf.Append(nil, values...))
}

func (c *srsConn) setChunkSize() error {
	err := c.send(2, chunk.TypeSetChunkSize, 0, binary.BigEndian.AppendUint32(nil, srsChunkSize))
	c.size = srsChunkSize
	return err
}

func (c *srsConn) tag(t media.Tag) error {
	_, err := c.Write(chunk.AppendMedia(nil, t, 1, c.size))
	return err
}

// command decodes a command; nil for any other message.
func command(m chunk.Message) ([]amf.Value, error) {
	if m.Type != chunk.TypeCommand {
		return nil, nil
	}
	return amf.Decode(m.Payload, amf.Limits{Depth: 8, Values: 200})
}

// srsEdge is an SRS edge that has one stream to pull or to forward.
type srsEdge struct {
	t     testing.TB
	vhost string // of its player, empty for the default one
	name  string // of the stream, as its first player asked for it
}

// tcURL names the vhost as the host, but for the default one.
func (e srsEdge) tcURL(addr string) string {
	host, port, _ := net.SplitHostPort(addr)
	if e.vhost != "" {
		host = e.vhost
	}
	return fmt.Sprintf("rtmp://%s:%s/live", host, port)
}

// connect goes up to an open stream. Each read and each write has srsPatience.
func (e srsEdge) connect(addr string) (c *srsConn, err error) {
	nc, err := net.DialTimeout("tcp4", addr, srsPatience)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			nc.Close()
		}
	}()
	hello := make([]byte, 1+1536)
	hello[0] = 3
	_ = nc.SetDeadline(time.Now().Add(srsPatience))
	if _, err = nc.Write(hello); err != nil {
		return nil, err
	}
	answer := make([]byte, 1+2*1536)
	if _, err = io.ReadFull(nc, answer); err != nil {
		return nil, fmt.Errorf("read S0, S1, S2: %w", err)
	}
	if _, err = nc.Write(answer[1 : 1+1536]); err != nil {
		return nil, err
	}
	c = newSRSConn(nc)
	if err = c.call(3, 0, amf.Str("connect"), amf.Num(1), amf.Obj(
		amf.P("app", amf.Str("live")), amf.P("flashVer", amf.Str("WIN 15,0,0,239")), amf.P("swfUrl", amf.Str("")), amf.P("tcUrl", amf.Str(e.tcURL(addr))),
		amf.P("fpad", amf.Bool(false)), amf.P("capabilities", amf.Num(239)), amf.P("audioCodecs", amf.Num(3575)), amf.P("videoCodecs", amf.Num(252)),
		amf.P("videoFunction", amf.Num(1)), amf.P("pageUrl", amf.Str("")), amf.P("objectEncoding", amf.Num(0)),
	)); err != nil {
		return nil, err
	}
	if err = c.send(2, chunk.TypeWindowAckSize, 0, binary.BigEndian.AppendUint32(nil, srsWindow)); err != nil {
		return nil, err
	}
	if _, err = e.result(c, 1); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if err = c.call(3, 0, amf.Str("createStream"), amf.Num(2), amf.Value{}); err != nil {
		return nil, err
	}
	id, err := e.result(c, 2)
	if err == nil && id.Num != 1 {
		err = fmt.Errorf("its stream is %v", id)
	}
	if err != nil {
		return nil, fmt.Errorf("createStream: %w", err)
	}
	_ = nc.SetDeadline(time.Time{})
	return c, nil
}

// result reads up to the answer to a call, passing over all else.
func (e srsEdge) result(c *srsConn, id float64) (amf.Value, error) {
	for {
		_ = c.SetDeadline(time.Now().Add(srsPatience))
		m, err := c.in.ReadMessage()
		if err != nil {
			return amf.Value{}, err
		}
		values, err := command(m)
		if err != nil {
			return amf.Value{}, err
		}
		if len(values) < 4 || values[1].Num != id {
			continue
		}
		if values[0].Str != "_result" {
			return amf.Value{}, fmt.Errorf("answered %v", values)
		}
		return values[3], nil
	}
}

// srsRedirect is the address that an SRS edge takes out of a redirect.
type srsRedirect string

func (r srsRedirect) Error() string { return "redirected to " + string(r) }

// pull asks an origin for the stream, without waiting for an answer, and reads until
// it has so many video frames. Its error is an srsRedirect if it is sent on.
func (e srsEdge) pull(c *srsConn, video int) ([]frame, error) {
	for _, err := range []error{
		c.call(5, 1, amf.Str("play"), amf.Num(0), amf.Value{}, amf.Str(e.name)),
		c.send(2, chunk.TypeUserControl, 0, []byte{0, 3, 0, 0, 0, 1, 0, 0, 0x03, 0xe8}), // SetBufferLength, 1000 ms
		c.setChunkSize(),
	} {
		if err != nil {
			return nil, err
		}
	}
	var frames []frame
	for count(frames, media.Video) < video {
		_ = c.SetReadDeadline(time.Now().Add(waitTimeout))
		m, err := c.in.ReadMessage()
		if err != nil {
			return frames, err
		}
		if m.Tag != nil {
			if f, ok := frameOf(m.Tag); ok {
				frames = append(frames, f)
			}
			continue
		}
		values, err := command(m)
		if err != nil {
			return frames, err
		}
		for _, v := range values {
			ex := v.Get("ex")
			if v.Get("level").Text() != "error" || !ex.IsObject() {
				continue
			}
			to := ex.Get("redirect2").Text()
			if to == "" {
				to = ex.Get("redirect").Text()
			}
			u, err := url.Parse(to)
			if err != nil {
				return frames, err
			}
			return frames, srsRedirect(u.Host) // host and port; the rest is its own
		}
	}
	return frames, nil
}

// play is a pull from the start: an origin that refuses or is too slow is asked again,
// as its player waits; one redirect is followed, at once. It returns what the redirecting
// connection said as well.
func (e srsEdge) play(addr string, video int) (frames []frame, redirecting []byte) {
	e.t.Helper()
	pause := time.NewTicker(srsPause)
	defer pause.Stop()
	deadline := time.Now().Add(waitTimeout)
	at := addr
	for {
		c, err := e.connect(at)
		if err == nil {
			frames, err = e.pull(c, video)
			c.Close()
		}
		var to srsRedirect
		switch {
		case err == nil:
			return frames, redirecting
		case errors.As(err, &to):
			redirecting = c.said()
			if at != addr {
				e.t.Fatalf("an SRS edge is redirected from %s to %s, and again to %s", addr, at, to)
			}
			at = string(to)
			continue
		case time.Now().After(deadline):
			e.t.Fatalf("an SRS edge at %s: %v", at, err)
		}
		e.t.Logf("an SRS edge at %s tries again: %v", at, err)
		at = addr // a redirect is used once
		<-pause.C
	}
}

// publish forwards a publisher: it sends the stream without waiting for an answer.
func (e srsEdge) publish(addr string) (*srsConn, error) {
	c, err := e.connect(addr)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(c.setChunkSize(), c.call(5, 1, amf.Str("publish"), amf.Num(0), amf.Value{}, amf.Str(e.name), amf.Str("live"))); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}
