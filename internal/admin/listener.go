package admin

import (
	"net"
	"sync"
)

// boundedListener accepts a connection only while fewer than cap(free) are
// open. Others wait in the kernel's queue.
type boundedListener struct {
	net.Listener
	free   chan struct{} // holds a token for each open connection
	closed chan struct{} // closed by Close
	once   sync.Once
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &boundedConn{Conn: c, l: l}, nil
}

// Close implements net.Listener.
func (l *boundedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type boundedConn struct {
	net.Conn
	l    *boundedListener
	once sync.Once
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	c.once.Do(func() { <-c.l.free })
	return c.Conn.Close()
}
