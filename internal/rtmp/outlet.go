package rtmp

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"weir/internal/media"
	"weir/internal/rtmp/chunk"
)

// Outlet is the writing side of a publish in the hands of one who sends for many
// publishes with one system call: it says which bytes go to the socket, and the caller
// sends them, without waiting.
//
// A write begins with Begin and ends with Sent, and no other bytes come in between: what
// the client has to answer meanwhile goes along with the next write. One goroutine at a
// time may use an Outlet, and WriteTags is not used beside it. Before Unpublish nothing may
// be left to send.
type Outlet struct {
	c     *Client
	raw   syscall.RawConn
	rest  []byte    // of the last write; while there is any, writing of the client is held
	until time.Time // when rest must be gone
}

// Outlet returns the writing side of a publish, nil if what is written does not go to a
// socket as it is, as under TLS.
func (c *Client) Outlet() *Outlet {
	sc, ok := c.nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return &Outlet{c: c, raw: raw}
}

// Control calls f with the descriptor of the socket, which is good until f returns. It is
// an error if the connection was closed; f is not called then.
func (o *Outlet) Control(f func(fd uintptr)) error { return o.raw.Control(f) }

// Rest returns what is left of the last write. It is to be sent first, and Sent to be
// told; until then nothing else can be written.
func (o *Outlet) Rest() []byte { return o.rest }

// Begin begins a write: it appends to b what must go before the tags that the caller
// then appends with AppendTags. It is not ok while an answer of the client waits for the
// socket, or there is a rest. An error is what the server said, as of WriteTags.
func (o *Outlet) Begin(b []byte) (_ []byte, ok bool, err error) {
	c := o.c
	if err := c.Err(); err != nil {
		return b, false, err
	}
	if len(o.rest) > 0 || !c.writing.TryLock() {
		return b, false, nil
	}
	c.mu.Lock()
	b = append(b, c.out...)
	c.out = nil
	c.mu.Unlock()
	return b, true, nil
}

// AppendTags appends tags to b as a publish sends them.
func (c *Client) AppendTags(b []byte, tags ...media.Tag) []byte {
	for _, t := range tags {
		if t.Kind() == media.Data && media.Sniff(media.Data, t.Body()).IsHeader() {
			t = withSetDataFrame(t)
		}
		b = chunk.AppendMedia(b, t, c.streamID, int(c.cfg.ChunkSize))
	}
	return b
}

// Sent ends a write of b, or goes on with one if b is Rest, after n bytes of b have gone;
// the others are kept. It fails if the socket has not taken all of a write within the
// write timeout.
func (o *Outlet) Sent(b []byte, n int) error {
	switch {
	case n == len(b):
		o.rest = nil
		o.c.writing.Unlock()
	case len(o.rest) == 0:
		o.rest = slices.Clone(b[n:])
		o.until = time.Now().Add(o.c.writeTimeout)
	default:
		o.rest = b[n:]
		if time.Now().After(o.until) {
			return fmt.Errorf("write: %w", os.ErrDeadlineExceeded)
		}
	}
	return nil
}

// Explain returns why the connection is lost on which a write failed with err: what the
// server said last, if anything. It waits for that for up to half a second, and the
// connection is of no more use, save for Close.
func (o *Outlet) Explain(err error) error {
	if said := o.c.Err(); said != nil && errors.Is(err, said) {
		return err
	}
	return o.c.explain(err)
}
