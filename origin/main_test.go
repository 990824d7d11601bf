package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"weir/discovery"
	"weir/internal/flv"
	"weir/internal/media"
	"weir/internal/rtmp"
	"weir/internal/session"
	"weir/internal/vhost"
)

func TestMain(m *testing.M) {
	// One goroutine of fasthttp keeps the Date header for the life of the process.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

// deadline bounds every wait of these tests.
const deadline = 10 * time.Second

// site is an origin as Run builds it, in this process and on free ports.
type site struct {
	t      testing.TB
	origin *Origin
	holder *discovery.Holder
	door   *session.Server
	set    *metrics.Set
	rtmp   string
	http   string
	stop   func() // everything in Run's order; may be called more than once
}

// quick is a configuration whose times suit a test.
func quick() Config {
	cfg := Default()
	cfg.Discovery.URLs = []string{"http://directory.test"} // it has one; which, the test says
	cfg.Discovery.LeaseTTL = 600 * time.Millisecond
	cfg.Discovery.CacheTTL = 0
	cfg.Publish.ResumeWindow = deadline
	cfg.HTTP.ShutdownGrace = 0
	cfg.RTMP.CloseTimeout = 200 * time.Millisecond
	cfg.RTMP.RedirectWait = 200 * time.Millisecond
	return cfg
}

// withDefault sets the default vhost.
func (c Config) withDefault(change func(*vhost.Config)) Config {
	v := vhost.Default()
	change(&v)
	c.Vhosts = vhost.Vhosts{vhost.DefaultName: v}
	return c
}

func newMemory() *discovery.Memory {
	return discovery.NewMemory(discovery.DefaultServerConfig().Memory(), nil, nil)
}

func start(t testing.TB, name string, cfg Config, dir discovery.Directory) *site {
	t.Helper()
	return startWith(t, name, cfg, dir, func(o Owner) Owner { return o })
}

// startWith puts something between the origin and the holder of its leases.
func startWith(t testing.TB, name string, cfg Config, dir discovery.Directory, between func(Owner) Owner) *site {
	t.Helper()
	s := &site{t: t, set: metrics.NewSet()}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	rl, hl := listen(), listen()
	s.rtmp, s.http = rl.Addr().String(), hl.Addr().String()
	cfg.Node.ID = name
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
	s.origin = New(cfg, log, s.set)
	s.holder = discovery.NewHolder(dir, discovery.HolderConfig{
		Config: cfg.Discovery, OnLost: s.origin.Lost, OnKicked: s.origin.Kicked, Logger: log, Metrics: s.set,
		Self: discovery.Self{Node: name, Addr: discovery.Addr{RTMP: s.rtmp, HTTP: s.http, API: s.http}},
	})
	s.origin.SetOwner(between(s.holder))
	s.door = session.New(session.Options{
		Config: cfg.Play, RTMP: cfg.RTMP.ServerConfig, Vhosts: s.origin.Vhosts(), Role: s.origin, Log: log, Set: s.set,
	})
	ctx, cancel := context.WithCancel(context.Background())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.holder.Run(ctx) })
	_, err := session.Door{
		Sessions: s.door, RTMP: rl, HTTP: hl, HTTPConfig: cfg.HTTP, Limits: cfg.Limits, Log: log, Set: s.set,
	}.Open(ctx, g)
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	s.stop = func() {
		if stopped {
			return
		}
		stopped = true
		within(t, "stop of "+name, func() {
			cancel()
			if err := g.Wait(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			s.origin.Close()
		})
	}
	t.Cleanup(s.stop)
	return s
}

// within fails the test if f takes too long.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(deadline):
		t.Fatalf("%s: not within %v", what, deadline)
	}
}

// eventually fails the test if check does not become nil in time.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	end := time.Now().Add(deadline)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}

func (s *site) url(name string) rtmp.URL {
	return rtmp.URL{Addr: s.rtmp, TcURL: "rtmp://" + s.rtmp + "/live", App: "live", Name: name}
}

func (s *site) dial(name string, cfg rtmp.ClientConfig) (*rtmp.Client, rtmp.URL, error) {
	u := s.url(name)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	cfg.ConnectTimeout = deadline
	c, err := rtmp.Dial(ctx, u, cfg)
	return c, u, err
}

// publish returns a publisher, or what the origin answered.
func (s *site) publish(name string) (*rtmp.Client, error) {
	c, u, err := s.dial(name, rtmp.DefaultClientConfig())
	if err != nil {
		return nil, err
	}
	if err := c.Publish(context.Background(), u.Name); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// publishAs is publish as a node that has the secret of a publisher.
func (s *site) publishAs(name, secret string) (*rtmp.Client, error) {
	cfg := rtmp.DefaultClientConfig()
	cfg.Node, cfg.Publisher, cfg.Overlap = "edge-1", secret, true
	c, u, err := s.dial(name, cfg)
	if err != nil {
		return nil, err
	}
	if err := c.Publish(context.Background(), u.Name); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (s *site) mustPublish(name string) *rtmp.Client {
	s.t.Helper()
	c, err := s.publish(name)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// play returns a player, or what the origin answered.
func (s *site) play(name, node string) (*rtmp.Client, error) {
	cfg := rtmp.DefaultClientConfig()
	cfg.Node = node
	c, u, err := s.dial(name, cfg)
	if err != nil {
		return nil, err
	}
	if _, err := c.Play(context.Background(), u.Name); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// playAnswer returns what a player is told that gets no media. A 302 comes behind
// the start of the play.
func (s *site) playAnswer(name string) error {
	c, err := s.play(name, "")
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.ReadTag()
	return err
}

func (s *site) mustPlay(name string) *rtmp.Client {
	s.t.Helper()
	c, err := s.play(name, "")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

const key = vhost.DefaultName + "/live/"

// watched begins a stream: alice has published three frames, and bob, who plays, has
// got the last of them.
func (s *site) watched(name string) (alice, bob *rtmp.Client) {
	s.t.Helper()
	alice = s.mustPublish(name)
	send(s.t, alice, frames("alice", 3))
	bob = s.mustPlay(name)
	await(s.t, bob, "alice 2")
	return alice, bob
}

// frames returns the decoder header and n frames, one GOP, that say who sent
// them.
func frames(who string, n int) []media.Tag {
	tags := []media.Tag{frame(0, "\x17\x00\x00\x00\x00header of "+who)}
	for i := range n {
		kind := "\x27"
		if i == 0 {
			kind = "\x17"
		}
		tags = append(tags, frame(uint32(40*i), kind+fmt.Sprintf("\x01\x00\x00\x00%s %d", who, i)))
	}
	return tags
}

func frame(ms uint32, body string) media.Tag {
	t := media.NewTag(media.Video, ms, len(body))
	copy(t.Body(), body)
	return t
}

func send(t testing.TB, c *rtmp.Client, tags []media.Tag) {
	t.Helper()
	if err := c.WriteTags(tags...); err != nil {
		t.Fatal(err)
	}
}

// await reads a player up to the frame with the text, and returns its time.
func await(t testing.TB, c *rtmp.Client, text string) uint32 {
	t.Helper()
	for {
		tag, err := c.ReadTag()
		if err != nil {
			t.Fatalf("player that waits for %q: %v", text, err)
		}
		if len(tag.Body()) > 5 && string(tag.Body()[5:]) == text {
			return tag.Time()
		}
	}
}

// awaitEnd reads a player until it is told that the stream has ended.
func awaitEnd(t *testing.T, c *rtmp.Client) {
	t.Helper()
	for {
		switch _, err := c.ReadTag(); err {
		case nil:
		case io.EOF:
			return
		default:
			t.Fatalf("player that waits for the end: %v", err)
		}
	}
}

// awaitMoved reads a player until it is sent elsewhere.
func awaitMoved(t *testing.T, c *rtmp.Client, url string, epoch uint64) {
	t.Helper()
	for {
		_, err := c.ReadTag()
		var r *rtmp.RedirectError
		switch {
		case err == nil:
			continue
		case !errors.As(err, &r):
			t.Fatalf("player that waits for a redirect: %v", err)
		case r.URL != url || r.Epoch != epoch:
			t.Errorf("redirected to %s with epoch %d, want %s with %d", r.URL, r.Epoch, url, epoch)
		}
		return
	}
}

// awaitCut waits until the origin ends a publisher, and returns what it said.
func awaitCut(t *testing.T, c *rtmp.Client) error {
	t.Helper()
	select {
	case <-c.Done():
	case <-time.After(deadline):
		t.Fatal("the publisher is not cut")
	}
	return c.Err()
}

func code(err error) string {
	var s *rtmp.StatusError
	var r *rtmp.RedirectError
	switch {
	case errors.As(err, &s):
		return s.Code
	case errors.As(err, &r):
		return "302 " + r.URL
	}
	return fmt.Sprint(err)
}

// ended returns how many sessions of a kind ended for a reason.
func (s *site) ended(kind, reason string) (n uint64) {
	for _, peer := range []string{"client", "node"} {
		n += s.set.GetOrCreateCounter(fmt.Sprintf(`weir_sessions_ended_total{kind=%q,protocol="rtmp",peer=%q,reason=%q}`, kind, peer, reason)).Get()
	}
	return n
}

func (s *site) awaitEnded(kind, reason string, want uint64) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%s sessions ended as %s", kind, reason), func() error {
		if n := s.ended(kind, reason); n != want {
			return fmt.Errorf("%d, want %d", n, want)
		}
		return nil
	})
}

// state is what the admin API says of a stream, "" if it is not there.
func (s *site) state(name string) string {
	for _, i := range s.origin.Streams(func(vhost.Key) int { return 0 }) {
		if i.Key == key+name {
			return i.State
		}
	}
	return ""
}

func (s *site) awaitState(name, want string) {
	s.t.Helper()
	eventually(s.t, "state of "+name, func() error {
		if got := s.state(name); got != want {
			return fmt.Errorf("%q, want %q", got, want)
		}
		return nil
	})
}

// get asks over HTTP without following redirects.
func (s *site) get(path string) (status int, header http.Header, body string) {
	s.t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.http+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// getFLV asks for a stream over HTTP-FLV, as a node if node is not empty, and
// returns the head of the answer and what follows.
func (s *site) getFLV(name, node string) (http.Header, *flv.Reader) {
	s.t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	s.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.http+"/live/"+name+".flv", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if node != "" {
		req.Header.Set(session.HeaderNode, node)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { resp.Body.Close() })
	return resp.Header, flv.NewReader(resp.Body, 0)
}
