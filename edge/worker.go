package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"golang.org/x/sync/errgroup"

	"weir/configs"
	"weir/discovery"
	"weir/internal/admin"
	"weir/internal/admission"
	"weir/internal/drain"
	"weir/internal/httpserver"
	"weir/internal/load"
	"weir/internal/session"
	"weir/internal/worker"
)

// Names of the listeners that the supervisor hands to its workers.
const (
	listenRTMP  = "rtmp"
	listenHTTP  = "http"
	listenRTMPS = "rtmps"
	listenHTTPS = "https"
)

// RunWorker serves as one worker process of an edge node until the supervisor
// ends it. etcd opens the directory if it is in etcd; it may be nil where it is not.
func RunWorker(c *worker.Child, etcd discovery.EtcdOpener, log *slog.Logger) error {
	defer c.Close()
	cfg := Default()
	if err := configs.Parse("configuration of the node", c.Config, &cfg); err != nil {
		return err
	}
	shareCores(c.Count)
	log = log.With("worker", c.Index)
	set := metrics.NewSet()
	directory, err := openDirectory(cfg, c.Listeners[listenRTMP].Addr(), c.Listeners[listenHTTP].Addr(), etcd, log, set)
	if err != nil {
		return err
	}
	if directory != nil {
		defer directory.Close()
	}
	siblings, err := c.ListenSibling(log)
	if err != nil {
		return err
	}
	var door *session.Server // there is no pull before it
	e := New(cfg, Options{
		Directory: directory, Index: c.Index, Count: c.Count, DialSibling: c.DialSibling, Log: log, Set: set,
		Beat: func(own bool) (every, at time.Duration) { return door.Beat(own) },
	})
	defer e.Close()
	delays := &load.Delays{}
	var draining *drain.Process
	var process *load.Process
	status := func() load.Status { return process.Status() }
	gate := admission.NewGate(admission.GateOptions{
		Config: cfg.Admission, Processes: c.Count, Status: status, TakePublishers: true, Set: set,
		Node: cfg.Node.Name("edge"), Placer: placer(directory), Secret: string(cfg.Discovery.Token),
	})
	door = session.New(session.Options{
		Config: cfg.Play, RTMP: cfg.RTMP.ServerConfig, Vhosts: e.Vhosts(), Role: e, Delays: delays, Log: log, Set: set,
		Admit: func(ctx context.Context, n session.Newcomer) error {
			switch {
			case !draining.Draining():
			case gate.Stays(n, draining.Past):
				return nil
			default:
				return e.TurnAway(ctx, n)
			}
			return gate.Admit(ctx, n)
		},
		Pass:     e.Pass,
		Shards:   1, // the node has a worker for each core
		Slot:     c.Index,
		Slots:    c.Count,
		IDPrefix: strconv.Itoa(c.Index) + "-",
	})
	draining = drain.NewProcess(drainable{door, e}, log, set)
	if process, err = load.NewProcess(load.ProcessOptions{
		Config: cfg.Load, Worker: c.Index, Delays: delays, Sessions: door.Census, Log: log,
	}); err != nil {
		return err
	}
	shedder := admission.NewShedder(cfg.Admission, status, door, log, set)
	var open *session.OpenDoor
	adoptions := httpserver.NewAdoptions(c.Listeners[listenHTTP].Addr())
	source := admin.Source{
		Metrics:  []*metrics.Set{set},
		Streams:  func() []admin.StreamInfo { return e.Streams(door.Players) },
		Sessions: door.Sessions,
		Kick:     door.Kick,
		Drain:    draining.Apply,
		Load:     process.Exchange,
		Configure: func(file []byte) error {
			next := Default()
			if err := configs.Parse("configuration of the node", file, &next); err != nil {
				return err
			}
			e.SetVhosts(next.Vhosts)
			open.SetLimits(next.Limits)
			door.SetMaxSessions(next.Play.MaxSessions)
			return nil
		},
	}

	ctx, finish := context.WithCancel(c.Context())
	defer finish()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return process.Run(ctx) })
	g.Go(func() error { return draining.Run(ctx) })
	g.Go(func() error { return shedder.Run(ctx) })
	retired := make(chan net.Listener, 1)
	open, err = session.Door{
		Sessions: door, RTMP: c.Listeners[listenRTMP], HTTP: c.Listeners[listenHTTP],
		RTMPS: c.Listeners[listenRTMPS], HTTPS: c.Listeners[listenHTTPS], Adoptions: adoptions,
		RTMPConfig: cfg.RTMP, HTTPConfig: cfg.HTTP, Limits: cfg.Limits, Log: log, Set: set,
	}.Open(ctx, g)
	if err != nil {
		finish()
		return errors.Join(err, g.Wait())
	}
	g.Go(func() error {
		return serveSiblings(ctx, siblings, retired, siblingHandler(e, &passHandler{e, door, open, adoptions}, source))
	})
	g.Go(func() error {
		select {
		case <-c.Retire():
		case <-ctx.Done():
			return nil
		}
		open.Retire()
		now := time.Now()
		last := drain.Order{Since: now, Until: now.Add(cfg.Supervision.RollGrace), Publishers: now.Add(cfg.Supervision.PublisherGrace)}
		draining.Retire(last)
		siblings.Close() // its connections stay
		l, err := c.Retired(log)
		if err != nil {
			return err
		}
		retired <- l
		log.Info("worker retires", "sessions", len(door.Sessions()), "connections", open.Connections(), "grace", cfg.Supervision.RollGrace.String())
		empty(ctx, open.Connections, last.Until)
		empty(ctx, func() int { _, publishers := door.Census(); return publishers }, last.Publishers)
		empty(ctx, draining.Untold, time.Now().Add(tellWithin))
		finish()
		return nil
	})
	c.Ready()
	return g.Wait()
}

// placer returns a directory as one that chooses nodes, nil if it does not.
func placer(d discovery.Remote) admission.Placer {
	p, _ := d.(admission.Placer)
	return p
}

// emptyEvery is how often a worker that retires looks whether it is done.
const emptyEvery = 100 * time.Millisecond

// tellWithin bounds how long a worker that retires while the node drains stays to tell the
// supervisor, which asks four times a second, how the last of its sessions ended.
const tellWithin = 2 * time.Second

// empty returns when nothing is left, or at the deadline, or when ctx ends.
func empty(ctx context.Context, left func() int, deadline time.Time) {
	tick := time.NewTicker(emptyEvery)
	defer tick.Stop()
	for left() > 0 && time.Now().Before(deadline) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// openDirectory returns the discovery of an edge's configuration, nil if it has
// none.
func openDirectory(cfg Config, rtmp, http net.Addr, etcd discovery.EtcdOpener, log *slog.Logger, set *metrics.Set) (discovery.Remote, error) {
	if !cfg.Discovery.Configured() {
		return nil, nil
	}
	d, err := cfg.Discovery.Open(self(cfg, rtmp, http), etcd, log, set)
	if err != nil {
		return nil, fmt.Errorf("open discovery: %w", err)
	}
	return d, nil
}

func self(cfg Config, rtmp, http net.Addr) discovery.Self {
	a := cfg.Advertise.Or(rtmp, http)
	return discovery.Self{
		Node: cfg.Node.Name("edge"), Instance: discovery.NewInstance(),
		Addr: discovery.Addr{RTMP: a.RTMP, HTTP: a.HTTP, API: a.API},
	}
}

// siblingHandler answers the supervisor and the other workers of the node.
func siblingHandler(e *Edge, players *passHandler, source admin.Source) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/_weir/", admin.WorkerHandler(source))
	mux.Handle(workerOfferPath, players)
	mux.HandleFunc(session.WorkerFLVPath, players.door.ServeWorkerFLV)
	mux.HandleFunc(workerHLSPath, e.serveWorkerHLS)
	mux.HandleFunc(workerAlivePath, e.siblings.serveAlive)
	return mux
}

// serveSiblings serves on l until ctx ends, or until l is closed and then on the one
// that comes after it.
func serveSiblings(ctx context.Context, l net.Listener, next <-chan net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	err := s.Serve(l)
	if errors.Is(err, net.ErrClosed) && ctx.Err() == nil {
		select {
		case l := <-next:
			err = s.Serve(l)
		case <-ctx.Done():
			return nil
		}
	}
	if !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return fmt.Errorf("serve the other workers: %w", err)
	}
	return nil
}
