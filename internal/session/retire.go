package session

import (
	"net"
	"net/netip"
	"sync"

	"weir/internal/httpserver"
	"weir/internal/limit"
)

// OpenDoor is a Door while it serves. Safe for concurrent use.
type OpenDoor struct {
	gate      *limit.Gate
	web       *httpserver.Server
	listeners []*retirable
}

// Retire stops taking connections. Those that are there are served on; over HTTP
// each gets one more answer. Another process that has the same sockets takes what
// comes: nothing in their queues is lost, because the sockets themselves stay.
func (o *OpenDoor) Retire() {
	for _, l := range o.listeners {
		l.retire()
	}
	o.web.Retire()
}

// SetLimits makes other limits count for connections to come.
func (o *OpenDoor) SetLimits(c limit.Config) { o.gate.SetLimits(c) }

// Hold keeps a place within the limits for a connection from an address that is to come
// through Adoptions, until release is called. It reports false if there is none.
func (o *OpenDoor) Hold(remote netip.Addr) (release func(), ok bool) { return o.gate.Hold(remote) }

// Connections returns how many connections are open, with or without a session.
func (o *OpenDoor) Connections() int { return o.gate.Open() }

// retirable is a listener that can stop accepting without its accept loop's
// ending: what ends the loop ends its connections.
type retirable struct {
	net.Listener
	retired, closed chan struct{}
	retireOnce      sync.Once
	closeOnce       sync.Once
}

func newRetirable(l net.Listener) *retirable {
	return &retirable{Listener: l, retired: make(chan struct{}), closed: make(chan struct{})}
}

// retire closes this process's descriptor of the socket. A connection that was
// accepted before is still returned.
func (l *retirable) retire() {
	l.retireOnce.Do(func() {
		close(l.retired)
		l.Listener.Close()
	})
}

// Accept implements net.Listener.
func (l *retirable) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		return c, nil
	}
	select {
	case <-l.retired:
		<-l.closed
		return nil, net.ErrClosed
	default:
		return nil, err
	}
}

// Close implements net.Listener.
func (l *retirable) Close() (err error) {
	l.closeOnce.Do(func() { close(l.closed) })
	l.retireOnce.Do(func() { err = l.Listener.Close() })
	return err
}
