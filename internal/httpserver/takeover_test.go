package httpserver

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/valyala/fasthttp"

	"weir/internal/limit"
)

// taker is a handler that takes every GET over and hands the connections out.
func taker(conns chan net.Conn) func(s *Server, ctx *fasthttp.RequestCtx) {
	return func(s *Server, ctx *fasthttp.RequestCtx) {
		ctx.SetContentType("video/x-flv")
		ctx.Response.Header.Set("X-Stream", "live/demo")
		s.Takeover(ctx, func(conn net.Conn) { conns <- conn })
	}
}

// head reads up to the empty line behind a response's headers.
func head(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	var b strings.Builder
	for !strings.HasSuffix(b.String(), "\r\n\r\n") {
		line, err := r.ReadString('\n')
		b.WriteString(line)
		if err != nil {
			t.Fatalf("%v in a response head: %q", err, b.String())
		}
	}
	return b.String()
}

func TestTakeoverForEveryKindOfRequest(t *testing.T) {
	conns := make(chan net.Conn, 1)
	n := start(t, setup{handler: taker(conns)})
	f := func(request string) {
		t.Helper()
		c := n.send(request)
		conn := <-conns
		r := bufio.NewReader(c)
		got := head(t, r)
		if !strings.HasPrefix(got, "HTTP/1.1 200 OK\r\n") {
			t.Errorf("%q: %q", request, got)
		}
		contains(t, got, "Server: weir\r\n", "Date: ", "Content-Type: video/x-flv\r\n", "Cache-Control: no-store\r\n",
			"Connection: close\r\n", "Access-Control-Allow-Origin: *\r\n", "X-Stream: live/demo\r\n")
		lacks(t, got, "Transfer-Encoding", "Content-Length:")
		if _, err := io.WriteString(conn, "body"); err != nil {
			t.Error(err)
		}
		conn.Close()
		if body, err := io.ReadAll(r); err != nil || string(body) != "body" {
			t.Errorf("%q: body %q, %v", request, body, err)
		}
	}
	f("GET /a.flv HTTP/1.1\nHost: h\n\n")
	f("GET /a.flv HTTP/1.1\nHost: h\nConnection: close\n\n")
	f("GET /a.flv HTTP/1.0\n\n")
	f("GET /a.flv HTTP/1.0\nConnection: keep-alive\n\n")

	// Behind a request that was answered on the same connection.
	c := n.send("HEAD /a.flv HTTP/1.1\nHost: h\n\n")
	got, err := io.ReadAll(c) // without a length the connection has to end
	if err != nil {
		t.Error(err)
	}
	contains(t, string(got), "HTTP/1.1 200 OK\r\n", "Content-Type: video/x-flv\r\n", "Connection: close\r\n")
	lacks(t, string(got), "Content-Length:", "Transfer-Encoding")
	n.metric(`weir_http_requests_total{class="2xx"} 5`)
}

func TestTakeoverBehindPipelinedRequests(t *testing.T) {
	conns := make(chan net.Conn, 1)
	n := start(t, setup{handler: func(s *Server, ctx *fasthttp.RequestCtx) {
		if string(ctx.Path()) == "/small" {
			ctx.SetBodyString("small")
			return
		}
		taker(conns)(s, ctx)
	}})
	c := n.send("GET /small HTTP/1.1\nHost: h\n\nGET /a.flv HTTP/1.1\nHost: h\n\nGET /small HTTP/1.1\nHost: h\n\n")
	conn := <-conns
	io.WriteString(conn, "body")
	conn.(*tcpConn).CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	conn.Close()
	if text := string(got); strings.Count(text, "200 OK") != 2 || strings.Count(text, "small") != 1 || !strings.HasSuffix(text, "\r\n\r\nbody") {
		t.Errorf("%q", text)
	}
}

func TestTakenConnectionsLeaveNothingBehindAndHoldTheirPlace(t *testing.T) {
	const players = 50
	conns := make(chan net.Conn, players)
	n := start(t, setup{handler: taker(conns), limits: limit.Config{MaxConnections: players}})
	before := runtime.NumGoroutine()
	var taken []net.Conn
	for range players {
		n.send("GET /a.flv HTTP/1.1\nHost: h\n\n")
		taken = append(taken, <-conns)
	}
	n.eventually("no goroutine per player", func() bool { return runtime.NumGoroutine() <= before+5 })
	n.metric(`weir_http_taken_connections 50`)
	n.metric(`weir_connections{listener="http"} 50`)
	contains(t, n.exchange("GET /a.flv HTTP/1.1\nHost: h\n\n"), "HTTP/1.1 503 ")

	for _, c := range taken {
		if _, raw := c.(syscall.Conn); !raw {
			t.Fatalf("%T has no raw access", c)
		}
		if _, err := (&net.Buffers{[]byte("a"), []byte("b")}).WriteTo(c); err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second Close: %v", err)
		}
	}
	n.metric(`weir_http_taken_connections 0`)
	n.metric(`weir_connections{listener="http"} 0`)
}

func TestShutdownClosesTakenConnections(t *testing.T) {
	conns := make(chan net.Conn, 1)
	n := start(t, setup{handler: func(s *Server, ctx *fasthttp.RequestCtx) {
		if string(ctx.Path()) == "/kept" {
			taker(conns)(s, ctx)
			return
		}
		s.Takeover(ctx, func(conn net.Conn) {
			conns <- conn
			io.Copy(io.Discard, conn) // blocks until the shutdown closes it
		})
	}})
	kept := n.send("GET /kept HTTP/1.1\nHost: h\n\n")
	<-conns
	blocked := n.send("GET /blocked HTTP/1.1\nHost: h\n\n")
	<-conns
	n.stop()
	for name, c := range map[string]net.Conn{"kept": kept, "blocked": blocked} {
		if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the %s connection is still open", name)
		}
	}
	n.metric(`weir_http_taken_connections 0`)
}

func TestTakeoverDuringShutdownIsRefused(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	n := start(t, setup{handler: func(s *Server, ctx *fasthttp.RequestCtx) {
		close(entered)
		<-leave
		if s.Takeover(ctx, func(net.Conn) { t.Error("taken") }) {
			t.Error("taken over during the shutdown")
		}
	}})
	c := n.send("GET /a.flv HTTP/1.1\nHost: h\n\n")
	idle := n.dial()
	n.metric(`weir_http_connections 2`)
	<-entered
	var stopped sync.WaitGroup
	stopped.Go(n.stop)
	idle.Read(make([]byte, 1)) // returns when the shutdown has begun
	close(leave)
	got, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	contains(t, string(got), "HTTP/1.1 503 ", "shutting down", "Connection: close")
	stopped.Wait()
}

// A client that is gone before the hijack must not leave its player behind.
func TestTakeoverFunctionRunsForAClientThatLeft(t *testing.T) {
	called := make(chan error, 1)
	n := start(t, setup{handler: func(s *Server, ctx *fasthttp.RequestCtx) {
		ok := s.Takeover(ctx, func(conn net.Conn) {
			defer conn.Close()
			_, err := conn.Write([]byte("x"))
			called <- err
		})
		if !ok {
			t.Error("not taken over")
		}
		ctx.Conn().Close() // as the registry would in a shutdown
	}})
	n.send("GET /a.flv HTTP/1.1\nHost: h\n\n")
	if err := <-called; err == nil {
		t.Error("a write to the closed connection succeeded")
	}
	n.metric(`weir_http_taken_connections 0`)
	n.metric(`weir_http_connections 0`)
}

func TestPanicBehindATakeoverKeepsTheTakeover(t *testing.T) {
	n := start(t, setup{handler: func(s *Server, ctx *fasthttp.RequestCtx) {
		s.Takeover(ctx, func(conn net.Conn) {
			io.WriteString(conn, "body")
			conn.Close()
		})
		panic("boom")
	}})
	got := n.exchange("GET /a.flv HTTP/1.1\nHost: h\n\n")
	contains(t, got, "200 OK", "\r\n\r\nbody")
	contains(t, n.logs.String(), "boom")
}

// Standard clients read the stream as it comes.
func TestTakeoverWithNetHTTPClient(t *testing.T) {
	conns := make(chan net.Conn, 1)
	n := start(t, setup{handler: taker(conns)})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Get("http://" + n.addr + "/a.flv")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	conn := <-conns
	defer conn.Close()
	for _, piece := range []string{"one", "two", "three"} {
		io.WriteString(conn, piece)
		got := make([]byte, len(piece))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != piece {
			t.Fatalf("%q, %v; want %q at once", got, err, piece)
		}
	}
}

// A connection that is kept is closed by its owner alone; Close of what it was before,
// and the shutdown, only end what flows over it.
func TestKeptConnection(t *testing.T) {
	type keeper interface{ Keep() (net.Conn, bool) }
	for _, c := range []struct {
		name string
		end  func(n *node, conn net.Conn)
	}{
		{"close", func(_ *node, conn net.Conn) { conn.Close(); conn.Close() }},
		{"shutdown", func(n *node, _ net.Conn) { n.stop() }}, // which waits for the owner
	} {
		conns, over := make(chan net.Conn, 1), make(chan bool)
		n := start(t, setup{handler: func(s *Server, ctx *fasthttp.RequestCtx) {
			s.Takeover(ctx, func(conn net.Conn) { conns <- conn; <-over })
		}})
		client := n.send("GET /live HTTP/1.1\nHost: h\n\n")
		conn := <-conns
		k := conn.(keeper)
		kept, ok := k.Keep()
		if _, again := k.Keep(); !ok || again {
			t.Fatalf("%s: Keep is not for one owner", c.name)
		}
		if got, want := kept.RemoteAddr().String(), client.LocalAddr().String(); got != want {
			t.Errorf("%s: it comes from %s, not %s", c.name, got, want)
		}
		if got, want := kept.LocalAddr().String(), client.RemoteAddr().String(); got != want {
			t.Errorf("%s: it goes to %s, not %s", c.name, got, want)
		}
		raw, err := kept.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var ender sync.WaitGroup
		ender.Go(func() { c.end(n, conn) })
		if _, err := io.ReadAll(client); err != nil {
			t.Errorf("%s: the client gets %v instead of the end", c.name, err)
		}
		if m, err := kept.Read(make([]byte, 1)); m > 0 || err != io.EOF {
			t.Errorf("%s: the owner reads %v instead of the end", c.name, err)
		}
		if err := raw.Control(func(uintptr) {}); err != nil {
			t.Errorf("%s: the descriptor is closed: %v", c.name, err)
		}
		n.metric(`weir_http_taken_connections 1`)
		if err := kept.Close(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if raw.Control(func(uintptr) {}) == nil {
			t.Errorf("%s: Close does not close", c.name)
		}
		if _, again := k.Keep(); again || kept.Close() == nil || conn.Close() == nil {
			t.Errorf("%s: closed twice", c.name)
		}
		close(over)
		ender.Wait()
		n.metric(`weir_http_taken_connections 0`)
	}
}

// Whoever comes first, owner or shutdown: a descriptor that was kept is open.
func TestKeepRacesWithClose(t *testing.T) {
	conns := make(chan net.Conn, 1)
	n := start(t, setup{handler: taker(conns)})
	for range 200 {
		n.send("GET /live HTTP/1.1\nHost: h\n\n").Close()
		conn := <-conns
		var closer sync.WaitGroup
		closer.Go(func() { conn.Close() })
		kept, ok := conn.(interface{ Keep() (net.Conn, bool) }).Keep()
		closer.Wait()
		if !ok {
			continue
		}
		raw, err := kept.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if raw.Control(func(uintptr) {}) != nil || kept.Close() != nil {
			t.Fatal("a descriptor that was kept was closed")
		}
	}
}
