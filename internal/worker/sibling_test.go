package worker

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestSiblingsTalkAndTheDeadRefuse(t *testing.T) {
	cfg := DefaultConfig()
	s := run(t, Options{Config: cfg, Specs: []Spec{workers(2)}})
	for index := range 2 {
		conn, err := s.DialWorker(t.Context(), "edge", index)
		if err != nil {
			t.Fatal(err)
		}
		c, err := talkTo(conn)
		if err != nil {
			t.Fatal(err)
		}
		if c.Index != index || c.PID != s.States()[index].PID {
			t.Errorf("dialed worker %d, got %+v", index, c.answer)
		}
		c.mustEcho(t, "sibling")
		c.Close()
	}
	if _, err := s.DialWorker(t.Context(), "edge", 2); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial of a worker that is not there: %v", err)
	}
	if _, err := s.DialWorker(t.Context(), "origin", 0); err == nil {
		t.Error("dial of a spec that is not there: no error")
	}
}

func TestListenSiblingTwice(t *testing.T) {
	token := rand.Text()
	l, err := ListenSibling(token, 0, slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ListenSibling(token, 0, slog.Default()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second listener: %v", err)
	}
	l.Close()
	if _, err := DialSibling(t.Context(), token, 0); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial after Close: %v", err)
	}
}

// The listener takes this process for one of another user: it expects a user
// that nobody here is.
func TestOtherUsersAreDropped(t *testing.T) {
	var log bytes.Buffer
	token := rand.Text()
	l, err := ListenSibling(token, 3, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	l.(*sameUserListener).uid = os.Geteuid() + 1
	accepted := make(chan net.Conn, 1)
	ended := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if c != nil {
			accepted <- c
		}
		ended <- err
	}()
	c, err := DialSibling(t.Context(), token, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read at a listener of another user: %d bytes, %v; want the end", n, err)
	}
	l.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	if len(accepted) != 0 || !strings.Contains(log.String(), "another user") {
		t.Errorf("accepted %d, log %q", len(accepted), log.String())
	}
}

func TestHandoverIsChecked(t *testing.T) {
	f := func(text string) {
		t.Helper()
		if c, err := inherit([]byte(text)); err == nil {
			t.Errorf("%s: no error, child %+v", text, c)
		}
	}
	f(``)
	f(`{}`)
	f(`{"version":2,"count":1,"config_fd":3,"lifeline_fd":4,"ready_fd":5,"grace_ns":1}`)
	f(`{"version":1,"count":1,"index":1,"config_fd":3,"lifeline_fd":4,"ready_fd":5,"grace_ns":1}`)
	f(`{"version":1,"count":1,"config_fd":2,"lifeline_fd":4,"ready_fd":5,"grace_ns":1}`)
	f(`{"version":1,"count":1,"config_fd":3,"lifeline_fd":4,"ready_fd":4,"grace_ns":1}`)
	f(`{"version":1,"count":1,"config_fd":3,"lifeline_fd":4,"ready_fd":5,"grace_ns":0}`)
	f(`{"version":1,"count":1,"config_fd":3,"lifeline_fd":4,"ready_fd":5,"grace_ns":1,"listener_fds":{"http":5}}`)
}
