package session

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"unsafe"

	"github.com/VictoriaMetrics/metrics"

	"weir/internal/fanout"
)

// What thousands of players have in common is there once, as long as one of them is.
func TestSessionsShareTheirTraits(t *testing.T) {
	g := newLedger(slog.New(slog.DiscardHandler), metrics.NewSet(), "w")
	begin := func(client string) *live {
		t.Helper()
		of := traits{kind: KindPlay, protocol: protoFLV, stream: "v/live/cam", encoder: strings.Clone(client)}
		l := newLive(of, netip.AddrPort{})
		if err := g.begin(l, "v", bounds{}); err != nil {
			t.Fatal(err)
		}
		return l
	}
	a, b, c := begin("vlc"), begin("vlc"), begin("mpv")
	if a.alike != b.alike || a.alike == c.alike || len(g.alike) != 2 {
		t.Errorf("%d kinds of sessions, want 2", len(g.alike))
	}
	for l, want := range map[*live]string{a: "w1", b: "w2", c: "w3"} {
		if id := g.id(l); id != want || g.find(id) != l {
			t.Errorf("session %q, want %q; found: %v", id, want, g.find(id) == l)
		}
	}
	for _, id := range []string{"", "w", "1", "W1", "w01", "w+1", "w4", "x1"} {
		if g.find(id) != nil {
			t.Errorf("%q is a session", id)
		}
	}
	g.withdraw(a, "v")
	if g.find("w1") != nil || len(g.alike) != 2 || c.encoder != "mpv" || b.encoder != "vlc" {
		t.Errorf("after one has left: %d kinds", len(g.alike))
	}
	g.withdraw(b, "v")
	g.withdraw(c, "v")
	if len(g.alike) > 0 {
		t.Errorf("%d kinds of no sessions", len(g.alike))
	}
}

// A session is ended by its connection until it plays, and nothing of that stays.
func TestEndBeforePlaying(t *testing.T) {
	l := newLive(traits{kind: KindPlay}, netip.AddrPort{})
	var ended []string
	l.onEnd(func(why string) { ended = append(ended, why) })
	l.end("kicked")
	l.end("drained")
	if len(ended) != 2 || ended[0] != "kicked" || l.reason("left") != "kicked" {
		t.Errorf("ended for %v, reason %q", ended, l.reason("left"))
	}
	l.play(new(fanout.Session))
	if l.close.Load() != nil {
		t.Error("what closes the connection is kept")
	}
}

// The runtime has sizes of 112 and 128 bytes.
func TestSizeOfSession(t *testing.T) {
	if n := unsafe.Sizeof(live{}); n > 112 {
		t.Errorf("a session has %d bytes", n)
	}
}
