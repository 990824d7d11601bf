package e2e

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp"
)

var (
	failoverRounds  = flag.Int("failover.rounds", 5, "kills of an origin in BenchmarkFailover")
	failoverPlayers = flag.Int("failover.players", 200, "players in BenchmarkFailover")
)

// show is what a publisher of numbered frames sends, wherever it publishes.
type show struct {
	t    testing.TB
	dial dialer

	run  atomic.Uint32 // number of the run that frames are of
	conn uint32        // number of the connection; decoder headers have it as well
	next uint32        // number of the next frame

	mu      sync.Mutex
	began   map[uint32]time.Time // guarded by mu; when the run was let in, for publishers that connect again
	refused []error              // guarded by mu; answers since the last run
}

// dialer makes connections; nil: from this host.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

const (
	showRate = 25 // frames a second
	showKeys = 25 // frames from one key frame to the next
)

// tag returns the next frame, a key frame if it must be one.
func (s *show) tag(ms uint32, key bool) media.Tag {
	t := media.NewTag(media.Video, ms, 400)
	copy(t.Body(), "\x27\x01\x00\x00\x00")
	if key {
		t.Body()[0] = 0x17
	}
	binary.BigEndian.PutUint32(t.Body()[5:], s.run.Load())
	binary.BigEndian.PutUint32(t.Body()[9:], s.next)
	binary.BigEndian.PutUint32(t.Body()[13:], s.conn)
	s.next++
	return t
}

// header returns the decoder header of the connection.
func (s *show) header() media.Tag {
	t := media.NewTag(media.Video, 0, 20)
	copy(t.Body(), "\x17\x00\x00\x00\x00decoderhead")
	binary.BigEndian.PutUint32(t.Body()[16:], s.conn)
	return t
}

// publish connects to one address after the other until ctx ends: to the next when
// it is refused or cut, as an encoder with a list of servers does.
func (s *show) publish(ctx context.Context, addrs ...string) {
	pause := time.NewTicker(50 * time.Millisecond)
	defer pause.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		if err := s.publishAt(ctx, addrs[i%len(addrs)]); err != nil {
			s.mu.Lock()
			s.refused = append(s.refused, err)
			s.mu.Unlock()
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
	}
}

func (s *show) publishAt(ctx context.Context, addr string) error {
	cfg := rtmp.DefaultClientConfig()
	cfg.ConnectTimeout, cfg.WriteTimeout, cfg.DialContext = 2*time.Second, 2*time.Second, s.dial
	c, err := rtmp.Dial(ctx, rtmp.URL{Addr: addr, TcURL: "rtmp://" + addr + "/live", App: "live", Name: "demo"}, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Publish(ctx, "demo"); err != nil {
		return err
	}
	s.mu.Lock()
	s.began[s.run.Add(1)] = time.Now()
	s.refused = nil
	s.mu.Unlock()
	s.conn++
	if err := c.WriteTags(s.header()); err != nil {
		return err
	}
	tick := time.NewTicker(time.Second / showRate)
	defer tick.Stop()
	for n := uint32(0); ; n++ {
		if err := c.WriteTags(s.tag(n*1000/showRate, n%showKeys == 0)); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-c.Done():
			return c.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watcher is a player of a show.
type watcher struct {
	done chan struct{}

	mu    sync.Mutex
	err   error                // why it ended
	last  uint32               // guarded by mu; the last frame
	time  uint32               // guarded by mu; of it
	has   bool                 // guarded by mu; there was a frame
	conn  uint32               // guarded by mu; of the last decoder header
	first map[uint32]time.Time // guarded by mu; when the first frame of a run came
	bad   []string             // guarded by mu; what should not be
}

func watchShow(t testing.TB, url string) *watcher { return watchShowFrom(t, url, nil) }

// watchShowFrom is watchShow of a player that connects by dial.
func watchShowFrom(t testing.TB, url string, dial dialer) *watcher {
	w := &watcher{done: make(chan struct{}), first: map[uint32]time.Time{}}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(w.done)
		err := w.play(ctx, url, dial)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.err = err
	}()
	t.Cleanup(func() {
		cancel()
		<-w.done
	})
	return w
}

func (w *watcher) play(ctx context.Context, url string, dial dialer) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: dial}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("play %s: %s", url, response.Status)
	}
	r := flv.NewReader(response.Body, 0)
	for {
		tag, err := r.ReadTag()
		if err != nil {
			return err
		}
		switch {
		case tag.Kind() != media.Video:
		case tag.Body()[1] == 0:
			w.mu.Lock()
			w.conn = binary.BigEndian.Uint32(tag.Body()[16:])
			w.mu.Unlock()
		default:
			w.saw(tag)
		}
	}
}

func (w *watcher) saw(t media.Tag) {
	run, n := binary.BigEndian.Uint32(t.Body()[5:]), binary.BigEndian.Uint32(t.Body()[9:])
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.has && (n <= w.last || int32(t.Time()-w.time) < 0) {
		w.bad = append(w.bad, fmt.Sprintf("frame %d at %d ms after %d at %d ms", n, t.Time(), w.last, w.time))
	}
	if conn := binary.BigEndian.Uint32(t.Body()[13:]); conn != w.conn {
		w.bad = append(w.bad, fmt.Sprintf("frame %d of connection %d with the decoder header of connection %d", n, conn, w.conn))
	}
	if _, ok := w.first[run]; !ok {
		w.first[run] = time.Now()
	}
	w.has, w.last, w.time = true, n, t.Time()
}

// since returns when the first frame of a run came, after waiting for it.
func (w *watcher) since(t testing.TB, run uint32) time.Time {
	t.Helper()
	var at time.Time
	eventually(t, waitTimeout, fmt.Sprintf("a player has frames of run %d", run), func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		var ok bool
		select {
		case <-w.done:
			t.Fatalf("a player was cut: %v", w.err)
		default:
		}
		if at, ok = w.first[run]; !ok {
			return fmt.Errorf("its last frame is %d", w.last)
		}
		return nil
	})
	return at
}

func (w *watcher) require(t testing.TB) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range w.bad {
		t.Errorf("a player: %s", b)
	}
}

// theatre is a cluster with an audience.
type theatre struct {
	t         testing.TB
	directory string // of all nodes: the part of their configuration
	addrs     [2]addresses
	origins   [2]*node
	edges     [2]*node
	show      *show
	audience  []*watcher
	let       []time.Duration // from each kill until a publisher at the origins was let in again
}

// noHLS is for frames that no decoder knows.
const noHLS = "vhosts: {__defaultVhost__: {hls: {enabled: false}}}\n"

// openTheatre starts discovery, two origins, two edges of two workers, a publisher
// that connects to the addresses that via returns, and players.
func openTheatre(t testing.TB, players int, via func(*theatre) []string) *theatre {
	t.Helper()
	return openTheatreAt(t, discoveryAt(startDiscovery(t, "")), players, via)
}

// openTheatreAt is openTheatre with a directory that is there.
func openTheatreAt(t testing.TB, directory string, players int, via func(*theatre) []string) *theatre {
	t.Helper()
	h := &theatre{t: t, directory: directory, show: &show{t: t, began: map[uint32]time.Time{}}}
	for i := range h.origins {
		h.addrs[i].fill(t)
		h.start(i)
	}
	for i := range h.edges {
		h.edges[i] = startEdge(t, fmt.Sprintf("edge-%d", i), 2, h.directory+noHLS+"play: {wait_publisher: 20s}\n")
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.show.publish(ctx, via(h)...)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	for i := range players {
		h.audience = append(h.audience, watchShow(t, h.edges[i%2].httpURL("live/demo.flv")))
	}
	for _, w := range h.audience {
		w.since(t, 1)
	}
	return h
}

func (h *theatre) start(i int) {
	h.origins[i] = startOrigin(h.t, fmt.Sprintf("origin-%d", i), h.addrs[i], h.directory+noHLS)
}

// owner returns the index of the origin that has the stream live.
func (h *theatre) owner() int {
	h.t.Helper()
	index := -1
	eventually(h.t, waitTimeout, "an origin has the stream", func() error {
		for i, o := range h.origins {
			if !o.running() {
				continue
			}
			streams, err := o.streams(demo)
			if err == nil && slices.ContainsFunc(streams, func(s streamInfo) bool { return s.State == "live" }) {
				index = i
				return nil
			}
		}
		return fmt.Errorf("none has; the publisher got %v", h.show.answers())
	})
	return index
}

func (s *show) answers() []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.refused)
}

// atOrigins and atEdge are where a publisher connects to.
func atOrigins(h *theatre) []string { return []string{h.origins[0].rtmp, h.origins[1].rtmp} }
func atEdge(h *theatre) []string    { return []string{h.edges[0].rtmp} }

// killOwner kills the origin that owns the stream, and returns how long each player
// then waited for a new frame: from the moment at which the publisher was let in
// again, or, if it is at an edge, from the kill. The origin is started again.
func (h *theatre) killOwner(forwarded bool) []time.Duration {
	h.t.Helper()
	i := h.owner()
	run := h.show.run.Load() + 1
	h.origins[i].kill()
	from := time.Now()
	if forwarded {
		run = h.show.run.Add(1)
	}
	waits := make([]time.Duration, len(h.audience))
	for k, w := range h.audience {
		waits[k] = w.since(h.t, run).Sub(from)
	}
	if !forwarded {
		h.show.mu.Lock()
		let := h.show.began[run].Sub(from)
		h.show.mu.Unlock()
		h.let = append(h.let, let)
		for k := range waits {
			waits[k] -= let
		}
	}
	if next := h.owner(); next == i {
		h.t.Errorf("%s is dead and has the stream", h.origins[i].id)
	}
	h.start(i)
	return waits
}

// close fails the test if a player was cut or saw what it should not.
func (h *theatre) close() {
	h.t.Helper()
	for _, w := range h.audience {
		select {
		case <-w.done:
			h.t.Errorf("a player was cut: %v", w.err)
		default:
		}
		w.require(h.t)
	}
}

func quantile(d []time.Duration, q float64) time.Duration {
	slices.Sort(d)
	return d[min(len(d)-1, int(q*float64(len(d))))]
}

// The origin that owns a stream is killed, again and again. As soon as the
// publisher is back at the other one, the players see its frames, on the same
// connection and a timeline that never goes back, and none of before.
func TestFailover(t *testing.T) {
	f := func(name string, via func(*theatre) []string, forwarded bool) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := openTheatre(t, 20, via)
			for range 3 {
				waits := h.killOwner(forwarded)
				t.Logf("players waited for %v at the median, %v at most", quantile(waits, 0.5), quantile(waits, 1))
			}
			h.close()
			for _, d := range h.let {
				// The dead owner's lease would have lasted for two thirds of its time at least.
				if d > 3*time.Second {
					t.Errorf("the publisher was let in again after %v", d)
				}
			}
		})
	}
	f("publisher at an edge", atEdge, true)
	f("publisher at the origins", atOrigins, false)
}

// An origin freezes, and its stream goes on at another one. When it thaws it gives
// way: its publisher is told so, and no player sees a frame of before.
func TestFrozenOriginGivesWay(t *testing.T) {
	t.Parallel()
	h := openTheatre(t, 12, atEdge)
	i := h.owner()
	own := watchShow(t, h.origins[i].httpURL("live/demo.flv"))
	own.since(t, 1)
	h.origins[i].signal(syscall.SIGSTOP)
	eventually(t, 2*waitTimeout, "the stream is live at the other origin", func() error {
		streams, err := h.origins[1-i].streams(demo)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(streams, func(s streamInfo) bool { return s.State == "live" }) {
			return fmt.Errorf("%+v", streams)
		}
		return nil
	})
	run := h.show.run.Add(1)
	for _, w := range h.audience {
		w.since(t, run)
	}
	h.origins[i].signal(syscall.SIGCONT)
	thawed := time.Now()
	eventually(t, waitTimeout, "the origin that was frozen has no stream", func() error {
		streams, err := h.origins[i].streams(demo)
		if err != nil {
			return err
		}
		if len(streams) > 0 {
			return fmt.Errorf("%+v", streams)
		}
		return nil
	})
	t.Logf("it gave way %v after it thawed", time.Since(thawed))
	select { // its own player is sent away
	case <-own.done:
	case <-time.After(waitTimeout):
		t.Error("its player is still there")
	}
	h.origins[1-i].awaitStream(demo, "live")
	run = h.show.run.Add(1)
	for _, w := range h.audience {
		w.since(t, run)
	}
	h.close()
}

// BenchmarkFailover kills the owner of a stream -failover.rounds times in front of
// -failover.players players at two edges of two workers, and reports how long they
// waited for the first new frame.
func BenchmarkFailover(b *testing.B) {
	f := func(name string, via func(*theatre) []string, forwarded bool) {
		b.Run(name, func(b *testing.B) {
			h := openTheatre(b, *failoverPlayers, via)
			var all []time.Duration
			b.ResetTimer()
			for range *failoverRounds {
				all = append(all, h.killOwner(forwarded)...)
			}
			h.close()
			b.ReportMetric(float64(quantile(all, 0.5).Milliseconds()), "ms-p50")
			b.ReportMetric(float64(quantile(all, 0.99).Milliseconds()), "ms-p99")
			b.ReportMetric(float64(quantile(all, 1).Milliseconds()), "ms-max")
			if h.let != nil {
				b.ReportMetric(float64(quantile(h.let, 0.5).Milliseconds()), "ms-let-in-p50")
				b.ReportMetric(float64(quantile(h.let, 1).Milliseconds()), "ms-let-in-max")
			}
		})
	}
	f("edge", atEdge, true)
	f("origins", atOrigins, false)
}
