package discovery

import (
	"bufio"
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// watchPath is the call that a watch is made with.
const watchPath = "/api/v1/watch"

// watches answers the watch call: a response that does not end, one event a line.
type watches struct {
	// Static.
	h       *handler
	watcher Watcher
	max     int64
	stop    context.Context
	timeout time.Duration // of one write
	refused *metrics.Counter
	slow    *metrics.Counter
	told    *metrics.Counter

	count atomic.Int64
}

func newWatches(h *handler, w Watcher) *watches {
	ws := &watches{
		h: h, watcher: w, max: int64(h.cfg.MaxWatches), stop: h.cfg.Stop, timeout: h.cfg.WriteTimeout,
		refused: h.cfg.Metrics.GetOrCreateCounter(`weir_discovery_watches_refused_total`),
		slow:    h.cfg.Metrics.GetOrCreateCounter(`weir_discovery_watches_slow_total`),
		told:    h.cfg.Metrics.GetOrCreateCounter(`weir_discovery_watch_events_total`),
	}
	if ws.stop == nil {
		ws.stop = context.Background()
	}
	h.cfg.Metrics.GetOrCreateGauge(`weir_discovery_watches`, func() float64 { return float64(ws.count.Load()) })
	return ws
}

func (ws *watches) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		ws.h.fail(w, r, &apiError{http.StatusMethodNotAllowed, codeMethod, "method " + r.Method + " is not allowed here"})
		return
	}
	q, err := query(r, "since", "role")
	if err != nil {
		ws.h.fail(w, r, err)
		return
	}
	defer ws.count.Add(-1)
	if n := ws.count.Add(1); ws.max > 0 && n > ws.max {
		ws.refused.Inc()
		ws.h.fail(w, r, &apiError{http.StatusServiceUnavailable, codeUnavailable, "as many nodes are watching as max_connections allows"})
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(ws.stop, cancel)()

	out := &eventWriter{
		w: w, ctl: http.NewResponseController(w), buf: bufio.NewWriterSize(w, 16<<10), timeout: ws.timeout, told: ws.told,
	}
	// The server's deadlines are for calls that end. Where there are none to set,
	// nothing is lost but the cutting of slow watchers.
	_ = out.ctl.SetReadDeadline(time.Time{})
	err = ws.watcher.Watch(ctx, WatchQuery{Since: q["since"], Role: Role(q["role"])}, out.tell)
	switch {
	case !out.begun:
		ws.h.fail(w, r, err)
	case out.slow:
		ws.slow.Inc()
		ws.h.cfg.Logger.Warn("watcher is too slow: cut", "remote", r.RemoteAddr)
	}
}

// eventWriter writes events to one watcher.
type eventWriter struct {
	w       http.ResponseWriter
	ctl     *http.ResponseController
	buf     *bufio.Writer
	timeout time.Duration
	told    *metrics.Counter
	begun   bool
	slow    bool
}

func (o *eventWriter) tell(events []Event) error {
	if !o.begun {
		o.begun = true
		h := o.w.Header()
		h.Set("Content-Type", "application/x-ndjson")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
	}
	if o.timeout > 0 {
		_ = o.ctl.SetWriteDeadline(time.Now().Add(o.timeout))
	}
	err := o.write(events)
	var late interface{ Timeout() bool }
	o.slow = errors.As(err, &late) && late.Timeout()
	return err
}

func (o *eventWriter) write(events []Event) error {
	for i := range events {
		line, err := events[i].line()
		if err != nil {
			return err
		}
		if _, err := o.buf.Write(line); err != nil {
			return err
		}
	}
	o.told.Add(len(events))
	// What comes before a mark goes out with it.
	if n := len(events); n == 0 || events[n-1].Synced == "" {
		return nil
	}
	if err := o.buf.Flush(); err != nil {
		return err
	}
	return o.ctl.Flush()
}
