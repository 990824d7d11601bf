package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"weir/discovery/etcd/etcdtest"
	"weir/internal/rtmp"
)

// kick runs `weir kick` for the stream demo at a node.
func (n *node) kick(more ...string) result {
	n.t.Helper()
	return weir(n.t, waitTimeout, append([]string{"kick", demo, "--admin", "http://" + n.admin}, more...)...)
}

// ends waits until the publisher's process has ended by itself, and its node has no
// session of it.
func (n *node) ends(p *process) {
	n.t.Helper()
	select {
	case <-p.done:
	case <-time.After(waitTimeout):
		n.t.Fatalf("%s is still there", p.name)
	}
	n.awaitSessions("publish", demo, 0)
}

// refusal is what a publisher is told at a node, nil if it is let in.
func (n *node) refusal() error {
	cfg := rtmp.DefaultClientConfig()
	cfg.ConnectTimeout = waitTimeout
	ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
	defer cancel()
	c, err := rtmp.Dial(ctx, rtmp.URL{Addr: n.rtmp, TcURL: "rtmp://" + n.rtmp + "/live", App: "live", Name: "demo"}, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Publish(ctx, "demo")
}

// An operator ends ffmpeg's stream at any node of the cluster: that of an ffmpeg at
// an origin, and that of one at an edge, which is not sent to the other origin.
// Players are told that it has ended. With a ban nobody may publish it, anywhere,
// until the ban is over.
func TestKick(t *testing.T) {
	t.Parallel()
	d := startDiscovery(t, "")
	var origins [2]*node
	for i := range origins {
		origins[i] = startOrigin(t, fmt.Sprintf("origin-%d", i), addresses{}, discoveryAt(d))
	}
	edge := startEdge(t, "edge", 2, discoveryAt(d)+"play: {wait_publisher: 10s}\npull: {end_after: 100ms}\n")
	all := []*node{d, origins[0], origins[1], edge}

	for i, at := range []*node{origins[0], edge} {
		encoder := publishClip(t, at.rtmpURL("live/demo"))
		player := playFLV(t, edge.httpURL("live/demo.flv"), "")
		player.await(25, 0)
		by := all[(i+2)%len(all)]
		if r := by.kick("--reason", "stuck"); r.code != 0 || !strings.Contains(r.stdout, "kicked: it was published at origin-") {
			t.Fatalf("weir kick: exit code %d, %q, %s", r.code, r.stdout, r.stderr)
		}
		at.ends(encoder)
		for _, o := range origins {
			o.awaitSessions("publish", demo, 0)
		}
		select {
		case <-player.done:
		case <-time.After(waitTimeout):
			t.Error("the player is still there")
		}
		if r := by.kick(); r.code != 4 {
			t.Errorf("a kick of nobody: exit code %d, %s", r.code, r.stderr)
		}
	}

	// Through an edge, with a ban.
	encoder := publishClip(t, edge.rtmpURL("live/demo"))
	edge.awaitSessions("publish", demo, 1)
	const ban = 4 * time.Second
	from := time.Now()
	if r := d.kick("--ban", ban.String(), "--reason", "not your name"); r.code != 0 || !strings.Contains(r.stdout, "banned until") {
		t.Fatalf("weir kick: exit code %d, %q, %s", r.code, r.stdout, r.stderr)
	}
	edge.ends(encoder)
	refused := 0
	for _, at := range all[1:] {
		err := at.refusal()
		if time.Since(from) > ban {
			t.Log("the machine is slow: the ban is over")
			break
		}
		refused++
		if err == nil || !strings.Contains(err.Error(), rtmp.CodePublishDenied) || !strings.Contains(err.Error(), "not your name") {
			t.Errorf("a publisher at %s is told %v", at.id, err)
		}
	}
	banned := scrape(t, origins[0].admin).sum("weir_refused_total", `reason="banned"`) + scrape(t, origins[1].admin).sum("weir_refused_total", `reason="banned"`)
	if int(banned) < refused {
		t.Errorf("origins have refused %v times as banned, want %d", banned, refused)
	}
	eventually(t, waitTimeout, "the ban is over", func() error { return origins[0].refusal() })
	if took := time.Since(from); took < ban {
		t.Errorf("the ban of %v was over after %v", ban, took)
	}
	origins[0].awaitSessions("publish", demo, 0)
	publishClip(t, origins[1].rtmpURL("live/demo"))
	playFLV(t, edge.httpURL("live/demo.flv"), "").await(25, 0)
}

// With the directory in etcd and no discovery server: an encoder whose origin is killed
// is let in by the other one at once, again and again, and a ban holds at every node.
func TestDeadOwnersAndBansInEtcd(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, t.TempDir())
	t.Cleanup(c.Stop) // after the nodes
	h := openTheatreAt(t, "discovery: {engine: etcd, etcd: "+etcdOf(c)+"}\n", 6, atOrigins)
	for range 3 {
		h.killOwner(false)
	}
	h.close()
	t.Logf("the publisher was let in again after %v", h.let)
	for _, d := range h.let {
		if d > 3*time.Second { // etcd keeps leases for 5 s, from up to 1.7 s before
			t.Errorf("the publisher was let in again after %v", d)
		}
	}
	const ban = 5 * time.Second
	from := time.Now()
	if r := h.edges[0].kick("--ban", ban.String(), "--reason", "not your name"); r.code != 0 || !strings.Contains(r.stdout, "banned until") {
		t.Fatalf("weir kick: exit code %d, %q, %s", r.code, r.stdout, r.stderr)
	}
	run := h.show.run.Load()
	eventually(t, waitTimeout, "the publisher is refused at both origins", func() error {
		refused := map[string]bool{}
		for _, o := range h.origins {
			if scrape(t, o.admin).sum("weir_refused_total", `reason="banned"`) > 0 {
				refused[o.id] = true
			}
		}
		if len(refused) < 2 {
			return fmt.Errorf("it got %v", h.show.answers())
		}
		return nil
	})
	eventually(t, waitTimeout, "the publisher is back", func() error {
		if h.show.run.Load() == run {
			return fmt.Errorf("it got %v", h.show.answers())
		}
		return nil
	})
	if took := time.Since(from); took < ban-100*time.Millisecond { // by etcd's clock and ours
		t.Errorf("the ban of %v was over after %v", ban, took)
	}
}
