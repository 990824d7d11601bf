package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp"
	"weir/internal/session"
	"weir/internal/vhost"
)

// source is an upstream that was asked for a stream and is sending it.
type source interface {
	// ReadTag returns io.EOF when the upstream said that the stream has ended,
	// and any other error when the connection did.
	ReadTag() (media.Tag, error)
	// Gone lets the memory of a tag of ReadTag be used again (see media.Slab.Gone).
	Gone(t media.Tag, unused bool)
	Close() error
}

// errRedirect is a redirect that an upstream answered with.
type errRedirect struct {
	to    vhost.Upstream
	epoch uint64 // of the ownership there; 0 if the upstream does not say
}

func (e *errRedirect) Error() string { return "redirected to " + e.to.String() }

// errGone says that the upstream does not have the stream.
var errGone = errors.New("upstream does not have the stream")

// newDialer returns what upstreams are connected to by. A machine that answers
// nothing any more, whether something is sent to it or not, is found dead by TCP.
func newDialer(cfg PullConfig) *net.Dialer {
	return &net.Dialer{
		Timeout: cfg.ConnectTimeout,
		// Two seconds and more of silence, and three questions in the rest.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: cfg.DeadAfter - 3*(cfg.DeadAfter/5), Interval: cfg.DeadAfter / 5, Count: 3},
		Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				// Without it the dead are found by the timeouts of reads and writes.
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(cfg.DeadAfter.Milliseconds()))
			})
		},
	}
}

// pulled is a source with what is known about it.
type pulled struct {
	source
	epoch  uint64          // of the stream's ownership; 0 if the upstream does not say
	from   string          // URL without query, or "worker 2"
	addr   string          // host:port of an upstream, empty for a worker
	worker int             // index of the worker; noWorker for an upstream
	follow func(beat beat) // makes an upstream be read with the beat of the players; nil of a worker, whose sends have it
}

// noWorker stands for an upstream where a worker could stand.
const noWorker = -1

// dial asks one upstream for a stream.
func (e *Edge) dial(ctx context.Context, up vhost.Upstream, t vhost.Target, via string) (pulled, error) {
	if up.Scheme == "http" {
		return e.dialFLV(ctx, up, t, via)
	}
	return e.dialRTMP(ctx, up, t, via)
}

func (e *Edge) dialRTMP(ctx context.Context, up vhost.Upstream, t vhost.Target, via string) (pulled, error) {
	u := rtmpURL(up, t)
	cfg := rtmp.DefaultClientConfig()
	cfg.ConnectTimeout, cfg.ReadTimeout = e.cfg.Pull.ConnectTimeout, e.cfg.Pull.ReadTimeout
	cfg.Node, cfg.Via = e.node, via
	var conn *beatConn
	cfg.DialContext = e.dialer(func(c *beatConn) { conn = c })
	c, err := rtmp.Dial(ctx, u, cfg)
	if err != nil {
		return pulled{}, rtmpError(err)
	}
	info, err := c.Play(ctx, u.Name)
	if err != nil {
		c.Close()
		return pulled{}, rtmpError(err)
	}
	epoch, _ := strconv.ParseUint(info.Text(rtmp.InfoEpoch), 10, 64)
	return pulled{source: rtmpSource{c}, epoch: epoch, from: up.String() + "/" + t.Key.Path(), addr: up.Addr, worker: noWorker, follow: conn.follow}, nil
}

// rtmpURL returns where a stream is at an upstream. Its query is the one that
// the first player or the publisher came with.
func rtmpURL(up vhost.Upstream, t vhost.Target) rtmp.URL {
	name := t.Key.Name
	if q := t.KeptQuery(); q != "" {
		name += "?" + q
	}
	return rtmp.URL{Addr: up.Addr, TcURL: "rtmp://" + up.Addr + "/" + t.Key.App, App: t.Key.App, Name: name}
}

type rtmpSource struct{ *rtmp.Client }

func (s rtmpSource) ReadTag() (media.Tag, error) {
	t, err := s.Client.ReadTag()
	if err != nil {
		err = rtmpError(err)
	}
	return t, err
}

// rtmpError translates what an RTMP server said.
func rtmpError(err error) error {
	var r *rtmp.RedirectError
	if errors.As(err, &r) && !r.TLS { // upstream is spoken to without TLS
		return &errRedirect{to: vhost.Upstream{Scheme: "rtmp", Addr: r.Addr}, epoch: r.Epoch}
	}
	var s *rtmp.StatusError
	switch {
	case !errors.As(err, &s):
	case s.Code == rtmp.CodePlayNotFound:
		return fmt.Errorf("%w: %s", errGone, s.Description)
	case s.Description == circleText:
		return fmt.Errorf("%w: server answered %s", errCircle, s.Code)
	}
	return err
}

// dialFLV pulls over HTTP-FLV. Redirects are handed to the caller, which counts
// them and knows where the pull has been.
func (e *Edge) dialFLV(ctx context.Context, up vhost.Upstream, t vhost.Target, via string) (pulled, error) {
	var conn *beatConn
	dial := e.dialer(func(c *beatConn) { conn = c })
	s, h, err := requestFLV(ctx, func(ctx context.Context) (net.Conn, error) { return dial(ctx, "tcp", up.Addr) }, flvRequest{
		url:     (&url.URL{Scheme: "http", Host: up.Addr, Path: "/" + t.Key.Path() + ".flv", RawQuery: t.KeptQuery()}).String(),
		node:    e.node,
		via:     via,
		answer:  e.cfg.Pull.ConnectTimeout,
		silence: e.cfg.Pull.ReadTimeout,
	})
	if err != nil {
		return pulled{}, err
	}
	return pulled{source: s, epoch: epochOf(h), from: up.String() + "/" + t.Key.Path(), addr: up.Addr, worker: noWorker, follow: conn.follow}, nil
}

// flvRequest is one GET of a stream.
type flvRequest struct {
	url       string
	node, via string
	epoch     uint64        // the latest that is known; for other workers
	answer    time.Duration // for the response head
	silence   time.Duration // between two reads
}

// flvSource reads FLV from a connection of its own.
type flvSource struct {
	*flv.Reader
	body io.Closer
	stop func()
}

// requestFLV asks for a stream over a connection that dial makes. A context
// that ends later closes the source.
func requestFLV(ctx context.Context, dial func(context.Context) (net.Conn, error), r flvRequest) (*flvSource, http.Header, error) {
	raw, err := dial(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("pull %s: %w", withoutQuery(r.url), err)
	}
	conn := &patientConn{Conn: raw}
	conn.silence.Store(int64(r.answer))
	ctx, cancel := context.WithCancel(ctx)
	transport := &http.Transport{
		DialContext:        func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives:  true,
		DisableCompression: true,
		ReadBufferSize:     16 << 10,
	}
	stop := func() { cancel(); raw.Close() }
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		stop()
		return nil, nil, err
	}
	req.Header.Set("User-Agent", "weir")
	req.Header.Set(session.HeaderNode, r.node)
	req.Header.Set(session.HeaderVia, r.via)
	if r.epoch != 0 {
		req.Header.Set(session.HeaderEpoch, strconv.FormatUint(r.epoch, 10))
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		stop()
		return nil, nil, fmt.Errorf("pull %s: %w", withoutQuery(r.url), err)
	}
	if err := flvStatus(resp); err != nil {
		resp.Body.Close()
		stop()
		return nil, nil, err
	}
	conn.silence.Store(int64(r.silence))
	return &flvSource{Reader: flv.NewReader(resp.Body, 0), body: resp.Body, stop: stop}, resp.Header, nil
}

// epochOf returns the epoch that a node's answer says, 0 if it says none.
func epochOf(h http.Header) uint64 {
	epoch, _ := strconv.ParseUint(h.Get(session.HeaderEpoch), 10, 64)
	return epoch
}

func withoutQuery(u string) string {
	u, _, _ = strings.Cut(u, "?")
	return u
}

func flvStatus(resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		to, err := resp.Location()
		if err != nil || to.Scheme != "http" || to.Host == "" {
			return fmt.Errorf("redirected to %q, which is no http URL", resp.Header.Get("Location"))
		}
		addr := to.Host
		if to.Port() == "" {
			addr = net.JoinHostPort(to.Hostname(), "80")
		}
		return &errRedirect{to: vhost.Upstream{Scheme: "http", Addr: addr}, epoch: epochOf(resp.Header)}
	case http.StatusNotFound:
		return errGone
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxWords))
	return failure(resp, body)
}

// maxWords is how much of an upstream's words goes into an error, in bytes.
const maxWords = 256

// failure returns what an upstream said that did not give what was asked for.
func failure(resp *http.Response, body []byte) error {
	text := strings.TrimSpace(string(body[:min(len(body), maxWords)]))
	if strings.HasPrefix(text, circleText) || strings.HasPrefix(text, errCircle.Error()) { // a node, or another worker
		return fmt.Errorf("%w: upstream answered %s", errCircle, resp.Status)
	}
	return fmt.Errorf("upstream answered %s: %s", resp.Status, text)
}

// ReadTag returns the next tag; io.EOF only after the mark that a weir node ends
// a stream with, because a closed connection alone says nothing about the stream;
// an *errRedirect after the mark that another node has it now.
func (s *flvSource) ReadTag() (media.Tag, error) {
	t, err := s.Reader.ReadTag()
	switch {
	case err == io.EOF:
		return nil, io.ErrUnexpectedEOF
	case err == nil && media.IsEndMark(t):
		return nil, io.EOF
	case err == nil:
		if addr, epoch, ok := media.MovedTo(t); ok {
			return nil, &errRedirect{to: vhost.Upstream{Scheme: "http", Addr: addr}, epoch: epoch}
		}
	}
	return t, err
}

func (s *flvSource) Close() error {
	s.stop()
	return s.body.Close()
}

// patientConn gives every read a time limit.
type patientConn struct {
	net.Conn
	silence atomic.Int64 // nanoseconds
}

func (c *patientConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(time.Duration(c.silence.Load()))); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}
