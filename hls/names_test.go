package hls

import (
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestParsePath(t *testing.T) {
	for _, test := range []struct {
		path string
		want Request
		ok   bool
	}{
		{"/live/a.m3u8", Request{App: "live", Name: "a"}, true},
		{"/live/x/a b.m3u8", Request{App: "live/x", Name: "a b"}, true},
		{"/live/a-7-99.ts", Request{App: "live", Name: "a", Segment: true, Epoch: 7, Seq: 99}, true},
		{"/live/a-1-2-7-99.ts", Request{App: "live", Name: "a-1-2", Segment: true, Epoch: 7, Seq: 99}, true},
		{"/live/a-0-18446744073709551615.ts", Request{App: "live", Name: "a", Segment: true, Seq: 1<<64 - 1}, true},
		{"/live/a-7-18446744073709551616.ts", Request{}, false},
		{"/live/a-07-99.ts", Request{}, false},
		{"/live/a-7-+9.ts", Request{}, false},
		{"/live/-7-9.ts", Request{}, false},
		{"/live/a-7.ts", Request{}, false},
		{"/live/a.ts", Request{}, false},
		{"/live/a.flv", Request{}, false},
		{"/live/.m3u8", Request{}, false},
		{"/a.m3u8", Request{}, false},
		{"//a.m3u8", Request{}, false},
		{"//live/a.m3u8", Request{}, false},
		{"/live//a.m3u8", Request{}, false},
		{"/live/../a.m3u8", Request{}, false},
		{"live/a.m3u8", Request{}, false},
		{"", Request{}, false},
		{"/live/" + strings.Repeat("a", MaxPath) + ".m3u8", Request{}, false},
	} {
		got, ok := ParsePath(test.path)
		if ok != test.ok || ok && got != test.want {
			t.Errorf("ParsePath(%.60q) = %+v, %v", test.path, got, ok)
		}
	}
}

// A reference to a segment, resolved against the playlist's URI as a player does
// it, is the URI of the segment.
func TestSegmentReferencesResolve(t *testing.T) {
	for _, name := range []string{"a", "a:b", "100%", "#1", "a?b", "ü ß", "a&b=c", "-", "..", "a\nb"} {
		r := Request{App: "live/x", Name: name}
		base, err := url.Parse("http://127.0.0.1:8080" + r.URI("v.test"))
		if err != nil {
			t.Fatal(err)
		}
		ref, err := url.Parse(segmentURI(name, 3, 4, "v.test"))
		if err != nil {
			t.Fatal(err)
		}
		got := base.ResolveReference(ref)
		back, ok := ParsePath(got.Path)
		if want := (Request{App: "live/x", Name: name, Segment: true, Epoch: 3, Seq: 4}); !ok || back != want {
			t.Errorf("%q: %s is read as %+v, %v", name, got, back, ok)
		}
		if got.Query().Get("vhost") != "v.test" || len(got.Query()) != 1 {
			t.Errorf("%q: %s", name, got)
		}
	}
}

func TestNumbersGrowWithTheClock(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	if a, b := numberAt(now), numberAt(now.Add(time.Minute)); b != a+120 {
		t.Errorf("%d, a minute later %d", a, b)
	}
	if n := numberAt(time.Date(2053, 1, 1, 0, 0, 0, 0, time.UTC)); n >= 1<<31 {
		t.Errorf("%d has more than 31 bits", n)
	}
	if n := numberAt(time.Unix(0, 0)); n != 0 {
		t.Errorf("a clock that was never set gives %d", n)
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"/live/a.m3u8", "/live/a-7-99.ts", "/a/b/c-1-2-3-4.ts", "/live/a%2fb.m3u8", "//.ts"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		r, ok := ParsePath(path)
		if !ok {
			return
		}
		if r.App == "" || r.Name == "" || strings.Contains(r.Name, "/") {
			t.Fatalf("%q is read as %+v", path, r)
		}
		u, err := url.Parse(r.URI("v"))
		if err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		if u.Path != path {
			t.Fatalf("%q is written as %q", path, u.Path)
		}
	})
}
