package rtmp

import (
	"context"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/bluenviron/gortmplib"
	"github.com/bluenviron/gortmplib/pkg/codecs"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg4audio"

	"weir/internal/media"
)

// The parameter sets of a small picture.
var (
	testSPS = []byte{0x67, 0x64, 0x00, 0x0c, 0xac, 0x3b, 0x50, 0xb0, 0x4b, 0x42, 0x00, 0x00, 0x03, 0x00, 0x02, 0x00, 0x00, 0x03, 0x00, 0x3d, 0x08}
	testPPS = []byte{0x68, 0xee, 0x3c, 0x80}
)

// TestForeignPeer: a client that no one here wrote publishes, and another one
// reads what it published.
func TestForeignPeer(t *testing.T) {
	r := newRelay()
	addr := listen(t, r.cfg, r.serve)
	u := &url.URL{Scheme: "rtmp", Host: addr, Path: "/live", Fragment: "cam?key=1"}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	pub := &gortmplib.Client{URL: u, Publish: true}
	if err := pub.Initialize(ctx); err != nil {
		t.Fatal(err)
	}
	defer pub.Close()
	video := &gortmplib.Track{Codec: &codecs.H264{SPS: testSPS, PPS: testPPS}}
	audio := &gortmplib.Track{Codec: &codecs.MPEG4Audio{Config: &mpeg4audio.AudioSpecificConfig{Type: 2, SampleRate: 44100, ChannelConfig: 2}}}
	w := &gortmplib.Writer{Conn: pub, Tracks: []*gortmplib.Track{video, audio}}
	if err := w.Initialize(); err != nil {
		t.Fatal(err)
	}
	const frames = 100 // its reader looks at the first seconds to find the tracks
	for i := range frames {
		at := time.Duration(i) * 40 * time.Millisecond
		picture := append([]byte{0x65}, make([]byte, 5000)...)
		if err := w.WriteH264(video, at, at, [][]byte{picture}); err != nil {
			t.Fatal(err)
		}
		if err := w.WriteMPEG4Audio(audio, at, make([]byte, 200)); err != nil {
			t.Fatal(err)
		}
	}
	r.wait(t, "all tags", func() bool { return len(r.tags) >= 2*frames+3 })
	if r.publish.App != "live" || r.publish.Name != "cam?key=1" {
		t.Errorf("request %+v", r.publish)
	}

	player := &gortmplib.Client{URL: u}
	if err := player.Initialize(ctx); err != nil {
		t.Fatal(err)
	}
	defer player.Close()
	if r.wait(t, "the player", func() bool { return r.play.Kind == Play }); len(r.play.FourCCs) == 0 {
		t.Errorf("no FourCCs: %+v", r.play)
	}
	reader := &gortmplib.Reader{Conn: player}
	if err := reader.Initialize(); err != nil {
		t.Fatal(err)
	}
	if len(reader.Tracks()) != 2 {
		t.Fatalf("%d tracks, want 2", len(reader.Tracks()))
	}
	pictures, sounds := 0, 0
	for _, track := range reader.Tracks() {
		switch track.Codec.(type) {
		case *codecs.H264:
			reader.OnDataH264(track, func(_, dts time.Duration, au [][]byte) {
				if au[len(au)-1][0] != 0x65 {
					return // the parameter sets alone
				}
				if want := time.Duration(pictures) * 40 * time.Millisecond; dts != want || len(au[len(au)-1]) != 5001 {
					t.Errorf("picture %d: %d bytes at %v, want it at %v", pictures, len(au[len(au)-1]), dts, want)
				}
				pictures++
			})
		case *codecs.MPEG4Audio:
			reader.OnDataMPEG4Audio(track, func(time.Duration, []byte) { sounds++ })
		}
	}
	_ = player.NetConn().SetReadDeadline(time.Now().Add(patience))
	for pictures < frames || sounds < frames {
		if err := reader.Read(); err != nil {
			t.Fatalf("after %d pictures and %d sounds: %v", pictures, sounds, err)
		}
	}
	pub.Close()
	r.wait(t, "the end of the publish", func() bool { return r.ended })
	if r.err == io.EOF {
		t.Error("a connection that breaks off counts as a proper end")
	}
}

// TestForeignServer: our client publishes to, and plays from, gortmplib's server.
func TestForeignServer(t *testing.T) {
	pictures := make(chan string, 1)
	u := foreignServer(t, func(c *gortmplib.ServerConn) {
		if !c.Publish {
			w := &gortmplib.Writer{Conn: c, Tracks: []*gortmplib.Track{{Codec: &codecs.H264{SPS: testSPS, PPS: testPPS}}}}
			if w.Initialize() == nil {
				_ = w.WriteH264(w.Tracks[0], 0, 0, [][]byte{{0x65, 1, 2, 3}})
			}
			_, _ = c.Read() // until the player leaves
			return
		}
		r := &gortmplib.Reader{Conn: c}
		if err := r.Initialize(); err != nil {
			t.Errorf("foreign server: %v", err)
			return
		}
		r.OnDataH264(r.Tracks()[0], func(_, _ time.Duration, au [][]byte) {
			if unit := au[len(au)-1]; unit[0] == 0x65 { // not the parameter sets alone
				select {
				case pictures <- string(unit):
				default:
				}
			}
		})
		for r.Read() == nil {
		}
	})

	player := dialed(t, u)
	if _, err := player.Play(t.Context(), u.Name); err != nil {
		t.Fatal(err)
	}
	var got []media.Tag
	for len(got) == 0 || !media.Sniff(media.Video, got[len(got)-1].Body()).IsKeyFrame() {
		tag, err := player.ReadTag()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, tag)
	}

	pub := dialed(t, u)
	if err := pub.Publish(t.Context(), u.Name); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		tag := got[len(got)-1].At(uint32(i * 40))
		if i == 0 {
			if err := pub.WriteTags(got[:len(got)-1]...); err != nil {
				t.Fatal(err)
			}
		}
		if err := pub.WriteTags(tag); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case picture := <-pictures:
		if want := "\x65\x01\x02\x03"; picture != want {
			t.Errorf("picture %x, want %x", picture, want)
		}
	case <-time.After(patience):
		t.Error("nothing arrived")
	}
	if err := pub.Unpublish(); err != nil {
		t.Error(err)
	}
}

// foreignServer serves each connection of a port with gortmplib.
func foreignServer(t *testing.T, serve func(*gortmplib.ServerConn)) URL {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer nc.Close()
				_ = nc.SetDeadline(time.Now().Add(patience))
				c := &gortmplib.ServerConn{RW: nc}
				if err := c.Initialize(); err != nil {
					t.Errorf("foreign server: %v", err)
					return
				}
				if err := c.Accept(); err != nil {
					t.Errorf("foreign server: %v", err)
					return
				}
				serve(c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() }) // after the clients were closed
	return testURL(t, l.Addr().String(), "/live/cam")
}
