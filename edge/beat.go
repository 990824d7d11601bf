package edge

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/internal/quiet"
)

// beatConn is the connection of a pull that reads only as often as the node's players
// are sent something, when they are so many that they get large batches: what comes
// earlier would wait for them all the same, and each read wakes the process. Between
// two reads the kernel keeps what comes.
//
// All pulls of a machine read at the same moments by the clock, and the fan-out sends
// shortly after (see fanout.Engine.Beat).
type beatConn struct {
	*quiet.Conn
	raw syscall.RawConn // of the socket; nil if there is none

	following atomic.Pointer[beat] // nil until the stream flows: each read is at once

	timer *time.Timer // of the wait; nil before the first

	// Owned by the reader, as the timer.
	drained bool // there was nothing more at the last read
	got     int  // bytes since the last wait
	parts   int  // of a beat in which to read
	asleep  bool // what comes does not wake the process, below asleepBytes

	once sync.Once
	gone chan struct{} // closed by Close
}

// beat returns how often, and when, is read: at multiples of every, plus at, by the clock
// (Unix time). An every of 0 is at once.
type beat func() (every, at time.Duration)

const (
	// A shorter beat is not worth a wait.
	leastBeat = 40 * time.Millisecond
	// Longer without a read looks like a peer that does not read.
	mostBeat = 400 * time.Millisecond
	// So much is left in the kernel at a time: more could fill the window that the
	// upstream may send in.
	beatBytes = 48 << 10
	mostParts = 16
	// More than that has the kernel tell of it before the next read, for nothing.
	asleepBytes = 64 << 10
)

func newBeatConn(c net.Conn) *beatConn {
	b := &beatConn{Conn: quiet.New(c), parts: 1, gone: make(chan struct{})}
	b.raw, _ = b.SyscallConn()
	b.Dry = func(fd uintptr) {
		if b.asleep {
			b.asleep = false
			wakeAt(fd, 1)
		}
	}
	return b
}

// dialer makes connections that follow the beat once they are told to, and hands
// them to made.
func (e *Edge) dialer(made func(*beatConn)) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := e.tcp.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		b := newBeatConn(c)
		made(b)
		return b, nil
	}
}

// follow makes the connection read with a beat from now on.
func (c *beatConn) follow(b beat) { c.following.Store(&b) }

// Await returns when it is time for the next read.
func (c *beatConn) Await() {
	if f := c.following.Load(); f != nil && c.drained {
		c.wait(*f)
		c.drained = false
	}
}

// Read implements net.Conn.
func (c *beatConn) Read(p []byte) (int, error) {
	c.Await()
	n, err := c.Conn.Read(p)
	c.got += n
	c.drained = n < len(p)
	return n, err
}

// wait returns at the next time to read.
func (c *beatConn) wait(beat beat) {
	every, at := beat()
	if every < leastBeat {
		return
	}
	switch {
	case c.got > beatBytes:
		c.parts = min(2*c.parts, mostParts)
	case c.got < beatBytes/4:
		c.parts = max(c.parts/2, 1)
	}
	c.got = 0
	parts := c.parts
	for every/time.Duration(parts) > mostBeat {
		parts *= 2
	}
	every /= time.Duration(parts)
	if !c.asleep && c.raw != nil {
		c.asleep = true
		_ = c.raw.Control(func(fd uintptr) { wakeAt(fd, asleepBytes) })
	}
	left := every - time.Duration((time.Now().UnixNano()-int64(at))%int64(every))
	if c.timer == nil {
		c.timer = time.NewTimer(left)
	} else {
		c.timer.Reset(left)
	}
	select {
	case <-c.timer.C:
	case <-c.gone:
		c.timer.Stop()
	}
}

// wakeAt sets how many bytes must have come for the kernel to tell of them
// (SO_RCVLOWAT): it would for each piece, whether somebody reads or not. The end of the
// connection is told at once. Errors do not matter: other than TCP sockets may not
// have it.
func wakeAt(fd uintptr, bytes int32) {
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, uintptr(unsafe.Pointer(&bytes)), unsafe.Sizeof(bytes), 0)
}

// Close implements net.Conn.
func (c *beatConn) Close() error {
	c.once.Do(func() { close(c.gone) })
	return c.Conn.Close()
}
