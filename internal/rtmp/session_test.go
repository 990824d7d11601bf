package rtmp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"weir/internal/media"
	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

// script is a connection whose peer says what was written down: each Read
// returns one burst, and after the last one the peer has closed its side.
type script struct {
	bursts [][]byte
	out    bytes.Buffer
	writes int
	closed bool
}

func (s *script) Read(p []byte) (int, error) {
	for len(s.bursts) > 0 && len(s.bursts[0]) == 0 {
		s.bursts = s.bursts[1:]
	}
	if len(s.bursts) == 0 || s.closed {
		return 0, io.EOF
	}
	n := copy(p, s.bursts[0])
	s.bursts[0] = s.bursts[0][n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error) {
	s.writes++
	return s.out.Write(p)
}
func (s *script) Close() error                     { s.closed = true; return nil }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// scripted returns a server and its peer, which has already shaken hands.
func scripted(bursts ...[]byte) (*ServerConn, *script) {
	hello := make([]byte, 1+handshakePacket)
	hello[0] = version
	s := &script{bursts: append([][]byte{hello, make([]byte, handshakePacket)}, bursts...)}
	return NewServerConn(s, DefaultServerConfig()), s
}

// answers returns what the server said after the handshake, a line per message.
func (s *script) answers(t testing.TB) string {
	t.Helper()
	b := s.out.Bytes()
	if len(b) < 1+2*handshakePacket {
		return ""
	}
	return trace(t, b[1+2*handshakePacket:])
}

// trace formats messages: chunk stream, type, message stream, content.
func trace(t testing.TB, b []byte) string {
	t.Helper()
	cfg := DefaultServerConfig()
	r := chunk.NewReader(bytes.NewReader(b), cfg.publisherLimits())
	var out strings.Builder
	for {
		m, err := r.ReadMessage()
		if err == io.EOF {
			return out.String()
		}
		if err != nil {
			t.Fatalf("the server's own bytes: %v", err)
		}
		fmt.Fprintf(&out, "%d %d %d ", m.ChunkStream, m.Type, m.StreamID)
		if m.Type == chunk.TypeCommand || m.Type == chunk.TypeData {
			values, err := amf.Decode(m.Payload, amf.Limits{Depth: 8, Values: 100 + longNumbers})
			if err != nil {
				t.Fatal(err)
			}
			for i, v := range values {
				if i > 0 {
					out.WriteByte(' ')
				}
				if code := v.Get("code"); code.Kind == amf.String {
					out.WriteString(v.Get("level").Text() + ":" + code.Text())
				} else if v.IsObject() {
					out.WriteString("{}")
				} else if v.Kind == amf.StrictArray {
					fmt.Fprintf(&out, "[%d]", len(v.Props))
				} else if v.Kind == amf.String {
					out.WriteString(v.Str)
				} else {
					out.WriteString(v.String())
				}
			}
		} else if m.Type == heldType {
			fmt.Fprintf(&out, "%d bytes", len(m.Payload))
		} else {
			out.WriteString(hex.EncodeToString(m.Payload))
		}
		out.WriteByte('\n')
	}
}

func msg(csid uint32, typ uint8, streamID uint32, payload []byte) []byte {
	return chunk.AppendMessage(nil, csid, typ, streamID, 0, payload, chunk.DefaultSize)
}

func call(streamID uint32, name string, tid float64, args ...amf.Value) []byte {
	return msg(3, chunk.TypeCommand, streamID, encodeCommand(name, tid, args...))
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

var null amf.Value

func connectCall(app string, more ...Property) []byte {
	return call(0, "connect", 1, amf.Obj(append([]Property{Text("app", app), Text("tcUrl", "rtmp://h/"+app)}, more...)...))
}

const (
	connectAnswer = "2 5 0 002625a0\n2 6 0 002625a002\n3 20 0 _result 1 {} status:NetConnection.Connect.Success\n3 20 0 onBWDone 0 null\n"
	playAnswer    = "2 4 0 000000000001\n5 20 1 onStatus 0 null status:NetStream.Play.Reset\n5 20 1 onStatus 0 null status:NetStream.Play.Start\n5 18 1 |RtmpSampleAccess true true\n"
)

// TestConversationOBS is OBS 29 as it was seen on the wire.
func TestConversationOBS(t *testing.T) {
	meta := amf.Append(nil, amf.Str("onMetaData"), amf.Value{Kind: amf.ECMAArray, Props: []Property{amf.P("width", amf.Num(1280))}})
	video := bytes.Repeat([]byte{0x17}, 5000)
	c, s := scripted(
		join(msg(2, chunk.TypeSetChunkSize, 0, []byte{0, 0, 0x10, 0}),
			chunk.AppendMessage(nil, 3, 20, 0, 0, encodeCommand("connect", 1, amf.Obj(
				Text("app", "live"), Text("type", "nonprivate"), amf.P("supportsGoAway", amf.Bool(true)),
				Text("flashVer", "FMLE/3.0 (compatible; FMSc/1.0)"), Text("swfUrl", "rtmp://h/live"), Text("tcUrl", "rtmp://h/live"))), 4096)),
		join(call(0, "releaseStream", 2, null, amf.Str("cam")), call(0, "FCPublish", 3, null, amf.Str("cam")),
			call(0, "createStream", 4, null), call(0, "_checkbw", 5, null)),
		call(1, "publish", 6, null, amf.Str("cam"), amf.Str("live")),
		join(chunk.AppendMessage(nil, 4, 18, 1, 0, join(amf.Append(nil, amf.Str("@setDataFrame")), meta), 4096),
			chunk.AppendMessage(nil, 6, 9, 1, 700, video, 4096),
			chunk.AppendMessage(nil, 4, 8, 1, 710, nil, 4096), // empty: passed over
			chunk.AppendMessage(nil, 4, 8, 1, 720, []byte{0xaf, 1, 2}, 4096)),
		call(0, "FCUnpublish", 7, null, amf.Str("cam")),
		call(0, "deleteStream", 8, null, amf.Num(1)),
	)
	r, err := c.ReadRequest()
	if err != nil {
		t.Fatal(err)
	}
	if r.Kind != Publish || r.App != "live" || r.Name != "cam" || r.PublishType != "live" || !r.SupportsGoAway ||
		r.TcURL != "rtmp://h/live" || r.SwfURL != "rtmp://h/live" || !strings.HasPrefix(r.FlashVer, "FMLE/3.0") {
		t.Errorf("request %+v", r)
	}
	if err := c.AcceptPublish(); err != nil {
		t.Fatal(err)
	}
	if c.StreamID() != 1 {
		t.Errorf("stream id %d", c.StreamID())
	}
	for _, want := range []struct {
		kind media.Kind
		time uint32
		body []byte
	}{{media.Data, 0, meta}, {media.Video, 700, video}, {media.Audio, 720, []byte{0xaf, 1, 2}}} {
		tag, err := c.ReadTag()
		if err != nil {
			t.Fatal(err)
		}
		if tag.Kind() != want.kind || tag.Time() != want.time || !bytes.Equal(tag.Body(), want.body) {
			t.Errorf("%v at %d with %d bytes, want %+v", tag.Kind(), tag.Time(), len(tag.Body()), want)
		}
	}
	if tag, err := c.ReadTag(); err != io.EOF {
		t.Errorf("after FCUnpublish: %v, %v; want io.EOF", tag, err)
	}
	if r, err := c.ReadRequest(); err != io.EOF {
		t.Errorf("after the encoder has left: %v, %v; want io.EOF", r, err)
	}
	want := connectAnswer +
		"3 20 0 _result 2 null undefined\n3 20 0 _result 3 null undefined\n3 20 0 _result 4 null 1\n3 20 0 _result 5 null undefined\n" +
		"5 20 1 onFCPublish 0 null status:NetStream.Publish.Start\n5 20 1 onStatus 0 null status:NetStream.Publish.Start [1500]\n2 33 0 4096 bytes\n" +
		"5 20 1 onFCUnpublish 0 null status:NetStream.Unpublish.Success\n3 20 0 _result 7 null undefined\n5 20 1 onStatus 0 null status:NetStream.Unpublish.Success\n" +
		"3 20 0 _result 8 null undefined\n"
	if got := s.answers(t); got != want {
		t.Errorf("answers:\n%s\nwant:\n%s", got, want)
	}
	if s.writes != 1+5 { // S0 S1 S2, then one write for each burst that wants an answer
		t.Errorf("%d writes, want 6", s.writes)
	}
}

// TestConversationSRSEdge: an SRS edge sends play without waiting for anything.
func TestConversationSRSEdge(t *testing.T) {
	c, s := scripted(join(connectCall("live"), call(0, "createStream", 2, null), call(1, "play", 0, null, amf.Str("cam.flv?key=1")),
		msg(2, chunk.TypeUserControl, 0, []byte{0, 3, 0, 0, 0, 1, 0, 0, 0x13, 0x88}), msg(2, chunk.TypeSetChunkSize, 0, []byte{0, 0, 0xea, 0x60})))
	r, err := c.ReadRequest()
	if err != nil {
		t.Fatal(err)
	}
	if r.Kind != Play || r.Name != "cam.flv?key=1" {
		t.Errorf("request %+v", r)
	}
	if err := c.AcceptPlay(Text("weirEpoch", "1")); err != nil {
		t.Fatal(err)
	}
	if got, want := s.answers(t), connectAnswer+"3 20 0 _result 2 null 1\n"+playAnswer; got != want {
		t.Errorf("answers:\n%s\nwant:\n%s", got, want)
	}
	if s.writes != 2 {
		t.Errorf("%d writes, want 2: the handshake and one for all answers", s.writes)
	}
	if strings.Contains(s.out.String(), "weirEpoch") {
		t.Error("a property for weir nodes went to a stranger")
	}
	l := newListener()
	if overhear(c, l, 512) {
		t.Error("it left")
	}
	if want := (PlayControl{Kind: ControlBuffer, Buffer: 5 * time.Second}); len(l.wishes) != 1 || l.wishes[0] != want {
		t.Errorf("wishes %v, want %v", l.wishes, want)
	}
}

// TestConversationPlayer: what a player may say while it plays.
func TestConversationPlayer(t *testing.T) {
	c, s := scripted(
		join(connectCall("live"), call(0, "createStream", 2, null)),
		join(call(0, "FCSubscribe", 0, null, amf.Str("cam")), call(0, "getStreamLength", 3, null, amf.Str("cam")), call(1, "play", 4, null, amf.Str("cam"), amf.Num(-2000))),
		join(call(1, "pause", 0, null, amf.Bool(true), amf.Num(1000)), call(1, "pause", 0, null, amf.Bool(false), amf.Num(1000)),
			call(1, "receiveAudio", 0, null, amf.Bool(false)), call(1, "receiveVideo", 0, null, amf.Bool(true)),
			call(1, "seek", 0, null, amf.Num(5000)), call(1, "play", 5, null, amf.Str("other")), call(1, "somethingElse", 9, null),
			msg(2, chunk.TypeUserControl, 0, []byte{0, 6, 1, 2, 3, 4}), msg(2, chunk.TypeUserControl, 0, []byte{0, 99}),
			msg(2, chunk.TypeAck, 0, []byte{0, 0, 0, 1}), call(0, "deleteStream", 0, null, amf.Num(7)), call(0, "deleteStream", 0, null, amf.Num(1))))
	if _, err := c.ReadRequest(); err != nil {
		t.Fatal(err)
	}
	if err := c.AcceptPlay(); err != nil {
		t.Fatal(err)
	}
	start := s.answers(t)
	writes := s.writes
	l := newListener()
	if !overhear(c, l, 512) {
		t.Error("deleteStream did not end it")
	}
	if want := connectAnswer + "3 20 0 _result 2 null 1\n3 20 0 onFCSubscribe 0 null status:NetStream.Play.Start\n3 20 0 _result 3 null 0\n" + playAnswer; start != want {
		t.Errorf("answers:\n%s\nwant:\n%s", start, want)
	}
	want := []PlayControl{{Kind: ControlPause, On: true}, {Kind: ControlPause}, {Kind: ControlAudio}, {Kind: ControlVideo, On: true}}
	if fmt.Sprint(l.wishes) != fmt.Sprint(want) {
		t.Errorf("wishes %v, want %v", l.wishes, want)
	}
	if s.writes != writes {
		t.Error("what answers the player wrote to the connection, which belongs to the fan-out")
	}
	c.flushed(t, &l.injected)
	const answers = "5 20 1 onStatus 0 null status:NetStream.Pause.Notify\n5 20 1 onStatus 0 null status:NetStream.Unpause.Notify\n" +
		"5 20 1 onStatus 0 null error:NetStream.Seek.Failed\n5 20 1 onStatus 0 null error:NetStream.Play.Failed\n" +
		"3 20 1 _error 9 null error:NetConnection.Call.Failed\n2 4 0 000701020304\n"
	if got := trace(t, l.injected); got != answers {
		t.Errorf("injected:\n%s\nwant:\n%s", got, answers)
	}
}

// flushed adds what was left when the player's deleteStream ended it.
func (c *ServerConn) flushed(t *testing.T, to *[]byte) {
	t.Helper()
	c.writing.Lock()
	c.inject = func(b []byte) { *to = append(*to, b...) }
	c.writing.Unlock()
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
}

// The 302 of an SRS origin, as it was seen on the wire.
const redirectVector = "050000000000e31400000000" +
	"0200086f6e537461747573000000000000000000050300056c6576656c0200056572726f720004636f646502001e4e6574436f6e6e656374696f6e2e436f6e6e6563742e52656a6563746564000b6465736372697074696f6e02001152544d502033303220526564697265637400026578030004636f6465004072e000000000000008726564697265637402001b72746d703a2f2f3132372e302e302e313a31333935302f6c697665000972656469726563743202002672746d703a2f2f3132372e302e302e313a31333935302f6c6976652f6c69766573747265616d000009000009"

func TestRedirectBytes(t *testing.T) {
	c, s := scripted(join(connectCall("live"), call(0, "createStream", 2, null), call(1, "play", 0, null, amf.Str("livestream"))))
	if _, err := c.ReadRequest(); err != nil {
		t.Fatal(err)
	}
	if err := c.Redirect("rtmp://127.0.0.1:13950/live/livestream"); err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(redirectVector)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasSuffix(s.out.Bytes(), want) {
		t.Errorf("the answer ends with\n%x, want\n%x", s.out.Bytes()[max(0, s.out.Len()-len(want)):], want)
	}
	if got, want := s.answers(t), connectAnswer+"3 20 0 _result 2 null 1\n"+playAnswer+"5 20 0 onStatus 0 null error:NetConnection.Connect.Rejected\n"; got != want {
		t.Errorf("answers:\n%s\nwant:\n%s", got, want)
	}
	if !s.closed {
		t.Error("the connection is open")
	}
	info := func(u string) amf.Value {
		values, err := amf.Decode(encodeRedirect(u), amf.Limits{Depth: 8, Values: 100})
		if err != nil {
			t.Fatal(err)
		}
		return values[3].Get("ex")
	}
	ex := info("rtmp://h:1/a/inst/name?path=/x/y&vhost=v")
	if ex.Get("redirect").Text() != "rtmp://h:1/a/inst" || ex.Get("redirect2").Text() != "rtmp://h:1/a/inst/name?path=/x/y&vhost=v" {
		t.Errorf("redirect %v, redirect2 %v", ex.Get("redirect"), ex.Get("redirect2"))
	}
}

// TestRefusals: each has a code and a sentence in the last write, then a close.
func TestRefusals(t *testing.T) {
	f := func(name, input string, refuse func(*ServerConn) error, want string) {
		t.Helper()
		c, s := scripted([]byte(input))
		if err := refuse(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := s.answers(t); !strings.HasSuffix(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
		if !s.closed {
			t.Errorf("%s: the connection is open", name)
		}
	}
	request := func(s Status) func(*ServerConn) error {
		return func(c *ServerConn) error {
			if _, err := c.ReadRequest(); err != nil {
				return err
			}
			return c.Refuse(s)
		}
	}
	connect, create := string(connectCall("live")), string(call(0, "createStream", 2, null))
	publish := connect + create + string(call(1, "publish", 3, null, amf.Str("cam")))
	play := connect + create + string(call(1, "play", 3, null, amf.Str("cam")))
	f("before connect", connect, func(c *ServerConn) error { return c.Refuse(StatusRejected("Too many connections.")) }, "3 20 0 _error 1 null error:NetConnection.Connect.Rejected\n")
	f("bad name", publish, request(StatusBadName("Taken.")), "5 20 1 onStatus 0 null error:NetStream.Publish.BadName\n")
	f("denied", publish, request(StatusPublishDenied("Wrong key.")), "5 20 1 onStatus 0 null error:NetStream.Publish.Denied\n")
	f("publish failed", publish, request(StatusPublishFailed("No upstream.")), "5 20 1 onStatus 0 null error:NetStream.Publish.Failed\n")
	f("not found", play, request(StatusStreamNotFound("No such stream.")), "5 20 1 onStatus 0 null error:NetStream.Play.StreamNotFound\n")
	f("play failed", play, request(StatusPlayFailed("Broken.")), "5 20 1 onStatus 0 null error:NetStream.Play.Failed\n")
	f("invalid app", play, request(StatusInvalidApp("No such app.")), "5 20 1 onStatus 0 null error:NetConnection.Connect.InvalidApp\n")
	f("shutdown", play, request(StatusShutdown()), "5 20 1 onStatus 0 null error:NetConnection.Connect.AppShutdown\n")
}

// TestBadRequests: a client that breaks the protocol is told so, in the form
// that fits how far it came, and ReadRequest fails.
func TestBadRequests(t *testing.T) {
	connect, create := connectCall("live"), call(0, "createStream", 2, null)
	const asError, asStatus = "3 20 0 _error 1 null error:NetConnection.Connect.Rejected\n", "onStatus 0 null error:NetConnection.Connect.Rejected\n"
	f := func(name string, input []byte, answer string) {
		t.Helper()
		c, s := scripted(input)
		r, err := c.ReadRequest()
		if !errors.Is(err, chunk.ErrProtocol) {
			t.Errorf("%s: %+v, %v; want a protocol error", name, r, err)
		}
		if got := s.answers(t); !strings.HasSuffix(got, answer) {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, answer)
		}
	}
	long := amf.Str(strings.Repeat("x", 4097))
	f("command before connect", create, asError)
	f("connect twice", join(connect, connect), asStatus)
	f("connect without an object", call(0, "connect", 1), asError)
	f("connect with a long app", call(0, "connect", 1, amf.Obj(amf.P("app", long))), asError)
	f("play of a number", join(connect, create, call(1, "play", 3, null, amf.Num(1))), asStatus)
	f("play of a long name", join(connect, create, call(1, "play", 3, null, long)), asStatus)
	f("publish of a long type", join(connect, create, call(1, "publish", 3, null, amf.Str("a"), long)), asStatus)
	f("no AMF", msg(3, chunk.TypeCommand, 0, []byte{0xff}), asError)
	f("empty command", msg(3, chunk.TypeCommand, 0, nil), asError)
	f("command without a name", msg(3, chunk.TypeCommand, 0, amf.Append(nil, amf.Num(1))), asError)
	f("nested arrays", msg(3, chunk.TypeCommand, 0, join(amf.Append(nil, amf.Str("connect"), amf.Num(1)), bytes.Repeat([]byte{0x0a, 0, 0, 0, 1}, 1000))), asError)
	f("chunk size 0", msg(2, chunk.TypeSetChunkSize, 0, make([]byte, 4)), asError)
}

// TestTypes: AMF3 commands and data, aggregates, and what is not meant for players.
func TestTypes(t *testing.T) {
	amf3 := func(b []byte) []byte { return append([]byte{0}, b...) }
	sub := func(kind media.Kind, time uint32, body string) []byte {
		tag := media.NewTag(kind, time, len(body))
		copy(tag.Body(), body)
		return tag
	}
	aggregate := join(sub(media.Video, 5000, "v1"), sub(media.Audio, 5010, ""), sub(3, 5010, "?"), sub(media.Audio, 5010, "a1"), sub(media.Data, 5015, "meta"), sub(media.Video, 4990, "v2"))
	c, _ := scripted(join(
		msg(3, chunk.TypeCommandAMF3, 0, amf3(encodeCommand("connect", 1, amf.Obj(Text("app", "/live/"), amf.P("objectEncoding", amf.Num(3)),
			amf.P("fourCcList", amf.Strict(amf.Str("hvc1"), amf.Str("av01"), amf.Str("toolong"), amf.Num(1))), amf.P("capsEx", amf.Num(1)))))),
		msg(3, chunk.TypeCommandAMF3, 0, amf3(encodeCommand("createStream", 2, null))),
		msg(3, chunk.TypeCommandAMF3, 1, encodeCommand("publish", 3, null, amf.Str("cam"), amf.Str("record"))), // the zero left out
		msg(4, chunk.TypeSharedAMF0, 1, []byte("shared")), msg(4, chunk.TypeSharedAMF3, 1, []byte("shared")), msg(4, 99, 1, []byte("?")),
		msg(4, chunk.TypeDataAMF3, 1, amf3(amf.Append(nil, amf.Str("@setDataFrame"), amf.Str("onMetaData")))),
		msg(4, chunk.TypeData, 1, amf.Append(nil, amf.Str("@clearDataFrame"), amf.Str("onMetaData"))),
		msg(4, chunk.TypeData, 1, amf.Append(nil, amf.Str("|RtmpSampleAccess"), amf.Bool(true))),
		msg(4, chunk.TypeData, 1, amf.Append(nil, amf.Str("@setDataFrame"))), msg(4, chunk.TypeDataAMF3, 1, nil), msg(4, chunk.TypeData, 1, nil),
		chunk.AppendMessage(nil, 4, chunk.TypeAggregate, 1, 100, aggregate, chunk.DefaultSize),
		chunk.AppendMessage(nil, 4, chunk.TypeAggregate, 1, 0xFFFFFFFF, join(sub(media.Video, 7, "w1"), sub(media.Video, 9, "w2")[:13]), chunk.DefaultSize),
		chunk.AppendMessage(nil, 4, chunk.TypeAggregate, 1, 100, aggregate[:20], chunk.DefaultSize),
	))
	r, err := c.ReadRequest()
	if err != nil {
		t.Fatal(err)
	}
	if r.App != "live" || r.PublishType != "record" || fmt.Sprint(r.FourCCs) != "[hvc1 av01]" || r.CapsEx != CapsReconnect {
		t.Errorf("request %+v", r)
	}
	if err := c.AcceptPublish(); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for {
		tag, err := c.ReadTag()
		if err != nil {
			if !errors.Is(err, chunk.ErrProtocol) { // the third aggregate is cut short
				t.Errorf("end: %v", err)
			}
			break
		}
		fmt.Fprintf(&got, "%v@%d:%q ", tag.Kind(), tag.Time(), tag.Body())
		if binary.BigEndian.Uint32(tag[len(tag)-4:]) != uint32(len(tag)-4) {
			t.Errorf("tag is not whole: %x", tag)
		}
	}
	want := `data@0:"\x02\x00\nonMetaData" video@100:"v1" audio@110:"a1" data@115:"meta" video@90:"v2" video@4294967295:"w1" video@1:"w2" video@100:"v1" `
	if got.String() != want {
		t.Errorf("got  %s\nwant %s", got.String(), want)
	}
}

// TestPublishEnds: how each end of a publish is told.
func TestPublishEnds(t *testing.T) {
	f := func(name string, end []byte, want error, answer string) {
		t.Helper()
		c, s := scripted(join(connectCall("live"), call(0, "createStream", 2, null), call(1, "publish", 3, null, amf.Str("cam"))), end)
		if _, err := c.ReadRequest(); err != nil {
			t.Fatal(err)
		}
		if err := c.AcceptPublish(); err != nil {
			t.Fatal(err)
		}
		tag, err := c.ReadTag()
		if !errors.Is(err, want) || (want == io.EOF) != (err == io.EOF) {
			t.Errorf("%s: %v, %v; want %v", name, tag, err, want)
		}
		if got := s.answers(t); !strings.Contains(got, answer) {
			t.Errorf("%s: answers\n%s\nwant\n%s", name, got, answer)
		}
	}
	const success = "status:NetStream.Unpublish.Success"
	f("FCUnpublish", call(0, "FCUnpublish", 4, null, amf.Str("cam")), io.EOF, success)
	f("deleteStream", call(0, "deleteStream", 0, null, amf.Num(1)), io.EOF, success)
	f("deleteStream without an id", call(0, "deleteStream", 0, null), io.EOF, success)
	f("deleteStream of another", call(0, "deleteStream", 0, null, amf.Num(2)), io.ErrUnexpectedEOF, "")
	f("closeStream", call(1, "closeStream", 0, null), io.EOF, success)
	f("publish false", call(1, "publish", 0, null, amf.Bool(false)), io.EOF, success)
	f("FIN", nil, io.ErrUnexpectedEOF, "")
	f("FIN in a message", msg(4, 9, 1, make([]byte, 100))[:50], io.ErrUnexpectedEOF, "")
	f("second publish", call(2, "publish", 5, null, amf.Str("b")), io.ErrUnexpectedEOF, "5 20 2 onStatus 0 null error:NetStream.Publish.Failed")
	f("play", call(2, "play", 5, null, amf.Str("b")), io.ErrUnexpectedEOF, "5 20 2 onStatus 0 null error:NetStream.Play.Failed")
	f("connect again", connectCall("x"), chunk.ErrProtocol, "")
	f("too large", chunk.AppendMessage(nil, 4, 9, 1, 0, make([]byte, 8<<20+1), 128), chunk.ErrProtocol, "")
}

// TestPublishAgain: one connection, one publish after the other.
func TestPublishAgain(t *testing.T) {
	c, _ := scripted(join(connectCall("live"), call(0, "createStream", 2, null), call(1, "publish", 3, null, amf.Str("a"))),
		join(call(0, "FCUnpublish", 4, null, amf.Str("a")), msg(6, 9, 1, []byte("late")), call(0, "deleteStream", 0, null, amf.Num(1))),
		join(call(0, "createStream", 5, null), call(2, "publish", 6, null, amf.Str("b")), msg(6, 9, 2, []byte("v"))))
	for i, name := range []string{"a", "b"} {
		r, err := c.ReadRequest()
		if err != nil || r.Name != name || c.StreamID() != uint32(i+1) {
			t.Fatalf("request %d: %+v on %d, %v", i, r, c.StreamID(), err)
		}
		if err := c.AcceptPublish(); err != nil {
			t.Fatal(err)
		}
		if name == "a" {
			if _, err := c.ReadTag(); err != io.EOF {
				t.Fatal(err)
			}
		}
	}
	if tag, err := c.ReadTag(); err != nil || string(tag.Body()) != "v" {
		t.Errorf("%q, %v", tag, err)
	}
}

// TestAcknowledges: the server acknowledges by the window that the encoder set.
func TestAcknowledges(t *testing.T) {
	c, s := scripted(join(connectCall("live"), msg(2, chunk.TypeWindowAckSize, 0, []byte{0, 0, 0xff, 0xff}), call(0, "createStream", 2, null), call(1, "publish", 3, null, amf.Str("a"))),
		msg(6, 9, 1, make([]byte, 70000)), msg(6, 9, 1, make([]byte, 100)), msg(6, 9, 1, make([]byte, 70000)), nil)
	if _, err := c.ReadRequest(); err != nil {
		t.Fatal(err)
	}
	if err := c.AcceptPublish(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := c.ReadTag(); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = c.ReadTag()
	if n := strings.Count(s.answers(t), "\n2 3 0 "); n != 2 {
		t.Errorf("%d acknowledgements, want 2:\n%s", n, s.answers(t))
	}
}

// FuzzServer: any bytes after the handshake end in an error or are served,
// never in a panic or without an end.
func FuzzServer(f *testing.F) {
	publish := join(connectCall("live"), call(0, "createStream", 2, null), call(1, "publish", 3, null, amf.Str("cam")))
	f.Add(join(publish, msg(6, 9, 1, make([]byte, 300)), msg(4, 22, 1, media.NewTag(media.Audio, 1, 5)), call(0, "FCUnpublish", 4, null, amf.Str("cam"))))
	f.Add(join(connectCall("live"), call(1, "play", 3, null, amf.Str("cam")), call(1, "pause", 0, null, amf.Bool(true)), msg(2, 4, 0, []byte{0, 6, 0, 0, 0, 0})))
	f.Add(join(publish, msg(4, 18, 1, amf.Append(nil, amf.Str("@setDataFrame"), amf.Str("onMetaData"))), msg(4, 15, 1, []byte{0, 5}), call(1, "closeStream", 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, s := scripted(b)
		for {
			r, err := c.ReadRequest()
			if err != nil {
				break
			}
			if r.Kind == Play {
				if err := c.AcceptPlay(); err == nil {
					l := newListener()
					pour(c, l, 512)
					for c.ears.holds() {
						runtime.Gosched()
					}
					c.Deafen()
					l.hasLeft(c)
				}
				break
			}
			if err = c.AcceptPublish(); err != nil {
				break
			}
			for err == nil {
				_, err = c.ReadTag()
			}
			if err != io.EOF {
				break
			}
		}
		_ = s.answers(t) // what the server said is RTMP, whatever the client was
	})
}

// What a publisher is told in mid-publish, to the byte where others have defined it.
func TestNoticesToPublishers(t *testing.T) {
	if got, want := hex.EncodeToString(GoAwayNotice(128)), "02000000000001200000000000"; got != want {
		t.Errorf("go away: %s, want %s", got, want)
	}
	c, s := scripted(connectCall("live"), call(0, "createStream", 2, null), call(1, "publish", 3, null, amf.Str("cam"), amf.Str("live")))
	if _, err := c.ReadRequest(); err != nil {
		t.Fatal(err)
	}
	if err := c.AcceptPublish(); err != nil {
		t.Fatal(err)
	}
	before := len(s.answers(t))
	for _, notice := range [][]byte{GoAwayNotice(c.OutChunkSize()), ReconnectNotice("rtmp://other/live", c.OutChunkSize())} {
		if err := c.Tell(notice); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := s.answers(t)[before:], "2 32 0 00\n3 20 0 onStatus 0 null status:NetConnection.Connect.ReconnectRequest\n"; got != want {
		t.Errorf("told:\n%swant:\n%s", got, want)
	}
}
