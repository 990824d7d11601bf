package session

import (
	"errors"

	"weir/configs"
	"weir/internal/admin"
	"weir/internal/httpserver"
	"weir/internal/node"
	"weir/internal/rtmp"
	"weir/internal/secure"
)

// RTMPConfig is the RTMP door.
type RTMPConfig struct {
	// The address to listen on, as HOST:PORT. HOST is an IP address, `localhost`, or empty for
	// all addresses; port 0 takes a free one.
	Listen string `yaml:"listen"`

	// RTMP over TLS, `rtmps://`, on a port of its own.
	TLS secure.Config `yaml:"tls"`

	rtmp.ServerConfig `yaml:",inline"`
}

// HTTPConfig is the HTTP door.
type HTTPConfig struct {
	// The address to listen on, as HOST:PORT. HOST is an IP address, `localhost`, or empty for
	// all addresses; port 0 takes a free one.
	Listen string `yaml:"listen"`

	// HTTP over TLS, `https://` and `wss://`, on a port of its own.
	TLS secure.Config `yaml:"tls"`

	httpserver.Config `yaml:",inline"`
}

// DefaultRTMPConfig returns the defaults: the usual port on loopback.
func DefaultRTMPConfig() RTMPConfig {
	return RTMPConfig{Listen: "127.0.0.1:1935", TLS: secure.DefaultConfig(), ServerConfig: rtmp.DefaultServerConfig()}
}

// DefaultHTTPConfig returns the defaults: port 8080 on loopback.
func DefaultHTTPConfig() HTTPConfig {
	return HTTPConfig{Listen: "127.0.0.1:8080", TLS: secure.DefaultConfig(), Config: httpserver.DefaultConfig()}
}

// Validate returns all that is wrong, each error beginning with the key.
func (c *RTMPConfig) Validate() error {
	return errors.Join(node.CheckListen("listen", c.Listen), configs.Prefix("tls", c.TLS.Validate()), c.ServerConfig.Validate())
}

// Validate returns all that is wrong, each error beginning with the key.
func (c *HTTPConfig) Validate() error {
	return errors.Join(node.CheckListen("listen", c.Listen), configs.Prefix("tls", c.TLS.Validate()), c.Config.Validate())
}

// Places are the addresses of both doors, those of TLS among them, by their keys in
// a node's configuration.
func Places(rtmp RTMPConfig, http HTTPConfig) []admin.Place {
	return []admin.Place{
		{Key: "rtmp.listen", Listen: rtmp.Listen},
		{Key: "http.listen", Listen: http.Listen},
		{Key: "rtmp.tls.listen", Listen: rtmp.TLS.Listen},
		{Key: "http.tls.listen", Listen: http.TLS.Listen},
	}
}
