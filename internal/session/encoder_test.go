package session

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"weir/internal/media"
	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

// encoder is an RTMP client that says what it is told to, without waiting for
// answers, of which it throws away all.
type encoder struct {
	t   *testing.T
	nc  net.Conn
	tid float64
}

// newEncoder shakes hands and connects to the app "live".
func newEncoder(t *testing.T, nc net.Conn, more ...amf.Property) *encoder {
	t.Helper()
	e := &encoder{t: t, nc: nc}
	_ = nc.SetDeadline(time.Now().Add(patience))
	hello := make([]byte, 1+1536)
	hello[0] = 3
	e.write(hello)
	answer := make([]byte, 1+2*1536)
	if _, err := io.ReadFull(nc, answer); err != nil {
		t.Fatal(err)
	}
	e.write(answer[1 : 1+1536])
	e.call(0, "connect", amf.Obj(append([]amf.Property{amf.P("app", amf.Str("live")), amf.P("tcUrl", amf.Str("rtmp://127.0.0.1/live"))}, more...)...))
	return e
}

func (e *encoder) write(b []byte) {
	e.t.Helper()
	if _, err := e.nc.Write(b); err != nil {
		e.t.Fatal(err)
	}
}

func (e *encoder) call(streamID uint32, name string, args ...amf.Value) {
	e.t.Helper()
	e.tid++
	p := amf.Append(amf.Append(nil, amf.Str(name), amf.Num(e.tid)), args...)
	e.write(chunk.AppendMessage(nil, chunk.StreamCommand, chunk.TypeCommand, streamID, 0, p, chunk.DefaultSize))
}

// command sends createStream and a command on the stream.
func (e *encoder) command(name, stream string) {
	e.t.Helper()
	e.call(0, "createStream", amf.Value{})
	e.call(1, name, amf.Value{}, amf.Str(stream), amf.Str("live"))
}

// publish begins a publish and waits for its start.
func (e *encoder) publish(name string) {
	e.t.Helper()
	e.command("publish", name)
	e.await("NetStream.Publish.Start")
}

func (e *encoder) unpublish() {
	e.t.Helper()
	e.call(1, "closeStream", amf.Value{})
	e.await("NetStream.Unpublish.Success")
}

// await reads until a text was seen.
func (e *encoder) await(text string) {
	e.t.Helper()
	var seen []byte
	buf := make([]byte, 4096)
	for !bytes.Contains(seen, []byte(text)) {
		n, err := e.nc.Read(buf)
		if err != nil {
			e.t.Fatalf("await %s: %v after %q", text, err, seen)
		}
		seen = append(seen, buf[:n]...)
	}
}

func (e *encoder) send(t media.Tag) {
	e.t.Helper()
	e.write(chunk.AppendMedia(nil, t, 1, chunk.DefaultSize))
}
