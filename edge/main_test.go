package edge

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"weir/discovery"
	"weir/hls"
	"weir/internal/admin"
	"weir/internal/httpserver"
	"weir/internal/media"
	"weir/internal/rtmp"
	"weir/internal/session"
	"weir/internal/stream"
	"weir/internal/vhost"
	"weir/internal/worker"
)

func TestMain(m *testing.M) {
	// One goroutine of fasthttp keeps the Date header for the life of the process.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

// deadline bounds every wait of these tests.
const deadline = 10 * time.Second

func within(t *testing.T, what string, f func()) {
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

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	end := time.Now().Add(deadline)
	tick := time.NewTicker(2 * time.Millisecond)
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

func logTo(t *testing.T, name string) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// point is what a node is reached at.
type point struct {
	rtmp, http string
	door       *session.Server
	opened     *session.OpenDoor
	adoptions  *httpserver.Adoptions
	admit      atomic.Pointer[verdict] // of players and publishers; nil lets all in
	set        *metrics.Set
	stop       func()
}

// verdict is what a door says to newcomers.
type verdict struct{ err error }

// open opens a door for a role on free ports, or on those given.
func open(t *testing.T, name string, role session.Role, table *vhost.Table, cfg session.Config, ports ...net.Listener) *point {
	t.Helper()
	if len(ports) == 0 {
		ports = []net.Listener{listen(t), listen(t)}
	}
	p := &point{rtmp: ports[0].Addr().String(), http: ports[1].Addr().String(), set: metrics.NewSet()}
	def, log := Default(), logTo(t, name)
	def.HTTP.ShutdownGrace = 0
	def.RTMP.CloseTimeout, def.RTMP.RedirectWait = 200*time.Millisecond, 200*time.Millisecond
	options := session.Options{Config: cfg, RTMP: def.RTMP.ServerConfig, Vhosts: table, Role: role, Log: log, Set: p.set}
	options.Admit = func(context.Context, session.Newcomer) error {
		if a := p.admit.Load(); a != nil {
			return a.err
		}
		return nil
	}
	if e, ok := role.(*Edge); ok {
		options.Pass = e.Pass
	}
	p.door, p.adoptions = session.New(options), httpserver.NewAdoptions(ports[1].Addr())
	ctx, cancel := context.WithCancel(context.Background())
	g, ctx := errgroup.WithContext(ctx)
	var err error
	p.opened, err = session.Door{
		Sessions: p.door, RTMP: ports[0], HTTP: ports[1], Adoptions: p.adoptions, HTTPConfig: def.HTTP, Limits: def.Limits, Log: log, Set: p.set,
	}.Open(ctx, g)
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	p.stop = func() {
		once.Do(func() {
			within(t, "stop of "+name, func() {
				cancel()
				if err := g.Wait(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
		})
	}
	t.Cleanup(p.stop)
	return p
}

// players returns the sessions of a kind that are under way.
func (p *point) sessions(kind string) (n int) {
	for _, s := range p.door.Sessions() {
		if s.Kind == kind {
			n++
		}
	}
	return n
}

func (p *point) awaitSessions(t *testing.T, kind string, want int) {
	t.Helper()
	eventually(t, kind+" sessions", func() error {
		if n := p.sessions(kind); n != want {
			return fmt.Errorf("%d, want %d", n, want)
		}
		return nil
	})
}

// upstream is a node to pull from and to publish to. It does what the test says.
type upstream struct {
	*point
	t *testing.T

	mu       sync.Mutex
	streams  map[string]*program
	epoch    uint64       // of all streams, as it is told at their begin
	redirect session.Role // asked for what is not here
	plays    int
	asked    []session.Peer // of plays
	refuse   error          // of publishers
	wait     chan struct{}  // before publishers are let in, unless nil
	ends     []string       // reasons of publishers
	pubs     []*session.Publisher
	files    map[string]hls.Object
	fetched  map[string]int
}

func newUpstream(t *testing.T, name string, ports ...net.Listener) *upstream {
	t.Helper()
	u := &upstream{t: t, epoch: 7, streams: map[string]*program{}, files: map[string]hls.Object{}, fetched: map[string]int{}}
	u.point = open(t, name, u, vhost.NewTable(nil), session.DefaultConfig(0), ports...)
	return u
}

// program is a stream of an upstream.
type program struct {
	*stream.Stream
	pub *stream.Publisher
}

const demo = vhost.DefaultName + "/live/demo"

// air starts a stream.
func (u *upstream) air(key string) *program {
	u.t.Helper()
	p := &program{Stream: stream.New(stream.DefaultLimits())}
	var err error
	if p.pub, err = p.Publish(); err != nil {
		u.t.Fatal(err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.streams[key] = p
	return p
}

// send appends the frames from first up to but not including last. Frame n has
// the same bytes wherever it comes from; every fifth is a key frame.
func (p *program) send(t *testing.T, first, last int) {
	t.Helper()
	for n := first; n < last; n++ {
		if n == first {
			p.append(t, header())
		}
		p.append(t, frame(n))
	}
}

func (p *program) append(t *testing.T, tag media.Tag) {
	t.Helper()
	if err := p.pub.Append(tag); err != nil {
		t.Fatal(err)
	}
}

func header() media.Tag { return video(0, "\x17\x00\x00\x00\x00header") }

const keyEvery = 5

func frame(n int) media.Tag {
	kind := "\x27"
	if n%keyEvery == 0 {
		kind = "\x17"
	}
	return video(uint32(40*n), kind+"\x01\x00\x00\x00"+strconv.Itoa(n))
}

func video(ms uint32, body string) media.Tag {
	t := media.NewTag(media.Video, ms, len(body))
	copy(t.Body(), body)
	return t
}

// number is n of frame(n), -1 for a header.
func number(t media.Tag) int {
	n, err := strconv.Atoi(string(t.Body()[5:]))
	if t.Kind() != media.Video || err != nil {
		return -1
	}
	return n
}

// Play implements session.Role.
func (u *upstream) Play(ctx context.Context, r session.PlayRequest) (session.Feed, error) {
	u.mu.Lock()
	u.plays++
	u.asked = append(u.asked, r.Peer)
	p, redirect, epoch := u.streams[r.Target.Key.String()], u.redirect, u.epoch
	u.mu.Unlock()
	switch {
	case p != nil:
		return session.Feed{Stream: p.Stream, Epoch: epoch, Release: func() {}}, nil
	case redirect != nil:
		return redirect.Play(ctx, r)
	}
	return session.Feed{}, session.ErrNotFound
}

// Publish implements session.Role.
func (u *upstream) Publish(_ context.Context, s *session.Publisher) session.PublishEnd {
	u.mu.Lock()
	refuse, wait := u.refuse, u.wait
	s.Epoch = u.epoch
	u.pubs = append(u.pubs, s)
	u.mu.Unlock()
	if wait != nil {
		<-wait
	}
	if refuse != nil {
		return session.PublishEnd{Err: refuse}
	}
	p := u.air(s.Target.Key.String())
	if err := s.Accept(); err != nil {
		return session.ReadEnd(err)
	}
	for {
		tag, err := s.ReadTag()
		if err != nil {
			end := session.ReadEnd(err)
			u.mu.Lock()
			u.ends = append(u.ends, end.Reason)
			u.mu.Unlock()
			p.Close(io.EOF)
			return end
		}
		if err := p.pub.Append(tag); err != nil {
			return session.PublishEnd{Reason: "closed", Err: err}
		}
	}
}

// HLS implements session.Role.
func (u *upstream) HLS(ctx context.Context, r session.HLSRequest) (hls.Object, error) {
	uri := r.File.URI("")
	u.mu.Lock()
	u.fetched[uri]++
	o, ok := u.files[uri]
	redirect := u.redirect
	u.mu.Unlock()
	switch {
	case ok:
		return o, nil
	case redirect != nil:
		return redirect.HLS(ctx, r)
	}
	return hls.Object{}, session.ErrNotFound
}

func (u *upstream) set(f func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f()
}

func (u *upstream) count(of *int) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return *of
}

// elsewhere is a role that redirects everybody.
type elsewhere struct{ to func() session.Redirect }

func to(p *point) *elsewhere {
	return &elsewhere{func() session.Redirect { return session.Redirect{RTMP: p.rtmp, HTTP: p.http} }}
}

func (e *elsewhere) Play(context.Context, session.PlayRequest) (session.Feed, error) {
	r := e.to()
	return session.Feed{}, &r
}

func (e *elsewhere) Publish(context.Context, *session.Publisher) session.PublishEnd {
	r := e.to()
	return session.PublishEnd{Err: &r}
}

func (e *elsewhere) HLS(context.Context, session.HLSRequest) (hls.Object, error) {
	r := e.to()
	return hls.Object{}, &r
}

// quick is a configuration whose times suit a test.
func quick() Config {
	cfg := Default()
	cfg.Play.WaitPublisher = deadline
	cfg.Pull.Linger = 0
	cfg.Pull.RetryMin = 10 * time.Millisecond
	cfg.Pull.RetryMax = 50 * time.Millisecond
	cfg.Pull.ConnectTimeout = 2 * time.Second
	cfg.Pull.GiveUp = deadline
	cfg.Pull.EndAfter = 50 * time.Millisecond
	cfg.Pull.Eject = 100 * time.Millisecond
	cfg.HLSCache.PlaylistTTL = 0
	cfg.HLSCache.NegativeTTL = 0
	return cfg
}

// upstreams sets those of the default vhost.
func (c Config) upstreams(addrs ...string) Config {
	return c.vhost(func(v *vhost.Config) { v.Upstreams = addrs })
}

func (c Config) vhost(change func(*vhost.Config)) Config {
	v := vhost.Default()
	if old, ok := c.Vhosts[vhost.DefaultName]; ok {
		v = old
	}
	change(&v)
	c.Vhosts = vhost.Vhosts{vhost.DefaultName: v}
	return c
}

// member is one Edge with a door of its own and a socket for its siblings.
type member struct {
	*point
	edge *Edge
	kill func() // as if the process died
}

// team is an edge node.
type team struct {
	t       *testing.T
	name    string
	cfg     Config
	dir     discovery.Remote
	mu      sync.Mutex
	token   string   // of the workers' sockets
	sockets []string // living, empty for one that is dead, or the address of what stands in for it
	workers []*member
}

// living stands for a worker's own socket.
const living = "living"

func startTeam(t *testing.T, name string, count int, cfg Config, dir discovery.Remote) *team {
	t.Helper()
	cfg.Node.ID = name
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	n := &team{t: t, name: name, cfg: cfg, dir: dir, token: rand.Text(), sockets: make([]string, count), workers: make([]*member, count)}
	for i := range count {
		n.start(i)
	}
	return n
}

func startEdge(t *testing.T, name string, cfg Config, dir discovery.Remote, ports ...net.Listener) *member {
	t.Helper()
	cfg.Node.ID = name
	n := &team{t: t, name: name, cfg: cfg, dir: dir, token: rand.Text(), sockets: make([]string, 1), workers: make([]*member, 1)}
	return n.start(0, ports...)
}

func (n *team) dial(ctx context.Context, i int) (net.Conn, error) {
	n.mu.Lock()
	addr := n.sockets[i]
	n.mu.Unlock()
	if addr == "" {
		return nil, errors.New("connection refused")
	}
	if addr == living {
		return worker.DialSibling(ctx, n.token, i)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

func (n *team) start(i int, ports ...net.Listener) *member {
	n.t.Helper()
	name := fmt.Sprintf("%s/%d", n.name, i)
	w := &member{}
	w.edge = New(n.cfg, Options{
		Directory: n.dir, Index: i, Count: len(n.sockets), DialSibling: n.dial, Log: logTo(n.t, name), Set: metrics.NewSet(),
	})
	w.point = open(n.t, name, w.edge, w.edge.Vhosts(), n.cfg.Play, ports...)
	l, err := worker.ListenSibling(n.token, i, w.edge.log)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error {
		return serveSiblings(ctx, l, nil, siblingHandler(w.edge, &passHandler{w.edge, w.door, w.opened, w.adoptions}, admin.Source{}))
	})
	n.mu.Lock()
	n.sockets[i], n.workers[i] = living, w
	n.mu.Unlock()
	var once sync.Once
	w.kill = func() {
		once.Do(func() {
			n.mu.Lock()
			n.sockets[i] = ""
			n.mu.Unlock()
			cancel()
			w.stop()
			within(n.t, "end of "+name, func() {
				if err := g.Wait(); err != nil {
					n.t.Errorf("%s: %v", name, err)
				}
				w.edge.Close()
			})
		})
	}
	n.t.Cleanup(w.kill)
	return w
}

// pulling returns the workers that pull from an upstream or another worker.
func (n *team) pulling() (total int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, w := range n.workers {
		if n.sockets[i] != "" {
			total += int(w.edge.metrics.pulls.Get())
		}
	}
	return total
}

// viewer is an RTMP player.
type viewer struct {
	t      *testing.T
	c      *rtmp.Client
	frames []int
	times  []uint32
}

func dialPlayer(p *point, name, node, via string) (*rtmp.Client, error) {
	cfg := rtmp.DefaultClientConfig()
	cfg.Node, cfg.Via = node, via
	cfg.ConnectTimeout, cfg.ReadTimeout = 2*deadline, deadline
	u := rtmp.URL{Addr: p.rtmp, TcURL: "rtmp://" + p.rtmp + "/live", App: "live", Name: name}
	c, err := rtmp.Dial(context.Background(), u, cfg)
	if err != nil {
		return nil, err
	}
	if _, err := c.Play(context.Background(), name); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func watchAt(t *testing.T, p *point, name string) *viewer {
	t.Helper()
	c, err := dialPlayer(p, name, "", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &viewer{t: t, c: c}
}

// watchLater is watchAt for a player that has to wait.
func watchLater(t *testing.T, p *point, name string) func() *viewer {
	got := make(chan *viewer, 1)
	errs := make(chan error, 1)
	go func() {
		c, err := dialPlayer(p, name, "", "")
		errs <- err
		got <- &viewer{t: t, c: c}
	}()
	return func() *viewer {
		t.Helper()
		select {
		case err := <-errs:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(deadline):
			t.Fatal("the player still waits")
		}
		v := <-got
		t.Cleanup(func() { v.c.Close() })
		return v
	}
}

// until reads up to frame n. Frames must follow each other without gap or
// repetition, and times must not go back.
func (v *viewer) until(n int) {
	v.t.Helper()
	for len(v.frames) == 0 || v.frames[len(v.frames)-1] < n {
		tag, err := v.c.ReadTag()
		if err != nil {
			v.t.Fatalf("player that waits for frame %d, has %v: %v", n, v.frames, err)
		}
		got := number(tag)
		if got < 0 {
			continue
		}
		if k := len(v.frames); k > 0 && (got != v.frames[k-1]+1 || tag.Time() <= v.times[k-1]) {
			v.t.Fatalf("frame %d at %d ms after %v at %v", got, tag.Time(), v.frames, v.times)
		}
		if len(v.frames) == 0 && got%keyEvery != 0 {
			v.t.Fatalf("the first frame is %d, no key frame", got)
		}
		v.frames, v.times = append(v.frames, got), append(v.times, tag.Time())
	}
}

// end reads to the end that the server tells.
func (v *viewer) end() {
	v.t.Helper()
	for {
		switch _, err := v.c.ReadTag(); err {
		case nil:
		case io.EOF:
			return
		default:
			v.t.Fatalf("player that waits for the end: %v", err)
		}
	}
}

func (v *viewer) leave() { v.c.Close() }

func code(err error) string {
	var s *rtmp.StatusError
	if errors.As(err, &s) {
		return s.Code + " " + s.Description
	}
	return fmt.Sprint(err)
}

// get asks over HTTP without following redirects.
func get(t *testing.T, p *point, path string) (status int, body string) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.http+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// remote is a directory in this process.
type remote struct {
	discovery.Directory
	engine *discovery.Memory
	mu     sync.Mutex
	away   bool // it does not answer
	empty  bool // nobody owns anything
	asked  int  // lookups
}

func (r *remote) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func newRemote() *remote {
	m := discovery.NewMemory(discovery.DefaultServerConfig().Memory(), nil, nil)
	return &remote{Directory: m, engine: m}
}

func (r *remote) Close() error { return nil }

func (r *remote) setAway(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away = on
}

func (r *remote) reach() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		return discovery.ErrUnavailable
	}
	return nil
}

func (r *remote) Lookup(ctx context.Context, s string) (discovery.Lease, error) {
	if err := r.reach(); err != nil {
		return discovery.Lease{}, err
	}
	r.mu.Lock()
	r.asked++
	empty := r.empty
	r.mu.Unlock()
	if empty {
		return discovery.Lease{}, discovery.ErrNotFound
	}
	return r.engine.Lookup(ctx, s)
}

func (r *remote) Nodes(ctx context.Context, q discovery.NodeQuery) ([]discovery.Node, string, error) {
	if err := r.reach(); err != nil {
		return nil, "", err
	}
	return r.engine.Nodes(ctx, q)
}

// own makes an upstream the owner of a stream. It tells that epoch from now on.
func (r *remote) own(t *testing.T, key string, u *upstream) {
	t.Helper()
	l, err := r.engine.Claim(context.Background(), discovery.Claim{
		Stream: key, Node: "owner", Instance: rand.Text(), TTL: time.Minute, Replace: true,
		Addr: discovery.Addr{RTMP: u.rtmp, HTTP: u.http},
	})
	if err != nil {
		t.Fatal(err)
	}
	u.set(func() { u.epoch = l.Epoch })
}
