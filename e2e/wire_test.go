package e2e

import (
	"io"
	"net"
	"sync"
	"testing"
)

// wire is a TCP proxy in front of a node: it shows a test what is said on each
// connection, and can cut them.
type wire struct {
	listener net.Listener
	target   string
	pipes    sync.WaitGroup

	mu     sync.Mutex
	conns  []*wireConn // all there were, in order
	closed bool
}

// wireConn is one proxied connection.
type wireConn struct {
	client, server net.Conn

	mu         sync.Mutex
	fromClient []byte
	fromServer []byte
}

// recordLimit bounds what is kept of each direction of a connection; what
// tests look for comes early.
const recordLimit = 256 << 10

// tap starts a proxy in front of target.
func tap(t testing.TB, target string) *wire {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, target: target}
	w.pipes.Go(w.accept)
	t.Cleanup(w.close)
	return w
}

// addr is where clients connect instead of to the target.
func (w *wire) addr() string { return w.listener.Addr().String() }

func (w *wire) accept() {
	for {
		client, err := w.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp4", w.target)
		if err != nil {
			client.Close()
			continue
		}
		c := &wireConn{client: client, server: server}
		w.mu.Lock()
		w.conns = append(w.conns, c)
		if w.closed {
			c.close()
		}
		w.mu.Unlock()
		w.pipes.Go(func() { c.pipe(server, client, &c.fromClient) })
		w.pipes.Go(func() { c.pipe(client, server, &c.fromServer) })
	}
}

func (c *wireConn) pipe(to, from net.Conn, record *[]byte) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		c.mu.Lock()
		*record = append(*record, buf[:min(n, recordLimit-len(*record))]...)
		c.mu.Unlock()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				break
			}
		}
		if err == io.EOF {
			_ = to.(*net.TCPConn).CloseWrite()
			return // the other direction may have more to say
		}
		if err != nil {
			break
		}
	}
	c.close()
}

func (c *wireConn) close() {
	c.client.Close()
	c.server.Close()
}

// cut closes all present connections; new ones are taken.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.close()
	}
}

func (w *wire) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.listener.Close()
	w.cut()
	w.pipes.Wait()
}

// said returns what each connection carried so far.
func (w *wire) said() (fromClients, fromServers [][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.mu.Lock()
		fromClients = append(fromClients, append([]byte(nil), c.fromClient...))
		fromServers = append(fromServers, append([]byte(nil), c.fromServer...))
		c.mu.Unlock()
	}
	return fromClients, fromServers
}

func TestWire(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var server sync.WaitGroup
	server.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
	})
	w := tap(t, l.Addr().String())
	c, err := net.Dial("tcp4", w.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	echo, err := io.ReadAll(c)
	if err != nil || string(echo) != "hello" {
		t.Fatalf("echo %q, %v", echo, err)
	}
	server.Wait()
	fromClients, fromServers := w.said()
	if len(fromClients) != 1 || string(fromClients[0]) != "hello" || string(fromServers[0]) != "hello" {
		t.Errorf("recorded %q and %q", fromClients, fromServers)
	}
}
