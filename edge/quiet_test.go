package edge

import (
	"context"
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
		c := newQuietConn(near)
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
	if n, err := newQuietConn(near).Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) || !errors.As(err, &op) || op.Op != "read" {
		t.Errorf("reset: %d, %v", n, err)
	}
}

func errString(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Between two beats the kernel does not tell of what comes; when nothing has come until
// then, it does at once, and of the end.
func TestBeatWakesForATrickle(t *testing.T) {
	near, far := socketPair(t, "tcp")
	c := newBeatConn(near, func() time.Duration { return leastBeat })
	c.follow()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	defer context.AfterFunc(ctx, func() { far.Close() })()
	b := make([]byte, 10)
	for i := range 5 {
		read := make(chan error)
		go func() {
			_, err := c.Read(b)
			read <- err
		}()
		select { // the beat passes, and the read waits for data
		case err := <-read:
			t.Fatalf("read %d: %v without data", i, err)
		case <-time.After(3 * leastBeat):
		}
		write(t, far, "x")
		if err := <-read; err != nil {
			t.Fatalf("read %d: %v", i, err)
		}
		if c.asleep {
			t.Fatalf("read %d: waits for data asleep", i)
		}
	}
	write(t, far, "y")
	if _, err := c.Read(b); err != nil || !c.asleep {
		t.Errorf("what has come until the beat: %v, asleep %v", err, c.asleep)
	}
	far.Close()
	if _, err := c.Read(b); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}
