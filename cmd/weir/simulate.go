package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"weir/configs"
	"weir/discovery"
	"weir/discovery/schedule"
	"weir/internal/discoverynode"
	"weir/internal/simulate"
	"weir/internal/units"
)

func simulateCommand() *cli.Command {
	day := simulate.DefaultDay()
	return &cli.Command{
		Name:  "simulate",
		Usage: "try scheduling and autoscaling: on a day that is made up, on recorded decisions, or on recorded loads",
		Description: "Without --trace and --load it makes up a day of players and prints a line for each hour.\n" +
			"It touches no cluster. The same flags give the same output.",
		Flags: []cli.Flag{
			configFile("configuration `FILE` of a discovery server: its schedule, and with --load its autoscale, instead of the defaults"),
			&cli.StringFlag{Name: "policy", Usage: "scheduling `POLICY` instead of that of the configuration"},
			&cli.Uint64Flag{Name: "seed", Value: 1, Usage: "begin of the random numbers"},
			&cli.StringFlag{Name: "trace", Usage: "replay the decisions in `SOURCE`: a file with answers of /api/v1/decisions, or the URL of a discovery server"},
			&cli.StringFlag{Name: "token", Usage: "the discovery server's `TOKEN`, with a URL as --trace", EnvVars: []string{"WEIR_DISCOVERY_TOKEN"}},
			&cli.StringFlag{Name: "load", Usage: "print what autoscaling would have done on the loads in `FILE`: answers of /api/v1/nodes, one after the other"},
			&cli.DurationFlag{Name: "every", Value: 10 * time.Second, Usage: "the time between two answers in the file of --load"},
			&cli.IntFlag{Name: "players", Value: day.Players, Usage: "a day: players at the peak"},
			&cli.IntFlag{Name: "nodes", Value: day.Nodes, Usage: "a day: the most nodes"},
			&cli.StringFlag{Name: "capacity", Value: units.BitRate(day.Capacity).String(), Usage: "a day: what a node can send"},
			&cli.StringFlag{Name: "bit-rate", Value: units.BitRate(day.BitRate).String(), Usage: "a day: what a player gets"},
			&cli.DurationFlag{Name: "session", Value: day.Session, Usage: "a day: mean length of a session"},
			&cli.IntFlag{Name: "hours", Value: day.Hours, Usage: "a day: how many hours of it, from midnight on; fewer than 21 are without its peak"},
			&cli.StringFlag{Name: "svg", Usage: "a day: draw it into `FILE`"},
		},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			cfg := discoverynode.Default()
			if name := c.String("config"); name != "" {
				file, err := configs.Read(name)
				if err == nil {
					err = configs.Parse(name, file, &cfg)
				}
				if err != nil {
					return fail(exitUsage, err)
				}
			}
			sched := cfg.Schedule.Config
			if p := schedule.PolicyName(c.String("policy")); p != "" {
				if !slices.Contains(p.Choices(), string(p)) {
					return usage("--policy: %q is not one of %s", p, strings.Join(p.Choices(), ", "))
				}
				sched.Policy = p
			}
			switch trace, load := c.String("trace"), c.String("load"); {
			case trace != "" && load != "":
				return usage("--trace and --load exclude each other")
			case trace != "":
				return replay(c, sched, trace)
			case load != "":
				return dryRun(c, cfg, load)
			}
			return simulateDay(c, day, sched)
		},
	}
}

func simulateDay(c *cli.Context, day simulate.Day, sched schedule.Config) error {
	day.Schedule, day.Seed = sched, c.Uint64("seed")
	day.Players, day.Nodes, day.Hours, day.Session = c.Int("players"), c.Int("nodes"), c.Int("hours"), c.Duration("session")
	rate := func(flag string, into *float64) error {
		r, err := units.ParseBitRate(c.String(flag))
		if err != nil || r == 0 {
			return usage("--%s: %q is not a bit rate such as 10Gbit", flag, c.String(flag))
		}
		*into = float64(r)
		return nil
	}
	if err := errors.Join(rate("capacity", &day.Capacity), rate("bit-rate", &day.BitRate)); err != nil {
		return fail(exitUsage, err)
	}
	for _, n := range []struct {
		flag      string
		n         int
		low, high int
	}{{"players", day.Players, 1, 100_000_000}, {"nodes", day.Nodes, day.Autoscale.Min, 10_000}, {"hours", day.Hours, 1, 24 * 7}} {
		if n.n < n.low || n.n > n.high {
			return usage("--%s: %d is not between %d and %d", n.flag, n.n, n.low, n.high)
		}
	}
	if day.Session < time.Minute || day.Session > 24*time.Hour {
		return usage("--session: %v is not between 1m and 24h", day.Session)
	}
	r := day.Run()
	if name := c.String("svg"); name != "" {
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		if err := errors.Join(r.WriteSVG(f), f.Close()); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return r.WriteTable(c.App.Writer)
}

func replay(c *cli.Context, sched schedule.Config, source string) error {
	decisions, err := readTrace(c, source)
	if err != nil {
		return err
	}
	if len(decisions) == 0 {
		return fail(exitFailed, fmt.Errorf("%s has no decisions", source))
	}
	r := simulate.Replay(sched, c.Uint64("seed"), decisions)
	return r.WriteTable(c.App.Writer)
}

func readTrace(c *cli.Context, source string) ([]schedule.Decision, error) {
	u, err := url.Parse(source)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		f, err := os.Open(source)
		if err != nil {
			return nil, fail(exitUsage, err)
		}
		defer f.Close()
		return simulate.ReadDecisions(f)
	}
	cfg := discovery.DefaultConfig()
	cfg.URLs, cfg.Token, cfg.Timeout = []string{source}, configs.Secret(c.String("token")), 30*time.Second
	if err := cfg.Validate(); err != nil {
		return nil, fail(exitUsage, err)
	}
	client := discovery.NewClient(cfg, nil)
	defer client.Close()
	var all []schedule.Decision
	for after := uint64(0); ; {
		page, next, err := client.Decisions(c.Context, after, 0)
		if err != nil {
			return nil, fail(exitConnect, err)
		}
		if all = append(all, page...); next == 0 {
			return all, nil
		}
		after = next
	}
}

func dryRun(c *cli.Context, cfg discoverynode.Config, name string) error {
	every := c.Duration("every")
	if every <= 0 || every > time.Hour {
		return usage("--every: %v is not between 0 and 1h", every)
	}
	in := io.Reader(os.Stdin)
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return fail(exitUsage, err)
		}
		defer f.Close()
		in = f
	}
	return simulate.DryRun(cfg.Autoscale, in, every, c.App.Writer)
}
