package rtmp

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"weir/internal/media"
	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

func TestParseURL(t *testing.T) {
	f := func(in string, want URL) {
		t.Helper()
		if got, err := ParseURL(in); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", in, got, err, want)
		}
	}
	f("rtmp://h/live/name", URL{"h:1935", "rtmp://h/live", "live", "name", false})
	f("RTMP://h:19351/live/name", URL{"h:19351", "rtmp://h:19351/live", "live", "name", false})
	f("rtmp://h/live/inst/name?key=a/b&vhost=v", URL{"h:1935", "rtmp://h/live/inst", "live/inst", "name?key=a/b&vhost=v", false})
	f("rtmp://[::1]/live/name", URL{"[::1]:1935", "rtmp://[::1]/live", "live", "name", false})
	f("rtmp://[::1]:99/live/name", URL{"[::1]:99", "rtmp://[::1]:99/live", "live", "name", false})
	f("rtmp://h/live//name", URL{"h:1935", "rtmp://h/live", "live", "name", false})
	f("rtmp://h/live/name?", URL{"h:1935", "rtmp://h/live", "live", "name?", false})
	f("rtmps://h/live/name", URL{"h:443", "rtmps://h/live", "live", "name", true})
	f("rtmps://h:19350/live/name", URL{"h:19350", "rtmps://h:19350/live", "live", "name", true})

	bad := func(in, want string) {
		t.Helper()
		if got, err := ParseURL(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v; want an error with %q", in, got, err, want)
		}
	}
	bad("http://h/live/name", "neither rtmp nor rtmps")
	bad("h/live/name", "no scheme")
	bad("rtmp://h/live", "no stream name")
	bad("rtmp://h", "no stream name")
	bad("rtmp:///live/name", "no host")
	bad("rtmp://u:p@h/live/name", "user information")
	bad("rtmp://h:0/live/name", "bad port")
	bad("rtmp://h:99999/live/name", "bad port")
	bad("rtmp://[::1/live/name", "bad host")
	bad("rtmp://h/live/na me", "blank")
}

func TestConfigs(t *testing.T) {
	server, client := DefaultServerConfig(), DefaultClientConfig()
	if err := server.Validate(); err != nil {
		t.Error(err)
	}
	if err := client.Validate(); err != nil {
		t.Error(err)
	}
	server.MaxCommand, server.MaxUnfinished, server.HandshakeTimeout = 1, server.MaxMessage-1, 0
	err := server.Validate()
	for _, key := range []string{"max_command: ", "max_unfinished: ", "handshake_timeout: "} {
		if err == nil || !strings.Contains("\n"+err.Error(), "\n"+key) {
			t.Errorf("no line starts with %q: %v", key, err)
		}
	}
	if n := strings.Count(err.Error(), "\n"); n != 2 {
		t.Errorf("%d lines, want 3: %v", n+1, err)
	}
}

// rawServer is a peer that does what the test says with raw bytes after the
// handshake; it reads until the client has asked for something.
func rawServer(t *testing.T, say ...[]byte) URL {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(patience))
		if serverHandshake(nc) != nil {
			return
		}
		for _, b := range say {
			if _, err := nc.Write(b); err != nil {
				return
			}
		}
		_, _ = io.Copy(io.Discard, nc)
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return testURL(t, l.Addr().String(), "/live/cam?key=1")
}

func dialed(t *testing.T, u URL) *Client {
	t.Helper()
	c, err := Dial(t.Context(), u, DefaultClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func result(tid float64, args ...amf.Value) []byte { return call(0, "_result", tid, args...) }

// TestClientRefusals: refusals and redirects in every form and at every step.
func TestClientRefusals(t *testing.T) {
	ex := amf.P("ex", amf.Obj(amf.P("code", amf.Num(302)), Text("redirect", "rtmp://10.0.0.1:1936/live"), Text("redirect2", "rtmp://10.0.0.1:1936/live/cam?key=1")))
	rejected := amf.Obj(Text("level", "error"), Text("code", CodeConnectRejected), Text("description", "RTMP 302 Redirect"), ex)
	adobe := call(0, "_error", 1, null, rejected)
	srs := msg(5, 20, 0, encodeRedirect("rtmp://10.0.0.1:1936/live/cam?key=1"))
	ok := join(result(1, amf.Obj(), amf.Obj(Text("level", "status"), Text("code", CodeConnectSuccess))), result(2, null, amf.Num(1)))
	started := func(code string) []byte { return msg(5, 20, 1, encodeStatus("status", code, "")) }
	failed := func(code string) []byte { return msg(5, 20, 1, encodeStatus("error", code, "No.")) }

	type step func(u URL) error
	connect := func(u URL) error {
		c, err := Dial(t.Context(), u, DefaultClientConfig())
		if err == nil {
			c.Close()
		}
		return err
	}
	play := func(u URL) error {
		_, err := dialed(t, u).Play(t.Context(), u.Name)
		return err
	}
	read := func(u URL) error {
		c := dialed(t, u)
		if _, err := c.Play(t.Context(), u.Name); err != nil {
			t.Errorf("play: %v", err)
		}
		_, err := c.ReadTag()
		return err
	}
	publish := func(u URL) error { return dialed(t, u).Publish(t.Context(), u.Name) }
	write := func(u URL) error {
		c := dialed(t, u)
		if err := c.Publish(t.Context(), u.Name); err != nil {
			t.Errorf("publish: %v", err)
		}
		select {
		case <-c.Done():
		case <-time.After(patience):
			t.Error("the client did not notice")
		}
		err := c.WriteTags(media.NewTag(media.Video, 0, 10))
		if c.Err() != err {
			t.Errorf("Err %v, WriteTags %v", c.Err(), err)
		}
		return err
	}
	redirect := func(name string, do step, say ...[]byte) {
		t.Helper()
		u := rawServer(t, say...)
		err := do(u)
		var r *RedirectError
		if !errors.As(err, &r) || r.Addr != "10.0.0.1:1936" || r.URL != "rtmp://10.0.0.1:1936/live/cam?key=1" {
			t.Errorf("%s: %v, want a redirect", name, err)
			return
		}
		if got, err := r.Target(u); err != nil || got.Addr != r.Addr || got.Name != u.Name || got.App != u.App || got.TcURL != u.TcURL {
			t.Errorf("%s: target %+v of %+v", name, got, u)
		}
		u.TLS = true
		if got, err := r.Target(u); err == nil {
			t.Errorf("%s: led out of TLS to %+v", name, got)
		}
	}
	redirect("Adobe's to connect", connect, adobe)
	redirect("SRS's to connect", connect, srs)
	redirect("Adobe's to play", play, ok, adobe)
	redirect("SRS's to play", play, ok, srs)
	redirect("SRS's after Play.Start", read, ok, started(CodePlayReset), started(CodePlayStart), srs)
	redirect("SRS's to publish", publish, ok, srs)
	redirect("SRS's while publishing", write, ok, started(CodePublishStart), srs)
	redirect("in the answer to FCPublish", publish, result(1), call(0, "_error", tidFCPublish, null, rejected))

	refuse := func(name string, do step, code string, say ...[]byte) {
		t.Helper()
		err := do(rawServer(t, say...))
		var s *StatusError
		if !errors.As(err, &s) || s.Code != code {
			t.Errorf("%s: %v, want %s", name, err, code)
		}
	}
	refuse("connect", connect, CodeConnectInvalid, call(0, "_error", 1, null, amf.Obj(Text("level", "error"), Text("code", CodeConnectInvalid))))
	refuse("connect, with null properties only", connect, CodeCallFailed, call(0, "_error", 1, null, null))
	refuse("connect, bare", connect, CodeCallFailed, call(0, "_error", 1))
	refuse("createStream", play, CodeCallFailed, result(1), call(0, "_error", 2, null))
	refuse("play", play, CodePlayNotFound, ok, failed(CodePlayNotFound))
	refuse("publish", publish, CodePublishBadName, ok, failed(CodePublishBadName))
	refuse("publish, after an unknown releaseStream", publish, CodePublishDenied, ok, call(0, "_error", tidReleaseStream, null, amf.Obj(Text("level", "error"), Text("code", "x"))),
		call(0, "_error", tidFCPublish), failed(CodePublishDenied))
	refuse("while playing", read, CodePlayFailed, ok, started(CodePlayStart), failed(CodePlayFailed))
	refuse("while publishing", write, CodePublishBadName, ok, started(CodePublishStart), failed(CodePublishBadName))

	// Ends that are no refusals.
	end := func(name string, want error, say ...[]byte) {
		t.Helper()
		if err := read(rawServer(t, append([][]byte{ok, started(CodePlayStart)}, say...)...)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	end("UnpublishNotify", io.EOF, started(CodePlayUnpublish))
	end("Play.Complete", io.EOF, started(CodePlayComplete))
	end("StreamEOF", io.EOF, msg(2, 4, 0, []byte{0, 1, 0, 0, 0, 1}))
	end("EndOfStream", io.EOF, EndOfStream(1, 128))
	end("bad chunk", chunk.ErrProtocol, []byte{0xc9})

	// A server that sends media and no Play.Start: nothing is lost.
	c := dialed(t, rawServer(t, ok, msg(6, 9, 1, []byte("first"))))
	if _, err := c.Play(t.Context(), "cam"); err != nil {
		t.Fatal(err)
	}
	if tag, err := c.ReadTag(); err != nil || string(tag.Body()) != "first" {
		t.Errorf("%q, %v", tag, err)
	}
}

// TestRefusedClient: a real refusal reaches a real client over TCP, although the
// client has more under way.
func TestRefusedClient(t *testing.T) {
	cfg := DefaultServerConfig()
	cfg.RedirectWait, cfg.CloseTimeout = 200*time.Millisecond, 200*time.Millisecond
	addr := listen(t, cfg, func(c *ServerConn) {
		r, err := c.ReadRequest()
		if err != nil {
			return
		}
		switch r.Name {
		case "taken":
			_ = c.Refuse(StatusBadName("Somebody else publishes it."))
		case "elsewhere":
			_ = c.Redirect("rtmp://127.0.0.1:1/live/elsewhere")
		}
	})
	u := testURL(t, addr, "/live/taken")
	err := dialed(t, u).Publish(t.Context(), "taken")
	var s *StatusError
	if !errors.As(err, &s) || s.Code != CodePublishBadName || s.Description != "Somebody else publishes it." {
		t.Errorf("publish: %v", err)
	}
	c := dialed(t, u)
	_, err = c.Play(t.Context(), "elsewhere")
	if err == nil {
		_, err = c.ReadTag()
	}
	var r *RedirectError
	if !errors.As(err, &r) || r.Addr != "127.0.0.1:1" {
		t.Errorf("play: %v", err)
	}
	out, err := run(t, "ffmpeg", "-nostdin", "-v", "error", "-i", "rtmp://"+addr+"/live/taken", "-f", "null", "-")
	if err == nil || !strings.Contains(out, "Somebody else publishes it.") {
		t.Errorf("ffmpeg: %v\n%s", err, out)
	}
}

// TestClientTimeouts: a silent server ends each step.
func TestClientTimeouts(t *testing.T) {
	cfg := DefaultClientConfig()
	cfg.ConnectTimeout, cfg.ReadTimeout = 200*time.Millisecond, 500*time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts by backlog, says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Dial(t.Context(), testURL(t, l.Addr().String(), "/live/cam"), cfg); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("handshake: %v", err)
	}
	if _, err := Dial(t.Context(), rawServer(t), cfg); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("connect: %v", err)
	}
	ok := join(result(1), result(2, null, amf.Num(1)))
	c, err := Dial(t.Context(), rawServer(t, ok), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Play(t.Context(), "cam"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("play: %v", err)
	}
	c, err = Dial(t.Context(), rawServer(t, ok, msg(5, 20, 1, encodeStatus("status", CodePlayStart, ""))), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Play(t.Context(), "cam"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadTag(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := Dial(ctx, testURL(t, l.Addr().String(), "/live/cam"), DefaultClientConfig()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
