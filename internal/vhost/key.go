package vhost

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// DefaultName is the vhost of whoever names none. It always exists. The word is
// SRS's, so that mixed clusters agree on it.
const DefaultName = "__defaultVhost__"

// Key names a stream in a whole cluster.
type Key struct {
	Vhost string // canonical name of the tenant, never an alias
	App   string // may have several parts, as in "live/eu"
	Name  string // one part, without a query and without ".flv"
}

// String returns "vhost/app/name", the form that discovery uses.
func (k Key) String() string { return k.Vhost + "/" + k.App + "/" + k.Name }

// Path returns "app/name".
func (k Key) Path() string { return k.App + "/" + k.Name }

// ParseKey reads what String wrote, and nothing else: a name that is not
// canonical is an error.
func ParseKey(s string) (Key, error) {
	v, path, ok := strings.Cut(s, "/")
	if !ok || checkHost(v) != nil {
		return Key{}, fmt.Errorf("parse stream key %q: want vhost/app/name", s)
	}
	app, name, err := splitPath(path)
	if err == nil && name != bareName(name) {
		err = fmt.Errorf("%w: %q is not canonical", ErrBadName, name)
	}
	if err != nil {
		return Key{}, fmt.Errorf("parse stream key %q: %w", s, err)
	}
	return Key{Vhost: v, App: app, Name: name}, nil
}

// MaxPath is the longest app/name that is accepted, in bytes.
const MaxPath = 512

// ErrBadName says that app and name cannot name a stream.
var ErrBadName = errors.New("bad stream name")

// splitPath splits "app/name" at its last slash and checks the parts. Encoders
// disagree on where the app ends when the URL has more than two parts; the last
// slash is the only place that all of them can be brought to.
func splitPath(path string) (app, name string, err error) {
	if len(path) > MaxPath {
		return "", "", fmt.Errorf("%w: over %d bytes", ErrBadName, MaxPath)
	}
	i := strings.LastIndexByte(path, '/')
	if i <= 0 || i == len(path)-1 {
		return "", "", fmt.Errorf("%w: %q is not app/name", ErrBadName, path)
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." {
			return "", "", fmt.Errorf("%w: %q has an empty or dotted part", ErrBadName, path)
		}
	}
	for _, r := range path {
		// What cannot be printed, such as control characters and those that turn
		// the direction of text around, would make a log or a list lie.
		if !unicode.IsPrint(r) || r == utf8.RuneError || strings.ContainsRune(`?#%\"<>`, r) {
			return "", "", fmt.Errorf("%w: %q has the character %q", ErrBadName, path, r)
		}
	}
	return path[:i], path[i+1:], nil
}

// bareName takes off a stream name what players put around it: slashes, the
// prefixes that Flash players name a container with, and the extension of
// HTTP-FLV, which SRS edges ask for over RTMP. It does so until nothing is left to
// take off, so that a stream has one name however often it was passed on.
func bareName(name string) string {
	for {
		bare := strings.Trim(name, "/")
		bare = strings.TrimPrefix(strings.TrimPrefix(bare, "flv:"), "mp4:")
		bare = strings.TrimSuffix(bare, ".flv")
		if bare == name {
			return name
		}
		name = bare
	}
}
