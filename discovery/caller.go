package discovery

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"syscall"
)

// connKey is the key of a request's connection in its context.
type connKey struct{}

// withConn is the ConnContext of a Server.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// present returns an error if whoever made the call has hung up. A directory that
// was frozen finds calls waiting whose callers have gone on without it, and may
// have taken back since what they asked for: to grant a claim of then would give
// a stream to nobody. The body must have been read to its end.
//
// It asks the socket, because the server cancels the request's context only once
// another goroutine has noticed. Without a connection in the context it knows no
// more than that context.
func present(r *http.Request) error {
	gone := r.Context().Err() != nil
	if c, ok := r.Context().Value(connKey{}).(syscall.Conn); ok && !gone {
		if raw, err := c.SyscallConn(); err == nil {
			err = raw.Control(func(fd uintptr) { gone = hungUp(int(fd)) })
			gone = gone || err != nil // closed here
		}
	}
	if gone {
		return fmt.Errorf("%w: the caller has hung up", ErrUnavailable)
	}
	return nil
}

// hungUp reports whether a socket's peer has closed it. Nothing is read.
func hungUp(fd int) bool {
	var b [1]byte
	for {
		n, _, err := syscall.Recvfrom(fd, b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch err {
		case nil:
			return n == 0
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return false
		}
		return true
	}
}
