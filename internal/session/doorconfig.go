package session

import (
	"errors"

	"weir/internal/httpserver"
	"weir/internal/node"
	"weir/internal/rtmp"
)

// RTMPConfig is the RTMP door.
type RTMPConfig struct {
	// The address to listen on, as HOST:PORT. HOST is an IP address, `localhost`, or empty for
	// all addresses; port 0 takes a free one.
	Listen string `yaml:"listen"`

	rtmp.ServerConfig `yaml:",inline"`
}

// HTTPConfig is the HTTP door.
type HTTPConfig struct {
	// The address to listen on, as HOST:PORT. HOST is an IP address, `localhost`, or empty for
	// all addresses; port 0 takes a free one.
	Listen string `yaml:"listen"`

	httpserver.Config `yaml:",inline"`
}

// DefaultRTMPConfig returns the defaults: the usual port on loopback.
func DefaultRTMPConfig() RTMPConfig {
	return RTMPConfig{Listen: "127.0.0.1:1935", ServerConfig: rtmp.DefaultServerConfig()}
}

// DefaultHTTPConfig returns the defaults: port 8080 on loopback.
func DefaultHTTPConfig() HTTPConfig {
	return HTTPConfig{Listen: "127.0.0.1:8080", Config: httpserver.DefaultConfig()}
}

// Validate returns all that is wrong, each error beginning with the key.
func (c *RTMPConfig) Validate() error {
	return errors.Join(node.CheckListen("listen", c.Listen), c.ServerConfig.Validate())
}

// Validate returns all that is wrong, each error beginning with the key.
func (c *HTTPConfig) Validate() error {
	return errors.Join(node.CheckListen("listen", c.Listen), c.Config.Validate())
}
