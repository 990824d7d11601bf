// Package vhost knows the tenants of a node: which one a request is for, which
// stream it names, and what that tenant's settings are. Names are made
// canonical here, once, at the door; behind it a stream has one Key.
package vhost

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"weir/configs"
)

// Vhost is one tenant of a Table. It never changes.
type Vhost struct {
	Name   string
	Config Config
}

// Table resolves requests to tenants. It never changes and is safe for
// concurrent use.
type Table struct {
	byHost map[string]*Vhost // names and aliases, lower case
	def    *Vhost
}

// Vhosts is the `vhosts` section of a configuration file: canonical name →
// settings.
type Vhosts map[string]Config

// Validate returns all that is wrong, each error beginning with the key.
func (v Vhosts) Validate() error {
	var errs []error
	owner := map[string]string{}
	claim := func(host, name, key string) {
		host = strings.ToLower(host)
		if other, taken := owner[host]; taken && other != name {
			errs = append(errs, fmt.Errorf("%s: %q belongs to vhost %q already", key, host, other))
		}
		owner[host] = name
	}
	for name := range v {
		if err := checkHost(name); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		claim(name, name, name)
	}
	for name, c := range v {
		if err := c.Validate(); err != nil {
			errs = append(errs, configs.Prefix(name, err))
		}
		for i, a := range c.Aliases {
			claim(a, name, fmt.Sprintf("%s.aliases[%d]", name, i))
		}
	}
	return errors.Join(errs...)
}

// NewTable builds the table of a validated section. The default vhost is added
// if it is not there.
func NewTable(v Vhosts) *Table {
	t := &Table{byHost: map[string]*Vhost{}}
	for name, c := range v {
		h := &Vhost{Name: name, Config: c}
		t.byHost[strings.ToLower(name)] = h
		for _, a := range c.Aliases {
			t.byHost[strings.ToLower(a)] = h
		}
	}
	if t.def = t.byHost[strings.ToLower(DefaultName)]; t.def == nil {
		t.def = &Vhost{Name: DefaultName, Config: Default()}
		t.byHost[strings.ToLower(DefaultName)] = t.def
	}
	return t
}

// All returns the vhosts, each once, in no order.
func (t *Table) All() []*Vhost {
	seen := map[*Vhost]bool{}
	var all []*Vhost
	for _, h := range t.byHost {
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
	if h := t.byHost[strings.ToLower(name)]; h != nil {
		return h, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrUnknown, name)
}

// Target is what a request is for.
type Target struct {
	Key   Key
	Vhost *Vhost
	// Query is the request's own query as it was sent, without "?"; redirects
	// and pulls keep it.
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
	if t.Vhost.Name == DefaultName {
		return t.Query
	}
	if p := t.Params(); p.Has("vhost") || p.Has("domain") {
		return t.Query
	}
	add := "vhost=" + url.QueryEscape(t.Vhost.Name)
	if t.Query == "" {
		return add
	}
	return t.Query + "&" + add
}

// FromRTMP resolves the tcUrl and app of connect and the name of publish or
// play. Both app and name may carry a query; ".flv" behind the name and the
// prefixes "flv:" and "mp4:" go.
func (t *Table) FromRTMP(tcURL, app, name string) (Target, error) {
	name, query, _ := strings.Cut(name, "?")
	app, appQuery, _ := strings.Cut(app, "?")
	var host, tcQuery string
	if u, err := url.Parse(tcURL); err == nil {
		host, tcQuery = u.Hostname(), u.RawQuery
	}
	name = strings.TrimPrefix(strings.TrimPrefix(name, "flv:"), "mp4:")
	name = strings.TrimSuffix(name, ".flv")
	if query == "" { // OBS users put "?key=..." behind the server instead of the stream key
		query = appQuery
	}
	if query == "" {
		query = tcQuery
	}
	return t.resolve(strings.Trim(app, "/")+"/"+strings.Trim(name, "/"), host, query, appQuery, tcQuery)
}

// FromHTTP resolves a request's Host header, its path without the file
// extension, and its query.
func (t *Table) FromHTTP(host, path, query string) (Target, error) {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return t.resolve(strings.TrimPrefix(path, "/"), strings.Trim(host, "[]"), query)
}

// resolve picks the vhost: the first query that names one, then the host if it
// is configured, then the default.
func (t *Table) resolve(path, host string, queries ...string) (Target, error) {
	app, name, err := splitPath(path)
	if err != nil {
		return Target{}, err
	}
	h := t.byHost[strings.ToLower(host)]
	if h == nil {
		h = t.def
	}
	if named := queryVhost(queries); named != "" {
		if h, err = t.Find(named); err != nil {
			return Target{}, err
		}
	}
	return Target{Key: Key{Vhost: h.Name, App: app, Name: name}, Vhost: h, Query: queries[0]}, nil
}

func queryVhost(queries []string) string {
	for _, q := range queries {
		p, _ := url.ParseQuery(q)
		for _, k := range []string{"vhost", "domain"} {
			if v := p.Get(k); v != "" {
				return v
			}
		}
	}
	return ""
}
