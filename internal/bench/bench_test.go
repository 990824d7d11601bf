package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"weir/internal/flv"
	"weir/internal/media"
)

// floorEnv makes the test binary the bare loop.
const floorEnv = "WEIR_BENCH_TEST_FLOOR"

func TestMain(m *testing.M) {
	if os.Getenv(floorEnv) != "" {
		if err := ServeFloor(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func TestMarkRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := mark{
			Run: rapid.Uint32().Draw(t, "run"), Stream: rapid.Uint32().Draw(t, "stream"), Seq: rapid.Uint32().Draw(t, "seq"),
			Sent: time.Duration(rapid.Int64Range(0, 1<<62).Draw(t, "sent")),
		}
		before := rapid.SliceOfN(rapid.Byte(), 0, markDepth-markSize).Draw(t, "before")
		b := appendMark(slices.Clone(before), want)
		if len(b)-len(before) != markSize {
			t.Fatalf("mark of %d bytes, want %d", len(b)-len(before), markSize)
		}
		if bytes.IndexByte(b[len(before):], 0) >= 0 {
			t.Fatalf("mark has a zero byte: % x", b)
		}
		if got, ok := findMark(append(b, "behind"...)); !ok || got != want {
			t.Fatalf("got %+v, %v; want %+v", got, ok, want)
		}
	})
}

func TestMarkDamaged(t *testing.T) {
	whole := appendMark(nil, mark{Run: 1, Stream: 2, Seq: 3, Sent: 4})
	for i := range whole {
		if _, ok := findMark(whole[:i]); ok {
			t.Errorf("mark is found in its first %d bytes", i)
		}
		damaged := slices.Clone(whole)
		damaged[i] ^= 0x10
		if m, ok := findMark(damaged); ok {
			t.Errorf("mark with byte %d damaged is %+v", i, m)
		}
	}
	far := append(make([]byte, markDepth), whole...)
	if _, ok := findMark(far); ok {
		t.Error("mark is found where nobody looks")
	}
}

func FuzzFindMark(f *testing.F) {
	f.Add(appendMark([]byte("abc"), mark{Seq: 7}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, ok := findMark(b); ok && !bytes.Contains(b, appendMark(nil, m)) {
			t.Fatalf("found %+v, which is not in the input", m)
		}
	})
}

// The histogram against a sorted slice.
func TestHistogram(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Int64Range(0, int64(time.Hour)), 1, 300).Draw(t, "values")
		cut := rapid.IntRange(0, len(values)).Draw(t, "cut")
		var h, other histogram
		for i, v := range values {
			if i < cut {
				h.add(time.Duration(v))
			} else {
				other.add(time.Duration(v))
			}
		}
		h.merge(&other)
		slices.Sort(values)
		if h.max != time.Duration(values[len(values)-1]) || h.n != uint64(len(values)) {
			t.Fatalf("max %v of %d, want %v of %d", h.max, h.n, values[len(values)-1], len(values))
		}
		for _, q := range []float64{0, 0.01, 0.5, 0.99, 1} {
			rank := 0
			for float64(rank+1) < q*float64(len(values)) {
				rank++
			}
			want, got := time.Duration(values[rank]), h.quantile(q)
			if got < want.Truncate(time.Microsecond) || got > want+want/64+time.Microsecond {
				t.Fatalf("quantile %v is %v, want %v (and at most 1/64 more)", q, got, want)
			}
		}
	})
}

func TestHistogramEmpty(t *testing.T) {
	var h histogram
	if d := h.delays(); d != (Delays{}) {
		t.Errorf("delays of nothing are %+v", d)
	}
}

func TestShares(t *testing.T) {
	s := make([]float64, 200)
	for i := range s {
		s[i] = 1
	}
	s[7], s[8], s[9] = 0.5, 0.9, 0.96
	got := sharesOf(s)
	if got.Count != 200 || got.Min != 0.5 || got.P1 != 0.96 || got.Slow != 2 || got.Mean < 0.996 || got.Mean > 0.997 {
		t.Errorf("got %+v", got)
	}
}

// What is published has the bit rate that was asked for, and looks like H.264
// and AAC to the rest of weir.
func TestForm(t *testing.T) {
	for _, f := range []Form{DefaultForm(), {BitRate: 300_000, FPS: 10, GOP: time.Second}, {BitRate: 20_000_000, FPS: 60, GOP: 4 * time.Second}} {
		t.Run(fmt.Sprint(f), func(t *testing.T) {
			if err := f.Validate(); err != nil {
				t.Fatal(err)
			}
			const gops = 5
			z, fill := f.sizes(), newFiller()
			line := timeline{every: f.gopFrames()}
			end := gops * f.GOP
			for v := uint32(0); f.videoTime(v) < end; v++ {
				tag := fill.videoTag(mark{Seq: v}, f.videoTime(v), int(v)%line.every == 0, videoSize(z, int(v)%line.every == 0))
				info := media.Sniff(media.Video, tag.Body())
				if info.Codec != media.H264 || info.Has(media.Malformed) || info.IsHeader() || info.IsKeyFrame() != (int(v)%line.every == 0) {
					t.Fatalf("video frame %d is %+v", v, info)
				}
				units := tag.Body()[videoHeader:]
				for n := 0; len(units) > 0; n++ {
					size := int(binary.BigEndian.Uint32(units))
					if size == 0 || size > len(units)-4 || bytes.IndexByte(units[4:4+size], 0) >= 0 {
						t.Fatalf("unit %d of frame %d: %d bytes of %d, or a zero in it", n, v, size, len(units)-4)
					}
					units = units[4+size:]
				}
				line.add(tag, info.IsKeyFrame())
			}
			for a := uint32(0); audioTime(a) < end; a++ {
				tag := fill.audioTag(mark{Seq: a}, audioTime(a), z.audio)
				if info := media.Sniff(media.Audio, tag.Body()); info.Codec != media.AAC || info.IsHeader() {
					t.Fatalf("audio frame %d is %+v", a, info)
				}
				line.add(tag, false)
			}
			rate := float64(line.end().flv) * 8 / end.Seconds()
			if off := rate/float64(f.BitRate) - 1; off < -0.01 || off > 0.01 {
				t.Errorf("published at %.0f bit/s, want %d", rate, f.BitRate)
			}
		})
	}
}

func videoSize(z sizes, key bool) int {
	if key {
		return z.key
	}
	return z.video
}

func TestHeaderTags(t *testing.T) {
	tags, err := headerTags(DefaultForm())
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, tag := range tags {
		if !media.Sniff(tag.Kind(), tag.Body()).IsHeader() {
			t.Errorf("%v tag is no header", tag.Kind())
		}
		kinds = append(kinds, tag.Kind().String())
	}
	if got := strings.Join(kinds, " "); got != "data video audio" {
		t.Errorf("headers are %q", got)
	}
}

// response is what a server sends to a player that joins: a stream of an earlier
// run, then the headers and two key frames of run 9.
func response(t testing.TB, webSocket bool, piece int) (all []byte, behindKey int) {
	t.Helper()
	headers, err := headerTags(DefaultForm())
	if err != nil {
		t.Fatal(err)
	}
	f := newFiller()
	body := flv.Header(true, true)
	for _, h := range headers {
		body = append(body, h...)
	}
	body = append(body, f.videoTag(mark{Run: 8, Seq: 4}, 0, true, 900)...)
	body = append(body, f.audioTag(mark{Run: 9}, 0, 200)...)
	body = append(body, f.videoTag(mark{Run: 9, Seq: 49}, 0, false, 500)...)
	body = append(body, f.videoTag(mark{Run: 9, Seq: 50}, 0, true, 30000)...)
	end := len(body)
	body = append(body, f.videoTag(mark{Run: 9, Seq: 100}, 0, true, 30000)...)
	if !webSocket {
		head := "HTTP/1.1 200 OK\r\nContent-Type: video/x-flv\r\n\r\n"
		return append([]byte(head), body...), len(body) - end
	}
	all = []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
	for at := 0; at < len(body); at += piece {
		part := body[at:min(at+piece, len(body))]
		all = append(all, 0x82)
		switch n := len(part); {
		case n < 126:
			all = append(all, byte(n))
		case n < 1<<16:
			all = binary.BigEndian.AppendUint16(append(all, 126), uint16(n))
		default:
			all = binary.BigEndian.AppendUint64(append(all, 127), uint64(n))
		}
		all = append(all, part...)
		all = append(all, 0x89, 3, 'a', 'b', 'c') // a ping in between
	}
	return all, len(body) - end
}

// A joiner finds its key frame however the bytes are cut.
func TestJoin(t *testing.T) {
	for _, webSocket := range []bool{false, true} {
		for _, piece := range []int{1, 7, 100, 1000, 40000, 1 << 20} {
			t.Run(fmt.Sprintf("webSocket=%v/%d", webSocket, piece), func(t *testing.T) {
				all, behind := response(t, webSocket, max(piece, 50))
				j := joiner{webSocket: webSocket, run: 9}
				for len(all) > 0 {
					n := min(piece, len(all))
					rest, done, err := j.feed(all[:n])
					all = all[n:]
					if err != nil {
						t.Fatal(err)
					}
					if !done {
						continue
					}
					if !j.marked || j.key.Seq != 50 || j.headers != hasAllHeaders {
						t.Errorf("joined at %+v (%v) with headers %b", j.key, j.marked, j.headers)
					}
					if left := len(rest) + len(all); !webSocket && left != behind || webSocket && left < behind {
						t.Errorf("%d bytes are left behind the key frame, want %d", left, behind)
					}
					return
				}
				t.Error("the first key frame was not seen")
			})
		}
	}
}

func TestJoinRefused(t *testing.T) {
	tests := []struct {
		name, answer string
		webSocket    bool
		want         error
	}{
		{"404", "HTTP/1.1 404 Not Found\r\n\r\nnope", false, errRefused},
		{"redirect", "HTTP/1.1 302 Found\r\nLocation: http://x/\r\n\r\n", false, errRefused},
		{"no upgrade", "HTTP/1.1 200 OK\r\n\r\nFLV", true, errRefused},
		{"not HTTP", "SSH-2.0-OpenSSH_9.2\r\n\r\n", false, errNotStream},
		{"no FLV", "HTTP/1.1 200 OK\r\n\r\n<html><body></body></html>", false, errNotStream},
		{"endless head", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 4000), false, errNotStream},
		{"close frame", "HTTP/1.1 101 Switching Protocols\r\n\r\n\x88\x02\x03\xe8", true, errRefused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			j := joiner{webSocket: tt.webSocket}
			if _, done, err := j.feed([]byte(tt.answer)); done || !errors.Is(err, tt.want) {
				t.Errorf("done %v, error %v; want %v", done, err, tt.want)
			}
		})
	}
}

func FuzzJoin(f *testing.F) {
	for _, webSocket := range []bool{false, true} {
		all, _ := response(f, webSocket, 1000)
		f.Add(all[:2000], webSocket, 13)
	}
	f.Fuzz(func(t *testing.T, b []byte, webSocket bool, piece int) {
		whole, cut := joiner{webSocket: webSocket, run: 9}, joiner{webSocket: webSocket, run: 9}
		_, done, err := whole.feed(b)
		var cutDone bool
		var cutErr error
		piece = max(1, piece&0xff)
		for at := 0; at < len(b) && !cutDone && cutErr == nil; at += piece {
			_, cutDone, cutErr = cut.feed(b[at:min(at+piece, len(b))])
			if cap(cut.head) > 2*maxHead {
				t.Fatalf("keeps %d bytes", cap(cut.head))
			}
		}
		if done != cutDone || (err == nil) != (cutErr == nil) {
			t.Fatalf("whole: %v, %v; in pieces of %d: %v, %v", done, err, piece, cutDone, cutErr)
		}
	})
}

// The frames of a WebSocket are unwrapped for probes as they are for joiners.
func TestUnframer(t *testing.T) {
	plain, _ := response(t, false, 0)
	framed, _ := response(t, true, 700)
	_, want, _ := bytes.Cut(plain, []byte("\r\n\r\n"))
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		_, _ = io.ReadFull(server, make([]byte, 4))
		_, _ = server.Write(framed)
		server.Close()
	}()
	src, err := openFLV(client, []byte("GET "), true)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	r := flv.NewReader(bytes.NewReader(want), 0)
	for {
		w, wantErr := r.ReadTag()
		got, err := src.ReadTag()
		if wantErr != nil {
			if err == nil {
				t.Error("more tags than were sent")
			}
			return
		}
		if err != nil || !bytes.Equal(got, w) {
			t.Fatalf("tag differs (%v)", err)
		}
	}
}

// The judgement of a probe over frames that are missing, late, double or not ours.
func TestProbe(t *testing.T) {
	f := newFiller()
	c := newClock()
	var ph phases
	begun := c.now()
	phase := ph.begin(begun)
	video := func(run, stream, seq uint32, key bool) media.Tag {
		return f.videoTag(mark{run, stream, seq, c.now()}, 0, key, 200)
	}
	tests := []struct {
		name string
		tags []media.Tag
		want sight
	}{
		{"whole", []media.Tag{video(9, 1, 50, true), video(9, 1, 51, false)}, sight{frames: 2}},
		{"earlier run first", []media.Tag{video(8, 1, 7, true), video(9, 1, 0, true)}, sight{frames: 1}},
		{"gap to a key frame", []media.Tag{video(9, 1, 0, true), video(9, 1, 50, true)}, sight{frames: 2, gaps: 1, lost: 49}},
		{"torn gap", []media.Tag{video(9, 1, 0, true), video(9, 1, 3, false)}, sight{frames: 2, gaps: 1, lost: 2, torn: 1}},
		{"back", []media.Tag{video(9, 1, 5, true), video(9, 1, 6, false), video(9, 1, 5, true), video(9, 1, 7, false)}, sight{frames: 4, disorder: 1}},
		{"another stream", []media.Tag{video(9, 1, 0, true), video(9, 2, 1, false)}, sight{frames: 1, foreign: 1}},
		{"no mark", []media.Tag{video(9, 1, 0, true), media.NewTag(media.Audio, 0, 10)}, sight{frames: 1, foreign: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := &probe{id: 9, stream: 1, clock: c}
			p.seen.begun = begun
			for _, tag := range tt.tags {
				p.look(tag, &ph)
			}
			s := p.snapshot()
			got := sight{frames: s.frames, gaps: s.gaps, lost: s.lost, torn: s.torn, disorder: s.disorder, foreign: s.foreign}
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if len(s.delays) != phase+1 || s.delays[phase].n != s.frames {
				t.Errorf("delays of %d frames are not counted", s.frames)
			}
		})
	}
}

func TestPhases(t *testing.T) {
	var ph phases
	if _, ok := ph.of(5); ok {
		t.Error("a phase before the first")
	}
	ph.begin(10)
	ph.end(20)
	ph.begin(30)
	for _, tt := range []struct {
		at   time.Duration
		want int
		ok   bool
	}{{9, 0, false}, {10, 0, true}, {19, 0, true}, {20, 0, false}, {30, 1, true}, {1000, 1, true}} {
		if i, ok := ph.of(tt.at); ok != tt.ok || ok && i != tt.want {
			t.Errorf("at %d: phase %d, %v", tt.at, i, ok)
		}
	}
}

func TestParseStat(t *testing.T) {
	user, system, err := parseStat([]byte("42 (a) b (c) S 1 42 42 0 -1 4194560 9 0 0 0 150 25 0 0 20 0 8 0 1 2 3"))
	if err != nil || user != 1500*time.Millisecond || system != 250*time.Millisecond {
		t.Errorf("user %v, system %v, %v", user, system, err)
	}
	for _, bad := range []string{"", "1 (x) S 1 2", "1 (x) S 1 42 42 0 -1 4194560 9 0 0 0 x 25 0"} {
		if _, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is read without an error", bad)
		}
	}
}

// What a process is said to use grows with what it does.
func TestOwnCost(t *testing.T) {
	p := processes{os.Getpid()}
	if err := p.check(); err != nil {
		t.Fatal(err)
	}
	before := p.cpu()
	sum := 0
	for begin := time.Now(); time.Since(begin) < 50*time.Millisecond; {
		sum += rand.IntN(3)
	}
	if used := p.cpu().total() - before.total(); used < 5*time.Millisecond || used > 10*time.Second {
		t.Errorf("50 ms of work cost %v (%d)", used, sum)
	}
	if n := p.rss(); n < 1<<20 {
		t.Errorf("resident memory is %d bytes", n)
	}
	if err := (processes{1 << 30}).check(); err == nil {
		t.Error("a process that cannot be is accepted")
	}
}

func TestValidate(t *testing.T) {
	good := func() Config {
		c := DefaultConfig()
		c.Publish, c.Play = "rtmp://127.0.0.1/live", "http://127.0.0.1:8080/live"
		return c
	}
	c := good()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(c *Config){
		"no publish":      func(c *Config) { c.Publish = "" },
		"publish scheme":  func(c *Config) { c.Publish = "http://127.0.0.1/live" },
		"play scheme":     func(c *Config) { c.Play = "ftp://127.0.0.1/live" },
		"no app":          func(c *Config) { c.Play = "http://127.0.0.1" },
		"wrong protocol":  func(c *Config) { c.Protocol = RTMP },
		"streams":         func(c *Config) { c.Streams = 0 },
		"players":         func(c *Config) { c.Players = -1 },
		"ramp":            func(c *Config) { c.Ramp = 0 },
		"duration":        func(c *Config) { c.Duration = 0 },
		"bit rate":        func(c *Config) { c.Form.BitRate = 1 },
		"bit rate, fps":   func(c *Config) { c.Form = Form{BitRate: 100_000, FPS: 120, GOP: time.Second} },
		"name":            func(c *Config) { c.Name = "a/b" },
		"slow rate":       func(c *Config) { c.Slow, c.SlowRate = 1, 1 },
		"crowd time":      func(c *Config) { c.Crowd, c.CrowdTime = 1, 0 },
		"floor":           func(c *Config) { c.Floor = []time.Duration{time.Second} },
		"limit":           func(c *Config) { c.Limit = &Limit{Growth: 1} },
		"limit, probes":   func(c *Config) { l := DefaultLimit(); c.Limit, c.Probes = &l, 0 },
		"limit and crowd": func(c *Config) { l := DefaultLimit(); c.Limit, c.Crowd = &l, 1 },
		"HLS and slow":    func(c *Config) { c.Protocol, c.Stalled = HLS, 1 },
	} {
		t.Run(name, func(t *testing.T) {
			c := good()
			spoil(&c)
			if err := c.Validate(); !errors.Is(err, ErrUsage) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

// A load tool asks before it leaves the machine, whichever way leads out.
func TestForeignTargets(t *testing.T) {
	tests := []struct{ publish, play string }{
		{"rtmp://127.0.0.1/live", "http://192.0.2.1/live"},
		{"rtmp://192.0.2.1/live", "http://127.0.0.1/live"},
		{"rtmp://127.0.0.1/live", "ws://[2001:db8::1]/live"},
		{"rtmp://127.0.0.1/live", "rtmp://0.0.0.0/live"},
	}
	for _, tt := range tests {
		t.Run(tt.publish+" "+tt.play, func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.Publish, cfg.Play = tt.publish, tt.play
			if _, err := Run(t.Context(), cfg); !errors.Is(err, ErrForeign) {
				t.Errorf("error is %v, want %v", err, ErrForeign)
			}
		})
	}
	if _, err := NodePIDs(t.Context(), "http://192.0.2.1:9090", ""); !errors.Is(err, ErrForeign) {
		t.Errorf("admin: error is %v, want %v", err, ErrForeign)
	}
	cfg := Config{AnyTarget: true}
	if a, err := cfg.resolve("192.0.2.1:80"); err != nil || a.String() != "192.0.2.1:80" {
		t.Errorf("allowed target: %v, %v", a, err)
	}
}

func TestTooManyPlayers(t *testing.T) {
	room, err := roomForFiles()
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Publish, cfg.Play = "rtmp://127.0.0.1:1/live", "http://127.0.0.1:1/live"
	if cfg.Players = room; room > 1_000_000 {
		t.Fatalf("this machine lets a process open %d files: the test needs another way", room)
	}
	if _, err := Run(t.Context(), cfg); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "ulimit") {
		t.Errorf("error is %v", err)
	}
}

func TestJudge(t *testing.T) {
	l := Limit{P99: 100 * time.Millisecond, Slow: 0.01}
	for _, tt := range []struct {
		step Step
		want string
	}{
		{Step{P99MS: 100, Slow: 0.01}, ""},
		{Step{P99MS: 100.1}, "p99"},
		{Step{Slow: 0.02}, "slow"},
	} {
		if got := l.judge(tt.step); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%+v: %q, want %q", tt.step, got, tt.want)
		}
	}
}

// The bare loop sends what it should, is timed, and goes with its parent.
func TestFloor(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.Players, cfg.FloorTime = 30, time.Second
	cfg.Floor = []time.Duration{20 * time.Millisecond, 100 * time.Millisecond}
	cfg.FloorCommand = []string{"/usr/bin/env", floorEnv + "=1", os.Args[0]}
	r := &run{cfg: cfg, clock: newClock()}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := r.measureFloor(ctx); err != nil {
		t.Fatal(err)
	}
	if len(r.report.Floor) != 2 {
		t.Fatalf("%d results, want 2", len(r.report.Floor))
	}
	for _, f := range r.report.Floor {
		want := 30 * float64(cfg.Form.BitRate) / 8
		if got := float64(f.Bytes); got < 0.7*want || got > 1.3*want {
			t.Errorf("every %g ms: %.0f bytes in a second, want about %.0f", f.IntervalMS, got, want)
		}
		if f.Players != 30 || f.CPUPerGB <= 0 {
			t.Errorf("every %g ms: %+v", f.IntervalMS, f)
		}
	}
}

func TestFloorCommands(t *testing.T) {
	for _, bad := range []string{"dance\n", "send 0 10\n", "send 10\n"} {
		if err := ServeFloor(strings.NewReader(bad), io.Discard); err == nil {
			t.Errorf("command %q is obeyed", bad)
		}
	}
	if err := ServeFloor(strings.NewReader(""), io.Discard); err != nil {
		t.Errorf("no command: %v", err)
	}
	if _, err := startFloor(t.Context(), []string{"/nonexistent"}); err == nil {
		t.Error("a program that is not there was started")
	}
}
