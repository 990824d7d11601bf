package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weir/internal/clip"
	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp"
)

// firstTag asks for a stream over HTTP-FLV on a connection of its own and
// returns the time from the connect to the first whole tag.
func firstTag(addr, path string) (time.Duration, error) {
	begun := time.Now()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_ = c.SetDeadline(begun.Add(waitTimeout))
	if _, err := fmt.Fprintf(c, "GET /%s HTTP/1.0\r\nHost: %s\r\n\r\n", path, addr); err != nil {
		return 0, err
	}
	status := make([]byte, len("HTTP/1.1 200"))
	if _, err := io.ReadFull(c, status); err != nil {
		return 0, err
	}
	if !strings.HasSuffix(string(status), "200") {
		return 0, fmt.Errorf("%s", status)
	}
	end := 0 // how much of the blank line that ends the head has come
	for b := make([]byte, 1); end < 4; {
		if _, err := c.Read(b); err != nil {
			return 0, err
		}
		if b[0] == "\r\n\r\n"[end] {
			end++
		} else {
			end = 0
		}
	}
	if _, err := flv.NewReader(c, 0).ReadTag(); err != nil {
		return 0, err
	}
	return time.Since(begun), nil
}

// From the start of `weir cluster` to the first tag of live/demo at a player.
func BenchmarkClusterStart(b *testing.B) {
	offset := 10000
	for b.Loop() {
		begun := time.Now()
		p := startWeir(b, "cluster", "--log-level", "error", "cluster", "--port-offset", strconv.Itoa(offset))
		addr := fmt.Sprintf("127.0.0.1:%d", 8080+offset)
		eventually(b, startTimeout, "live/demo plays", func() error {
			_, err := firstTag(addr, "live/demo.flv")
			return err
		})
		b.ReportMetric(float64(time.Since(begun).Milliseconds()), "ms/start")
		p.cleanup()
	}
}

// The first tag at an edge that pulls the stream already, and at one that does
// not.
func BenchmarkFirstTag(b *testing.B) {
	discovery := startDiscovery(b, "")
	origin := startOrigin(b, "origin-a", addresses{}, discoveryAt(discovery))
	startWeir(b, "push", "push", file(b, clipFile), origin.rtmpURL("live/demo"), "--loop")
	measure := func(b *testing.B, cold bool, linger string) {
		edge := startEdge(b, "edge-1", 2, discoveryAt(discovery)+"pull: {linger: "+linger+"}\n")
		eventually(b, waitTimeout, "the stream plays", func() error {
			_, err := firstTag(edge.http, "live/demo.flv")
			return err
		})
		var sum, worst time.Duration
		n := 0
		for b.Loop() {
			if cold { // until nothing of the last pull is left
				b.StopTimer()
				eventually(b, waitTimeout, "no pull", func() error {
					if m := scrape(b, edge.admin); m.sum("weir_streams") != 0 {
						return fmt.Errorf("there is one")
					}
					return nil
				})
				b.StartTimer()
			}
			d, err := firstTag(edge.http, "live/demo.flv")
			if err != nil {
				b.Fatal(err)
			}
			sum, worst, n = sum+d, max(worst, d), n+1
		}
		b.ReportMetric(float64(sum.Microseconds())/1000/float64(n), "ms/first-tag")
		b.ReportMetric(float64(worst.Microseconds())/1000, "ms-worst")
	}
	b.Run("warm", func(b *testing.B) { measure(b, false, "1h") })
	b.Run("cold", func(b *testing.B) { measure(b, true, "0s") })
}

// benchPublishers, benchRate and benchTime are the load of
// BenchmarkThousandPublishers.
const (
	benchPublishers = 1000
	benchRate       = 500_000 // bit/s each
	benchWarm       = 20 * time.Second
	benchTime       = 20 * time.Second
)

// A thousand publishers of 500 kbit/s at one origin that has one core.
func BenchmarkThousandPublishers(b *testing.B) {
	for _, hls := range []bool{false, true} {
		b.Run(fmt.Sprintf("hls=%v", hls), func(b *testing.B) {
			for b.Loop() {
				thousandPublishers(b, hls)
			}
		})
	}
}

func thousandPublishers(b *testing.B, hls bool) {
	b.Setenv("GOMAXPROCS", "1")
	origin := startOrigin(b, "origin-a", addresses{}, fmt.Sprintf("vhosts:\n  __defaultVhost__:\n    hls: {enabled: %v}\n", hls))
	b.Setenv("GOMAXPROCS", "")
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	var load sync.WaitGroup
	var late atomic.Int64
	clients := make([]*rtmp.Client, benchPublishers)
	for i := range clients {
		u, err := rtmp.ParseURL(origin.rtmpURL(fmt.Sprintf("live/p%d", i)))
		if err != nil {
			b.Fatal(err)
		}
		if clients[i], err = rtmp.Dial(ctx, u, rtmp.DefaultClientConfig()); err != nil {
			b.Fatal(err)
		}
		defer clients[i].Close()
		if err := clients[i].Publish(ctx, u.Name); err != nil {
			b.Fatal(err)
		}
	}
	// One goroutine writes to all, each client at its own offset in the frame
	// interval.
	load.Go(func() { publishAll(ctx, b, clients, &late) })

	wait(b, benchWarm)
	before, t0 := cpuSeconds(b, origin.pid()), time.Now()
	bytesBefore := ingested(b, origin)
	wait(b, benchTime)
	seconds := time.Since(t0).Seconds()
	cpu := cpuSeconds(b, origin.pid()) - before
	got := ingested(b, origin) - bytesBefore
	m := scrape(b, origin.admin)
	rss, logs := residentBytes(b, origin.pid()), m.sum("weir_log_bytes")
	// What lived at the last collection: the next one is planned gcPercent above it
	// (cmd/weir sets 30).
	live := m.sum("go_memstats_next_gc_bytes") / 1.30
	cancel()
	load.Wait()

	b.ReportMetric(cpu/seconds*100, "%core")
	b.ReportMetric(got*8/seconds/1e6, "Mbit/s-in")
	b.ReportMetric(rss/benchPublishers/1024, "KiB-rss/pub")
	b.ReportMetric(logs/benchPublishers/1024, "KiB-log/pub")
	b.ReportMetric((live-logs)/benchPublishers/1024, "KiB-live-beyond-log/pub")
	b.ReportMetric((rss-logs)/benchPublishers/1024, "KiB-rss-beyond-log/pub")
	b.ReportMetric(float64(late.Load())/1e6, "ms-load-late")
}

func wait(b *testing.B, d time.Duration) {
	b.Helper()
	select {
	case <-time.After(d):
	case <-b.Context().Done():
		b.Fatal("cancelled")
	}
}

// publishAll sends what a camera of benchRate sends: 25 frames/s with a key frame
// every 2 s, and 43 audio frames/s, to every client.
func publishAll(ctx context.Context, b *testing.B, clients []*rtmp.Client, late *atomic.Int64) {
	const (
		interval  = 40 // ms
		keyEvery  = 50 // frames
		keySize   = 16 << 10
		audioSize = 180
	)
	perFrame := benchRate/8*interval/1000 - 2*audioSize - (keySize-2000)/keyEvery
	random := make([]byte, keySize)
	for i := range random {
		random[i] = byte(1 + rand.IntN(255)) // no zeros: nothing that looks like a start code
	}
	video := func(size int, key bool, ms uint32) media.Tag {
		t := media.NewTag(media.Video, ms, size)
		body := t.Body()
		copy(body[9:], random)
		copy(body, []byte{0x27, 1, 0, 0, 0})
		body[9] = 0x41 // a slice of a frame that others refer to
		if key {
			body[0], body[9] = 0x17, 0x65
		}
		binary.BigEndian.PutUint32(body[5:], uint32(size-9))
		return t
	}
	audio := func(ms uint32) media.Tag {
		t := media.NewTag(media.Audio, ms, audioSize)
		copy(t.Body(), random)
		copy(t.Body(), []byte{0xaf, 1})
		return t
	}
	var headers []media.Tag
	for r := flv.NewReader(clip.Reader(), 0); len(headers) < 3; {
		t, err := r.ReadTag()
		if err != nil {
			b.Error(err)
			return
		}
		if media.Sniff(t.Kind(), t.Body()).IsHeader() {
			headers = append(headers, t)
		}
	}
	for _, c := range clients {
		if err := c.WriteTags(headers...); err != nil {
			b.Error(err)
			return
		}
	}
	begun := time.Now()
	for n := 0; ; n++ {
		for i, c := range clients {
			// The clients' turns are spread over the interval, ten at a time.
			if i%10 == 0 {
				due := begun.Add(time.Duration(n)*interval*time.Millisecond + time.Duration(i)*interval*time.Millisecond/time.Duration(len(clients)))
				if d := time.Until(due); d > 0 {
					select {
					case <-time.After(d):
					case <-ctx.Done():
						return
					}
				} else if -d > time.Duration(late.Load()) {
					late.Store(int64(-d))
				}
			}
			ms := uint32(n * interval)
			key := (n+i)%keyEvery == 0 // not all at once
			size := perFrame
			if key {
				size = keySize
			}
			if err := c.WriteTags(video(size, key, ms), audio(ms+5), audio(ms+28)); err != nil {
				if ctx.Err() == nil {
					b.Error(err)
				}
				return
			}
		}
	}
}

// ingested returns the bytes of tags that an origin has taken from publishers.
func ingested(b *testing.B, n *node) float64 {
	b.Helper()
	var answer struct {
		Streams []struct {
			BytesIn float64 `json:"bytes_in"`
		}
	}
	if err := n.ask("/api/v1/streams", &answer); err != nil {
		b.Fatal(err)
	}
	sum := 0.0
	for _, s := range answer.Streams {
		sum += s.BytesIn
	}
	return sum
}

// cpuSeconds returns the processor time of a process (proc(5): fields 14 and 15
// of stat, in clock ticks of 10 ms).
func cpuSeconds(b *testing.B, pid int) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100
}

// residentBytes returns the resident memory of a process (proc(5): the second
// field of statm, in pages).
func residentBytes(b *testing.B, pid int) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		b.Fatal(err)
	}
	pages, _ := strconv.ParseFloat(strings.Fields(string(text))[1], 64)
	return pages * float64(os.Getpagesize())
}
