package admin

import (
	"errors"
	"net/http"
	"time"
)

// Moved is what became of a stream whose publisher was asked to go to another node.
type Moved struct {
	Stream string `json:"stream"`
	// To is the id of the node.
	To string `json:"to"`
	// Way is how the publisher was asked: "redirect", "reconnect" or "go_away".
	Way string `json:"way"`
	// Left says that the publisher has left this node.
	Left bool `json:"left"`
}

// ErrNoStream is the error of Source.Move for a stream without a publisher.
var ErrNoStream = errors.New("no publisher of that stream is here")

// moveTimeout bounds the answer about a move.
const moveTimeout = 20 * time.Second

// move asks a stream's publisher to go to another node.
func (s *Server) move(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	stream := q.Get("stream")
	if stream == "" {
		writeError(w, http.StatusBadRequest, "stream is missing: vhost/app/name")
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(moveTimeout))
	m, err := s.Source.Move(r.Context(), stream, q.Get("to"))
	switch {
	case errors.Is(err, ErrNoStream):
		writeError(w, http.StatusNotFound, err.Error())
	case err != nil:
		writeError(w, http.StatusConflict, err.Error())
	default:
		writeJSON(w, http.StatusOK, m)
	}
}
