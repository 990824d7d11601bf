package session

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/media"
	"weir/internal/rtmp"
	"weir/internal/secure"
	"weir/internal/secure/securetest"
	"weir/internal/vhost"
)

// startTLS starts a node whose doors speak TLS too.
func startTLS(t *testing.T, change func(o *Options, d *Door)) (*testNode, *securetest.Files) {
	t.Helper()
	files := securetest.New(t)
	n := start(t, func(o *Options, d *Door) {
		d.HTTPConfig.TLS = secure.DefaultConfig()
		d.HTTPConfig.TLS.CertFile, d.HTTPConfig.TLS.KeyFile = files.Cert, files.Key
		if change != nil {
			change(o, d)
		}
	})
	return n, files
}

// rtmpsClient connects by RTMP over TLS.
func (n *testNode) rtmpsClient(files *securetest.Files, path string) (*rtmp.Client, rtmp.URL, error) {
	n.t.Helper()
	u, err := rtmp.ParseURL("rtmps://" + n.rtmps + "/" + path)
	if err != nil {
		n.t.Fatal(err)
	}
	cfg := rtmp.DefaultClientConfig()
	cfg.TLS = files.Client()
	c, err := rtmp.Dial(n.t.Context(), u, cfg)
	if err == nil {
		n.t.Cleanup(func() { c.Close() })
	}
	return c, u, err
}

// A stream that came over TLS goes out over TLS, in every protocol.
func TestTLSEveryProtocol(t *testing.T) {
	n, files := startTLS(t, nil)
	pub, u, err := n.rtmpsClient(files, "live/cam")
	if err != nil {
		t.Fatal(err)
	}
	if err := pub.Publish(t.Context(), u.Name); err != nil {
		t.Fatal(err)
	}

	transport := &http.Transport{TLSClientConfig: files.Client(), DisableKeepAlives: true}
	get := func(headers ...string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+n.https+"/live/cam.flv", nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	flv, ws := get(), get(webSocketHeaders...)
	if flv.StatusCode != 200 || ws.StatusCode != 101 {
		t.Fatalf("answers %s and %s", flv.Status, ws.Status)
	}
	play, u, err := n.rtmpsClient(files, "live/cam")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := play.Play(t.Context(), u.Name); err != nil {
		t.Fatal(err)
	}
	n.eventually("three players and a publisher", func() bool { return len(n.sessions.Sessions()) == 4 })

	// Large enough for several records of TLS.
	var want []media.Tag
	for i := range 30 {
		tag := media.NewTag(media.Video, uint32(40*i), 40_000)
		copy(tag.Body(), []byte{0x27, 1, 0, 0, 0, byte(i)})
		if i == 0 {
			tag.Body()[0] = 0x17
		}
		want = append(want, tag)
		if err := pub.WriteTags(tag); err != nil {
			t.Fatal(err)
		}
	}
	for i := range want {
		got, err := play.ReadTag()
		if err != nil || string(got) != string(want[i]) {
			t.Fatalf("RTMPS: tag %d: %v", i, err)
		}
	}
	if err := pub.Unpublish(); err != nil {
		t.Fatal(err)
	}
	tags := tagsOf(t, body(t, flv))
	if len(tags) != len(want) || string(tags[29]) != string(want[29]) {
		t.Errorf("HTTPS: %d tags", len(tags))
	}
	if b, err := io.ReadAll(ws.Body); len(b) < 30*40_000 {
		t.Errorf("WSS: %d bytes, %v", len(b), err)
	}
	for _, l := range n.ended(4) {
		if l["reason"] != "stream_ended" && l["reason"] != Unpublished {
			t.Errorf("line %v", l)
		}
	}
}

// An encoder that takes the port of TLS for the plain one is told so.
func TestPlainRTMPAtTLS(t *testing.T) {
	n, _ := startTLS(t, nil)
	u, err := rtmp.ParseURL("rtmp://" + n.rtmps + "/live/cam")
	if err != nil {
		t.Fatal(err)
	}
	c, err := rtmp.Dial(t.Context(), u, rtmp.DefaultClientConfig())
	if err == nil {
		c.Close()
	}
	checkStatus(t, err, rtmp.CodeConnectRejected, "use rtmps://")
	n.eventually("the counter", func() bool {
		return strings.Contains(n.metrics(), `weir_tls_handshake_failures_total{door="rtmp",reason="not_tls"} 1`)
	})
}

// A player under TLS that takes nothing is cut like any other, and jumps over what
// it missed before that.
func TestStuckPlayerUnderTLS(t *testing.T) {
	n, files := startTLS(t, func(o *Options, _ *Door) {
		o.Config.WriteTimeout = 500 * time.Millisecond
	})
	key := vhost.DefaultName + "/live/cam"
	_, p := n.role.live(t, key)
	c, err := tls.Dial("tcp", n.https, files.Client())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.NetConn().(*net.TCPConn).SetReadBuffer(4 << 10)
	if _, err := io.WriteString(c, "GET /live/cam.flv HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	n.eventually("the player plays", func() bool { return len(n.sessions.Sessions()) == 1 })
	for i := 0; len(n.lines("session ended")) == 0; i++ {
		if i > 20_000 {
			t.Fatal("it is not cut")
		}
		tag := media.NewTag(media.Video, uint32(10*i), 50_000)
		if tag.Body()[0] = 0x27; i%50 == 0 {
			tag.Body()[0] = 0x17
		}
		tag.Body()[1] = 1
		if err := p.Append(tag); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond) // the pace of the publisher
	}
	if l := n.ended(1)[0]; l["reason"] != "too_slow" {
		t.Errorf("line %v", l)
	}
}

// The door does not wait for handshakes that stall, and sessions under TLS end with
// the right reason.
func TestStopUnderTLS(t *testing.T) {
	n, files := startTLS(t, nil)
	key := vhost.DefaultName + "/live/cam"
	n.role.live(t, key)
	for _, addr := range []string{n.rtmps, n.https} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	c, err := tls.Dial("tcp", n.https, files.Client())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /live/cam.flv HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	n.eventually("the player plays", func() bool { return len(n.sessions.Sessions()) == 1 })
	n.stop()
	if l := n.ended(1)[0]; l["reason"] != "shutdown" {
		t.Errorf("line %v", l)
	}
}

// A player under TLS that reads slowly, but reads, is not cut, although no write is
// done within the write timeout.
func TestSlowPlayerUnderTLS(t *testing.T) {
	n, files := startTLS(t, func(o *Options, _ *Door) {
		o.Config.WriteTimeout = 2 * time.Second
	})
	key := vhost.DefaultName + "/live/cam"
	_, p := n.role.live(t, key)
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { // small segments, so that the window opens in small steps
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 32<<10)
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1448)
		})
	}}
	c, err := tls.DialWithDialer(&d, "tcp", n.https, files.Client())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /live/cam.flv HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	n.eventually("the player plays", func() bool { return len(n.sessions.Sessions()) == 1 })
	// More than the sockets hold, so that the server has to wait.
	for i := range 200 {
		tag := media.NewTag(media.Video, uint32(i), 50_000)
		copy(tag.Body(), []byte{0x27, 1})
		if err := p.Append(tag); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 16<<10)
	for begun := time.Now(); time.Since(begun) < 6*time.Second; {
		if _, err := c.Read(b); err != nil {
			t.Fatalf("cut after %v: %v", time.Since(begun), err)
		}
		time.Sleep(50 * time.Millisecond) // the pace of the player
	}
	if lines := n.lines("session ended"); len(lines) > 0 {
		t.Errorf("lines %v", lines)
	}
}
