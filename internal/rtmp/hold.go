package rtmp

import (
	"errors"
	"math"
	"os"
	"time"

	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

// OBS 27.2 to 29 comes back from a GoAway with frames that have waited
// (plugins/obs-outputs/rtmp-stream.c). As soon as it has read Publish.Start it begins a
// thread that sends them (init_send), while the thread that has connected sends the
// metadata and then says that it is connected again (connect_thread). Both write by
// the same buffer of librtmp without a lock, and the frames' thread takes their first,
// a key frame, for the one at which to go away as long as the other has not said so. It
// crashes, connects again, or sends nothing any more: every fourth time here.
//
// The frames' thread can be kept waiting. Before it writes it asks whether the socket has
// bytes, and if so it reads a whole chunk, however long that takes (send_packet,
// process_recv_data). So one that is not whole has to be there when it looks, and
// must not have been read with the bytes before it: librtmp reads what there is, up
// to 16 KiB. Therefore:
//
//   - OBS needs some milliseconds for Publish.Start, as it has numbers in it that are long
//     when they are printed, and HandleInvoke prints all that it gets for its log;
//   - meanwhile a message comes bit by bit, and goes on to, until the first message of the
//     publish, the metadata, shows that the frames' thread waits by now;
//   - its end comes a little later, when the other thread is done.
//
// When OBS begins to publish it does all this in order, and to hold it changes nothing.
const (
	holdStep    = time.Millisecond
	holdSettle  = 30 * time.Millisecond // from the first message of the publish to the end of the held one
	holdTimeout = 5 * time.Second       // for the first message of the publish

	heldType  = 0x21 // no message type of RTMP; OBS looks at none but GoAway then
	heldBytes = 4096 // one for each holdStep, at most a chunk

	longNumbers = 1500 // 9 µs and 9 B each, together less than ten packets
)

// hold is a message that is not finished yet; answers wait behind its end.
type hold struct {
	// owned by the reader of the connection
	until   time.Time // when its end is due; zero without one
	settles bool      // the publish has begun

	rest []byte // guarded by conn.mu
}

// long is an argument that takes librtmp long.
func long() amf.Value {
	v := make([]amf.Value, longNumbers)
	for i := range v {
		v[i] = amf.Num(math.MaxFloat64) // 309 digits
	}
	return amf.Strict(v...)
}

// beginHold holds a message from now on. What has been sent has to be flushed.
func (c *conn) beginHold() {
	c.hold.until, c.hold.settles = time.Now().Add(holdTimeout), false
	c.mu.Lock()
	c.hold.rest = chunk.AppendMessage(nil, chunk.StreamControl, heldType, 0, 0, make([]byte, min(heldBytes, c.outSize)), c.outSize)
	c.mu.Unlock()
}

// settleHold lets the end of the held message come shortly: the peer has begun.
func (c *conn) settleHold() {
	if h := &c.hold; !h.until.IsZero() && !h.settles {
		h.until, h.settles = time.Now().Add(holdSettle), true
	}
}

// endHold puts the end of the held message, if there is one, before the answers.
func (c *conn) endHold() {
	c.hold.until = time.Time{}
	c.mu.Lock()
	c.out = append(c.hold.rest, c.out...)
	c.hold.rest = nil
	c.mu.Unlock()
}

// readHolding reads while a message is held, and writes of it.
func (c *conn) readHolding(p []byte) (int, error) {
	for {
		now := time.Now()
		if !now.Before(c.hold.until) {
			c.endHold()
			if err := c.flush(); err != nil {
				return 0, err
			}
			c.quickAck() // the first of the frames is a small piece
			return netReader{c}.Read(p)
		}
		c.cut = time.Time{}
		_ = c.nc.SetReadDeadline(now.Add(min(holdStep, c.hold.until.Sub(now))))
		if c.interrupted.Load() { // behind the deadline, as in Read
			c.endHold()
			return 0, ErrInterrupted
		}
		n, err := c.nc.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if !c.hold.settles {
			if err := c.writeHeld(); err != nil {
				return 0, err
			}
		}
	}
}

// writeHeld writes one byte of the held message, but never its last.
func (c *conn) writeHeld() error {
	if !c.writing.TryLock() {
		return nil
	}
	defer c.writing.Unlock()
	c.mu.Lock()
	rest := c.hold.rest
	if len(rest) > 1 {
		c.hold.rest = rest[1:]
	}
	c.mu.Unlock()
	if len(rest) <= 1 {
		return nil
	}
	return c.write(rest[:1])
}
