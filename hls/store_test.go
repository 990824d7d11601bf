package hls

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weir/hls/hlstest"
	"weir/internal/units"
)

// storeAt returns a store whose clock is *now.
func storeAt(config Config, now *time.Time) *Store {
	return newStore(config, "a", "", 7, func() time.Time { return *now })
}

func body(n int) []byte { return make([]byte, n) }

// A removed segment stays available for its duration and that of the longest
// playlist that listed it (RFC 8216 section 6.2.2), and then goes.
func TestRemovedSegmentsStayForAWhile(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	config := DefaultConfig()
	config.Window = 3
	s := storeAt(config, &now)
	first := s.nextSeq
	add := func() {
		s.add(cut{body: body(10), duration: 2 * time.Second, start: now, independent: true})
		now = now.Add(2 * time.Second)
	}
	for range 4 {
		add()
	}
	// Segment 0 was removed at 6 s, from a playlist of 8 s: it goes at 16 s.
	for step := 4; step <= 12; step++ {
		want := 200
		if step > 8 {
			want = 404
		}
		if got := s.Segment(7, first).Status; got != want {
			t.Errorf("at %d s the first segment is answered with %d, want %d", 2*step-2, got, want)
		}
		add()
	}
	if got := s.Stats(); got.Listed != 3 || got.Retired > 6 {
		t.Errorf("%+v", got)
	}
	for _, o := range []Object{s.Segment(7, first), s.Segment(7, s.nextSeq), s.Segment(6, s.nextSeq-1)} {
		if o.Status != 404 || !strings.HasPrefix(string(o.Body), "no such segment") {
			t.Errorf("%d %s", o.Status, o.Body)
		}
	}
}

// A playlist is never cut to less than three target durations by the window.
func TestShortSegmentsMakeALongerWindow(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	config := DefaultConfig()
	config.Window = 3
	s := storeAt(config, &now)
	var c hlstest.Checker
	for range 40 {
		s.add(cut{body: body(10), duration: 700 * time.Millisecond, start: now, independent: true})
		now = now.Add(700 * time.Millisecond)
		if _, _, err := c.Playlist(s.Playlist(t.Context()).Body); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Stats().Listed; got != 9 {
		t.Errorf("%d segments of 0.7 s are listed, want 9", got)
	}
}

// The byte limit comes before everything else but the newest segment.
func TestStoreIsBoundedByBytes(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	config := DefaultConfig()
	config.MaxSegmentBytes, config.MaxBytes = 256*units.KiB, units.MiB
	s := storeAt(config, &now)
	for i := range 100 {
		s.add(cut{body: body(1000 * (i%256 + 1)), duration: 2 * time.Second, start: now})
		st := s.Stats()
		if st.Bytes > int64(config.MaxBytes-config.MaxSegmentBytes) || st.Listed < 1 {
			t.Fatalf("after %d segments: %+v", i+1, st)
		}
		if n := len(s.segments); n != st.Listed+st.Retired {
			t.Fatalf("%d segments are known, %d listed, %d retired", n, st.Listed, st.Retired)
		}
	}
}

// The sequence numbers of the next owner are larger and its discontinuity numbers
// others, whatever the first one did in its time.
func TestTakeoverByAnotherOrigin(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	c := hlstest.Checker{AllowTakeover: true}
	for epoch := range 5 {
		s := newStore(DefaultConfig(), "a", "", uint64(epoch), func() time.Time { return now })
		for i := range 20 {
			s.add(cut{body: body(10), duration: 2 * time.Second, start: now, discontinuity: i%3 == 0, independent: true})
			now = now.Add(2 * time.Second)
			if _, _, err := c.Playlist(s.Playlist(t.Context()).Body); err != nil {
				t.Fatalf("epoch %d, segment %d: %v", epoch, i, err)
			}
		}
	}
	if c.Takeovers != 4 {
		t.Errorf("%d takeovers were seen", c.Takeovers)
	}
}

func TestPlaylistRequestWaits(t *testing.T) {
	ask := func(s *Store, wait time.Duration) (Object, time.Duration) {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		begin := time.Now()
		o := s.Playlist(ctx)
		return o, time.Since(begin)
	}
	for _, test := range []struct {
		name   string
		act    func(s *Store) // after a second
		status int
		text   string
		after  time.Duration
	}{
		{"for the first segment", func(s *Store) { s.add(cut{body: body(1), duration: time.Second}) }, 200, "#EXTM3U", time.Second},
		{"no longer than the stream lives", func(s *Store) { s.end() }, 404, "the stream ended before", time.Second},
		{"no longer than there is hope", func(s *Store) { s.explain("no HLS form", true) }, 404, "no HLS form", time.Second},
		{"until its deadline", func(s *Store) {}, 404, "the stream is live but its first", 5 * time.Second},
		{"until its deadline, with a reason", func(s *Store) { s.explain("no key frame", false) }, 404, "no key frame", 5 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(DefaultConfig(), "a", "", 7, time.Now)
				timer := time.AfterFunc(time.Second, func() { test.act(s) })
				defer timer.Stop()
				o, took := ask(s, 5*time.Second)
				if o.Status != test.status || !strings.HasPrefix(string(o.Body), test.text) || took != test.after {
					t.Errorf("%d %q after %v", o.Status, o.Body, took)
				}
			})
		})
	}
}

func TestPlaylistBytes(t *testing.T) {
	now := time.Date(2026, 11, 22, 6, 30, 0, 0, time.FixedZone("", 3600))
	s := newStore(DefaultConfig(), "mit Leerzeichen:ü", "a&b", 12, func() time.Time { return now })
	for i := range 2 {
		s.add(cut{
			body: body(1), duration: 2002 * time.Millisecond, independent: true, discontinuity: i == 0,
			start: now.UTC().Add(time.Duration(i) * 2002 * time.Millisecond),
		})
	}
	s.end()
	seq := s.nextSeq - 2
	name := "mit%20Leerzeichen%3A%C3%BC-12-"
	want := fmt.Sprintf(`#EXTM3U
#EXT-X-VERSION:3
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:2
#EXT-X-MEDIA-SEQUENCE:%[1]d
#EXT-X-DISCONTINUITY-SEQUENCE:%[4]d
#EXT-X-DISCONTINUITY
#EXT-X-PROGRAM-DATE-TIME:2026-11-22T05:30:00Z
#EXTINF:2.00200,
%[3]s%[1]d.ts?vhost=a%%26b
#EXT-X-PROGRAM-DATE-TIME:2026-11-22T05:30:02.002Z
#EXTINF:2.00200,
%[3]s%[2]d.ts?vhost=a%%26b
#EXT-X-ENDLIST
`, seq, seq+1, name, seq%discontinuityWrap)
	got := s.Playlist(t.Context())
	if string(got.Body) != want {
		t.Errorf("got:\n%s\nwant:\n%s", got.Body, want)
	}
	if got.ContentType != "application/vnd.apple.mpegurl" || got.CacheControl != "public, max-age=1" || got.ETag == "" {
		t.Errorf("%+v", got)
	}
	if seg := s.Segment(12, seq); seg.ContentType != "video/mp2t" || !strings.Contains(seg.CacheControl, "immutable") {
		t.Errorf("%+v", seg)
	}
}

// Playlists tell of which ownership the stream is, as soon as that is known and again
// when it changes; the names of the segments stay.
func TestPlaylistTellsOwnership(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	s := storeAt(DefaultConfig(), &now)
	f := func(want uint64, wantOK bool) {
		t.Helper()
		got := s.Playlist(t.Context())
		if epoch, ok := PlaylistEpoch(got.Body); epoch != want || ok != wantOK {
			t.Errorf("epoch %d, %t, want %d, %t in\n%s", epoch, ok, want, wantOK, got.Body)
		}
		p, err := hlstest.Parse(got.Body)
		if err != nil {
			t.Fatalf("%v in\n%s", err, got.Body)
		}
		if n := len(p.Segments); n != 1 || !strings.HasPrefix(p.Segments[0].URI, "a-7-") {
			t.Errorf("%d segments in\n%s", n, got.Body)
		}
	}
	s.add(cut{body: body(10), duration: 2 * time.Second, start: now, independent: true})
	f(0, false)
	before := s.Playlist(t.Context()).ETag
	s.SetOwnership(8)
	f(8, true)
	if s.Playlist(t.Context()).ETag == before {
		t.Error("a playlist has changed and its tag has not")
	}
	s.SetOwnership(12)
	f(12, true)

	s = storeAt(DefaultConfig(), &now)
	s.SetOwnership(8) // before there is a playlist
	s.add(cut{body: body(10), duration: 2 * time.Second, start: now, independent: true})
	s.end()
	f(8, true)

	for _, other := range []string{"", "#EXTM3U", "#EXTM3U\n#WEIR-EPOCH:", "#EXTM3U\n#WEIR-EPOCH:7", "#EXTM3U\n#WEIR-EPOCH:0\n", "#EXTM3U\n#WEIR-EPOCH:-7\n", "#EXTM3U\n#WEIR-EPOCH:18446744073709551616\n", "\n#WEIR-EPOCH:7\n"} {
		if epoch, ok := PlaylistEpoch([]byte(other)); ok {
			t.Errorf("%q is of epoch %d", other, epoch)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	if err := DefaultCacheConfig().Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	lines := func(err error) []string {
		var keys []string
		for line := range strings.Lines(err.Error()) {
			key, _, _ := strings.Cut(line, ":")
			keys = append(keys, key)
		}
		return keys
	}
	bad := Config{TargetDuration: 1, MaxDuration: 0, Wait: -1, Linger: -1, MaxBytes: 1}
	want := []string{"target_duration", "max_duration", "window", "max_segment_bytes", "wait", "linger"}
	bad.MaxBytes, bad.MaxSegmentBytes = 0, 0
	if got := lines(bad.Validate()); !slices.Equal(got, want) {
		t.Errorf("complaints about %v, want %v", got, want)
	}
	small := DefaultConfig()
	small.MaxBytes = small.MaxSegmentBytes
	if got := lines(small.Validate()); !slices.Equal(got, []string{"max_bytes"}) {
		t.Errorf("complaints about %v", got)
	}
	cache := CacheConfig{PlaylistTTL: -1, NegativeTTL: -1, StaleFor: -1, MaxBytes: -1}
	wantCache := []string{"max_object_bytes", "max_bytes", "playlist_ttl", "negative_ttl", "stale_for", "fetch_timeout", "max_fetches"}
	if got := lines(cache.Validate()); !slices.Equal(got, wantCache) {
		t.Errorf("complaints about %v, want %v", got, wantCache)
	}
}
