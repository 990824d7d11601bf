package rtmp

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// DefaultPort is the TCP port of RTMP.
const DefaultPort = "1935"

// URL is an RTMP URL in the parts that the conversation needs.
type URL struct {
	Addr  string // host:port to dial
	TcURL string // rtmp://host[:port]/app, sent in connect
	App   string // everything up to the last slash, without slashes around it
	Name  string // what follows the last slash, query included
}

// String returns the whole URL.
func (u URL) String() string {
	if u.Name == "" {
		return u.TcURL
	}
	return u.TcURL + "/" + u.Name
}

// ParseURL reads rtmp://HOST[:PORT]/APP[/INSTANCE]/NAME[?QUERY]. The path is
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
	authority, path, err := splitScheme(s)
	if err != nil {
		return URL{}, err
	}
	addr, err := addPort(authority)
	if err != nil {
		return URL{}, err
	}
	path, query, hasQuery := strings.Cut(path, "?")
	path = strings.Trim(path, "/")
	slash := strings.LastIndexByte(path, '/')
	if slash < 0 {
		return URL{}, fmt.Errorf("no stream name: want rtmp://host/app/name")
	}
	u := URL{Addr: addr, App: strings.TrimRight(path[:slash], "/"), Name: path[slash+1:]}
	u.TcURL = "rtmp://" + authority + "/" + u.App
	if hasQuery {
		u.Name += "?" + query
	}
	return u, nil
}

// splitScheme returns authority and path of an rtmp URL.
func splitScheme(s string) (authority, path string, err error) {
	scheme, rest, ok := strings.Cut(s, "://")
	switch {
	case !ok:
		return "", "", fmt.Errorf("no scheme: want rtmp://host/app/name")
	case strings.EqualFold(scheme, "rtmps"):
		return "", "", fmt.Errorf("rtmps is not supported yet")
	case !strings.EqualFold(scheme, "rtmp"):
		return "", "", fmt.Errorf("scheme %q is not rtmp", scheme)
	}
	for i := range len(rest) {
		if rest[i] <= ' ' || rest[i] == 0x7f {
			return "", "", fmt.Errorf("blank or control character")
		}
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	if strings.Contains(rest[:end], "@") {
		return "", "", fmt.Errorf("user information is not supported: put the key into the query")
	}
	return rest[:end], rest[end:], nil
}

// addPort checks an authority and adds the default port to it.
func addPort(authority string) (string, error) {
	u, err := url.Parse("rtmp://" + authority)
	if err != nil {
		return "", fmt.Errorf("bad host %q", authority)
	}
	if u.Hostname() == "" {
		return "", fmt.Errorf("no host")
	}
	port := u.Port()
	if port == "" {
		port = DefaultPort
	}
	if n, err := net.LookupPort("tcp", port); err != nil || n == 0 {
		return "", fmt.Errorf("bad port %q", port)
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// hostPort returns the address that an rtmp URL leads to.
func hostPort(s string) (string, error) {
	authority, _, err := splitScheme(s)
	if err != nil {
		return "", err
	}
	return addPort(authority)
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
