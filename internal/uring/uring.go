// Package uring makes many socket operations with one system call, by io_uring(7). A
// system call costs what it does, and besides what entering the kernel costs: that can be
// 1 µs, where it also throws the translations of addresses away (page table isolation
// without tags, some virtual machines), and a third of a short send.
//
// No operation here waits: what a socket cannot do at once is not done. So all is over
// when the call returns, and nothing of io_uring that works in the background is used.
package uring

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrUnavailable says that the kernel, or who confines the process, does not let it use
// io_uring: it is older than Linux 5.6, or forbids it (kernel.io_uring_disabled; the
// default profiles of container engines do).
var ErrUnavailable = errors.New("io_uring is not available")

// Ring is a queue of operations on sockets. It belongs to one goroutine at a time.
type Ring struct {
	fd       int
	rings    []byte // both queues' heads, tails and the completions, shared with the kernel
	requests []byte // shared with the kernel

	submitted, completed *atomic.Uint32 // tails: of the submissions, ours; of the completions, the kernel's
	reaped               *atomic.Uint32 // head of the completions, ours
	sqes                 []request
	cqes                 []completion

	queued  int
	results []Result
	kept    []unsafe.Pointer // what the queued operations refer to, for Go to keep it
}

// Result is what came of an operation.
type Result int32

// Undone is the result of an operation that was not even tried.
const Undone Result = math.MinInt32

// Split returns how many bytes were moved, or the error of the socket: EAGAIN if it has
// no room, or nothing to say.
func (r Result) Split() (n int, errno syscall.Errno) {
	if r < 0 {
		return 0, syscall.Errno(-r)
	}
	return int(r), 0
}

// New makes a ring for so many operations at a time, rounded up to a power of two, of
// some 110 bytes each, with a descriptor. Its error is ErrUnavailable, or says what is
// short, such as descriptors; before Linux 5.12 the memory counts as locked.
func New(operations int) (*Ring, error) {
	var p params
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(operations), uintptr(unsafe.Pointer(&p)), 0)
	switch errno {
	case 0:
	case unix.ENOSYS, unix.EPERM, unix.EACCES, unix.EINVAL:
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, errno)
	default:
		return nil, os.NewSyscallError("io_uring_setup", errno)
	}
	r := &Ring{fd: int(fd)}
	if err := r.open(&p); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// open maps what is shared with the kernel.
func (r *Ring) open(p *params) error {
	if p.features&featureSingleMap == 0 || !supports(r.fd, opSend, opReceive) {
		return fmt.Errorf("%w: the kernel is too old", ErrUnavailable)
	}
	size := max(p.sq.array+4*p.sqEntries, p.cq.cqes+uint32(unsafe.Sizeof(completion{}))*p.cqEntries)
	var err error
	if r.rings, err = share(r.fd, offsetRings, int(size)); err != nil {
		return fmt.Errorf("map the queues of io_uring: %w", err)
	}
	if r.requests, err = share(r.fd, offsetRequests, int(unsafe.Sizeof(request{}))*int(p.sqEntries)); err != nil {
		return fmt.Errorf("map the requests of io_uring: %w", err)
	}
	at := func(offset uint32) unsafe.Pointer { return unsafe.Pointer(&r.rings[offset]) }
	r.submitted, r.completed, r.reaped = (*atomic.Uint32)(at(p.sq.tail)), (*atomic.Uint32)(at(p.cq.tail)), (*atomic.Uint32)(at(p.cq.head))
	r.sqes = unsafe.Slice((*request)(unsafe.Pointer(&r.requests[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*completion)(at(p.cq.cqes)), p.cqEntries)
	// Which request lies in which place of the queue: always the one of the same number.
	places := unsafe.Slice((*uint32)(at(p.sq.array)), p.sqEntries)
	for i := range places {
		places[i] = uint32(i)
	}
	r.results = make([]Result, p.sqEntries)
	r.kept = make([]unsafe.Pointer, p.sqEntries)
	return nil
}

// Close frees the ring. Nothing is queued.
func (r *Ring) Close() {
	if r.rings != nil {
		_ = unix.Munmap(r.rings)
	}
	if r.requests != nil {
		_ = unix.Munmap(r.requests)
	}
	_ = unix.Close(r.fd)
	*r = Ring{fd: -1}
}

// Len returns how many operations are queued.
func (r *Ring) Len() int { return r.queued }

// Cap returns how many operations can be queued.
func (r *Ring) Cap() int { return len(r.sqes) }

// Send queues a send(2). b must stay as it is until Do, and there must be room.
func (r *Ring) Send(fd int, b []byte) {
	r.queue(opSend, fd, unsafe.Pointer(unsafe.SliceData(b)), len(b), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

// Drop queues a recv(2) of at most so many bytes that has the kernel drop what has come
// instead of copying it, which only TCP can (see MSG_TRUNC in tcp(7)); its result is how
// many there were. There must be room.
func (r *Ring) Drop(fd, most int) {
	r.queue(opReceive, fd, nil, most, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
}

func (r *Ring) queue(op uint8, fd int, data unsafe.Pointer, size int, flags uint32) {
	tail := r.submitted.Load() + uint32(r.queued)
	r.kept[r.queued] = data
	r.sqes[tail&uint32(len(r.sqes)-1)] = request{
		op: op, fd: int32(fd), addr: uint64(uintptr(data)), len: uint32(min(size, math.MaxInt32)), flags: flags, id: uint64(r.queued),
	}
	r.queued++
}

// Do makes the queued operations, in their order, and returns what came of each; that
// is good until the next one is queued. What the kernel has no memory for now is Undone.
// An error means that io_uring does not work, and the ring should be closed; what could
// not be tried is Undone then, too, and what nobody knows the outcome of EIO.
func (r *Ring) Do() ([]Result, error) {
	n := r.queued
	results := r.results[:n]
	for i := range results {
		results[i] = -Result(unix.EIO)
	}
	r.queued = 0
	r.submitted.Store(r.submitted.Load() + uint32(n))
	var failed error
	for todo, left := n, n; left > 0; {
		var (
			taken uintptr
			errno syscall.Errno
		)
		if todo > 0 { // nothing waits here, so that Go's scheduler need not know
			taken, _, errno = unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(todo), 0, 0, 0, 0)
		} else {
			_, _, errno = unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 0, uintptr(left), enterGetEvents, 0, 0)
		}
		if errno == 0 && todo > 0 {
			todo -= int(taken)
		}
		left -= r.reap(results)
		switch {
		case errno == unix.EINTR:
		case todo > 0 && (errno != 0 || taken == 0):
			// What the kernel has not taken it must not find in the queue. What it has taken
			// is waited for all the same: it uses the memory.
			if errno != unix.EAGAIN && errno != unix.ENOMEM && errno != unix.EBUSY {
				failed = fmt.Errorf("io_uring_enter took %d of %d operations: %w", n-todo, n, errno)
			}
			for i := n - todo; i < n; i++ {
				results[i] = Undone
			}
			r.submitted.Store(r.submitted.Load() - uint32(todo))
			left -= todo
			todo = 0
		case errno != 0:
			return results, os.NewSyscallError("io_uring_enter", errno)
		}
	}
	clear(r.kept[:n])
	return results, failed
}

// reap takes what was completed and returns how many operations that were.
func (r *Ring) reap(results []Result) (n int) {
	head := r.reaped.Load()
	for tail := r.completed.Load(); head != tail; head++ {
		c := &r.cqes[head&uint32(len(r.cqes)-1)]
		results[c.id] = Result(c.result)
		n++
	}
	r.reaped.Store(head)
	return n
}
