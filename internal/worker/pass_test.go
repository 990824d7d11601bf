package worker

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"
)

// siblings returns the two ends of a socket between workers.
func siblings(t *testing.T) (from, to net.Conn) {
	t.Helper()
	token := rand.Text()
	l, err := ListenSibling(token, 0, slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := DialSibling(context.Background(), token, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

// accepted returns a connection of a client.
func accepted(t *testing.T) (client net.Conn, conn *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, c.(*net.TCPConn)
}

// A connection goes on in the hands of the one who receives it, and is closed when that
// one closes it.
func TestConnectionIsPassed(t *testing.T) {
	for _, size := range []int{0, 1, maxPassed} {
		from, to := siblings(t)
		client, conn := accepted(t)
		read := bytes.Repeat([]byte("r"), size)
		sent := make(chan error, 1)
		go func() {
			sent <- PassConn(from, conn, read)
			conn.Close()
		}()
		got, data, err := ReceiveConn(to)
		if err != nil {
			t.Fatal(err)
		}
		if err := <-sent; err != nil || !bytes.Equal(data, read) {
			t.Fatalf("%d bytes came with it, want %d: %v", len(data), size, err)
		}
		if got.RemoteAddr().String() != client.LocalAddr().String() {
			t.Errorf("it is of %v, want %v", got.RemoteAddr(), client.LocalAddr())
		}
		if _, err := io.WriteString(got, "hello"); err != nil {
			t.Fatal(err)
		}
		got.Close()
		if text, err := io.ReadAll(client); string(text) != "hello" || err != nil {
			t.Errorf("the client got %q, %v", text, err)
		}
	}
}

// What does not come whole is not there, and the client's connection ends.
func TestConnectionIsNotPassed(t *testing.T) {
	from, to := siblings(t)
	client, conn := accepted(t)
	if err := PassConn(from, conn, make([]byte, maxPassed+1)); err == nil {
		t.Error("more than can be received was sent")
	}
	if _, err := io.WriteString(from, "\x00\x00\x00\x01"); err != nil {
		t.Fatal(err)
	}
	if c, _, err := ReceiveConn(to); err == nil || c != nil {
		t.Errorf("received %v without a descriptor", c)
	}

	from, to = siblings(t)
	go func() {
		_ = PassConn(from, conn, []byte("cut off"))
		conn.Close()
		from.Close()
	}()
	var size [4]byte
	if _, err := io.ReadFull(to, size[:]); err != nil { // without the descriptor, which is lost with it
		t.Fatal(err)
	}
	if c, _, err := ReceiveConn(to); err == nil || c != nil {
		t.Errorf("received %v", c)
	}
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the client's connection: %v", err)
	}
}
