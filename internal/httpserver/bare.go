package httpserver

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bareConn is a taken connection of which its owner uses the descriptor: all that Go
// has for a connection, its addresses, its place in the poller and the timers of its
// deadlines, is gone, which is a kilobyte for each player, and so is all that the server
// knew of it but its place. It gets the poller back when somebody has to wait for it,
// and keeps it then.
//
// Its methods are safe for concurrent use.
type bareConn struct {
	place seat

	fd   int32 // guarded by mu; -1 once it is closed
	mu   sync.Mutex
	file *os.File // guarded by mu; the same descriptor in the poller, nil until somebody waits
}

func (c *bareConn) seat() *seat   { return &c.place }
func (c *bareConn) taken() bool   { return true }
func (c *bareConn) is() connState { return stateTaken }

// abort has its owner notice that the server stops.
func (c *bareConn) abort() { _ = c.shutdown(unix.SHUT_RDWR) }

// duplicate returns another descriptor of a connection's socket.
func duplicate(c *net.TCPConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	own, derr := -1, error(nil)
	if err := raw.Control(func(fd uintptr) { own, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	return own, os.NewSyscallError("fcntl", derr)
}

// Close closes the descriptor and gives the connection's place back, once.
func (c *bareConn) Close() error {
	if !c.place.leave() {
		return net.ErrClosed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	fd, file := c.fd, c.file
	c.fd, c.file = -1, nil
	if file != nil {
		return file.Close()
	}
	return os.NewSyscallError("close", unix.Close(int(fd)))
}

// shutdown ends one or both directions of what flows over the connection.
func (c *bareConn) shutdown(how int) error {
	return c.control(func(fd int) error { return os.NewSyscallError("shutdown", unix.Shutdown(fd, how)) })
}

// CloseWrite ends the sending side.
func (c *bareConn) CloseWrite() error { return c.shutdown(unix.SHUT_WR) }

// SetLinger is that of net.TCPConn.
func (c *bareConn) SetLinger(seconds int) error {
	return c.control(func(fd int) error {
		l := unix.Linger{Linger: int32(seconds)}
		if seconds >= 0 {
			l.Onoff = 1
		}
		return os.NewSyscallError("setsockopt", unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &l))
	})
}

func (c *bareConn) control(f func(fd int) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return net.ErrClosed
	}
	return f(int(c.fd))
}

// waiting returns what waits for the socket.
func (c *bareConn) waiting() (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil, net.ErrClosed
	}
	if c.file == nil {
		c.file = os.NewFile(uintptr(c.fd), "player") // it does not block, so the poller takes it
	}
	return c.file, nil
}

// closed translates what os says of a connection that is closed meanwhile.
func closed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return err
}

func (c *bareConn) Read(p []byte) (int, error) {
	f, err := c.waiting()
	if err != nil {
		return 0, err
	}
	n, err := f.Read(p)
	return n, closed(err)
}

func (c *bareConn) Write(p []byte) (int, error) {
	f, err := c.waiting()
	if err != nil {
		return 0, err
	}
	n, err := f.Write(p)
	return n, closed(err)
}

func (c *bareConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *bareConn) SetReadDeadline(t time.Time) error {
	return c.deadline(t, (*os.File).SetReadDeadline)
}

func (c *bareConn) SetWriteDeadline(t time.Time) error {
	return c.deadline(t, (*os.File).SetWriteDeadline)
}

func (c *bareConn) deadline(t time.Time, set func(*os.File, time.Time) error) error {
	if t.IsZero() { // who never waited has none
		c.mu.Lock()
		none := c.fd >= 0 && c.file == nil
		c.mu.Unlock()
		if none {
			return nil
		}
	}
	f, err := c.waiting()
	if err != nil {
		return err
	}
	return closed(set(f, t))
}

func (c *bareConn) LocalAddr() net.Addr  { return c.addr(unix.Getsockname) }
func (c *bareConn) RemoteAddr() net.Addr { return c.addr(unix.Getpeername) }

// addr asks the kernel; the zero address stands for none.
func (c *bareConn) addr(ask func(fd int) (unix.Sockaddr, error)) net.Addr {
	a := &net.TCPAddr{}
	_ = c.control(func(fd int) error {
		sa, err := ask(fd)
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			a.IP, a.Port = sa.Addr[:], sa.Port
		case *unix.SockaddrInet6:
			a.IP, a.Port = sa.Addr[:], sa.Port
		}
		return err
	})
	return a
}

// SyscallConn implements syscall.Conn.
func (c *bareConn) SyscallConn() (syscall.RawConn, error) { return (*bareRaw)(c), nil }

// bareRaw is the raw access to a bareConn. What it is given is called once, while
// nobody can close the descriptor: it must not wait, nor use the connection.
type bareRaw bareConn

func (r *bareRaw) Control(f func(fd uintptr)) error {
	return (*bareConn)(r).control(func(fd int) error { f(uintptr(fd)); return nil })
}

func (r *bareRaw) Read(f func(fd uintptr) bool) error {
	return r.Control(func(fd uintptr) { f(fd) })
}

func (r *bareRaw) Write(f func(fd uintptr) bool) error {
	return r.Control(func(fd uintptr) { f(fd) })
}
