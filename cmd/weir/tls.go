package main

import (
	"crypto/tls"

	"github.com/urfave/cli/v2"

	"weir/internal/secure"
)

// tlsFlags are those of the commands that may speak TLS to a server.
func tlsFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "ca", Usage: "over TLS, trust the CAs in `FILE.pem` beside those of the system"},
		&cli.BoolFlag{Name: "insecure", Usage: "over TLS, take any certificate of the server"},
	}
}

// tlsOf returns what those flags say.
func tlsOf(c *cli.Context) (*tls.Config, error) {
	cfg, err := secure.Client(c.String("ca"), c.Bool("insecure"))
	if err != nil {
		return nil, usage("--ca: %w", err)
	}
	return cfg, nil
}
