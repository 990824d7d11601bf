package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/urfave/cli/v2"

	"weir/discovery"
)

func kickCommand() *cli.Command {
	return &cli.Command{
		Name:      "kick",
		Usage:     "end the publisher of a stream, wherever in the cluster it is",
		ArgsUsage: "VHOST/APP/NAME",
		Flags: adminFlags(
			&cli.DurationFlag{Name: "ban", Usage: "let nobody publish the stream for this `TIME`, at most 168h; 0s lifts a ban"},
			&cli.StringFlag{Name: "reason", Usage: "`TEXT` for the logs, and for whoever is refused"},
		),
		Action: func(c *cli.Context) error {
			args, err := arguments(c, 1)
			if err != nil {
				return usage("weir kick VHOST/APP/NAME: %w", err)
			}
			if _, _, _, err := discovery.SplitStream(args[0]); err != nil {
				return usage("weir kick: %q is not VHOST/APP/NAME, such as %s/live/demo", args[0], discovery.DefaultVhost)
			}
			if b := c.Duration("ban"); b < 0 || b > discovery.MaxBan {
				return usage("weir kick: --ban: %v is not between 0s and %v", b, discovery.MaxBan)
			}
			wishes := url.Values{"stream": {args[0]}}
			if c.IsSet("ban") {
				wishes.Set("ban", c.Duration("ban").String())
			}
			if c.IsSet("reason") {
				wishes.Set("reason", c.String("reason"))
			}
			var done discovery.Kicked
			if err := callAdmin(c, http.MethodPost, "/api/v1/streams/kick?"+wishes.Encode(), &done); err != nil {
				return err
			}
			if done.Stream != args[0] {
				return fail(exitFailed, errors.New("the answer is about another stream"))
			}
			said := "kicked: nobody published it"
			if done.Owner != "" {
				said = "kicked: it was published at " + done.Owner
			}
			if done.Banned(time.Now()) {
				said += fmt.Sprintf("; banned until %s", done.Until.Local().Format(time.TimeOnly))
			}
			fmt.Fprintln(c.App.Writer, said)
			return nil
		},
	}
}
