package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/bluenviron/gohlslib/v2/pkg/playlist"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mpegts"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mpegts/codecs"

	"weir/internal/media"
)

// hlsPlayer is a player of HLS: it fetches the playlist when a new segment is
// due (RFC 8216, section 6.3.4) and each segment once, on one connection. Only
// those that are probes look into the segments.
type hlsPlayer struct {
	probe
	start  string // URL of the playlist
	parse  bool
	client *http.Client

	stats hlsStats // guarded by probe.mu
}

type hlsStats struct {
	segments, missed, stalls int
	playlists, fetches       histogram
	end                      time.Time     // when what was fetched has been shown; zero before the beginning
	ahead                    time.Duration // fetched before the beginning
}

// HLSSight is what the HLS players saw.
type HLSSight struct {
	Segments int `json:"segments"`
	// Missed segments left the playlist before a player could ask for them.
	Missed int `json:"missed"`
	// Stalls are how often a player that began to show once it had three segments
	// would have had nothing more to show.
	Stalls int `json:"stalls"`
	// Playlist and Segment are the times from request to last byte.
	Playlist Delays `json:"playlist"`
	Segment  Delays `json:"segment"`
}

func (h *HLSSight) write(row rowFunc) {
	row("HLS", "%d segments, %d missed, %d stalls", h.Segments, h.Missed, h.Stalls)
	row("", "segment p50 %.1f ms, p99 %.1f ms; playlist p50 %.1f ms, p99 %.1f ms", h.Segment.P50MS, h.Segment.P99MS, h.Playlist.P50MS, h.Playlist.P99MS)
}

// Bounds of what a server may send, in bytes.
const (
	maxPlaylist = 1 << 20
	maxSegment  = 256 << 20
)

// hlsBegin is how many segments a player begins before the playlist's end, and
// how many it wants before it shows the first.
const hlsBegin = 3

func (r *run) newHLSPlayer(stream int, parse bool) *hlsPlayer {
	p := &hlsPlayer{
		start: r.t.play.Scheme + "://" + r.t.play.Host + r.t.playTarget(&r.cfg, stream, ".m3u8"),
		parse: parse,
	}
	p.probe = probe{id: r.id, stream: stream, clock: r.clock}
	transport := &http.Transport{
		TLSClientConfig: r.tls, MaxConnsPerHost: 1, DisableCompression: true, ResponseHeaderTimeout: joinTimeout,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			if addr != r.t.playAddr {
				// A redirect led elsewhere.
				if _, err := r.cfg.resolve(addr); err != nil {
					return nil, err
				}
				return new(net.Dialer).DialContext(ctx, "tcp", addr)
			}
			c, err := r.dial(ctx, 0)
			if err != nil {
				return nil, err
			}
			return &counted{Conn: c, n: &r.probeBytes}, nil
		},
	}
	p.client = &http.Client{Transport: transport}
	return p
}

// run plays until ctx ends or the server refuses.
func (p *hlsPlayer) run(ctx context.Context, ph *phases) {
	defer p.client.CloseIdleConnections()
	p.mu.Lock()
	p.seen.begun = p.clock.now()
	p.mu.Unlock()
	err := p.play(ctx, ph)
	if ctx.Err() == nil {
		p.finish(err)
	}
}

func (p *hlsPlayer) play(ctx context.Context, ph *phases) error {
	target, err := url.Parse(p.start)
	if err != nil {
		return err
	}
	next := -1 // media sequence number of the segment to fetch
	for tries := 0; ; {
		begun := time.Now()
		list, base, err := p.list(ctx, target)
		if err != nil {
			// A stream that has just begun has no playlist yet.
			if tries++; next >= 0 || tries > 30 {
				return err
			}
			if err := sleep(ctx, time.Second); err != nil {
				return err
			}
			continue
		}
		target = base
		if next < 0 {
			next = list.MediaSequence + max(0, len(list.Segments)-hlsBegin)
		}
		if next < list.MediaSequence {
			p.note(func(s *hlsStats) { s.missed += list.MediaSequence - next })
			next = list.MediaSequence
		}
		had := next
		for _, s := range list.Segments[min(next-list.MediaSequence, len(list.Segments)):] {
			if err := p.segment(ctx, base, s, ph); err != nil {
				return err
			}
			next++
		}
		wait := time.Duration(list.TargetDuration) * time.Second
		if next == had {
			wait /= 2
		}
		if err := sleep(ctx, time.Until(begun.Add(wait))); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// list fetches a media playlist, that of the first variant if there are several.
func (p *hlsPlayer) list(ctx context.Context, u *url.URL) (*playlist.Media, *url.URL, error) {
	for range 2 {
		begun := p.clock.now()
		var b bytes.Buffer
		base, err := p.get(ctx, u, &b, maxPlaylist)
		if err != nil {
			return nil, nil, err
		}
		p.note(func(s *hlsStats) { s.playlists.add(p.clock.now() - begun) })
		list, err := playlist.Unmarshal(b.Bytes())
		if err != nil {
			return nil, nil, fmt.Errorf("read playlist: %w", err)
		}
		switch l := list.(type) {
		case *playlist.Media:
			return l, base, nil
		case *playlist.Multivariant:
			if len(l.Variants) == 0 {
				return nil, nil, errors.New("read playlist: no variant")
			}
			if u, err = base.Parse(l.Variants[0].URI); err != nil {
				return nil, nil, fmt.Errorf("read playlist: %w", err)
			}
		}
	}
	return nil, nil, errors.New("read playlist: variants of variants")
}

// get fetches a file and returns the URL that it came from.
func (p *hlsPlayer) get(ctx context.Context, u *url.URL, w io.Writer, limit int64) (*url.URL, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "weir-bench")
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10)) // so that the connection can be used again
		return nil, fmt.Errorf("%w: HTTP %s", errRefused, resp.Status)
	}
	n, err := io.Copy(w, io.LimitReader(resp.Body, limit))
	if err == nil && n == limit {
		err = fmt.Errorf("%s has more than %d bytes", u.Path, limit)
	}
	return resp.Request.URL, err
}

func (p *hlsPlayer) note(f func(s *hlsStats)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.stats)
}

// segment fetches one segment.
func (p *hlsPlayer) segment(ctx context.Context, base *url.URL, s *playlist.MediaSegment, ph *phases) error {
	u, err := base.Parse(s.URI)
	if err != nil {
		return fmt.Errorf("read playlist: %w", err)
	}
	var b bytes.Buffer
	w := io.Discard
	if p.parse {
		w = &b
	}
	begun := p.clock.now()
	if _, err := p.get(ctx, u, w, maxSegment); err != nil {
		return err
	}
	now, wall := p.clock.now(), time.Now()
	p.note(func(st *hlsStats) {
		st.segments++
		st.fetches.add(now - begun)
		switch {
		case st.end.IsZero():
			st.ahead += s.Duration
			if st.segments == hlsBegin {
				st.end = wall.Add(st.ahead)
			}
		case wall.After(st.end):
			st.stalls++
			st.end = wall.Add(s.Duration)
		default:
			st.end = st.end.Add(s.Duration)
		}
		if !p.seen.playing {
			p.seen.playing, p.seen.firstKF = true, now-p.seen.begun
		}
	})
	if !p.parse {
		return nil
	}
	return p.lookInto(b.Bytes(), now, ph)
}

// lookInto judges the frames of a segment of MPEG-TS.
func (p *hlsPlayer) lookInto(b []byte, now time.Duration, ph *phases) error {
	r := &mpegts.Reader{R: bytes.NewReader(b)}
	if err := r.Initialize(); err != nil {
		return fmt.Errorf("read segment: %w", err)
	}
	for _, t := range r.Tracks() {
		switch t.Codec.(type) {
		case *codecs.H264:
			r.OnDataH264(t, func(_, _ int64, au [][]byte) error {
				var m mark
				var ok bool
				for _, unit := range au {
					if !ok {
						m, ok = findMark(unit)
					}
				}
				p.frame(media.Video, m, ok, h264.IsRandomAccess(au), now, ph)
				return nil
			})
		case *codecs.MPEG4Audio:
			r.OnDataMPEG4Audio(t, func(_ int64, units [][]byte) error {
				for _, unit := range units {
					m, ok := findMark(unit)
					p.frame(media.Audio, m, ok, false, now, ph)
				}
				return nil
			})
		}
	}
	for {
		if err := r.Read(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read segment: %w", err)
		}
	}
}

func (r *run) summarizeHLS() {
	if r.t.protocol != HLS {
		return
	}
	rep := &r.report
	sum := &HLSSight{}
	rep.HLS = sum
	var playlists, segments, joins histogram
	for _, p := range r.hls {
		s := p.snapshot()
		p.note(func(st *hlsStats) {
			sum.Segments += st.segments
			sum.Missed += st.missed
			sum.Stalls += st.stalls
			playlists.merge(&st.playlists)
			segments.merge(&st.fetches)
		})
		if p.parse {
			rep.Probes.add(&s)
		}
		rep.noteEnd(&s)
		if s.playing {
			joins.add(s.firstKF)
		}
	}
	sum.Playlist, sum.Segment = playlists.delays(), segments.delays()
	rep.FirstKeyFrame = joins.delays()
}
