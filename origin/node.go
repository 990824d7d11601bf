package origin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"

	"weir/discovery"
	"weir/internal/admin"
	"weir/internal/admission"
	"weir/internal/drain"
	"weir/internal/load"
	"weir/internal/node"
	"weir/internal/reload"
	"weir/internal/session"
	"weir/internal/upgrade"
)

// NodeOptions are what Run needs beyond the configuration.
type NodeOptions struct {
	Version string
	// Etcd opens the directory if it is in etcd; may be nil where it is not.
	Etcd discovery.EtcdOpener
	Log  *slog.Logger
	// Ready, if not nil, is called once the node serves.
	Ready func()
	// Terminate, if not nil, makes the node drain when it is closed, and end when
	// its sessions have.
	Terminate <-chan struct{}
	// File is the configuration file as it was read. Read reads it again, for a
	// reload, which Reload asks for. All may be nil.
	File   []byte
	Read   func() (file []byte, name string, err error)
	Reload <-chan struct{}
	// Upgrade asks for another program in this one's place, which is refused.
	Upgrade <-chan struct{}
}

// Run runs an origin until ctx ends, which ends all sessions at once, or it has
// drained after Terminate, or it cannot go on.
func Run(ctx context.Context, cfg Config, opt NodeOptions) error {
	log, set := opt.Log, metrics.NewSet()
	rtmp, err := node.Listen(ctx, "rtmp.listen", cfg.RTMP.Listen)
	if err != nil {
		return err
	}
	defer rtmp.Close()
	http, err := node.Listen(ctx, "http.listen", cfg.HTTP.Listen)
	if err != nil {
		return err
	}
	defer http.Close()
	addresses := map[string]string{"rtmp": rtmp.Addr().String(), "http": http.Addr().String()}
	var rtmps, https net.Listener
	if cfg.RTMP.TLS.Enabled() {
		if rtmps, err = node.Listen(ctx, "rtmp.tls.listen", cfg.RTMP.TLS.Listen); err != nil {
			return err
		}
		defer rtmps.Close()
		addresses["rtmps"] = rtmps.Addr().String()
	}
	if cfg.HTTP.TLS.Enabled() {
		if https, err = node.Listen(ctx, "http.tls.listen", cfg.HTTP.TLS.Listen); err != nil {
			return err
		}
		defer https.Close()
		addresses["https"] = https.Addr().String()
	}
	addr := cfg.Advertise.Or(rtmp.Addr(), http.Addr())
	self := discovery.Self{
		Node: cfg.Node.Name("origin"), Instance: discovery.NewInstance(),
		Addr: discovery.Addr{RTMP: addr.RTMP, HTTP: addr.HTTP, API: addr.API},
	}
	directory, err := cfg.Discovery.Open(self, opt.Etcd, log, set)
	if err != nil {
		return fmt.Errorf("open discovery: %w", err)
	}
	defer directory.Close()

	o := New(cfg, log, set)
	defer o.Close()
	o.SetDirectory(directory)
	var drained *drain.Node
	var meter *load.Node
	now := func() discovery.Node {
		state := discovery.StateUp
		if drained.Draining() {
			state = discovery.StateDraining
		}
		return discovery.Node{
			ID: self.Node, Instance: self.Instance, Role: discovery.RoleOrigin, Addr: self.Addr, State: state, Version: opt.Version,
			Load: meter.Heartbeat(), Labels: cfg.Node.AllLabels(),
		}
	}
	delays := &load.Delays{}
	status := func() load.Status { return meter.Status() }
	placer, _ := directory.(admission.Placer) // nil if it does not choose nodes
	gate := admission.NewGate(admission.GateOptions{
		Config: cfg.Admission, Status: status, KeepNodes: true, Returns: o.Returns, Set: set,
		Node: self.Node, Placer: placer, Secret: string(cfg.Discovery.Token),
	})
	door := session.New(session.Options{
		Config: cfg.Play, RTMP: cfg.RTMP.ServerConfig, Vhosts: o.Vhosts(), Role: o, Delays: delays, Log: log, Set: set,
		Admit: func(ctx context.Context, n session.Newcomer) error {
			if drained.Draining() {
				return o.TurnAway(ctx, n)
			}
			return gate.Admit(ctx, n)
		},
		NodesStay: true,
	})
	measured, err := load.NewProcess(load.ProcessOptions{
		Config: cfg.Load, Worker: -1, Delays: delays, Sessions: door.Census, Log: log,
	})
	if err != nil {
		return err
	}
	meter = load.NewNode(load.NodeOptions{Config: cfg.Load, Process: measured, Log: log, Set: set})
	holder := discovery.NewHolder(directory, discovery.HolderConfig{
		Config: cfg.Discovery, Self: self, OnLost: o.Lost, OnKicked: o.Kicked, Dial: new(net.Dialer).DialContext, Logger: log, Metrics: set,
		Node: now, Now: meter.Jumps(),
	})
	o.SetOwner(holder)
	process := drain.NewProcess(Drainable{door, o}, log, set)
	drained = drain.NewNode(drain.Options{
		Config: cfg.Drain, Log: log, Set: set,
		Apply: func(_ context.Context, o *drain.Order) (drain.Progress, error) { return process.Apply(o), nil },
		Announce: func(ctx context.Context) {
			_ = directory.Heartbeat(ctx, now()) // the next one tells of a failure
		},
	})

	ctx, finish := context.WithCancel(ctx)
	defer finish()
	g, ctx := errgroup.WithContext(ctx)
	var adminListener net.Listener
	if cfg.Admin.Listen != "" {
		if adminListener, err = node.Listen(ctx, "admin.listen", cfg.Admin.Listen); err != nil {
			return err
		}
		addresses["admin"] = adminListener.Addr().String()
	}
	open, err := session.Door{
		Sessions: door, RTMP: rtmp, HTTP: http, RTMPS: rtmps, HTTPS: https,
		RTMPConfig: cfg.RTMP, HTTPConfig: cfg.HTTP, Limits: cfg.Limits, Log: log, Set: set,
		Other:     func(r *fasthttp.RequestCtx) bool { return answerClusters(ctx, r, holder.Own) },
		OtherPost: []string{discovery.ClustersPath}, // as SRS asks
	}.Open(ctx, g)
	if err != nil {
		finish()
		return errors.Join(err, g.Wait())
	}
	change := &reloader{running: cfg, origin: o, door: door, open: open, drained: drained}
	reloads := reload.New(reload.Options{File: opt.File, Read: opt.Read, Apply: change.apply, Log: log, Set: set})
	g.Go(func() error { return reloads.Serve(ctx, opt.Reload) })
	upgrades := upgrade.New(upgrade.Options{Version: opt.Version, Refused: errOneProcess, Log: log, Set: set})
	g.Go(func() error { return upgrades.Serve(ctx, opt.Upgrade) })
	if l := adminListener; l != nil {
		server := admin.New(admin.Options{
			Config: cfg.Admin,
			Node: admin.NodeInfo{
				ID: self.Node, Role: "origin", Version: opt.Version, Started: time.Now(),
				Addresses: addresses,
				Labels:    cfg.Node.AllLabels(),
			},
			Load: meter.Load,
			Source: admin.Source{
				Metrics:  []*metrics.Set{set},
				Streams:  func() []admin.StreamInfo { return o.Streams(door.Players) },
				Sessions: door.Sessions,
				Kick:     door.Kick,
				Move:     o.Move,
			},
			Checks: []admin.Check{{Name: "discovery", Func: func(context.Context) error { return holder.Err() }}},
			Drain:  drained,
			Reload: reloads, Upgrade: upgrades, Kicker: holder,
			Log: log,
		})
		g.Go(func() error { return server.Serve(ctx, l) })
	}
	g.Go(func() error { return meter.Run(ctx) })
	shedder := admission.NewShedder(cfg.Admission, status, door, log, set)
	g.Go(func() error { return shedder.Run(ctx) })
	g.Go(func() error { return o.Offload(ctx, status) })
	g.Go(func() error { return process.Run(ctx) })
	g.Go(func() error { return drained.Run(ctx) })
	g.Go(func() error { return drained.EndAfter(ctx, opt.Terminate, finish) })
	g.Go(func() error { return holder.Run(ctx) })
	said := []any{"advertised_rtmp", addr.RTMP, "advertised_http", addr.HTTP}
	for _, name := range slices.Sorted(maps.Keys(addresses)) {
		said = append(said, name, addresses[name])
	}
	log.Info("origin listens", said...)
	if opt.Ready != nil {
		opt.Ready()
	}
	return g.Wait()
}

// errOneProcess refuses an upgrade.
var errOneProcess = errors.New("an origin is one process with the connections of its publishers: drain it, which carries them over to other origins, and start it again")

// answerClusters answers the question of SRS nodes and peers for the owner of a
// stream. Only streams of this node count: origins that asked each other on
// behalf of each other would never end.
func answerClusters(ctx context.Context, r *fasthttp.RequestCtx, own discovery.LookupFunc) bool {
	if string(r.Path()) != discovery.ClustersPath {
		return false
	}
	status, body := discovery.AnswerClusters(ctx, string(r.URI().QueryString()), own)
	r.SetStatusCode(status)
	r.SetContentType("application/json")
	r.SetBody(body)
	return true
}
