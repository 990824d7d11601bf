package rtmp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for anything.
const patience = 20 * time.Second

// listen serves each connection of a port with serve until the test ends.
func listen(t testing.TB, cfg ServerConfig, serve func(*ServerConn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := make(map[*ServerConn]bool)
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			c := NewServerConn(nc, cfg)
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer func() {
					c.Close()
					mu.Lock()
					delete(conns, c)
					mu.Unlock()
				}()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// relay is the least server that a publisher and players can meet at: one
// stream, kept whole, sent to every player from its start.
type relay struct {
	cfg ServerConfig

	mu      sync.Mutex
	changed *sync.Cond
	tags    []media.Tag
	ended   bool
	publish Request // the last publish
	play    Request
	err     error // how the publish ended
}

func newRelay() *relay {
	r := &relay{cfg: DefaultServerConfig()}
	r.changed = sync.NewCond(&r.mu)
	return r
}

func (r *relay) serve(c *ServerConn) {
	req, err := c.ReadRequest()
	if err != nil {
		return
	}
	if req.Kind == Publish {
		r.mu.Lock()
		r.publish, r.ended, r.tags = *req, false, nil
		r.mu.Unlock()
		err := c.AcceptPublish()
		for err == nil {
			var t media.Tag
			if t, err = c.ReadTag(); err == nil {
				r.append(t)
			}
		}
		r.mu.Lock()
		r.ended, r.err = true, err
		r.mu.Unlock()
		r.changed.Broadcast()
		_, _ = c.ReadRequest() // what follows the unpublish
		return
	}
	r.mu.Lock()
	r.play = *req
	r.mu.Unlock()
	r.servePlay(c)
}

func (r *relay) append(t media.Tag) {
	r.mu.Lock()
	r.tags = append(r.tags, t)
	r.mu.Unlock()
	r.changed.Broadcast()
}

func (r *relay) servePlay(c *ServerConn) {
	if err := c.AcceptPlay(Text("weirEpoch", "7")); err != nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		serve(c)
	})
	for i := 0; ; i++ {
		r.mu.Lock()
		for len(r.tags) <= i && !r.ended {
			r.changed.Wait()
		}
		if len(r.tags) <= i {
			r.mu.Unlock()
			_, _ = c.NetConn().Write(EndOfStream(c.StreamID(), c.OutChunkSize()))
			endPlay(c)
			return
		}
		tag := r.tags[i]
		r.mu.Unlock()
		if _, err := c.NetConn().Write(chunk.AppendMedia(nil, tag, c.StreamID(), c.OutChunkSize())); err != nil {
			c.Close()
			return
		}
	}
}

// wait waits for a state of the relay.
func (r *relay) wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	timer := time.AfterFunc(patience, r.changed.Broadcast)
	defer timer.Stop()
	deadline := time.Now().Add(patience)
	r.mu.Lock()
	defer r.mu.Unlock()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s: %d tags, ended %v, err %v", patience, what, len(r.tags), r.ended, r.err)
		}
		r.changed.Wait()
	}
}

func (r *relay) kinds() map[media.Kind]int {
	n := make(map[media.Kind]int)
	for _, t := range r.tags {
		n[t.Kind()]++
	}
	return n
}

// run runs a program to its end or to a deadline and returns what it printed.
func run(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%s is needed for this test: %v", name, err)
	}
	return string(out), err
}

func testURL(t testing.TB, addr, path string) URL {
	t.Helper()
	u, err := ParseURL("rtmp://" + addr + path)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// clip publishes two seconds of picture and tone with ffmpeg.
func clip(t testing.TB, url string) {
	t.Helper()
	out, err := run(t, "ffmpeg", "-nostdin", "-v", "error",
		"-f", "lavfi", "-i", "testsrc2=size=160x120:rate=25", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=44100",
		"-t", "2", "-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-c:a", "aac", "-f", "flv", url)
	if err != nil {
		t.Fatalf("ffmpeg publish: %v\n%s", err, out)
	}
}

func TestFFmpegPublishesAndPlays(t *testing.T) {
	r := newRelay()
	addr := listen(t, r.cfg, r.serve)
	clip(t, "rtmp://"+addr+"/live/clip?key=ab")

	r.wait(t, "the end of the publish", func() bool { return r.ended })
	if r.err != io.EOF {
		t.Errorf("publish ended with %v, want io.EOF", r.err)
	}
	if r.publish.App != "live" || r.publish.Name != "clip?key=ab" || r.publish.TcURL != "rtmp://"+addr+"/live" {
		t.Errorf("request %+v", r.publish)
	}
	n := r.kinds()
	if n[media.Video] < 50 || n[media.Audio] < 80 || n[media.Data] != 1 {
		t.Errorf("got %v tags by kind", n)
	}
	if info := media.Sniff(media.Data, r.tags[0].Body()); !info.IsHeader() {
		t.Errorf("the first tag is %v %q, want onMetaData", r.tags[0].Kind(), r.tags[0].Body()[:20])
	}

	out, err := run(t, "ffmpeg", "-nostdin", "-v", "error", "-i", "rtmp://"+addr+"/live/clip",
		"-map", "0:v", "-c", "copy", "-f", "framecrc", "-")
	if err != nil {
		t.Fatalf("ffmpeg play: %v\n%s", err, out)
	}
	frames := 0
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "#") {
			frames++
		}
	}
	if want := n[media.Video] - 2; frames != want { // sequence header and end of sequence are no frames
		t.Errorf("ffmpeg played %d frames, want %d\n%s", frames, want, out)
	}
}

func TestRTMPDumpPlays(t *testing.T) {
	r := newRelay()
	for i := range 50 {
		tag := media.NewTag(media.Video, uint32(i*40), 1000)
		copy(tag.Body(), []byte{0x27, 1, 0, 0, 0})
		r.tags = append(r.tags, tag)
	}
	r.ended = true
	addr := listen(t, r.cfg, r.serve)
	file := t.TempDir() + "/out.flv"
	out, err := run(t, "rtmpdump", "--verbose", "--live", "-r", "rtmp://"+addr+"/live/clip", "-o", file)
	if err != nil && !strings.Contains(out, "Download complete") && !strings.Contains(out, "Download may be incomplete") {
		t.Fatalf("rtmpdump: %v\n%s", err, out)
	}
	if !strings.Contains(r.play.FlashVer, "LNX") || r.play.Name != "clip" {
		t.Errorf("request %+v", r.play)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	fr := flv.NewReader(bytes.NewReader(data), 0)
	for i := range r.tags {
		if _, err := fr.ReadTag(); err != nil {
			t.Fatalf("tag %d of rtmpdump's file: %v\n%s", i, err, out)
		}
	}
}

// TestClientAndServer: what one client publishes another plays, unchanged.
func TestClientAndServer(t *testing.T) {
	r := newRelay()
	addr := listen(t, r.cfg, r.serve)
	u := testURL(t, addr, "/live/inst/name?key=1")
	cfg := DefaultClientConfig()
	cfg.Node, cfg.Via = "edge-1", "edge-1,edge-0"

	pub, err := Dial(t.Context(), u, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pub.Close()
	if err := pub.Publish(t.Context(), u.Name); err != nil {
		t.Fatal(err)
	}
	player, err := Dial(t.Context(), u, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer player.Close()
	info, err := player.Play(t.Context(), u.Name)
	if err != nil {
		t.Fatal(err)
	}
	if info.Text("weirEpoch") != "7" {
		t.Errorf("weirEpoch %q, want 7", info.Text("weirEpoch"))
	}

	var sent []media.Tag
	for i, size := range []int{1, 127, 128, 129, 5000, 59999, 60000, 60001, 300000, 3 << 20} {
		kind := media.Video
		if i%2 == 1 {
			kind = media.Audio
		}
		tag := media.NewTag(kind, uint32(0xFFFFFFF0+i*8), size) // past 2^24 and past 2^32
		for j := range tag.Body() {
			tag.Body()[j] = byte(i + j*7)
		}
		sent = append(sent, tag)
	}
	meta := media.NewTag(media.Data, 5, 30)
	copy(meta.Body(), "\x02\x00\x0aonMetaData\x08\x00\x00\x00\x00\x00\x00\x09")
	sent = append(sent, meta)
	if err := pub.WriteTags(sent...); err != nil {
		t.Fatal(err)
	}
	if err := pub.Unpublish(); err != nil {
		t.Fatal(err)
	}
	for i, want := range sent {
		got, err := player.ReadTag()
		if err != nil {
			t.Fatalf("tag %d: %v", i, err)
		}
		if string(got) != string(want) {
			t.Fatalf("tag %d changed: %v %d bytes at %d, want %v %d bytes at %d",
				i, got.Kind(), len(got), got.Time(), want.Kind(), len(want), want.Time())
		}
	}
	if _, err := player.ReadTag(); err != io.EOF {
		t.Errorf("after the last tag: %v, want io.EOF", err)
	}
	if r.publish.App != "live/inst" || r.publish.Name != "name?key=1" || r.publish.Node != "edge-1" || r.publish.Via != "edge-1,edge-0" {
		t.Errorf("request %+v", r.publish)
	}
}
