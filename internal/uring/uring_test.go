package uring

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"unsafe"

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

// What is dropped is counted, and is not there for who reads next.
func TestDrop(t *testing.T) {
	r := newRing(t, 8)
	fd, near, far := pair(t)
	empty, _, _ := pair(t)
	if _, err := far.Write(letters(3000, 7)); err != nil {
		t.Fatal(err)
	}
	raw, _ := near.SyscallConn()
	_ = raw.Read(func(fd uintptr) bool { // until all has come
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 3000), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err == nil && n == 3000
	})
	next := make([]byte, 100)
	r.Drop(empty, 1<<20)
	r.Drop(fd, 1000)
	r.Drop(fd, 100)
	r.Drop(-1, 1<<20)
	results, err := r.Do()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		n     int
		errno syscall.Errno
	}{{errno: unix.EAGAIN}, {n: 1000}, {n: 100}, {errno: unix.EBADF}} {
		if n, errno := results[i].Split(); n != want.n || errno != want.errno {
			t.Errorf("operation %d: %d bytes, %v", i, n, errno)
		}
	}
	if _, err := io.ReadFull(near, next); err != nil || !bytes.Equal(next, letters(3000, 7)[1100:1200]) {
		t.Error("other bytes are left")
	}
	r.Drop(fd, 1<<20)
	if results, err := r.Do(); err != nil || results[0] != 1800 {
		t.Error("the rest:", results, err)
	}
	far.CloseWrite()
	_ = raw.Read(func(fd uintptr) bool { // until the end has come
		_, _, err := unix.Recvfrom(int(fd), next[:1], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err != unix.EAGAIN
	})
	r.Drop(fd, 1<<20)
	if results, err := r.Do(); err != nil || results[0] != 0 {
		t.Error("at the end:", results, err)
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

// What the kernel has no memory for now it may have later: the operations are undone,
// and the ring stays good.
func TestKernelIsShort(t *testing.T) {
	r := newRing(t, 4)
	fd, _, _ := pair(t)
	for _, errno := range []unix.Errno{unix.EAGAIN, unix.ENOMEM, unix.EBUSY} {
		confined(t, unix.SYS_IO_URING_ENTER, false, errno, func() {
			r.Send(fd, []byte("a"))
			r.Send(fd, []byte("b"))
			if results, err := r.Do(); err != nil || results[0] != Undone || results[1] != Undone {
				t.Error(errno, results, err)
			}
		})
		r.Send(fd, []byte("c"))
		if results, err := r.Do(); err != nil || len(results) != 1 || results[0] != 1 {
			t.Error(errno, results, err)
		}
	}
}

// What takes longer is waited for: the kernel uses its memory.
func TestOperationsThatTakeLonger(t *testing.T) {
	r := newRing(t, 4)
	empty, _, far := pair(t)
	ready, _, _ := pair(t)
	got := make([]byte, 10)
	queue := func() {
		r.Send(ready, []byte("a"))
		r.queue(opReceive, empty, unsafe.Pointer(&got[0]), len(got), 0) // without MSG_DONTWAIT
		r.Send(ready, []byte("bc"))
	}
	queue()
	var writing sync.WaitGroup
	writing.Go(func() { _, _ = far.Write([]byte("late")) })
	results, err := r.Do()
	if err != nil || results[0] != 1 || results[1] != 4 || results[2] != 2 || string(got[:4]) != "late" {
		t.Errorf("%v, %v, %q", results, err, got)
	}
	writing.Wait()

	// If that cannot be waited for nobody knows what comes of it: it is not undone, for
	// who tries it again would do it twice.
	confined(t, unix.SYS_IO_URING_ENTER, true, unix.EPERM, func() {
		queue()
		results, err := r.Do()
		if n, errno := results[1].Split(); n != 0 || errno != unix.EIO || results[0] != 1 || results[2] != 2 || !errors.Is(err, unix.EPERM) {
			t.Error(results, err)
		}
	})
}

// Who confines the process may let none of it pass, or only a part.
func TestForbidden(t *testing.T) {
	for _, call := range []uintptr{unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_REGISTER} {
		for _, errno := range []unix.Errno{unix.EPERM, unix.EACCES, unix.ENOSYS} {
			before := descriptors(t)
			confined(t, call, false, errno, func() {
				if _, err := New(4); !errors.Is(err, ErrUnavailable) {
					t.Errorf("call %d, %v: %v", call, errno, err)
				}
			})
			if after := descriptors(t); after != before {
				t.Errorf("call %d, %v: %d descriptors, %d before", call, errno, after, before)
			}
		}
	}
	r := newRing(t, 4)
	fd, _, _ := pair(t)
	confined(t, unix.SYS_IO_URING_ENTER, false, unix.EPERM, func() {
		r.Send(fd, []byte("a"))
		if results, err := r.Do(); !errors.Is(err, unix.EPERM) || results[0] != Undone {
			t.Error(results, err)
		}
	})
}

// descriptors returns how many this process has.
func descriptors(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// A ring outlives the threads that used it.
func TestThreadsComeAndGo(t *testing.T) {
	r := newRing(t, 2)
	fd, _, far := pair(t)
	for i := range 100 {
		done := make(chan bool)
		go func() {
			defer close(done)
			runtime.LockOSThread() // its thread ends with it
			r.Send(fd, []byte{byte(i)})
			r.Send(fd, []byte{byte(i)})
			if results, err := r.Do(); err != nil || results[0] != 1 || results[1] != 1 {
				t.Error(i, results, err)
			}
		}()
		<-done
		var got [2]byte
		if _, err := io.ReadFull(far, got[:]); err != nil || got != [2]byte{byte(i), byte(i)} {
			t.Error(i, got, err)
		}
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
