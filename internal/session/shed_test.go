package session

import (
	"strings"
	"testing"
	"time"

	"weir/internal/rtmp"
	"weir/internal/vhost"
)

// A node that is full asks players to leave: those of a tenant over its quota first,
// as many as are over it; nodes are not asked.
func TestShed(t *testing.T) {
	greedy := vhost.Default()
	greedy.Play.Quota = 1
	n := start(t, func(o *Options, _ *Door) {
		o.Vhosts = vhost.NewTable(vhost.Vhosts{"greedy.example": greedy})
	})
	n.role.live(t, vhost.DefaultName+"/live/cam")
	n.role.live(t, "greedy.example/live/cam")
	ws := n.get("GET", n.http, "/live/cam.flv?vhost=greedy.example", webSocketHeaders...)
	flv := n.get("GET", n.http, "/live/cam.flv?vhost=greedy.example")
	player, err := n.play("live/cam?vhost=greedy.example", "")
	if err != nil {
		t.Fatal(err)
	}
	n.get("GET", n.http, "/live/cam.flv")
	if _, err := n.play("live/cam", "", "edge-2"); err != nil {
		t.Fatal(err)
	}
	var ids []string
	n.eventually("four players that are no nodes play", func() bool {
		ids = n.sessions.Sheddable()
		for _, s := range n.sessions.Sessions() {
			if s.Bytes == 0 {
				return false
			}
		}
		return len(ids) == 4
	})
	vhosts := map[string]string{}
	for _, s := range n.sessions.Sessions() {
		vhosts[s.ID], _, _ = strings.Cut(s.Stream, "/")
	}
	if vhosts[ids[0]] != "greedy.example" || vhosts[ids[1]] != "greedy.example" {
		t.Errorf("the first to go are of %s and %s", vhosts[ids[0]], vhosts[ids[1]])
	}
	for _, id := range ids {
		if !n.sessions.Shed(id) || n.sessions.Shed(id) {
			t.Errorf("session %s was not asked once", id)
		}
	}
	if left := n.sessions.Sheddable(); len(left) != 0 {
		t.Errorf("%v are to be asked again", left)
	}
	if tags := tagsOf(t, body(t, flv)); len(tags) != 4 {
		t.Errorf("HTTP-FLV: %d tags", len(tags))
	}
	if b := body(t, ws); !strings.HasSuffix(b, "\x88\x02\x03\xf5") {
		t.Errorf("WebSocket: %q", b)
	}
	for err == nil {
		_, err = player.ReadTag()
	}
	player.Close()
	for _, l := range n.ended(4) {
		if l["reason"] != "overload" {
			t.Errorf("line %v", l)
		}
	}
}

// The words for a node that is full, and when to come back.
func TestOverloadIsSaid(t *testing.T) {
	n, g := startGated(t)
	key := vhost.DefaultName + "/live/cam"
	n.role.live(t, key)
	g.set(&Refusal{Code: Overload, Text: "This node is full.", RetryAfter: 6500 * time.Millisecond})
	_, err := n.play("live/cam", "")
	checkStatus(t, err, rtmp.CodeConnectRejected, "This node is full.")
	n.refused(1, "play", "rtmp", "overload", key)
	resp := n.get("GET", n.http, "/live/cam.m3u8")
	checkAnswer(t, resp, 503, "This node is full.")
	if after := resp.Header.Get("Retry-After"); after != "7" {
		t.Errorf("Retry-After: %q", after)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, want := range []string{"rtmp", "hls"} {
		if got := g.asked[i]; got.Protocol != want || !got.Remote.IsValid() || got.OverQuota {
			t.Errorf("asked about %+v", got)
		}
	}
}

// A tenant with as many players as its quota has more only of nodes and publishers.
func TestQuota(t *testing.T) {
	small := vhost.Default()
	small.Play.Quota = 1
	g := &gate{}
	n := start(t, func(o *Options, _ *Door) {
		o.Admit = g.admit
		o.Vhosts = vhost.NewTable(vhost.Vhosts{vhost.DefaultName: small})
	})
	n.role.live(t, vhost.DefaultName+"/live/cam")
	n.get("GET", n.http, "/live/cam.flv")
	n.get("GET", n.http, "/live/cam.flv")
	if _, err := n.play("live/cam", "", "edge-2"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.publish("live/new", ""); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, want := range []bool{false, true, false, false} {
		if g.asked[i].OverQuota != want {
			t.Errorf("newcomer %d over quota: %v", i, g.asked[i].OverQuota)
		}
	}
}
