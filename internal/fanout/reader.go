package fanout

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// reader watches what players send, all of them with one goroutine: HTTP players
// say nothing but that they have left. It has an epoll instance of its own beside
// that of Go's runtime, which would need a goroutine for each connection. To those
// whose descriptor is the engine's own it also says when their sockets have room
// again.
type reader struct {
	log    *slog.Logger
	polled func() // for tests, may be nil

	start sync.Once // opens it, for the first session
	begin func(run func())

	// Static after start.
	poll int // epoll descriptor; -1 if there is none
	wake int // eventfd that ends run

	find func(id uint64) *Session // static; nil for one that is over
}

// stopID is the id of the eventfd.
const stopID = 0

// newReader returns a reader that starts with its first session; begin runs its
// goroutine.
func newReader(log *slog.Logger, polled func(), find func(id uint64) *Session, begin func(run func())) *reader {
	return &reader{log: log, polled: polled, begin: begin, poll: -1, wake: -1, find: find}
}

func (r *reader) open() error {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make epoll instance: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(poll)
		return fmt.Errorf("make eventfd: %w", err)
	}
	if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, wake, event(unix.EPOLLIN, stopID)); err != nil {
		unix.Close(poll)
		unix.Close(wake)
		return fmt.Errorf("watch eventfd: %w", err)
	}
	r.poll, r.wake = poll, wake
	return nil
}

// event packs an id into the data of an epoll event.
func event(events uint32, id uint64) *unix.EpollEvent {
	return &unix.EpollEvent{Events: events, Fd: int32(id), Pad: int32(id >> 32)}
}

func idOf(e *unix.EpollEvent) uint64 { return uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32 }

// add watches a session. It reports false if that is not possible.
func (r *reader) add(s *Session) bool {
	r.start.Do(func() {
		if err := r.open(); err != nil {
			r.log.Warn("players are read with a goroutine each", "err", err)
			return
		}
		r.begin(r.run)
	})
	if r.poll < 0 {
		return false
	}
	s.watched.Store(true)
	if s.isOver() { // and its remove may have come before
		r.remove(s)
		return true
	}
	var err error
	if cerr := s.raw.Control(func(fd uintptr) {
		err = unix.EpollCtl(r.poll, unix.EPOLL_CTL_ADD, int(fd), event(hears, s.id))
	}); cerr != nil {
		r.remove(s)
		s.End(Left) // it is closed already
		return true
	}
	if err != nil {
		r.log.Warn("player is read with a goroutine of its own", "err", err)
		r.remove(s)
		return false
	}
	return true
}

// hears is what all players are watched for.
const hears = unix.EPOLLIN | unix.EPOLLRDHUP

// await makes room of a session's signals tell when its socket takes bytes again. The
// caller holds its lock, and it has not been ended. An error means that it is not
// watched any more: the player has left.
func (r *reader) await(s *Session) error {
	if !s.watched.Load() {
		return syscall.EPIPE
	}
	err := unix.EpollCtl(r.poll, unix.EPOLL_CTL_MOD, int(s.fd), event(hears|unix.EPOLLOUT, s.id))
	if errors.Is(err, unix.ENOENT) {
		err = syscall.EPIPE
	}
	return err
}

// tellRoom tells a session's chaser that there is room, once for each await.
func (r *reader) tellRoom(s *Session) {
	s.mu.Lock()
	var room chan struct{} // nil if nobody waits
	if s.asked != nil && s.asked.signals != nil {
		room = s.asked.signals.room
	}
	if !s.isEnded() && s.place != over { // else the descriptor may be somebody else's
		_ = unix.EpollCtl(r.poll, unix.EPOLL_CTL_MOD, int(s.fd), event(hears, s.id))
	}
	s.mu.Unlock()
	select {
	case room <- struct{}{}:
	default:
	}
}

// remove lets a session alone. The kernel forgets its socket when that is closed.
func (r *reader) remove(s *Session) { s.watched.Store(false) }

// drop is remove for a session whose socket stays open for now: with what it has
// to say unread it would be reported again and again.
func (r *reader) drop(s *Session) {
	_ = s.raw.Control(func(fd uintptr) {
		_ = unix.EpollCtl(r.poll, unix.EPOLL_CTL_DEL, int(fd), nil)
	})
	r.remove(s)
}

// stop ends run. All sessions are over by then.
func (r *reader) stop() {
	r.start.Do(func() {}) // from now on nothing starts it
	if r.poll < 0 {
		return
	}
	_, _ = unix.Write(r.wake, binary.NativeEndian.AppendUint64(nil, 1))
}

// run reads until stop.
func (r *reader) run() {
	defer unix.Close(r.wake)
	defer unix.Close(r.poll)
	events := make([]unix.EpollEvent, 128)
	in := newSocketReader()
	for {
		n, err := unix.EpollWait(r.poll, events, -1)
		if err != nil && !errors.Is(err, syscall.EINTR) {
			r.log.Error("players are not read any more", "err", err)
			return
		}
		if r.polled != nil {
			r.polled()
		}
		for i := range max(n, 0) {
			id := idOf(&events[i])
			if id == stopID {
				return
			}
			s := r.find(id)
			if s == nil || !s.watched.Load() {
				continue
			}
			if events[i].Events&unix.EPOLLOUT != 0 {
				r.tellRoom(s)
			}
			if events[i].Events&^unix.EPOLLOUT != 0 {
				in.serve(s)
			}
		}
	}
}

// socketReader reads from sockets without waiting. It belongs to one goroutine.
type socketReader struct {
	recv func(fd uintptr) bool
	buf  [4 << 10]byte
	n    int
	err  error
}

func newSocketReader() *socketReader {
	r := &socketReader{}
	r.recv = func(fd uintptr) bool {
		for {
			r.n, r.err = unix.Read(int(fd), r.buf[:])
			if !errors.Is(r.err, syscall.EINTR) {
				return true
			}
		}
	}
	return r
}

// serve gives a player's Read what has come, once: more comes with the next event.
func (r *socketReader) serve(s *Session) {
	r.n, r.err = 0, nil
	err := s.raw.Read(r.recv)
	switch {
	case err == nil && errors.Is(r.err, syscall.EAGAIN):
	case err == nil && errors.Is(r.err, syscall.ETIMEDOUT): // TCP has given up its machine, see prepare
		s.e.reader.drop(s)
		s.End(TooSlow)
	case err != nil, r.err != nil, r.n == 0, !s.hear(r.buf[:r.n]):
		s.e.reader.drop(s)
		s.End(Left)
	}
}
