package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"weir/internal/bench"
)

func benchCommand() *cli.Command {
	d, limit := bench.DefaultConfig(), bench.DefaultLimit()
	return &cli.Command{
		Name:  "bench",
		Usage: "load a server with players and measure what they get and what they cost",
		Description: "Publishes streams of its own, plays them, and prints a table (docs/bench.md).\n" +
			"It needs --publish and --url.\n" +
			"It loads servers on this machine only, unless --i-own-this-target says that another may be.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "publish", Usage: "publish at `rtmp://HOST/APP[?QUERY]`"},
			&cli.StringFlag{Name: "url", Usage: "play from `URL`: http://HOST:PORT/APP, ws://HOST:PORT/APP or rtmp://HOST/APP; under TLS https, wss or rtmps"},
			&cli.StringFlag{Name: "protocol", Usage: "play over `PROTOCOL`: http-flv, ws-flv, rtmp or hls; by default that of the URL"},
			&cli.StringFlag{Name: "name", Value: d.Name, Usage: "streams are called `NAME`0, NAME1, ..."},
			&cli.BoolFlag{Name: "i-own-this-target", Usage: "load servers that are not on this machine"},
			&cli.IntFlag{Name: "players", Aliases: []string{"n"}, Value: d.Players, Usage: "`N` players in all, dealt to the streams in turn"},
			&cli.IntFlag{Name: "streams", Aliases: []string{"m"}, Value: d.Streams, Usage: "`M` streams"},
			&cli.IntFlag{Name: "probes", Value: d.Probes, Usage: "`K` of the players read every frame"},
			&cli.StringFlag{Name: "bitrate", Value: "1080k", Usage: "bit rate of a stream, `BITS` per second as 1080k or 4M"},
			&cli.IntFlag{Name: "fps", Value: d.Form.FPS, Usage: "video frames per second"},
			&cli.DurationFlag{Name: "gop", Value: d.Form.GOP, Usage: "`TIME` from key frame to key frame"},
			&cli.Float64Flag{Name: "ramp", Value: d.Ramp, Usage: "`N` players join per second"},
			&cli.DurationFlag{Name: "fill", Value: d.Fill, Usage: "with --admin or --pid: `TIME` in which the logs fill before the other players join"},
			&cli.DurationFlag{Name: "settle", Value: d.Settle, Usage: "`TIME` between the last join and the measurement"},
			&cli.DurationFlag{Name: "duration", Value: d.Duration, Usage: "measure for `TIME`"},
			&cli.IntFlag{Name: "slow", Usage: "measure a second time with `K` players beside the others that read at --slow-rate"},
			&cli.StringFlag{Name: "slow-rate", Value: "64k", Usage: "`BITS` per second that slow players read"},
			&cli.IntFlag{Name: "stalled", Usage: "and with `K` players that read nothing"},
			&cli.IntFlag{Name: "crowd", Usage: "then a flash crowd of `N` players joins beside the others"},
			&cli.DurationFlag{Name: "crowd-time", Value: d.CrowdTime, Usage: "the crowd joins within `TIME`"},
			&cli.BoolFlag{Name: "find-capacity", Usage: "add players in steps, from --players on, until a limit breaks"},
			&cli.DurationFlag{Name: "limit-p99", Value: limit.P99, Usage: "longest delay of 99 of 100 frames; 0 is any"},
			&cli.StringFlag{Name: "limit-slow", Value: "1%", Usage: "largest `SHARE` of players with less than 95% of the stream"},
			&cli.Float64Flag{Name: "growth", Value: limit.Growth, Usage: "players of a step against those of the one before"},
			&cli.IntFlag{Name: "threads", Usage: "load threads; 0 is one per 5000 players, at most one per core"},
			&cli.StringFlag{Name: "admin", Usage: "measure the processes of the node whose admin interface is `http://HOST:PORT`"},
			&cli.StringFlag{Name: "admin-token", Usage: "its `TOKEN`", EnvVars: []string{"WEIR_ADMIN_TOKEN"}},
			&cli.StringFlag{Name: "pid", Usage: "measure processor and memory of the processes `PID[,PID...]`"},
			&cli.BoolFlag{Name: "floor", Usage: "then measure a bare loop of sends beside it, and give the ratio"},
			&cli.StringFlag{Name: "floor-interval", Value: "40ms,120ms,350ms", Usage: "the bare loop sends every `TIME[,TIME...]`"},
			&cli.DurationFlag{Name: "floor-time", Value: d.FloorTime, Usage: "measure each interval for `TIME`"},
			&cli.StringFlag{Name: "json", Usage: "write the result to `FILE` as JSON; - is standard output, instead of the table"},
		}, tlsFlags()...),
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			// Not the library's Required: it prints the whole help to standard output.
			if c.String("publish") == "" || c.String("url") == "" {
				return usage("weir bench needs --publish and --url; `weir bench --help` lists the flags")
			}
			cfg, err := benchConfig(c)
			if err != nil {
				return err
			}
			return runBench(c, cfg)
		},
	}
}

func benchConfig(c *cli.Context) (bench.Config, error) {
	cfg := bench.DefaultConfig()
	cfg.Publish, cfg.Play, cfg.Name = c.String("publish"), c.String("url"), c.String("name")
	cfg.Protocol = bench.Protocol(c.String("protocol"))
	cfg.AnyTarget = c.Bool("i-own-this-target")
	cfg.Players, cfg.Streams, cfg.Probes = c.Int("players"), c.Int("streams"), c.Int("probes")
	cfg.Ramp, cfg.Duration = c.Float64("ramp"), c.Duration("duration")
	cfg.Fill, cfg.Settle = c.Duration("fill"), c.Duration("settle")
	cfg.Form.FPS, cfg.Form.GOP = c.Int("fps"), c.Duration("gop")
	var err error
	if cfg.TLS, err = tlsOf(c); err != nil {
		return cfg, err
	}
	if cfg.Form.BitRate, err = bitRate(c.String("bitrate")); err != nil {
		return cfg, usage("--bitrate: %w", err)
	}
	if cfg.PIDs, err = pids(c.String("pid")); err != nil {
		return cfg, usage("--pid: %w", err)
	}
	if admin := c.String("admin"); admin != "" {
		more, err := bench.NodePIDs(c.Context, admin, c.String("admin-token"))
		if err != nil {
			return cfg, benchFailure(admin, err)
		}
		cfg.PIDs = append(cfg.PIDs, more...)
	}
	cfg.Slow, cfg.Stalled = c.Int("slow"), c.Int("stalled")
	if cfg.SlowRate, err = bitRate(c.String("slow-rate")); err != nil {
		return cfg, usage("--slow-rate: %w", err)
	}
	cfg.Crowd, cfg.CrowdTime, cfg.Loops = c.Int("crowd"), c.Duration("crowd-time"), c.Int("threads")
	if c.Bool("find-capacity") {
		share, err := percent(c.String("limit-slow"))
		if err != nil {
			return cfg, usage("--limit-slow: %w", err)
		}
		cfg.Limit = &bench.Limit{P99: c.Duration("limit-p99"), Slow: share, Growth: c.Float64("growth")}
	}
	if c.Bool("floor") {
		for _, field := range strings.Split(c.String("floor-interval"), ",") {
			interval, err := time.ParseDuration(strings.TrimSpace(field))
			if err != nil {
				return cfg, usage("--floor-interval: %w", err)
			}
			cfg.Floor = append(cfg.Floor, interval)
		}
		program, err := os.Executable()
		if err != nil {
			return cfg, err
		}
		cfg.FloorTime, cfg.FloorCommand = c.Duration("floor-time"), []string{program, floorName}
	}
	return cfg, nil
}

// floorName is the hidden command that is the bare loop.
const floorName = "bench-floor"

func floorCommand() *cli.Command {
	return &cli.Command{
		Name:   floorName,
		Hidden: true,
		Action: func(c *cli.Context) error { return bench.ServeFloor(os.Stdin, c.App.Writer) },
	}
}

// bitRate reads a number of bits per second with k or M (decimal).
func bitRate(s string) (int64, error) {
	digits, factor := s, 1.0
	switch {
	case strings.HasSuffix(s, "k"):
		digits, factor = s[:len(s)-1], 1e3
	case strings.HasSuffix(s, "M"):
		digits, factor = s[:len(s)-1], 1e6
	}
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || n <= 0 || n*factor > 1e12 {
		return 0, fmt.Errorf("%q is no bit rate: want bits per second, as 1080k or 4M", s)
	}
	return int64(n * factor), nil
}

// percent reads a share as 1% or 0.01.
func percent(s string) (float64, error) {
	digits, isPercent := strings.CutSuffix(s, "%")
	n, err := strconv.ParseFloat(digits, 64)
	if isPercent {
		n /= 100
	}
	if err != nil || !(n >= 0 && n <= 1) {
		return 0, fmt.Errorf("%q is no share: want 1%% or 0.01", s)
	}
	return n, nil
}

func pids(s string) ([]int, error) {
	var list []int
	for _, field := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' }) {
		n, err := strconv.Atoi(field)
		if err != nil || n <= 0 {
			return nil, fmt.Errorf("%q is no process id", field)
		}
		list = append(list, n)
	}
	return list, nil
}

func runBench(c *cli.Context, cfg bench.Config) error {
	// The result may be piped; progress is for whoever watches.
	show := newProgress(c.App.ErrWriter)
	cfg.Progress = func(p bench.Progress) { show.line("%s", p) }
	// The kernel shares the cores out better between load threads and probes than
	// Go's scheduler, to which a load thread looks like a long computation.
	runtime.GOMAXPROCS(2*runtime.NumCPU() + 2)
	begun := time.Now()
	report, err := bench.Run(c.Context, cfg)
	if err != nil {
		if c.Context.Err() != nil {
			return errors.New("interrupted: nothing was measured")
		}
		return benchFailure(cfg.Publish, err)
	}
	show.end("done in %s", time.Since(begun).Round(time.Second))
	if name := c.String("json"); name != "" {
		b, err := json.MarshalIndent(report, "", "  ")
		if err != nil {
			return err
		}
		b = append(b, '\n')
		if name == "-" {
			_, err = c.App.Writer.Write(b)
			return err
		}
		if err := os.WriteFile(name, b, 0o644); err != nil {
			return err
		}
	}
	return report.Write(c.App.Writer)
}

// benchFailure gives an error its exit code.
func benchFailure(url string, err error) error {
	switch {
	case errors.Is(err, bench.ErrForeign):
		return usage("%w; load only servers that are yours, and say so with --i-own-this-target", err)
	case errors.Is(err, bench.ErrUsage):
		return fail(exitUsage, err)
	case errors.Is(err, bench.ErrLost):
		return fail(exitLost, err)
	}
	return connectFailure(url, err)
}
