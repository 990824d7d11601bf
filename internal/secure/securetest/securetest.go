// Package securetest makes certificates for tests.
package securetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Files are a certificate and its key, below a CA of its own, in files of a test's
// directory.
type Files struct {
	Cert, Key, CA string // paths

	t  testing.TB
	ca *x509.Certificate
	by *ecdsa.PrivateKey
}

// New returns files with a first certificate, which is valid for localhost,
// 127.0.0.1 and ::1.
func New(t testing.TB) *Files {
	t.Helper()
	dir := t.TempDir()
	f := &Files{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: filepath.Join(dir, "ca.pem"), t: t}
	f.by = f.key()
	template := &x509.Certificate{
		SerialNumber: f.serial(), Subject: pkix.Name{CommonName: "weir test CA"},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &f.by.PublicKey, f.by)
	if err != nil {
		t.Fatal(err)
	}
	if f.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	f.write(f.CA, "CERTIFICATE", der)
	f.Renew(time.Now().Add(24 * time.Hour))
	return f
}

// Renew replaces the pair by another one that is valid until notAfter, and returns
// its serial number.
func (f *Files) Renew(notAfter time.Time) *big.Int {
	f.t.Helper()
	key := f.key()
	template := &x509.Certificate{
		SerialNumber: f.serial(), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, f.ca, &key.PublicKey, f.by)
	if err != nil {
		f.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		f.t.Fatal(err)
	}
	f.write(f.Cert, "CERTIFICATE", der)
	f.write(f.Key, "PRIVATE KEY", secret)
	return template.SerialNumber
}

// Client returns a configuration that trusts the CA.
func (f *Files) Client() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(f.ca)
	return &tls.Config{RootCAs: pool, ServerName: "localhost"}
}

func (f *Files) key() *ecdsa.PrivateKey {
	f.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	return key
}

func (f *Files) serial() *big.Int {
	f.t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

// write replaces a file at once, as the tools that renew certificates do.
func (f *Files) write(path, kind string, der []byte) {
	f.t.Helper()
	b := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		f.t.Fatal(err)
	}
}
