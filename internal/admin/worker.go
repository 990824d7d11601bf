package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/configs"
	"weir/internal/drain"
	"weir/internal/load"
)

// Source is what one process knows of itself. Functions may be nil, and are
// called from several goroutines at a time.
type Source struct {
	// Metrics are written at /metrics, beside Go's and the process's own.
	Metrics []*metrics.Set
	// Streams returns the streams of this process. Worker is left nil.
	Streams func() []StreamInfo
	// Sessions returns the sessions of this process. Worker is left nil.
	Sessions func() []SessionInfo
	// Kick ends the session that has the ID and says whether there was one.
	Kick func(id string) bool
	// Move asks the publisher of a stream to go to the node that is named, or to the
	// best one; see Moved. Only an origin has it.
	Move func(ctx context.Context, stream, to string) (Moved, error)
	// Configure puts a configuration file in force, or returns what is wrong. Only
	// a worker has it.
	Configure func(file []byte) error
	// Drain makes an order the one in force; see drain.Process.Apply. Only a
	// worker has it.
	Drain func(o *drain.Order) drain.Progress
	// Load takes the status of the node and returns what the process measures of
	// itself, and whether that is complete. Only a worker's is asked.
	Load func(load.Status) (load.Report, bool)
}

func (s *Source) writeMetrics(w io.Writer) {
	for _, set := range s.Metrics {
		set.WritePrometheus(w)
	}
	metrics.WriteProcessMetrics(w)
}

func (s *Source) streams() []StreamInfo {
	if s.Streams == nil {
		return nil
	}
	return s.Streams()
}

func (s *Source) sessions() []SessionInfo {
	if s.Sessions == nil {
		return nil
	}
	return s.Sessions()
}

// Paths at which a worker answers its supervisor.
const (
	workerPrefix   = "/_weir/"
	workerMetrics  = workerPrefix + "metrics"
	workerStreams  = workerPrefix + "streams"
	workerSessions = workerPrefix + "sessions"
	workerDrain    = workerPrefix + "drain"
	workerConfig   = workerPrefix + "config"
	workerLoad     = workerPrefix + "load"
)

// WorkerHandler returns what a worker serves to its supervisor on its sibling
// socket, for all paths that begin with "/_weir/": metrics, streams, sessions, the
// end of a session, orders to drain, and the load. It asks for no token: only processes of the same
// user reach that socket.
func WorkerHandler(source Source) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(workerMetrics, get(func(w http.ResponseWriter, _ *http.Request) {
		var text bytes.Buffer
		source.writeMetrics(&text)
		writeMetricsText(w, text.Bytes())
	}))
	mux.Handle(workerStreams, get(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, source.streams())
	}))
	mux.Handle(workerSessions, get(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, source.sessions())
	}))
	mux.Handle(workerSessions+"/{id}", only(func(w http.ResponseWriter, r *http.Request) {
		if source.Kick == nil || !source.Kick(r.PathValue("id")) {
			writeError(w, http.StatusNotFound, "no such session")
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}, http.MethodDelete))
	mux.Handle(workerDrain, only(func(w http.ResponseWriter, r *http.Request) {
		if source.Drain == nil {
			writeError(w, http.StatusNotFound, "nothing can be drained here")
			return
		}
		var o *drain.Order
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&o); err != nil {
			writeError(w, http.StatusBadRequest, "read order: "+err.Error())
			return
		}
		writeJSON(w, http.StatusOK, source.Drain(o))
	}, http.MethodPut))
	mux.Handle(workerLoad, only(func(w http.ResponseWriter, r *http.Request) {
		var s load.Status
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&s); err != nil {
			writeError(w, http.StatusBadRequest, "read status: "+err.Error())
			return
		}
		if source.Load != nil {
			if r, known := source.Load(s); known {
				writeJSON(w, http.StatusOK, r)
				return
			}
		}
		writeError(w, http.StatusServiceUnavailable, "not measured yet")
	}, http.MethodPut))
	mux.Handle(workerConfig, only(func(w http.ResponseWriter, r *http.Request) {
		if source.Configure == nil {
			writeError(w, http.StatusNotFound, "nothing can be configured here")
			return
		}
		file, err := io.ReadAll(http.MaxBytesReader(w, r.Body, configs.MaxFileSize))
		if err == nil {
			err = source.Configure(file)
		}
		if err != nil {
			writeError(w, http.StatusBadRequest, err.Error())
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}, http.MethodPut))
	mux.HandleFunc("/", notFound)
	return mux
}

// workers asks the worker processes of a node.
type workers struct {
	list   func() []WorkerInfo
	client *http.Client
}

const (
	// workerTimeout bounds a request to a worker, from the dial to the last
	// byte of the answer.
	workerTimeout = time.Second
	// maxWorkerAnswer bounds the answer in bytes: 100 000 sessions fit.
	maxWorkerAnswer = 64 << 20
)

func newWorkers(list func() []WorkerInfo, dial func(ctx context.Context, index int) (net.Conn, error)) *workers {
	if list == nil || dial == nil {
		return &workers{list: func() []WorkerInfo { return nil }}
	}
	return &workers{list, &http.Client{
		Transport: &http.Transport{
			// The host of the URL is the number of the worker.
			DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				host, _, err := net.SplitHostPort(address)
				if err != nil {
					return nil, err
				}
				index, err := strconv.Atoi(host)
				if err != nil {
					return nil, err
				}
				return dial(ctx, index)
			},
			// A kept connection would be one to a worker that is no more.
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// answer is what one worker said.
type answer struct {
	index  int
	name   string
	status int
	body   []byte
	err    error
}

// ask puts one request to all workers at the same time and returns all answers
// in the order of the workers.
func (w *workers) ask(ctx context.Context, method, path string) []answer {
	return w.askThese(ctx, w.list(), method, path, nil)
}

// askThese is ask for some of the workers, with a body.
func (w *workers) askThese(ctx context.Context, list []WorkerInfo, method, path string, body []byte) []answer {
	answers := make([]answer, len(list))
	var asking sync.WaitGroup
	for i, worker := range list {
		asking.Go(func() {
			a := &answers[i]
			a.index, a.name = worker.Index, worker.name()
			a.status, a.body, a.err = w.askOne(ctx, method, worker.Sibling, path, body)
			if a.err != nil {
				a.err = fmt.Errorf("ask worker %s: %w", a.name, a.err)
			}
		})
	}
	asking.Wait()
	return answers
}

func (w *workers) askOne(ctx context.Context, method string, index int, path string, question []byte) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, workerTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://%d%s", index, path), bytes.NewReader(question))
	if err != nil {
		return 0, nil, err
	}
	response, err := w.client.Do(request)
	if err != nil {
		// The URL that url.Error repeats is not one that anybody can use.
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxWorkerAnswer+1))
	if err == nil && len(body) > maxWorkerAnswer {
		err = fmt.Errorf("answer of more than %d bytes", maxWorkerAnswer)
	}
	return response.StatusCode, body, err
}

// collect returns the lists of all workers in one, and what went wrong with
// those that are missing in it. set is given the number of the worker of each
// item.
func collect[T any](ctx context.Context, w *workers, path string, set func(item *T, worker *int)) (all []T, missing []string) {
	for _, a := range w.ask(ctx, http.MethodGet, path) {
		var items []T
		err := a.err
		if err == nil && a.status != http.StatusOK {
			err = fmt.Errorf("ask worker %s: HTTP status %d", a.name, a.status)
		}
		if err == nil {
			if err = json.Unmarshal(a.body, &items); err != nil {
				err = fmt.Errorf("read answer of worker %s: %w", a.name, err)
			}
		}
		if err != nil {
			missing = append(missing, err.Error())
			continue
		}
		for i := range items {
			set(&items[i], &a.index)
		}
		all = append(all, items...)
	}
	return all, missing
}
