package origin

import (
	"context"
	"fmt"
	"io"
	"path"
	"strings"
	"testing"
	"time"

	"weir/discovery"
	"weir/internal/clip"
	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp"
	"weir/internal/vhost"
)

// A player of another origin's stream is sent there with its query, over RTMP
// and over HTTP.
func TestRedirect(t *testing.T) {
	dir := newMemory()
	a := start(t, "a", quick(), dir)
	if _, err := dir.Claim(context.Background(), discovery.Claim{
		Stream: key + "demo", Node: "b", Instance: "1", TTL: time.Minute,
		Addr: discovery.Addr{RTMP: "b.example:1936", HTTP: "b.example:8081"},
	}); err != nil {
		t.Fatal(err)
	}
	if err := a.playAnswer("demo?token=1"); code(err) != "302 rtmp://b.example:1936/live/demo?token=1" {
		t.Errorf("RTMP: %v", err)
	}
	for _, ext := range []string{".flv", ".m3u8"} {
		status, header, _ := a.get("/live/demo" + ext + "?token=1")
		if want := "http://b.example:8081/live/demo" + ext + "?token=1"; status != 302 || header.Get("Location") != want {
			t.Errorf("%s: %d to %s, want %s", ext, status, header.Get("Location"), want)
		}
	}
}

// What nobody publishes is not found; so is what the directory believes to be
// here and is not, as after a crash.
func TestNotFound(t *testing.T) {
	dir := newMemory()
	a := start(t, "a", quick(), dir)
	if _, err := dir.Claim(context.Background(), discovery.Claim{
		Stream: key + "ghost", Node: "a", Instance: "earlier", TTL: time.Minute,
		Addr: discovery.Addr{RTMP: a.rtmp, HTTP: a.http},
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nobody", "ghost"} {
		if _, err := a.play(name, ""); code(err) != rtmp.CodePlayNotFound {
			t.Errorf("RTMP play of %s: %v", name, err)
		}
		for _, ext := range []string{".flv", ".m3u8"} {
			if status, _, body := a.get("/live/" + name + ext); status != 404 || len(body) > 200 {
				t.Errorf("%s%s: %d %q", name, ext, status, body)
			}
		}
	}
}

// With wait_publisher a player may come first; another node is told at once all
// the same.
func TestWaitForPublisher(t *testing.T) {
	cfg := quick()
	cfg.Play.WaitPublisher = time.Minute
	a := start(t, "a", cfg, newMemory())
	played := make(chan *rtmp.Client, 1)
	go func() {
		c, err := a.play("demo", "")
		if err != nil {
			t.Error(err)
		}
		played <- c
	}()
	within(t, "answer to a node", func() {
		if _, err := a.play("demo", "edge-1"); code(err) != rtmp.CodePlayNotFound {
			t.Errorf("play by a node: %v", err)
		}
	})
	alice := a.mustPublish("demo")
	send(t, alice, frames("alice", 3))
	select {
	case bob := <-played:
		if bob != nil {
			defer bob.Close()
			await(t, bob, "alice 0")
		}
	case <-time.After(deadline):
		t.Fatal("the player still waits")
	}
}

func TestWaitIsOver(t *testing.T) {
	cfg := quick()
	cfg.Play.WaitPublisher = 50 * time.Millisecond
	a := start(t, "a", cfg, newMemory())
	if _, err := a.play("demo", ""); code(err) != rtmp.CodePlayNotFound {
		t.Errorf("play: %v", err)
	}
}

// sendClip sends the test clip up to a time, as fast as it goes.
func sendClip(t *testing.T, c *rtmp.Client, until uint32) {
	t.Helper()
	r := flv.NewReader(clip.Reader(), 0)
	var tags []media.Tag
	for {
		tag, err := r.ReadTag()
		if err == io.EOF || err == nil && tag.Time() > until {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		tags = append(tags, tag)
	}
	send(t, c, tags)
}

func segments(playlist string) (names []string) {
	for line := range strings.Lines(playlist) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			names = append(names, line)
		}
	}
	return names
}

// The playlist's segments carry the epoch of the ownership. After the stream's
// end the playlist says so for the linger time, and nobody waits for it.
func TestHLS(t *testing.T) {
	cfg := quick().withDefault(func(v *vhost.Config) { v.HLS.TargetDuration = 2 * time.Second })
	cfg.Play.WaitPublisher = time.Minute
	dir := newMemory()
	a := start(t, "a", cfg, dir)
	alice := a.mustPublish("demo")
	sendClip(t, alice, 9000)
	status, _, playlist := a.get("/live/demo.m3u8")
	if status != 200 {
		t.Fatalf("playlist: %d %s", status, playlist)
	}
	lease, err := dir.Lookup(context.Background(), key+"demo")
	if err != nil {
		t.Fatal(err)
	}
	names := segments(playlist)
	if len(names) == 0 {
		t.Fatalf("no segments:\n%s", playlist)
	}
	for _, n := range names {
		if !strings.HasPrefix(n, fmt.Sprintf("demo-%d-", lease.Epoch)) {
			t.Errorf("segment %s, the epoch is %d", n, lease.Epoch)
		}
		if status, _, body := a.get(path.Join("/live", n)); status != 200 || len(body)%188 != 0 || len(body) == 0 {
			t.Errorf("%s: %d, %d bytes", n, status, len(body))
		}
	}
	if strings.Contains(playlist, "ENDLIST") {
		t.Error("a live playlist has an end")
	}
	if err := alice.Unpublish(); err != nil {
		t.Fatal(err)
	}
	a.awaitState("demo", "")
	eventually(t, "playlist with an end", func() error {
		if status, _, playlist := a.get("/live/demo.m3u8"); status != 200 || !strings.Contains(playlist, "ENDLIST") {
			return fmt.Errorf("%d %s", status, playlist)
		}
		return nil
	})

	// A new beginning has names of its own.
	alice = a.mustPublish("demo")
	sendClip(t, alice, 9000)
	eventually(t, "playlist of the second publication", func() error {
		_, _, playlist := a.get("/live/demo.m3u8")
		if len(segments(playlist)) == 0 || strings.Contains(playlist, "ENDLIST") {
			return fmt.Errorf("%s", playlist)
		}
		for _, n := range segments(playlist) {
			if strings.HasPrefix(n, fmt.Sprintf("demo-%d-", lease.Epoch)) {
				t.Fatalf("segment %s has the epoch of the first publication", n)
			}
		}
		return nil
	})
}

// When the playlist has lingered its time it is gone.
func TestHLSLingerEnds(t *testing.T) {
	cfg := quick().withDefault(func(v *vhost.Config) {
		v.HLS.TargetDuration, v.HLS.Linger = 2*time.Second, time.Second
	})
	a := start(t, "a", cfg, newMemory())
	alice := a.mustPublish("demo")
	sendClip(t, alice, 9000)
	if err := alice.Unpublish(); err != nil {
		t.Fatal(err)
	}
	a.awaitState("demo", "")
	eventually(t, "no playlist", func() error {
		if status, _, body := a.get("/live/demo.m3u8"); status != 404 {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
}

// An origin that stops ends its publishers and players, gives its leases back,
// and leaves nothing behind (TestMain looks).
func TestShutdown(t *testing.T) {
	dir := newMemory()
	a := start(t, "a", quick(), dir)
	for i := range 3 {
		name := fmt.Sprintf("s%d", i)
		c := a.mustPublish(name)
		send(t, c, frames(name, 3))
		await(t, a.mustPlay(name), name+" 2")
		if i == 0 { // a paused one
			c.Close()
			a.awaitState(name, "resuming")
		}
	}
	if _, err := a.play("nobody", ""); code(err) != rtmp.CodePlayNotFound {
		t.Errorf("play: %v", err)
	}
	a.stop()
	if n := a.ended("publish", reasonShutdown); n != 2 {
		t.Errorf("%d publishers ended by the shutdown, want 2", n)
	}
	leases, _, err := dir.Streams(context.Background(), discovery.StreamQuery{})
	if err != nil || len(leases) != 0 {
		t.Errorf("leases after the end: %+v, %v", leases, err)
	}
}
