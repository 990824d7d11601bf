package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/internal/clip"
	"weir/internal/media"
	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

// broadcast is the clip on the air: round after round, whoever listens or not.
type broadcast struct {
	tags  []media.Tag
	begun time.Time
}

func onAir(t testing.TB) *broadcast {
	t.Helper()
	tags, err := readTags(clip.Reader())
	if err != nil {
		t.Fatal(err)
	}
	return &broadcast{tags: tags, begun: time.Now()}
}

// feed sends the broadcast from the last key frame on, decoder headers first, until
// ctx ends or send fails.
func (b *broadcast) feed(ctx context.Context, send func(media.Tag) error) error {
	for _, t := range b.tags {
		if media.Sniff(t.Kind(), t.Body()).IsHeader() {
			if err := send(t); err != nil {
				return err
			}
		}
	}
	on := time.Since(b.begun)
	round, at := on/clip.Duration, on%clip.Duration
	first := 0
	for i, t := range b.tags {
		if time.Duration(t.Time())*time.Millisecond > at {
			break
		}
		if f, ok := frameOf(t); ok && f.key && f.kind == media.Video {
			first = i
		}
	}
	for ; ; round, first = round+1, 0 {
		for _, t := range b.tags[first:] {
			if _, ok := frameOf(t); !ok {
				continue
			}
			when := round*clip.Duration + time.Duration(t.Time())*time.Millisecond
			timer := time.NewTimer(time.Until(b.begun.Add(when)))
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			}
			if err := send(t.At(uint32(when.Milliseconds()))); err != nil {
				return err
			}
		}
	}
}

// srsOrigin is an SRS origin: its RTMP door and its API.
type srsOrigin struct {
	// Static.
	rtmp, api string
	ctx       context.Context
	cancel    context.CancelFunc
	serving   sync.WaitGroup
	listener  net.Listener
	server    *http.Server

	mu sync.Mutex
	// Guarded by mu.
	airs     *broadcast  // nil if it has no stream
	sendsTo  string      // RTMP address of the coworker that has it, empty for none
	plays    []string    // what it was asked for
	connects []amf.Value // the command objects of connect
	took     []media.Tag // what was published to it
	asked    []string    // calls of its API
	conns    map[net.Conn]struct{}
}

func startSRSOrigin(t testing.TB) *srsOrigin {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	api, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &srsOrigin{rtmp: l.Addr().String(), api: api.Addr().String(), listener: l, conns: map[net.Conn]struct{}{}}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	o.server = &http.Server{Handler: http.HandlerFunc(o.clusters)}
	o.serving.Go(func() { _ = o.server.Serve(api) })
	o.serving.Go(o.accept)
	t.Cleanup(o.die)
	return o
}

// die ends it as a crash does.
func (o *srsOrigin) die() {
	o.cancel()
	o.server.Close()
	o.listener.Close()
	o.mu.Lock()
	for c := range o.conns {
		c.Close()
	}
	o.mu.Unlock()
	o.serving.Wait()
}

// air makes it have the stream; send makes it redirect to a coworker.
func (o *srsOrigin) air(b *broadcast) { o.set(b, "") }
func (o *srsOrigin) send(to string)   { o.set(nil, to) }

// played returns what it was asked for so far.
func (o *srsOrigin) played() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.plays)
}

func (o *srsOrigin) set(b *broadcast, to string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.airs, o.sendsTo = b, to
}

// clusters answers as recorded: the same words whatever was asked, and HTTP 200 also
// for what it has not.
func (o *srsOrigin) clusters(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	o.mu.Lock()
	has := o.airs != nil
	o.asked = append(o.asked, r.Method+" "+r.RequestURI+" "+string(body))
	o.mu.Unlock()
	value := func(name string) string { // not escaped
		for pair := range strings.SplitSeq(r.URL.RawQuery, "&") {
			if v, ok := strings.CutPrefix(pair, name+"="); ok {
				return v
			}
		}
		return ""
	}
	origin := "null"
	if host, port, _ := net.SplitHostPort(o.rtmp); has && value("stream") == "demo" {
		origin = fmt.Sprintf(`{"ip":"%s","port":%s,"vhost":"%s","api":"%s","routers":["%s"]}`, host, port, value("vhost"), value("coworker"), value("coworker"))
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"code":0,"data":{"query":{"ip":"%s","vhost":"%s","app":"%s","stream":"%s"},"origin":%s}}`,
		value("ip"), value("vhost"), value("app"), value("stream"), origin)
}

func (o *srsOrigin) accept() {
	for {
		nc, err := o.listener.Accept()
		if err != nil {
			return
		}
		o.mu.Lock()
		o.conns[nc] = struct{}{}
		o.mu.Unlock()
		o.serving.Go(func() {
			defer func() {
				nc.Close()
				o.mu.Lock()
				delete(o.conns, nc)
				o.mu.Unlock()
			}()
			_ = o.serve(nc) // its end is for the client to notice
		})
	}
}

func (o *srsOrigin) serve(nc net.Conn) error {
	hello := make([]byte, 1+1536)
	if _, err := io.ReadFull(nc, hello); err != nil {
		return err
	}
	answer := append(slices.Clone(hello), hello[1:]...)
	if _, err := nc.Write(answer); err != nil {
		return err
	}
	if _, err := io.ReadFull(nc, hello[1:]); err != nil {
		return err
	}
	c := newSRSConn(nc)
	for {
		m, err := c.in.ReadMessage()
		if err != nil {
			return err
		}
		if m.Tag != nil {
			o.mu.Lock()
			o.took = append(o.took, m.Tag)
			o.mu.Unlock()
			continue
		}
		values, err := command(m)
		if err != nil {
			return err
		}
		if len(values) < 3 {
			continue
		}
		tid := values[1]
		switch name := values[0].Str; name {
		case "connect":
			err = o.connected(c, tid, values[2])
		case "createStream":
			err = c.call(3, 0, amf.Str("_result"), tid, amf.Value{}, amf.Num(1))
		case "play":
			return o.play(c, values[3].Text())
		case "publish":
			status := amf.Obj(amf.P("level", amf.Str("status")), amf.P("code", amf.Str("NetStream.Publish.Start")),
				amf.P("description", amf.Str("Started publishing stream.")), amf.P("clientid", amf.Str("ASAICiss")))
			err = c.call(5, 1, amf.Str("onStatus"), amf.Num(0), amf.Value{}, status)
		default:
			if tid.Num != 0 {
				err = c.call(3, 0, amf.Str("_result"), tid, amf.Value{}, amf.Value{Kind: amf.Undefined})
			}
		}
		if err != nil {
			return err
		}
	}
}

func (o *srsOrigin) connected(c *srsConn, tid, object amf.Value) error {
	o.mu.Lock()
	o.connects = append(o.connects, object)
	o.mu.Unlock()
	window := binary.BigEndian.AppendUint32(nil, srsWindow)
	for _, err := range []error{
		c.send(2, chunk.TypeWindowAckSize, 0, window),
		c.send(2, chunk.TypeSetPeerBandwidth, 0, append(window, 2)),
		c.setChunkSize(),
		c.call(3, 0, amf.Str("_result"), tid,
			amf.Obj(amf.P("fmsVer", amf.Str("FMS/3,5,3,888")), amf.P("capabilities", amf.Num(127)), amf.P("mode", amf.Num(1))),
			amf.Obj(amf.P("level", amf.Str("status")), amf.P("code", amf.Str("NetConnection.Connect.Success")),
				amf.P("description", amf.Str("Connection succeeded")), amf.P("objectEncoding", amf.Num(0)),
				amf.P("data", amf.Value{Kind: amf.ECMAArray, Props: []amf.Property{
					amf.P("version", amf.Str("3,5,3,888")), amf.P("srs_sig", amf.Str("SRS")), amf.P("srs_version", amf.Str("7.0.18")),
				}}))),
		c.call(3, 0, amf.Str("onBWDone"), amf.Num(0), amf.Value{}),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// play accepts whatever is asked for. Then it redirects, sends the stream, or sends
// nothing: of a stream that nobody has, an SRS says so in no way.
func (o *srsOrigin) play(c *srsConn, name string) error {
	o.mu.Lock()
	airs, to := o.airs, o.sendsTo
	o.plays = append(o.plays, name)
	o.mu.Unlock()
	status := func(code, text string) amf.Value {
		return amf.Obj(amf.P("level", amf.Str("status")), amf.P("code", amf.Str(code)), amf.P("description", amf.Str(text)),
			amf.P("details", amf.Str("stream")), amf.P("clientid", amf.Str("ASAICiss")))
	}
	for _, err := range []error{
		c.send(2, chunk.TypeUserControl, 0, []byte{0, 0, 0, 0, 0, 1}),
		c.call(5, 1, amf.Str("onStatus"), amf.Num(0), amf.Value{}, status("NetStream.Play.Reset", "Playing and resetting stream.")),
		c.call(5, 1, amf.Str("onStatus"), amf.Num(0), amf.Value{}, status("NetStream.Play.Start", "Started playing stream.")),
		c.send(5, chunk.TypeData, 1, amf.Append(nil, amf.Str("|RtmpSampleAccess"), amf.Bool(true), amf.Bool(true))),
	} {
		if err != nil {
			return err
		}
	}
	stream, _, _ := strings.Cut(name, "?")
	switch {
	case to != "":
		if _, err := c.Write(redirectMessage("rtmp://"+to+"/live", "rtmp://"+to+"/live/"+name)); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
		_, err := c.in.ReadMessage() // whatever it is
		return err
	case airs != nil && strings.TrimSuffix(stream, ".flv") == "demo":
		return airs.feed(o.ctx, c.tag)
	}
	for { // until the player leaves
		if _, err := c.in.ReadMessage(); err != nil {
			return err
		}
	}
}
