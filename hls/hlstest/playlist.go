// Package hlstest checks what an HLS server gives to a player over time: that
// playlists follow RFC 8216 one by one and from reload to reload, and that the
// segments are what the playlists say. It shares no code with what makes them.
package hlstest

import (
	"errors"
	"fmt"
	"math"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Playlist is a media playlist.
type Playlist struct {
	Version        int
	Target         int // EXT-X-TARGETDURATION, seconds
	MediaSequence  uint64
	Discontinuity  uint64 // EXT-X-DISCONTINUITY-SEQUENCE
	Independent    bool   // EXT-X-INDEPENDENT-SEGMENTS
	End            bool   // EXT-X-ENDLIST
	Segments       []Segment
	hasDiscNumber  bool
	hasTarget      bool
	hasMediaNumber bool
}

// Segment is one entry of a playlist.
type Segment struct {
	URI           string
	Duration      time.Duration // EXTINF
	Start         time.Time     // EXT-X-PROGRAM-DATE-TIME; zero if it has none
	Discontinuity bool          // EXT-X-DISCONTINUITY is in front of it

	Sequence            uint64 // media sequence number
	DiscontinuityNumber uint64
}

var (
	decimalInteger = regexp.MustCompile(`^[0-9]{1,20}$`)
	decimalFloat   = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`)
)

// Parse reads a media playlist of the tags that a live MPEG-TS playlist has, and
// returns all breaches of RFC 8216 section 4 that one playlist can show, joined.
// Another tag that begins with #EXT is a breach here, because weir writes none.
func Parse(body []byte) (*Playlist, error) {
	p := &Playlist{}
	var errs []error
	fail := func(line int, format string, args ...any) {
		errs = append(errs, fmt.Errorf("line %d: "+format, append([]any{line}, args...)...))
	}
	if !utf8.Valid(body) || strings.HasPrefix(string(body), "\ufeff") {
		return p, errors.New("playlist is not UTF-8 without a byte order mark (section 4)")
	}
	for i, c := range string(body) {
		if (c < ' ' && c != '\n' && c != '\r') || c >= 0x7f && c <= 0x9f {
			return p, fmt.Errorf("playlist has a control character at byte %d (section 4)", i)
		}
	}
	lines := strings.Split(string(body), "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	} else {
		fail(len(lines), "the last line has no end")
	}
	if len(lines) == 0 || strings.TrimSuffix(lines[0], "\r") != "#EXTM3U" {
		return p, errors.New("line 1: the first line is not #EXTM3U (section 4.3.1.1)")
	}

	seen := map[string]bool{}
	next := Segment{}
	pending := false // a tag of the next segment was read
	hasInf := false
	for n, line := range lines[1:] {
		at := n + 2
		line = strings.TrimSuffix(line, "\r")
		if line == "" || line[0] == '#' && !strings.HasPrefix(line, "#EXT") {
			continue
		}
		if line[0] != '#' {
			if !hasInf {
				fail(at, "a URI without EXTINF (section 4.3.2.1)")
			}
			if _, err := url.Parse(line); err != nil || strings.ContainsAny(line, " \t") {
				fail(at, "%q is not a URI", line)
			}
			next.URI = line
			next.Sequence = p.MediaSequence + uint64(len(p.Segments))
			next.DiscontinuityNumber = p.Discontinuity
			if k := len(p.Segments); k > 0 {
				next.DiscontinuityNumber = p.Segments[k-1].DiscontinuityNumber
			}
			if next.Discontinuity {
				next.DiscontinuityNumber++
			}
			p.Segments = append(p.Segments, next)
			next, hasInf, pending = Segment{}, false, false
			continue
		}

		tag, value, hasValue := strings.Cut(line, ":")
		once := func() {
			if seen[tag] {
				fail(at, "%s is there twice (section 4.3.3)", tag)
			}
			seen[tag] = true
		}
		early := func() {
			if len(p.Segments) > 0 || pending {
				fail(at, "%s comes after a segment (section 4.3.3)", tag)
			}
		}
		number := func() uint64 {
			v, err := strconv.ParseUint(value, 10, 64)
			if err != nil || !decimalInteger.MatchString(value) {
				fail(at, "%s: %q is not a decimal integer", tag, value)
			}
			return v
		}
		bare := func() {
			if hasValue {
				fail(at, "%s has a value", tag)
			}
		}
		switch tag {
		case "#EXT-X-VERSION":
			once()
			p.Version = int(min(number(), math.MaxInt32))
		case "#EXT-X-TARGETDURATION":
			once()
			p.hasTarget, p.Target = true, int(min(number(), math.MaxInt32))
		case "#EXT-X-MEDIA-SEQUENCE":
			once()
			early()
			p.hasMediaNumber, p.MediaSequence = true, number()
		case "#EXT-X-DISCONTINUITY-SEQUENCE":
			once()
			early() // section 4.3.3.3
			p.hasDiscNumber, p.Discontinuity = true, number()
		case "#EXT-X-INDEPENDENT-SEGMENTS":
			once()
			bare()
			p.Independent = true
		case "#EXT-X-ENDLIST":
			once()
			bare()
			p.End = true
		case "#EXT-X-DISCONTINUITY":
			bare()
			next.Discontinuity, pending = true, true
		case "#EXT-X-PROGRAM-DATE-TIME":
			t, err := time.Parse(time.RFC3339Nano, value)
			if err != nil {
				fail(at, "%s: %q is not a date and time with a zone (section 4.3.2.6)", tag, value)
			}
			next.Start, pending = t, true
		case "#EXTINF":
			duration, _, comma := strings.Cut(value, ",")
			if !comma {
				fail(at, "EXTINF without a comma (section 4.3.2.1)")
			}
			seconds, err := strconv.ParseFloat(duration, 64)
			if err != nil || !decimalFloat.MatchString(duration) || seconds > 1e6 {
				fail(at, "EXTINF: %q is not a duration", duration)
				seconds = 0
			}
			if strings.Contains(duration, ".") && p.Version < 3 {
				fail(at, "a decimal EXTINF needs EXT-X-VERSION 3 (section 7)")
			}
			if hasInf {
				fail(at, "two EXTINF for one segment")
			}
			next.Duration, hasInf, pending = time.Duration(math.Round(seconds*1e9)), true, true
		case "#EXTM3U":
			fail(at, "EXTM3U again")
		default:
			fail(at, "unexpected tag %s", tag)
		}
	}
	if hasInf || pending {
		fail(len(lines), "tags of a segment that has no URI")
	}
	if !p.hasTarget {
		fail(len(lines), "no EXT-X-TARGETDURATION (section 4.3.3.1)")
	}
	for _, s := range p.Segments {
		if r := int(s.Duration.Round(time.Second) / time.Second); p.hasTarget && r > p.Target {
			errs = append(errs, fmt.Errorf("segment %s lasts %v, over the target of %d s (section 4.3.3.1)", s.URI, s.Duration, p.Target))
		}
		if s.Duration <= 0 {
			errs = append(errs, fmt.Errorf("segment %s has no duration", s.URI))
		}
	}
	return p, errors.Join(errs...)
}
