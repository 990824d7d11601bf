package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"
)

// reload puts the configuration file in force, or says which one is.
func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		writeJSON(w, http.StatusOK, s.Reload.Status())
		return
	}
	// Workers may have to be rolled, which takes longer than other answers. What
	// has begun goes on when the client leaves.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(reloadTimeout))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), reloadTimeout)
	defer cancel()
	status, err := s.Reload.Reload(ctx, "admin API, "+r.RemoteAddr)
	code := http.StatusOK
	if err != nil {
		code = http.StatusConflict
	}
	writeJSON(w, code, status)
}

// reloadTimeout bounds a reload: each worker of a large node has its time to start.
const reloadTimeout = 10 * time.Minute

// ConfigureWorkers returns a function that puts a configuration file in force in
// all workers that list returns. The error says which of them have not taken it.
func ConfigureWorkers(list func() []WorkerInfo, dial func(ctx context.Context, index int) (net.Conn, error)) func(context.Context, []byte) error {
	w := newWorkers(list, dial)
	return func(ctx context.Context, file []byte) error {
		answering := slices.DeleteFunc(w.list(), func(i WorkerInfo) bool { return i.State != workerReady && i.State != workerRetiring })
		var errs []error
		for _, a := range w.askThese(ctx, answering, http.MethodPut, workerConfig, file) {
			err := a.err
			if err == nil && a.status != http.StatusNoContent {
				err = fmt.Errorf("worker %s refuses it: %s", a.name, a.body)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
}
