package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"weir/internal/chaos/model"
	"weir/internal/chaos/wire"
	"weir/internal/rtmp"
)

// liar is a server that has nothing and sends everybody to another one.
type liar struct {
	// Static.
	listener net.Listener
	to       string // address of the other one
	rec      *recorder
	peers    map[string]string // nodes by their address
}

func newLiar(host, other *wire.Host, rec *recorder, peers map[string]string) (*liar, error) {
	l, err := host.Listen(1935)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", host.Name, err)
	}
	return &liar{listener: l, to: other.Addr.String() + ":1935", rec: rec, peers: peers}, nil
}

// run serves until ctx ends.
func (l *liar) run(ctx context.Context) {
	var serving sync.WaitGroup
	defer serving.Wait()
	defer context.AfterFunc(ctx, func() { l.listener.Close() })()
	for {
		nc, err := l.listener.Accept()
		if err != nil {
			return
		}
		serving.Go(func() {
			defer context.AfterFunc(ctx, func() { nc.Close() })()
			defer nc.Close()
			cfg := rtmp.DefaultServerConfig()
			cfg.HandshakeTimeout, cfg.RedirectWait = 3*time.Second, time.Second
			c := rtmp.NewServerConn(nc, cfg)
			if request, err := c.ReadRequest(); err == nil && request.Kind == rtmp.Play {
				from, _, _ := net.SplitHostPort(nc.RemoteAddr().String())
				l.rec.event(model.Event{Kind: model.KindHop, Stream: streamCircle, Peer: l.peers[from]})
				_ = c.Redirect("rtmp://" + l.to + "/" + app + "/" + streamCircle)
			}
		})
	}
}

// claims tells the directory lies, again and again until ctx ends.
func claims(ctx context.Context, from *wire.Host, directory string, lies []lie) {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DialContext: from.DialContext}}
	defer client.CloseIdleConnections()
	for ctx.Err() == nil {
		for _, l := range lies {
			l.TTL, l.Replace = 5000, true
			body, err := json.Marshal(l)
			if err != nil {
				return // cannot happen: plain text
			}
			request, err := http.NewRequestWithContext(ctx, http.MethodPost, directory+"/api/v1/leases/claim", bytes.NewReader(body))
			if err != nil {
				return
			}
			request.Header.Set("Content-Type", "application/json")
			if response, err := client.Do(request); err == nil { // it may be away
				response.Body.Close()
			}
		}
		rest(ctx, time.Second)
	}
}

// lie is a claim of a stream (docs/discovery-api.md).
type lie struct {
	Stream   string `json:"stream"`
	Node     string `json:"node"`
	Instance string `json:"instance"`
	RTMP     string `json:"rtmp"`
	TTL      int    `json:"ttl_ms"`
	Replace  bool   `json:"replace"`
}
