package discovery

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"weir/configs"
)

// EtcdConfig says where etcd is. The engine itself is a package of its own.
type EtcdConfig struct {
	// The client URLs of the members, as in http://10.0.0.1:2379. Name all of them: any that
	// answers will do.
	Endpoints []string `yaml:"endpoints"`
	// What all keys begin with. Clusters of weir that share an etcd need different ones.
	Prefix string `yaml:"prefix"`
	// How long a connection may take to be made, from 100ms to 1m.
	DialTimeout time.Duration `yaml:"dial_timeout"`
	// How long one call may take before etcd counts as unavailable, from 100ms to 1m.
	Timeout time.Duration `yaml:"timeout"`
	// The user, if etcd has authentication on.
	Username string `yaml:"username"`
	// The user's password.
	Password configs.Secret `yaml:"password"`
	// TLS to the members; their endpoints begin with https then.
	TLS EtcdTLS `yaml:"tls"`
}

// EtcdTLS names the files of TLS, in PEM.
type EtcdTLS struct {
	// The certificates that sign those of the members. Empty: those of the system.
	CA string `yaml:"ca"`
	// The certificate that this node shows, if etcd asks for one.
	Cert string `yaml:"cert"`
	// The key of cert.
	Key string `yaml:"key"`
}

// DefaultEtcdConfig returns the configuration without keys.
func DefaultEtcdConfig() EtcdConfig {
	return EtcdConfig{Prefix: "/weir/", DialTimeout: 2 * time.Second, Timeout: time.Second}
}

// needed returns what is missing where etcd is used.
func (c EtcdConfig) needed() error {
	if len(c.Endpoints) == 0 {
		return errors.New("etcd.endpoints: must name the members of the etcd cluster")
	}
	return nil
}

// Validate returns all errors of c, each with its key in front. Without endpoints
// it is complete only where etcd is not used.
func (c EtcdConfig) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf(key+": "+format, args...))
	}
	for i, e := range c.Endpoints {
		u, err := url.Parse(e)
		switch {
		case err != nil:
			bad(fmt.Sprintf("endpoints[%d]", i), "%q is not a URL", e)
		case u.Scheme == "unix" && u.User == nil:
		default:
			if err := checkURL(e); err != nil {
				bad(fmt.Sprintf("endpoints[%d]", i), "%w", err)
			}
		}
	}
	if strings.Trim(c.Prefix, "/") == "" || len(c.Prefix) > 128 || !printable(c.Prefix) {
		bad("prefix", "%q is not 1 to 128 printable bytes besides slashes", c.Prefix)
	}
	if c.DialTimeout < 100*time.Millisecond || c.DialTimeout > time.Minute {
		bad("dial_timeout", "%v is not between 100ms and 1m", c.DialTimeout)
	}
	if c.Timeout < 100*time.Millisecond || c.Timeout > time.Minute {
		bad("timeout", "%v is not between 100ms and 1m", c.Timeout)
	}
	if c.Username == "" && c.Password != "" {
		bad("password", "is of no user: set username")
	}
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		bad("tls.key", "cert and key belong together")
	}
	return errors.Join(errs...)
}
