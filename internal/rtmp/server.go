package rtmp

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/yutopp/go-rtmp/message"

	"weir/internal/media"
	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

// Kind says what a client wants.
type Kind uint8

// The kinds of requests.
const (
	Publish Kind = iota + 1
	Play
)

// String returns "publish" or "play", and "unknown" for what is neither.
func (k Kind) String() string {
	switch k {
	case Publish:
		return "publish"
	case Play:
		return "play"
	}
	return "unknown"
}

// Request is a publish or play that waits for its answer. All text is as the
// client sent it, at most MaxName bytes each.
type Request struct {
	Kind        Kind
	App         string // without slashes around it
	TcURL       string
	Name        string // query included
	PublishType string // "live" unless the encoder says otherwise
	FlashVer    string
	PageURL     string
	SwfURL      string

	// What the client can do, from connect (Enhanced RTMP v2, "Enhancing
	// NetConnection connect Command").
	CapsEx         uint32
	FourCCs        []string
	SupportsGoAway bool // OBS 27.2 to 29: understands message type 0x20

	// Identity of a weir node; "" for all other clients.
	Node, Via string
	// Publisher is the secret name of the publisher on whose behalf a node
	// publishes.
	Publisher string
}

// Property is a named value of a status object.
type Property = amf.Property

// Text returns a property that is a string.
func Text(name, value string) Property { return amf.P(name, amf.Str(value)) }

// ServerConn is the server side of one connection. One goroutine at a time may
// use it, except for Close, which may be called at any time, and Hear and Deafen.
//
// The life of a connection: ReadRequest; then either Refuse or Redirect, which
// end it, or AcceptPublish and ReadTag up to io.EOF (and ReadRequest again), or
// AcceptPlay and Hear, up to Deafen. The caller closes.
type ServerConn struct {
	conn
	cfg ServerConfig

	phase    phase
	connect  Request // what connect said
	encoding float64 // objectEncoding of connect
	streams  uint32  // message streams created so far

	// the request in hand
	pending   *Request
	streamID  uint32
	publishFC bool // the encoder sent FCPublish

	budget answerBudget
}

// phase is how far the conversation has come.
type phase uint8

const (
	phaseHandshake phase = iota
	phaseConnect         // handshake done
	phaseRequest         // connected
	phasePublish
	phasePlay
)

// NewServerConn returns the server side of nc, which it owns from now on. The
// handshake timeout starts now. cfg must be valid.
func NewServerConn(nc net.Conn, cfg ServerConfig) *ServerConn {
	c := &ServerConn{cfg: cfg}
	c.start(nc, cfg.strangerLimits(), cfg.amfLimits(), cfg.WriteTimeout)
	c.deadline = time.Now().Add(cfg.HandshakeTimeout)
	return c
}

// NetConn returns the connection. After AcceptPlay its writing side belongs to
// the caller, who must write whole RTMP messages.
func (c *ServerConn) NetConn() net.Conn { return c.nc }

// OutChunkSize returns the size of the chunks that the client expects.
func (c *ServerConn) OutChunkSize() int { return int(c.cfg.ChunkSize) }

// StreamID returns the message stream of the request.
func (c *ServerConn) StreamID() uint32 { return c.streamID }

// Received returns the number of bytes read after the handshake.
func (c *ServerConn) Received() uint64 { return c.in.Received() }

// Close closes the connection at once. It is safe for concurrent use.
func (c *ServerConn) Close() error { return c.nc.Close() }

// ReadRequest returns what the client wants: the first call does the handshake
// and answers connect and what else comes before publish or play. After a
// publish that ended with io.EOF it may be called again for the next one.
//
// It takes at most the handshake timeout, counted from NewServerConn the first
// time. A client that breaks the protocol or a limit gets an answer, if one is
// possible, before the error is returned; the caller closes. io.EOF means that
// the client left between two messages.
func (c *ServerConn) ReadRequest() (*Request, error) {
	if c.phase == phasePublish {
		c.phase = phaseRequest
	}
	if c.deadline.IsZero() {
		c.deadline = time.Now().Add(c.cfg.HandshakeTimeout)
	}
	r, err := c.readRequest()
	if err == nil {
		return r, nil
	}
	if errors.Is(err, chunk.ErrProtocol) && c.phase != phaseHandshake {
		c.sendRefusal(Status{CodeConnectRejected, "The server does not accept this: " + err.Error() + "."})
		c.finish()
	}
	if err == io.EOF {
		return nil, err
	}
	return nil, fmt.Errorf("read RTMP request: %w", err)
}

func (c *ServerConn) readRequest() (*Request, error) {
	if err := c.shakeHands(); err != nil {
		return nil, err
	}
	for {
		m, err := c.readMessage()
		if err != nil {
			return nil, err
		}
		if !isCommand(m) {
			continue // media that was on its way when a publish ended, and the like
		}
		cmd, err := c.parseCommand(m)
		if err != nil {
			return nil, err
		}
		if c.phase == phaseConnect {
			if cmd.name != "connect" {
				return nil, fmt.Errorf("command %.32q before connect: %w", cmd.name, chunk.ErrProtocol)
			}
			if err := c.readConnect(&cmd); err != nil {
				return nil, err
			}
			c.answerConnect(cmd.tid)
			continue
		}
		r, err := c.requestOf(&cmd)
		if err != nil || r != nil {
			return r, err
		}
	}
}

func (c *ServerConn) shakeHands() error {
	if c.phase != phaseHandshake {
		return nil
	}
	_ = c.nc.SetDeadline(c.deadline)
	if err := serverHandshake(c.nc); err != nil {
		return err
	}
	c.quickAck()
	c.phase = phaseConnect
	return nil
}

// requestOf answers one command between connect and publish or play; it returns
// the request if the command is one.
func (c *ServerConn) requestOf(cmd *command) (*Request, error) {
	switch cmd.name {
	case "connect":
		return nil, fmt.Errorf("second connect: %w", chunk.ErrProtocol)
	case "publish", "play":
		if v := cmd.arg(1); v.Kind != amf.String {
			if cmd.name == "publish" { // publish(false) ends a publish
				return nil, nil
			}
			return nil, fmt.Errorf("%s without a name: %w", cmd.name, chunk.ErrProtocol)
		}
		r := c.connect
		r.Kind, r.PublishType = Play, ""
		if cmd.name == "publish" {
			r.Kind, r.PublishType = Publish, "live"
		}
		if err := c.keep(&r.Name, "stream name", cmd.arg(1)); err != nil {
			return nil, err
		}
		if r.Kind == Publish && cmd.arg(2).Kind == amf.String {
			if err := c.keep(&r.PublishType, "publish type", cmd.arg(2)); err != nil {
				return nil, err
			}
		}
		c.streamID = cmd.streamID
		c.pending = &r
		return c.pending, nil
	}
	c.answerCall(cmd)
	return nil, nil
}

// keep stores a text of a command if it is not too long to be kept.
func (c *ServerConn) keep(to *string, what string, v amf.Value) error {
	s := v.Text()
	if len(s) > int(c.cfg.MaxName) {
		return fmt.Errorf("%s of %d bytes, the limit is %d: %w", what, len(s), int64(c.cfg.MaxName), chunk.ErrProtocol)
	}
	*to = s
	return nil
}

// maxFourCCs is more than there are.
const maxFourCCs = 64

func (c *ServerConn) readConnect(cmd *command) error {
	o := cmd.arg(0)
	if !o.IsObject() {
		return fmt.Errorf("connect without an object: %w", chunk.ErrProtocol)
	}
	r := &c.connect
	for _, p := range []struct {
		to   *string
		name string
	}{
		{&r.App, "app"}, {&r.TcURL, "tcUrl"}, {&r.FlashVer, "flashVer"}, {&r.PageURL, "pageUrl"},
		{&r.SwfURL, "swfUrl"}, {&r.Node, "weirNode"}, {&r.Via, "weirVia"}, {&r.Publisher, "weirPublisher"},
	} {
		if err := c.keep(p.to, p.name, o.Get(p.name)); err != nil {
			return err
		}
	}
	r.App = strings.Trim(r.App, "/")
	r.CapsEx = o.Get("capsEx").Uint32()
	r.SupportsGoAway = o.Get("supportsGoAway").True()
	c.encoding = o.Get("objectEncoding").Num
	if list := o.Get("fourCcList"); list.Kind == amf.StrictArray || list.Kind == amf.ECMAArray {
		for _, p := range list.Props {
			if s := p.Value.Text(); s != "" && len(s) <= 4 && len(r.FourCCs) < maxFourCCs {
				r.FourCCs = append(r.FourCCs, s)
			}
		}
	}
	return nil
}

// Bits of capsEx (Enhanced RTMP v2).
const (
	CapsReconnect  = 1 << 0
	capsMultitrack = 1 << 1
	capsModEx      = 1 << 2
	capsNanoOffset = 1 << 3
)

// answerConnect sends the burst that protocols of this kind open with.
func (c *ServerConn) answerConnect(tid float64) {
	window := int32(c.cfg.WindowAckSize)
	c.sendControl(&message.WinAckSize{Size: window})
	c.sendControl(&message.SetPeerBandwidth{Size: window, Limit: message.LimitTypeDynamic})
	c.setOutSize(int(c.cfg.ChunkSize))
	info := []amf.Property{
		Text("level", "status"),
		Text("code", CodeConnectSuccess),
		Text("description", "Connection succeeded."),
		amf.P("objectEncoding", amf.Num(c.encoding)),
	}
	if c.connect.CapsEx != 0 || len(c.connect.FourCCs) > 0 {
		// Media passes through untouched, so every codec and extension does.
		info = append(info,
			amf.P("fourCcList", amf.Strict(amf.Str("*"))),
			amf.P("capsEx", amf.Num(capsMultitrack|capsModEx|capsNanoOffset)))
	}
	c.sendCommand(chunk.StreamCommand, 0, "_result", tid,
		amf.Obj(Text("fmsVer", "FMS/3,5,7,7009"), amf.P("capabilities", amf.Num(31)), amf.P("mode", amf.Num(1))),
		amf.Obj(info...))
	c.sendCommand(chunk.StreamCommand, 0, "onBWDone", 0, amf.Value{})
	c.phase = phaseRequest
}

// answerCall answers a command that changes nothing here.
func (c *ServerConn) answerCall(cmd *command) {
	undefined := amf.Value{Kind: amf.Undefined}
	switch cmd.name {
	case "createStream":
		c.streams++
		c.result(cmd, amf.Num(float64(c.streams)))
	case "FCPublish":
		c.publishFC = true
		c.result(cmd, undefined)
	case "releaseStream", "FCUnpublish", "deleteStream", "closeStream", "_checkbw", "checkBandwidth":
		c.result(cmd, undefined)
	case "getStreamLength":
		c.result(cmd, amf.Num(0)) // live
	case "FCSubscribe":
		c.result(cmd, undefined)
		c.sendCommand(chunk.StreamCommand, 0, "onFCSubscribe", 0, amf.Value{},
			amf.Obj(Text("level", "status"), Text("code", CodePlayStart), Text("description", "Subscribed.")))
	case "_result", "_error", "onStatus", "FCUnsubscribe", "SetBufferLength":
	default:
		if cmd.tid != 0 {
			c.sendCommand(chunk.StreamCommand, cmd.streamID, "_error", cmd.tid, amf.Value{},
				amf.Obj(Text("level", "error"), Text("code", CodeCallFailed),
					Text("description", "The server does not know this call.")))
		}
	}
}

// result answers a command, if an answer is wanted.
func (c *ServerConn) result(cmd *command, v amf.Value) {
	if cmd.tid != 0 {
		c.sendCommand(chunk.StreamCommand, 0, "_result", cmd.tid, amf.Value{}, v)
	}
}

// sendStatus appends an onStatus on the message stream of the request.
func (c *ServerConn) sendStatus(level, code, description string, more ...Property) {
	c.send(chunk.StreamStatus, chunk.TypeCommand, c.streamID, encodeStatus(level, code, description, more...))
}

func encodeStatus(level, code, description string, more ...Property) []byte {
	info := append([]Property{Text("level", level), Text("code", code), Text("description", description)}, more...)
	return encodeCommand("onStatus", 0, amf.Value{}, amf.Obj(info...))
}

// AcceptPublish tells the encoder to start and raises the limits of the
// connection to those of an authorised publisher. The request must be a publish.
// Nodes of weir get the info properties with the status.
func (c *ServerConn) AcceptPublish(info ...Property) error {
	if c.publishFC { // FMLE and its imitators wait for this one
		c.sendCommand(chunk.StreamStatus, c.streamID, "onFCPublish", 0, amf.Value{},
			amf.Obj(Text("level", "status"), Text("code", CodePublishStart), Text("description", "Started publishing.")))
	}
	start := encodeStatus("status", CodePublishStart, "Started publishing.", c.ForNodes(info...)...)
	if c.connect.SupportsGoAway {
		start = amf.Append(start, long())
	}
	c.send(chunk.StreamStatus, chunk.TypeCommand, c.streamID, start)
	c.phase, c.pending = phasePublish, nil
	c.in.SetLimits(c.cfg.publisherLimits())
	c.deadline, c.idle = time.Time{}, c.cfg.PublishIdleTimeout
	if err := c.flush(); err != nil {
		return fmt.Errorf("accept publish: %w", err)
	}
	if c.connect.SupportsGoAway {
		c.beginHold()
	}
	return nil
}

// ReadTag returns the next audio, video or data tag of the publish; it is the
// caller's to keep. "@setDataFrame" is cut off metadata, aggregates come apart,
// empty messages are passed over.
//
// io.EOF means that the encoder ended the publish properly; the connection can
// then carry another request. Any other error means that it broke, broke the
// protocol, or sent nothing for the idle timeout (os.ErrDeadlineExceeded).
func (c *ServerConn) ReadTag() (media.Tag, error) {
	t, err := c.aggregate.next()
	for t == nil && err == nil {
		t, err = c.nextTag()
	}
	if err == nil || err == io.EOF {
		return t, err
	}
	return nil, fmt.Errorf("read published tag: %w", err)
}

func (c *ServerConn) nextTag() (media.Tag, error) {
	m, err := c.readMessage()
	if err == io.EOF {
		return nil, fmt.Errorf("connection closed without unpublish: %w", io.ErrUnexpectedEOF)
	}
	if err != nil {
		return nil, err
	}
	c.settleHold()
	if !isCommand(m) {
		return c.mediaTag(m)
	}
	cmd, err := c.parseCommand(m)
	if err != nil {
		return nil, err
	}
	return nil, c.publisherCommand(&cmd)
}

// publisherCommand answers a command that came while media flows; io.EOF means
// that it ended the publish.
func (c *ServerConn) publisherCommand(cmd *command) error {
	switch cmd.name {
	case "FCUnpublish":
		c.sendCommand(chunk.StreamStatus, c.streamID, "onFCUnpublish", 0, amf.Value{},
			amf.Obj(Text("level", "status"), Text("code", CodeUnpublishSuccess), Text("description", "Stopped publishing.")))
	case "deleteStream":
		if id := cmd.arg(1); id.Kind == amf.Number && id.Uint32() != c.streamID {
			return nil // another stream of this connection, which carries nothing
		}
	case "closeStream":
	case "publish":
		if cmd.arg(1).Kind == amf.String {
			c.otherStream(cmd, CodePublishFailed)
			return nil
		}
	case "play":
		c.otherStream(cmd, CodePlayFailed)
		return nil
	case "connect":
		return fmt.Errorf("second connect: %w", chunk.ErrProtocol)
	default:
		c.answerCall(cmd)
		return nil
	}
	c.result(cmd, amf.Value{Kind: amf.Undefined})
	c.sendStatus("status", CodeUnpublishSuccess, "Stopped publishing.")
	c.publishFC, c.idle = false, 0
	c.endHold()
	if err := c.flush(); err != nil {
		return nil // the encoder may be gone already, and ended properly all the same
	}
	return io.EOF
}

// otherStream refuses a second publish or play beside the first.
func (c *ServerConn) otherStream(cmd *command, code string) {
	c.send(chunk.StreamStatus, chunk.TypeCommand, cmd.streamID,
		encodeStatus("error", code, "This connection carries a stream already."))
}

// Tell writes a notice to the encoder between two answers, while media comes. It takes
// at most the write timeout. Safe for concurrent use.
func (c *ServerConn) Tell(notice []byte) error {
	c.mu.Lock()
	c.out = append(c.out, notice...)
	c.mu.Unlock()
	if err := c.flush(); err != nil {
		return fmt.Errorf("tell encoder: %w", err)
	}
	return nil
}

// ErrInterrupted is what reading fails with after Interrupt.
var ErrInterrupted = errors.New("interrupted")

// Interrupt makes ReadTag fail at once, so that its caller can tell the encoder by
// Refuse why the publish ends. It does not block, and is safe for concurrent use.
func (c *ServerConn) Interrupt() { c.interrupt() }

// Refuse answers the pending request, ends a publish, or connect when that was not answered
// yet, with a status and a sentence in one write. It then gives the client the
// close timeout to read the answer and leave, and closes the connection.
// Without a pending request it first waits for connect, within the handshake
// timeout: a server over its limits calls it in place of ReadRequest.
func (c *ServerConn) Refuse(s Status) error {
	defer c.nc.Close()
	if c.phase < phaseRequest {
		if err := c.awaitConnect(); err != nil {
			return fmt.Errorf("refuse connection: %w", err)
		}
	}
	c.sendRefusal(s)
	if err := c.finish(); err != nil {
		return fmt.Errorf("refuse request: %w", err)
	}
	return nil
}

// awaitConnect reads up to the connect command.
func (c *ServerConn) awaitConnect() error {
	if err := c.shakeHands(); err != nil {
		return err
	}
	for {
		m, err := c.readMessage()
		if err != nil {
			return err
		}
		if isCommand(m) {
			return nil
		}
	}
}

func (c *ServerConn) sendRefusal(s Status) {
	if c.phase < phaseRequest { // the transaction of connect is always 1 (section 7.2.1.1)
		c.sendCommand(chunk.StreamCommand, 0, "_error", 1, amf.Value{},
			amf.Obj(Text("level", "error"), Text("code", s.Code), Text("description", s.Description)))
		return
	}
	c.sendStatus("error", s.Code, s.Description)
}

// finish writes the answers, closes the sending side, and reads what the client
// still sends until it closes too: a connection that is closed with unread data
// is reset, and a reset can eat the answer.
func (c *ServerConn) finish() error {
	defer c.nc.Close()
	c.endHold()
	if err := c.flush(); err != nil {
		return err
	}
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok {
		return nil
	}
	if err := half.CloseWrite(); err != nil {
		return nil // the client was faster
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(c.cfg.CloseTimeout))
	var sink [1 << 10]byte
	for {
		if _, err := c.nc.Read(sink[:]); err != nil {
			return nil
		}
	}
}

// Redirect sends the client of the pending request to rtmpURL, which is
// rtmp://host:port/app/name[?query], by the RTMP 302 of SRS. It waits at most
// the redirect wait for any call of the client and closes the connection. The info
// properties are added for weir nodes; other clients get SRS's form byte for byte.
func (c *ServerConn) Redirect(rtmpURL string, info ...Property) error {
	defer c.nc.Close()
	if c.pending != nil && c.pending.Kind == Play {
		c.sendPlayStart()
	}
	c.send(chunk.StreamStatus, chunk.TypeCommand, 0, encodeRedirect(rtmpURL, c.ForNodes(info...)...))
	if err := c.flush(); err != nil {
		return fmt.Errorf("redirect: %w", err)
	}
	c.deadline = time.Now().Add(c.cfg.RedirectWait)
	for {
		m, err := c.readMessage()
		if err != nil {
			return nil // gone or silent: either is how clients take it
		}
		if isCommand(m) {
			_ = c.finish()
			return nil
		}
	}
}

// ForNodes returns the properties if the client is a node of weir, else none.
func (c *ServerConn) ForNodes(info ...Property) []Property {
	if c.connect.Node == "" {
		return nil
	}
	return info
}

// encodeRedirect returns the 302 command, its keys in the order of SRS.
func encodeRedirect(rtmpURL string, info ...Property) []byte {
	path, _, _ := strings.Cut(rtmpURL, "?")
	app := rtmpURL
	if slash := strings.LastIndexByte(path, '/'); slash > len("rtmp://") {
		app = rtmpURL[:slash]
	}
	return encodeStatus("error", CodeConnectRejected, "RTMP 302 Redirect",
		amf.P("ex", amf.Obj(append([]Property{
			amf.P("code", amf.Num(302)),
			Text("redirect", app),
			Text("redirect2", rtmpURL),
		}, info...)...)))
}
