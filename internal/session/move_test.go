package session

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/internal/admin"
	"weir/internal/rtmp"
	"weir/internal/rtmp/amf"
	"weir/internal/vhost"
)

// gate is an Admit that says what it is told to.
type gate struct {
	mu    sync.Mutex
	err   error // guarded by mu
	asked []Newcomer
}

func (g *gate) admit(_ context.Context, n Newcomer) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, n)
	return g.err
}

func (g *gate) set(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = err
}

func startGated(t *testing.T) (*testNode, *gate) {
	g := &gate{}
	return start(t, func(o *Options, _ *Door) { o.Admit = g.admit }), g
}

// Each protocol has its words for a node that takes nobody, and for another node.
func TestNewcomersAreTurnedAway(t *testing.T) {
	n, g := startGated(t)
	key := vhost.DefaultName + "/live/cam"
	n.role.live(t, key)

	g.set(&Refusal{Code: Draining, Text: "Out of service."})
	_, err := n.play("live/cam", "")
	checkStatus(t, err, rtmp.CodeConnectRejected, "Out of service.")
	n.refused(1, "play", "rtmp", "draining", key)
	_, err = n.publish("live/new", "")
	checkStatus(t, err, rtmp.CodeConnectRejected, "Out of service.")
	n.refused(2, "publish", "rtmp", "draining", vhost.DefaultName+"/live/new")
	resp := n.get("GET", n.http, "/live/cam.flv")
	checkAnswer(t, resp, 503, "Out of service.")
	if resp.Header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
	n.refused(3, "play", "http-flv", "draining", key)

	g.set(&Redirect{RTMP: "other:1935", HTTP: "other:8080"})
	var to *rtmp.RedirectError
	player, err := n.play("live/cam?a=b", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = player.ReadTag(); !errors.As(err, &to) || to.URL != "rtmp://other:1935/live/cam?a=b" {
		t.Errorf("a player got %v", err)
	}
	_, err = n.publish("live/new", "") // an encoder would hang
	checkStatus(t, err, rtmp.CodeConnectRejected, "publish to rtmp://other:1935/live.")
	c, _, err := n.dial("live/new", "", "edge-1")
	if err != nil {
		t.Fatal(err)
	}
	if err = c.Publish(t.Context(), "new?a=b"); !errors.As(err, &to) || to.URL != "rtmp://other:1935/live/new?a=b" {
		t.Errorf("a node that publishes got %v", err)
	}
	for _, path := range []string{"/live/cam.flv?a=b", "/live/cam.m3u8?a=b"} {
		resp := n.get("GET", n.http, path)
		if got, want := resp.Header.Get("Location"), "http://other:8080"+path; resp.StatusCode != 302 || got != want {
			t.Errorf("%s: %s to %s, want 302 to %s", path, resp.Status, got, want)
		}
	}
	if n.role.feeds.Load() != 0 || n.role.publishers.Load() != 0 {
		t.Error("the role was asked about somebody who was turned away")
	}

	// Segments of viewers who are here, and other workers, are served.
	g.mu.Lock()
	g.asked = nil
	g.mu.Unlock()
	if resp := n.get("GET", n.http, "/live/cam-1-1.ts"); resp.StatusCode != 200 {
		t.Errorf("a segment: %s", resp.Status)
	}
	n.get("GET", n.worker, WorkerFLVPath+"?"+url.Values{"key": {key}}.Encode())
	n.eventually("a worker's session", func() bool { return len(n.sessions.Sessions()) == 1 })
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.asked) != 0 {
		t.Errorf("asked about %+v", g.asked)
	}
	if players, publishers := n.sessions.Census(); players+publishers != 0 || len(n.sessions.Movable()) != 0 {
		t.Error("another worker counts as a session")
	}
}

// Players that are moved get whole tags, then the words of their protocol, and all
// of that before the connection closes.
func TestMovedPlayersAreToldSo(t *testing.T) {
	n, g := startGated(t)
	key := vhost.DefaultName + "/live/cam"
	n.role.live(t, key)
	flv := n.get("GET", n.http, "/live/cam.flv")
	ws := n.get("GET", n.http, "/live/cam.flv", webSocketHeaders...)
	plain, err := n.play("live/cam", "")
	if err != nil {
		t.Fatal(err)
	}
	node, err := n.play("live/cam?x=y", "", "edge-2")
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("tcp", n.rtmp)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	enhanced := newEncoder(t, nc, amf.P("capsEx", amf.Num(rtmp.CapsReconnect)))
	enhanced.command("play", "cam")
	enhanced.await("key frame")
	n.eventually("five players play", func() bool {
		silent := slices.ContainsFunc(n.sessions.Sessions(), func(i admin.SessionInfo) bool { return i.Bytes == 0 })
		return !silent && len(n.sessions.Movable()) == 5
	})

	g.set(&Redirect{RTMP: "other:1935", HTTP: "other:8080"})
	ids := n.sessions.Movable()
	for _, id := range ids {
		if !n.sessions.Move(id) {
			t.Errorf("no session %s", id)
		}
		if n.sessions.Move(id) {
			t.Errorf("session %s was moved twice", id)
		}
	}
	if left := n.sessions.Movable(); len(left) != 0 {
		t.Errorf("%v are to be moved again", left)
	}
	if tags := tagsOf(t, body(t, flv)); len(tags) != 4 {
		t.Errorf("HTTP-FLV: %d tags", len(tags))
	}
	if b := body(t, ws); !strings.HasSuffix(b, "\x88\x02\x03\xf4") {
		t.Errorf("WebSocket: %q", b)
	}
	drop := func(name string, c *rtmp.Client) error {
		for {
			if _, err := c.ReadTag(); err != nil {
				return err
			}
		}
	}
	var to *rtmp.RedirectError
	if err := drop("node", node); !errors.As(err, &to) || to.URL != "rtmp://other:1935/live/cam?x=y" {
		t.Errorf("a node got %v", err)
	}
	if err := drop("player", plain); !errors.Is(err, io.ErrUnexpectedEOF) { // the status ends nothing
		t.Errorf("a player got %v", err)
	}
	_ = nc.SetReadDeadline(time.Now().Add(patience))
	said, err := io.ReadAll(nc)
	if err != nil || !strings.Contains(string(said), rtmp.CodeReconnect) || !strings.Contains(string(said), "rtmp://other:1935/live") {
		t.Errorf("an Enhanced RTMP player got %q, %v", said, err)
	}
	nc.Close()
	node.Close()
	plain.Close()
	for _, l := range n.ended(5) {
		if l["reason"] != "moved" {
			t.Errorf("line %v", l)
		}
	}
	if slices.ContainsFunc(ids, n.sessions.Move) {
		t.Error("a session that is gone was moved")
	}
}

// Nodes that go with their streams are not moved, but cut in the end like all.
func TestNodesStay(t *testing.T) {
	n := start(t, func(o *Options, _ *Door) { o.NodesStay = true })
	key := vhost.DefaultName + "/live/cam"
	n.role.live(t, key)
	if _, err := n.play("live/cam", "", "edge-2"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.publish("live/mine", ""); err != nil {
		t.Fatal(err)
	}
	n.eventually("two sessions", func() bool { a, b := n.sessions.Census(); return a == 1 && b == 1 })
	if ids := n.sessions.Movable(); len(ids) != 0 {
		t.Errorf("%v may be moved", ids)
	}
	if k := n.sessions.Cut(true); k != 2 {
		t.Errorf("%d were cut", k)
	}
	for _, l := range n.ended(2) {
		if l["reason"] != "drained" {
			t.Errorf("line %v", l)
		}
	}
	if _, err := n.publish("live/mine", ""); err != nil {
		t.Errorf("after the cut: %v", err)
	}
}
