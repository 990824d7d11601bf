package discovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// This file speaks the discovery of SRS origins: "is this stream with you?"
// (ossrs/srs 3.0 to 7.0, /api/v1/clusters). SRS reads data.origin.ip and .port of
// an answer and nothing else. Between weir nodes the query has weir=1 and the
// answer one more member, data.weir, because a redirect over HTTP needs more than
// an RTMP address.

// ClustersPath is where every origin and discovery server answers SRS origins.
const ClustersPath = "/api/v1/clusters"

// LookupFunc finds a stream's owner, as Finder.Lookup does. An origin gives one
// that knows only the streams of this node and asks nobody (Holder.Own): two
// origins that asked each other on behalf of each other would never end.
type LookupFunc func(ctx context.Context, stream string) (Lease, error)

type clustersJSON struct {
	Code int           `json:"code"`
	Data *clustersData `json:"data"`
}

type clustersData struct {
	Query  clustersQuery   `json:"query"`
	Origin *clustersOrigin `json:"origin"`
	Weir   *weirOrigin     `json:"weir,omitempty"`
}

type clustersQuery struct {
	IP     string `json:"ip"`
	Vhost  string `json:"vhost"`
	App    string `json:"app"`
	Stream string `json:"stream"`
}

type clustersOrigin struct {
	IP      string   `json:"ip"`
	Port    int      `json:"port"`
	Vhost   string   `json:"vhost"`
	API     string   `json:"api"`
	Routers []string `json:"routers"`
}

type weirOrigin struct {
	Node     string `json:"node"`
	Instance string `json:"instance,omitempty"`
	Epoch    uint64 `json:"epoch"`
	HTTP     string `json:"http,omitempty"`
	Idle     bool   `json:"idle"`
}

// AnswerClusters answers one question of an SRS or weir origin. rawQuery is the
// query of the request without its question mark, not decoded: SRS does not
// escape values, so a plus sign stands for itself and a stray percent sign is
// no error. It returns an HTTP status and a JSON body (Content-Type
// application/json). An unknown stream is status 200 with a null origin; status
// 503 means that the lookup failed.
func AnswerClusters(ctx context.Context, rawQuery string, lookup LookupFunc) (status int, body []byte) {
	q := parseClustersQuery(rawQuery)
	answer := clustersJSON{Data: &clustersData{Query: clustersQuery{q["ip"], q["vhost"], q["app"], q["stream"]}}}
	status = http.StatusOK

	vhost := q["vhost"]
	if vhost == "" {
		vhost = DefaultVhost
	}
	// A key that is none names no stream.
	if key := vhost + "/" + q["app"] + "/" + q["stream"]; CheckStream(key) == nil && !strings.Contains(vhost+q["stream"], "/") {
		lease, err := lookup(ctx, key)
		switch {
		case err == nil:
			answer.Data.Origin = srsOrigin(lease, vhost, q["coworker"])
			if q["weir"] == "1" {
				answer.Data.Weir = &weirOrigin{lease.Node, lease.Instance, lease.Epoch, lease.Addr.HTTP, lease.Idle}
			}
		case !errors.Is(err, ErrNotFound):
			status = http.StatusServiceUnavailable
			answer = clustersJSON{Code: status}
		}
	}
	body, err := encode(answer)
	if err != nil { // strings and numbers always encode
		return http.StatusInternalServerError, []byte(`{"code":500,"data":null}` + "\n")
	}
	return status, body[:len(body)-1] // SRS sends no newline
}

// srsOrigin returns nil for an owner without an RTMP address: SRS could not go
// there. Without an API address of its own the owner is said to be at coworker,
// the address under which the asker knows who answers.
func srsOrigin(l Lease, vhost, coworker string) *clustersOrigin {
	host, port, err := splitHostPort(l.Addr.RTMP)
	if err != nil {
		return nil
	}
	api := l.Addr.API
	if api == "" {
		api = coworker
	}
	return &clustersOrigin{IP: host, Port: port, Vhost: vhost, API: api, Routers: []string{api}}
}

func splitHostPort(addr string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(p, 10, 16)
	return host, int(n), err
}

// parseClustersQuery returns the first value of each key.
func parseClustersQuery(raw string) map[string]string {
	q := make(map[string]string, 8)
	for part := range strings.SplitSeq(raw, "&") {
		key, value, _ := strings.Cut(part, "=")
		switch key {
		case "vhost", "ip", "app", "stream", "coworker", "weir":
		default:
			continue
		}
		if _, twice := q[key]; twice {
			continue
		}
		if plain, err := url.PathUnescape(value); err == nil {
			value = plain
		}
		q[key] = value
	}
	return q
}

// ClustersHandler serves AnswerClusters over net/http to GET and POST.
func ClustersHandler(lookup LookupFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodPost {
			w.Header().Set("Allow", "GET, POST")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		status, body := AnswerClusters(r.Context(), r.URL.RawQuery, lookup)
		writeJSON(w, status, body)
	})
}

// clustersQueryString asks for a stream as SRS does, with weir=1. Only what would
// break the query is escaped: SRS does not decode all that it gets.
func clustersQueryString(vhost, app, name, coworker string) string {
	var b strings.Builder
	for _, p := range [...]struct{ key, value string }{
		{"vhost", vhost}, {"ip", ""}, {"app", app}, {"stream", name}, {"coworker", coworker}, {"weir", "1"},
	} {
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		b.WriteString(p.key)
		b.WriteByte('=')
		for i := range len(p.value) {
			c := p.value[i]
			switch {
			case c <= ' ' || c >= 0x7f || strings.IndexByte(`%&#+"<>\^{|}`+"`", c) >= 0:
				fmt.Fprintf(&b, "%%%02X", c)
			default:
				b.WriteByte(c)
			}
		}
	}
	return b.String()
}

// parseClustersAnswer reads the answer of a peer, which may be SRS. ok is false
// if the peer does not have the stream. A lease of SRS has its RTMP address as
// node and epoch 0. How long it holds is not in the answer: the caller knows.
func parseClustersAnswer(stream string, body []byte) (l Lease, ok bool, err error) {
	var a clustersJSON
	if err := json.Unmarshal(body, &a); err != nil {
		return Lease{}, false, fmt.Errorf("decode clusters answer: %w", err)
	}
	if a.Code != 0 || a.Data == nil {
		return Lease{}, false, fmt.Errorf("decode clusters answer: code %d", a.Code)
	}
	l = Lease{Stream: stream}
	if o := a.Data.Origin; o != nil {
		l.Addr.RTMP = net.JoinHostPort(o.IP, strconv.Itoa(o.Port))
		if checkHostPort(o.API) == nil { // not needed, so not insisted on
			l.Addr.API = o.API
		}
	}
	if w := a.Data.Weir; w != nil {
		l.Node, l.Instance, l.Epoch, l.Idle, l.Addr.HTTP = w.Node, w.Instance, w.Epoch, w.Idle, w.HTTP
		if err := checkOwner(l.Node, l.Instance, l.Addr, 0); err != nil {
			return Lease{}, false, fmt.Errorf("decode clusters answer: %w", err)
		}
		return l, true, nil
	}
	if a.Data.Origin == nil {
		return Lease{}, false, nil
	}
	if err := checkHostPort(l.Addr.RTMP); err != nil {
		return Lease{}, false, fmt.Errorf("decode clusters answer: %w", err)
	}
	l.Node = l.Addr.RTMP
	return l, true, nil
}
