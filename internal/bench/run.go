package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
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
	cfg     Config
	t       targets
	addr    netip.AddrPort // where players connect
	sources []netip.Addr
	clock   clock
	id      uint32 // of this run, in its marks
	lines   []*timeline
	loops   []*loop
	server  processes

	publishers []*publisher
	running    sync.WaitGroup // publishers, loops, probes
	phase      phase
	probeBytes atomic.Uint64

	// Owned by the goroutine of Run.
	probes []*probe
	joined int // light players and probes so far
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
	if err := r.raiseLimit(); err != nil {
		return nil, err
	}
	r.sources = sourcesFor(r.addr)

	// Load threads that never block the scheduler, and all else beside them.
	old := runtime.GOMAXPROCS(2*runtime.NumCPU() + 2)
	defer runtime.GOMAXPROCS(old)

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

// raiseLimit makes room for all connections.
func (r *run) raiseLimit() error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("read limit of open files: %w", err)
	}
	if l.Cur < l.Max {
		l.Cur = l.Max
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
			return fmt.Errorf("raise limit of open files: %w", err)
		}
	}
	c := r.cfg
	need := uint64(c.Players + c.Slow + c.Stalled + c.Crowd + c.Streams + spareFiles)
	if need > l.Cur {
		return fmt.Errorf("%w: %d connections need %d open files, and this process may have %d; raise the hard limit (ulimit -Hn) or share the players out to several runs",
			ErrUsage, need-spareFiles, need, l.Cur)
	}
	return nil
}

// measure is a run from the first publisher to the last player.
func (r *run) measure(ctx, loadCtx context.Context) error {
	begun := r.clock.now()
	rss0 := r.server.rss()
	if err := r.publish(loadCtx); err != nil {
		return err
	}
	if err := r.startLoops(loadCtx); err != nil {
		return err
	}

	// The first hundred carry what a stream and a pull cost.
	first := min(r.cfg.Players, 100)
	r.join(ctx, loadCtx, first, r.cfg.Ramp)
	if err := r.settle(ctx, "join"); err != nil {
		return err
	}
	rss100 := r.server.rss()
	r.join(ctx, loadCtx, r.cfg.Players-first, r.cfg.Ramp)
	if err := r.settle(ctx, "settle"); err != nil {
		return err
	}
	if err := r.window(ctx); err != nil {
		return err
	}
	r.report.Memory = memoryReport{Before: rss0, First: rss100, FirstPlayers: first, After: r.report.Memory.After}.perPlayer(r.cfg.Players, len(r.server) > 0)
	r.halt(ctx)
	r.summarize()
	r.report.Machine = ThisMachine()
	r.report.Elapsed = (r.clock.now() - begun).Seconds()
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
	clients := make([]*rtmp.Client, r.cfg.Streams)
	g, ctx := errgroup.WithContext(loadCtx)
	g.SetLimit(32)
	for i := range r.cfg.Streams {
		line := &timeline{every: r.cfg.Form.gopFrames()}
		p := &publisher{
			url: r.t.publishURL(&r.cfg, i), id: r.id, stream: uint32(i), form: r.cfg.Form, sizes: r.cfg.Form.sizes(), clock: r.clock,
			filler: filler, headers: headers, allowed: allowed, line: line,
			bundled: r.cfg.Streams > bundleFrom,
		}
		r.lines = append(r.lines, line)
		r.publishers = append(r.publishers, p)
		g.Go(func() (err error) {
			clients[i], err = p.connect(ctx)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		for _, c := range clients {
			if c != nil {
				c.Close()
			}
		}
		return err
	}
	for i, p := range r.publishers {
		r.running.Go(func() {
			if err := p.run(loadCtx, clients[i]); err != nil {
				p.failed.Store(&err)
			}
		})
	}
	return nil
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

// join adds n players at a rate, probes evenly among them.
func (r *run) join(ctx, loadCtx context.Context, n int, rate float64) {
	const step = 10 * time.Millisecond
	begin := time.Now()
	ticker := time.NewTicker(step)
	defer ticker.Stop()
	for done := 0; done < n; {
		due := min(n, int(time.Since(begin).Seconds()*rate)+1)
		for ; done < due; done++ {
			r.joinOne(loadCtx, false)
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

// isProbe spreads the probes over the players.
func (r *run) isProbe(i int) bool {
	n, k := r.cfg.Players, min(r.cfg.Probes, r.cfg.Players)
	return i < n && (i+1)*k/n != i*k/n
}

func (r *run) joinOne(loadCtx context.Context, crowd bool) {
	i := r.joined
	r.joined++
	stream := i % r.cfg.Streams
	if !crowd && r.isProbe(i) {
		p := &probe{id: r.id, stream: stream, clock: r.clock, open: func(ctx context.Context) (tagSource, error) { return r.open(ctx, stream, 0) }}
		r.probes = append(r.probes, p)
		r.running.Go(func() { p.run(loadCtx, &r.phase) })
		return
	}
	ws := r.t.protocol == WSFLV
	r.loops[i%len(r.loops)].add(&player{
		stream: stream, crowd: crowd, join: &joiner{webSocket: ws, run: r.id},
		request: httpRequest(r.t.play.Host, r.t.playTarget(&r.cfg, stream, ".flv"), ws),
	})
}

// open plays a stream for a probe; rate is in bytes per second, 0 without bound.
func (r *run) open(ctx context.Context, stream, rate int) (tagSource, error) {
	conn, err := r.dial(ctx, rate)
	if err != nil {
		return nil, err
	}
	src, err := openFLV(conn, httpRequest(r.t.play.Host, r.t.playTarget(&r.cfg, stream, ".flv"), r.t.protocol == WSFLV), r.t.protocol == WSFLV)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return src, nil
}

func (r *run) dial(ctx context.Context, rate int) (net.Conn, error) {
	d := net.Dialer{Timeout: joinTimeout}
	conn, err := d.DialContext(ctx, "tcp", r.addr.String())
	if err != nil {
		return nil, err
	}
	conn = &counted{Conn: conn, n: &r.probeBytes}
	if rate > 0 {
		conn = &rated{Conn: conn, rate: rate}
	}
	return conn, nil
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
		s := p.snapshot()
		switch {
		case s.ended != nil && s.playing:
			c.closed++
		case s.ended != nil:
			c.failed++
		case s.playing:
			c.playing++
		default:
			c.waiting++
		}
	}
	c.bytes += r.probeBytes.Load()
	return c
}

// settle waits until nobody waits for a first key frame any more, but at most
// the join timeout, and then the settling time.
func (r *run) settle(ctx context.Context, step string) error {
	begin := time.Now()
	for time.Since(begin) < joinTimeout && r.count().waiting > 0 {
		if err := r.pause(ctx, step, 100*time.Millisecond); err != nil {
			return err
		}
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

// window measures the server's cost.
func (r *run) window(ctx context.Context) error {
	from := r.clock.now()
	r.phase.set(func(p *phase) { p.window = span{from: from} })
	cpu0, self0, idle0, c0 := r.server.cpu(), selfCPU(), idle(), r.count()
	lines0 := r.published()
	err := r.pause(ctx, "measure", r.cfg.Duration)
	to := r.clock.now()
	r.phase.set(func(p *phase) { p.window.to = to })
	cpu1, self1, idle1, c1 := r.server.cpu(), selfCPU(), idle(), r.count()
	if err != nil {
		return err
	}
	if len(cpu1.gone) > 0 {
		return fmt.Errorf("measure server: processes %v have ended", cpu1.gone)
	}
	seconds := (to - from).Seconds()
	got := c1.bytes - c0.bytes
	w := &r.report.Window
	w.Seconds = seconds
	w.Bytes = got
	w.PublishedBytes = r.published() - lines0
	w.BitRate = float64(got) * 8 / seconds
	w.LoadCPU = (self1 - self0).Seconds()
	w.IdleCores = (idle1 - idle0).Seconds() / seconds
	if len(r.server) > 0 {
		w.UserCPU = (cpu1.user - cpu0.user).Seconds()
		w.SystemCPU = (cpu1.system - cpu0.system).Seconds()
		w.CPU = (cpu1.total() - cpu0.total()).Seconds()
		if got > 0 {
			w.CPUPerGB = w.CPU / (float64(got) / 1e9)
		}
		r.report.Memory.After = r.server.rss()
	}
	return nil
}

func (r *run) published() uint64 {
	var n uint64
	for _, l := range r.lines {
		n += l.end().flv
	}
	return n
}

// selfCPU is the processor time of this process.
func selfCPU() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// drainTime is how long the last frames may take to come through.
const drainTime = time.Second

// halt stops the frames and lets what was sent arrive.
func (r *run) halt(ctx context.Context) {
	for _, p := range r.publishers {
		p.halted.Store(true)
	}
	_ = r.pause(ctx, "drain", drainTime)
}

// summarize judges what all players got.
func (r *run) summarize() {
	rep := &r.report
	rep.Protocol, rep.Streams, rep.Players = r.t.protocol, r.cfg.Streams, r.cfg.Players
	rep.Form = r.cfg.Form
	ends := make([]position, len(r.lines))
	for i, l := range r.lines {
		ends[i] = l.end()
		rep.PublishLateMS = max(rep.PublishLateMS, millis(l.late))
	}
	var shares []float64
	var joins histogram
	reasons := map[string]int{}
	for _, l := range r.loops {
		l.each(func(p *player) {
			switch p.state {
			case playerFailed:
				rep.Failed++
			case playerClosed:
				rep.Closed++
			}
			if p.err != nil {
				reasons[p.err.Error()]++
			}
			if p.firstKF == 0 || p.crowd {
				return
			}
			joins.add(p.firstKF)
			if p.headers != hasAllHeaders {
				rep.HeadersMissing++
			}
			at, ok := r.lines[p.stream].behindKey(p.from)
			if !ok || !p.marked {
				rep.Unmarked++
				return
			}
			if due := ends[p.stream].flv - at.flv; due > 0 {
				shares = append(shares, float64(p.counted)/float64(due))
			}
		})
	}
	rep.Light = sharesOf(shares)
	r.summarizeProbes(ends, reasons, &joins)
	rep.FirstKeyFrame = joins.delays()
	rep.Errors = reasons
}

func (r *run) summarizeProbes(ends []position, reasons map[string]int, joins *histogram) {
	rep := &r.report
	var delays histogram
	var shares []float64
	for _, p := range r.probes {
		s := p.snapshot()
		if s.ended != nil {
			reasons[s.ended.Error()]++
			if s.playing {
				rep.Closed++
			} else {
				rep.Failed++
			}
		}
		rep.Probes.Count++
		rep.Probes.Frames += s.frames
		rep.Probes.Gaps += s.gaps
		rep.Probes.LostFrames += s.lost
		rep.Probes.Torn += s.torn
		rep.Probes.Disorder += s.disorder
		rep.Probes.Foreign += s.foreign
		if !s.playing {
			continue
		}
		joins.add(s.firstKF)
		if s.headers != hasAllHeaders {
			rep.HeadersMissing++
		}
		delays.merge(&s.delays)
		if at, ok := r.lines[p.stream].behindKey(s.from); ok {
			if due := ends[p.stream].flv - at.flv; due > 0 {
				shares = append(shares, float64(s.bytes)/float64(due))
			}
		}
	}
	rep.Probes.Delay = delays.delays()
	rep.Probes.Share = sharesOf(shares)
}

// sharesOf sorts and sums up shares.
func sharesOf(s []float64) Shares {
	if len(s) == 0 {
		return Shares{}
	}
	slices.Sort(s)
	r := Shares{Count: len(s), Min: s[0], P1: s[len(s)/100]}
	for _, v := range s {
		r.Mean += v / float64(len(s))
		if v < enough {
			r.Slow++
		}
	}
	return r
}
