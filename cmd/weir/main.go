// Command weir is the whole of weir in one binary: the nodes of a cluster, a
// local cluster for trying out, and tools for publishing and playing.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/urfave/cli/v2"

	"weir/internal/worker"
)

// version is set by the build (-ldflags "-X main.version=...").
var version = ""

// Exit codes. docs/cli.md says of which commands they are.
const (
	exitFailed  = 1 // the command failed while it ran
	exitUsage   = 2 // the command line, the configuration or the file to push is wrong
	exitConnect = 3 // the server cannot be reached, or no answer or frame came in time
	exitRefused = 4 // the server refused, has no such stream, or ended it before a frame
	exitLost    = 5 // push, pull: the connection was lost in mid-stream
)

func main() {
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// run is main without the process.
func run(args []string, stdout, stderr io.Writer) int {
	// A supervised process leaves signals to its supervisor.
	child, err := worker.Inherit()
	if err != nil && !errors.Is(err, worker.ErrNotChild) {
		fmt.Fprintln(stderr, "weir:", err)
		return exitFailed
	}
	before, err := worker.TakeOver()
	if err != nil && !errors.Is(err, worker.ErrNoTakeover) {
		fmt.Fprintln(stderr, "weir:", err)
		return exitFailed
	}
	ctx := context.Background()
	if child == nil {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		defer stop()
	}
	app := newApp(child, before, stdout, stderr)
	if err := app.RunContext(ctx, args); err != nil {
		fmt.Fprintln(stderr, "weir:", err)
		var coded cli.ExitCoder
		if errors.As(err, &coded) {
			return coded.ExitCode()
		}
		return exitFailed
	}
	return 0
}

// failure is an error with the exit code that it ends the process with.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// ExitCode implements cli.ExitCoder.
func (f *failure) ExitCode() int { return f.code }

func fail(code int, err error) error { return &failure{code: code, err: err} }

func usage(format string, args ...any) error {
	return fail(exitUsage, fmt.Errorf(format, args...))
}

func newApp(child *worker.Child, before *worker.Takeover, stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:            "weir",
		Usage:           "an edge/origin live-streaming cluster in one binary",
		Version:         versionText(),
		HideVersion:     true,
		HideHelpCommand: true,
		Writer:          stdout,
		ErrWriter:       stderr,
		ExitErrHandler:  func(*cli.Context, error) {}, // run prints the error and chooses the code
		OnUsageError:    wrongFlag("weir"),
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usage("unknown command %q; `weir --help` lists the commands", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "log-level", Value: "info", Usage: "least important lines that are logged: `LEVEL` is debug, info, warn or error", EnvVars: []string{"WEIR_LOG_LEVEL"}},
			&cli.StringFlag{Name: "log-format", Value: "text", Usage: "`FORMAT` of log lines: text or json", EnvVars: []string{"WEIR_LOG_FORMAT"}},
		},
		Commands: []*cli.Command{
			clusterCommand(),
			originCommand(child), edgeCommand(child, before), discoveryCommand(child),
			checkCommand(),
			drainCommand(), undrainCommand(), reloadCommand(), upgradeCommand(), kickCommand(),
			pushCommand(), pullCommand(), benchCommand(), simulateCommand(),
			versionCommand(),
			workerCommand(child), floorCommand(),
		},
	}
	// The library asks each command, not only the application. What it would do of its
	// own is print the help to standard output.
	for _, c := range app.Commands {
		c.OnUsageError = wrongFlag("weir " + c.Name)
		c.HideHelpCommand = true
	}
	return app
}

// wrongFlag makes a mistake in the flags of a command a usage error.
func wrongFlag(command string) cli.OnUsageErrorFunc {
	return func(_ *cli.Context, err error, _ bool) error {
		return usage("%s: %w; `%s --help` lists the flags", command, err, command)
	}
}

// noArguments is a usage error if the command line has arguments beside flags.
func noArguments(c *cli.Context) error {
	if c.Args().Present() {
		return usage("weir %s takes no arguments; got %q", c.Command.Name, c.Args().First())
	}
	return nil
}

// logger returns the log of a command. Nodes of a cluster and workers inherit
// the choice through the environment.
func logger(c *cli.Context) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return nil, usage("--log-level: %q is not one of debug, info, warn, error", c.String("log-level"))
	}
	opt := &slog.HandlerOptions{Level: level}
	switch c.String("log-format") {
	case "text":
		return slog.New(slog.NewTextHandler(c.App.ErrWriter, opt)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(c.App.ErrWriter, opt)), nil
	}
	return nil, usage("--log-format: %q is not one of text, json", c.String("log-format"))
}

// logEnvironment hands the choice of the log to child processes.
func logEnvironment(c *cli.Context) []string {
	return []string{"WEIR_LOG_LEVEL=" + c.String("log-level"), "WEIR_LOG_FORMAT=" + c.String("log-format")}
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version",
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "weir %s %s %s/%s\n", versionText(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}

func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "devel"
}
