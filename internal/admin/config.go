package admin

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"weir/configs"
)

// Config is the part of a node's configuration that is about its admin server.
type Config struct {
	// The TCP address to listen on, as HOST:PORT. Empty: no admin server.
	Listen string `yaml:"listen"`

	// What requests have to carry as `Authorization: Bearer TOKEN`, or as the password of HTTP
	// Basic with any user name, which is what a browser can do; visible ASCII. /healthz and
	// /readyz never ask for it. Empty: nobody is asked.
	Token configs.Secret `yaml:"token"`

	// Whether the profiles of Go's runtime are served at /debug/pprof/. They show memory of the
	// process: leave it off where others reach the address, or set a token.
	Pprof bool `yaml:"pprof"`
}

// DefaultConfig returns the configuration of a node whose file says nothing.
func DefaultConfig() Config {
	return Config{Listen: "127.0.0.1:9090"}
}

// Validate returns all that is wrong with c, joined; each message begins with
// the key that it is about.
func (c Config) Validate() error {
	var wrong []error
	if c.Listen != "" {
		if _, port, err := net.SplitHostPort(c.Listen); err != nil {
			wrong = append(wrong, fmt.Errorf("listen: %w", err))
		} else if _, err := net.LookupPort("tcp", port); err != nil {
			wrong = append(wrong, fmt.Errorf("listen: %w", err))
		}
	}
	// Header values are visible characters (RFC 6750, section 2.1, allows
	// fewer), and a space would end the token.
	if strings.ContainsFunc(string(c.Token), func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		wrong = append(wrong, errors.New("token: has characters other than visible ASCII"))
	}
	return errors.Join(wrong...)
}
