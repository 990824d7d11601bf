package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"weir/internal/drain"
	"weir/internal/reload"
	"weir/internal/upgrade"
)

// adminFlags are those of commands that talk to a node's admin server.
func adminFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "admin", Value: "http://127.0.0.1:9090", Usage: "`URL` of the node's admin server"},
		&cli.StringFlag{Name: "token", Usage: "`TOKEN` of the admin server (admin.token); better in the environment than in the list of processes", EnvVars: []string{"WEIR_ADMIN_TOKEN"}},
	}, more...)
}

func drainCommand() *cli.Command {
	return &cli.Command{
		Name:  "drain",
		Usage: "take a node out of service: no new sessions, the present ones are moved",
		Flags: adminFlags(
			&cli.DurationFlag{Name: "deadline", Usage: "`TIME` after which what is left is cut; without it drain.deadline of the node"},
			&cli.Float64Flag{Name: "kick-rate", Usage: "move `N` players per second; 0 spreads them over the deadline; without it drain.kick_rate of the node"},
			&cli.BoolFlag{Name: "wait", Usage: "show the progress, and end when no session is left"},
		),
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			wishes := url.Values{}
			if c.IsSet("deadline") {
				wishes.Set("deadline", c.Duration("deadline").String())
			}
			if c.IsSet("kick-rate") {
				wishes.Set("kick_rate", strconv.FormatFloat(c.Float64("kick-rate"), 'g', -1, 64))
			}
			var s drain.Status
			if err := callAdmin(c, http.MethodPost, "/api/v1/drain?"+wishes.Encode(), &s); err != nil {
				return err
			}
			if !c.Bool("wait") {
				fmt.Fprintf(c.App.Writer, "drains until %s; `weir undrain` takes it back\n", s.Deadline.Local().Format(time.TimeOnly))
				return nil
			}
			return awaitDrained(c)
		},
	}
}

func undrainCommand() *cli.Command {
	return &cli.Command{
		Name:  "undrain",
		Usage: "take a drain back: the node takes new sessions again",
		Flags: adminFlags(),
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			var s drain.Status
			if err := callAdmin(c, http.MethodDelete, "/api/v1/drain", &s); err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, "takes new sessions")
			return nil
		},
	}
}

func reloadCommand() *cli.Command {
	return &cli.Command{
		Name:  "reload",
		Usage: "have a node read its configuration file again",
		Flags: adminFlags(),
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			var s reload.Status
			err := callAdminFor(c, reloadTimeout, http.MethodPost, "/api/v1/reload", &s)
			if err != nil {
				if s.Last != nil { // what it says of the file
					return fail(exitRefused, fmt.Errorf("refused, version %d stays in force:\n%s", s.Version, s.Last.Error))
				}
				return err
			}
			if s.Last.Result == reload.Unchanged {
				fmt.Fprintf(c.App.Writer, "unchanged: version %d, %s\n", s.Version, s.Hash)
				return nil
			}
			how := "in force"
			if s.Last.Rolled {
				how = "in force, workers were rolled"
			}
			fmt.Fprintf(c.App.Writer, "version %d, %s, %s: %s\n", s.Version, s.Hash, how, strings.Join(s.Last.Changed, " "))
			return nil
		},
	}
}

func upgradeCommand() *cli.Command {
	return &cli.Command{
		Name:  "upgrade",
		Usage: "have an edge go on as the program that is at its path now, without losing a connection",
		Flags: adminFlags(),
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			var s upgrade.Status
			if err := callAdmin(c, http.MethodPost, "/api/v1/upgrade", &s); err != nil {
				return err
			}
			return awaitUpgraded(c)
		},
	}
}

// The looks at an upgrade, and how long a node may be silent in it: when it goes over
// to the next program, requests to the admin server are cut or wait.
const (
	upgradeLookEvery = 200 * time.Millisecond
	upgradeSilence   = 10 * time.Second
)

// awaitUpgraded waits for the end of an upgrade and tells it.
func awaitUpgraded(c *cli.Context) error {
	ticker := time.NewTicker(upgradeLookEvery)
	defer ticker.Stop()
	for heard := time.Now(); ; {
		var s upgrade.Status
		err := callAdmin(c, http.MethodGet, "/api/v1/upgrade", &s)
		switch {
		case err != nil && time.Since(heard) > upgradeSilence:
			return err
		case err != nil:
		case s.Running:
			heard = time.Now()
		case s.Last == nil:
			return fail(exitFailed, errors.New("the node has been started anew meanwhile; its log says why"))
		case s.Last.Result != upgrade.Upgraded:
			return fail(exitRefused, fmt.Errorf("the program before (%s) goes on: %s", s.Version, s.Last.Error))
		default:
			fmt.Fprintf(c.App.Writer, "upgraded from %s to %s in %.1f s\n", s.Last.From, s.Last.To, s.Last.Seconds)
			return nil
		}
		select {
		case <-ticker.C:
		case <-c.Context.Done():
			return fail(exitFailed, errors.New("not waited for the end; the upgrade goes on"))
		}
	}
}

// drainLookEvery is how often a drain's progress is asked for.
const drainLookEvery = time.Second

// awaitDrained shows a drain's progress until no session is left.
func awaitDrained(c *cli.Context) error {
	ticker := time.NewTicker(drainLookEvery)
	defer ticker.Stop()
	for {
		var s drain.Status
		if err := callAdmin(c, http.MethodGet, "/api/v1/drain", &s); err != nil {
			return err
		}
		switch s.State {
		case drain.Drained:
			fmt.Fprintf(c.App.Writer, "drained: %d moved, %d cut\n", s.Moved, s.Cut)
			return nil
		case drain.Serving:
			return fail(exitFailed, errors.New("the drain was taken back"))
		}
		fmt.Fprintf(c.App.Writer, "draining: %d of %d left (%d players, %d publishers), %.1f/s, about %.0f s\n",
			s.Players+s.Publishers, s.Began, s.Players, s.Publishers, s.Rate, s.Estimate)
		select {
		case <-ticker.C:
		case <-c.Context.Done():
			return fail(exitFailed, errors.New("not waited for the end; the node drains on"))
		}
	}
}

// adminTimeout bounds one request to an admin server.
const adminTimeout = 10 * time.Second

// reloadTimeout is that of a reload, which may roll many workers.
const reloadTimeout = 10 * time.Minute

// callAdmin sends one request to the admin server of --admin and decodes its answer.
func callAdmin(c *cli.Context, method, path string, into any) error {
	return callAdminFor(c, adminTimeout, method, path, into)
}

func callAdminFor(c *cli.Context, timeout time.Duration, method, path string, into any) error {
	base, err := url.Parse(c.String("admin"))
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return usage("--admin: %q is not a URL such as http://127.0.0.1:9090", c.String("admin"))
	}
	ctx, cancel := context.WithTimeout(c.Context, timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(base.String(), "/")+path, nil)
	if err != nil {
		return usage("--admin: %w", err)
	}
	if token := c.String("token"); token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return fail(exitConnect, fmt.Errorf("ask %s: %w", base.Host, err))
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return fail(exitConnect, fmt.Errorf("ask %s: %w", base.Host, err))
	}
	if answer.StatusCode/100 != 2 {
		_ = json.Unmarshal(body, into) // some refusals are more than a sentence
		var said struct{ Error string }
		if json.Unmarshal(body, &said) != nil || said.Error == "" {
			said.Error = answer.Status
		}
		return fail(exitRefused, fmt.Errorf("%s refuses: %s", base.Host, said.Error))
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fail(exitFailed, fmt.Errorf("read the answer of %s: %w", base.Host, err))
	}
	return nil
}
