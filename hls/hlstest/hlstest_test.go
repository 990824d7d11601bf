package hlstest

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const good = `#EXTM3U
#EXT-X-VERSION:3
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:2
#EXT-X-MEDIA-SEQUENCE:10
#EXT-X-DISCONTINUITY-SEQUENCE:5
#EXT-X-DISCONTINUITY
#EXT-X-PROGRAM-DATE-TIME:2026-11-22T05:30:00Z
#EXTINF:2.00000,
a-1-10.ts?vhost=v
#EXT-X-PROGRAM-DATE-TIME:2026-11-22T05:30:02Z
#EXTINF:2.49900,
a-1-11.ts?vhost=v
#EXT-X-PROGRAM-DATE-TIME:2026-11-22T05:30:04.499Z
#EXTINF:2,
a-1-12.ts?vhost=v
`

func TestParse(t *testing.T) {
	p, err := Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if p.Target != 2 || !p.Independent || p.End || len(p.Segments) != 3 {
		t.Errorf("%+v", p)
	}
	s := p.Segments[2]
	if s.Sequence != 12 || s.DiscontinuityNumber != 6 || s.Duration != 2*time.Second || s.URI != "a-1-12.ts?vhost=v" {
		t.Errorf("%+v", s)
	}
}

// Each breach of a single playlist is found.
func TestParseFindsBreaches(t *testing.T) {
	for _, test := range []struct{ name, old, new, want string }{
		{"no header", "#EXTM3U\n", "", "not #EXTM3U"},
		{"byte order mark", "#EXTM3U", "\ufeff#EXTM3U", "byte order mark"},
		{"not UTF-8", "a-1-10", "a\xff", "UTF-8"},
		{"control character", "a-1-10", "a\x01", "control"},
		{"no target", "#EXT-X-TARGETDURATION:2\n", "", "no EXT-X-TARGETDURATION"},
		{"target too short", "#EXT-X-TARGETDURATION:2", "#EXT-X-TARGETDURATION:1", "over the target"},
		{"decimal target", "#EXT-X-TARGETDURATION:2", "#EXT-X-TARGETDURATION:2.5", "decimal integer"},
		{"segment too long", "2.49900", "2.5", "over the target"},
		{"no duration", "#EXTINF:2.00000", "#EXTINF:0.00000", "no duration"},
		{"negative duration", "#EXTINF:2.00000", "#EXTINF:-2.00000", "not a duration"},
		{"no comma", "2.49900,", "2.49900", "comma"},
		{"old version", "#EXT-X-VERSION:3", "#EXT-X-VERSION:2", "EXT-X-VERSION 3"},
		{"twice", "#EXT-X-VERSION:3\n", "#EXT-X-VERSION:3\n#EXT-X-VERSION:3\n", "twice"},
		{"late media sequence", "a-1-12", "a-1-12\n#EXT-X-MEDIA-SEQUENCE:1\nx", "after a segment"},
		{"late discontinuity sequence", "#EXT-X-DISCONTINUITY-SEQUENCE:5\n#EXT-X-DISCONTINUITY\n", "#EXT-X-DISCONTINUITY\n#EXT-X-DISCONTINUITY-SEQUENCE:5\n", "after a segment"},
		{"URI alone", "#EXTINF:2.00000,\n", "", "without EXTINF"},
		{"no zone", "05:30:02Z", "05:30:02", "date and time"},
		{"dangling tag", "a-1-12.ts?vhost=v\n", "", "no URI"},
		{"unknown tag", "#EXT-X-VERSION:3", "#EXT-X-FOO", "unexpected tag"},
		{"no end of line", "a-1-12.ts?vhost=v\n", "a-1-12.ts", "no end"},
		{"space in URI", "a-1-12.ts", "a 12.ts", "not a URI"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bad := strings.Replace(good, test.old, test.new, 1)
			if bad == good {
				t.Fatal("the test changes nothing")
			}
			if _, err := Parse([]byte(bad)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want one with %q", err, test.want)
			}
		})
	}
}

// list makes a playlist of n segments that begins with a given one.
func list(first, n int, edit ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:%d\n#EXT-X-DISCONTINUITY-SEQUENCE:%d\n",
		first, first/2)
	for i := first; i < first+n; i++ {
		if i%2 == 1 {
			b.WriteString("#EXT-X-DISCONTINUITY\n")
		}
		fmt.Fprintf(&b, "#EXTINF:2.0,\na-%d.ts\n", i)
	}
	s := b.String()
	for i := 0; i < len(edit); i += 2 {
		s = strings.Replace(s, edit[i], edit[i+1], 1)
	}
	return s
}

// Each breach that shows from one copy to the next is found.
func TestCheckerFindsBreaches(t *testing.T) {
	for _, test := range []struct{ name, first, second, want string }{
		{"nothing wrong", list(10, 4), list(12, 5), ""},
		{"discontinuity stays in front", list(10, 4), list(11, 4), ""},
		{"end", list(10, 4), list(10, 4) + "#EXT-X-ENDLIST\n", ""},
		{"sequence goes back", list(10, 4), list(9, 5), "goes back from 10 to 9"},
		{"segments vanish at the end", list(10, 4), list(10, 3), "ends before"},
		{"target changes", list(10, 4), list(10, 4, "DURATION:2", "DURATION:3"), "target duration changes"},
		{"version changes", list(10, 4), list(10, 4, "VERSION:3", "VERSION:4"), "version changes"},
		{"duration changes", list(10, 4), list(10, 4, "2.0", "1.9"), "segment 10 was"},
		{"URI changes", list(10, 4), list(10, 4, "a-11", "b-11"), "segment 11 was"},
		{"numbers slip", list(10, 4), list(10, 5, "a-10.ts\n", "", "#EXTINF:2.0,\n", ""), "was"},
		{"same URI again", list(10, 4), list(10, 5, "a-14", "a-10"), "same URI"},
		{"discontinuity appears", list(10, 4), list(10, 4, "#EXTINF:2.0,\na-12", "#EXT-X-DISCONTINUITY\n#EXTINF:2.0,\na-12"), "discontinuity number"},
		{"discontinuity not counted", list(11, 4), list(12, 4, "CE:6", "CE:5"), "discontinuity number"},
		{"too short after removal", list(10, 4), list(12, 2), "less than three"},
		{"comes back to life", list(10, 4) + "#EXT-X-ENDLIST\n", list(10, 4), "disappears"},
		{"grows after its end", list(10, 4) + "#EXT-X-ENDLIST\n", list(10, 5) + "#EXT-X-ENDLIST\n", "added after"},
		{"empty", list(10, 4), list(10, 0), "empty"},
		{"another owner", list(10, 4), strings.ReplaceAll(list(20, 4), "a-", "b-"), ""},
		{"another owner with old numbers", list(10, 4), strings.ReplaceAll(list(9, 9), "a-", "b-"), "takeover: media sequence"},
		{"another owner with the same discontinuity", list(10, 4), strings.ReplaceAll(list(20, 4, "CE:10", "CE:7"), "a-", "b-"), "takeover: the discontinuity"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := Checker{AllowTakeover: true}
			if _, fresh, err := c.Playlist([]byte(test.first)); err != nil || len(fresh) != 4 {
				t.Fatal(err)
			}
			_, _, err := c.Playlist([]byte(test.second))
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("error is %v, want one with %q", err, test.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(list(1, 3)))
	f.Add([]byte("#EXTM3U\n#EXTINF:,\n\n#EXT\r\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		p, err := Parse(body)
		if err != nil {
			return
		}
		for i, s := range p.Segments {
			if s.Duration <= 0 || s.URI == "" || s.Sequence != p.MediaSequence+uint64(i) {
				t.Fatalf("%+v", s)
			}
		}
	})
}

func FuzzInspect(f *testing.F) {
	f.Add(make([]byte, 188))
	f.Add(append([]byte{0x47, 0x40, 0, 0x10, 0, 0, 0xb0, 13, 0, 1, 0xc1, 0, 0, 0, 1, 0xf0, 0}, make([]byte, 171)...))
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := Inspect(body)
		if c.Duration() > 0 && len(c.Tracks) == 0 {
			t.Fatalf("a duration without a track, %v", err)
		}
	})
}
