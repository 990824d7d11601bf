package worker

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"weir/internal/quiet"
)

// siblingName is the abstract unix address (unix(7)) of a process. No file
// exists for it: it vanishes with the process that listens on it, and a
// connect to a dead one is refused at once.
func siblingName(token string, index int) *net.UnixAddr {
	return &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("@weir-%s-%d", token, index)}
}

// ListenSibling listens on the address of process index of the group that has
// the token. The listener hands out connections of processes of the same user
// only, which are quiet; others are closed with one line in the log.
func ListenSibling(token string, index int, log *slog.Logger) (net.Listener, error) {
	l, err := net.ListenUnix("unix", siblingName(token, index))
	if err != nil {
		return nil, fmt.Errorf("listen for siblings of process %d: %w", index, err)
	}
	return &sameUserListener{l, os.Geteuid(), log}, nil
}

// DialSibling connects quietly to process index of the group that has the token. A
// process that is dead or does not listen yet is an error at once
// (ECONNREFUSED), as is one of another user that has taken the address.
func DialSibling(ctx context.Context, token string, index int) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", siblingName(token, index).Name)
	if err != nil {
		return nil, fmt.Errorf("dial process %d: %w", index, err)
	}
	// Names of abstract sockets can be seen, and taken, by every user of the
	// host while the process is dead.
	if uid, err := peerUID(c.(*net.UnixConn)); err != nil || uid != os.Geteuid() {
		c.Close()
		if err == nil {
			err = fmt.Errorf("its address is held by uid %d", uid)
		}
		return nil, fmt.Errorf("dial process %d: %w", index, err)
	}
	return quiet.New(c), nil
}

type sameUserListener struct {
	*net.UnixListener
	uid int
	log *slog.Logger
}

// Accept implements net.Listener.
func (l *sameUserListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(c)
		if err == nil && uid == l.uid {
			return quiet.New(c), nil
		}
		c.Close()
		l.log.Warn("dropped a connection of another user at the siblings' socket", "uid", uid, "error", err)
	}
}

// peerUID returns the effective user of the process at the other end when it
// connected or listened (SO_PEERCRED, unix(7)).
func peerUID(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return -1, err
	}
	if credErr != nil {
		return -1, os.NewSyscallError("getsockopt SO_PEERCRED", credErr)
	}
	return int(cred.Uid), nil
}
