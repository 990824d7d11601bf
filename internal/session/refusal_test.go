package session

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// The line of a log that a refusal gets is one sentence, and says nothing twice.
func TestRefusalsReadWell(t *testing.T) {
	for _, c := range []struct{ text, cause, want string }{
		{"No upstream can be reached for this stream.", "", "No upstream can be reached for this stream."},
		{"No upstream can be reached for this stream.", "dial tcp: refused", "No upstream can be reached for this stream: dial tcp: refused"},
		{"The request goes in a circle.", "the request goes in a circle: through a to b", "the request goes in a circle: through a to b"},
		{"Taken.", "publish at rtmp://a: server answered BadName: Taken.", "publish at rtmp://a: server answered BadName: Taken."},
	} {
		r := &Refusal{Text: c.text}
		if c.cause != "" {
			r.Err = errors.New(c.cause)
		}
		if got := r.Error(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// While discovery is away the clients come again and again: one line says so, and one
// each minute how often. A reason of another stream or client is not lost among them,
// and each refusal is counted.
func TestRefusedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &testNode{t: t, set: metrics.NewSet(), logs: &lockedBuffer{}}
		g := newLedger(slog.New(slog.NewJSONHandler(n.logs, nil)), n.set, "")
		begin, from := time.Now(), 0
		refuse := func(stream, host string, err error) {
			g.refused(KindPlay, protoRTMP, reasonOf(err), stream, netip.MustParseAddrPort(host), err)
		}
		// said expects lines since the last call: stream, remote, reason and refusals of each.
		said := func(want ...string) {
			t.Helper()
			var got []string
			lines := n.lines("session refused")
			for _, l := range lines[from:] {
				s := fmt.Sprint(l["stream"], " ", l["remote"], " ", l["reason"])
				if l["refusals"] != nil {
					s += fmt.Sprint(" ", l["refusals"])
				}
				got = append(got, s)
			}
			from = len(lines)
			if !slices.Equal(got, want) {
				t.Errorf("after %v it says %q, want %q", time.Since(begin), got, want)
			}
		}
		away := func(stream string) error {
			return &Refusal{Code: Unavailable, Text: "The owner cannot be found out now.", Err: fmt.Errorf("lookup %s: timeout", stream)}
		}
		crowd := func() {
			for i := range 50 {
				stream := fmt.Sprint("v/live/", i%5)
				refuse(stream, fmt.Sprintf("10.0.0.%d:1000", i), away(stream))
			}
		}
		for range 59 {
			crowd()
			time.Sleep(time.Second)
		}
		said("v/live/0 10.0.0.0:1000 unavailable")
		refuse("v/live/0", "10.0.0.0:1000", &Refusal{Code: Unavailable, Text: "Another sentence."})
		refuse("v/live/0", "10.0.0.0:1000", ErrNotFound)
		refuse("v/live/0", "10.0.0.1:1000", ErrNotFound)
		refuse("v/live/1", "10.0.0.1:1000", ErrNotFound)
		refuse("v/live/0", "10.0.0.0:1000", &Refusal{Code: Denied})
		refuse("v/live/0", "10.0.0.1:1000", &Refusal{Code: Denied})
		refuse("v/live/0", "10.0.0.1:1001", &Refusal{Code: Denied})
		refuse("v/live/0", "10.0.0.1:1001", &Refusal{Code: Draining, Text: "Publish to a."})
		refuse("v/live/1", "10.0.0.1:1001", &Refusal{Code: Draining, Text: "Publish to b."})
		said("v/live/0 10.0.0.0:1000 unavailable", "v/live/0 10.0.0.0:1000 not_found", "v/live/1 10.0.0.1:1000 not_found",
			"v/live/0 10.0.0.0:1000 denied", "v/live/0 10.0.0.1:1000 denied", "v/live/0 10.0.0.1:1001 draining")
		time.Sleep(time.Second)
		crowd()
		said("v/live/0 10.0.0.0:1000 unavailable 2950")
		time.Sleep(time.Hour)
		crowd()
		said("v/live/0 10.0.0.0:1000 unavailable 50") // 49 of them an hour ago, as since tells
		last := n.lines("session refused")[from-1]
		if want := begin.Add(time.Minute).Format(time.RFC3339Nano); last["since"] != want {
			t.Errorf("since %v, want %s", last["since"], want)
		}
		if want := `weir_refused_total{kind="play",protocol="rtmp",reason="unavailable"} 3051`; !strings.Contains(n.metrics(), want+"\n") {
			t.Errorf("no %s in\n%s", want, n.metrics())
		}
	})
}
