package bench

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// eachWay runs a test with io_uring, without, and with one that stops to work.
func eachWay(t *testing.T, f func(t *testing.T, prepare func(*calls))) {
	t.Run("io_uring", func(t *testing.T) {
		f(t, func(c *calls) {
			if c.ring == nil {
				t.Error("no io_uring")
			}
		})
	})
	t.Run("plain", func(t *testing.T) { f(t, (*calls).close) })
	t.Run("broken", func(t *testing.T) {
		f(t, func(*calls) { breakRings(t) })
	})
}

// breakRings puts something else in the place of all rings of this process.
func breakRings(t *testing.T) {
	const dir = "/proc/self/fd"
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	broken := 0
	for _, e := range list {
		if to, _ := os.Readlink(filepath.Join(dir, e.Name())); to != "anon_inode:[io_uring]" {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err == nil {
			err = unix.Dup3(int(file.Fd()), fd, unix.O_CLOEXEC)
		}
		if err != nil {
			t.Fatal(err)
		}
		broken++
	}
	if broken == 0 {
		t.Fatal("no ring is open")
	}
}

// Each call has its own outcome, whichever way it is made.
func TestCalls(t *testing.T) {
	eachWay(t, func(t *testing.T, prepare func(*calls)) {
		var near, far [3]int
		for i := range near {
			near[i], far[i] = connected(t)
		}
		c := newCalls()
		defer c.close()
		prepare(&c)
		for range 3 {
			if _, err := unix.Write(far[1], make([]byte, 5000)); err != nil {
				t.Fatal(err)
			}
			waitReadable(t, near[1])
			c.send(near[0], []byte("something"))
			c.drop(near[1])
			c.drop(near[2])
			c.send(-1, []byte("x"))
			got := c.do()
			for i, want := range []struct {
				n     int
				errno syscall.Errno
			}{{n: 9}, {n: 5000}, {errno: unix.EAGAIN}, {errno: unix.EBADF}} {
				if n, errno := got[i].Split(); n != want.n || errno != want.errno {
					t.Errorf("call %d: %d, %v", i, n, errno)
				}
			}
			waitReadable(t, far[0])
			b := make([]byte, 100)
			if n, err := unix.Read(far[0], b); err != nil || string(b[:n]) != "something" {
				t.Errorf("%q was sent, %v", b[:max(n, 0)], err)
			}
		}
		for n := range callsAtOnce {
			if c.full() {
				t.Fatal("full with", n)
			}
			c.drop(near[0])
		}
		if !c.full() || len(c.do()) != callsAtOnce || c.full() {
			t.Error("not full when it is, or never empty")
		}
	})
}

// connected returns the descriptors of the two ends of a connection, which do not wait.
func connected(t *testing.T) (near, far int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far, err = dialNonblocking(netip.MustParseAddrPort(l.Addr().String()), nil, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err == nil {
		near, err = takeOver(c.(*net.TCPConn))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(near); unix.Close(far) })
	return near, far
}

func waitReadable(t *testing.T, fd int) {
	t.Helper()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds())); n != 1 || err != nil {
		t.Fatal(n, err)
	}
}
