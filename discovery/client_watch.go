package discovery

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// watchSilence is how long a watch may be silent before it counts as broken.
const watchSilence = 3 * WatchBeat

// maxEventLen bounds the line of one event, in bytes: a node with all the labels
// and loads that it may have is about half of this.
const maxEventLen = 256 << 10

var errWatchSilent = fmt.Errorf("%w: the watch has fallen silent", ErrUnavailable)

// Watch implements Watcher. It watches one server: that which answered last, or
// the next that does. The watch ends when that server does, or is silent for three
// beats; the next Watch goes on from the same mark, with another server if need
// be. ErrNotFound: the server does not know this call.
func (c *Client) Watch(ctx context.Context, q WatchQuery, tell func([]Event) error) error {
	v := url.Values{}
	setNonEmpty(v, "since", q.Since)
	setNonEmpty(v, "role", string(q.Role))
	path := watchPath
	if len(v) > 0 {
		path += "?" + v.Encode()
	}
	first := int(c.preferred.Load())
	var errs []error
	for i := range c.urls {
		at := (first + i) % len(c.urls)
		err := c.watch(ctx, c.urls[at]+path, func(events []Event) error {
			c.preferred.Store(uint32(at))
			return tell(events)
		})
		result := "unavailable"
		var begun *brokenWatch
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &begun):
			countCall(c.met, "watch", "ok")
			return fmt.Errorf("watch the directory: %w", begun.cause)
		case errors.Is(err, ErrRefused):
			result = "refused"
		case errors.Is(err, ErrNotFound):
			result = "not_found"
		case !errors.Is(err, ErrUnavailable):
			result = "error"
		}
		countCall(c.met, "watch", result)
		if result != "unavailable" {
			return fmt.Errorf("watch the directory: %w", err)
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("watch the directory: %w", errors.Join(errs...))
}

// brokenWatch is the error of a watch that had begun.
type brokenWatch struct{ cause error }

func (b *brokenWatch) Error() string { return b.cause.Error() }

// watch watches one server.
func (c *Client) watch(ctx context.Context, target string, tell func([]Event) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// For the head of the answer, and then for each line.
	silence := time.AfterFunc(max(c.timeout, watchSilence), func() { cancel(errWatchSilent) })
	defer silence.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		answer, err := readBounded(resp.Body, maxAnswer)
		if err != nil {
			return fmt.Errorf("%w: read answer of %s: %w", ErrUnavailable, target, err)
		}
		return answerError(resp.StatusCode, target, answer)
	}
	lines := bufio.NewReaderSize(resp.Body, 32<<10)
	events := make([]Event, 0, eventsAtOnce)
	for {
		line, err := readLine(lines, maxEventLen)
		if err == nil {
			var e Event
			switch e, err = parseEvent(line); {
			case err == nil && e != Event{}:
				events = append(events, e)
			case err != nil:
				err = fmt.Errorf("%w: answer of %s: %w", ErrUnavailable, target, err)
			}
		} else {
			err = fmt.Errorf("%w: the watch at %s broke: %w", ErrUnavailable, target, err)
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if err != nil {
			return &brokenWatch{err}
		}
		silence.Reset(watchSilence)
		if len(events) == 0 {
			continue
		}
		if len(events) == cap(events) || lines.Buffered() == 0 || events[len(events)-1].Synced != "" {
			if err := tell(events); err != nil {
				return &brokenWatch{err}
			}
			events = events[:0]
		}
	}
}

// readLine returns the next line, without its end, of at most limit bytes. It is
// valid until the next call.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err == nil {
		return line[:len(line)-1], nil
	}
	var long []byte
	for errors.Is(err, bufio.ErrBufferFull) {
		if long = append(long, line...); len(long) > limit {
			return nil, fmt.Errorf("a line of more than %d bytes", limit)
		}
		line, err = r.ReadSlice('\n')
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return append(long, line[:len(line)-1]...), nil
}
