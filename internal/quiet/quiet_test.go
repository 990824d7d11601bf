package quiet

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// socketPair returns both ends of a connection.
func socketPair(t *testing.T, network string) (near, far net.Conn) {
	t.Helper()
	at := "127.0.0.1:0"
	if network == "unix" {
		at = filepath.Join(t.TempDir(), "s")
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), network, at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = new(net.Dialer).DialContext(t.Context(), network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
}

// A connection that is read quietly says what an ordinary one says.
func TestQuietReads(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		near, far := socketPair(t, network)
		c := New(near)
		b := make([]byte, 4)
		write(t, far, "hello")
		for _, want := range []string{"hell", "o"} {
			if n, err := c.Read(b); err != nil || string(b[:n]) != want {
				t.Fatalf("%s: read %q: %v", network, b[:n], err)
			}
		}
		if n, err := c.Read(nil); n != 0 || err != nil {
			t.Errorf("%s: read nothing: %d, %v", network, n, err)
		}
		read := make(chan string)
		go func() { // waits for what comes
			n, err := io.ReadFull(c, b)
			read <- string(b[:n])
			read <- errString(err)
		}()
		write(t, far, "wo")
		write(t, far, "rd")
		if s, err := <-read, <-read; s != "word" || err != "" {
			t.Errorf("%s: read %q: %s", network, s, err)
		}
		if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(b); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: after the deadline: %d, %v", network, n, err)
		}
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		far.Close()
		if n, err := c.Read(b); n != 0 || err != io.EOF {
			t.Errorf("%s: at the end: %d, %v", network, n, err)
		}
		c.Close()
		if n, err := c.Read(b); n != 0 || !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: closed: %d, %v", network, n, err)
		}
	}
	near, far := socketPair(t, "tcp")
	if err := far.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	far.Close()
	var op *net.OpError
	if n, err := New(near).Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) || !errors.As(err, &op) || op.Op != "read" {
		t.Errorf("reset: %d, %v", n, err)
	}
}

func errString(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// What is written quietly arrives, however slowly it is read, and fails as an ordinary
// write does.
func TestQuietWrites(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		near, far := socketPair(t, network)
		c := New(near)
		if n, err := c.Write(nil); n != 0 || err != nil {
			t.Errorf("%s: wrote nothing: %d, %v", network, n, err)
		}
		long := bytes.Repeat([]byte("0123456789"), 1<<20) // more than sockets hold
		wrote := make(chan error)
		go func() {
			n, err := c.Write(long)
			if err == nil && n != len(long) {
				err = io.ErrShortWrite
			}
			wrote <- err
		}()
		got := make([]byte, len(long))
		if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, long) {
			t.Errorf("%s: read something else: %v", network, err)
		}
		if err := <-wrote; err != nil {
			t.Errorf("%s: %v", network, err)
		}
		if err := c.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Write(long); n == 0 || n == len(long) || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: to one that does not read: %d, %v", network, n, err)
		}
		if err := c.SetWriteDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		far.Close()
		var op *net.OpError
		n, err := c.Write(long)
		if n == len(long) || !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) || !errors.As(err, &op) || op.Op != "write" {
			t.Errorf("%s: to nobody: %d, %v", network, n, err)
		}
		c.Close()
		if n, err := c.Write(long); n != 0 || !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: closed: %d, %v", network, n, err)
		}
	}
}

// What has no socket, such as TLS, is read and written as it is.
func TestNoSocket(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	c := New(near)
	go func() { _, _ = io.Copy(far, far) }()
	write(t, c, "echo")
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "echo" {
		t.Errorf("read %q: %v", b, err)
	}
	if _, err := c.SyscallConn(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("access to its socket: %v", err)
	}
}

// What one goroutine did before it wrote, another may use after it has read: the race
// detector agrees.
func TestOrder(t *testing.T) {
	near, far := socketPair(t, "unix")
	for _, c := range []struct{ from, to net.Conn }{{New(near), far}, {far, New(near)}} {
		shared := 0
		failed := make(chan error, 1)
		go func() {
			shared = 1
			_, err := c.from.Write([]byte("x"))
			failed <- err
		}()
		if _, err := c.to.Read(make([]byte, 1)); err != nil || shared != 1 {
			t.Errorf("read %d, %v", shared, err)
		}
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

// Neither reading nor writing makes garbage.
func TestNoGarbage(t *testing.T) {
	near, far := socketPair(t, "unix")
	a, b := New(near), New(far)
	p := make([]byte, 100)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := a.Write(p); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Read(p); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// What the kernel says of the process is what others say of it.
func TestKernel(t *testing.T) {
	long := filepath.Join(t.TempDir(), "long")
	text := bytes.Repeat([]byte("0123456789"), 1000)
	if err := os.WriteFile(long, text, 0o600); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 0, 32<<10)
	for _, b := range [][]byte{nil, make([]byte, 7), buf} {
		got, err := ReadFile(long, b, len(text))
		if err != nil || !bytes.Equal(got, text) {
			t.Errorf("with %d bytes of buffer: %d bytes, %v", cap(b), len(got), err)
		}
	}
	if got, err := ReadFile(long, buf, 100); err == nil {
		t.Errorf("%d bytes where 100 are the limit", len(got))
	}
	if n, err := FileSize(long); n != uint64(len(text)) || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	for _, name := range []string{long + "er", "a\x00b"} {
		if _, err := ReadFile(name, nil, 1); err == nil {
			t.Errorf("read %q", name)
		}
		if _, err := FileSize(name); err == nil {
			t.Errorf("size of %q", name)
		}
	}
	if _, err := ReadFile(filepath.Dir(long), nil, 1); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("read a folder: %v", err)
	}
	var before, after syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &before); err != nil {
		t.Fatal(err)
	}
	used, err := CPUTime(os.Getpid())
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &after); err != nil {
		t.Fatal(err)
	}
	of := func(r syscall.Rusage) time.Duration { return time.Duration(r.Utime.Nano() + r.Stime.Nano()) }
	const rounding = time.Millisecond
	if err != nil || used < of(before)-rounding || used > of(after)+rounding {
		t.Errorf("used %v, %v; the kernel said %v before and %v after", used, err, of(before), of(after))
	}
	if _, err := CPUTime(1 << 22); err == nil {
		t.Error("the time of no process")
	}
}
