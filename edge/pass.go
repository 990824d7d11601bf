package edge

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"weir/internal/httpserver"
	"weir/internal/session"
	"weir/internal/vhost"
	"weir/internal/worker"
)

// A stream with few players lives in one worker: that which pulls it. The others pass it
// the connections of those who ask them for it, where they would attach to it for a
// stream of many: a log, a pull over the unix socket and its sends cost about as much as
// seven players (of 1 Mbit/s), and all the memory of the stream once more.

// fewPlayers is how many players a stream has for others to be passed to its worker. That
// many do not weigh on a core; those beyond are everybody's.
const fewPlayers = 32

// workerOfferPath is where a worker is offered the connection of a player. The parameters
// are key (vhost/app/name) and remote (the player's address). After its yes (202) the
// connection comes over the same socket (worker.PassConn).
const workerOfferPath = "/_weir/offer"

// Pass asks the worker that is to pull a stream to take a player, which this one has let
// in, and returns what gives it the player's connection; nil if the player is this
// worker's: the stream is here, or there are many players of it, or the other worker has
// no room or does not answer. It implements session.Options.Pass.
func (e *Edge) Pass(ctx context.Context, k vhost.Key, remote netip.AddrPort) func(conn *net.TCPConn, read []byte) error {
	key := k.String()
	first := e.siblings.order(key)[0]
	if first == e.siblings.index {
		return nil
	}
	e.mu.Lock()
	here := e.relays[key] != nil || e.stopped
	e.mu.Unlock()
	if here {
		return nil
	}
	to := e.siblings.ask(ctx, first, workerOfferPath, url.Values{"key": {key}, "remote": {remote.Addr().String()}})
	if to == nil {
		return nil
	}
	return func(conn *net.TCPConn, read []byte) error {
		defer to.Close()
		err := to.SetDeadline(time.Now().Add(aliveWithin))
		if err == nil {
			err = worker.PassConn(to, conn, read)
		}
		if err != nil {
			e.metrics.notPassed.Inc()
			e.log.Info("a player could not be passed to its worker", "stream", key, "worker", first, "err", err)
			return err
		}
		e.metrics.passed.Inc()
		return nil
	}
}

// wantsPlayer reports whether a stream has few players, those who are on their way here
// among them, and there is nothing against its having one more here. That one is on its
// way until came is called, for which Close waits.
func (e *Edge) wantsPlayer(key string) (came func(), ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	players := e.coming[key]
	if r := e.relays[key]; r != nil {
		players += r.players
	}
	if e.stopped || players >= fewPlayers {
		return nil, false
	}
	e.coming[key]++
	e.running.Add(1)
	return func() {
		defer e.running.Done()
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.coming[key]--; e.coming[key] == 0 {
			delete(e.coming, key)
		}
	}, true
}

// passHandler takes the players that other workers offer.
type passHandler struct {
	edge      *Edge
	door      *session.Server
	open      *session.OpenDoor
	adoptions *httpserver.Adoptions
}

// ServeHTTP answers an offer, and takes the connection. Many offers are answered before
// the first of the players is here (thousands come at once to a node that has just
// begun), so a yes holds what it counts on.
func (h *passHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func() { w.WriteHeader(http.StatusServiceUnavailable) }
	k, err := vhost.ParseKey(r.FormValue("key"))
	if err != nil || !h.door.HasRoom(k) || !h.edge.siblings.pulse.steady(time.Now()) {
		refuse()
		return
	}
	remote, _ := netip.ParseAddr(r.FormValue("remote"))
	leave, ok := h.open.Hold(remote)
	if !ok {
		refuse()
		return
	}
	defer leave()
	came, ok := h.edge.wantsPlayer(k.String())
	if !ok {
		refuse()
		return
	}
	defer came()
	from, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return // the other worker is gone
	}
	defer from.Close()
	stop := context.AfterFunc(h.edge.ctx, func() { from.Close() })
	defer stop()
	if from.SetDeadline(time.Now().Add(aliveWithin)) != nil {
		return
	}
	if _, err := io.WriteString(from, "HTTP/1.1 202 Accepted\r\n\r\n"); err != nil {
		return
	}
	c, read, err := worker.ReceiveConn(from)
	if err != nil {
		h.edge.log.Info("a player that was offered did not come", "stream", k.String(), "err", err)
		return
	}
	leave() // for the connection itself
	h.adoptions.Adopt(c, read)
}
