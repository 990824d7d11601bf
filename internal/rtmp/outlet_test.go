package rtmp

import (
	"errors"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/yutopp/go-rtmp/message"
	"golang.org/x/sys/unix"

	"weir/internal/media"
	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

// outletTo returns a client that publishes to a server which the test plays by hand, from
// the publish on.
func outletTo(t *testing.T) (c *Client, server *net.TCPConn) {
	t.Helper()
	return outletWithin(t, patience)
}

// outletWithin is outletTo with a write timeout of the client's.
func outletWithin(t *testing.T, timeout time.Duration) (c *Client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan error, 1)
	go func() {
		nc, err := l.Accept()
		if err == nil {
			server = nc.(*net.TCPConn)
			_ = nc.SetDeadline(time.Now().Add(patience))
			err = serverHandshake(nc)
		}
		if err == nil {
			_, err = nc.Write(join(result(1), result(2, null, amf.Num(1)), msg(5, 20, 1, encodeStatus("status", CodePublishStart, ""))))
		}
		accepted <- err
	}()
	u := testURL(t, l.Addr().String(), "/live/cam")
	c = dialed(t, u)
	c.writeTimeout = timeout // before another goroutine reads it
	if err := errors.Join(<-accepted, c.Publish(t.Context(), u.Name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return c, server
}

// push sends at most n bytes of b as the user of an outlet does, and says so.
func push(t *testing.T, o *Outlet, b []byte, n int) {
	t.Helper()
	sent := 0
	if err := o.Control(func(fd uintptr) {
		var err error
		if sent, err = unix.SendmsgN(int(fd), b[:n], nil, nil, unix.MSG_DONTWAIT); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Error(err)
	}
	if err := o.Sent(b, sent); err != nil {
		t.Error(err)
	}
}

// eventually waits for what the reader of a client does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("no %s", what)
		}
	}
}

// begin begins a write as soon as whoever reads the answers does not write.
func begin(t *testing.T, o *Outlet) (b []byte) {
	t.Helper()
	eventually(t, "turn to write", func() (ok bool) {
		var err error
		if b, ok, err = o.Begin(nil); err != nil {
			t.Fatal(err)
		}
		return ok
	})
	return b
}

// What a client has to answer while a message is half sent goes behind it, and not into
// its middle.
func TestOutletKeepsMessagesWhole(t *testing.T) {
	c, server := outletTo(t)
	o := c.Outlet()
	tag := media.NewTag(media.Video, 40, 200_000) // of four chunks
	for i := range tag.Body() {
		tag.Body()[i] = byte(i * 7)
	}
	b := begin(t, o)
	b = c.AppendTags(b, tag)
	push(t, o, b, 70_000)

	if _, err := server.Write(msg(2, chunk.TypeUserControl, 0, encodeControl(&message.UserCtrl{Event: &message.UserCtrlEventPingRequest{Timestamp: 77}}))); err != nil {
		t.Fatal(err)
	}
	answers := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.out)
	}
	eventually(t, "answer to the ping", func() bool { return answers() > 0 })
	if _, ok, err := o.Begin(nil); ok || err != nil {
		t.Fatal("a write begins within another", ok, err)
	}
	if want := len(b) - 70_000; len(o.Rest()) != want {
		t.Fatalf("rest of %d bytes, want %d", len(o.Rest()), want)
	}
	clear(b) // the rest is the outlet's own
	push(t, o, o.Rest(), 50_000)
	push(t, o, o.Rest(), len(o.Rest()))
	if len(o.Rest()) > 0 {
		t.Fatalf("%d bytes are left", len(o.Rest()))
	}
	if b = begin(t, o); len(b) == 0 {
		t.Fatal("no answer in front of the next write")
	}
	audio := media.NewTag(media.Audio, 41, 10)
	b = c.AppendTags(b, audio)
	push(t, o, b, len(b))
	go func() { _ = c.Unpublish() }()

	var got []uint8
	cfg := DefaultClientConfig()
	for in := chunk.NewReader(server, cfg.limits()); ; {
		m, err := in.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		if m.Type == chunk.TypeVideo && !slices.Equal(m.Tag, tag) {
			t.Error("the tag has changed")
		}
		if m.Type == chunk.TypeCommand {
			if cmd, err := c.parseCommand(m); err != nil {
				t.Fatal(err)
			} else if cmd.name == "deleteStream" {
				break
			}
			continue
		}
		if m.Type != chunk.TypeWindowAckSize {
			if got = append(got, m.Type); len(got) > 3 {
				break
			}
		}
	}
	if want := []uint8{chunk.TypeVideo, chunk.TypeUserControl, chunk.TypeAudio}; !slices.Equal(got, want) {
		t.Errorf("messages %v, want %v", got, want)
	}
}

// A rest has the write timeout to go, however often it is tried.
func TestOutletTimeout(t *testing.T) {
	const timeout = 200 * time.Millisecond
	c, _ := outletWithin(t, timeout)
	o := c.Outlet()
	b := begin(t, o)
	b = append(b, "some"...)
	if err := o.Sent(b, 1); err != nil {
		t.Fatal("at once: ", err)
	}
	begun := time.Now()
	var err error
	eventually(t, "timeout", func() bool { err = o.Sent(o.Rest(), 0); return err != nil })
	if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) < timeout/2 {
		t.Errorf("after %v: %v", time.Since(begun), err)
	}
}

// An outlet fails with what the server said.
func TestOutletRefused(t *testing.T) {
	c, server := outletTo(t)
	o := c.Outlet()
	b := begin(t, o)
	if err := o.Sent(append(b, 1, 2), 1); err != nil { // all the while something is left
		t.Fatal(err)
	}
	if _, err := server.Write(msg(5, 20, 1, encodeStatus("error", CodePublishBadName, "Away."))); err != nil {
		t.Fatal(err)
	}
	var s *StatusError
	if err := o.Explain(unix.EPIPE); !errors.As(err, &s) || s.Description != "Away." {
		t.Errorf("explained as %v", err)
	}
	if _, ok, err := o.Begin(nil); ok || !errors.As(err, &s) {
		t.Errorf("begins: %v, %v", ok, err)
	}
	if err := o.Control(func(uintptr) { t.Error("a descriptor of what is closed") }); err == nil {
		t.Error("no error of what is closed")
	}
	if err := o.Explain(c.Err()); !errors.Is(err, c.Err()) {
		t.Error(err)
	}
}
