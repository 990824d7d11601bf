package admin

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// line is a connection to a worker that is kept from one question to the next, for
// what is asked all the time: a new connection for each, and the goroutines that an
// http.Client has for it, cost more than the answer. Not safe for concurrent use.
type line struct {
	// Static.
	conn   net.Conn
	answer *bufio.Reader // of conn
	stop   func() bool   // ends its being closed with the context
}

// maxLineAnswer bounds an answer in bytes.
const maxLineAnswer = 64 << 10

// newLine returns a line over conn, which is closed with ctx at the latest.
func newLine(ctx context.Context, conn net.Conn) *line {
	return &line{conn, bufio.NewReader(conn), context.AfterFunc(ctx, func() { conn.Close() })}
}

// ask sends a request, which has to be answered by the deadline.
func (l *line) ask(deadline time.Time, method, path string, body []byte) error {
	if err := l.conn.SetDeadline(deadline); err != nil {
		return err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: worker\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
	_, err := l.conn.Write(b.Bytes())
	return err
}

// atHand is enough time to read what has come already.
const atHand = 10 * time.Millisecond

// read returns the answer to what was asked. last says that there will be no other on
// this line. An answer that has come is read even if the deadline is over, for which
// another worker may be to blame.
func (l *line) read(deadline time.Time) (status int, body []byte, last bool, err error) {
	if soon := time.Now().Add(atHand); soon.After(deadline) {
		_ = l.conn.SetReadDeadline(soon) // it fails on a closed connection, as the read will
	}
	response, err := http.ReadResponse(l.answer, nil)
	if err != nil {
		return 0, nil, true, err
	}
	defer response.Body.Close()
	body, err = io.ReadAll(io.LimitReader(response.Body, maxLineAnswer+1))
	if err == nil && len(body) > maxLineAnswer {
		err = fmt.Errorf("answer of more than %d bytes", maxLineAnswer)
	}
	return response.StatusCode, body, response.Close || err != nil, err
}

func (l *line) close() {
	l.stop()
	l.conn.Close()
}
