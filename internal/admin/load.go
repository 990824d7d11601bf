package admin

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"time"

	"weir/internal/load"
)

// heard is what a supervisor knows of the load of a worker.
type heard struct {
	// Owned by the one caller of WorkerLoads' function.
	pid    int
	line   *line     // nil while there is none
	at     time.Time // when it last answered anything; of one that is new, when it came
	report load.Report
	known  bool // report is
}

// hangUp closes the line, if there is one.
func (h *heard) hangUp() {
	if h.line != nil {
		h.line.close()
		h.line = nil
	}
}

// WorkerLoads returns a function that tells the workers of a node its status and asks
// them for what they measure of themselves, for load.NodeOptions.Workers. It takes a second at most. A
// worker that is ready and does not answer counts as late by as long as it has been
// silent, with the last that it said. The function is for one caller at a time; it
// keeps a connection to each worker until the context ends that it was called with
// first.
func WorkerLoads(list func() []WorkerInfo, dial func(ctx context.Context, index int) (net.Conn, error)) func(context.Context, load.Status) []load.Report {
	workers := map[int]*heard{} // by index
	return func(ctx context.Context, s load.Status) []load.Report {
		question, err := json.Marshal(s)
		if err != nil { // of a load that is no number
			question = []byte("{}")
		}
		now := time.Now()
		deadline := now.Add(workerTimeout)
		asked := make(map[int]*heard, len(workers))
		var order []int
		for _, w := range list() {
			if w.State != workerReady {
				continue
			}
			h := workers[w.Index]
			if h == nil || h.pid != w.PID { // another process, which is given its time to begin
				h = &heard{pid: w.PID, at: now}
			}
			asked[w.Index] = h
			order = append(order, w.Index)
			if h.line == nil {
				dialing, cancel := context.WithDeadline(ctx, deadline)
				conn, err := dial(dialing, w.Sibling)
				cancel()
				if err != nil {
					continue
				}
				h.line = newLine(ctx, conn)
			}
			if err := h.line.ask(deadline, http.MethodPut, workerLoad, question); err != nil {
				h.hangUp()
			}
		}
		for i, h := range workers {
			if asked[i] != h {
				h.hangUp()
			}
		}
		workers = asked
		var reports []load.Report
		for _, i := range order {
			if h := asked[i]; h.hear(i, deadline) {
				reports = append(reports, h.report)
			}
		}
		return reports
	}
}

// hear takes the answer of the worker of that index, if it was asked, until the
// deadline, and says whether there is a report of it.
func (h *heard) hear(index int, deadline time.Time) bool {
	var r load.Report
	answered, status, body := false, 0, []byte(nil)
	if h.line != nil {
		var last bool
		var err error
		status, body, last, err = h.line.read(deadline)
		if answered = err == nil; last {
			h.hangUp()
		}
	}
	switch {
	case answered && status == http.StatusOK && json.Unmarshal(body, &r) == nil:
		r.Worker = index
		h.report, h.at, h.known = r, time.Now(), true
	case answered: // it lives
		h.at = time.Now()
	default:
		h.report.Worker = index
		h.report.Lateness = max(h.report.Lateness, time.Since(h.at))
		h.known = true
	}
	return h.known
}
