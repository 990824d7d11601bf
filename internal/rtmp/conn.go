package rtmp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yutopp/go-rtmp/message"
	"golang.org/x/sys/unix"

	"weir/internal/media"
	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

// conn is what both sides of a connection have in common: messages in, answers
// out. Answers gather in out and leave in one write, at the latest before the
// next wait for bytes from the peer.
type conn struct {
	// static
	nc           net.Conn
	amfLimits    amf.Limits
	writeTimeout time.Duration

	// owned by the reader of the connection
	in        *chunk.Reader
	deadline  time.Time     // of the present phase; zero means none
	idle      time.Duration // longest wait for bytes without a deadline; 0 means for ever
	cut       time.Time     // the read deadline that is set for idle; zero if another may be set
	unsent    error         // why answers could not be written before a wait; the next read says it
	ackWindow uint64        // bytes after which the peer wants an acknowledgement
	acked     uint64
	aggregate aggregate
	inject    func([]byte) // takes the answers while the fan-out owns the writing side

	hold hold
	ears *ears // what is heard of a player that the fan-out serves, nil before

	interrupted atomic.Bool // set by Interrupt

	writing sync.Mutex // held while bytes are written to nc
	mu      sync.Mutex // guards what follows; taken within writing, never the other way
	out     []byte
	outSize int // chunk size of what is appended to out
}

func (c *conn) start(nc net.Conn, limits chunk.Limits, amfLimits amf.Limits, writeTimeout time.Duration) {
	c.nc, c.amfLimits, c.writeTimeout = nc, amfLimits, writeTimeout
	c.in = chunk.NewReader(netReader{c}, limits)
	c.outSize = chunk.DefaultSize
	c.ackWindow = 2500000
	if tcp, ok := nc.(*net.TCPConn); ok {
		_ = tcp.SetNoDelay(true) // a failure costs only time
	}
}

// quickAck acknowledges at once what has come and what comes next. OBS writes pieces of
// messages and waits with each for the acknowledgement of the one before (Nagle's
// algorithm), which otherwise comes after 40 ms if there is no answer to go with it.
func (c *conn) quickAck() {
	tcp, ok := c.nc.(*net.TCPConn)
	if !ok {
		return
	}
	if raw, err := tcp.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { // a failure costs only time
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
		})
	}
}

// netReader is the connection as the chunk reader sees it.
type netReader struct{ c *conn }

// Await implements chunk.Awaiter for connections that have such a method.
func (r netReader) Await() {
	w, ok := r.c.nc.(interface{ Await() })
	if !ok {
		return
	}
	if r.c.unsent = r.c.flushIfIdle(); r.c.unsent == nil {
		w.Await()
	}
}

func (r netReader) Read(p []byte) (int, error) {
	c := r.c
	if c.unsent != nil {
		return 0, c.unsent
	}
	if err := c.flushIfIdle(); err != nil {
		return 0, err
	}
	if c.ears != nil {
		return c.ears.read(p, c.in.Between())
	}
	if !c.hold.until.IsZero() {
		return c.readHolding(p)
	}
	switch {
	case !c.deadline.IsZero():
		c.cut = time.Time{}
		_ = c.nc.SetReadDeadline(c.deadline)
	case c.idle > 0:
		c.putOff()
	}
	if c.interrupted.Load() { // behind the deadline, which may have undone that of interrupt
		return 0, ErrInterrupted
	}
	return c.nc.Read(p)
}

// idleShare is the part of an idle time that may be added to it.
const idleShare = 16

// putOff has the read deadline come no earlier than the idle time from now. It is set
// somewhat later than that, so that not every read has to set it.
func (c *conn) putOff() {
	now := time.Now()
	if c.cut.Sub(now) < c.idle {
		c.cut = now.Add(c.idle + c.idle/idleShare)
		_ = c.nc.SetReadDeadline(c.cut)
	}
}

// interrupt makes a read that waits, and all that come, fail, and a write that
// waits.
func (c *conn) interrupt() {
	c.interrupted.Store(true)
	_ = c.nc.SetDeadline(time.Unix(1, 0))
}

// flush writes all answers that have gathered.
func (c *conn) flush() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.writeOut()
}

// flushIfIdle is flush for the reader, who must not wait for a blocked writer:
// that one writes the answers after its own bytes.
func (c *conn) flushIfIdle() error {
	if !c.writing.TryLock() {
		return nil
	}
	defer c.writing.Unlock()
	return c.writeOut()
}

// writeOut writes out; the caller holds writing.
func (c *conn) writeOut() error {
	c.mu.Lock()
	var out []byte
	if c.hold.rest == nil {
		out, c.out = c.out, nil
	}
	c.mu.Unlock()
	if len(out) == 0 {
		return nil
	}
	if c.inject != nil {
		c.inject(out)
		return nil
	}
	return c.write(out)
}

// write writes p within the write timeout; the caller holds writing.
func (c *conn) write(p []byte) error {
	_ = c.nc.SetWriteDeadline(time.Now().Add(c.writeTimeout))
	if _, err := c.nc.Write(p); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// send appends one message to the answers.
func (c *conn) send(csid uint32, typ uint8, streamID uint32, payload []byte) {
	c.mu.Lock()
	c.out = chunk.AppendMessage(c.out, csid, typ, streamID, 0, payload, c.outSize)
	c.mu.Unlock()
}

// sendControl appends a protocol control or user control message.
func (c *conn) sendControl(m message.Message) {
	c.send(chunk.StreamControl, uint8(m.TypeID()), 0, encodeControl(m))
}

// encodeControl returns the payload of a control message. Encoding into memory
// fails only for values out of range, and weir sends none.
func encodeControl(m message.Message) []byte {
	var b bytes.Buffer
	if err := message.NewEncoder(&b).Encode(m); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// setOutSize appends SetChunkSize and uses the new size for what comes after it.
func (c *conn) setOutSize(size int) {
	c.sendControl(&message.SetChunkSize{ChunkSize: uint32(size)})
	c.mu.Lock()
	c.outSize = size
	c.mu.Unlock()
}

// sendCommand appends an AMF0 command.
func (c *conn) sendCommand(csid, streamID uint32, name string, tid float64, args ...amf.Value) {
	c.send(csid, chunk.TypeCommand, streamID, encodeCommand(name, tid, args...))
}

func encodeCommand(name string, tid float64, args ...amf.Value) []byte {
	return amf.Append(amf.Append(nil, amf.Str(name), amf.Num(tid)), args...)
}

// readMessage returns the next message that is not acknowledgement, window size
// or bandwidth. User control messages are returned, pings after the answer.
func (c *conn) readMessage() (chunk.Message, error) {
	for {
		m, err := c.in.ReadMessage()
		if err != nil {
			return m, err
		}
		if got := c.in.Received(); got-c.acked >= c.ackWindow {
			c.acked = got
			c.sendControl(&message.Ack{SequenceNumber: uint32(got)}) // wraps (section 5.4.3)
		}
		switch m.Type {
		case chunk.TypeAck, chunk.TypeSetPeerBandwidth:
		case chunk.TypeWindowAckSize:
			if size := beUint32(m.Payload); size > 0 {
				c.ackWindow = max(uint64(size), minAckWindow)
			}
		case chunk.TypeUserControl:
			if ping, ok := userControl(m).(*message.UserCtrlEventPingRequest); ok {
				c.sendControl(&message.UserCtrl{Event: &message.UserCtrlEventPingResponse{Timestamp: ping.Timestamp}})
			}
			return m, nil
		default:
			return m, nil
		}
	}
}

// minAckWindow keeps a peer from asking for an answer to each of its packets.
const minAckWindow = 16 << 10

func beUint32(p []byte) uint32 {
	if len(p) < 4 {
		return 0
	}
	return uint32(p[0])<<24 | uint32(p[1])<<16 | uint32(p[2])<<8 | uint32(p[3])
}

// userControl returns the event of a user control message, nil for an event
// that weir does not know (section 7.1.7).
func userControl(m chunk.Message) message.UserCtrlEvent {
	var e message.UserCtrlEvent
	if err := message.NewUserControlEventDecoder(bytes.NewReader(m.Payload)).Decode(&e); err != nil {
		return nil
	}
	return e
}

// command is a decoded command message.
type command struct {
	name     string
	tid      float64 // transaction id; 0 when no answer is wanted
	args     []amf.Value
	streamID uint32
}

// arg returns an argument, the first being the command object; Undefined when
// the command has fewer.
func (c *command) arg(i int) amf.Value {
	if i < len(c.args) {
		return c.args[i]
	}
	return amf.Value{Kind: amf.Undefined}
}

// parseCommand decodes a message of type 17 or 20. Type 17 is AMF3 in name: one
// byte, then AMF0 values that may switch to AMF3 one by one (section 7.1.1).
func (c *conn) parseCommand(m chunk.Message) (command, error) {
	p := m.Payload
	if m.Type == chunk.TypeCommandAMF3 && len(p) > 0 && p[0] == 0 {
		p = p[1:]
	}
	values, err := amf.Decode(p, c.amfLimits)
	if err != nil {
		return command{}, fmt.Errorf("read command: %w", errors.Join(err, chunk.ErrProtocol))
	}
	if len(values) == 0 || values[0].Kind != amf.String {
		return command{}, fmt.Errorf("read command: no name: %w", chunk.ErrProtocol)
	}
	cmd := command{name: values[0].Str, streamID: m.StreamID}
	if len(values) > 1 {
		cmd.tid = values[1].Num
		cmd.args = values[2:]
	}
	return cmd, nil
}

func isCommand(m chunk.Message) bool {
	return m.Type == chunk.TypeCommand || m.Type == chunk.TypeCommandAMF3
}

// mediaTag returns the tag of an audio, video, data or aggregate message; nil
// when it holds nothing that a player could use.
func (c *conn) mediaTag(m chunk.Message) (media.Tag, error) {
	switch m.Type {
	case chunk.TypeAudio, chunk.TypeVideo:
		if len(m.Payload) > 0 {
			return m.Tag, nil
		}
	case chunk.TypeData:
		return dataTag(m.Tag, m.Time, m.Payload), nil
	case chunk.TypeDataAMF3:
		p := m.Payload
		if len(p) > 0 && p[0] == 0 { // as in type 17, AMF0 follows
			p = p[1:]
		}
		return dataTag(nil, m.Time, p), nil
	case chunk.TypeAggregate:
		c.aggregate = aggregate{rest: m.Payload, time: m.Time}
		return c.aggregate.next()
	}
	return nil, nil
}

// Gone lets the memory of a tag that ReadTag has returned be used again (see
// media.Slab.Gone).
func (c *conn) Gone(t media.Tag, unused bool) { c.in.Gone(t, unused) }

// dataTag returns the tag of a data message with body p. It is t, unless that
// is nil or the body must change: "@setDataFrame" in front of the name is for
// servers and is cut off. What only concerns the two ends of this connection
// becomes nil.
func dataTag(t media.Tag, time uint32, p []byte) media.Tag {
	if rest, ok := amf.CutString(p, "@setDataFrame"); ok {
		t, p = nil, rest
	}
	for _, name := range [...]string{"@clearDataFrame", "|RtmpSampleAccess", "onStatus"} {
		if _, ok := amf.CutString(p, name); ok {
			return nil
		}
	}
	if len(p) == 0 {
		return nil
	}
	if t == nil {
		t = media.NewTag(media.Data, time, len(p))
		copy(t.Body(), p)
	}
	return t
}

// aggregate is what is left of an aggregate message: FLV tags whose times are
// relative to that of the first (section 7.1.6).
type aggregate struct {
	rest    []byte // valid until the next message is read
	time    uint32 // of the message
	first   uint32 // time of the first tag
	started bool
}

// next returns the next tag, nil at the end.
func (a *aggregate) next() (media.Tag, error) {
	for len(a.rest) > 0 {
		if len(a.rest) < media.TagHeaderSize {
			return nil, fmt.Errorf("read aggregate: tag header is cut short: %w", chunk.ErrProtocol)
		}
		h := media.Tag(a.rest)
		size := int(h[1])<<16 | int(h[2])<<8 | int(h[3])
		if len(a.rest) < media.TagHeaderSize+size {
			return nil, fmt.Errorf("read aggregate: tag of %d bytes is cut short: %w", size, chunk.ErrProtocol)
		}
		body := a.rest[media.TagHeaderSize : media.TagHeaderSize+size]
		// The size that follows the last tag is left out by some.
		a.rest = a.rest[min(media.TagOverhead+size, len(a.rest)):]
		if !a.started {
			a.started, a.first = true, h.Time()
		}
		kind, time := h.Kind(), a.time+h.Time()-a.first // wraps
		switch {
		case size == 0:
		case kind == media.Data:
			if t := dataTag(nil, time, body); t != nil {
				return t, nil
			}
		case kind == media.Audio || kind == media.Video:
			t := media.NewTag(kind, time, size)
			copy(t.Body(), body)
			return t, nil
		}
	}
	return nil, nil
}
