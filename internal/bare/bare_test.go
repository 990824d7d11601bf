package bare

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// pair returns two connected TCP sockets.
func pair(t *testing.T) (near, far *net.TCPConn) {
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
	t.Cleanup(func() { a.Close(); c.Close() })
	return a.(*net.TCPConn), c.(*net.TCPConn)
}

// A connection that is kept waits like any other, once somebody has to: for room, up to
// a deadline, and until it is closed.
func TestKeptConnectionWaits(t *testing.T) {
	near, client := pair(t)
	kept, ok := Keep(near)
	if !ok {
		t.Fatal("it is not kept")
	}
	if _, err := near.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the one before is open: %v", err)
	}
	if err := kept.SetWriteDeadline(time.Time{}); err != nil || kept.file != nil {
		t.Errorf("no deadline: %v; the poller has it: %v", err, kept.file != nil)
	}
	big := make([]byte, 16<<20)
	if err := kept.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	sent, err := kept.Write(big)
	if !errors.Is(err, os.ErrDeadlineExceeded) || sent == 0 || sent == len(big) {
		t.Fatalf("%d bytes, %v", sent, err)
	}
	var reader sync.WaitGroup
	reader.Go(func() {
		if _, err := io.CopyN(io.Discard, client, int64(len(big))); err != nil {
			t.Error(err)
		}
	})
	if err := kept.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if m, err := kept.Write(big[sent:]); err != nil || sent+m != len(big) {
		t.Errorf("%d bytes more, %v", m, err)
	}
	reader.Wait()

	var writer sync.WaitGroup
	writing := make(chan struct{})
	writer.Go(func() {
		close(writing)
		if _, err := kept.Write(big); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed meanwhile: %v", err)
		}
	})
	<-writing
	if err := kept.SetLinger(0); err != nil {
		t.Error(err)
	}
	if err := kept.Close(); err != nil {
		t.Error(err)
	}
	writer.Wait()
	for name, f := range map[string]func() error{
		"write":    func() error { _, err := kept.Write(big); return err },
		"read":     func() error { _, err := kept.Read(big); return err },
		"deadline": func() error { return kept.SetDeadline(time.Now()) },
		"none":     func() error { return kept.SetDeadline(time.Time{}) },
		"end":      kept.CloseWrite,
		"linger":   func() error { return kept.SetLinger(0) },
	} {
		if err := f(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s of what is closed: %v", name, err)
		}
	}
}

// Only an open connection is kept.
func TestClosedIsNotKept(t *testing.T) {
	near, _ := pair(t)
	near.Close()
	if c, ok := Keep(near); ok {
		t.Error(c)
	}
}

// Addresses are those of the socket.
func TestAddresses(t *testing.T) {
	near, far := pair(t)
	local, remote := near.LocalAddr().String(), near.RemoteAddr().String()
	kept, _ := Keep(near)
	defer kept.Close()
	if kept.LocalAddr().String() != local || kept.RemoteAddr().String() != remote || remote != far.LocalAddr().String() {
		t.Error(kept.LocalAddr(), kept.RemoteAddr())
	}
}
