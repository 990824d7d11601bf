package httpserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/valyala/fasthttp"
)

// passed is what a server gives away.
type passed struct {
	conn *net.TCPConn
	read string
}

// passer is a handler that passes requests for /pass and answers all others.
func passer(to chan passed, fail error) func(s *Server, ctx *fasthttp.RequestCtx) {
	return func(s *Server, ctx *fasthttp.RequestCtx) {
		if string(ctx.Path()) != "/pass" || !s.CanPass(ctx) {
			fmt.Fprintf(ctx, "%s %t", ctx.Path(), WasPassed(ctx))
			return
		}
		s.Pass(ctx, func(conn *net.TCPConn, read []byte) error {
			file, err := conn.File() // another descriptor, as another process gets
			if err != nil {
				return err
			}
			defer file.Close()
			c, err := net.FileConn(file)
			if err != nil {
				return err
			}
			to <- passed{c.(*net.TCPConn), string(read)}
			return fail
		})
	}
}

// A connection goes to another process with all that was read from the request on; its
// server knows nothing of it any more, and has not answered.
func TestPass(t *testing.T) {
	to := make(chan passed, 1)
	n := start(t, setup{handler: passer(to, nil)})
	const request = "GET /pass?key=a%20b HTTP/1.1\nHost: h\nX-odd: 1\nUser-Agent: me\n\n"
	c := n.send("GET /before HTTP/1.1\nHost: h\n\n" + request + "behind")
	p := <-to
	defer p.conn.Close()
	if want := strings.ReplaceAll(request, "\n", "\r\n") + "behind"; !strings.EqualFold(p.read, want) { // names of headers may be put right
		t.Errorf("passed %q, want %q", p.read, want)
	}
	io.WriteString(p.conn, "an answer")
	p.conn.Close()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	if text := string(got); strings.Count(text, "HTTP/1.1") != 1 || !strings.HasSuffix(text, "/before falsean answer") {
		t.Errorf("the client got %q", text)
	}
	n.eventually("a place at the gate", func() bool { return n.gate.Open() == 0 })
	n.metric(`weir_http_requests_total{class="2xx"} 1`)
	n.metric(`weir_http_connections 0`)
}

// Who cannot be passed after all is told to come again.
func TestPassFails(t *testing.T) {
	to := make(chan passed, 1)
	n := start(t, setup{handler: passer(to, errors.New("nobody is there"))})
	c := n.send("GET /pass HTTP/1.1\nHost: h\n\n")
	(<-to).conn.Close()
	got, _ := io.ReadAll(c)
	contains(t, string(got), "HTTP/1.1 503 ", "Retry-After: 2\r\n")
	n.eventually("a place at the gate", func() bool { return n.gate.Open() == 0 })
}

// What cannot go to another process is answered here.
func TestCannotPass(t *testing.T) {
	to := make(chan passed, 1)
	n := start(t, setup{handler: passer(to, nil)})
	for _, request := range []string{
		"HEAD /pass HTTP/1.1\nHost: h\n\n",
		"GET /pass HTTP/1.1\nHost: h\nContent-Length: 2\n\nhi",
		"GET /pass HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n0\n\n",
	} {
		c := n.send(request)
		contains(t, head(t, bufio.NewReader(c)), "HTTP/1.1 200 OK\r\n")
		c.Close()
	}
}

// A server answers the connections that others pass to it as its own: the first request,
// of which they have let the client in, and what follows.
func TestAdopt(t *testing.T) {
	to := make(chan passed, 1)
	first := start(t, setup{handler: passer(to, nil)})
	second := start(t, setup{handler: func(s *Server, ctx *fasthttp.RequestCtx) {
		fmt.Fprintf(ctx, "%s %t.", ctx.URI().QueryArgs(), WasPassed(ctx))
	}})
	adoptions, stop := second.adopt()
	c := first.send("GET /pass?1 HTTP/1.1\nHost: h\n\nGET /pass?2 HTTP/1.1\nHost: h\n\n")
	p := <-to
	adoptions.Adopt(p.conn, []byte(p.read))
	io.WriteString(c, "GET /pass?3 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
	got, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	contains(t, string(got), "1 true.", "2 false.", "3 false.")
	second.metric(`weir_http_requests_total{class="2xx"} 3`)
	second.metric(`weir_connections_accepted_total{listener="http"} 0`)
	first.metric(`weir_connections_accepted_total{listener="http"} 1`)

	stop()
	c = first.send("GET /pass HTTP/1.1\nHost: h\n\n")
	p = <-to
	adoptions.Adopt(p.conn, []byte(p.read)) // too late
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a connection that nobody serves: %v", err)
	}
}

// adopt has a node serve the connections that others pass until stop.
func (n *node) adopt() (a *Adoptions, stop func()) {
	n.t.Helper()
	a = NewAdoptions(fakeAddr("adoptions"))
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- n.srv.Serve(ctx, a) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-served; err != nil {
				n.t.Errorf("Serve: %v", err)
			}
		})
	}
	n.t.Cleanup(stop)
	return a, stop
}

// fakeAddr is the address of a listener that has none.
type fakeAddr string

func (a fakeAddr) Network() string { return "none" }
func (a fakeAddr) String() string  { return string(a) }
