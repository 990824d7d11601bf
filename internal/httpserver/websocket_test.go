package httpserver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/valyala/fasthttp"
)

const handshake = "GET /a.flv HTTP/1.1\nHost: h:80\nUpgrade: WebSocket\nConnection: keep-alive, Upgrade\n" +
	"Sec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n"

func TestWebSocketHandshake(t *testing.T) {
	n := start(t, setup{
		cfg: func(c *Config) { c.CORSOrigins = []string{"https://good.example"} },
		handler: func(s *Server, ctx *fasthttp.RequestCtx) {
			s.TakeoverWebSocket(ctx, func(conn net.Conn) { conn.Close() })
		},
	})
	f := func(request string, wants ...string) {
		t.Helper()
		contains(t, n.exchange(request), wants...)
	}
	// The example of RFC 6455, section 1.3.
	f(handshake+"\n", "HTTP/1.1 101 Switching Protocols\r\n", "Upgrade: websocket\r\n", "Connection: Upgrade\r\n",
		"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n")
	f(handshake+"Origin: https://good.example\n\n", "HTTP/1.1 101 ")
	f(handshake+"Origin: http://h:80\n\n", "HTTP/1.1 101 ") // a page of this host
	f(handshake+"Origin: https://evil.example\n\n", "HTTP/1.1 403 ")
	f(handshake+"Origin: null\n\n", "HTTP/1.1 403 ")

	end := "\n"
	f("GET / HTTP/1.1\nHost: h\n"+end, "HTTP/1.1 400 ", "not a WebSocket handshake")
	f(strings.Replace(handshake, "HTTP/1.1", "HTTP/1.0", 1)+end, " 400 ", "Connection: close\r\n")
	f(strings.Replace(handshake, "GET", "HEAD", 1)+end, "HTTP/1.1 400 ")
	f(strings.Replace(handshake, ": 13", ": 8", 1)+end, "HTTP/1.1 426 ", "Sec-WebSocket-Version: 13\r\n")
	f(strings.Replace(handshake, "dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=", 1)+end, "HTTP/1.1 400 ", "16 bytes")
	f(strings.Replace(handshake, "dGhlIHNhbXBsZSBub25jZQ==", "?", 1)+end, "HTTP/1.1 400 ", "16 bytes")
	n.metric(`weir_http_refused_total{reason="origin"} 2`)
}

// frame builds a client's frame, masked with mask.
func frame(first byte, payload string, mask uint32) []byte {
	f := []byte{first}
	switch n := len(payload); {
	case n < 126:
		f = append(f, 0x80|byte(n))
	case n < 1<<16:
		f = binary.BigEndian.AppendUint16(append(f, 0x80|126), uint16(n))
	default:
		f = binary.BigEndian.AppendUint64(append(f, 0x80|127), uint64(n))
	}
	f = binary.BigEndian.AppendUint32(f, mask)
	key := f[len(f)-4:]
	for i := range len(payload) {
		f = append(f, payload[i]^key[i&3])
	}
	return f
}

// Frames that arrive together with the handshake must not get lost in fasthttp's
// buffer.
func TestWebSocketFramesBehindTheHandshake(t *testing.T) {
	result := make(chan error, 1)
	n := start(t, setup{handler: func(s *Server, ctx *fasthttp.RequestCtx) {
		s.TakeoverWebSocket(ctx, func(conn net.Conn) {
			defer conn.Close()
			result <- ServeControl(conn, func(frame []byte) { conn.Write(frame) })
		})
	}})
	early := append(frame(0x82, strings.Repeat("x", 1500), 0x01020304), frame(0x89, "early", 0xdeadbeef)...)
	c := n.dial()
	if _, err := c.Write(append([]byte(strings.ReplaceAll(handshake+"\n", "\n", "\r\n")), early...)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(frame(0x88, "\x03\xe8", 7)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	if !bytes.HasSuffix(got, []byte("\r\n\r\n\x8a\x05early\x88\x02\x03\xe8")) {
		t.Errorf("%q", got)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestControl(t *testing.T) {
	const ping, pong, closing = 0x89, 0x8a, 0x88
	join := func(frames ...[]byte) []byte { return bytes.Join(frames, nil) }
	f := func(name string, input []byte, answers string, code uint16) {
		t.Helper()
		// In one piece, and byte by byte.
		for _, size := range []int{len(input), 1} {
			var c Control
			var got []byte
			var err error
			for p := range chunks(input, size) {
				if err = c.Feed(p, func(b []byte) { got = append(got, b...) }); err != nil {
					break
				}
			}
			var violation *ProtocolError
			switch {
			case code == 0 && err != nil, code == closeNormal && err != io.EOF:
				t.Errorf("%s in pieces of %d: %v", name, size, err)
			case code > closeNormal && (!errors.As(err, &violation) || violation.Code != code):
				t.Errorf("%s in pieces of %d: %v, want close code %d", name, size, err, code)
			case code > closeNormal:
				if len(got) < 4 || !bytes.Equal(got[:1], []byte{closing}) || binary.BigEndian.Uint16(got[2:]) != code {
					t.Errorf("%s: answered with %q", name, got)
				}
			case string(got) != answers:
				t.Errorf("%s in pieces of %d: answered with %q, want %q", name, size, got, answers)
			}
			if err != nil && c.Feed([]byte{0x89, 0x80, 0, 0, 0, 0}, func([]byte) { t.Errorf("%s: an answer after the end", name) }) != io.EOF {
				t.Errorf("%s: goes on after the end", name)
			}
		}
	}

	f("nothing", nil, "", 0)
	f("ping", frame(ping, "abc", 0x11223344), "\x8a\x03abc", 0)
	f("empty ping", frame(ping, "", 1), "\x8a\x00", 0)
	f("longest ping", frame(ping, strings.Repeat("p", 125), 1), "\x8a\x7d"+strings.Repeat("p", 125), 0)
	f("pong", frame(pong, "abc", 1), "", 0)
	f("text", frame(0x81, "hello", 1), "", 0)
	f("a ping between fragments", join(frame(0x01, "a", 1), frame(ping, "p", 2), frame(0x00, "b", 3), frame(0x80, "c", 4), frame(0x82, "d", 5)), "\x8a\x01p", 0)
	f("a long message", frame(0x82, strings.Repeat("x", maxClientMessage), 1), "", 0)
	f("close", frame(closing, "", 1), "\x88\x02\x03\xe8", closeNormal)
	f("close with a code", frame(closing, "\x0f\xa0bye", 1), "\x88\x02\x0f\xa0", closeNormal)
	f("nothing counts behind a close", join(frame(closing, "", 1), frame(ping, "p", 1)), "\x88\x02\x03\xe8", closeNormal)

	f("not masked", []byte{0x89, 0}, "", closeProtocol)
	f("reserved bits", frame(0xc1, "", 1), "", closeProtocol)
	f("opcode 3", frame(0x83, "", 1), "", closeProtocol)
	f("opcode 11", frame(0x8b, "", 1), "", closeProtocol)
	f("fragmented ping", frame(0x09, "", 1), "", closeProtocol)
	f("long ping", frame(ping, strings.Repeat("p", 126), 1), "", closeProtocol)
	f("continuation of nothing", frame(0x80, "", 1), "", closeProtocol)
	f("message in a message", join(frame(0x01, "a", 1), frame(0x81, "b", 1)), "", closeProtocol)
	f("too long", frame(0x82, strings.Repeat("x", maxClientMessage+1), 1), "", closeTooBig)
	f("longest length", []byte{0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, "", closeTooBig)
	f("too long in fragments", join(frame(0x02, strings.Repeat("x", maxClientMessage), 1), frame(0x00, "x", 1)), "", closeTooBig)
	f("half a close code", frame(closing, "\x03", 1), "", closeProtocol)
	f("close code 999", frame(closing, "\x03\xe7", 1), "", closeProtocol)
	f("close code 1005", frame(closing, "\x03\xed", 1), "", closeProtocol)
	f("close code 2000", frame(closing, "\x07\xd0", 1), "", closeProtocol)
	f("close reason", frame(closing, "\x03\xe8\xff", 1), "", closeInvalid)
}

// chunks yields p in pieces of n bytes.
func chunks(p []byte, n int) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(p) > 0 {
			m := min(n, len(p))
			if !yield(p[:m]) {
				return
			}
			p = p[m:]
		}
	}
}

func TestControlEndsFloods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Control
		ping := frame(0x89, "x", 1)
		pongs := 0
		feed := func() error { return c.Feed(ping, func([]byte) { pongs++ }) }
		// Ten pings a second for ten minutes are fine.
		for range 6000 {
			if err := feed(); err != nil {
				t.Fatalf("after %d pongs: %v", pongs, err)
			}
			time.Sleep(100 * time.Millisecond) // of the bubble's clock
		}
		var violation *ProtocolError
		for range 2000 {
			if err := feed(); err != nil {
				if !errors.As(err, &violation) || violation.Code != closePolicy {
					t.Errorf("%v", err)
				}
				return
			}
		}
		t.Error("a flood of pings goes on")
	})
}

func TestServeControlReportsHowItEnded(t *testing.T) {
	f := func(input []byte, check func(error) bool) {
		t.Helper()
		server, client := net.Pipe()
		defer server.Close()
		go func() {
			client.Write(input)
			client.Close()
		}()
		if err := ServeControl(server, func([]byte) {}); !check(err) {
			t.Errorf("%q: %v", input, err)
		}
	}
	f(nil, func(err error) bool { return err == io.EOF })
	f(frame(0x88, "", 1), func(err error) bool { return err == nil })
	f([]byte{0x81, 0}, func(err error) bool { var v *ProtocolError; return errors.As(err, &v) })
}

func TestCloseFrameFits(t *testing.T) {
	got := CloseFrame(1001, strings.Repeat("ä", 100))
	if len(got) > 2+maxControlData || int(got[1]) != len(got)-2 || got[0] != 0x88 {
		t.Errorf("%d bytes, %q", len(got), got)
	}
}

// FuzzControl checks that the reader never fails in how the input is cut, never
// answers with anything but whole pongs and one last close, and stops after that.
func FuzzControl(f *testing.F) {
	f.Add(frame(0x89, "abc", 1), 1)
	f.Add(frame(0x88, "\x03\xe8bye", 1), 3)
	f.Add(append(frame(0x01, "abc", 1), frame(0x80, "def", 2)...), 2)
	f.Add(frame(0x82, strings.Repeat("x", 300), 9), 100)
	f.Add([]byte{0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 5}, 4)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		if size < 1 || size > 1<<16 {
			size = 1
		}
		feed := func(size int) (answers [][]byte, err error) {
			var c Control
			for p := range chunks(data, size) {
				if err = c.Feed(p, func(b []byte) { answers = append(answers, bytes.Clone(b)) }); err != nil {
					break
				}
			}
			return answers, err
		}
		whole, wholeErr := feed(max(1, len(data)))
		pieces, piecesErr := feed(size)
		if !equal(whole, pieces) || (wholeErr == nil) != (piecesErr == nil) {
			t.Fatalf("whole: %q %v; in pieces of %d: %q %v", whole, wholeErr, size, pieces, piecesErr)
		}
		for i, a := range whole {
			last := i == len(whole)-1
			switch {
			case len(a) < 2 || int(a[1]) != len(a)-2 || len(a) > 127:
				t.Fatalf("answer %q", a)
			case a[0] == 0x88 && last && wholeErr != nil, a[0] == 0x8a && !(last && wholeErr != nil):
			default:
				t.Fatalf("answer %d of %d is %q, error %v", i, len(whole), a, wholeErr)
			}
		}
	})
}

func equal(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}
