package limit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// Back-off after an error of Accept: doubled from the first to the last.
const (
	minAcceptPause = 5 * time.Millisecond
	maxAcceptPause = time.Second
)

// Counted is a connection that another process of the node has accepted and counted.
type Counted interface{ Counted() }

// Serve accepts connections and calls handle for each in a goroutine of its own,
// until ctx ends, which closes l. It closes a connection, and gives its place at
// the gate back, when its handler has returned; a connection that the gate
// refuses is closed at once.
//
// Serve returns after every handler has: nil if ctx ended it, else why l cannot
// accept any more. It does not interrupt handlers; they watch the same context.
func Serve(ctx context.Context, l net.Listener, gate *Gate, log *slog.Logger, handle func(net.Conn)) error {
	return ServeOwned(ctx, l, gate, log, func(conn net.Conn, release func()) {
		defer release()
		defer conn.Close()
		handle(conn)
	}, nil)
}

// ServeOwned is [Serve] for handlers that may return before their connection
// ends: the handler, or whoever it gives the connection to, closes it and then
// calls release, once. refuse, if it is not nil, gets the connections that the gate
// refused, with the gate's error, to answer and close them; it must not block.
func ServeOwned(ctx context.Context, l net.Listener, gate *Gate, log *slog.Logger,
	handle func(conn net.Conn, release func()), refuse func(net.Conn, error),
) error {
	var handlers sync.WaitGroup
	defer handlers.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()

	trouble := acceptTrouble{log: log.With("listener", l.Addr().String())}
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if isPermanent(err) {
				return fmt.Errorf("accept on %s: %w", l.Addr(), err)
			}
			gate.acceptErrors.Inc()
			if !trouble.pause(ctx, err) {
				return nil
			}
			continue
		}
		trouble.over()
		_, again := conn.(Counted)
		release, err := gate.admit(RemoteAddr(conn), !again)
		if err != nil {
			trouble.refused(err)
			if refuse == nil {
				conn.Close()
			} else {
				refuse(conn, err)
			}
			continue
		}
		handlers.Go(func() { handle(conn, release) })
	}
}

// isPermanent reports whether a listener is broken or closed. Everything else,
// above all running out of descriptors (EMFILE, ENFILE) or memory, may pass.
func isPermanent(err error) bool {
	for _, e := range []error{net.ErrClosed, syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK, syscall.EOPNOTSUPP} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// acceptTrouble paces the accept loop and its log lines while something is wrong.
// It is owned by the loop.
type acceptTrouble struct {
	log     *slog.Logger
	delay   time.Duration // of the next pause; 0 while all is well
	logged  time.Time     // when the last line was written
	skipped int           // lines not written since
}

// pause waits before the next Accept. It returns false if ctx ended meanwhile.
func (t *acceptTrouble) pause(ctx context.Context, err error) bool {
	t.delay = min(max(2*t.delay, minAcceptPause), maxAcceptPause)
	t.warn("cannot accept a connection", "error", err, "pause", t.delay)
	timer := time.NewTimer(t.delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (t *acceptTrouble) over() { t.delay = 0 }

func (t *acceptTrouble) refused(err error) { t.warn("refused a connection", "error", err) }

// warn logs at most one line a second and counts the others.
func (t *acceptTrouble) warn(message string, args ...any) {
	if time.Since(t.logged) < time.Second {
		t.skipped++
		return
	}
	if t.skipped > 0 {
		args = append(args, "skipped_lines", t.skipped)
	}
	t.log.Warn(message, args...)
	t.logged, t.skipped = time.Now(), 0
}
