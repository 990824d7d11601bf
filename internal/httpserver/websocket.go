package httpserver

import (
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/valyala/fasthttp"
)

// WebSocket (RFC 6455), as far as a player needs it: the server's handshake and
// the control frames that come back. Media goes out as binary frames that the
// fan-out writes to the connection. The handshake is done here because the
// upgraders at hand keep a read and a write buffer for each connection.

// acceptGUID is what the answer to Sec-WebSocket-Key is made with (section 1.3).
const acceptGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// IsWebSocket reports whether a request asks for a WebSocket.
func IsWebSocket(ctx *fasthttp.RequestCtx) bool {
	return hasToken(ctx, "Connection", "upgrade") && hasToken(ctx, "Upgrade", "websocket")
}

// TakeoverWebSocket answers a WebSocket handshake (RFC 6455, section 4.2) and
// hands the connection to f, under the rules of [Server.Takeover]. A handshake
// that is not one, or comes from a web page that may not play from here, is
// answered with an error, and the result is false. No subprotocol and no extension
// is agreed on. Frames that came early are read from conn first.
func (s *Server) TakeoverWebSocket(ctx *fasthttp.RequestCtx, f func(conn net.Conn)) bool {
	key := ctx.Request.Header.Peek("Sec-WebSocket-Key")
	nonce, err := base64.StdEncoding.DecodeString(string(key))
	refuse := func(reason string, status int, message string) bool {
		s.refusedBy[reason].Inc()
		Error(ctx, status, message)
		ctx.SetConnectionClose() // what follows may be frames
		return false
	}
	switch {
	case !ctx.IsGet() || !ctx.Request.Header.IsHTTP11() || !IsWebSocket(ctx):
		return refuse(refusedMalformed, fasthttp.StatusBadRequest, "not a WebSocket handshake")
	case strings.TrimSpace(string(ctx.Request.Header.Peek("Sec-WebSocket-Version"))) != "13":
		refuse(refusedMalformed, fasthttp.StatusUpgradeRequired, "only version 13 of WebSocket is spoken here")
		ctx.Response.Header.SetCanonical([]byte("Sec-WebSocket-Version"), []byte("13"))
		return false
	case err != nil || len(nonce) != 16:
		return refuse(refusedMalformed, fasthttp.StatusBadRequest, "the Sec-WebSocket-Key is not 16 bytes in base64")
	case !s.allowsWebSocket(ctx):
		return refuse(refusedOrigin, fasthttp.StatusForbidden, "pages of this origin may not play from here")
	}
	sum := sha1.Sum(append([]byte(strings.TrimSpace(string(key))), acceptGUID...))
	ctx.ResetBody()
	ctx.SetStatusCode(fasthttp.StatusSwitchingProtocols)
	h := &ctx.Response.Header
	h.SetContentType("")
	h.Set("Upgrade", "websocket")
	h.Set("Connection", "Upgrade")
	h.SetCanonical([]byte("Sec-WebSocket-Accept"), []byte(base64.StdEncoding.EncodeToString(sum[:])))
	return s.takeover(ctx, f, true)
}

// allowsWebSocket judges the Origin that browsers put into a handshake. Clients
// that are no browsers send none.
func (s *Server) allowsWebSocket(ctx *fasthttp.RequestCtx) bool {
	origin := ctx.Request.Header.Peek("Origin")
	if len(origin) == 0 {
		return true
	}
	if allowed, _ := s.allows(origin); allowed {
		return true
	}
	u, err := url.Parse(string(origin))
	return err == nil && strings.EqualFold(u.Host, string(ctx.Host()))
}

// hasToken reports whether a comma-separated header has a token, in any case.
func hasToken(ctx *fasthttp.RequestCtx, header, token string) bool {
	for _, line := range ctx.Request.Header.PeekAll(header) {
		for part := range strings.SplitSeq(string(line), ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}

// Opcodes (RFC 6455, section 5.2).
const (
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xA
)

// Status codes of close frames (RFC 6455, section 7.4.1).
const (
	closeNormal    = 1000
	closeProtocol  = 1002
	closeInvalid   = 1007
	closePolicy    = 1008
	closeTooBig    = 1009
	maxControlData = 125 // bytes, section 5.5
)

// What a player may send: it has nothing to say but pings and a farewell.
const (
	maxClientMessage = 64 << 10    // bytes of one message
	clientAllowance  = 1 << 20     // bytes in each allowancePeriod, each frame costing frameCost
	frameCost        = 1 << 10     // bytes
	allowancePeriod  = time.Minute // begins anew with the first frame after it
)

// ProtocolError is why a WebSocket client was told to close. It is what the
// client did wrong, not a broken connection.
type ProtocolError struct {
	Code   uint16 // of the close frame
	Reason string
}

// Error returns what the client did wrong and the code that it is told.
func (e *ProtocolError) Error() string {
	return fmt.Sprintf("websocket client broke the protocol: %s (close code %d)", e.Reason, e.Code)
}

// Control reads the frames of a WebSocket client, in whatever pieces they come,
// and says what to answer: a pong to a ping, a close to a close. Data frames are
// discarded. It holds less than 300 bytes. The zero value is ready; it is not
// safe for concurrent use.
type Control struct {
	header  [14]byte // of the current frame, as far as it has arrived
	have    int      // bytes of header
	need    int      // bytes that the header has; 0 until known
	left    uint64   // bytes of payload still to come
	payload [maxControlData]byte
	filled  int // bytes of payload of a control frame

	message  uint64 // bytes of the data message so far
	inData   bool   // a data message is unfinished
	finished bool   // by a close frame or an error

	spent  uint64
	period time.Time
}

// Feed reads p and calls answer for each frame to be sent to the client; answer
// must not keep the slice, must not block, and may drop an older pong for a newer
// one (section 5.5.3), but has to send a frame whole, between two frames of the
// stream. Feed returns nil as long as the connection goes on, io.EOF after the
// client's close frame, and a [ProtocolError] after a violation; with both, the
// last answer is a close frame, behind which nothing may be sent.
func (c *Control) Feed(p []byte, answer func(frame []byte)) error {
	if c.finished {
		return io.EOF
	}
	err := c.feed(p, answer)
	if err != nil {
		c.finished = true
		var violation *ProtocolError
		if errors.As(err, &violation) {
			answer(closeFrame(violation.Code, violation.Reason))
		}
	}
	return err
}

func (c *Control) feed(p []byte, answer func([]byte)) error {
	for len(p) > 0 {
		if c.need == 0 || c.have < c.need {
			c.header[c.have] = p[0]
			c.have++
			p = p[1:]
			if c.have == 2 {
				if err := c.begin(); err != nil {
					return err
				}
			}
			if c.have < 2 || c.have < c.need {
				continue
			}
			if err := c.measure(); err != nil {
				return err
			}
		}
		n := int(min(c.left, uint64(len(p))))
		if c.isControl() {
			copy(c.payload[c.filled:], p[:n])
			c.filled += n
		}
		c.left -= uint64(n)
		p = p[n:]
		if c.left > 0 {
			return nil
		}
		if err := c.end(answer); err != nil {
			return err
		}
		c.have, c.need, c.filled = 0, 0, 0
	}
	return nil
}

func (c *Control) opcode() byte    { return c.header[0] & 0x0f }
func (c *Control) final() bool     { return c.header[0]&0x80 != 0 }
func (c *Control) isControl() bool { return c.opcode()&0x8 != 0 }

// begin judges the first two bytes of a frame and finds the size of its header.
func (c *Control) begin() error {
	length := c.header[1] & 0x7f
	switch {
	case c.header[0]&0x70 != 0:
		return &ProtocolError{closeProtocol, "reserved bits are set"}
	case c.header[1]&0x80 == 0:
		return &ProtocolError{closeProtocol, "a frame is not masked"}
	}
	switch op := c.opcode(); {
	case op > opPong || op > opBinary && op < opClose:
		return &ProtocolError{closeProtocol, "unknown opcode"}
	case c.isControl() && !c.final():
		return &ProtocolError{closeProtocol, "a control frame is fragmented"}
	case c.isControl() && length > maxControlData:
		return &ProtocolError{closeProtocol, "a control frame is too long"}
	case op == opContinuation && !c.inData:
		return &ProtocolError{closeProtocol, "a continuation without a beginning"}
	case (op == opText || op == opBinary) && c.inData:
		return &ProtocolError{closeProtocol, "a message begins inside another"}
	}
	switch length {
	case 126:
		c.need = 2 + 2 + 4
	case 127:
		c.need = 2 + 8 + 4
	default:
		c.need = 2 + 4
	}
	return nil
}

// measure reads the length of a frame whose header is complete.
func (c *Control) measure() error {
	switch length := c.header[1] & 0x7f; length {
	case 126:
		c.left = uint64(binary.BigEndian.Uint16(c.header[2:]))
	case 127:
		c.left = binary.BigEndian.Uint64(c.header[2:])
	default:
		c.left = uint64(length)
	}
	if !c.isControl() {
		if c.left > maxClientMessage || c.message+c.left > maxClientMessage {
			return &ProtocolError{closeTooBig, "a message is too long"}
		}
		c.message += c.left
	}
	if now := time.Now(); now.Sub(c.period) >= allowancePeriod {
		c.period, c.spent = now, 0
	}
	if c.spent += c.left + frameCost; c.spent > clientAllowance {
		return &ProtocolError{closePolicy, "the client sends too much"}
	}
	return nil
}

// end acts on a frame that has arrived.
func (c *Control) end(answer func([]byte)) error {
	if !c.isControl() {
		if c.inData = !c.final(); !c.inData {
			c.message = 0
		}
		return nil
	}
	mask, data := c.header[c.need-4:c.need], c.payload[:c.filled]
	for i := range data {
		data[i] ^= mask[i&3]
	}
	switch c.opcode() {
	case opPing:
		answer(appendFrame(nil, opPong, data))
	case opClose:
		code, err := closeCode(data)
		if err != nil {
			return err
		}
		answer(closeFrame(code, ""))
		return io.EOF
	}
	return nil
}

// closeCode reads the payload of a client's close frame (sections 5.5.1, 7.4).
func closeCode(data []byte) (uint16, error) {
	if len(data) == 0 {
		return closeNormal, nil
	}
	if len(data) == 1 {
		return 0, &ProtocolError{closeProtocol, "a close frame with half a code"}
	}
	code := binary.BigEndian.Uint16(data)
	switch {
	case code < 1000 || code >= 5000 || code == 1004 || code == 1005 || code == 1006 || code > 1014 && code < 3000:
		return 0, &ProtocolError{closeProtocol, "an invalid close code"}
	case !utf8.Valid(data[2:]):
		return 0, &ProtocolError{closeInvalid, "a close reason that is not UTF-8"}
	}
	return code, nil
}

// closeFrame returns a server's close frame.
func closeFrame(code uint16, reason string) []byte {
	return appendFrame(nil, opClose, append(binary.BigEndian.AppendUint16(nil, code), reason...))
}

// CloseFrame returns the frame with which a server ends a WebSocket: 1000 after
// the end of the stream, 1001 when the server goes away, 1008 when the player is
// cut, 1011 after a failure. reason is at most 123 bytes of UTF-8; a longer one is
// cut.
func CloseFrame(code uint16, reason string) []byte {
	if most := maxControlData - 2; len(reason) > most {
		reason = strings.ToValidUTF8(reason[:most], "")
	}
	return closeFrame(code, reason)
}

// appendFrame appends an unmasked frame with at most 125 bytes of data.
func appendFrame(dst []byte, opcode byte, data []byte) []byte {
	dst = append(dst, 0x80|opcode, byte(len(data)))
	return append(dst, data...)
}

// ServeControl reads a WebSocket client's frames from conn until the client or
// the connection ends, and gives the answers to inject, which sends them between
// two frames of the stream under the rules of [Control.Feed].
//
// It returns nil after the client's close frame, a [ProtocolError] after a
// violation, and otherwise why it cannot read (io.EOF if the client just left, net.ErrClosed
// if conn was closed here). It does not close conn and sets no deadline: a player that
// sends nothing is fine.
func ServeControl(conn net.Conn, inject func(frame []byte)) error {
	var c Control
	buf := make([]byte, 512)
	for {
		n, err := conn.Read(buf)
		if ferr := c.Feed(buf[:n], inject); ferr == io.EOF {
			return nil
		} else if ferr != nil {
			return ferr
		}
		if err != nil {
			return err
		}
	}
}
