package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weir/internal/chaos/model"
	"weir/internal/chaos/wire"
	"weir/internal/media"
)

// Result is what became of a run.
type Result struct {
	Violations []model.Violation
	// Void is why the run proves nothing, or "".
	Void   string
	Counts model.Counts
}

// run is a run under way.
type run struct {
	// Static.
	cfg     Config
	id      uint32
	net     *wire.Net
	rec     *recorder
	cluster *cluster
	streams []string
	headers []media.Tag

	conns atomic.Int64
	incs  []atomic.Int64
}

func (r *run) nextConn() int          { return int(r.conns.Add(1)) }
func (r *run) nextInc(stream int) int { return int(r.incs[stream].Add(1)) }

// HistoryFile is the name of the history in Config.Dir.
const HistoryFile = "history.jsonl"

// Prefix is how the names of the namespaces of all runs begin.
const Prefix = "weir-chaos"

// Run does a run. An error says that it could not be done; what was found until
// then is returned too. Nothing is left of it but the files in Config.Dir, even
// when ctx ends it. It must run as root.
func Run(ctx context.Context, cfg Config) (result *Result, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.minimum()
	if _, err := wire.RemoveStale(Prefix); err != nil {
		return nil, err
	}
	headers, err := headerTags()
	if err != nil {
		return nil, err
	}
	file, err := os.Create(filepath.Join(cfg.Dir, HistoryFile))
	if err != nil {
		return nil, fmt.Errorf("create history: %w", err)
	}
	defer file.Close()
	r := &run{cfg: cfg, id: uint32(cfg.Seed)&0x7fffffff | 1, streams: cfg.streams(), headers: headers}
	r.incs = make([]atomic.Int64, len(r.streams))
	r.rec = newRecorder(file, func(v model.Violation) { fmt.Fprintf(cfg.Out, "chaos: BROKEN: %v\n", v) })
	r.rec.event(cfg.setup())
	if r.net, err = wire.New(wire.RunName(Prefix, cfg.Name), cfg.hosts(), cfg.Seed); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.net.Close()) }()
	if r.cluster, err = newCluster(&r.cfg, r.net, r.rec); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.cluster.kill()) }()
	err = r.all(ctx)
	err = errors.Join(err, r.rec.close())
	m := &r.rec.model
	r.explain()
	return &Result{Violations: m.Violations(), Void: m.Void(), Counts: m.Counts()}, err
}

// explain shows what happened before the first violations.
func (r *run) explain() {
	for _, v := range r.rec.found {
		fmt.Fprintf(r.cfg.Out, "chaos: before %v\n", v.Violation)
		for _, e := range v.before {
			fmt.Fprintf(r.cfg.Out, "chaos:     %v\n", e)
		}
	}
}

// brokenBefore is for how long after the first violation is noted what happens.
const brokenBefore = time.Second

// unbroken returns a context that ends soon after the first violation, unless
// the run is to go on.
func (r *run) unbroken(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if r.cfg.KeepGoing {
		return ctx, cancel
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-r.rec.broke:
			rest(ctx, brokenBefore)
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(); <-done }
}

// over reports whether a promise is broken and the run is to end with that.
func (r *run) over() bool {
	select {
	case <-r.rec.broke:
		return !r.cfg.KeepGoing
	default:
		return false
	}
}

// all is the whole of a run, in its order.
func (r *run) all(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if err := r.cluster.start(ctx); err != nil {
		return err
	}
	var background sync.WaitGroup
	defer background.Wait()
	defer stop()
	if err := r.watch(ctx, &background); err != nil {
		return err
	}

	r.say("load without faults, for what a node holds when it has gone")
	steady, done := r.unbroken(ctx)
	defer done()
	r.load(ctx, 0, func(context.Context) error {
		rest(steady, warmUp)
		r.calm(steady)
		return nil
	})
	if r.over() {
		return nil
	}
	before, err := r.cluster.awaitLeast(ctx, nil, r.cfg.Bounds, leastTime)
	if err != nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}

	r.say("faults for %v", r.cfg.Faulty)
	err = r.load(ctx, 1, func(context.Context) error { return r.storm(steady) })
	if err != nil || ctx.Err() != nil || r.over() {
		return errors.Join(err, ctx.Err())
	}

	r.say("what is left of the load")
	after, err := r.cluster.awaitLeast(ctx, before, r.cfg.Bounds, leftTime)
	if err != nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		for _, what := range slices.Sorted(maps.Keys(after[name])) {
			r.rec.event(model.Event{Kind: model.KindLeft, Node: r.nodeOf(name), Text: name, Left: &model.Left{
				What: what, Before: before[name][what], After: after[name][what],
			}})
		}
	}
	stop()
	background.Wait()
	if err := r.cluster.stop(); err != nil {
		r.rec.event(model.Event{Kind: model.KindDeaf, Node: nodeDiscovery, Text: err.Error()})
		return err
	}
	return nil
}

// Times of the parts of a run.
const (
	warmUp    = 4 * time.Second
	leastTime = 10 * time.Second // until a node holds no more than it does without load
	leftTime  = 30 * time.Second
	calmTime  = 2 * time.Second
	settling  = 3500 * time.Millisecond // beside the time that the longest fault took
)

func (r *run) say(format string, args ...any) {
	fmt.Fprintf(r.cfg.Out, "chaos: %7.3f s: %s\n", float64(r.rec.ms())/1000, fmt.Sprintf(format, args...))
}

// nodeOf returns the node of a process.
func (r *run) nodeOf(process string) string {
	for _, n := range r.cluster.nodes {
		if len(process) >= len(n.name) && process[:len(n.name)] == n.name {
			return n.name
		}
	}
	return process
}

// watch begins what goes on beside the load until ctx ends.
func (r *run) watch(ctx context.Context, background *sync.WaitGroup) error {
	known, peers := map[string]bool{}, map[string]string{}
	for _, name := range r.streams {
		known[name] = true
	}
	for _, e := range r.cfg.edges() {
		peers[r.cluster.addr(e)] = e
	}
	for _, n := range r.cluster.nodes {
		p := &poller{node: n, known: known, peers: peers}
		background.Go(func() { p.run(ctx) })
	}
	a, b := r.net.Host(hostLiarA), r.net.Host(hostLiarB)
	for _, pair := range [][2]*wire.Host{{a, b}, {b, a}} {
		l, err := newLiar(pair[0], pair[1], r.rec, peers)
		if err != nil {
			return err
		}
		background.Go(func() { l.run(ctx) })
	}
	lies := []lie{
		{Stream: "__defaultVhost__/" + app + "/" + streamCircle, Node: hostLiarA, Instance: "liar", RTMP: a.Addr.String() + ":1935"},
		{Stream: "__defaultVhost__/" + app + "/" + streamSelf, Node: "liar-self", Instance: "liar", RTMP: r.cluster.door(r.cfg.edges()[0]).rtmp},
	}
	background.Go(func() { claims(ctx, a, "http://"+r.cluster.addr(nodeDiscovery)+":7070", lies) })
	background.Go(func() { r.lag(ctx) })
	return nil
}

// Lags of the checker itself: how often it looks, and what counts.
const (
	lagEvery = 100 * time.Millisecond
	lagLimit = 700 * time.Millisecond
)

// lag notes when the checker itself did not get to run.
func (r *run) lag(ctx context.Context) {
	last := time.Now()
	for ctx.Err() == nil {
		rest(ctx, lagEvery)
		now := time.Now()
		if d := now.Sub(last); d > lagLimit {
			r.rec.event(model.Event{Kind: model.KindLag, Count: int(d.Milliseconds())})
		}
		last = now
	}
}

// load publishes and plays as long as f runs. part is a number for the draws of
// the clients.
func (r *run) load(ctx context.Context, part uint64, f func(context.Context) error) error {
	ctx, stop := context.WithCancel(ctx)
	var clients sync.WaitGroup
	defer clients.Wait()
	defer stop()
	draws := func(kind uint64, i int) *rand.Rand {
		return rand.New(rand.NewPCG(r.cfg.Seed, part<<40|kind<<32|uint64(i)))
	}
	var origins, edges []nodeAddr
	for _, name := range r.cfg.origins() {
		origins = append(origins, r.cluster.door(name))
	}
	for _, name := range r.cfg.edges() {
		edges = append(edges, r.cluster.door(name))
	}
	for i, name := range r.streams {
		for n := range 1 + btoi(r.cfg.contested(i)) {
			p := &publisher{r: r, stream: i, name: name, contested: r.cfg.contested(i), rand: draws(1+uint64(n), i), headers: r.headers}
			doors := origins
			if !p.contested { // the others' addresses tell which epoch is whose: they go to origins
				doors = slices.Concat(origins, edges)
			}
			for _, d := range doors {
				p.places = append(p.places, place{d.node, d.rtmp})
			}
			p.rand.Shuffle(len(p.places), func(i, j int) { p.places[i], p.places[j] = p.places[j], p.places[i] })
			clients.Go(func() { p.run(ctx) })
		}
	}
	for i := range r.cfg.Players {
		p := &player{r: r, rand: draws(3, i), faithful: i%2 == 0, edges: edges, origins: origins}
		clients.Go(func() { p.run(ctx) })
	}
	return f(ctx)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// storm has rounds of faults with a calm behind each, until the time is over or
// a promise is broken.
func (r *run) storm(ctx context.Context) error {
	rest(ctx, warmUp)
	planner := newPlanner(&r.cfg)
	end := time.Now().Add(r.cfg.Faulty)
	for id := 1; time.Now().Before(end) && ctx.Err() == nil; {
		faults := planner.round()
		var longest time.Duration
		var injecting sync.WaitGroup
		errs := make([]error, len(faults))
		for i, f := range faults {
			longest = max(longest, f.hold)
			injecting.Go(func() { errs[i] = r.inject(ctx, id+i, f) })
		}
		id += len(faults)
		injecting.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		rest(ctx, longest+settling)
		r.calm(ctx)
	}
	return nil
}

// calm is a time in which nothing is done to the cluster, and all is expected of
// it. If ctx ends it, it was none.
func (r *run) calm(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	r.rec.event(model.Event{Kind: model.KindCalm})
	if rest(ctx, calmTime); ctx.Err() == nil {
		r.rec.event(model.Event{Kind: model.KindStorm})
	}
}
