package edge

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// quietConn is a connection whose reads do not tell Go's scheduler of their system
// calls. The first such call after a sleep wakes the runtime's watcher thread, which
// then looks every 20 µs for as long as the process has something to do: for one that
// wakes some ten times a second to send to thousands, that is a tenth of its cost.
// A read cannot block its thread.
type quietConn struct {
	net.Conn
	raw syscall.RawConn // nil if there is none; reads are ordinary then

	// Owned by the reader.
	into  []byte
	n     int
	errno syscall.Errno
	take  func(fd uintptr) bool // made once: a closure for each call would be garbage
	dry   func(fd uintptr)      // if not nil, called before a read waits for data
}

func newQuietConn(c net.Conn) *quietConn {
	q := &quietConn{Conn: c}
	if sc, ok := c.(syscall.Conn); ok {
		q.raw, _ = sc.SyscallConn()
	}
	q.take = func(fd uintptr) bool {
		for {
			n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(q.into))), uintptr(len(q.into)),
				unix.MSG_DONTWAIT, 0, 0)
			switch errno {
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				if q.dry != nil {
					q.dry(fd)
				}
				return false
			}
			q.n, q.errno = int(n), errno
			return true
		}
	}
	return q
}

// Read implements net.Conn.
func (q *quietConn) Read(p []byte) (int, error) {
	if q.raw == nil || len(p) == 0 {
		return q.Conn.Read(p)
	}
	q.into = p
	err := q.raw.Read(q.take)
	q.into = nil
	switch {
	case err != nil:
		return 0, err
	case q.errno != 0:
		return 0, &net.OpError{
			Op: "read", Net: q.LocalAddr().Network(), Source: q.LocalAddr(), Addr: q.RemoteAddr(), Err: os.NewSyscallError("recvfrom", q.errno),
		}
	case q.n == 0:
		return 0, io.EOF
	}
	return q.n, nil
}
