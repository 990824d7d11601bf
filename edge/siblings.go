package edge

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"weir/internal/session"
	"weir/internal/vhost"
)

// siblings are the workers of the node. For each stream they agree, without
// talking, on the order in which they are to pull it: the first that lives does,
// the others attach to it.
type siblings struct {
	// Static.
	edge         *Edge
	index, count int
	dial         func(ctx context.Context, index int) (net.Conn, error)
	stop         context.CancelFunc
	looking      sync.WaitGroup
	pulse        pulse         // of this worker
	waits        chan struct{} // capacity 1; gets a token when there is a watch

	mu      sync.Mutex
	watches map[*watch]struct{} // guarded by mu
}

// lookEvery is how often a worker looks whether a sibling that was dead is back.
const lookEvery = 500 * time.Millisecond

func newSiblings(e *Edge, o Options) *siblings {
	s := &siblings{
		edge: e, index: o.Index, count: max(o.Count, 1), dial: o.DialSibling,
		waits: make(chan struct{}, 1), watches: map[*watch]struct{}{},
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	if s.count > 1 {
		s.looking.Go(func() { s.look(ctx) })
		s.looking.Go(func() { s.pulse.run(ctx) })
	}
	return s
}

func (s *siblings) close() {
	s.stop()
	s.looking.Wait()
}

// order returns the workers in the order in which they are to pull a stream.
func (s *siblings) order(key string) []int {
	type ranked struct {
		index  int
		weight uint64
	}
	all := make([]ranked, s.count)
	for i := range all {
		all[i] = ranked{i, rendezvous(key, strconv.Itoa(i))}
	}
	slices.SortFunc(all, func(a, b ranked) int { return cmp.Compare(b.weight, a.weight) })
	order := make([]int, s.count)
	for i, r := range all {
		order[i] = r.index
	}
	return order
}

// errOwnTurn says that it is this worker that pulls the stream from upstream.
var errOwnTurn = errors.New("this worker pulls the stream")

// pull attaches to the first living worker of the stream's order.
func (s *siblings) pull(ctx context.Context, t vhost.Target, via string) (pulled, error) {
	for _, i := range s.order(t.Key.String()) {
		if i == s.index {
			return pulled{}, errOwnTurn
		}
		if !s.lives(ctx, i, "") {
			continue
		}
		q := url.Values{"key": {t.Key.String()}, "query": {t.Query}}
		src, h, err := requestFLV(ctx, func(ctx context.Context) (net.Conn, error) { return s.dial(ctx, i) }, flvRequest{
			url:     "http://worker" + session.WorkerFLVPath + "?" + q.Encode(),
			node:    s.edge.node,
			via:     via,
			epoch:   s.edge.epochs.of(t.Key.String()),
			answer:  s.edge.cfg.Play.WaitPublisher + s.edge.cfg.Pull.ConnectTimeout + 5*time.Second,
			silence: s.silence(),
		})
		switch {
		case err == nil:
		case ctx.Err() == nil && !s.lives(ctx, i, ""): // it died meanwhile
			continue
		default:
			return pulled{}, err
		}
		p := pulled{source: src, epoch: epochOf(h), from: "worker " + strconv.Itoa(i), worker: i}
		if err := s.edge.notBack(t.Key.String(), p.from, p.epoch); err != nil {
			src.Close()
			return pulled{}, err
		}
		return p, nil
	}
	return pulled{}, errOwnTurn
}

// silence is how long a worker may send nothing: somewhat longer than it takes
// to give up an upstream, after which it says so. Its death closes the
// connection at once.
func (s *siblings) silence() time.Duration {
	c := s.edge.cfg.Pull
	return c.ReadTimeout + c.GiveUp + c.RetryMax + 5*c.ConnectTimeout
}

// watch waits for a worker that comes before the present source in a stream's
// order.
type watch struct {
	s      *siblings
	key    string
	before []int // workers that would be better
	found  atomic.Bool
	act    func()
}

// watch calls act, once, when a worker is back that is to pull the stream rather
// than the given one (noWorker: this one, from upstream).
func (s *siblings) watch(key string, source int, act func()) *watch {
	if source == noWorker {
		source = s.index
	}
	order := s.order(key)
	w := &watch{s: s, key: key, before: order[:slices.Index(order, source)], act: act}
	if len(w.before) > 0 {
		s.mu.Lock()
		s.watches[w] = struct{}{}
		s.mu.Unlock()
		select {
		case s.waits <- struct{}{}:
		default: // told already
		}
	}
	return w
}

func (w *watch) happened() bool { return w.found.Load() }

func (w *watch) stop() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	delete(w.s.watches, w)
}

// look notices siblings that come to life, while anything waits for one: a worker that
// has nothing to wait for is not woken.
func (s *siblings) look(ctx context.Context) {
	timer := time.NewTimer(lookEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.waits:
		}
		for again := true; again; again = s.lookOnce(ctx) {
			timer.Reset(lookEvery) // not at once: it has only just been found wanting
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
		}
	}
}

// lookOnce looks, and reports whether it may have to again.
func (s *siblings) lookOnce(ctx context.Context) bool {
	wanted := map[int][]*watch{}
	s.mu.Lock()
	for w := range s.watches {
		for _, i := range w.before {
			wanted[i] = append(wanted[i], w)
		}
	}
	s.mu.Unlock()
	for i, waiting := range wanted {
		if !s.lives(ctx, i, "") {
			continue
		}
		for _, w := range waiting {
			if s.lives(ctx, i, w.key) {
				w.tell()
			}
		}
	}
	return len(wanted) > 0
}

// workerAlivePath is where a worker answers that it lives.
const workerAlivePath = "/_weir/alive"

// aliveWithin is how long a living worker takes at most to answer anything.
const aliveWithin = time.Second

// lives reports whether a worker answers that it lives and, if there is a key, that it
// can be left a good source of that stream for. That it can be connected to is not
// enough: the kernel accepts for a process that hangs.
func (s *siblings) lives(ctx context.Context, i int, key string) bool {
	conn := s.ask(ctx, i, workerAlivePath, url.Values{"key": {key}})
	if conn != nil {
		conn.Close()
	}
	return conn != nil
}

// ask returns the connection over which a worker has said yes to a question, nil if it
// did not, or not in time.
func (s *siblings) ask(ctx context.Context, i int, path string, q url.Values) net.Conn {
	ctx, cancel := context.WithTimeout(ctx, aliveWithin)
	defer cancel()
	conn, err := s.dial(ctx, i)
	if err != nil { // its socket goes with the process: it is dead
		return nil
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	const good = "HTTP/1.1 2"
	var b [len(good)]byte
	_, err = io.WriteString(conn, "GET "+path+"?"+q.Encode()+" HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n")
	if err == nil {
		_, err = io.ReadFull(conn, b[:])
	}
	if err != nil || string(b[:]) != good {
		conn.Close()
		return nil
	}
	return conn
}

// serveAlive answers a sibling that asks whether this worker lives: 204, or 503 for a
// while after it has hung, and also afterwards for a stream of which it has a log that
// grows no more: what others have may be newer.
func (s *siblings) serveAlive(w http.ResponseWriter, r *http.Request) {
	if !s.pulse.steady(time.Now()) || s.edge.stands(r.FormValue("key")) {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// tell acts on the watch, once, unless it was stopped.
func (w *watch) tell() {
	w.s.mu.Lock()
	_, waits := w.s.watches[w]
	delete(w.s.watches, w)
	w.s.mu.Unlock()
	if waits {
		w.found.Store(true)
		w.act()
	}
}
