// Package secure is TLS as weir uses it: the server side of doors for players and
// publishers, whose certificate is renewed without a restart, and the client side
// of the tools.
package secure

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"weir/internal/node"
)

// Config is a door's listener for TLS, beside the plain one.
type Config struct {
	// The address to listen on for TLS, as HOST:PORT, in the form of the plain `listen`, which
	// stays. Empty: no TLS.
	Listen string `yaml:"listen"`
	// The absolute path of the certificate in PEM, followed by the intermediate certificates of
	// its issuers if it has any. It is read again when it has changed.
	CertFile string `yaml:"cert_file"`
	// The absolute path of the certificate's private key in PEM, without a passphrase. It is read
	// again when it has changed.
	KeyFile string `yaml:"key_file"`
	// The time that a client has from the accept to the end of the TLS handshake, in whatever pace
	// it sends; from 100ms to 1m.
	HandshakeTimeout time.Duration `yaml:"handshake_timeout"`
	// How often the two files are looked at, from 1s to 24h. A pair that cannot be used leaves the
	// one in force as it is.
	CheckFiles time.Duration `yaml:"check_files"`
}

// DefaultConfig returns the settings of a door without TLS.
func DefaultConfig() Config {
	return Config{HandshakeTimeout: 5 * time.Second, CheckFiles: 10 * time.Second}
}

// Enabled reports whether there is a listener for TLS.
func (c *Config) Enabled() bool { return c.Listen != "" }

// Validate returns all that is wrong, each error beginning with the key. It reads
// the files of a listener that is enabled.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, d := range []struct {
		key              string
		value, low, high time.Duration
	}{
		{"handshake_timeout", c.HandshakeTimeout, 100 * time.Millisecond, time.Minute},
		{"check_files", c.CheckFiles, time.Second, 24 * time.Hour},
	} {
		if d.value < d.low || d.value > d.high {
			bad("%s: must be from %v to %v, not %v", d.key, d.low, d.high, d.value)
		}
	}
	if !c.Enabled() {
		for _, f := range []struct{ key, value string }{{"cert_file", c.CertFile}, {"key_file", c.KeyFile}} {
			if f.value != "" {
				bad("%s: is of no use without listen", f.key)
			}
		}
		return errors.Join(errs...)
	}
	if err := node.CheckListen("listen", c.Listen); err != nil {
		errs = append(errs, err)
	}
	if _, err := readPair(c.CertFile, c.KeyFile); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// pair is a certificate with its key.
type pair struct {
	certPEM, keyPEM []byte
	cert            tls.Certificate
}

func (p *pair) same(o *pair) bool {
	return bytes.Equal(p.certPEM, o.certPEM) && bytes.Equal(p.keyPEM, o.keyPEM)
}

func (p *pair) notAfter() time.Time { return p.cert.Leaf.NotAfter }

// readPair returns the pair of two files; the error begins with the key of the
// file that it is about, and never shows what is in it. A pair whose files could
// be read is returned beside an error too, with its bytes alone.
func readPair(certFile, keyFile string) (*pair, error) {
	var p pair
	certPEM, errCert := readFile("cert_file", certFile, true)
	keyPEM, errKey := readFile("key_file", keyFile, true)
	if err := errors.Join(errCert, errKey); err != nil {
		return nil, err
	}
	p.certPEM, p.keyPEM = certPEM, keyPEM
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return &p, fmt.Errorf("%s: %w", blame(certPEM), err)
	}
	p.cert = cert
	return &p, nil
}

// blame says which file of a bad pair is at fault.
func blame(certPEM []byte) string {
	if !x509.NewCertPool().AppendCertsFromPEM(certPEM) {
		return "cert_file"
	}
	return "key_file"
}

// maxFile bounds a certificate with its chain in bytes.
const maxFile = 1 << 20

func readFile(key, path string, absolute bool) ([]byte, error) {
	b, err := readRegular(path, absolute)
	if err != nil {
		var in *os.PathError
		if errors.As(err, &in) {
			err = in.Err
		}
		return nil, fmt.Errorf("%s: cannot read %q: %w", key, path, err)
	}
	return b, nil
}

func readRegular(path string, absolute bool) ([]byte, error) {
	switch {
	case path == "":
		return nil, errors.New("no file is named")
	case absolute && !filepath.IsAbs(path):
		return nil, errors.New("the path must be absolute")
	}
	// A pipe would block for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > maxFile:
		return nil, fmt.Errorf("larger than %d bytes", maxFile)
	}
	return b, nil
}
