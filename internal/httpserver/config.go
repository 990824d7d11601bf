package httpserver

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"weir/internal/units"
)

// Config is the players' HTTP server.
type Config struct {
	// The time in which a client must have sent a whole request, counted from its first byte
	// (from the connection's start if it sends nothing), however it spreads the bytes; from
	// 100ms to 1h. Later it gets 408 and is closed.
	HeaderTimeout time.Duration `yaml:"header_timeout"`
	// The largest request line and headers, from 1KiB to 64KiB. A larger request gets 431 and
	// the connection is closed. Each connection that is sending a request holds one buffer of
	// this size.
	MaxHeaderBytes units.Bytes `yaml:"max_header_bytes"`
	// The largest request body, which players have no need of; from 1B to 128KiB. A larger one
	// gets 413 and the connection is closed.
	MaxBodyBytes units.Bytes `yaml:"max_body_bytes"`
	// The time that a keep-alive connection may be without a request, from 100ms to 1h.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// The time in which a client must take each 64 KiB of a response, from 100ms to 1h; slower
	// ones are cut. Live streams over HTTP are ruled by `play.write_timeout` instead.
	WriteTimeout time.Duration `yaml:"write_timeout"`
	// The time that requests in progress get to finish when the server stops, from 0s to 1h.
	// Live streams end at once.
	ShutdownGrace time.Duration `yaml:"shutdown_grace"`
	// The web pages that may play from here: origins such as `https://www.example.com`, or `*`
	// for all. It rules CORS headers and the Origin of WebSocket handshakes; an empty list
	// allows only pages of this very host.
	CORSOrigins []string `yaml:"cors_origins"`
}

// DefaultConfig returns the settings that a node has if it sets none.
func DefaultConfig() Config {
	return Config{
		HeaderTimeout:  10 * time.Second,
		MaxHeaderBytes: 8 * units.KiB,
		MaxBodyBytes:   16 * units.KiB,
		IdleTimeout:    60 * time.Second,
		WriteTimeout:   20 * time.Second,
		ShutdownGrace:  5 * time.Second,
		CORSOrigins:    []string{"*"},
	}
}

// Validate returns all that is wrong, each error beginning with the key.
func (c *Config) Validate() error {
	var errs []error
	// One lost packet costs a client 200 ms and more: shorter times cut healthy ones.
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"header_timeout", c.HeaderTimeout},
		{"idle_timeout", c.IdleTimeout},
		{"write_timeout", c.WriteTimeout},
	} {
		if d.value < time.Second || d.value > time.Hour {
			errs = append(errs, fmt.Errorf("%s: must be from 1s to 1h, not %v", d.key, d.value))
		}
	}
	if c.ShutdownGrace < 0 || c.ShutdownGrace > time.Hour {
		errs = append(errs, fmt.Errorf("shutdown_grace: must be from 0s to 1h, not %v", c.ShutdownGrace))
	}
	if c.MaxHeaderBytes < units.KiB || c.MaxHeaderBytes > 64*units.KiB {
		errs = append(errs, fmt.Errorf("max_header_bytes: must be from 1KiB to 64KiB, not %v", c.MaxHeaderBytes))
	}
	if c.MaxBodyBytes < 1 || c.MaxBodyBytes > 128*units.KiB {
		errs = append(errs, fmt.Errorf("max_body_bytes: must be from 1B to 128KiB, not %v", c.MaxBodyBytes))
	}
	for i, origin := range c.CORSOrigins {
		if origin == "*" {
			continue
		}
		u, err := url.Parse(origin)
		if err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != origin {
			errs = append(errs, fmt.Errorf("cors_origins[%d]: %q is neither * nor an origin such as https://www.example.com", i, origin))
		}
	}
	return errors.Join(errs...)
}
