package session

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"

	"weir/internal/fanout"
	"weir/internal/vhost"
)

// WorkerFLVPath is where a worker serves streams to the other workers of its
// node, over its unix socket. The parameters are key (vhost/app/name) and query
// (that of the first player).
const WorkerFLVPath = "/_weir/flv"

// ServeWorkerFLV serves a stream to another worker as HTTP-FLV.
func (s *Server) ServeWorkerFLV(w http.ResponseWriter, r *http.Request) {
	l := newLive(traits{protocol: protoPull, node: r.Header.Get(HeaderNode)}, netip.AddrPort{})
	refuse := func(stream string, status int, err error) {
		s.ledger.refused(KindPlay, protoPull, reasonOf(err), stream, l.remote, err)
		http.Error(w, err.Error(), status)
	}
	t, err := s.workerTarget(r)
	if err != nil {
		refuse(r.FormValue("key"), http.StatusBadRequest, &Refusal{Code: BadRequest, Text: "No stream is named.", Err: err})
		return
	}
	ctx, cancel := s.context(r.Context())
	feed, err := s.opt.Role.Play(ctx, PlayRequest{Target: t, Peer: Peer{Via: r.Header.Get(HeaderVia)}, Epoch: parseEpoch(r.Header.Get(HeaderEpoch))})
	cancel()
	if err != nil {
		status := http.StatusServiceUnavailable
		if errors.Is(err, ErrNotFound) {
			status = http.StatusNotFound
		}
		refuse(t.Key.String(), status, err)
		return
	}
	var late lateConn
	if err := s.admit(l, t, &late); err != nil {
		feed.Release()
		refuse(l.stream, http.StatusServiceUnavailable, err)
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		feed.Release()
		s.ledger.withdraw(l, t.Vhost.Name)
		refuse(l.stream, http.StatusInternalServerError, err)
		return
	}
	late.set(conn)
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: video/x-flv\r\n%s: %s\r\nConnection: close\r\n\r\n",
		HeaderEpoch, strconv.FormatUint(feed.Epoch, 10)); err != nil {
		conn.Close() // the fan-out finds out
	}
	// The end is the ledger's to tell.
	_, _ = s.play(l, t, feed, conn, way{format: fanout.FLV{Marks: true}, farewell: farewellFLV, read: dropInput}, feed.Release)
}

// parseEpoch reads an epoch from a header, 0 if it has none.
func parseEpoch(s string) uint64 {
	epoch, _ := strconv.ParseUint(s, 10, 64)
	return epoch
}

func (s *Server) workerTarget(r *http.Request) (vhost.Target, error) {
	key, err := vhost.ParseKey(r.FormValue("key"))
	if err != nil {
		return vhost.Target{}, err
	}
	v, err := s.opt.Vhosts.Find(key.Vhost)
	if err != nil {
		return vhost.Target{}, err
	}
	return vhost.Target{Key: key, Vhost: v, Query: r.FormValue("query")}, nil
}
