package rtmp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/yutopp/go-rtmp/message"

	"weir/internal/media"
	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

// Transactions of a client. Each is used once.
const (
	tidConnect = iota + 1
	tidCreateStream
	tidReleaseStream
	tidFCPublish
	tidStart // publish or play
	tidEnd
)

// Client is the client side of one connection. After Dial it carries one
// Publish or one Play. One goroutine at a time may use it, except for Close,
// Done and Err, which are safe for concurrent use.
//
// Any method may return a *StatusError or a *RedirectError, and whatever
// else it returns, the connection is of no more use then, save for Close.
type Client struct {
	conn
	cfg ClientConfig
	url URL

	streamID uint32
	playing  bool      // play was sent
	held     media.Tag // arrived before the answer to play
	batch    []byte    // reused by WriteTags

	// the publish; done is guarded by mu, err is set before done is closed
	name    string
	started PlayInfo
	done    chan struct{} // closed when the reader has ended; nil before Publish
	err     error         // why it has ended

	redirected chan *RedirectError // gets a redirect of the publish
}

// PlayInfo is what the server said when the stream started.
type PlayInfo struct{ info amf.Value }

// Text returns a property of the server's status that is a string, "" if none.
func (p PlayInfo) Text(name string) string { return p.info.Get(name).Text() }

// Dial connects to u.Addr and opens the RTMP connection: handshake, connect and
// createStream. It ends with ctx or after the connect timeout. cfg must be valid.
func Dial(ctx context.Context, u URL, cfg ClientConfig) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
	defer cancel()
	dial := cfg.DialContext
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	nc, err := dial(ctx, "tcp", u.Addr)
	if err != nil {
		return nil, fmt.Errorf("dial RTMP server: %w", err)
	}
	if u.TLS {
		secure, err := shakeTLS(ctx, nc, u.Addr, cfg.TLS)
		if err != nil {
			nc.Close()
			return nil, fmt.Errorf("TLS handshake with RTMP server %s: %w", u.Addr, err)
		}
		nc = secure
	}
	c := &Client{cfg: cfg, url: u, redirected: make(chan *RedirectError, 1)}
	c.start(nc, cfg.limits(), cfg.amfLimits(), cfg.WriteTimeout)
	if err := c.within(ctx, c.open); err != nil {
		nc.Close()
		return nil, fmt.Errorf("connect to RTMP server %s: %w", u.Addr, err)
	}
	return c, nil
}

// shakeTLS puts TLS on a connection.
func shakeTLS(ctx context.Context, nc net.Conn, addr string, cfg *tls.Config) (net.Conn, error) {
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if cfg.ServerName == "" {
		cfg = cfg.Clone()
		cfg.ServerName, _, _ = net.SplitHostPort(addr)
	}
	c := tls.Client(nc, cfg)
	return c, c.HandshakeContext(ctx)
}

// within runs f, which reads and writes, until ctx or the connect timeout ends
// it, whichever comes first.
func (c *Client) within(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ConnectTimeout)
	defer cancel()
	c.deadline, _ = ctx.Deadline()
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		if errors.Is(ctx.Err(), context.Canceled) {
			c.nc.Close()
		}
	})
	err := f()
	if !stop() {
		<-interrupted
		if err == nil {
			err = ctx.Err()
		} else if !refused(err) {
			err = fmt.Errorf("%w (%w)", err, ctx.Err())
		}
	}
	c.deadline, c.cut = time.Time{}, time.Time{}
	_ = c.nc.SetDeadline(time.Time{})
	return err
}

// refused reports an answer of the server, as opposed to a broken connection.
func refused(err error) bool {
	var status *StatusError
	var redirect *RedirectError
	return errors.As(err, &status) || errors.As(err, &redirect)
}

// open does the handshake and connect. createStream goes along, so that its
// answer comes in the same burst.
func (c *Client) open() error {
	_ = c.nc.SetDeadline(c.deadline)
	c2, err := clientHandshake(c.nc)
	if err != nil {
		return err
	}
	c.out = append(c.out, c2...)
	c.setOutSize(int(c.cfg.ChunkSize))
	c.sendControl(&message.WinAckSize{Size: int32(c.ackWindow)})
	c.sendCommand(chunk.StreamCommand, 0, "connect", tidConnect, c.connectObject())
	c.sendCommand(chunk.StreamCommand, 0, "createStream", tidCreateStream, amf.Value{})
	return c.await(func(cmd *command) bool { return cmd.name == "_result" && cmd.tid == tidConnect })
}

func (c *Client) connectObject() amf.Value {
	flashVer := c.cfg.FlashVer
	if flashVer == "" {
		flashVer = "FMLE/3.0 (compatible; weir)"
	}
	props := []Property{
		Text("app", c.url.App),
		Text("type", "nonprivate"),
		Text("flashVer", flashVer),
		Text("tcUrl", c.url.TcURL),
		amf.P("fpad", amf.Bool(false)),
		amf.P("capabilities", amf.Num(239)),
		amf.P("audioCodecs", amf.Num(0x0FFF)),
		amf.P("videoCodecs", amf.Num(0x00FF)),
		amf.P("videoFunction", amf.Num(1)),
		amf.P("objectEncoding", amf.Num(0)),
		amf.P("fourCcList", amf.Strict(amf.Str("*"))),
		amf.P("capsEx", amf.Num(capsMultitrack|capsModEx|capsNanoOffset)),
	}
	if c.cfg.Node != "" {
		props = append(props, Text("weirNode", c.cfg.Node), Text("weirVia", c.cfg.Via))
		if c.cfg.Publisher != "" {
			props = append(props, Text("weirPublisher", c.cfg.Publisher))
		}
	}
	return amf.Obj(props...)
}

// await sends what has gathered and reads until a command for which done is
// true, a refusal, or the end of the connection. Media that comes before the
// answer to play is kept and counts as the answer, as some servers give none.
func (c *Client) await(done func(*command) bool) error {
	for {
		m, err := c.readMessage()
		if err == io.EOF {
			return fmt.Errorf("server closed the connection: %w", io.ErrUnexpectedEOF)
		}
		if err != nil {
			return err
		}
		if !isCommand(m) {
			if c.held, err = c.mediaTag(m); err != nil {
				return err
			}
			if c.held != nil && c.playing {
				return nil
			}
			continue
		}
		cmd, err := c.parseCommand(m)
		if err != nil {
			return err
		}
		if err := failure(&cmd); err != nil {
			return err
		}
		if cmd.name == "_result" && cmd.tid == tidCreateStream {
			c.streamID = cmd.arg(1).Uint32()
		}
		if done(&cmd) {
			return nil
		}
	}
}

// failure returns the refusal that a command of the server stands for: _error,
// or any status of level error, on whatever stream.
func failure(cmd *command) error {
	for _, v := range cmd.args {
		if v.IsObject() && v.Get("level").Kind != amf.Undefined {
			// The two calls of old encoders that servers need not know.
			optional := cmd.name == "_error" && (cmd.tid == tidReleaseStream || cmd.tid == tidFCPublish)
			if optional && !v.Get("ex").IsObject() {
				return nil
			}
			if cmd.name == "_error" {
				return refusal(v)
			}
			if err := statusError(v); err != nil {
				return err
			}
		}
	}
	if cmd.name == "_error" && cmd.tid != tidReleaseStream && cmd.tid != tidFCPublish {
		return &StatusError{Level: "error", Code: CodeCallFailed, Description: "no reason given"}
	}
	return nil
}

// awaitStream waits for the answer to createStream.
func (c *Client) awaitStream() error {
	if c.streamID != 0 {
		return nil
	}
	return c.await(func(*command) bool { return c.streamID != 0 })
}

func statusCode(cmd *command) string {
	if cmd.name != "onStatus" {
		return ""
	}
	return cmd.arg(1).Get("code").Text()
}

// Play asks for a stream and returns when the server has started it. name may
// have a query. It ends with ctx or after the connect timeout.
func (c *Client) Play(ctx context.Context, name string) (PlayInfo, error) {
	var info PlayInfo
	err := c.within(ctx, func() error {
		if err := c.awaitStream(); err != nil {
			return err
		}
		c.playing = true
		c.sendCommand(chunk.StreamStatus, c.streamID, "play", tidStart, amf.Value{}, amf.Str(name))
		c.sendControl(&message.UserCtrl{Event: &message.UserCtrlEventSetBufferLength{StreamID: c.streamID, LengthMs: 1000}})
		return c.await(func(cmd *command) bool {
			info.info = cmd.arg(1)
			return statusCode(cmd) == CodePlayStart
		})
	})
	if err != nil {
		return PlayInfo{}, fmt.Errorf("play %q: %w", withoutQuery(name), err)
	}
	c.idle = c.cfg.ReadTimeout
	return info, nil
}

// ReadTag returns the next audio, video or data tag of a play; it is the
// caller's to keep. io.EOF means that the stream ended; os.ErrDeadlineExceeded
// that nothing came for the read timeout.
func (c *Client) ReadTag() (media.Tag, error) {
	if t := c.held; t != nil {
		c.held = nil
		return t, nil
	}
	t, err := c.aggregate.next()
	for t == nil && err == nil {
		t, err = c.nextTag()
	}
	if err == nil || err == io.EOF {
		return t, err
	}
	return nil, fmt.Errorf("read played tag: %w", err)
}

func (c *Client) nextTag() (media.Tag, error) {
	m, err := c.readMessage()
	if err == io.EOF {
		return nil, fmt.Errorf("server closed the connection: %w", io.ErrUnexpectedEOF)
	}
	if err != nil {
		return nil, err
	}
	switch {
	case m.Type == chunk.TypeUserControl:
		if _, ok := userControl(m).(*message.UserCtrlEventStreamEOF); ok {
			return nil, io.EOF
		}
	case isCommand(m):
		cmd, err := c.parseCommand(m)
		if err != nil {
			return nil, err
		}
		if err := failure(&cmd); err != nil {
			return nil, err
		}
		switch statusCode(&cmd) {
		case CodePlayUnpublish, CodePlayComplete, CodePlayStop:
			return nil, io.EOF
		}
	default:
		return c.mediaTag(m)
	}
	return nil, nil
}

// Publish asks to publish under a name, which may have a query, and returns when
// the server has agreed. It ends with ctx or after the connect timeout. From
// then on the client reads the server's answers in a goroutine that Close ends.
func (c *Client) Publish(ctx context.Context, name string) error {
	err := c.within(ctx, func() error {
		c.sendCommand(chunk.StreamCommand, 0, "releaseStream", tidReleaseStream, amf.Value{}, amf.Str(name))
		c.sendCommand(chunk.StreamCommand, 0, "FCPublish", tidFCPublish, amf.Value{}, amf.Str(name))
		if err := c.awaitStream(); err != nil {
			return err
		}
		c.sendCommand(chunk.StreamStatus, c.streamID, "publish", tidStart, amf.Value{}, amf.Str(name), amf.Str("live"))
		return c.await(func(cmd *command) bool {
			c.started.info = cmd.arg(1)
			return statusCode(cmd) == CodePublishStart
		})
	})
	if err != nil {
		return fmt.Errorf("publish %q: %w", withoutQuery(name), err)
	}
	done := make(chan struct{})
	c.mu.Lock()
	c.done, c.name = done, name
	c.mu.Unlock()
	go func() { // awaited by Close
		defer close(done)
		c.err = c.watch()
	}()
	return nil
}

// Redirected returns a channel that gets where the server sends the publisher in
// mid-publish, with ClientConfig.Overlap. The publish goes on until the server ends it;
// its error is the redirect then.
func (c *Client) Redirected() <-chan *RedirectError { return c.redirected }

// Started returns what the server said when the publish started.
func (c *Client) Started() PlayInfo { return c.started }

// watch reads what a server says while media goes to it, until the connection
// ends or the server refuses to go on. It then closes the connection, which
// frees a writer that waits for a full socket.
func (c *Client) watch() error {
	defer c.nc.Close()
	var redirect *RedirectError
	for {
		t, err := c.nextTag()
		if errors.As(err, &redirect) && c.cfg.Overlap {
			select {
			case c.redirected <- redirect:
			default: // one is to be followed already
			}
			continue
		}
		if redirect != nil && err != nil && !refused(err) {
			err = redirect
		}
		if err == io.EOF {
			err = fmt.Errorf("server ended the stream: %w", io.ErrUnexpectedEOF)
		}
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		if t != nil {
			continue // a server that plays to its publisher: nothing asked for it
		}
	}
}

// Done returns a channel that is closed when a publish was ended by the server
// or the connection; Err says why then. It is nil before Publish.
func (c *Client) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done
}

// Err returns why Done was closed, nil while it is not.
func (c *Client) Err() error {
	done := c.Done()
	select {
	case <-done:
		return c.err
	default:
		return nil
	}
}

// batchKept is the largest buffer that WriteTags keeps for the next batch.
const batchKept = 256 << 10

// WriteTags sends tags in one write. An error is what the server said, if it
// said anything: a refusal or redirect that came since is returned here even
// though the tags could still be written.
func (c *Client) WriteTags(tags ...media.Tag) error {
	if err := c.Err(); err != nil {
		return err
	}
	b := c.AppendTags(c.batch[:0], tags...)
	c.batch = nil
	if cap(b) <= batchKept {
		c.batch = b
	}
	c.writing.Lock()
	err := c.write(b)
	if err == nil {
		err = c.writeOut()
	}
	c.writing.Unlock()
	if err != nil {
		return c.explain(err)
	}
	return nil
}

// explain returns the server's words for a write that failed, if there are any
// among what it sent last; else err.
func (c *Client) explain(err error) error {
	done := c.Done()
	if done == nil {
		return err
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(lastWords))
	<-done
	if refused(c.err) {
		return c.err
	}
	return fmt.Errorf("publish: %w", err)
}

// lastWords is the time that the answers of a dying connection are waited for.
const lastWords = 500 * time.Millisecond

// withSetDataFrame returns metadata in the form in which encoders send it.
func withSetDataFrame(t media.Tag) media.Tag {
	name := amf.Append(nil, amf.Str("@setDataFrame"))
	if len(name)+len(t.Body()) > media.MaxBodySize {
		return t
	}
	n := media.NewTag(media.Data, t.Time(), len(name)+len(t.Body()))
	copy(n.Body()[copy(n.Body(), name):], t.Body())
	return n
}

// Unpublish ends a publish properly: the server is told, and gets half a second
// to close the connection. Close must still be called.
func (c *Client) Unpublish() error {
	done := c.Done()
	if done == nil {
		return nil
	}
	c.sendCommand(chunk.StreamCommand, 0, "FCUnpublish", tidEnd, amf.Value{}, amf.Str(c.name))
	c.sendCommand(chunk.StreamCommand, 0, "deleteStream", 0, amf.Value{}, amf.Num(float64(c.streamID)))
	err := c.flush()
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok && err == nil {
		_ = half.CloseWrite() // a quick server has closed the connection already
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(lastWords))
	<-done
	if err != nil {
		return fmt.Errorf("unpublish: %w", err)
	}
	return nil
}

// Close closes the connection and waits for the goroutine of Publish.
func (c *Client) Close() error {
	err := c.nc.Close()
	if done := c.Done(); done != nil {
		<-done
	}
	return err
}
