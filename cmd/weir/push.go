package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp"
)

// maxRedirects is how many RTMP or HTTP redirects push and pull follow.
const maxRedirects = 3

func pushCommand() *cli.Command {
	return &cli.Command{
		Name:      "push",
		Usage:     "publish an FLV file over RTMP in real time",
		ArgsUsage: "FILE.flv rtmp[s]://HOST[:PORT]/APP/NAME[?QUERY]",
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "loop", Usage: "begin again at the end of the file, on a continuous timeline"},
			&cli.DurationFlag{Name: "duration", Usage: "stop after `TIME`; 0 plays the file to its end"},
		}, tlsFlags()...),
		Action: func(c *cli.Context) error {
			args, err := arguments(c, 2)
			if err != nil {
				return usage("weir push FILE.flv URL [--loop]: %w", err)
			}
			u, err := rtmp.ParseURL(args[1])
			if err != nil {
				return fail(exitUsage, err)
			}
			secure, err := tlsOf(c)
			if err != nil {
				return err
			}
			file, err := os.ReadFile(args[0])
			if err != nil {
				return fail(exitUsage, err)
			}
			if err := hasFrame(file); err != nil {
				return fail(exitUsage, fmt.Errorf("%s: %w", args[0], err))
			}
			ctx, cancel := within(c.Context, c.Duration("duration"))
			defer cancel()
			out := newProgress(c.App.Writer)
			p := pusher{
				open: func() io.Reader { return bytes.NewReader(file) },
				loop: c.Bool("loop"),
				tls:  secure,
				told: func(s pushState) { out.line("%s", s) },
				redirected: func(to string) {
					fmt.Fprintf(c.App.Writer, "redirected to %s\n", to)
				},
			}
			state, err := p.run(ctx, u)
			if state.Tags > 0 {
				out.end("%s", state)
			}
			return err
		},
	}
}

// hasFrame returns an error unless file begins as an FLV file and has a frame that
// is no decoder header: what is wrong with it should be known before a server is
// asked to take it.
func hasFrame(file []byte) error {
	r := flv.NewReader(bytes.NewReader(file), 0)
	for {
		t, err := r.ReadTag()
		if err == io.EOF {
			return errNoFrame
		}
		if err != nil {
			return err
		}
		if t.Kind() != media.Data && !media.Sniff(t.Kind(), t.Body()).IsHeader() {
			return nil
		}
	}
}

var errNoFrame = errors.New("the file has no audio and no video")

// arguments returns exactly n arguments. Flags may stand behind them, as in
// `weir push FILE URL --loop`, which the library takes for arguments.
func arguments(c *cli.Context, n int) ([]string, error) {
	var plain []string
	rest := c.Args().Slice()
	for len(rest) > 0 {
		if len(rest[0]) > 1 && rest[0][0] == '-' {
			used, err := lateFlag(c, rest)
			if err != nil {
				return nil, err
			}
			rest = rest[used:]
			continue
		}
		plain = append(plain, rest[0])
		rest = rest[1:]
	}
	if len(plain) != n {
		return nil, fmt.Errorf("want %s, got %s", count(n, "argument"), number(len(plain)))
	}
	return plain, nil
}

// count says how many things there are.
func count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return number(n) + " " + thing
}

func number(n int) string {
	if n == 0 {
		return "none"
	}
	return strconv.Itoa(n)
}

// lateFlag sets a flag that stands behind the arguments and returns how many
// words it took.
func lateFlag(c *cli.Context, words []string) (int, error) {
	name, value, assigned := bytes.Cut(bytes.TrimLeft([]byte(words[0]), "-"), []byte("="))
	for _, f := range c.Command.Flags {
		for _, n := range f.Names() {
			if n != string(name) {
				continue
			}
			if _, isBool := f.(*cli.BoolFlag); isBool && !assigned {
				return 1, setFlag(c, n, "true")
			}
			if assigned {
				return 1, setFlag(c, n, string(value))
			}
			if len(words) < 2 {
				return 0, fmt.Errorf("flag needs an argument: %s", words[0])
			}
			return 2, setFlag(c, n, words[1])
		}
	}
	return 0, fmt.Errorf("flag provided but not defined: %s", words[0])
}

// setFlag sets a flag; an error reads like that of a flag before the arguments.
func setFlag(c *cli.Context, name, value string) error {
	if err := c.Set(name, value); err != nil {
		return fmt.Errorf("invalid value %q for flag -%s: %w", value, name, err)
	}
	return nil
}

// within bounds a context by a duration, 0 for none.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// over reports whether the time of a context is over. The client's own deadline, which
// is the same, may be noticed before ctx has an error.
func over(ctx context.Context) bool {
	end, ok := ctx.Deadline()
	return ok && !time.Now().Before(end)
}

// pusher publishes an FLV file.
type pusher struct {
	open       func() io.Reader // the file from its beginning
	loop       bool
	tls        *tls.Config     // for rtmps; nil trusts the CAs of the system
	told       func(pushState) // about once a second; may be nil
	redirected func(to string) // may be nil
}

// pushState is how far a push has come.
type pushState struct {
	Time  time.Duration // media time sent
	Bytes int64
	Tags  int
	Loops int
}

// String is the progress line.
func (s pushState) String() string {
	rate := 0.0
	if s.Time > 0 {
		rate = float64(s.Bytes) * 8 / s.Time.Seconds() / 1000
	}
	text := fmt.Sprintf("sent %s, %d tags, %.0f kbit/s", s.Time.Round(10*time.Millisecond), s.Tags, rate)
	if s.Loops > 0 {
		text += fmt.Sprintf(", round %d", s.Loops+1)
	}
	return text
}

// run publishes until the file or the context ends, either of which is a success
// once the server has taken the stream.
func (p *pusher) run(ctx context.Context, u rtmp.URL) (pushState, error) {
	c, err := p.connect(ctx, u)
	if err != nil {
		if over(ctx) {
			return pushState{}, fail(exitConnect, fmt.Errorf("%s: no answer before --duration was over", u))
		}
		if ctx.Err() != nil {
			return pushState{}, nil
		}
		return pushState{}, err
	}
	defer c.Close()
	state, err := p.send(ctx, c)
	var coded cli.ExitCoder
	if errors.As(err, &coded) { // the file, not the connection
		return state, err
	}
	if err != nil {
		return state, fail(exitLost, fmt.Errorf("publish %s: %w", u.Public(), err))
	}
	if err := c.Unpublish(); err != nil && ctx.Err() == nil { // whoever was told to stop need not be heard
		return state, fail(exitLost, fmt.Errorf("publish %s: %w", u.Public(), err))
	}
	return state, nil
}

// connect asks to publish and follows redirects.
func (p *pusher) connect(ctx context.Context, u rtmp.URL) (*rtmp.Client, error) {
	for hops := 0; ; hops++ {
		cfg := rtmp.DefaultClientConfig()
		cfg.TLS = p.tls
		c, err := rtmp.Dial(ctx, u, cfg)
		if err == nil {
			if err = c.Publish(ctx, u.Name); err == nil {
				return c, nil
			}
			c.Close()
		}
		var redirect *rtmp.RedirectError
		if errors.As(err, &redirect) && hops < maxRedirects {
			next, err := redirect.Target(u)
			if err != nil {
				return nil, fail(exitRefused, fmt.Errorf("%s: %w", u.Public(), err))
			}
			if p.redirected != nil {
				p.redirected(redirect.URL)
			}
			u = next
			continue
		}
		return nil, connectFailure(u.Public(), err)
	}
}

// connectFailure gives an error of a set-up its exit code.
func connectFailure(url string, err error) error {
	var status *rtmp.StatusError
	var redirect *rtmp.RedirectError
	switch {
	case errors.As(err, &redirect):
		return fail(exitRefused, fmt.Errorf("%s: more than %d redirects, the last one to %s", url, maxRedirects, redirect.URL))
	case errors.As(err, &status):
		return fail(exitRefused, fmt.Errorf("%s: %w", url, err))
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return fail(exitConnect, fmt.Errorf("%s: cannot connect: %w", url, op.Err))
	}
	return fail(exitConnect, fmt.Errorf("%s: %w", url, err))
}

// maxBatch is how many tags are written at a time, in case that a file has many
// of the same time.
const maxBatch = 256

// send writes the file's tags when they are due, all that are due in one write.
func (p *pusher) send(ctx context.Context, c *rtmp.Client) (pushState, error) {
	var (
		state pushState
		due   []media.Tag
		told  = time.Now()
		clock pace
	)
	file := rounds{open: p.open, loop: p.loop}
	flush := func() error {
		if len(due) == 0 {
			return nil
		}
		err := c.WriteTags(due...)
		due = due[:0]
		return err
	}
	for {
		t, header, err := file.next()
		if err == io.EOF {
			return state, flush()
		}
		if err != nil {
			if err := flush(); err != nil {
				return state, err
			}
			return state, fail(exitFailed, err)
		}
		if !header {
			wait := clock.until(t.Time())
			if wait > 0 || len(due) >= maxBatch {
				if err := flush(); err != nil {
					return state, err
				}
			}
			if stop, err := pause(ctx, c, wait); stop || err != nil {
				return state, err
			}
			state.Time = clock.played
		}
		due = append(due, t)
		state.Tags++
		state.Bytes += int64(len(t))
		state.Loops = file.done
		if p.told != nil && time.Since(told) >= time.Second {
			told = time.Now()
			p.told(state)
		}
	}
}

// pause waits for d; stop is true when ctx has ended.
func pause(ctx context.Context, c *rtmp.Client, d time.Duration) (stop bool, err error) {
	if d <= 0 {
		return ctx.Err() != nil, nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false, nil
	case <-ctx.Done():
		return true, nil
	case <-c.Done():
		return true, c.Err()
	}
}

// pace says when a frame is due, by the time of the first one.
type pace struct {
	begun  time.Time
	first  uint32
	played time.Duration // media time that is due so far
}

func (p *pace) until(ms uint32) time.Duration {
	if p.begun.IsZero() {
		p.begun, p.first = time.Now(), ms
	}
	at := time.Duration(int32(ms-p.first)) * time.Millisecond
	p.played = max(p.played, at)
	return time.Until(p.begun.Add(at))
}

// rounds reads a file, again and again if loop is set, on one timeline. Headers
// come with the first round only.
type rounds struct {
	open func() io.Reader
	loop bool
	done int // rounds read

	r      *flv.Reader
	base   uint32 // added to the file's times
	first  uint32 // time of the file's first frame
	frames int    // of this round
	last   [2]uint32
	step   [2]uint32 // between the last two frames: audio, video
}

// next returns the next tag and whether it is a header, and io.EOF at the end.
func (r *rounds) next() (t media.Tag, header bool, err error) {
	for {
		if r.r == nil {
			r.r = flv.NewReader(r.open(), 0)
		}
		t, err := r.r.ReadTag()
		if err == io.EOF {
			if !r.loop {
				return nil, false, io.EOF
			}
			if r.frames == 0 {
				return nil, false, errNoFrame
			}
			r.again()
			continue
		}
		if err != nil {
			return nil, false, fmt.Errorf("read FLV file: %w", err)
		}
		header := media.Sniff(t.Kind(), t.Body()).IsHeader()
		if header && r.done > 0 {
			continue
		}
		if !header {
			r.note(t)
		}
		t.SetTime(t.Time() + r.base)
		return t, header, nil
	}
}

func (r *rounds) note(t media.Tag) {
	k := 0
	switch t.Kind() {
	case media.Video:
		k = 1
	case media.Data:
		return
	}
	if r.frames == 0 {
		r.first = t.Time()
	} else if d := t.Time() - r.last[k]; r.last[k] != 0 && int32(d) > 0 {
		r.step[k] = d
	}
	r.last[k] = t.Time()
	r.frames++
}

// again begins the next round where the video, or else the audio, ended.
func (r *rounds) again() {
	k := 1
	if r.last[1] == 0 {
		k = 0
	}
	r.base += r.last[k] + r.step[k] - r.first
	r.r, r.frames, r.last = nil, 0, [2]uint32{}
	r.done++
}
