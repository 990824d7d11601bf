package secure

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
)

// Client returns how a tool speaks TLS to a server: it trusts the CAs of the system
// and, if caFile is not empty, those of that file in PEM; with insecure any
// certificate at all.
func Client(caFile string, insecure bool) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: minVersion, InsecureSkipVerify: insecure}
	if caFile == "" {
		return cfg, nil
	}
	pem, err := readFile("CA", caFile, false)
	if err != nil {
		return nil, err
	}
	if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
		cfg.RootCAs = x509.NewCertPool()
	}
	if !cfg.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA: no certificate in PEM is in %q", caFile)
	}
	return cfg, nil
}
