package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Address is a TCP address on which every process of a Spec listens.
type Address struct {
	// Name is what the child finds the listener under, such as "rtmp".
	Name string
	// Key is the configuration key that the address is from. Errors name it.
	Key string
	// Address is host:port. Port 0 takes a free port, the same for all
	// processes.
	Address string
}

// listen opens count sockets that listen on the address and share it by
// SO_REUSEPORT. They are held as plain files: the supervisor never accepts.
//
// A socket that this host's other sockets already listen on is refused with
// EADDRINUSE even if those share their port too: without the first, exclusive
// look two nodes of one user could split a port between them, and neither
// would notice.
func (a Address) listen(ctx context.Context, count int) (files []*os.File, bound net.Addr, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
			// The words of the kernel say it all; net repeats the address.
			cause := err
			if call := (*os.SyscallError)(nil); errors.As(err, &call) {
				cause = call.Err
			}
			err = fmt.Errorf("listen %s (%s): %w", a.Address, a.Key, cause)
		}
	}()
	host, port, err := net.SplitHostPort(a.Address)
	if err != nil {
		return nil, nil, err
	}
	if port != "0" {
		var alone net.ListenConfig
		l, err := alone.Listen(ctx, "tcp", a.Address)
		if err != nil {
			return nil, nil, err
		}
		l.Close()
	}
	shared := net.ListenConfig{Control: reusePort}
	address := a.Address
	for range count {
		l, err := shared.Listen(ctx, "tcp", address)
		if err != nil {
			return files, nil, err
		}
		tcp := l.(*net.TCPListener)
		if bound == nil {
			bound = tcp.Addr()
			address = net.JoinHostPort(host, fmt.Sprint(tcp.Addr().(*net.TCPAddr).Port))
		}
		// File duplicates the descriptor; the socket listens until the last
		// one of it is closed.
		file, err := tcp.File()
		tcp.Close()
		if err != nil {
			return files, nil, err
		}
		files = append(files, file)
	}
	return files, bound, nil
}

func reusePort(_, _ string, raw syscall.RawConn) error {
	var err error
	if e := raw.Control(func(fd uintptr) {
		err = os.NewSyscallError("setsockopt SO_REUSEPORT", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}); e != nil {
		return e
	}
	return err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
