package hlstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Recording is what Follow saw.
type Recording struct {
	Playlists int
	Segments  []Recorded
	Ended     bool // EXT-X-ENDLIST was seen
	Takeovers int
}

// Recorded is one segment with its bytes.
type Recorded struct {
	Segment
	Body    []byte
	Content *Content
}

// Bytes returns all segments one after the other, as a player feeds them to its
// decoder.
func (r *Recording) Bytes() []byte {
	var b bytes.Buffer
	for _, s := range r.Segments {
		b.Write(s.Body)
	}
	return b.Bytes()
}

// Follow plays the live playlist at address as a player does, reloading it every
// half target duration and fetching each segment once, and checks everything
// with c. It returns at the end of the playlist, when enough says so (called
// after each reload), or when ctx is done, which is no error once a playlist was
// seen. The first breach ends it.
func Follow(ctx context.Context, client *http.Client, address string, c *Checker, enough func(*Recording) bool) (*Recording, error) {
	base, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("follow playlist: %w", err)
	}
	r := &Recording{}
	for {
		body, err := get(ctx, client, base.String(), "application/vnd.apple.mpegurl")
		if err != nil {
			if ctx.Err() != nil && r.Playlists > 0 {
				return r, nil
			}
			return r, err
		}
		r.Playlists++
		p, fresh, err := c.Playlist(body)
		if err != nil {
			return r, fmt.Errorf("playlist %d: %w\n%s", r.Playlists, err, body)
		}
		for _, s := range fresh {
			ref, err := url.Parse(s.URI)
			if err != nil {
				return r, fmt.Errorf("follow playlist: %w", err)
			}
			body, err := get(ctx, client, base.ResolveReference(ref).String(), "video/mp2t")
			if err != nil {
				if ctx.Err() != nil {
					return r, nil
				}
				return r, err
			}
			content, err := c.Segment(s, body)
			if err != nil {
				return r, err
			}
			r.Segments = append(r.Segments, Recorded{s, body, content})
		}
		r.Ended, r.Takeovers = p.End, c.Takeovers
		if r.Ended || enough != nil && enough(r) {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return r, nil
		case <-time.After(time.Duration(p.Target) * time.Second / 2):
		}
	}
}

func get(ctx context.Context, client *http.Client, address, contentType string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", address, err)
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", address, err)
	}
	body, err := io.ReadAll(res.Body)
	err = errors.Join(err, res.Body.Close())
	switch {
	case err != nil:
		return nil, fmt.Errorf("get %s: %w", address, err)
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("get %s: status %s: %s", address, res.Status, strings.TrimSpace(string(body)))
	case res.Header.Get("Content-Type") != contentType:
		return nil, fmt.Errorf("get %s: content type %q", address, res.Header.Get("Content-Type"))
	}
	return body, nil
}
