package discoverynode

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"golang.org/x/sync/errgroup"

	"weir/discovery"
	"weir/discovery/autoscale"
	"weir/internal/admin"
	"weir/internal/node"
)

// Options are what Run needs beyond the configuration.
type Options struct {
	// Listener is where the directory is served instead of cfg.Listen, if not
	// nil. Run owns it.
	Listener net.Listener
	Version  string
	// Etcd opens the engine etcd; may be nil where the engine is another one.
	Etcd discovery.EtcdOpener
	Log  *slog.Logger
	// Ready, if not nil, is called once the node serves.
	Ready func()
}

// Run serves a directory until ctx ends or it cannot go on. cfg must be valid.
func Run(ctx context.Context, cfg Config, o Options) error {
	set := metrics.NewSet()
	engine, checks, done, err := open(cfg, o, set)
	if err != nil {
		if o.Listener != nil {
			o.Listener.Close()
		}
		return err
	}
	defer done()
	server := discovery.NewServer(cfg.ServerConfig, engine, o.Log)
	regions, err := openRegions(cfg.Schedule)
	if err != nil {
		if o.Listener != nil {
			o.Listener.Close()
		}
		return err
	}
	defer regions.close()
	placer := discovery.NewPlacer(engine, cfg.Schedule.Config, regions, o.Log, set)
	server.Schedule(placer)
	l := o.Listener
	if l == nil {
		if l, err = node.Listen(ctx, "listen", cfg.Listen); err != nil {
			return err
		}
	}
	front, err := listenFront(ctx, cfg)
	if err != nil {
		l.Close()
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	if cfg.Admin.Listen != "" {
		al, err := node.Listen(ctx, "admin.listen", cfg.Admin.Listen)
		if err != nil {
			l.Close()
			front.close()
			return err
		}
		a := admin.New(admin.Options{
			Config: cfg.Admin,
			Node: admin.NodeInfo{
				ID: cfg.Node.Name("discovery"), Role: "discovery", Version: o.Version, Started: time.Now(),
				Addresses: map[string]string{"http": l.Addr().String(), "admin": al.Addr().String()},
			},
			Source: admin.Source{Metrics: []*metrics.Set{set}},
			Checks: checks,
			Kicker: engine,
			Log:    o.Log,
		})
		g.Go(func() error { return a.Serve(ctx, al) })
	}
	front.serve(ctx, g, cfg, placer, o.Log, set)
	if cfg.Autoscale.Driver != autoscale.None {
		a := autoscale.New(cfg.Autoscale, &scaled{
			engine: engine, id: cfg.Node.Name("discovery"), instance: discovery.NewInstance(), addr: discovery.Addr{HTTP: l.Addr().String()},
		}, o.Log, set)
		g.Go(func() error { return a.Run(ctx) })
	}
	o.Log.Info("discovery listens", "http", l.Addr().String())
	g.Go(func() error { return server.Serve(ctx, l) })
	if o.Ready != nil {
		o.Ready()
	}
	return g.Wait()
}

// open returns the engine of the configuration, how it is, and how it is closed.
func open(cfg Config, o Options, set *metrics.Set) (e discovery.Engine, checks []admin.Check, done func(), err error) {
	if cfg.Engine != discovery.EngineEtcd {
		return discovery.NewMemory(cfg.Memory(), o.Log, set), nil, func() {}, nil
	}
	if o.Etcd == nil {
		return nil, nil, nil, errors.New("engine: this program has no etcd")
	}
	remote, err := o.Etcd(cfg.ServerConfig.Etcd, cfg.Memory(), o.Log, set)
	if err != nil {
		return nil, nil, nil, err
	}
	checks = []admin.Check{{Name: "etcd", Func: remote.Ready}}
	return discovery.NewHub(remote, o.Log, set), checks, func() { remote.Close() }, nil
}
