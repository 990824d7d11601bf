package chaos

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"weir/internal/chaos/model"
	"weir/internal/chaos/wire"
	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp"
)

// player plays one stream after the other.
type player struct {
	// Static.
	r        *run
	rand     *rand.Rand // of run's goroutine
	faithful bool       // never leaves a stream by itself
	edges    []nodeAddr
	origins  []nodeAddr
}

// nodeAddr is a node with the addresses of its doors.
type nodeAddr struct{ node, rtmp, http string }

func (p *player) run(ctx context.Context) {
	rest(ctx, between(p.rand, 0, 2*time.Second))
	for ctx.Err() == nil {
		p.play(ctx, p.choose())
		rest(ctx, between(p.rand, 50*time.Millisecond, 500*time.Millisecond))
	}
}

// choice is what is played, where, how and for how long.
type choice struct {
	at     nodeAddr
	name   string
	number int // in the marks
	http   bool
	stay   time.Duration // 0: for ever
}

func (p *player) choose() choice {
	names := p.r.streams
	c := choice{at: pick(p.rand, p.edges), http: p.rand.IntN(2) == 0}
	c.number = p.rand.IntN(len(names))
	c.name = names[c.number]
	if p.faithful {
		if n := p.rand.IntN(p.r.cfg.Streams); p.r.cfg.contested(c.number) {
			c.number, c.name = n, names[n]
		}
		return c
	}
	c.stay = between(p.rand, 500*time.Millisecond, 8*time.Second)
	switch p.rand.IntN(12) {
	case 0:
		c.at = pick(p.rand, p.origins)
	case 1:
		c.name = streamAbsent
	case 2:
		c.name = streamCircle
	case 3:
		c.name = streamSelf
	}
	return c
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// tags is a stream that is being played.
type tags interface {
	ReadTag() (media.Tag, error)
	Close() error
}

// silence is after which time without a byte a player gives up.
const silence = 12 * time.Second

// play is one request and what comes of it.
func (p *player) play(ctx context.Context, c choice) {
	rec := p.r.rec
	conn := p.r.nextConn()
	protocol, open := "rtmp", p.openRTMP
	if c.http {
		protocol, open = "http-flv", p.openFLV
	}
	rec.event(model.Event{Kind: model.KindPlay, Conn: conn, Stream: c.name, Node: c.at.node, Ask: &model.Ask{Protocol: protocol}})
	source, err := open(ctx, c)
	end, text := &model.End{Why: "left"}, ""
	if err == nil {
		rec.event(model.Event{Kind: model.KindPlaying, Conn: conn})
		err = p.watch(ctx, conn, c, source)
		source.Close()
	}
	if err != nil {
		end, text = endOf(ctx, err)
		var refused *httpAnswer
		switch {
		case errors.As(err, &refused):
			end, text = refused.end()
		case end.Why == "lost" && errors.Is(err, os.ErrDeadlineExceeded):
			end.Why = "silent"
		}
	}
	rec.event(model.Event{Kind: model.KindEnd, Conn: conn, End: end, Text: text})
}

// watch reads until the player leaves, which is no error, or is made to leave.
func (p *player) watch(ctx context.Context, conn int, c choice, source tags) error {
	w := witness{conn: conn, run: p.r.id, stream: uint32(c.number), emit: p.r.rec.at}
	defer w.flush()
	if c.stay > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.stay)
		defer cancel()
	}
	stop := context.AfterFunc(ctx, func() { source.Close() })
	defer stop()
	for {
		t, err := source.ReadTag()
		if ctx.Err() != nil {
			return nil
		}
		if err == io.EOF {
			return errors.New("the stream has ended")
		}
		if err != nil {
			return err
		}
		w.tag(t, p.r.rec.ms())
	}
}

func (p *player) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return p.r.net.Host(hostViewers).DialContext(wire.WithUserTimeout(ctx, givenUp), network, addr)
}

// patience is how long a request may take before the player gives up: longer
// than is promised.
func (p *player) patience() time.Duration {
	return 2 * time.Duration(p.r.cfg.Bounds.Answer) * time.Millisecond
}

func (p *player) openRTMP(ctx context.Context, c choice) (tags, error) {
	cfg := rtmp.DefaultClientConfig()
	cfg.ConnectTimeout, cfg.ReadTimeout, cfg.DialContext = p.patience(), silence, p.dial
	u := rtmp.URL{Addr: c.at.rtmp, TcURL: "rtmp://" + c.at.rtmp + "/" + app, App: app, Name: c.name}
	client, err := rtmp.Dial(ctx, u, cfg)
	if err != nil {
		return nil, err
	}
	if _, err := client.Play(ctx, u.Name); err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// httpAnswer is an answer that is not 200.
type httpAnswer struct {
	status   int
	location string
	body     string
}

func (a *httpAnswer) Error() string { return fmt.Sprintf("HTTP %d: %s", a.status, a.body) }

func (a *httpAnswer) end() (*model.End, string) {
	switch {
	case a.status/100 == 3 && a.location != "":
		return &model.End{Why: "redirected", Code: a.location}, ""
	case strings.TrimSpace(a.body) == "":
		return &model.End{Why: "refused"}, "an empty answer of status " + strconv.Itoa(a.status)
	}
	return &model.End{Why: "refused", Code: "HTTP " + strconv.Itoa(a.status)}, strings.TrimSpace(a.body)
}

// flvSource is a stream over HTTP.
type flvSource struct {
	*flv.Reader
	net.Conn
}

func (p *player) openFLV(ctx context.Context, c choice) (tags, error) {
	ctx, cancel := context.WithTimeout(ctx, p.patience())
	defer cancel()
	conn, err := p.dial(ctx, "tcp", c.at.http)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	resp, err := askFLV(conn, c)
	if err != nil || !stop() {
		conn.Close()
		return nil, errors.Join(err, ctx.Err())
	}
	return flvSource{flv.NewReader(resp.Body, 0), conn}, nil
}

// askFLV sends a request and returns an answer with a stream in it.
func askFLV(conn net.Conn, c choice) (*http.Response, error) {
	if _, err := fmt.Fprintf(conn, "GET /%s/%s.flv HTTP/1.1\r\nHost: %s\r\nUser-Agent: weir-chaos\r\n\r\n", app, c.name, c.at.http); err != nil {
		return nil, fmt.Errorf("send request: %w", err)
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(patient{conn}, 16<<10), nil)
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	return nil, &httpAnswer{resp.StatusCode, resp.Header.Get("Location"), string(body)}
}

// patient reads with a deadline of its own for each read.
type patient struct{ net.Conn }

func (c patient) Read(p []byte) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(silence))
	return c.Conn.Read(p)
}
