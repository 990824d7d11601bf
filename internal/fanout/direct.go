package fanout

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// direct returns access to the socket below a connection. This is the one place
// that decides which way a player is served: the shard can write to a TCP or unix
// socket; anything else, such as TLS, must be written to as a net.Conn and has no
// syscall.Conn.
func direct(c net.Conn) (syscall.RawConn, bool) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil, false
	}
	raw, err := sc.SyscallConn()
	return raw, err == nil
}

// How much of what was written may wait in a socket for the first time to be sent
// (TCP_NOTSENT_LOWAT). Without a bound the kernel takes megabytes, many seconds of a
// stream, for a player that is too slow, and those cannot be jumped over. It is
// less for a player that is stuck, and doubles each time that one has filled its
// socket and caught up at once: such a one is quick, and its stream large.
const (
	unsentStuck = 32 << 10
	unsentFirst = 128 << 10
	unsentMost  = 1 << 20
)

// prepare sets the options of a player's socket. Errors do not matter: a unix
// socket has none of them.
func prepare(raw syscall.RawConn, l Limits) {
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentFirst)
		// A peer that is gone without a word is found although its socket never fills
		// or, behind a stalled stream, gets nothing: within about twice the timeout.
		ask := int(min(max(l.WriteTimeout, time.Second), 15*time.Second) / time.Second)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, ask)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, ask)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(l.WriteTimeout.Milliseconds()))
	})
}

// limitUnsent changes the bound on what waits in a socket.
func limitUnsent(raw syscall.RawConn, bytes int32) {
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, int(bytes))
	})
}

// unacknowledged returns how much lies in a socket that the peer has not taken, in
// bytes of a TCP socket, else in what the kernel counts in.
func unacknowledged(fd uintptr) int {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// keeper is a connection that can be replaced by one whose descriptor nothing but its
// own Close closes.
type keeper interface {
	Keep() (net.Conn, bool)
}

// own returns what replaces a connection whose descriptor the engine can have for
// itself, and the descriptor; -1 of others. Writing to it costs an eighth less than
// through RawConn, which takes the locks of the connection for each call.
func own(c net.Conn) (kept net.Conn, raw syscall.RawConn, fd int) {
	k, ok := c.(keeper)
	if !ok {
		return nil, nil, -1
	}
	if kept, ok = k.Keep(); !ok {
		return nil, nil, -1
	}
	raw, _ = direct(kept)
	_ = raw.Control(func(its uintptr) { fd = int(its) }) // it is open, and stays so
	return kept, raw, fd
}

// socketWriter sends to sockets without waiting. It belongs to one goroutine, but for
// now, which anyone may call.
type socketWriter struct {
	now   func(fd uintptr, b []byte) (int, error)
	calls int   // system calls that were made for writes, counted up
	pages pages // of the block that is sent now, if that is worth it

	// What send is to do, and what came of it.
	send  func(fd uintptr) bool // made once: a closure for each call would be garbage
	out   []byte
	paged bool
	n     int
	err   error
}

// newSocketWriter returns a writer that sends by now, sendNow if it is nil.
func newSocketWriter(now func(fd uintptr, b []byte) (int, error)) *socketWriter {
	if now == nil {
		now = sendNow
	}
	w := &socketWriter{now: now}
	w.send = func(fd uintptr) bool {
		w.n, w.err = w.to(fd, w.out, w.paged)
		return true // whatever came of it: the shard never waits
	}
	return w
}

// write sends what the socket takes of b, which the pages may have, too. n < len(b)
// without an error means that it is full. A descriptor that is not the engine's own is
// held by RawConn while it is used, so that one that is closed meanwhile cannot become
// somebody else's.
func (w *socketWriter) write(fd int, raw syscall.RawConn, b []byte, paged bool) (n int, err error) {
	w.calls++
	if fd >= 0 {
		return w.to(uintptr(fd), b, paged)
	}
	w.out, w.paged, w.n, w.err = b, paged, 0, nil
	err = raw.Write(w.send)
	w.out = nil
	if err != nil {
		return 0, err
	}
	return w.n, w.err
}

func (w *socketWriter) to(fd uintptr, b []byte, paged bool) (n int, err error) {
	if paged {
		if n, err = w.pages.send(fd, len(b)); err != errNoPages {
			return n, err
		}
	}
	return w.now(fd, b)
}

// sendNow is send(2) that does not tell Go's scheduler: the call cannot block, and
// entering and leaving the scheduler would cost a quarter of it.
func sendNow(fd uintptr, b []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
			syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
		if errno != syscall.EINTR {
			return outcome(int(n), errno)
		}
	}
}

// outcome is what a send(2) came to: a socket without room takes nothing.
func outcome(n int, errno syscall.Errno) (int, error) {
	switch errno {
	case 0:
		return n, nil
	case syscall.EAGAIN, syscall.ENOBUFS:
		return 0, nil
	}
	return 0, errno
}

// classify says what a failed write means.
func classify(err error) Reason {
	switch {
	case isTimeout(err), errors.Is(err, syscall.ETIMEDOUT):
		return TooSlow
	case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET), isClosed(err):
		return Left
	}
	return Failed
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

func isClosed(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe)
}
