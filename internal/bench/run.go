package bench

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"weir/internal/rtmp"
)

// run is one run of the tool.
type run struct {
	// Static.
	cfg    Config
	t      targets
	tls    *tls.Config // of players over HTTP
	clock  clock
	id     uint32 // of this run, in its marks
	server processes

	running    sync.WaitGroup // publishers, loops, probes, joins
	phases     phases
	probeBytes atomic.Uint64 // received by probes
	dialed     atomic.Uint32 // connects so far, to take the source addresses in turn

	// Owned by the goroutine of Run, and not changed while others run.
	addr       netip.AddrPort // where players connect
	sources    []netip.Addr
	lines      []*timeline
	loops      []*loop
	publishers []*publisher

	// Owned by the goroutine of Run.
	probes []*probe
	slow   []*probe
	hls    []*hlsPlayer
	joined int // players so far
	report Report
}

// Run measures. The report is complete unless there is an error; an error that
// wraps ErrUsage or ErrForeign comes before anything was done.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	r := &run{cfg: cfg, clock: newClock(), id: rand.Uint32(), server: cfg.PIDs}
	r.t, _ = cfg.targets()
	if r.tls = cfg.TLS.Clone(); r.tls == nil {
		r.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	r.tls.ServerName = r.t.play.Hostname()
	var err error
	if r.addr, err = cfg.resolve(r.t.playAddr); err != nil {
		return nil, fmt.Errorf("players' server: %w", err)
	}
	if _, err = cfg.resolve(r.t.publish.Addr); err != nil {
		return nil, fmt.Errorf("publishers' server: %w", err)
	}
	if err := r.server.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	if err := cfg.checkFiles(); err != nil {
		return nil, err
	}
	r.sources = sourcesFor(r.addr)

	if err := r.load(ctx); err != nil {
		return nil, err
	}
	// Not while the server is loaded: they would take the cores from each other.
	if len(cfg.Floor) > 0 {
		if err := r.measureFloor(ctx); err != nil {
			return nil, err
		}
	}
	return &r.report, nil
}

// load measures the server; publishers and players are gone when it returns.
func (r *run) load(ctx context.Context) error {
	loadCtx, stop := context.WithCancel(ctx)
	defer r.running.Wait()
	defer stop()
	return r.measure(ctx, loadCtx)
}

// sourcesFor returns the addresses that players come from: each has some 28000
// ports towards one server.
func sourcesFor(target netip.AddrPort) []netip.Addr {
	if !target.Addr().Is4() || !target.Addr().IsLoopback() {
		return nil
	}
	var s []netip.Addr
	for i := range 16 {
		s = append(s, netip.AddrFrom4([4]byte{127, 0, 0, byte(2 + i)}))
	}
	return s
}

// spareFiles are those that are open beside the connections.
const spareFiles = 100

// connections is the number of connections of a run without the search for the
// capacity.
func (c *Config) connections() int { return c.Players + c.Slow + c.Stalled + c.Crowd + c.Streams }

// roomForFiles raises the limit of open files as far as it goes and returns how
// many connections fit.
func roomForFiles() (int, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("read limit of open files: %w", err)
	}
	if l.Cur < l.Max {
		l.Cur = l.Max
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
			return 0, fmt.Errorf("raise limit of open files: %w", err)
		}
	}
	return int(min(l.Cur, 1<<30)) - spareFiles, nil
}

func (c *Config) checkFiles() error {
	room, err := roomForFiles()
	if err != nil {
		return err
	}
	if n := c.connections(); n > room {
		return fmt.Errorf("%w: %d connections do not fit into the %d files that this process may open; raise the hard limit (ulimit -Hn) or share the players out to several runs",
			ErrUsage, n, room)
	}
	return nil
}

// measure is a run from the first publisher to the last player.
func (r *run) measure(ctx, loadCtx context.Context) error {
	begun := r.clock.now()
	r.report.Machine = ThisMachine()
	memory := &r.report.Memory
	memory.Before = r.server.rss()
	if err := r.publish(loadCtx); err != nil {
		return err
	}
	if err := r.startLoops(loadCtx); err != nil {
		return err
	}
	// The first hundred carry what a stream and its pull cost.
	memory.FirstPlayers = min(r.cfg.Players, 100)
	r.join(ctx, loadCtx, memory.FirstPlayers, r.cfg.Ramp, ofRun)
	if err := r.settle(ctx, "join"); err != nil {
		return err
	}
	if len(r.server) > 0 && r.cfg.Players > memory.FirstPlayers {
		if err := r.pause(ctx, "fill", r.cfg.Fill); err != nil {
			return err
		}
	}
	memory.First = r.server.rss()
	r.join(ctx, loadCtx, r.cfg.Players-memory.FirstPlayers, r.cfg.Ramp, ofRun)
	if err := r.settle(ctx, "settle"); err != nil {
		return err
	}
	var err error
	if r.report.Window, err = r.window(ctx, "measure"); err != nil {
		return err
	}
	memory.After = r.server.rss()
	memory.perPlayer(r.cfg.Players)

	if r.cfg.Limit != nil {
		if err := r.findCapacity(ctx, loadCtx); err != nil {
			return err
		}
	}
	if r.cfg.Slow+r.cfg.Stalled > 0 {
		if err := r.withSlow(ctx, loadCtx); err != nil {
			return err
		}
	}
	if r.cfg.Crowd > 0 {
		if err := r.withCrowd(ctx, loadCtx); err != nil {
			return err
		}
	}
	if err := r.halt(ctx); err != nil {
		return err
	}
	r.summarize()
	r.report.Elapsed = (r.clock.now() - begun).Seconds()
	return nil
}

// withSlow measures again, with slow players beside the others.
func (r *run) withSlow(ctx, loadCtx context.Context) error {
	for i := range r.cfg.Slow {
		stream := i % r.cfg.Streams
		rate := int(r.cfg.SlowRate / 8)
		p := &probe{id: r.id, stream: stream, clock: r.clock, open: func(ctx context.Context) (tagSource, error) {
			return r.open(ctx, stream, rate)
		}}
		r.slow = append(r.slow, p)
		r.running.Go(func() { p.run(loadCtx, &r.phases) })
	}
	r.join(ctx, loadCtx, r.cfg.Stalled, r.cfg.Ramp, stalled)
	if err := r.pause(ctx, "slow players join", r.cfg.Settle); err != nil {
		return err
	}
	before := r.server.rss()
	w, err := r.window(ctx, "with slow players")
	if err != nil {
		return err
	}
	r.report.Slow = &Slow{
		Players: r.cfg.Slow, Rate: r.cfg.SlowRate, Stalled: r.cfg.Stalled, Window: w,
		MemoryBegin: before, MemoryEnd: r.server.rss(),
	}
	return nil
}

// withCrowd has many players join at once beside the others.
func (r *run) withCrowd(ctx, loadCtx context.Context) error {
	crowd := &Crowd{Players: r.cfg.Crowd, Seconds: r.cfg.CrowdTime.Seconds()}
	r.report.Crowd = crowd
	phase := r.phases.begin(r.clock.now())
	r.join(ctx, loadCtx, r.cfg.Crowd, float64(r.cfg.Crowd)/r.cfg.CrowdTime.Seconds(), ofCrowd)
	err := r.untilJoined(ctx, "flash crowd")
	r.phases.end(r.clock.now())
	if err != nil {
		return err
	}
	crowd.phase = phase
	return nil
}

// bundleFrom is the number of streams over which each of them is written once
// per video frame, as nearly half of the writes would be of audio.
const bundleFrom = 100

// publish begins all publishes.
func (r *run) publish(loadCtx context.Context) error {
	headers, err := headerTags(r.cfg.Form)
	if err != nil {
		return err
	}
	filler := newFiller()
	allowed := func(addr string) error {
		_, err := r.cfg.resolve(addr)
		return err
	}
	g, ctx := errgroup.WithContext(loadCtx)
	g.SetLimit(32)
	for i := range r.cfg.Streams {
		line := &timeline{every: r.cfg.Form.gopFrames()}
		p := &publisher{
			tls: r.cfg.TLS,
			url: r.t.publishURL(&r.cfg, i), id: r.id, stream: uint32(i), form: r.cfg.Form, sizes: r.cfg.Form.sizes(), clock: r.clock,
			filler: filler, headers: headers, allowed: allowed, line: line,
			bundled: r.cfg.Streams > bundleFrom,
		}
		r.lines = append(r.lines, line)
		r.publishers = append(r.publishers, p)
		g.Go(func() error { return p.connect(ctx) })
	}
	if err := g.Wait(); err != nil {
		for _, p := range r.publishers {
			if p.client != nil {
				p.client.Close()
			}
		}
		return err
	}
	r.send(loadCtx)
	return nil
}

// send has all publishers send. Their frames fall due evenly over the time of one: they
// know nothing of each other, as encoders do.
func (r *run) send(loadCtx context.Context) {
	begun := r.clock.now()
	pumped := make([][]*publisher, min(runtime.NumCPU(), 1+(len(r.publishers)-1)/pumpLoad))
	outlets := make([][]*rtmp.Outlet, len(pumped))
	for i, p := range r.publishers {
		p.begun = begun + time.Second/time.Duration(r.cfg.Form.FPS)*time.Duration(i)/time.Duration(len(r.publishers))
		if out := p.client.Outlet(); out != nil && len(r.publishers) >= pumpFrom {
			k := i % len(pumped)
			pumped[k] = append(pumped[k], p)
			outlets[k] = append(outlets[k], out)
			continue
		}
		r.running.Go(func() {
			if err := p.run(loadCtx); err != nil {
				p.failed.Store(&err)
			}
		})
	}
	for k := range pumped {
		if len(pumped[k]) > 0 {
			p := newPump(r.clock, pumped[k], outlets[k])
			r.running.Go(func() { p.run(loadCtx) })
		}
	}
}

func (r *run) startLoops(loadCtx context.Context) error {
	n := r.cfg.Loops
	if n == 0 {
		n = min(runtime.NumCPU(), 1+(r.cfg.Players+r.cfg.Crowd)/5000)
	}
	for range n {
		l, err := newLoop(r.addr, r.sources, r.clock)
		if err != nil {
			for _, l := range r.loops {
				l.close()
			}
			return err
		}
		r.loops = append(r.loops, l)
	}
	for _, l := range r.loops {
		r.running.Go(func() { l.run(loadCtx) })
	}
	return nil
}

// join adds n players at a rate, the probes evenly among those of the run.
func (r *run) join(ctx, loadCtx context.Context, n int, rate float64, kind playerKind) {
	const step = 10 * time.Millisecond
	begin := time.Now()
	ticker := time.NewTicker(step)
	defer ticker.Stop()
	for done := 0; ; {
		due := min(n, int(time.Since(begin).Seconds()*rate)+1)
		for ; done < due; done++ {
			r.joinOne(loadCtx, kind)
		}
		if done == n {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// isProbe spreads the probes over the players of the run.
func (r *run) isProbe(i int) bool {
	n, k := r.cfg.Players, min(r.cfg.Probes, r.cfg.Players)
	return i < n && (i+1)*k/n != i*k/n
}

func (r *run) joinOne(loadCtx context.Context, kind playerKind) {
	i := r.joined
	r.joined++
	stream := i % r.cfg.Streams
	if r.t.protocol == HLS {
		p := r.newHLSPlayer(stream, r.isProbe(i))
		r.hls = append(r.hls, p)
		r.running.Go(func() { p.run(loadCtx, &r.phases) })
		return
	}
	if kind == ofRun && r.isProbe(i) {
		p := &probe{id: r.id, stream: stream, clock: r.clock, open: func(ctx context.Context) (tagSource, error) {
			return r.open(ctx, stream, 0)
		}}
		r.probes = append(r.probes, p)
		r.running.Go(func() { p.run(loadCtx, &r.phases) })
		return
	}
	l := r.loops[i%len(r.loops)]
	p := &player{stream: stream, kind: kind}
	if r.t.protocol == RTMP || r.t.tls {
		l.hold(p, r.clock.now())
		r.running.Go(func() { r.joinAlone(loadCtx, l, p) })
		return
	}
	p.request = r.request(stream)
	p.join = &joiner{webSocket: r.t.protocol == WSFLV, run: r.id}
	l.add(p)
}

// request is what a player sends that plays a stream over HTTP.
func (r *run) request(stream int) []byte {
	return httpRequest(r.t.play.Host, r.t.playTarget(&r.cfg, stream, ".flv"), r.t.protocol == WSFLV)
}

// open plays a stream for a probe; rate is what it reads in bytes per second, 0
// is all.
func (r *run) open(ctx context.Context, stream, rate int) (tagSource, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		window := 0
		if rate > 0 {
			window = slowWindow
		}
		tcp, err := r.dial(ctx, window)
		if err != nil {
			return nil, err
		}
		if rate > 0 {
			return &rated{Conn: tcp, rate: rate}, nil
		}
		return &counted{Conn: tcp, n: &r.probeBytes}, nil
	}
	return r.openBy(ctx, stream, dial)
}

// openBy plays a stream on a connection that dial makes.
func (r *run) openBy(ctx context.Context, stream int, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (tagSource, error) {
	if r.t.protocol == RTMP {
		return openRTMP(ctx, r.t.rtmpURL(&r.cfg, stream), r.cfg.TLS, dial)
	}
	conn, err := dial(ctx, "", "")
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if r.t.tls {
		secure := tls.Client(conn, r.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, fmt.Errorf("TLS handshake: %w", err)
		}
		conn = secure
	}
	src, err := openFLV(conn, r.request(stream), r.t.protocol == WSFLV)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return src, nil
}

// counted counts what is read from a connection.
type counted struct {
	net.Conn
	n *atomic.Uint64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(uint64(n))
	return n, err
}

// count is what all players have got.
func (r *run) count() count {
	var c count
	for _, l := range r.loops {
		n := l.count()
		c.waiting += n.waiting
		c.playing += n.playing
		c.failed += n.failed
		c.closed += n.closed
		c.bytes += n.bytes
	}
	for _, p := range r.probes {
		c.add(p)
	}
	for _, p := range r.hls {
		c.add(&p.probe)
	}
	c.bytes += r.probeBytes.Load()
	return c
}

func (c *count) add(p *probe) {
	switch playing, ended := p.state(); {
	case ended != nil && playing:
		c.closed++
	case ended != nil:
		c.failed++
	case playing:
		c.playing++
	default:
		c.waiting++
	}
}

// untilJoined waits until nobody waits for a first key frame any more, but at
// most the join timeout.
func (r *run) untilJoined(ctx context.Context, step string) error {
	begin := time.Now()
	for time.Since(begin) < joinTimeout && r.count().waiting > 0 {
		if err := r.pause(ctx, step, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return r.failure()
}

// settle waits until all players are there and the server has calmed down.
func (r *run) settle(ctx context.Context, step string) error {
	if err := r.untilJoined(ctx, step); err != nil {
		return err
	}
	return r.pause(ctx, step, r.cfg.Settle)
}

// pause waits and shows progress meanwhile. It ends early with ctx or when a
// publisher fails.
func (r *run) pause(ctx context.Context, step string, d time.Duration) error {
	end := time.Now().Add(d)
	last := r.count()
	for {
		left := time.Until(end)
		if left <= 0 {
			return r.failure()
		}
		part := min(left, time.Second)
		timer := time.NewTimer(part)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		if err := r.failure(); err != nil {
			return err
		}
		if r.cfg.Progress != nil && part == time.Second {
			c := r.count()
			r.cfg.Progress(Progress{
				Step: step, Players: c.playing, Waiting: c.waiting, Failed: c.failed + c.closed,
				BitRate: float64(c.bytes-last.bytes) * 8,
			})
			last = c
		}
	}
}

// failure returns why a publisher has ended.
func (r *run) failure() error {
	for _, p := range r.publishers {
		if err := p.failed.Load(); err != nil {
			return *err
		}
	}
	return nil
}

// drainTime is how long the last frames may take to come through.
const drainTime = time.Second

// halt stops the frames and lets what was sent arrive.
func (r *run) halt(ctx context.Context) error {
	for _, p := range r.publishers {
		p.halted.Store(true)
	}
	return r.pause(ctx, "drain", drainTime)
}
