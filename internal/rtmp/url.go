package rtmp

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// The TCP ports of RTMP and of RTMP over TLS, where clients look for it.
const (
	DefaultPort    = "1935"
	DefaultTLSPort = "443"
)

// URL is an RTMP URL in the parts that the conversation needs.
type URL struct {
	Addr  string // host:port to dial
	TcURL string // rtmp://host[:port]/app, sent in connect
	App   string // everything up to the last slash, without slashes around it
	Name  string // what follows the last slash, query included
	TLS   bool   // rtmps instead of rtmp
}

// String returns the whole URL.
func (u URL) String() string {
	if u.Name == "" {
		return u.TcURL
	}
	return u.TcURL + "/" + u.Name
}

// At returns the URL with the address that is dialled in place of the tcUrl's.
func (u URL) At() string { return scheme(u.TLS) + "://" + u.Addr + "/" + u.App + "/" + u.Name }

// ParseURL reads rtmp://HOST[:PORT]/APP[/INSTANCE]/NAME[?QUERY], or rtmps. The path is
// split at its last slash, not counting slashes in the query. User information
// is refused: RTMP has no standard place for it; put a key into the query.
func ParseURL(s string) (URL, error) {
	u, err := parseURL(s)
	if err != nil {
		return URL{}, fmt.Errorf("parse RTMP URL %q: %w", s, err)
	}
	return u, nil
}

func parseURL(s string) (URL, error) {
	authority, path, secure, err := splitScheme(s)
	if err != nil {
		return URL{}, err
	}
	addr, err := addPort(authority, secure)
	if err != nil {
		return URL{}, err
	}
	path, query, hasQuery := strings.Cut(path, "?")
	path = strings.Trim(path, "/")
	slash := strings.LastIndexByte(path, '/')
	if slash < 0 {
		return URL{}, fmt.Errorf("no stream name: want rtmp://host/app/name")
	}
	u := URL{Addr: addr, App: strings.TrimRight(path[:slash], "/"), Name: path[slash+1:], TLS: secure}
	u.TcURL = scheme(secure) + "://" + authority + "/" + u.App
	if hasQuery {
		u.Name += "?" + query
	}
	return u, nil
}

func scheme(secure bool) string {
	if secure {
		return "rtmps"
	}
	return "rtmp"
}

// splitScheme returns authority and path of an rtmp or rtmps URL.
func splitScheme(s string) (authority, path string, secure bool, err error) {
	bad := func(format string, args ...any) (string, string, bool, error) {
		return "", "", false, fmt.Errorf(format, args...)
	}
	scheme, rest, ok := strings.Cut(s, "://")
	switch {
	case !ok:
		return bad("no scheme: want rtmp://host/app/name")
	case strings.EqualFold(scheme, "rtmps"):
		secure = true
	case !strings.EqualFold(scheme, "rtmp"):
		return bad("scheme %q is neither rtmp nor rtmps", scheme)
	}
	for i := range len(rest) {
		if rest[i] <= ' ' || rest[i] == 0x7f {
			return bad("blank or control character")
		}
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	if strings.Contains(rest[:end], "@") {
		return bad("user information is not supported: put the key into the query")
	}
	return rest[:end], rest[end:], secure, nil
}

// addPort checks an authority and adds the default port to it.
func addPort(authority string, secure bool) (string, error) {
	u, err := url.Parse("rtmp://" + authority)
	if err != nil {
		return "", fmt.Errorf("bad host %q", authority)
	}
	if u.Hostname() == "" {
		return "", fmt.Errorf("no host")
	}
	port := u.Port()
	if port == "" {
		if port = DefaultPort; secure {
			port = DefaultTLSPort
		}
	}
	if n, err := net.LookupPort("tcp", port); err != nil || n == 0 {
		return "", fmt.Errorf("bad port %q", port)
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// hostPort returns the address that an rtmp or rtmps URL leads to.
func hostPort(s string) (addr string, secure bool, err error) {
	authority, _, secure, err := splitScheme(s)
	if err != nil {
		return "", false, err
	}
	addr, err = addPort(authority, secure)
	return addr, secure, err
}

// withoutQuery cuts the query off a stream name, for errors and logs: it may hold a
// key.
func withoutQuery(name string) string {
	name, _, _ = strings.Cut(name, "?")
	return name
}

// Public returns the URL without its query, which may hold a key, for messages.
func (u URL) Public() string {
	u.Name = withoutQuery(u.Name)
	return u.String()
}
