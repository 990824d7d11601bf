package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// moved is the answer of POST /api/v1/streams/move.
type moved struct {
	Stream, To, Way, Error string
	Left                   bool
}

// move asks an origin to move a stream.
func (n *node) move(stream, to string) (m moved) {
	n.t.Helper()
	r, err := http.NewRequest(http.MethodPost, "http://"+n.admin+"/api/v1/streams/move?"+url.Values{"stream": {stream}, "to": {to}}.Encode(), nil)
	if err != nil {
		n.t.Fatal(err)
	}
	answer, err := do(r)
	if err == nil {
		err = json.Unmarshal([]byte(answer.body), &m)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return m
}

// carried is a cluster of two origins and two edges, with an encoder at the first edge
// and a player at each.
type carried struct {
	t       *testing.T
	a, b    *node
	edges   [2]*node
	encoder *process
	session string // of the encoder at its edge
	players []*player
}

func startCarried(t *testing.T, more string) *carried {
	t.Helper()
	d := startDiscovery(t, "")
	c := &carried{t: t}
	c.a = startOrigin(t, "origin-a", addresses{}, discoveryAt(d)+more)
	c.b = startOrigin(t, "origin-b", addresses{}, discoveryAt(d)+more)
	for i := range c.edges {
		c.edges[i] = startEdge(t, fmt.Sprint("edge-", i), 2, discoveryAt(d))
	}
	c.encoder = publishClip(t, c.edges[0].rtmpURL("live/demo"))
	ownerOf(t, demo, c.a, c.b)
	c.session = c.edges[0].awaitSessions("publish", demo, 1)[0].ID
	for _, e := range c.edges {
		p := playFLV(t, e.httpURL("live/demo.flv"), "")
		p.await(50, 0)
		c.players = append(c.players, p)
	}
	return c
}

// owner returns the origin that has the stream, and the other one.
func (c *carried) owner() (owner, other *node) {
	c.t.Helper()
	if owner = ownerOf(c.t, demo, c.a, c.b); owner == c.a {
		return c.a, c.b
	}
	return c.b, c.a
}

// requireUnnoticed fails the test if the encoder's session is another one, or a player
// has not got each frame, in order and at its time.
func (c *carried) requireUnnoticed() {
	c.t.Helper()
	for _, p := range c.players {
		p.await(50, p.videoFrames())
	}
	if !c.encoder.running() {
		c.t.Error("the encoder has ended")
	}
	if s := c.edges[0].awaitSessions("publish", demo, 1); s[0].ID != c.session {
		c.t.Errorf("the encoder has session %s, had %s", s[0].ID, c.session)
	}
	for i, p := range c.players {
		clipSource(c.t).require(c.t, fmt.Sprint("player ", i), p.end(), 100, rules{})
	}
}

// An operator moves a stream from origin to origin and back, twice: the encoder at the
// edge and all players notice nothing.
func TestMoveStream(t *testing.T) {
	t.Parallel()
	c := startCarried(t, "")
	for range 4 {
		owner, other := c.owner()
		m := owner.move(demo, "")
		if m != (moved{Stream: demo, To: other.id, Way: "redirect", Left: true}) {
			t.Fatalf("%s: %+v", owner.id, m)
		}
		other.awaitStream(demo, "live")
		for _, p := range c.players {
			p.await(25, p.videoFrames())
		}
	}
	owner, other := c.owner()
	if m := owner.move("__defaultVhost__/live/nothing", ""); m.Error == "" {
		t.Errorf("a stream that is not there: %+v", m)
	}
	if m := other.move(demo, ""); m.Error == "" {
		t.Errorf("a stream that is elsewhere: %+v", m)
	}
	if m := owner.move(demo, "origin-c"); !strings.Contains(m.Error, "origin-c") {
		t.Errorf("to an origin that is not there: %+v", m)
	}
	c.edges[0].awaitMetric(4, "weir_forward_moved_total")
	c.edges[0].awaitMetric(0, "weir_forward_upstream_lost_total")
	c.requireUnnoticed()
}

// An origin drains: it carries its stream over long before its deadline, and ends.
func TestDrainCarriesStreamsOver(t *testing.T) {
	t.Parallel()
	c := startCarried(t, "drain: {deadline: 60s}\n")
	owner, other := c.owner()
	began := time.Now()
	if r := weir(t, waitTimeout, "drain", "--admin", "http://"+owner.admin, "--deadline", "4s"); r.code != 0 {
		t.Fatalf("weir drain: %s", r.stderr)
	}
	other.awaitStream(demo, "live")
	if took := time.Since(began); took > waitTimeout {
		t.Errorf("after %v", took)
	}
	owner.sees(`msg=drained`)
	c.edges[0].awaitMetric(0, "weir_forward_upstream_lost_total")
	c.requireUnnoticed()
}

// An origin is over its soft limit when another one comes: its stream goes there, and
// nobody notices.
func TestOverloadedOriginMovesStreams(t *testing.T) {
	t.Parallel()
	d := startDiscovery(t, "")
	const idle = "cpu: {weight: 0}, process_cpu: {weight: 0}, network: {weight: 0}, lateness: {weight: 0}"
	a := startOrigin(t, "origin-a", addresses{}, discoveryAt(d)+
		"load: {soft_limit: 0.05, hard_limit: 10, after: 0s, memory: {weight: 10}, "+idle+"}\npublish: {move_every: 1s}\n")
	edge := startEdge(t, "edge-1", 2, discoveryAt(d))
	encoder := publishClip(t, edge.rtmpURL("live/demo"))
	a.awaitStream(demo, "live")
	session := edge.awaitSessions("publish", demo, 1)[0].ID
	player := playFLV(t, edge.httpURL("live/demo.flv"), "")
	player.await(25, 0)
	b := startOrigin(t, "origin-b", addresses{}, discoveryAt(d)+"load: {memory: {weight: 0}, "+idle+"}\n")
	b.awaitStream(demo, "live")
	player.await(50, player.videoFrames())
	if s := edge.awaitSessions("publish", demo, 1); s[0].ID != session || !encoder.running() {
		t.Errorf("the encoder has session %s, had %s", s[0].ID, session)
	}
	a.awaitMetric(1, "weir_moves_asked_total", `cause="overload"`, `way="redirect"`)
	clipSource(t).require(t, "player", player.end(), 50, rules{})
}
