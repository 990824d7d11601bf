package hls

import (
	"bytes"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// File name extensions of the two things that are served.
const (
	PlaylistExt = ".m3u8"
	SegmentExt  = ".ts"
)

// MaxPath is the longest path in bytes that ParsePath accepts.
const MaxPath = 2048

// Request is what a path asks for: the playlist of a stream, or one segment.
type Request struct {
	App  string // may contain slashes
	Name string // stream name, without a slash

	Segment bool   // a segment, not the playlist
	Epoch   uint64 // of the segment
	Seq     uint64 // of the segment: its media sequence number
}

// ParsePath reads a decoded path, /APP/NAME.m3u8 or /APP/NAME-EPOCH-SEQ.ts. It
// reports false for everything else, among it a segment whose numbers are
// written in another way than weir writes them: one object has one name.
func ParsePath(path string) (Request, bool) {
	if len(path) > MaxPath {
		return Request{}, false
	}
	rest, ok := strings.CutPrefix(path, "/")
	slash := strings.LastIndexByte(rest, '/')
	if !ok || slash <= 0 {
		return Request{}, false
	}
	r := Request{App: rest[:slash]}
	for part := range strings.SplitSeq(r.App, "/") {
		if part == "" || part == "." || part == ".." {
			return Request{}, false // would be another path to a URI parser
		}
	}
	file := rest[slash+1:]
	if name, ok := strings.CutSuffix(file, PlaylistExt); ok {
		r.Name = name
		return r, name != ""
	}
	file, ok = strings.CutSuffix(file, SegmentExt)
	if !ok {
		return Request{}, false
	}
	r.Segment = true
	if file, r.Seq, ok = cutNumber(file); !ok {
		return Request{}, false
	}
	if r.Name, r.Epoch, ok = cutNumber(file); !ok || r.Name == "" {
		return Request{}, false
	}
	return r, true
}

// ownershipMark begins the line of a playlist that says of which ownership the stream
// is. Players take it for a comment (RFC 8216 section 4.1).
const ownershipMark = "#WEIR-EPOCH:"

// appendOwnership puts the mark behind the first line of a playlist.
func appendOwnership(playlist []byte, epoch uint64) []byte {
	at := bytes.IndexByte(playlist, '\n') + 1
	return slices.Insert(playlist, at, []byte(ownershipMark+strconv.FormatUint(epoch, 10)+"\n")...)
}

// PlaylistEpoch returns the epoch of the ownership that a playlist says it is of; it
// reports false for one that says none, and for everything else.
func PlaylistEpoch(playlist []byte) (epoch uint64, ok bool) {
	rest, ok := bytes.CutPrefix(playlist, []byte("#EXTM3U\n"+ownershipMark))
	if !ok {
		return 0, false
	}
	digits, _, ok := bytes.Cut(rest, []byte("\n"))
	epoch, err := strconv.ParseUint(string(digits), 10, 64)
	return epoch, ok && err == nil && epoch > 0
}

// cutNumber splits "rest-123" at its last hyphen.
func cutNumber(s string) (rest string, n uint64, ok bool) {
	at := strings.LastIndexByte(s, '-')
	if at < 0 {
		return "", 0, false
	}
	digits := s[at+1:]
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || digits != strconv.FormatUint(n, 10) {
		return "", 0, false
	}
	return s[:at], n, true
}

// URI returns the escaped path of r, with the vhost as its query when vhost is
// not empty. It is the one spelling of r between nodes: what an edge asks its
// upstream for, and what its Cache is keyed by.
func (r Request) URI(vhost string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(r.App, "/") {
		b.WriteByte('/')
		b.WriteString(escape(part))
	}
	b.WriteByte('/')
	if r.Segment {
		b.WriteString(segmentURI(r.Name, r.Epoch, r.Seq, vhost))
	} else {
		b.WriteString(escape(r.Name) + PlaylistExt + vhostQuery(vhost))
	}
	return b.String()
}

// segmentURI returns the name of a segment as the playlist refers to it,
// relative to the playlist's own URI. A relative reference does not inherit the
// query of its base (RFC 3986 section 5.2.2), so it carries the vhost itself.
func segmentURI(name string, epoch, seq uint64, vhost string) string {
	return escape(name) + "-" + strconv.FormatUint(epoch, 10) + "-" + strconv.FormatUint(seq, 10) +
		SegmentExt + vhostQuery(vhost)
}

func vhostQuery(vhost string) string {
	if vhost == "" {
		return ""
	}
	return "?vhost=" + url.QueryEscape(vhost)
}

// escape escapes one path element. A colon is escaped as well: in the first
// element of a relative reference it would end a scheme (RFC 3986 section 4.2).
func escape(s string) string {
	return strings.ReplaceAll(url.PathEscape(s), ":", "%3A")
}

// numberAt returns the first media sequence number of a Segmenter that starts
// at t: half seconds since 2020. It fits in 31 bits, which is what some players
// keep, until 2054.
func numberAt(t time.Time) uint64 {
	since := t.Sub(time.Date(2020, time.January, 1, 0, 0, 0, 0, time.UTC))
	return uint64(max(0, since/minSegment))
}
