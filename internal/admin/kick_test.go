package admin

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"weir/discovery"
)

// kicker remembers what it was asked, and answers with err.
type kicker struct {
	asked discovery.Kick
	err   error
}

func (k *kicker) Kick(_ context.Context, asked discovery.Kick) (discovery.Kicked, error) {
	k.asked = asked
	return discovery.Kicked{Stream: asked.Stream, Epoch: 7, Until: time.Now().Add(asked.Ban), Reason: asked.Reason, Owner: "a"}, k.err
}

func TestKickOfAStream(t *testing.T) {
	k := &kicker{}
	n := serve(t, Options{Kicker: k})
	f := func(query string, err error, status int, want string) {
		t.Helper()
		k.err = err
		got, _, body := n.do(http.MethodPost, "/api/v1/streams/kick"+query)
		if got != status || !strings.Contains(body, want) {
			t.Errorf("%s: status %d, %s; want %d, %s", query, got, body, status, want)
		}
	}
	f("?stream=v/live/a&ban=90s&reason=not+your+name", nil, 200, `"stream":"v/live/a","epoch":7,"ban_ms":`)
	if want := (discovery.Kick{Stream: "v/live/a", Ban: 90 * time.Second, Reason: "not your name"}); k.asked != want {
		t.Errorf("asked for %+v, want %+v", k.asked, want)
	}
	f("?stream=v/live/a", nil, 200, `"ban_ms":0,"owner":"a"`)
	f("?stream=v/live/a", fmt.Errorf("kick: %w", discovery.ErrNotFound), 404, "nobody publishes")
	f("?stream=v/live/a", fmt.Errorf("kick: %w", discovery.ErrUnavailable), 502, "unavailable")
	f("?stream=v/live/a", fmt.Errorf("kick: %w: its owner is node b", discovery.ErrInvalid), 400, "node b")
	f("", nil, 400, "stream: it is needed")
	f("?stream=v/live/a&ban=soon", nil, 400, "soon")
	f("?stream=v/live/a&when=soon", nil, 400, "when: no such parameter")
	if status, _, _ := n.do(http.MethodGet, "/api/v1/streams/kick?stream=v/live/a"); status != 405 {
		t.Errorf("GET: status %d", status)
	}
	guarded := serve(t, Options{Kicker: k, Config: Config{Token: "secret"}})
	if status, _, _ := guarded.do(http.MethodPost, "/api/v1/streams/kick?stream=v/live/a"); status != 401 {
		t.Errorf("without the token: status %d", status)
	}
	if status, _, body := serve(t, Options{}).do(http.MethodPost, "/api/v1/streams/kick?stream=v/live/a"); status != 404 || !strings.Contains(body, "no directory") {
		t.Errorf("without a directory: status %d, %s", status, body)
	}
}
