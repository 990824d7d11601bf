package admin

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"time"

	"weir/internal/load"
)

// WorkerLoads returns a function that tells the workers of a node its status and asks
// them for what they measure of themselves, for load.NodeOptions.Workers. It takes a second at most. A
// worker that is ready and does not answer counts as late by as long as it has been
// silent, with the last that it said. The function is for one caller at a time.
func WorkerLoads(list func() []WorkerInfo, dial func(ctx context.Context, index int) (net.Conn, error)) func(context.Context, load.Status) []load.Report {
	type heard struct {
		pid    int
		at     time.Time
		report load.Report
		known  bool
	}
	last := map[int]heard{}
	workers := newWorkers(func() (ready []WorkerInfo) {
		for _, w := range list() {
			if w.State == workerReady {
				ready = append(ready, w)
			}
		}
		return ready
	}, dial)
	return func(ctx context.Context, s load.Status) []load.Report {
		body, err := json.Marshal(s)
		if err != nil { // of a load that is no number
			body = []byte("{}")
		}
		now := time.Now()
		asked := map[int]heard{}
		ready := workers.list()
		for _, w := range ready {
			h := last[w.Index]
			if h.pid != w.PID { // another process, which is given its time to begin
				h = heard{pid: w.PID, at: now}
			}
			asked[w.Index] = h
		}
		last = asked
		var reports []load.Report
		for _, a := range workers.askThese(ctx, ready, http.MethodPut, workerLoad, body) {
			h := last[a.index]
			var r load.Report
			switch {
			case a.err == nil && a.status == http.StatusOK && json.Unmarshal(a.body, &r) == nil:
				r.Worker = a.index
				h.report, h.at, h.known = r, time.Now(), true
			case a.err == nil: // it lives
				h.at = time.Now()
			default:
				h.report.Worker = a.index
				h.report.Lateness = max(h.report.Lateness, time.Since(h.at))
				h.known = true
			}
			last[a.index] = h
			if h.known {
				reports = append(reports, h.report)
			}
		}
		return reports
	}
}
