package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/VictoriaMetrics/metrics"
	"github.com/urfave/cli/v2"

	"weir/configs"
	"weir/discovery"
	"weir/discovery/etcd"
	"weir/edge"
	"weir/internal/discoverynode"
	"weir/internal/worker"
	"weir/origin"
)

// configFile is the option of all commands that read a configuration.
func configFile(usage string) *cli.StringFlag {
	return &cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: usage, TakesFile: true}
}

// nodeCommand returns the command that runs one node. A supervised node gets its
// configuration from its supervisor, one that runs by an upgrade from the program
// before, all others from the file.
func nodeCommand(child *worker.Child, before *worker.Takeover, role, about string, serve func(ctx context.Context, c *cli.Context, file []byte, name string, log *slog.Logger, ready func()) error) *cli.Command {
	return &cli.Command{
		Name:  role,
		Usage: about,
		Flags: []cli.Flag{configFile("configuration `FILE` of the node (docs/configuration.md); without it the defaults")},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usage("weir %s takes no arguments, only -c FILE; got %q", role, c.Args().First())
			}
			log, err := logger(c)
			if err != nil {
				return err
			}
			tuneMemory()
			ctx, ready := c.Context, func() {}
			file, name := []byte("role: "+role+"\n"), "defaults"
			switch {
			case child != nil:
				defer child.Close()
				ctx, ready, file, name = child.Context(), child.Ready, child.Config, "configuration of "+child.Name
			case before != nil:
				file, name = before.Config, "configuration in force"
			case c.String("config") != "":
				name = c.String("config")
				if file, err = configs.Read(name); err != nil {
					return fail(exitUsage, err)
				}
			}
			if got, err := configs.RoleOf(name, file); err != nil {
				return fail(exitUsage, err)
			} else if got != role {
				return usage("%s: role: is %s, but the command is weir %s", name, got, role)
			}
			return serve(ctx, c, file, name, log, ready)
		},
	}
}

func originCommand(child *worker.Child) *cli.Command {
	return nodeCommand(child, nil, "origin", "run an origin: takes publishers and owns their streams",
		func(ctx context.Context, c *cli.Context, file []byte, name string, log *slog.Logger, ready func()) error {
			cfg := origin.Default()
			if err := configs.Parse(name, file, &cfg); err != nil {
				return fail(exitUsage, err)
			}
			ctx, terminate, stop := drainOnTerminate(ctx, child, log)
			defer stop()
			hangup, unhook := onSignal(syscall.SIGHUP)
			defer unhook()
			usr2, unhookUpgrade := onSignal(syscall.SIGUSR2)
			defer unhookUpgrade()
			return origin.Run(ctx, cfg, origin.NodeOptions{
				File: file, Version: versionText(), Log: log, Ready: ready, Terminate: terminate,
				Read: rereader(c, child), Reload: hangup, Upgrade: usr2, Etcd: openEtcd,
			})
		})
}

func edgeCommand(child *worker.Child, before *worker.Takeover) *cli.Command {
	return nodeCommand(child, before, "edge", "run an edge node: serves players, one worker process per core",
		func(ctx context.Context, c *cli.Context, file []byte, name string, log *slog.Logger, ready func()) error {
			cfg := edge.Default()
			if err := configs.Parse(name, file, &cfg); err != nil {
				return fail(exitUsage, err)
			}
			if before != nil && before.Trial {
				fmt.Fprintln(c.App.Writer, versionText())
				return nil
			}
			ctx, terminate, stop := drainOnTerminate(ctx, child, log)
			defer stop()
			hangup, unhook := onSignal(syscall.SIGHUP)
			defer unhook()
			usr2, unhookUpgrade := onSignal(syscall.SIGUSR2)
			defer unhookUpgrade()
			program := worker.Program
			if child != nil {
				program = nil
			}
			return edge.Run(ctx, cfg, edge.NodeOptions{
				File: file, WorkerArgs: []string{workerName}, WorkerEnv: logEnvironment(c), Version: versionText(), Log: log, Ready: ready,
				Terminate: terminate, Read: rereader(c, child), Reload: hangup, Etcd: openEtcd,
				Upgrade: usr2, Program: program, From: before,
			})
		})
}

// drainOnTerminate changes what signals mean to a node with sessions: the first
// SIGTERM closes terminate, the second, or SIGINT at any time, ends the context that
// is returned. A supervised node has a supervisor that decides, and ends with ctx. The
// caller calls stop at its end.
func drainOnTerminate(ctx context.Context, child *worker.Child, log *slog.Logger) (_ context.Context, terminate <-chan struct{}, stop func()) {
	if child != nil {
		return ctx, nil, func() {}
	}
	asked := make(chan os.Signal, 2)
	signal.Notify(asked, syscall.SIGTERM, os.Interrupt)
	node, cancel := context.WithCancel(context.WithoutCancel(ctx))
	if ctx.Err() != nil { // a signal came before this was set up
		cancel()
	}
	told, done := make(chan struct{}), make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		defer cancel()
		first := true
		for {
			select {
			case s := <-asked:
				if s != syscall.SIGTERM || !first {
					log.Info("the node stops at once", "signal", s.String())
					return
				}
				first = false
				close(told)
			case <-done:
				return
			}
		}
	})
	return node, told, func() {
		signal.Stop(asked)
		close(done)
		running.Wait()
	}
}

// onSignal returns a channel that gets something for each signal of a kind: SIGHUP, by
// which operators reload servers, or SIGUSR2, by which they upgrade them. The caller
// calls stop at its end.
func onSignal(s os.Signal) (asked <-chan struct{}, stop func()) {
	signals, told, done := make(chan os.Signal, 1), make(chan struct{}, 1), make(chan struct{})
	signal.Notify(signals, s)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			select {
			case <-signals:
				select {
				case told <- struct{}{}:
				default: // one is due already
				}
			case <-done:
				return
			}
		}
	})
	return told, func() {
		signal.Stop(signals)
		close(done)
		running.Wait()
	}
}

// rereader returns a function that reads the configuration file again, nil if there
// is none that could be: defaults, a supervisor's, or a pipe.
func rereader(c *cli.Context, child *worker.Child) func() ([]byte, string, error) {
	name := c.String("config")
	if info, err := os.Stat(name); child != nil || err != nil || !info.Mode().IsRegular() {
		return nil
	}
	return func() ([]byte, string, error) {
		file, err := configs.Read(name)
		return file, name, err
	}
}

// gcPercent is how much garbage a node collects before it is swept, against what
// lives: with Go's 100 a node whose memory is logs of streams would take twice
// their size. A third of that costs no processor time that could be measured (1000
// publishers; see docs/performance.md), because most of the memory has no pointers.
const gcPercent = 30

// tuneMemory sets gcPercent, unless GOGC in the environment says otherwise.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// workerName is the hidden command that an edge's supervisor starts its workers
// with.
const workerName = "edge-worker"

func workerCommand(child *worker.Child) *cli.Command {
	return &cli.Command{
		Name:   workerName,
		Hidden: true,
		Action: func(c *cli.Context) error {
			if child == nil {
				return usage("%s is started by weir edge only", workerName)
			}
			log, err := logger(c)
			if err != nil {
				return err
			}
			tuneMemory()
			// Nobody can ask a worker for its heap's profile, and the runtime's table of
			// where memory was taken has 1.4 MB, of which each new place touches a page.
			runtime.MemProfileRate = 0
			return edge.RunWorker(child, openEtcd, log)
		},
	}
}

func discoveryCommand(child *worker.Child) *cli.Command {
	return nodeCommand(child, nil, "discovery", "run a discovery server: the directory of streams and nodes",
		func(ctx context.Context, _ *cli.Context, file []byte, name string, log *slog.Logger, ready func()) error {
			cfg := discoverynode.Default()
			if err := configs.Parse(name, file, &cfg); err != nil {
				return fail(exitUsage, err)
			}
			signal.Ignore(syscall.SIGHUP, syscall.SIGUSR2) // they need a restart, which costs nobody anything
			var l net.Listener
			if child != nil {
				l = child.Listeners[discoveryListener]
			}
			return discoverynode.Run(ctx, cfg, discoverynode.Options{Listener: l, Version: versionText(), Etcd: openEtcd, Log: log, Ready: ready})
		})
}

// openEtcd is the EtcdOpener of all nodes: only this package knows the engine.
func openEtcd(cfg discovery.EtcdConfig, limits discovery.MemoryConfig, log *slog.Logger, set *metrics.Set) (discovery.RemoteEngine, error) {
	d, err := etcd.Open(cfg, limits, log, set)
	if err != nil {
		return nil, err // a nil *etcd.Directory would not be a nil RemoteEngine
	}
	return d, nil
}

// discoveryListener is the name of the listener that weir cluster opens for its
// discovery server, so that the origins find it from their first moment on.
const discoveryListener = "api"

// defaultsOf returns a pointer to the configuration of one of configs.Roles with
// its defaults.
func defaultsOf(role string) any {
	switch role {
	case "origin":
		d := origin.Default()
		return &d
	case "edge":
		d := edge.Default()
		return &d
	default:
		d := discoverynode.Default()
		return &d
	}
}

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "check a configuration file and print what is in force",
		Flags: []cli.Flag{configFile("configuration `FILE` to check")},
		Action: func(c *cli.Context) error {
			name, more := c.String("config"), c.Args().Slice()
			if name == "" && len(more) > 0 {
				name, more = more[0], more[1:]
			}
			if name == "" {
				return usage("weir check -c FILE: no file given")
			}
			if len(more) > 0 {
				return usage("weir check takes one file, and no flags behind it; got %q too", more[0])
			}
			file, err := configs.Read(name)
			if err != nil {
				return fail(exitUsage, err)
			}
			role, err := configs.RoleOf(name, file)
			if err != nil {
				return fail(exitUsage, err)
			}
			cfg := defaultsOf(role)
			if err := configs.Parse(name, file, cfg); err != nil {
				return fail(exitUsage, err)
			}
			text, err := configs.Effective(cfg)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "# %s is good. In force:\n%s", name, text)
			return nil
		},
	}
}
