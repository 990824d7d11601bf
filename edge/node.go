package edge

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"golang.org/x/sync/errgroup"

	"weir/discovery"
	"weir/internal/admin"
	"weir/internal/drain"
	"weir/internal/load"
	"weir/internal/reload"
	"weir/internal/upgrade"
	"weir/internal/worker"
)

// spec is the name of the workers among the supervisor's processes.
const spec = "edge"

// NodeOptions are what a Node needs beyond its configuration.
type NodeOptions struct {
	// File is the configuration file as it was read: the workers parse it anew.
	File []byte
	// WorkerArgs are the arguments that make this binary a worker (RunWorker).
	WorkerArgs []string
	// WorkerEnv is added to the environment of the workers.
	WorkerEnv []string
	Version   string
	// Etcd opens the directory if it is in etcd; may be nil where it is not.
	Etcd discovery.EtcdOpener
	Log  *slog.Logger
	// Ready, if not nil, is called once all workers serve.
	Ready func()
	// Terminate, if not nil, makes the node drain when it is closed, and end when
	// its sessions have.
	Terminate <-chan struct{}
	// Read reads the configuration file again, for a reload, which Reload asks for.
	// Both may be nil.
	Read   func() (file []byte, name string, err error)
	Reload <-chan struct{}
	// Upgrade asks for another program in this one's place: that at the path which
	// Program returns. From is what the program before has left, if there was one. All
	// may be nil: without Program the node refuses.
	Upgrade <-chan struct{}
	Program func() (path string, err error)
	From    *worker.Takeover
}

// Run runs an edge node: it supervises the workers, answers the admin interface
// for all of them, and tells discovery that the node is there. It blocks until
// ctx ends, which ends all sessions at once, or the node has drained after
// Terminate, or it cannot go on.
func Run(ctx context.Context, cfg Config, o NodeOptions) error {
	set := metrics.NewSet()
	count := cfg.Workers
	if count == 0 {
		count = runtime.GOMAXPROCS(0)
	}
	if n := o.From.Count(spec); n > 0 {
		count = n
	}
	shareCores(runtime.GOMAXPROCS(0)) // the supervisor has hardly anything to do
	before, err := inheritance(o.From)
	if err != nil {
		return err
	}
	s, err := worker.Open(ctx, worker.Options{
		Config: cfg.Supervision, Log: o.Log, Metrics: set,
		Specs: []worker.Spec{{
			Name: spec, Count: count, Args: o.WorkerArgs, Env: o.WorkerEnv, Config: o.File,
			Listen:    listens(cfg),
			RollGrace: rollGrace(cfg),
		}},
		From: o.From,
	})
	if err != nil {
		return err
	}
	defer s.Close()
	rtmp, http := s.Addr(spec, listenRTMP), s.Addr(spec, listenHTTP)
	addresses := map[string]string{}
	said := []any{"workers", count}
	for _, a := range listens(cfg) {
		addresses[a.Name] = s.Addr(spec, a.Name).String()
		said = append(said, a.Name, addresses[a.Name])
	}
	o.Log.Info("edge listens", said...)

	directory, err := openDirectory(cfg, rtmp, http, o.Etcd, o.Log, set)
	if err != nil {
		return err
	}
	if directory != nil {
		defer directory.Close()
	}
	var adminListener net.Listener
	if cfg.Admin.Listen != "" {
		if adminListener, err = before.listenAdmin(ctx, cfg.Admin.Listen); err != nil {
			return err
		}
	}

	ctx, finish := context.WithCancel(ctx)
	defer finish()
	g, ctx := errgroup.WithContext(ctx)
	dial := func(ctx context.Context, i int) (net.Conn, error) { return s.DialWorker(ctx, spec, i) }
	workers := func() []admin.WorkerInfo { return workerInfos(append(s.States(), s.Retiring()...)) }
	process, err := load.NewProcess(load.ProcessOptions{Config: cfg.Load, Worker: -1, Log: o.Log})
	if err != nil {
		return err
	}
	meter := load.NewNode(load.NodeOptions{
		Config: cfg.Load, Process: process, Workers: admin.WorkerLoads(workers, dial), Count: count, Log: o.Log, Set: set,
	})
	me := self(cfg, rtmp, http)
	if before.Instance != "" {
		me.Instance = before.Instance
	}
	var drained *drain.Node
	now := func() discovery.Node {
		state := discovery.StateStarting
		switch {
		case drained.Draining():
			state = discovery.StateDraining
		case s.CheckReady(ctx) == nil, s.Rolling():
			state = discovery.StateUp
		}
		return discovery.Node{
			ID: me.Node, Instance: me.Instance, Role: discovery.RoleEdge, Addr: me.Addr,
			State: state, Version: o.Version, Load: meter.Heartbeat(), Labels: cfg.Node.AllLabels(),
		}
	}
	drained = drain.NewNode(drain.Options{
		Config: cfg.Drain, Apply: admin.DrainWorkers(workers, dial), Log: o.Log, Set: set,
		Announce: func(ctx context.Context) {
			if directory != nil {
				_ = directory.Heartbeat(ctx, now()) // the next one tells of a failure
			}
		},
	})
	change := &reloader{
		running: cfg, file: o.File, supervisor: s, configure: admin.ConfigureWorkers(workers, dial), drained: drained, log: o.Log,
	}
	upgrades := upgrade.New(upgrade.Options{
		Version: o.Version, Last: before.Upgrade, Log: o.Log, Set: set, Refused: noUpgrade(o.Program),
		Do: (&upgrader{reloader: change, program: o.Program, instance: me.Instance, admin: adminListener}).do,
	})
	g.Go(func() error { return upgrades.Serve(ctx, o.Upgrade) })
	reloads := reload.New(reload.Options{File: o.File, Read: o.Read, Apply: change.apply, Log: o.Log, Set: set})
	g.Go(func() error { return reloads.Serve(ctx, o.Reload) })
	g.Go(func() error { return drained.Run(ctx) })
	g.Go(func() error { return drained.EndAfter(ctx, o.Terminate, finish) })
	if adminListener != nil {
		addresses["admin"] = adminListener.Addr().String()
		server := admin.New(admin.Options{
			Config: cfg.Admin,
			Node: admin.NodeInfo{
				ID: cfg.Node.Name("edge"), Role: "edge", Version: o.Version, Started: time.Now(),
				Addresses: addresses,
				Labels:    cfg.Node.AllLabels(),
			},
			Load:    meter.Load,
			Source:  admin.Source{Metrics: []*metrics.Set{set}},
			Checks:  []admin.Check{{Name: "workers", Func: s.CheckReady}},
			Workers: workers, DialWorker: dial, Drain: drained, Reload: reloads, Upgrade: upgrades, Kicker: kicker(directory),
			Log: o.Log,
		})
		g.Go(func() error { return server.Serve(ctx, adminListener) })
	}
	if directory != nil {
		g.Go(func() error {
			if o.From != nil { // not to count as full for a moment
				awaitLoad(ctx, meter)
			}
			return discovery.Announce(ctx, directory, cfg.Discovery.Heartbeat, meter.Jumps(), now, o.Log)
		})
	}
	g.Go(func() error { return meter.Run(ctx) })
	g.Go(func() error {
		if err := s.Run(ctx); err != nil {
			return fmt.Errorf("run workers: %w", err)
		}
		return nil
	})
	if o.Ready != nil {
		g.Go(func() error {
			select {
			case <-s.Ready():
				o.Ready()
			case <-ctx.Done():
			}
			return nil
		})
	}
	return g.Wait()
}

// kicker returns a directory as one that can end publishers, nil if it cannot.
func kicker(d discovery.Remote) discovery.Kicker {
	k, _ := d.(discovery.Kicker)
	return k
}

// listens are the addresses on which each worker listens.
func listens(cfg Config) []worker.Address {
	all := []worker.Address{
		{Name: listenRTMP, Key: "rtmp.listen", Address: cfg.RTMP.Listen},
		{Name: listenHTTP, Key: "http.listen", Address: cfg.HTTP.Listen},
	}
	if cfg.RTMP.TLS.Enabled() {
		all = append(all, worker.Address{Name: listenRTMPS, Key: "rtmp.tls.listen", Address: cfg.RTMP.TLS.Listen})
	}
	if cfg.HTTP.TLS.Enabled() {
		all = append(all, worker.Address{Name: listenHTTPS, Key: "http.tls.listen", Address: cfg.HTTP.TLS.Listen})
	}
	return all
}

// rollGrace is how long a worker that retires is waited for: it ends by itself at
// the end of its own time.
func rollGrace(cfg Config) time.Duration {
	if cfg.Supervision.RollGrace == 0 {
		return 0
	}
	return max(cfg.Supervision.RollGrace, cfg.Supervision.PublisherGrace) + tellWithin + 3*emptyEvery
}

func workerInfos(states []worker.State) []admin.WorkerInfo {
	infos := make([]admin.WorkerInfo, len(states))
	for i, s := range states {
		infos[i] = admin.WorkerInfo{
			Index: s.Index, Sibling: s.Sibling, State: string(s.Phase), PID: s.PID, Restarts: s.Restarts, StartedAt: s.StartedAt, LastExit: s.LastExit,
		}
	}
	return infos
}
