package admin

import "net/http"

// upgrade begins an upgrade, or says which program runs and how the last one went.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		writeJSON(w, http.StatusOK, s.Upgrade.Status())
		return
	}
	status, err := s.Upgrade.Start("admin API, " + r.RemoteAddr)
	if err != nil {
		writeError(w, http.StatusConflict, err.Error())
		return
	}
	writeJSON(w, http.StatusAccepted, status)
}
