// Package bare has connections without what Go keeps for each.
package bare

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is a connection of which its owner uses the descriptor: all that Go has for a
// connection, its addresses, its place in the poller and the timers of its deadlines, is
// gone, which is a kilobyte for each player. It gets the poller back when somebody has to
// wait for it, and keeps it then.
//
// Its methods are safe for concurrent use. It must not be copied once it is used.
type Conn struct {
	fd   int32 // guarded by mu; -1 once it is closed
	mu   sync.Mutex
	file *os.File // guarded by mu; the same descriptor in the poller, nil until somebody waits
}

// Of returns the connection of a descriptor, which it owns from now on. The descriptor
// must not block.
func Of(fd int) Conn { return Conn{fd: int32(fd)} }

// Keep returns a connection in place of c, which it closes: nothing but Close of the one
// that it returns closes its descriptor. It returns false, and changes nothing, if c is
// closed, or no descriptor is left.
func Keep(c *net.TCPConn) (*Conn, bool) {
	fd, err := Duplicate(c)
	if err != nil {
		return nil, false
	}
	_ = c.Close() // the socket lives on
	b := Of(fd)
	return &b, true
}

// Duplicate returns another descriptor of a connection's socket.
func Duplicate(c *net.TCPConn) (int, error) {
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

// Close closes the descriptor, once.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return net.ErrClosed
	}
	fd, file := c.fd, c.file
	c.fd, c.file = -1, nil
	if file != nil {
		return file.Close()
	}
	return os.NewSyscallError("close", unix.Close(int(fd)))
}

// Shutdown ends one or both directions of what flows over the connection (shutdown(2)).
func (c *Conn) Shutdown(how int) error {
	return c.control(func(fd int) error { return os.NewSyscallError("shutdown", unix.Shutdown(fd, how)) })
}

// CloseWrite ends the sending side.
func (c *Conn) CloseWrite() error { return c.Shutdown(unix.SHUT_WR) }

// SetLinger is that of net.TCPConn.
func (c *Conn) SetLinger(seconds int) error {
	return c.control(func(fd int) error {
		l := unix.Linger{Linger: int32(seconds)}
		if seconds >= 0 {
			l.Onoff = 1
		}
		return os.NewSyscallError("setsockopt", unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &l))
	})
}

func (c *Conn) control(f func(fd int) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return net.ErrClosed
	}
	return f(int(c.fd))
}

// waiting returns what waits for the socket.
func (c *Conn) waiting() (*os.File, error) {
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

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	f, err := c.waiting()
	if err != nil {
		return 0, err
	}
	n, err := f.Read(p)
	return n, closed(err)
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	f, err := c.waiting()
	if err != nil {
		return 0, err
	}
	n, err := f.Write(p)
	return n, closed(err)
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.deadline(t, (*os.File).SetReadDeadline)
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	return c.deadline(t, (*os.File).SetWriteDeadline)
}

func (c *Conn) deadline(t time.Time, set func(*os.File, time.Time) error) error {
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

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.addr(unix.Getsockname) }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.addr(unix.Getpeername) }

// addr asks the kernel; the zero address stands for none.
func (c *Conn) addr(ask func(fd int) (unix.Sockaddr, error)) net.Addr {
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
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return (*rawConn)(c), nil }

// rawConn is the raw access to a Conn. What it is given is called once, while
// nobody can close the descriptor: it must not wait, nor use the connection.
type rawConn Conn

func (r *rawConn) Control(f func(fd uintptr)) error {
	return (*Conn)(r).control(func(fd int) error { f(uintptr(fd)); return nil })
}

func (r *rawConn) Read(f func(fd uintptr) bool) error {
	return r.Control(func(fd uintptr) { f(fd) })
}

func (r *rawConn) Write(f func(fd uintptr) bool) error {
	return r.Control(func(fd uintptr) { f(fd) })
}
