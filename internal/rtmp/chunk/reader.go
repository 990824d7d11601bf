package chunk

import (
	"encoding/binary"
	"io"
	"sync"

	"weir/internal/media"
)

// minBuffer is the smallest read buffer: the largest chunk header (18 bytes)
// and a control message fit with room to spare.
const minBuffer = 1 << 10

// scratchKept is the largest command buffer that is kept for the next command.
const scratchKept = 4 << 10

// extendedMark in the 24-bit timestamp field says that 32 bits follow.
const extendedMark = 0xFFFFFF

// Reader reads messages. It is not safe for concurrent use.
type Reader struct {
	// static
	src io.Reader

	// owned by the caller of ReadMessage
	limits    Limits
	chunkSize int
	received  uint64 // bytes taken from src

	buf        []byte // buf[start:end] is read ahead; nil when nothing is, after Rest
	start, end int
	within     bool // a chunk has begun

	low     []*chunkStream // chunk streams of one-byte headers, by id
	high    map[uint32]*chunkStream
	streams int
	pending int // bytes held by unfinished messages

	lent    []byte // payload of the message returned last, if it was not a tag
	scratch []byte // empty buffer for the next command
	slab    media.Slab
	apart   bool // the peer takes messages back: each tag has memory of its own

	// leavesOut is the peer's habit, learned from its first type-3 chunk that
	// tells: no extended timestamp there.
	leavesOut bool
}

// chunkStream is what type 1, 2 and 3 headers of one id refer back to.
type chunkStream struct {
	typ      uint8
	started  bool   // a full header was seen
	extended bool   // the last header had an extended timestamp
	time     uint32 // of the current or last message
	delta    uint32 // that a type-3 chunk adds when it starts a message
	field    uint32 // value of the last extended timestamp field
	length   int
	streamID uint32

	// the unfinished message
	open bool
	body []byte // storage, with room for the tag header in front of media
	got  int    // bytes of the payload that arrived
	held int    // bytes of pending that body stands for
}

// NewReader returns a Reader with the default chunk size of 128 bytes.
func NewReader(r io.Reader, limits Limits) *Reader {
	return &Reader{src: r, limits: limits, chunkSize: DefaultSize, buf: make([]byte, bufferSize(limits))}
}

// Awaiter is a source that can wait before it is read from.
type Awaiter interface {
	io.Reader
	// Await returns when it is time to read, or earlier.
	Await()
}

// buffers are those of shared readers that nobody has now; all of one size but for readers
// with other limits.
var buffers sync.Pool // of *[]byte

// await has the source wait without a buffer.
func (r *Reader) await() {
	a, ok := r.src.(Awaiter)
	if !ok {
		return
	}
	size := bufferSize(r.limits)
	if len(r.buf) == size {
		b := r.buf
		r.buf = nil
		buffers.Put(&b)
	}
	a.Await()
	if b, ok := buffers.Get().(*[]byte); ok && len(*b) == size && r.buf == nil {
		r.buf = *b
	}
}

func bufferSize(l Limits) int { return max(l.Buffer, minBuffer) }

// SetLimits replaces the limits; messages that already began keep the old ones.
func (r *Reader) SetLimits(l Limits) {
	r.limits = l
	if size := bufferSize(l); size > len(r.buf) {
		grown := make([]byte, size)
		r.end = copy(grown, r.buf[r.start:r.end])
		r.buf, r.start = grown, 0
	}
}

// Between reports whether all that was read from the underlying reader was taken, up to
// the end of a chunk.
func (r *Reader) Between() bool { return !r.within && r.start == r.end }

// Rest lets go of the memory that is of no use until more comes.
func (r *Reader) Rest() {
	if r.start == r.end {
		r.buf, r.start, r.end = nil, 0, 0
	}
	if r.lent == nil {
		r.scratch = nil
	}
	r.slab.Reset()
}

// Gone lets the memory of a tag that ReadMessage has returned be used again (see
// media.Slab.Gone). Safe for concurrent use.
func (r *Reader) Gone(t media.Tag, unused bool) { r.slab.Gone(t, unused) }

// Received returns the number of bytes taken from the underlying reader, which
// is what acknowledgements count (RTMP 1.0, section 5.4.3).
func (r *Reader) Received() uint64 { return r.received }

// ReadMessage returns the next complete message. SetChunkSize and Abort take
// effect here and are not returned. Zero-length messages are.
//
// The error is io.EOF at the end of the input between two messages,
// io.ErrUnexpectedEOF within one, one that wraps ErrProtocol when the peer
// broke the protocol or a limit, or that of the underlying reader. After an
// error the Reader must not be used any more, unless the underlying reader gave it
// without a byte between two chunks (see Between).
func (r *Reader) ReadMessage() (Message, error) {
	if r.lent != nil {
		if cap(r.lent) <= scratchKept {
			r.scratch = r.lent[:0]
		}
		r.lent = nil
	}
	for {
		m, done, err := r.readChunk()
		if err != nil {
			return Message{}, err
		}
		if !done {
			continue
		}
		switch m.Type {
		case TypeSetChunkSize:
			err = r.setChunkSize(m.Payload)
		case TypeAbort:
			err = r.abort(m.Payload)
		default:
			return m, nil
		}
		if err != nil {
			return Message{}, err
		}
	}
}

func (r *Reader) setChunkSize(p []byte) error {
	if len(p) < 4 {
		return protocolError("SetChunkSize of %d bytes", len(p))
	}
	size := binary.BigEndian.Uint32(p)
	if size == 0 || size >= 1<<31 {
		return protocolError("chunk size %d is not in [1, 2^31)", size)
	}
	r.chunkSize = int(min(size, MaxSize))
	return nil
}

func (r *Reader) abort(p []byte) error {
	if len(p) < 4 {
		return protocolError("Abort of %d bytes", len(p))
	}
	if cs := r.find(binary.BigEndian.Uint32(p)); cs != nil && cs.open {
		r.apart = true
		r.pending -= cs.held
		cs.open, cs.body, cs.got, cs.held = false, nil, 0, 0
	}
	return nil
}

// oneByteIDs is above the ids that a header of one byte can have (section 5.3.1.1).
const oneByteIDs = 64

func (r *Reader) find(id uint32) *chunkStream {
	if id < oneByteIDs {
		if id < uint32(len(r.low)) {
			return r.low[id]
		}
		return nil
	}
	return r.high[id]
}

func (r *Reader) add(id uint32) (*chunkStream, error) {
	if r.streams >= r.limits.MaxChunkStreams {
		return nil, protocolError("more than %d chunk streams", r.limits.MaxChunkStreams)
	}
	r.streams++
	cs := new(chunkStream)
	if id < oneByteIDs {
		if n := int(id) + 1 - len(r.low); n > 0 { // peers use a few small ones
			r.low = append(r.low, make([]*chunkStream, n)...)
		}
		r.low[id] = cs
	} else {
		if r.high == nil {
			r.high = make(map[uint32]*chunkStream)
		}
		r.high[id] = cs
	}
	return cs, nil
}

// headerSizes are those of the message header by chunk type.
var headerSizes = [4]int{11, 7, 3, 0}

// readChunk reads one chunk; done says that it completed the message m.
func (r *Reader) readChunk() (m Message, done bool, err error) {
	if err := r.need(1); err != nil {
		if err == io.ErrUnexpectedEOF && r.pending == 0 {
			err = io.EOF
		}
		return m, false, err
	}
	r.within = true
	first := r.buf[r.start]
	format, id, basic := first>>6, uint32(first&0x3f), 1
	switch id { // section 5.3.1.1
	case 0:
		basic = 2
	case 1:
		basic = 3
	}
	if err := r.need(basic + headerSizes[format]); err != nil {
		return m, false, err
	}
	h := r.buf[r.start:]
	switch basic {
	case 2:
		id = uint32(h[1]) + 64
	case 3:
		id = uint32(h[2])<<8 + uint32(h[1]) + 64
	}
	cs := r.find(id)
	if cs == nil {
		if cs, err = r.add(id); err != nil {
			return m, false, err
		}
	}
	h = h[basic:]
	r.start += basic + headerSizes[format]

	if format == 3 {
		err = r.repeatHeader(id, cs)
	} else {
		err = r.readHeader(format, id, cs, h)
	}
	if err != nil {
		return m, false, err
	}
	if !cs.open {
		if err := r.open(cs); err != nil {
			return m, false, err
		}
	}
	if err := r.readPayload(cs); err != nil {
		return m, false, err
	}
	r.within = false
	if cs.got < cs.length {
		return m, false, nil
	}
	return r.finish(id, cs), true, nil
}

// readHeader takes over a header of type 0, 1 or 2 (section 5.3.1.2).
func (r *Reader) readHeader(format byte, id uint32, cs *chunkStream, h []byte) error {
	if cs.open {
		return protocolError("new message on chunk stream %d before the last one ended", id)
	}
	// Some encoders open a chunk stream with a type-1 header: stream id 0 then.
	if !cs.started && format == 2 {
		return protocolError("chunk stream %d opens with a type-2 header", id)
	}
	t := uint32(h[0])<<16 | uint32(h[1])<<8 | uint32(h[2])
	if format <= 1 {
		cs.length = int(h[3])<<16 | int(h[4])<<8 | int(h[5])
		cs.typ = h[6]
	}
	if format == 0 {
		cs.streamID = binary.LittleEndian.Uint32(h[7:])
	}
	cs.extended = t == extendedMark
	if cs.extended {
		if err := r.need(4); err != nil {
			return err
		}
		t = binary.BigEndian.Uint32(r.buf[r.start:])
		r.start += 4
		cs.field = t
	}
	cs.started = true
	if format == 0 {
		cs.time = t
		// A type-3 header after this one adds the time itself (section 5.3.1.2.4;
		// ffmpeg sends it so). Past the 24 bits that can only mean "the same time".
		cs.delta = t
		if cs.extended {
			cs.delta = 0
		}
	} else {
		cs.time += t // wraps
		cs.delta = t
	}
	return nil
}

// repeatHeader takes over a type-3 header: the next chunk of a message, or the
// first one of a message like the last.
func (r *Reader) repeatHeader(id uint32, cs *chunkStream) error {
	if !cs.started {
		return protocolError("chunk stream %d opens with a type-3 header", id)
	}
	if cs.extended {
		if err := r.skipRepeatedTime(cs); err != nil {
			return err
		}
	}
	if !cs.open {
		cs.time += cs.delta // wraps
	}
	return nil
}

// skipRepeatedTime steps over the extended timestamp of a type-3 chunk. The
// specification wants it there, and several senders leave it out; so the four
// bytes are compared with the timestamp, and when they differ they are payload.
func (r *Reader) skipRepeatedTime(cs *chunkStream) error {
	rest := cs.length
	if cs.open {
		rest -= cs.got
	}
	if rest < 4 && r.leavesOut {
		return nil // those four bytes may never come
	}
	if err := r.need(4); err != nil {
		if err == io.ErrUnexpectedEOF && r.end-r.start >= min(rest, r.chunkSize) {
			return nil
		}
		return err
	}
	v := binary.BigEndian.Uint32(r.buf[r.start:])
	if v == cs.field || v == cs.time {
		r.start += 4
		r.leavesOut = false
	} else {
		r.leavesOut = true
	}
	return nil
}

func isTag(typ uint8) bool { return typ == TypeAudio || typ == TypeVideo || typ == TypeData }

// open begins the message that the last header of cs announced.
func (r *Reader) open(cs *chunkStream) error {
	if limit := r.limits.limit(cs.typ); cs.length > limit {
		return protocolError("message of type %d has %d bytes, the limit is %d", cs.typ, cs.length, limit)
	}
	size := r.storage(cs, max(r.limits.Trusted, 4<<10))
	if err := r.hold(cs, size); err != nil {
		return err
	}
	switch {
	case cs.typ != TypeData && isTag(cs.typ) && cs.length > 0 && !r.apart:
		// Of those who share memory, all are kept for the same time: much data is for
		// nobody, as empty messages are, and would be kept with the frames beside it.
		cs.body = r.slab.Make(size)
	case !isTag(cs.typ) && cap(r.scratch) >= size:
		cs.body, r.scratch = r.scratch[:size], nil
	default:
		cs.body = make([]byte, size)
	}
	cs.open, cs.got = true, 0
	return nil
}

// storage returns how much memory the message of cs gets when it may have size
// bytes: all that it needs, or so little that its payload does not fit yet.
func (r *Reader) storage(cs *chunkStream, size int) int {
	whole := cs.length
	if isTag(cs.typ) {
		whole += media.TagOverhead
	}
	if size+media.TagOverhead >= whole {
		return whole
	}
	return size
}

// hold accounts for size bytes as the memory of the unfinished message of cs.
func (r *Reader) hold(cs *chunkStream, size int) error {
	if r.pending+size-cs.held > r.limits.MaxPending+media.TagOverhead {
		return protocolError("unfinished messages hold more than %d bytes", r.limits.MaxPending)
	}
	r.pending += size - cs.held
	cs.held = size
	return nil
}

// readPayload reads the payload of one chunk into the message of cs.
func (r *Reader) readPayload(cs *chunkStream) error {
	front := 0
	if isTag(cs.typ) {
		front = media.TagHeaderSize
	}
	for want := min(r.chunkSize, cs.length-cs.got); want > 0; {
		at := front + cs.got
		if at == len(cs.body) {
			if err := r.grow(cs); err != nil {
				return err
			}
		}
		n := min(want, len(cs.body)-at)
		if err := r.readFull(cs.body[at : at+n]); err != nil {
			return err
		}
		cs.got += n
		want -= n
	}
	return nil
}

// grow doubles the storage of an unfinished message, up to what it needs.
func (r *Reader) grow(cs *chunkStream) error {
	size := r.storage(cs, 2*len(cs.body))
	if err := r.hold(cs, size); err != nil {
		return err
	}
	grown := make([]byte, size)
	copy(grown, cs.body)
	cs.body = grown
	return nil
}

func (r *Reader) finish(id uint32, cs *chunkStream) Message {
	m := Message{Type: cs.typ, StreamID: cs.streamID, Time: cs.time, ChunkStream: id}
	if isTag(cs.typ) {
		m.Tag = media.Tag(cs.body)
		m.Tag.Init(media.Kind(cs.typ), cs.time)
		m.Payload = m.Tag.Body()
	} else {
		m.Payload = cs.body
		r.lent = cs.body
	}
	r.pending -= cs.held
	cs.open, cs.body, cs.got, cs.held = false, nil, 0, 0
	return m
}

// need makes at least n bytes available in buf; n is at most minBuffer. It
// returns io.ErrUnexpectedEOF when the input ends before.
func (r *Reader) need(n int) error {
	if r.end-r.start >= n {
		return nil
	}
	return r.fill(n)
}

func (r *Reader) fill(n int) error {
	if r.limits.Shared && r.start == r.end {
		r.start, r.end = 0, 0
		r.await()
	}
	if r.buf == nil {
		r.buf = make([]byte, bufferSize(r.limits))
	}
	r.end = copy(r.buf, r.buf[r.start:r.end])
	r.start = 0
	for empty := 0; r.end < n; {
		got, err := r.src.Read(r.buf[r.end:])
		r.end += got
		r.received += uint64(got)
		if r.end >= n {
			return nil
		}
		if err == io.EOF {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if got > 0 {
			empty = 0
		} else if empty++; empty == 100 {
			return io.ErrNoProgress
		}
	}
	return nil
}

// readFull fills p, from the buffer first and for the rest, when it is large,
// without a copy through the buffer.
func (r *Reader) readFull(p []byte) error {
	n := copy(p, r.buf[r.start:r.end])
	r.start += n
	for p = p[n:]; len(p) > 0; {
		if r.buf != nil && len(p) >= len(r.buf) {
			n, err := io.ReadFull(r.src, p)
			r.received += uint64(n)
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if err := r.need(1); err != nil {
			return err
		}
		n := copy(p, r.buf[r.start:r.end])
		r.start += n
		p = p[n:]
	}
	return nil
}
