package uring

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func newRing(t testing.TB, operations int) *Ring {
	r, err := New(operations)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// pair returns two connected TCP sockets, and the descriptor of the first.
func pair(t testing.TB) (fd int, near, far *net.TCPConn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	near, far = a.(*net.TCPConn), c.(*net.TCPConn)
	t.Cleanup(func() { near.Close(); far.Close() })
	raw, err := near.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(its uintptr) { fd = int(its) })
	return fd, near, far
}

// letters returns n bytes that differ from place to place, and by seed.
func letters(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8) ^ seed
	}
	return b
}

// Each operation has its own outcome, in its own place, whatever the others' are: all of
// it, a part, none, or an error.
func TestOutcomes(t *testing.T) {
	r := newRing(t, 8)
	ready, _, reader := pair(t)
	small, near, _ := pair(t)
	_ = near.SetWriteBuffer(4 << 10)
	broken, closing, gone := pair(t)
	_ = closing.CloseWrite()
	_ = gone
	large := letters(8<<20, 1)

	for round := range 3 {
		r.Send(ready, letters(1000, 2))
		r.Send(small, large)
		r.Send(-1, letters(10, 3))
		r.Send(broken, letters(10, 4))
		r.Send(ready, letters(500, 5))
		if r.Len() != 5 || r.Cap() != 8 {
			t.Fatal(r.Len(), r.Cap())
		}
		results, err := r.Do()
		if err != nil || len(results) != 5 || r.Len() != 0 {
			t.Fatal(results, err, r.Len())
		}
		for i, want := range []struct {
			n     int
			errno syscall.Errno
		}{{n: 1000}, {n: -1}, {errno: unix.EBADF}, {errno: unix.EPIPE}, {n: 500}} {
			n, errno := results[i].Split()
			switch {
			case i == 1 && round > 0 && (n > 0 || errno == unix.EAGAIN): // it may have grown
			case i == 1 && round == 0 && n > 0 && n < len(large):
			case n != want.n || errno != want.errno:
				t.Errorf("round %d, operation %d: %d bytes, %v", round, i, n, errno)
			}
		}
		got := make([]byte, 1500)
		if _, err := io.ReadFull(reader, got); err != nil || !bytes.Equal(got, append(letters(1000, 2), letters(500, 5)...)) {
			t.Fatal("other bytes, or another order", err)
		}
	}
}

// A socket that is full does not have the call wait, nor what comes behind it.
func TestFullSocketsDoNotWait(t *testing.T) {
	r := newRing(t, 4)
	full, near, _ := pair(t)
	_ = near.SetWriteBuffer(4 << 10)
	ready, _, reader := pair(t)
	for {
		r.Send(full, letters(1<<20, 0))
		r.Send(ready, []byte{1})
		results, err := r.Do()
		if err != nil {
			t.Fatal(err)
		}
		if n, errno := results[1].Split(); n != 1 || errno != 0 {
			t.Fatal(n, errno)
		}
		if _, err := io.ReadFull(reader, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if _, errno := results[0].Split(); errno == unix.EAGAIN {
			return
		} else if errno != 0 {
			t.Fatal(errno)
		}
	}
}

func TestReceive(t *testing.T) {
	r := newRing(t, 4)
	fd, near, far := pair(t)
	empty, _, _ := pair(t)
	want := letters(3000, 7)
	if _, err := far.Write(want); err != nil {
		t.Fatal(err)
	}
	far.CloseWrite()
	raw, _ := near.SyscallConn()
	got := make([]byte, 2000)
	var all []byte
	for ended := false; !ended; {
		_ = raw.Read(func(fd uintptr) bool { // until there is something
			n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
			_ = n
			return err != unix.EAGAIN
		})
		r.Receive(empty, make([]byte, 10))
		r.Receive(fd, got)
		results, err := r.Do()
		if err != nil {
			t.Fatal(err)
		}
		if n, errno := results[0].Split(); n != 0 || errno != unix.EAGAIN {
			t.Fatal("an empty socket: ", n, errno)
		}
		n, errno := results[1].Split()
		if errno != 0 {
			t.Fatal(errno)
		}
		all = append(all, got[:n]...)
		ended = n == 0
	}
	if !bytes.Equal(all, want) {
		t.Errorf("%d other bytes", len(all))
	}
}

// Many rounds that wrap both queues, of all lengths.
func TestQueuesWrap(t *testing.T) {
	r := newRing(t, 5)
	if r.Cap() != 8 {
		t.Fatal(r.Cap())
	}
	fd, _, far := pair(t)
	var want []byte
	for round := range 100 {
		n := round % (r.Cap() + 1)
		for i := range n {
			b := letters(i+1, byte(round))
			r.Send(fd, b)
			want = append(want, b...)
		}
		results, err := r.Do()
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if got, errno := results[i].Split(); got != i+1 || errno != 0 {
				t.Fatal(round, i, got, errno)
			}
		}
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, want) {
		t.Error("other bytes", err)
	}
}

// A ring that the kernel refuses leaves its operations undone, and says so.
func TestKernelRefuses(t *testing.T) {
	r := newRing(t, 4)
	fd, _, _ := pair(t)
	// What is no ring any more.
	ring := r.fd
	r.fd = fd
	r.Send(fd, []byte("a"))
	r.Send(fd, []byte("b"))
	results, err := r.Do()
	r.fd = ring
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
		t.Error(err)
	}
	for _, res := range results {
		if res != Undone {
			t.Error(results)
		}
	}
	// And it was taken back.
	r.Send(fd, []byte("c"))
	if results, err = r.Do(); err != nil || len(results) != 1 || results[0] != 1 {
		t.Error(results, err)
	}
}

func TestUnavailable(t *testing.T) {
	if _, err := New(1 << 30); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	var none unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	few := none
	few.Cur = 1
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	_, err := New(1)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
}

func TestDoAllocatesNothing(t *testing.T) {
	r := newRing(t, 8)
	fd, _, far := pair(t)
	b, in := []byte("a frame"), make([]byte, 100)
	if n := testing.AllocsPerRun(100, func() {
		for range 8 {
			r.Send(fd, b)
		}
		if _, err := r.Do(); err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadFull(far, in[:8*len(b)])
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// What sends cost one by one, and together. Each of 64 sockets gets a byte.
func BenchmarkSends(b *testing.B) {
	const sockets = 64
	var fds []int
	for range sockets {
		fd, _, far := pair(b)
		fds = append(fds, fd)
		go func() { _, _ = io.Copy(io.Discard, far) }()
	}
	data := []byte{1}
	for _, together := range []int{1, 4, 16, 64} {
		b.Run(fmt.Sprint(together), func(b *testing.B) {
			r := newRing(b, together)
			b.ReportAllocs()
			for b.Loop() {
				for i, fd := range fds {
					r.Send(fd, data)
					if r.Len() == together || i == len(fds)-1 {
						if _, err := r.Do(); err != nil {
							b.Fatal(err)
						}
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/sockets, "ns/send")
		})
	}
	b.Run("send", func(b *testing.B) {
		for b.Loop() {
			for _, fd := range fds {
				if err := unix.Sendto(fd, data, unix.MSG_DONTWAIT, nil); err != nil && err != unix.EAGAIN {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/sockets, "ns/send")
	})
}
