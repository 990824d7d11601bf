// Package quiet has connections whose reads and writes do not tell Go's scheduler of
// their system calls. The first such call after a sleep wakes the runtime's watcher
// thread (sysmon), which then looks every 20 µs for as long as the process has
// something to do: for one that wakes some ten times a second to send to thousands,
// that is a tenth of its cost. The calls cannot block their thread; what has to wait
// does so in the runtime's poller, as ever.
package quiet

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Conn is a quiet connection over another one, which must stay as long as it does. One
// goroutine may read and one may write at a time; the rest is as safe as the
// connection below.
type Conn struct {
	net.Conn
	raw syscall.RawConn // nil if there is none; reads and writes are ordinary then

	// Dry, if not nil, is called before a read waits for data. It is set before the
	// first read.
	Dry func(fd uintptr)

	in, out transfer // owned by the reader and by the writer
}

// transfer is a system call that moves bytes.
type transfer struct {
	p     []byte // that it is to fill, or to send
	n     int    // bytes that were moved
	errno syscall.Errno
	step  func(fd uintptr) bool // made once: a closure for each call would be garbage
}

// New returns a quiet connection over c.
func New(c net.Conn) *Conn {
	q := &Conn{Conn: c}
	if sc, ok := c.(syscall.Conn); ok {
		q.raw, _ = sc.SyscallConn()
	}
	q.in.step, q.out.step = q.receive, q.send
	return q
}

// SyscallConn implements syscall.Conn.
func (q *Conn) SyscallConn() (syscall.RawConn, error) {
	if q.raw == nil {
		return nil, errors.ErrUnsupported
	}
	return q.raw, nil
}

// receive reads once; false: it has to wait for data.
func (q *Conn) receive(fd uintptr) bool {
	t := &q.in
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.p))), uintptr(len(t.p)),
			unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if q.Dry != nil {
				q.Dry(fd)
			}
			return false
		}
		received(fd)
		t.n, t.errno = int(n), errno
		return true
	}
}

// Read implements net.Conn.
func (q *Conn) Read(p []byte) (int, error) {
	if q.raw == nil || len(p) == 0 {
		return q.Conn.Read(p)
	}
	t := &q.in
	t.p = p
	err := q.raw.Read(t.step)
	t.p = nil
	switch {
	case err != nil:
		return 0, err
	case t.errno != 0:
		return 0, q.failed("read", "recvfrom", t.errno)
	case t.n == 0:
		return 0, io.EOF
	}
	return t.n, nil
}

// send sends as much as there is room for; false: it has to wait for more.
func (q *Conn) send(fd uintptr) bool {
	t := &q.out
	sends()
	for t.n < len(t.p) {
		rest := t.p[t.n:]
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(rest))), uintptr(len(rest)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			t.n += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			t.errno = errno
			return true
		}
	}
	return true
}

// Write implements net.Conn.
func (q *Conn) Write(p []byte) (int, error) {
	if q.raw == nil || len(p) == 0 {
		return q.Conn.Write(p)
	}
	t := &q.out
	t.p, t.n, t.errno = p, 0, 0
	err := q.raw.Write(t.step)
	t.p = nil
	if err == nil && t.errno != 0 {
		err = q.failed("write", "sendto", t.errno)
	}
	return t.n, err
}

func (q *Conn) failed(op, call string, errno syscall.Errno) error {
	return &net.OpError{
		Op: op, Net: q.LocalAddr().Network(), Source: q.LocalAddr(), Addr: q.RemoteAddr(), Err: os.NewSyscallError(call, errno),
	}
}
