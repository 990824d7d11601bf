package admin

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"weir/discovery"
)

// kickStream ends the publisher of a stream, wherever in the cluster it is.
func (s *Server) kickStream(w http.ResponseWriter, r *http.Request) {
	k, err := kickWishes(r.URL.Query())
	if err != nil {
		writeError(w, http.StatusBadRequest, err.Error())
		return
	}
	if s.Kicker == nil {
		writeError(w, http.StatusNotFound, "this node has no directory that knows the publishers of the cluster: end the session at its node")
		return
	}
	done, err := s.Kicker.Kick(r.Context(), k)
	switch {
	case err == nil:
		writeJSON(w, http.StatusOK, done)
	case errors.Is(err, discovery.ErrInvalid):
		writeError(w, http.StatusBadRequest, err.Error())
	case errors.Is(err, discovery.ErrNotFound):
		writeError(w, http.StatusNotFound, "nobody publishes this stream, and it is not banned")
	default:
		writeError(w, http.StatusBadGateway, err.Error())
	}
}

// kickWishes reads the query of a request to kick.
func kickWishes(q url.Values) (k discovery.Kick, err error) {
	for key, values := range q {
		switch text := values[0]; key {
		case "stream":
			k.Stream = text
		case "ban":
			if k.Ban, err = time.ParseDuration(text); err != nil {
				return k, fmt.Errorf("ban: %q is no duration such as 30s", text)
			}
		case "reason":
			k.Reason = text
		default:
			return k, fmt.Errorf("%s: no such parameter; there are stream, ban and reason", key)
		}
	}
	if k.Stream == "" {
		return k, errors.New("stream: it is needed, as VHOST/APP/NAME")
	}
	return k, nil
}
