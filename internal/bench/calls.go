package bench

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/internal/uring"
)

// calls are system calls on sockets, of which none waits: up to callsAtOnce with one
// entry into the kernel by io_uring or, where that cannot be had, one by one. The tool
// takes as little as it can from the server beside it. They belong to one goroutine.
type calls struct {
	ring    *uring.Ring // nil where io_uring cannot be had
	queued  []call
	results []uring.Result
}

// call is one of them.
type call struct {
	fd   int
	drop bool   // what has come is dropped; else
	send []byte // is sent
}

// callsAtOnce is how many calls are made together. More take the core from the others of
// the process for too long.
const callsAtOnce = 64

// drainSize is how many bytes one system call drops.
const drainSize = 1 << 20

func newCalls() calls {
	ring, err := uring.New(callsAtOnce)
	if err != nil {
		ring = nil // they cost more then, no more than that
	}
	return calls{ring: ring}
}

func (c *calls) close() {
	if c.ring != nil {
		c.ring.Close()
		c.ring = nil
	}
}

// full reports that do is due before the next call.
func (c *calls) full() bool { return len(c.queued) == callsAtOnce }

// send queues a send of b, which must stay as it is until do.
func (c *calls) send(fd int, b []byte) { c.queued = append(c.queued, call{fd: fd, send: b}) }

// drop queues a drop of what has come, at most drainSize bytes.
func (c *calls) drop(fd int) { c.queued = append(c.queued, call{fd: fd, drop: true}) }

// do makes the calls and returns what came of each, which is good until the next do.
func (c *calls) do() []uring.Result {
	n := len(c.queued)
	c.results = c.results[:0]
	if c.ring != nil && n > 1 {
		for _, q := range c.queued {
			if q.drop {
				c.ring.Drop(q.fd, drainSize)
			} else {
				c.ring.Send(q.fd, q.send)
			}
		}
		results, err := c.ring.Do()
		c.results = append(c.results, results...)
		if err != nil {
			c.close()
		}
	}
	for i, q := range c.queued {
		if i == len(c.results) {
			c.results = append(c.results, q.make())
		} else if r := c.results[i]; r == uring.Undone || r == -uring.Result(unix.EINTR) {
			c.results[i] = q.make()
		}
	}
	clear(c.queued)
	c.queued = c.queued[:0]
	return c.results
}

// make makes a call by itself.
func (q *call) make() uring.Result {
	number, size, flags := unix.SYS_SENDTO, len(q.send), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL
	if q.drop {
		number, size, flags = unix.SYS_RECVFROM, drainSize, unix.MSG_DONTWAIT|unix.MSG_TRUNC
	}
	for {
		// None waits, so that Go's scheduler need not know.
		n, _, errno := unix.RawSyscall6(uintptr(number), uintptr(q.fd), uintptr(unsafe.Pointer(unsafe.SliceData(q.send))),
			uintptr(size), uintptr(flags), 0, 0)
		switch errno {
		case 0:
			return uring.Result(n)
		case syscall.EINTR:
		default:
			return -uring.Result(errno)
		}
	}
}
