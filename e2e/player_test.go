package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"weir/internal/flv"
	"weir/internal/media"
)

// player plays an HTTP-FLV URL on one connection, following HTTP redirects, and
// keeps what it saw of each tag. Safe for concurrent use.
type player struct {
	t    testing.TB
	url  string
	stop context.CancelFunc // ends it; done is closed then
	done chan struct{}

	mu      sync.Mutex
	frames  []frame
	headers []media.Kind // of decoder headers and metadata, in order
	ready   time.Duration
	err     error // why it ended; nil if the server ended the stream cleanly
}

// playFLV starts a player. host, if not empty, is sent as the Host header.
func playFLV(t testing.TB, url, host string) *player {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &player{t: t, url: url, stop: cancel, done: make(chan struct{})}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		request.Host = host
	}
	go func() {
		defer close(p.done)
		err := p.run(request)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.err = err
	}()
	t.Cleanup(func() { p.end() })
	return p
}

func (p *player) run(request *http.Request) error {
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	defer transport.CloseIdleConnections()
	begin := time.Now()
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 256))
		return fmt.Errorf("play %s: %s: %s", p.url, response.Status, text)
	}
	r := flv.NewReader(response.Body, 0)
	for {
		tag, err := r.ReadTag()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		f, isFrame := frameOf(tag)
		p.mu.Lock()
		switch {
		case isFrame:
			if p.frames == nil {
				p.ready = time.Since(begin)
			}
			p.frames = append(p.frames, f)
		case media.Sniff(tag.Kind(), tag.Body()).IsHeader():
			p.headers = append(p.headers, tag.Kind())
		}
		p.mu.Unlock()
	}
}

// end stops the player and returns its frames.
func (p *player) end() []frame {
	p.stop()
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.frames
}

// playing returns nil while the player is connected.
func (p *player) playing() error {
	select {
	case <-p.done:
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.err == nil {
			return errors.New("the server has ended the stream")
		}
		return p.err
	default:
		return nil
	}
}

// videoFrames is how many the player has.
func (p *player) videoFrames() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return count(p.frames, media.Video)
}

// await waits until the player has n video frames more than before; 0: than
// none.
func (p *player) await(n, before int) {
	p.t.Helper()
	eventually(p.t, waitTimeout, fmt.Sprintf("the player of %s has %d more video frames", p.url, n), func() error {
		if err := p.playing(); err != nil {
			p.t.Fatalf("play %s: %v", p.url, err)
		}
		if got := p.videoFrames(); got < before+n {
			return fmt.Errorf("it has %d, had %d", got, before)
		}
		return nil
	})
}

// requireHeaders fails unless both decoder headers came before the first frame,
// and the metadata before them.
func (p *player) requireHeaders() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := map[media.Kind]bool{}
	for _, kind := range p.headers {
		seen[kind] = true
	}
	for _, kind := range []media.Kind{media.Data, media.Video, media.Audio} {
		if !seen[kind] {
			p.t.Errorf("player of %s: no %v header in %v", p.url, kind, p.headers)
		}
	}
}
