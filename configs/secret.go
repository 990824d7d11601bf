package configs

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// mask is what is printed in place of a secret.
const mask = "********"

// Secret is a string that is never printed: every way of formatting, logging or
// marshalling it yields asterisks, or nothing if it is empty. string(s) is its
// value.
type Secret string

// String implements fmt.Stringer.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return mask
}

// Format implements fmt.Formatter, so that no verb shows the value.
func (s Secret) Format(f fmt.State, verb rune) {
	if verb == 'q' || verb == 'v' && f.Flag('#') {
		io.WriteString(f, strconv.Quote(s.String()))
		return
	}
	io.WriteString(f, s.String())
}

// MarshalText implements encoding.TextMarshaler, for YAML and JSON.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// maxSecretFile is the most bytes that a ${FILE:...} reference may bring in.
const maxSecretFile = 64 << 10

// reference matches a value that stands for something outside the file.
var reference = regexp.MustCompile(`^\$\{([A-Za-z]+):(.*)\}$`)

// dereference returns the value that the scalar text stands for. ok says whether
// it is a reference at all; problem, if not empty, why it has no value.
func dereference(text string) (value string, ok bool, problem string) {
	m := reference.FindStringSubmatch(text)
	if m == nil {
		if strings.Contains(text, "${ENV:") || strings.Contains(text, "${FILE:") {
			return "", true, "a reference (${ENV:NAME} or ${FILE:/path}) must be the whole value"
		}
		return text, false, ""
	}
	switch kind, name := m[1], m[2]; kind {
	case "ENV":
		value, found := os.LookupEnv(name)
		switch {
		case !found:
			return "", true, fmt.Sprintf("the environment variable %s is not set", name)
		case value == "":
			return "", true, fmt.Sprintf("the environment variable %s is empty", name)
		}
		return value, true, ""
	case "FILE":
		value, err := readSecret(name)
		if err != nil {
			return "", true, fmt.Sprintf("cannot read %s: %v", text, cause(err))
		}
		return value, true, ""
	default:
		return "", true, fmt.Sprintf("unknown reference %s; use ${ENV:NAME} or ${FILE:/path}", text)
	}
}

// readSecret returns the contents of a file without its last newline.
func readSecret(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("the path must be absolute")
	}
	// A pipe or a device could block the start for ever.
	if info, err := os.Stat(path); err != nil {
		return "", err
	} else if !info.Mode().IsRegular() {
		return "", fmt.Errorf("not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return "", err
	}
	if len(data) > maxSecretFile {
		return "", fmt.Errorf("the file is larger than %d bytes", maxSecretFile)
	}
	value := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if value == "" {
		return "", fmt.Errorf("the file is empty")
	}
	return value, nil
}

// A secretValue is a value that must not show in messages, and what is shown.
type secretValue struct {
	value string
	shown string
}

// redact replaces the value wherever text has it. Very short values are replaced
// only in quotes: a message consists of them.
func (s secretValue) redact(text string) string {
	text = strings.ReplaceAll(text, strconv.Quote(s.value), s.shown)
	if len(s.value) < 4 {
		return text
	}
	return strings.ReplaceAll(text, s.value, s.shown)
}
