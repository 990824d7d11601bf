// Package vhost knows the tenants of a node: which one a request is for, which
// stream it names, and what that tenant's settings are. Names are made
// canonical here, once, at the door; behind it a stream has one Key.
package vhost

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"weir/configs"
)

// Vhost is one tenant of a Table. It never changes.
type Vhost struct {
	Name   string
	Config Config
}

// Table resolves requests to tenants. Safe for concurrent use.
type Table struct {
	now atomic.Pointer[tenants]
}

// tenants are those of one configuration. They never change.
type tenants struct {
	byHost map[string]*Vhost // names and aliases as lookedUp has them
	def    *Vhost
}

// Vhosts is the `vhosts` section of a configuration file: canonical name →
// settings.
type Vhosts map[string]Config

// Validate returns all that is wrong, each error beginning with the key.
func (v Vhosts) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	names := slices.Sorted(maps.Keys(v))
	owner := map[string]string{} // by host as it is looked up
	for _, name := range names {
		if err := checkHost(name); err != nil {
			bad("%s: %w", name, err)
		}
		if strings.EqualFold(name, DefaultName) && name != DefaultName {
			bad("%s: the default vhost is written %s", name, DefaultName)
		}
		if other, taken := owner[lookedUp(name)]; taken {
			bad("%s: is the same as vhost %q: letter case does not matter", name, other)
		}
		owner[lookedUp(name)] = name
	}
	for _, name := range names {
		c := v[name]
		if err := c.Validate(); err != nil {
			errs = append(errs, configs.Prefix(name, err))
		}
		for i, a := range c.Aliases {
			other, taken := owner[lookedUp(a)]
			switch {
			case strings.EqualFold(a, DefaultName) && name != DefaultName:
				bad("%s.aliases[%d]: %s is the vhost of requests that name none and cannot be an alias", name, i, DefaultName)
			case taken && other != name:
				bad("%s.aliases[%d]: %q belongs to vhost %q already", name, i, a, other)
			default:
				owner[lookedUp(a)] = name
			}
		}
	}
	return errors.Join(errs...)
}

// lookedUp is the form of a host name in a Table: names differ neither by letter
// case nor by the dot that ends an absolute name.
func lookedUp(host string) string { return strings.ToLower(strings.TrimSuffix(host, ".")) }

// NewTable builds the table of a validated section. The default vhost is added
// if it is not there.
func NewTable(v Vhosts) *Table {
	t := new(Table)
	t.Replace(v)
	return t
}

// Replace makes a validated section the one in force for requests to come. Targets
// that were resolved before keep what they have.
func (table *Table) Replace(v Vhosts) {
	t := &tenants{byHost: map[string]*Vhost{}}
	for name, c := range v {
		h := &Vhost{Name: name, Config: c}
		t.byHost[lookedUp(name)] = h
		for _, a := range c.Aliases {
			t.byHost[lookedUp(a)] = h
		}
	}
	if t.def = t.byHost[lookedUp(DefaultName)]; t.def == nil {
		t.def = &Vhost{Name: DefaultName, Config: Default()}
		t.byHost[lookedUp(DefaultName)] = t.def
	}
	table.now.Store(t)
}

// All returns the vhosts, each once, in no order.
func (t *Table) All() []*Vhost {
	seen := map[*Vhost]bool{}
	var all []*Vhost
	for _, h := range t.now.Load().byHost {
		if !seen[h] {
			seen[h] = true
			all = append(all, h)
		}
	}
	return all
}

// ErrUnknown says that a request named a vhost that is not configured.
var ErrUnknown = errors.New("vhost is not configured")

// Find returns the vhost of that name or alias.
func (t *Table) Find(name string) (*Vhost, error) {
	if h := t.now.Load().byHost[lookedUp(name)]; h != nil {
		return h, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrUnknown, name)
}

// Target is what a request is for.
type Target struct {
	Key   Key
	Vhost *Vhost
	// Query is the request's own query without "?", at most MaxQuery bytes;
	// redirects and pulls keep it. It names at most one vhost, this one, and bytes
	// that have no place in a URL are escaped; apart from that it is as it was sent.
	Query string
}

// Params returns the query, parsed; what cannot be parsed is left out.
func (t Target) Params() url.Values {
	v, _ := url.ParseQuery(t.Query)
	return v
}

// KeptQuery returns the query that a redirect or a pull carries on: the
// request's own, with the vhost added when it is not the default one, because
// the host name that may have selected it is lost on the way.
func (t Target) KeptQuery() string {
	if named, _ := queryVhost(t.Query); t.Vhost.Name == DefaultName || named != "" {
		return t.Query
	}
	return joinQueries(t.Query, "vhost="+url.QueryEscape(t.Vhost.Name))
}

// FromRTMP resolves the tcUrl and app of connect and the name of publish or
// play. All three may carry a query: OBS users put "?key=..." behind the server
// as well as behind the stream key. The target's query has the parameters of all,
// those of the name first, which count if they differ.
func (t *Table) FromRTMP(tcURL, app, name string) (Target, error) {
	name, query, _ := strings.Cut(name, "?")
	app, appQuery, _ := strings.Cut(app, "?")
	var host, tcQuery string
	if u, err := url.Parse(tcURL); err == nil {
		host, tcQuery = u.Hostname(), u.RawQuery
	}
	if appQuery != query {
		query = joinQueries(query, appQuery)
	}
	if tcQuery != appQuery && tcQuery != query { // most clients repeat the app's
		query = joinQueries(query, tcQuery)
	}
	return t.resolve(strings.Trim(app, "/")+"/"+bareName(name), host, query)
}

// FromHTTP resolves a request's Host header, its decoded path without the file
// extension, and its query.
func (t *Table) FromHTTP(host, path, query string) (Target, error) {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return t.resolve(strings.TrimPrefix(path, "/"), strings.Trim(host, "[]"), query)
}

// resolve picks the vhost, the query's or else the host's or else the default,
// and makes path and query canonical.
func (t *Table) resolve(path, host, query string) (Target, error) {
	if slash := strings.LastIndexByte(path, '/'); slash >= 0 {
		path = path[:slash+1] + bareName(path[slash+1:])
	}
	app, name, err := splitPath(path)
	if err != nil {
		return Target{}, err
	}
	query = canonicalQuery(query)
	h := t.now.Load().byHost[lookedUp(host)]
	if h == nil {
		h = t.now.Load().def
	}
	if named, _ := queryVhost(query); named != "" {
		if h, err = t.Find(named); err != nil {
			return Target{}, err
		}
	}
	target := Target{Key: Key{Vhost: h.Name, App: app, Name: name}, Vhost: h, Query: query}
	if len(target.KeptQuery()) > MaxQuery {
		return Target{}, fmt.Errorf("%w: its query is over %d bytes", ErrBadName, MaxQuery)
	}
	return target, nil
}

// MaxQuery is the longest query in bytes, as it is kept, that is accepted. One
// player's query goes upstream for all players of an edge, so it must not be
// refused there: with MaxPath it is less than an RTMP server takes for a name
// (4 KiB by default).
const MaxQuery = 3072

func joinQueries(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "&" + b
}

// queryVhost returns the vhost that a query names, "" if none, and the parameter
// that does: the first "vhost", or else the first "domain", with a value.
func queryVhost(query string) (vhost, param string) {
	for _, key := range []string{"vhost", "domain"} {
		for part := range strings.SplitSeq(query, "&") {
			k, v, _ := strings.Cut(part, "=")
			if k != key || v == "" {
				continue
			}
			if plain, err := url.QueryUnescape(v); err == nil {
				v = plain
			}
			return v, part
		}
	}
	return "", ""
}

// canonicalQuery escapes what cannot be in a URL and drops all parameters that
// name a vhost but the one that counts. What is resolved here must not be another
// tenant's stream to the next node, which may read the last of two parameters.
func canonicalQuery(query string) string {
	query = escapeUnsafe(query)
	_, counts := queryVhost(query)
	var kept []string
	for part := range strings.SplitSeq(query, "&") {
		k, _, _ := strings.Cut(part, "=")
		if plain, err := url.QueryUnescape(k); err == nil {
			k = plain
		}
		if k == "vhost" || k == "domain" {
			if part != counts {
				continue
			}
			counts = "\x00" // once
		}
		kept = append(kept, part)
	}
	return strings.Join(kept, "&")
}

// escapeUnsafe escapes the bytes that may not be in the query of a URL (RFC 3986,
// section 3.4), but for "%", which escapes already.
func escapeUnsafe(query string) string {
	unsafe := func(c byte) bool { return c <= ' ' || c >= 0x7f || strings.IndexByte(`"#<>\^`+"`{|}", c) >= 0 }
	i := 0
	for i < len(query) && !unsafe(query[i]) {
		i++
	}
	if i == len(query) {
		return query
	}
	b := []byte(query[:i])
	for ; i < len(query); i++ {
		if c := query[i]; unsafe(c) {
			b = fmt.Appendf(b, "%%%02X", c)
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}
