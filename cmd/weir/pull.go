package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/urfave/cli/v2"

	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp"
)

func pullCommand() *cli.Command {
	return &cli.Command{
		Name:      "pull",
		Usage:     "play a stream over RTMP or HTTP-FLV and show how it comes in",
		ArgsUsage: "rtmp[s]://HOST/APP/NAME | http[s]://HOST:PORT/APP/NAME.flv",
		Flags: append([]cli.Flag{
			&cli.DurationFlag{Name: "duration", Usage: "stop after `TIME`; 0 plays to the end of the stream"},
			&cli.StringFlag{Name: "out", Usage: "write the stream to `FILE.flv`"},
		}, tlsFlags()...),
		Action: func(c *cli.Context) error {
			args, err := arguments(c, 1)
			if err != nil {
				return usage("weir pull URL [--duration TIME] [--out FILE.flv]: %w", err)
			}
			secure, err := tlsOf(c)
			if err != nil {
				return err
			}
			ctx, cancel := within(c.Context, c.Duration("duration"))
			defer cancel()
			p := puller{out: c.App.Writer, tls: secure}
			if name := c.String("out"); name != "" {
				f, err := os.Create(name)
				if err != nil {
					return fail(exitUsage, err)
				}
				p.file = flv.NewWriter(f)
				err = p.run(ctx, args[0])
				return errors.Join(err, f.Close())
			}
			return p.run(ctx, args[0])
		},
	}
}

// tagSource is a stream that is being played.
type tagSource interface {
	// ReadTag returns the next tag, io.EOF at the end.
	ReadTag() (media.Tag, error)
	// EOF says what io.EOF means.
	EOF() string
	Close() error
}

// puller plays one stream.
type puller struct {
	out  io.Writer
	file *flv.Writer // may be nil
	tls  *tls.Config // for rtmps and https
}

// run plays until the stream or the context ends, either of which is a success
// once a frame has come.
func (p *puller) run(ctx context.Context, target string) error {
	src, err := p.open(ctx, target)
	if err != nil {
		if over(ctx) {
			return fail(exitConnect, fmt.Errorf("%s: no answer before --duration was over", target))
		}
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	stop := context.AfterFunc(ctx, func() { src.Close() })
	defer stop()
	show := newProgress(p.out)
	var w watch
	for {
		t, err := src.ReadTag()
		var redirect *rtmp.RedirectError
		switch {
		case err == nil:
		case ctx.Err() != nil:
			src.Close()
			if w.frames == 0 && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fail(exitConnect, fmt.Errorf("%s: no frame came before --duration was over", target))
			}
			show.end("%s", w.String())
			return nil
		case errors.Is(err, io.EOF):
			src.Close()
			if w.frames == 0 {
				return fail(exitRefused, fmt.Errorf("%s: the stream ended before a frame came", target))
			}
			show.end("%s", w.String())
			fmt.Fprintln(p.out, src.EOF())
			return nil
		case errors.As(err, &redirect) && w.frames == 0: // RTMP 302 may come after the start
			src.Close()
			return p.follow(ctx, target, redirect)
		default:
			src.Close()
			if w.frames == 0 {
				return unplayed(target, err)
			}
			show.end("%s", w.String())
			return fail(exitLost, fmt.Errorf("%s: %w", target, err))
		}
		if p.file != nil {
			if err := p.file.WriteTag(t); err != nil {
				src.Close()
				return err
			}
		}
		if w.saw(t) {
			show.line("%s", w.String())
		}
	}
}

// unplayed gives an error that came before the first frame its exit code.
func unplayed(target string, err error) error {
	code := exitLost
	var status *rtmp.StatusError
	switch {
	case errors.As(err, &status):
		code = exitRefused
	case errors.Is(err, os.ErrDeadlineExceeded):
		code = exitConnect
	}
	return fail(code, fmt.Errorf("%s: no frame came: %w", target, err))
}

// hops counts the redirects of one pull in its context.
type hops struct{}

func (p *puller) follow(ctx context.Context, target string, r *rtmp.RedirectError) error {
	n, _ := ctx.Value(hops{}).(int)
	if n >= maxRedirects {
		return connectFailure(target, r)
	}
	u, err := rtmp.ParseURL(target)
	if err != nil {
		return fail(exitUsage, err)
	}
	if u, err = r.Target(u); err != nil {
		return fail(exitRefused, fmt.Errorf("%s: %w", target, err))
	}
	next := u.At()
	fmt.Fprintf(p.out, "redirected to %s\n", next)
	return p.run(context.WithValue(ctx, hops{}, n+1), next)
}

func (p *puller) open(ctx context.Context, target string) (tagSource, error) {
	u, err := url.Parse(target)
	switch {
	case err != nil:
		return nil, fail(exitUsage, err)
	case u.Scheme == "rtmp", u.Scheme == "rtmps":
		return p.openRTMP(ctx, target)
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, usage("%s: weir pull plays rtmp://HOST/APP/NAME and http://HOST:PORT/APP/NAME.flv, or rtmps:// and https://", target)
	case strings.HasSuffix(u.Path, ".flv"):
		return p.openFLV(ctx, target)
	}
	return nil, usage("%s: weir pull plays RTMP and HTTP-FLV (.flv)", target)
}

func (p *puller) openRTMP(ctx context.Context, target string) (tagSource, error) {
	u, err := rtmp.ParseURL(target)
	if err != nil {
		return nil, fail(exitUsage, err)
	}
	for n := 0; ; n++ {
		cfg := rtmp.DefaultClientConfig()
		cfg.ConnectTimeout = 15 * time.Second // an edge may wait for the publisher before it answers
		cfg.ReadTimeout = time.Minute         // a stream may wait for its publisher's return
		cfg.TLS = p.tls
		c, err := rtmp.Dial(ctx, u, cfg)
		if err == nil {
			if _, err = c.Play(ctx, u.Name); err == nil {
				return rtmpPlay{c}, nil
			}
			c.Close()
		}
		var redirect *rtmp.RedirectError
		if errors.As(err, &redirect) && n < maxRedirects {
			if u, err = redirect.Target(u); err != nil {
				return nil, fail(exitRefused, fmt.Errorf("%s: %w", target, err))
			}
			fmt.Fprintf(p.out, "redirected to %s\n", redirect.URL)
			continue
		}
		return nil, connectFailure(target, err)
	}
}

// rtmpPlay is a stream over RTMP, where a server says that a stream has ended.
type rtmpPlay struct{ *rtmp.Client }

// EOF says what the end of the tags means.
func (rtmpPlay) EOF() string { return "the stream has ended" }

// flvBody is a stream over HTTP-FLV.
type flvBody struct {
	*flv.Reader
	io.Closer
	marked bool // HTTP marks the end of the body, by chunks or by its length
}

// EOF is all that is known: without a mark a server that dies between two tags looks
// like a stream that ends (RFC 9112, section 6.3).
func (b flvBody) EOF() string {
	if b.marked {
		return "the stream has ended"
	}
	return "the server closed the connection; over HTTP-FLV that is how a stream ends, and how a server does"
}

func (p *puller) openFLV(ctx context.Context, target string) (tagSource, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig, transport.ForceAttemptHTTP2 = p.tls, false
	client := &http.Client{Transport: transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		switch {
		case len(via) > maxRedirects:
			return fmt.Errorf("more than %d redirects", maxRedirects)
		case via[0].URL.Scheme == "https" && req.URL.Scheme != "https":
			return fmt.Errorf("the server redirects to %s, which is out of TLS: not followed", req.URL)
		}
		fmt.Fprintf(p.out, "redirected to %s\n", req.URL)
		return nil
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, fail(exitUsage, err)
	}
	req.Header.Set("User-Agent", "weir/"+versionText())
	resp, err := client.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			return nil, fail(exitConnect, fmt.Errorf("%s: cannot connect: %w", target, op.Err))
		}
		var untrusted *tls.CertificateVerificationError
		var plain tls.RecordHeaderError
		if errors.As(err, &untrusted) || errors.As(err, &plain) {
			return nil, fail(exitConnect, err)
		}
		return nil, fail(exitRefused, err)
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		resp.Body.Close()
		return nil, fail(exitRefused, fmt.Errorf("%s: server answered %s: %s", target, resp.Status, strings.TrimSpace(string(text))))
	}
	marked := resp.ContentLength >= 0 || len(resp.TransferEncoding) > 0
	return flvBody{flv.NewReader(resp.Body, 0), resp.Body, marked}, nil
}

// watch is what a pull has seen.
type watch struct {
	begun  time.Time // when the first frame came
	first  uint32    // its time
	told   time.Time
	frames int
	bytes  int64
	codecs [2]media.Codec // audio, video
	size   string         // of the picture
	last   [2]uint32      // time of the last frame by kind
	seen   [2]bool
	gaps   int // steps back, and holes of more than maxHole

	// Since told.
	video  int
	recent int64
	early  time.Duration // least of all: how much a frame came later than its time says
	delay  time.Duration // of the last frame, against that

	line string
}

// maxHole is the hole in the times of one kind that counts as a gap.
const maxHole = 500 // ms

// saw notes a tag; it reports whether the line has changed, about once a second.
func (w *watch) saw(t media.Tag) bool {
	info := media.Sniff(t.Kind(), t.Body())
	w.bytes += int64(len(t))
	w.recent += int64(len(t))
	k := 0
	switch t.Kind() {
	case media.Data:
		return false
	case media.Video:
		k = 1
	}
	if info.Codec != media.Unknown {
		w.codecs[k] = info.Codec
	}
	if info.IsHeader() {
		if info.Codec == media.H264 && k == 1 {
			w.size = pictureSize(t.Body())
		}
		return false
	}
	now := time.Now()
	if w.frames++; w.frames == 1 {
		w.begun, w.first, w.told = now, t.Time(), now
	}
	if w.seen[k] {
		if step := int32(t.Time() - w.last[k]); step < 0 || step > maxHole {
			w.gaps++
		}
	}
	w.last[k], w.seen[k] = t.Time(), true
	if k == 1 {
		w.video++
	}
	late := now.Sub(w.begun) - time.Duration(int32(t.Time()-w.first))*time.Millisecond
	w.early = min(w.early, late) // the first frames come in a burst, out of the server's log
	w.delay = late - w.early
	if since := now.Sub(w.told); since >= time.Second {
		w.line = w.describe(since)
		w.told, w.video, w.recent = now, 0, 0
		return true
	}
	return false
}

func (w *watch) describe(since time.Duration) string {
	names := []string{}
	if w.codecs[1] != media.Unknown {
		names = append(names, strings.TrimSpace(w.codecs[1].String()+" "+w.size))
	}
	if w.codecs[0] != media.Unknown {
		names = append(names, w.codecs[0].String())
	}
	seconds := max(since.Seconds(), 0.001)
	return fmt.Sprintf("%s, %.0f kbit/s, %.1f fps, delay %d ms, gaps %d",
		strings.Join(names, " + "), float64(w.recent)*8/1000/seconds, float64(w.video)/seconds, w.delay.Milliseconds(), w.gaps)
}

// String is the line: how the stream comes in, and what has come.
func (w *watch) String() string {
	if w.frames == 0 {
		return "no frame has come"
	}
	line := w.line
	if line == "" {
		line = w.describe(time.Since(w.told))
	}
	return fmt.Sprintf("%s, %d frames in %s", line, w.frames, time.Since(w.begun).Round(100*time.Millisecond))
}

// pictureSize reads the size out of an AVC sequence header (ISO/IEC 14496-15,
// section 5.3.3.1), empty if it cannot.
func pictureSize(body []byte) string {
	// Legacy: 5 bytes of FLV before the record; enhanced: 1 byte and the FourCC, as well 5.
	const record = 5
	if len(body) < record+8 || body[record+5]&0x1f == 0 {
		return ""
	}
	n := int(body[record+6])<<8 | int(body[record+7])
	if len(body) < record+8+n {
		return ""
	}
	var sps h264.SPS
	if err := sps.Unmarshal(body[record+8 : record+8+n]); err != nil {
		return ""
	}
	return fmt.Sprintf("%dx%d", sps.Width(), sps.Height())
}
