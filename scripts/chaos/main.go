// Command chaos tests a cluster of weir under faults, on one machine: see
// docs/chaos.md, and "chaos -h".
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"weir/internal/chaos"
	"weir/internal/chaos/model"
)

// Exit codes.
const (
	exitClean  = 0
	exitBroken = 1 // a promise is broken
	exitUsage  = 2
	exitVoid   = 3 // too little happened to prove anything
	exitFailed = 4 // the run could not be done
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(command(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cfg := chaos.Default()
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&cfg.Weir, "weir", "bin/weir", "the binary under test")
	flags.StringVar(&cfg.Dir, "dir", "", "folder for logs and history (a new one in the folder for temporary files)")
	flags.Uint64Var(&cfg.Seed, "seed", 0, "what faults and clients are drawn from (0: a random one)")
	flags.DurationVar(&cfg.Faulty, "for", cfg.Faulty, "how long faults are injected, 10s to 24h")
	flags.IntVar(&cfg.Origins, "origins", cfg.Origins, "number of origins, 2 to 5")
	flags.IntVar(&cfg.Edges, "edges", cfg.Edges, "number of edges, 1 to 4")
	flags.IntVar(&cfg.Workers, "workers", cfg.Workers, "processes of each edge, 1 to 8")
	flags.StringVar(&cfg.Engine, "engine", cfg.Engine, "where the directory is: memory, or etcd (three members)")
	flags.IntVar(&cfg.Streams, "streams", cfg.Streams, "streams with one publisher, 1 to 50")
	flags.IntVar(&cfg.Contested, "contested", cfg.Contested, "streams that two publishers fight for, 0 to 10")
	flags.IntVar(&cfg.Players, "players", cfg.Players, "players at a time, 4 to 1000")
	only := flags.String("faults", "", "kinds of faults, separated by commas (all)")
	flags.BoolVar(&cfg.KeepGoing, "keep-going", false, "go on after a broken promise")
	check := flags.String("check", "", "judge the history in this file again, run nothing")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitClean
	case err != nil:
		return exitUsage
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "chaos: %q is not understood; see chaos -h\n", flags.Arg(0))
		return exitUsage
	}
	if *check != "" {
		return judge(*check, stdout, stderr)
	}
	if *only != "" {
		cfg.Only = strings.Split(*only, ",")
	}
	for cfg.Seed == 0 {
		cfg.Seed = uint64(rand.Uint32())
	}
	if err := cfg.Validate(); err != nil {
		fmt.Fprintf(stderr, "chaos: %v\n", err)
		return exitUsage
	}
	if err := prepare(&cfg); err != nil {
		fmt.Fprintf(stderr, "chaos: %v\n", err)
		return exitFailed
	}
	cfg.Out = stdout
	fmt.Fprintf(stdout, "chaos: seed %d, logs and history in %s\n", cfg.Seed, cfg.Dir)
	result, err := chaos.Run(ctx, cfg)
	if result != nil {
		c := result.Counts
		fmt.Fprintf(stdout, "chaos: %d frames, %d play requests, %d publishes, %d faults, %d calms, %d redirects in a circle\n",
			c.Frames, c.Plays, c.Publishes, c.Faults, c.Calms, c.Hops)
		fmt.Fprintf(stdout, "chaos: first frame of a publisher that came back, at %d players: %d ms (p50), %d ms (p99), %d ms (longest), faults of edges included\n",
			len(c.Waits), c.Wait(0.50), c.Wait(0.99), c.Wait(1))
		if len(result.Violations) > 0 {
			fmt.Fprintf(stdout, "chaos: %d promises broken; seed %d, logs and history in %s\n", len(result.Violations), cfg.Seed, cfg.Dir)
			fmt.Fprintf(stdout, "chaos: the same faults again: bin/chaos -seed %d -for %v -engine %s\n", cfg.Seed, cfg.Faulty, cfg.Engine)
			return exitBroken
		}
	}
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "chaos: %v\n", err)
		return exitFailed
	case result.Void != "":
		fmt.Fprintf(stdout, "chaos: void: %s\n", result.Void)
		return exitVoid
	}
	fmt.Fprintln(stdout, "chaos: clean")
	return exitClean
}

// prepare makes paths absolute and the folder.
func prepare(cfg *chaos.Config) (err error) {
	if cfg.Weir, err = filepath.Abs(cfg.Weir); err != nil {
		return err
	}
	if _, err := os.Stat(cfg.Weir); err != nil {
		return fmt.Errorf("the binary under test: %w (see \"make build\")", err)
	}
	if cfg.Dir == "" {
		cfg.Dir, err = os.MkdirTemp("", fmt.Sprintf("weir-chaos-%d-", cfg.Seed))
		return err
	}
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return err
	}
	return os.MkdirAll(cfg.Dir, 0o755)
}

// judge reads a history.
func judge(path string, stdout, stderr io.Writer) int {
	file, err := os.Open(path)
	if err != nil {
		fmt.Fprintf(stderr, "chaos: %v\n", err)
		return exitFailed
	}
	defer file.Close()
	var m model.Model
	d := json.NewDecoder(bufio.NewReader(file))
	for {
		var e model.Event
		if err := d.Decode(&e); err == io.EOF {
			break
		} else if err != nil {
			fmt.Fprintf(stderr, "chaos: read %s: %v\n", path, err)
			return exitFailed
		}
		m.Apply(e)
	}
	m.Finish()
	for _, v := range m.Violations() {
		fmt.Fprintf(stdout, "chaos: BROKEN: %v\n", v)
	}
	switch {
	case len(m.Violations()) > 0:
		return exitBroken
	case m.Void() != "":
		fmt.Fprintf(stdout, "chaos: void: %s\n", m.Void())
		return exitVoid
	}
	fmt.Fprintln(stdout, "chaos: clean")
	return exitClean
}
