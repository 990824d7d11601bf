package hls_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/bluenviron/gohlslib/v2"
	"github.com/valyala/fasthttp"
	"go.uber.org/goleak"

	"weir/hls"
	"weir/hls/hlstest"
	"weir/internal/media"
)

// serve answers HTTP on a port of its own until the test ends.
func serve(t testing.TB, handler fasthttp.RequestHandler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &fasthttp.Server{Handler: handler, NoDefaultServerHeader: true}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := server.Shutdown(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "http://" + l.Addr().String()
}

const vhost = "v.test"

// newClient returns a client that leaves no connection behind.
func newClient(t testing.TB) *http.Client {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// node is an origin with one stream, live/a of v.test, and an edge in front.
type node struct {
	store    *hls.Store
	fetches  atomic.Int32 // requests at the origin
	origin   string
	edge     string
	counters *metrics.Set
}

func newNode(t testing.TB, store *hls.Store) *node {
	t.Helper()
	n := &node{store: store, counters: metrics.NewSet()}
	n.origin = serve(t, func(ctx *fasthttp.RequestCtx) {
		n.fetches.Add(1)
		r, ok := hls.ParsePath(string(ctx.Path()))
		if !ok || r.App != "live" || r.Name != "a" || string(ctx.QueryArgs().Peek("vhost")) != vhost {
			hls.NotFound("no such stream").Respond(ctx, "*")
			return
		}
		wait, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		n.store.Get(wait, r).Respond(ctx, "*")
	})
	client := newClient(t)
	cache := hls.NewCache(hls.DefaultCacheConfig(), func(ctx context.Context, uri string) (hls.Object, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.origin+uri, nil)
		if err != nil {
			return hls.Object{}, err
		}
		res, err := client.Do(req)
		if err != nil {
			return hls.Object{}, err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return hls.Object{
			Status: res.StatusCode, ContentType: res.Header.Get("Content-Type"),
			CacheControl: res.Header.Get("Cache-Control"), Body: body,
		}, err
	}, n.counters)
	n.edge = serve(t, func(ctx *fasthttp.RequestCtx) {
		r, ok := hls.ParsePath(string(ctx.Path()))
		if !ok {
			hls.NotFound("no such stream").Respond(ctx, "*")
			return
		}
		wait, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		o, err := cache.Get(wait, r.URI(string(ctx.QueryArgs().Peek("vhost"))))
		if err != nil {
			ctx.Error(err.Error(), fasthttp.StatusBadGateway)
			return
		}
		o.Respond(ctx, "*")
	})
	t.Cleanup(cache.Close) // runs before the servers stop
	return n
}

// publish writes the tags at a multiple of their speed and closes the segmenter.
func publish(s *hls.Segmenter, tags []media.Tag, speed float64) {
	defer s.Close()
	begin := time.Now()
	for _, tag := range tags {
		due := begin.Add(time.Duration(float64(tag.Time()) / speed * float64(time.Millisecond)))
		if d := time.Until(due); d > 0 {
			<-time.After(d)
		}
		if err := s.Write(tag, media.Sniff(tag.Kind(), tag.Body())); err != nil {
			return
		}
	}
}

// Viewers watch a live stream through an edge, from before its first segment to
// its end: the checker, and ffmpeg, which must decode every picture.
func TestLiveThroughAnEdge(t *testing.T) {
	t.Parallel()
	input := record(t, "a.flv", 8, slices.Concat(x264(25, 2), aac)...)
	config := hls.DefaultConfig()
	config.TargetDuration, config.Window = time.Second, 20
	s := hls.NewSegmenter(hls.Options{Config: config, Name: "a", VHost: vhost, Epoch: 3})
	n := newNode(t, s.Store())
	address := n.edge + "/live/a.m3u8?token=secret&vhost=" + vhost

	var viewers sync.WaitGroup
	viewers.Go(func() { publish(s, readFLV(t, input), 3) })
	var decoded []byte
	viewers.Go(func() {
		var err error
		decoded, err = output("ffmpeg", "-v", "error", "-live_start_index", "0", "-i", address,
			"-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framehash", "-hash", "md5", "-")
		if err != nil {
			t.Error(err)
		}
	})
	client := newClient(t)
	recordings := make([]*hlstest.Recording, 20)
	for i := range recordings {
		viewers.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			r, err := hlstest.Follow(ctx, client, address, &hlstest.Checker{}, nil)
			if err != nil {
				t.Error(err)
			}
			recordings[i] = r
		})
	}
	viewers.Wait()

	for i, r := range recordings {
		if !r.Ended || len(r.Segments) != 8 || !bytes.Equal(r.Bytes(), recordings[0].Bytes()) {
			t.Errorf("viewer %d: %d segments, ended %v", i, len(r.Segments), r.Ended)
		}
	}
	for _, seg := range recordings[0].Segments {
		if !strings.HasSuffix(seg.URI, ".ts?vhost="+vhost) {
			t.Errorf("URI %s", seg.URI)
		}
		if o := n.store.Segment(3, seg.Sequence); !bytes.Equal(o.Body, seg.Body) {
			t.Errorf("segment %d differs from the origin's", seg.Sequence)
		}
	}
	var got []string
	for line := range strings.Lines(string(decoded)) {
		if !strings.HasPrefix(line, "#") {
			got = append(got, strings.TrimSpace(line[strings.LastIndexByte(line, ',')+1:]))
		}
	}
	if want := hashes(t, input, "v"); !slices.Equal(got, want) {
		t.Errorf("ffmpeg decoded %d pictures over HTTP, of the input %d", len(got), len(want))
	}

	// 21 viewers, 8 segments: each was fetched once, playlists about twice a second.
	if fetched := n.fetches.Load(); fetched > 8+12 {
		t.Errorf("%d requests at the origin", fetched)
	}
	seg := recordings[0].Segments[0]
	res, err := client.Head(n.edge + "/live/" + seg.URI)
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil || res.StatusCode != 200 || res.ContentLength != int64(len(seg.Body)) {
		t.Errorf("HEAD: %s, length %d, %v", res.Status, res.ContentLength, err)
	}
	if o := get(t, client, n.edge+"/live/b.m3u8?vhost="+vhost); o != "404 no such stream\n" {
		t.Errorf("an unknown stream is answered with %q", o)
	}
	if o := get(t, client, n.edge+"/live/a.m3u8"); o != "404 no such stream\n" {
		t.Errorf("the stream of another vhost is answered with %q", o)
	}
}

func get(t testing.TB, client *http.Client, address string) string {
	t.Helper()
	res, err := client.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(res.StatusCode, " ", string(body))
}

// A player that no one here wrote reads tracks, time stamps and frames.
func TestForeignPlayer(t *testing.T) {
	t.Parallel()
	tags := synthetic(4000, 500, every(1000, 4000)...)
	config := hls.DefaultConfig()
	config.TargetDuration = time.Second
	s := hls.NewSegmenter(hls.Options{Config: config, Name: "a", VHost: vhost, Epoch: 3})
	n := newNode(t, s.Store())
	publish(s, tags, 1000)

	var mu sync.Mutex
	var dts []int64
	var sound int
	c := &gohlslib.Client{URI: n.edge + "/live/a.m3u8?vhost=" + vhost, HTTPClient: newClient(t)}
	c.OnDownloadPrimaryPlaylist = func(string) {}
	c.OnDownloadSegment = func(string) {}
	c.OnDecodeError = func(err error) { t.Error(err) }
	c.OnTracks = func(tracks []*gohlslib.Track) error {
		if len(tracks) != 2 {
			return fmt.Errorf("%d tracks", len(tracks))
		}
		c.OnDataH26x(tracks[0], func(_, at int64, _ [][]byte) {
			mu.Lock()
			defer mu.Unlock()
			dts = append(dts, at)
		})
		c.OnDataMPEG4Audio(tracks[1], func(_ int64, aus [][]byte) {
			mu.Lock()
			defer mu.Unlock()
			sound += len(aus)
		})
		return nil
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Wait2(); !errors.Is(err, gohlslib.ErrClientEOS) {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(dts) != 100 || sound != len(audioOf(tags)) {
		t.Errorf("%d pictures, %d audio frames of %d", len(dts), sound, len(audioOf(tags)))
	}
	for i := 1; i < len(dts); i++ {
		if d := dts[i] - dts[i-1]; d != 3600 {
			t.Fatalf("picture %d comes %d ticks after the one before", i, d)
		}
	}
}

func TestMain(m *testing.M) {
	// These of fasthttp outlive its servers: the clock of the Date header, and the
	// janitor of a worker pool, which sleeps for 10 s.
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

// BenchmarkSegmenter is the cost of one second of a stream of 720p at 3 Mbit/s.
func BenchmarkSegmenter(b *testing.B) {
	path := record(b, "a.flv", 10, slices.Concat([]string{"-vf", "scale=1280:720,noise=alls=20:allf=t"},
		x264(50, 2), []string{"-b:v", "3M", "-maxrate", "3M", "-bufsize", "3M"}, aac)...)
	tags := readFLV(b, path)
	infos := make([]media.Info, len(tags))
	size := 0
	for i, tag := range tags {
		infos[i] = media.Sniff(tag.Kind(), tag.Body())
		size += len(tag)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		s := hls.NewSegmenter(hls.Options{Config: hls.DefaultConfig(), Name: "a"})
		for i, tag := range tags {
			if err := s.Write(tag, infos[i]); err != nil {
				b.Fatal(err)
			}
		}
		s.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/10, "ns/stream-second")
}
