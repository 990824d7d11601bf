package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"weir/internal/drain"
)

// drain starts a drain, says how far it is, or takes it back.
func (s *Server) drain(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPost:
		deadline, rate, err := drainWishes(r.URL.Query())
		if err != nil {
			writeError(w, http.StatusBadRequest, err.Error())
			return
		}
		status, err := s.Drain.Start(deadline, rate, "admin API, "+r.RemoteAddr)
		if err != nil {
			writeError(w, http.StatusBadRequest, err.Error())
			return
		}
		writeJSON(w, http.StatusAccepted, status)
	case http.MethodDelete:
		writeJSON(w, http.StatusOK, s.Drain.Undrain())
	default:
		writeJSON(w, http.StatusOK, s.Drain.Status())
	}
}

// drainStatus is nil at a node that cannot drain.
func (s *Server) drainStatus() *drain.Status {
	if s.Drain == nil {
		return nil
	}
	status := s.Drain.Status()
	return &status
}

// drainWishes reads the query of a request to drain; nil where it says nothing.
func drainWishes(q url.Values) (deadline *time.Duration, rate *float64, err error) {
	for key, values := range q {
		text := values[0]
		switch key {
		case "deadline":
			d, err := time.ParseDuration(text)
			if err != nil {
				return nil, nil, fmt.Errorf("deadline: %q is no duration such as 60s", text)
			}
			deadline = &d
		case "kick_rate":
			x, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return nil, nil, fmt.Errorf("kick_rate: %q is no number", text)
			}
			rate = &x
		default:
			return nil, nil, fmt.Errorf("%s: no such parameter; there are deadline and kick_rate", key)
		}
	}
	return deadline, rate, nil
}

// DrainWorkers returns the Apply of a drain.Node whose sessions are in the worker
// processes that list returns. Each gets its share of the rate. A process that is
// not ready has no sessions; it learns of the order when it is. What a process that has
// ended had moved and cut stays in the sum. The Apply is not for concurrent use.
func DrainWorkers(list func() []WorkerInfo, dial func(ctx context.Context, index int) (net.Conn, error)) func(context.Context, *drain.Order) (drain.Progress, error) {
	w := newWorkers(list, dial)
	var since time.Time              // the drain that done is of
	done := map[int]drain.Progress{} // by PID: what its last answer says is over
	return func(ctx context.Context, o *drain.Order) (drain.Progress, error) {
		if o == nil || !o.Since.Equal(since) {
			clear(done)
		}
		if o != nil {
			since = o.Since
		}
		ready := slices.DeleteFunc(w.list(), func(i WorkerInfo) bool { return i.State != workerReady && i.State != workerRetiring })
		share := o
		if o != nil && o.KickRate > 0 {
			share = &drain.Order{Since: o.Since, Until: o.Until, KickRate: o.KickRate / float64(max(len(ready), 1))}
		}
		body, err := json.Marshal(share)
		if err != nil {
			return drain.Progress{}, fmt.Errorf("write order: %w", err)
		}
		var sum drain.Progress
		var errs []error
		for i, a := range w.askThese(ctx, ready, http.MethodPut, workerDrain, body) {
			var p drain.Progress
			err := a.err
			if err == nil && a.status != http.StatusOK {
				err = fmt.Errorf("ask worker %s: HTTP status %d", a.name, a.status)
			}
			if err == nil {
				err = json.Unmarshal(a.body, &p)
			}
			if err == nil {
				done[ready[i].PID] = drain.Progress{Moved: p.Moved, Cut: p.Cut}
				sum.Players, sum.Publishers = sum.Players+p.Players, sum.Publishers+p.Publishers
			}
			errs = append(errs, err)
		}
		for _, p := range done {
			sum = sum.Add(p)
		}
		return sum, errors.Join(errs...)
	}
}
