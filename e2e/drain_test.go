package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp"
)

// viewer is a light player that behaves as a page does: it plays a URL over
// HTTP-FLV, follows redirects, and connects again whenever it is cut.
type viewer struct {
	url   string
	first chan struct{} // closed when it has a picture

	mu      sync.Mutex
	ends    []time.Time     // when a connection ended
	picture []time.Duration // from each connect to the first video frame
	at      string          // host:port that it plays from
	refused []error         // answers that were none
}

func (v *viewer) run(ctx context.Context) {
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	client := &http.Client{Transport: transport}
	for ctx.Err() == nil {
		if err := v.play(ctx, client); err != nil && ctx.Err() == nil {
			v.mu.Lock()
			v.refused = append(v.refused, err)
			v.mu.Unlock()
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
}

// play plays until the connection ends. The error is of one that never began.
func (v *viewer) play(ctx context.Context, client *http.Client) error {
	begin := time.Now()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, v.url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	r := flv.NewReader(response.Body, 0)
	for seen := false; ; {
		tag, err := r.ReadTag()
		if err != nil {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.at = ""
			v.ends = append(v.ends, time.Now())
			if !seen {
				return fmt.Errorf("no frame: %w", err)
			}
			return nil
		}
		if tag.Kind() != media.Video || media.Sniff(tag.Kind(), tag.Body()).IsHeader() {
			continue
		}
		if !seen {
			seen = true
			v.mu.Lock()
			if v.picture == nil {
				close(v.first)
			}
			v.at = response.Request.URL.Host
			v.picture = append(v.picture, time.Since(begin))
			v.mu.Unlock()
		}
	}
}

// publishTrickle publishes 10 frames of 500 bytes a second, with a key frame in
// each: a stream of which thousands of viewers cost little.
func publishTrickle(t testing.TB, address string) {
	t.Helper()
	u, err := rtmp.ParseURL(address)
	if err != nil {
		t.Fatal(err)
	}
	c, err := rtmp.Dial(t.Context(), u, rtmp.DefaultClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Publish(t.Context(), u.Name); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	go func() {
		defer close(done)
		begin := time.Now()
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			tag := media.NewTag(media.Video, uint32(time.Since(begin).Milliseconds()), 500)
			copy(tag.Body(), []byte{0x27, 1, 0, 0, 0, 0, 0, 1, 0xeb, 0x41}) // AVC, one slice
			switch {
			case n == 0: // a decoder header, of whatever
				copy(tag.Body(), []byte{0x17, 0, 0, 0, 0, 1, 0x42, 0, 0x1e, 0xff})
			case n%10 == 1:
				tag.Body()[0], tag.Body()[9] = 0x17, 0x65
			}
			if c.WriteTags(tag) != nil {
				return
			}
			<-tick.C
		}
	}()
}

// audience is viewers of one URL each.
type audience struct {
	viewers []*viewer
	stop    func()
}

// watchAll starts n viewers of each URL and waits until all have a picture.
func watchAll(t testing.TB, n int, urls ...string) *audience {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	a := &audience{}
	a.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(a.stop)
	places := make(chan struct{}, 50) // of viewers on their way in
	for _, url := range urls {
		for range n {
			v := &viewer{url: url, first: make(chan struct{})}
			a.viewers = append(a.viewers, v)
			places <- struct{}{}
			running.Go(func() { v.run(ctx) })
			running.Go(func() {
				defer func() { <-places }()
				select {
				case <-v.first:
				case <-ctx.Done():
				}
			})
		}
	}
	eventually(t, 4*waitTimeout, "all viewers have a picture", func() error {
		if k := a.at()[""]; k > 0 {
			return fmt.Errorf("%d have none", k)
		}
		return nil
	})
	return a
}

func (v *viewer) place() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.at
}

// at counts the viewers by where they play from.
func (a *audience) at() map[string]int {
	counts := map[string]int{}
	for _, v := range a.viewers {
		counts[v.place()]++
	}
	return counts
}

// kicks returns when connections ended, in order, and how long each viewer that
// connected again waited for a picture.
func (a *audience) kicks() (ends []time.Time, again []time.Duration, refused []error) {
	for _, v := range a.viewers {
		v.mu.Lock()
		ends = append(ends, v.ends...)
		again = append(again, v.picture[min(1, len(v.picture)):]...)
		refused = append(refused, v.refused...)
		v.mu.Unlock()
	}
	slices.SortFunc(ends, time.Time.Compare)
	return ends, again, refused
}

// most returns the largest number of moments within a window.
func most(moments []time.Time, window time.Duration) (n int) {
	from := 0
	for to := range moments {
		for moments[to].Sub(moments[from]) >= window {
			from++
		}
		n = max(n, to-from+1)
	}
	return n
}

// drainStory is what a drain of one edge of four does to its viewers.
type drainStory struct {
	nodes    []*node // edges; the first one is drained
	audience *audience
	before   map[string]int
	peak     map[string]int // of the others while it drained
	output   string         // of weir drain
}

// drainOneOfFour starts a cluster with n viewers at each edge and drains one edge.
func drainOneOfFour(t testing.TB, n int, deadline time.Duration, publish func(url string)) *drainStory {
	t.Helper()
	discovery := startDiscovery(t, "")
	a := startOrigin(t, "origin-a", addresses{}, discoveryAt(discovery))
	s := &drainStory{peak: map[string]int{}}
	var urls []string
	for i := range 4 {
		e := startEdge(t, fmt.Sprintf("edge-%d", i), 1, discoveryAt(discovery)+upstreamsOf(a.rtmp))
		s.nodes = append(s.nodes, e)
		urls = append(urls, e.httpURL("live/demo.flv"))
	}
	publish(a.rtmpURL("live/demo"))
	a.awaitStream(demo, "live")
	s.audience = watchAll(t, n, urls...)
	s.before = s.audience.at()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			for at, n := range s.audience.at() {
				s.peak[at] = max(s.peak[at], n)
			}
		}
	})
	r := weir(t, deadline+waitTimeout, "drain", "--admin", "http://"+s.nodes[0].admin, "--deadline", deadline.String(), "--wait")
	if r.code != 0 {
		t.Fatalf("weir drain: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	s.output = r.stdout
	eventually(t, waitTimeout, "all viewers have a picture again", func() error {
		if k := s.audience.at()[""]; k > 0 {
			return fmt.Errorf("%d have none", k)
		}
		return nil
	})
	cancel()
	watching.Wait()
	return s
}

// An edge of four is drained: its viewers are moved to the others one by one, each
// has a picture again, nobody else notices, and the edge is back after undrain.
func TestDrainEdge(t *testing.T) {
	t.Parallel()
	const n, deadline = 30, 6 * time.Second
	s := drainOneOfFour(t, n, deadline, func(url string) { publishClip(t, url) })
	drained, others := s.nodes[0], s.nodes[1:]
	ends, again, refused := s.audience.kicks()
	if len(ends) != n || len(again) != n || len(refused) != 0 {
		t.Errorf("%d connections ended, %d began again, refused: %v; want %d of each and nobody refused", len(ends), len(again), refused, n)
	}
	// A close of all at once has them all in one second.
	if k := most(ends, time.Second); k > n/2 {
		t.Errorf("%d of %d were moved within one second", k, n)
	}
	at := s.audience.at()
	if at[drained.http] != 0 {
		t.Errorf("viewers are at %v", at)
	}
	for _, e := range others {
		if at[e.http] > n*3/2 {
			t.Errorf("%d viewers are at %s, which had %d", at[e.http], e.id, n)
		}
		if strings.Contains(e.stderr.String(), "reason=moved") {
			t.Errorf("%s has moved somebody", e.id)
		}
	}
	if !strings.Contains(s.output, "draining: ") || !strings.Contains(s.output, fmt.Sprintf("drained: %d moved, 0 cut", n)) {
		t.Errorf("weir drain wrote\n%s", s.output)
	}

	// It stays out of service: not ready, and newcomers are sent away in each
	// protocol.
	if r := get(t, "http://"+drained.admin+"/readyz"); r.status != http.StatusServiceUnavailable || !strings.Contains(string(r.body), `"drain":"drained`) {
		t.Errorf("readyz: %d %s", r.status, r.body)
	}
	for _, path := range []string{"live/demo.flv", "live/demo.m3u8"} {
		r := get(t, drained.httpURL(path))
		if r.status != http.StatusFound || strings.Contains(r.header.Get("Location"), drained.http) {
			t.Errorf("%s at the drained edge: %d, Location %q", path, r.status, r.header.Get("Location"))
		}
	}
	if r := weir(t, waitTimeout, "pull", drained.rtmpURL("live/demo"), "--duration", "1s"); r.code != 0 || !strings.Contains(r.stdout+r.stderr, "redirected") {
		t.Errorf("weir pull at the drained edge: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if r := weir(t, waitTimeout, "push", file(t, clipFile), drained.rtmpURL("live/new")); r.code == 0 || !strings.Contains(r.stderr, "out of service") && !strings.Contains(r.stderr, "publish to rtmp://") {
		t.Errorf("weir push at the drained edge: exit code %d\n%s", r.code, r.stderr)
	}
	if r := weir(t, waitTimeout, "undrain", "--admin", "http://"+drained.admin); r.code != 0 {
		t.Errorf("weir undrain: exit code %d\n%s", r.code, r.stderr)
	}
	drained.awaitReady()
	playFLV(t, drained.httpURL("live/demo.flv"), "").await(10, 0)
	drained.awaitSessions("play", demo, 1)
}

// An edge is told to stop while it has a player and a publisher. The publisher is
// forwarded to the deadline; a second SIGTERM ends the node at once.
func TestTerminateDrains(t *testing.T) {
	t.Parallel()
	discovery := startDiscovery(t, "")
	startOrigin(t, "origin-a", addresses{}, discoveryAt(discovery))
	edge := startEdge(t, "edge-1", 2, discoveryAt(discovery)+"drain: {deadline: 10m}\n")
	encoder := publishClip(t, edge.rtmpURL("live/demo"))
	player := playFLV(t, edge.httpURL("live/demo.flv"), "")
	player.await(10, 0)
	edge.signal(syscall.SIGTERM)
	eventually(t, waitTimeout, "discovery knows that the edge drains", func() error {
		r := get(t, "http://"+discovery.http+"/api/v1/nodes")
		if !strings.Contains(string(r.body), `"draining"`) {
			return errors.New(string(r.body))
		}
		return nil
	})
	eventually(t, waitTimeout, "newcomers are refused", func() error {
		r, err := head(edge.httpURL("live/demo.flv")) // its workers hear of the drain last
		if err == nil && (r.status != http.StatusServiceUnavailable || r.header.Get("Retry-After") == "") {
			err = fmt.Errorf("status %d", r.status)
		}
		return err
	})
	// Both go on all the while.
	before := player.videoFrames()
	player.await(50, before)
	if !encoder.running() {
		t.Error("the encoder was cut")
	}
	edge.signal(syscall.SIGTERM)
	if code := edge.wait(stopTimeout); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A node without sessions does not wait for its deadline.
func TestTerminateWithoutSessionsIsQuick(t *testing.T) {
	t.Parallel()
	edge := startEdge(t, "edge-1", 1, "drain: {deadline: 10m}\n"+upstreamsOf("127.0.0.1:1"))
	edge.stop()
	origin := startOrigin(t, "origin-a", addresses{}, "drain: {deadline: 10m}\n")
	origin.stop()
}

// The origin that an edge forwards an encoder to is told to stop. The edge takes
// the stream to the other one; the encoder does not notice, and a player sees one
// timeline.
func TestOriginDrainsUnderAForwardedPublisher(t *testing.T) {
	t.Parallel()
	discovery := startDiscovery(t, "")
	a := startOrigin(t, "origin-a", addresses{}, discoveryAt(discovery)+"drain: {deadline: 2s}\n")
	b := startOrigin(t, "origin-b", addresses{}, discoveryAt(discovery)+"drain: {deadline: 2s}\n")
	edge := startEdge(t, "edge-1", 2, discoveryAt(discovery))
	encoder := publishClip(t, edge.rtmpURL("live/demo"))
	owner := ownerOf(t, demo, a, b)
	player := playFLV(t, edge.httpURL("live/demo.flv"), "")
	player.await(50, 0)
	owner.signal(syscall.SIGTERM)
	if code := owner.wait(2*time.Second + waitTimeout); code != 0 {
		t.Errorf("exit code %d", code)
	}
	next := ownerOf(t, demo, a, b)
	if next == owner {
		t.Errorf("%s has the stream still", owner.id)
	}
	player.await(100, player.videoFrames())
	if !encoder.running() {
		t.Error("the encoder was cut")
	}
	if n := len(edge.awaitSessions("publish", demo, 1)); n != 1 {
		t.Errorf("%d publishers", n)
	}
	clipSource(t).require(t, "player", player.end(), 100, rules{jumps: true})
	if text := edge.stderr.String(); strings.Contains(text, "kind=publish") && strings.Contains(text, "session ended") && strings.Contains(text, "reason=connection_lost") {
		t.Errorf("the encoder's session ended:\n%s", text)
	}
}

// A viewer of HLS is served by a draining edge until it is its turn, and then sent to
// another edge, where it goes on.
func TestDrainMovesViewersOfHLS(t *testing.T) {
	t.Parallel()
	d := startDiscovery(t, "")
	o := startOrigin(t, "origin-a", addresses{}, discoveryAt(d))
	a, b := startEdge(t, "edge-a", 1, discoveryAt(d)), startEdge(t, "edge-b", 1, discoveryAt(d))
	publishClip(t, o.rtmpURL("live/demo"))
	url := a.httpURL("live/demo.m3u8")
	eventually(t, waitTimeout, "a playlist", func() error {
		f, err := tryGet(url)
		if err == nil && f.status != http.StatusOK {
			err = fmt.Errorf("%d %s", f.status, f.body)
		}
		return err
	})
	if r := weir(t, waitTimeout, "drain", "--admin", "http://"+a.admin, "--deadline", "5s"); r.code != 0 {
		t.Fatalf("weir drain: %s", r.stderr)
	}
	served := 0
	eventually(t, waitTimeout, "the viewer is sent to the other edge", func() error {
		switch f := get(t, url); f.status {
		case http.StatusOK:
			served++
			return errors.New("it is served here")
		case http.StatusFound:
			if to := f.header.Get("Location"); !strings.HasPrefix(to, "http://"+b.http+"/live/demo.m3u8") {
				t.Fatalf("sent to %s", to)
			}
			return nil
		default:
			t.Fatalf("%d %s", f.status, f.body)
			return nil
		}
	})
	if served == 0 {
		t.Error("it was sent away at once")
	}
	if f := get(t, b.httpURL("live/demo.m3u8")); f.status != http.StatusOK {
		t.Errorf("there: %d %s", f.status, f.body)
	}
}

// BenchmarkDrain is the drain of one edge of four, each of which has 1000 viewers,
// within a minute.
func BenchmarkDrain(b *testing.B) {
	const n, deadline = 1000, time.Minute
	for b.Loop() {
		s := drainOneOfFour(b, n, deadline, func(url string) { publishTrickle(b, url) })
		ends, again, refused := s.audience.kicks()
		mean := float64(n) / deadline.Seconds()
		b.ReportMetric(float64(len(ends)), "kicks")
		b.ReportMetric(float64(most(ends, time.Second))/mean, "peak/mean")
		slices.Sort(again)
		b.ReportMetric(again[len(again)/2].Seconds()*1000, "ms-to-picture-p50")
		b.ReportMetric(again[len(again)-1].Seconds()*1000, "ms-to-picture-max")
		peak := 0
		for _, e := range s.nodes[1:] {
			peak = max(peak, s.peak[e.http])
		}
		b.ReportMetric(float64(peak)/n*100-100, "%-more-at-others")
		b.ReportMetric(float64(len(refused)), "refused")
		s.audience.stop()
	}
}
