package edge

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime"
	"testing"
	"time"

	"weir/internal/flv"
	"weir/internal/limit"
	"weir/internal/session"
	"weir/internal/vhost"
)

// webViewer is a player over HTTP-FLV.
type webViewer struct {
	t      *testing.T
	status int
	tags   *flv.Reader
	leave  func()
}

// browse asks a worker for a stream over HTTP-FLV.
func browse(t *testing.T, p *point, name string, header ...string) *webViewer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.http+"/live/"+name+".flv", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	v := &webViewer{t: t, status: resp.StatusCode, tags: flv.NewReader(resp.Body, 0)}
	v.leave = func() { resp.Body.Close(); cancel() }
	t.Cleanup(v.leave)
	return v
}

// until reads up to frame n.
func (v *webViewer) until(n int) {
	v.t.Helper()
	for {
		tag, err := v.tags.ReadTag()
		if err != nil {
			v.t.Fatalf("before frame %d: %v", n, err)
		}
		if number(tag) == n {
			return
		}
	}
}

// Players of a stream that has few are all at the worker that pulls it, wherever they
// came: one pull and one log are the node's. Those beyond are where they came.
func TestFewPlayersAreAtOneWorker(t *testing.T) {
	a := newUpstream(t, "a")
	p := a.air(demo)
	p.send(t, 0, 7)
	n := startTeam(t, "edge", 2, quick().upstreams(a.rtmp), nil)
	order := n.workers[0].edge.siblings.order(demo)
	first, second := n.workers[order[0]], n.workers[order[1]]

	var all []*webViewer
	for i := range fewPlayers {
		v := browse(t, []*point{second.point, first.point}[i%2], "demo")
		v.until(6)
		all = append(all, v)
	}
	if got := first.sessions("play"); got != fewPlayers || second.sessions("play") != 0 || n.pulling() != 1 {
		t.Fatalf("%d players at the worker that pulls, %d at the other, %d pulls", got, second.sessions("play"), n.pulling())
	}
	eventually(t, "connections at the other worker", func() error { // it closes its own behind the player
		if got := second.opened.Connections(); got != 0 {
			return fmt.Errorf("%d are left", got)
		}
		return nil
	})

	more := browse(t, second.point, "demo")
	more.until(6)
	if got := second.edge.metrics.passed.Get(); got != fewPlayers/2 {
		t.Errorf("%d players counted as passed, want %d", got, fewPlayers/2)
	}
	if got := second.sessions("play"); got != 1 || n.pulling() != 2 {
		t.Errorf("%d of many players at the other worker, %d pulls", got, n.pulling())
	}
	all[0].leave()
	first.awaitSessions(t, "play", fewPlayers) // with the other worker's pull
	still := browse(t, second.point, "demo")   // where the stream is, too
	still.until(6)
	second.awaitSessions(t, "play", 2)

	p.send(t, 7, 9)
	for _, v := range append(all[1:], more, still) {
		v.until(8)
	}
}

// A worker that was asked for a stream that it cannot give away serves it itself.
func TestPlayerIsNotPassed(t *testing.T) {
	f := func(name string, configure func(*Config), prepare func(n *team, first *member), header ...string) {
		t.Run(name, func(t *testing.T) {
			a := newUpstream(t, "a")
			a.air(demo).send(t, 0, 7)
			cfg := quick().upstreams(a.rtmp)
			configure(&cfg)
			n := startTeam(t, "edge", 2, cfg, nil)
			order := n.workers[0].edge.siblings.order(demo)
			prepare(n, n.workers[order[0]])
			v := browse(t, n.workers[order[1]].point, "demo", header...)
			if v.status != http.StatusOK {
				t.Fatalf("status %d", v.status)
			}
			v.until(6)
			n.workers[order[1]].awaitSessions(t, "play", 1)
		})
	}
	none, nothing := func(*Config) {}, func(*team, *member) {}
	f("a node", none, nothing, session.HeaderNode, "edge-2")
	f("the worker is dead", none, func(_ *team, first *member) { first.kill() })
	f("the worker has just hung", none, func(_ *team, first *member) { first.edge.siblings.pulse.hang() })
	f("the worker has as many sessions as it may", func(c *Config) { c.Play.MaxSessions = 1 }, func(n *team, first *member) {
		browse(n.t, first.point, "demo").until(6)
	})
	f("the worker has as many players of the stream as it may", func(c *Config) {
		*c = c.vhost(func(v *vhost.Config) { v.Play.MaxPlayersPerStream = 1 })
	}, func(n *team, first *member) {
		browse(n.t, first.point, "demo").until(6)
	})
	f("the worker has as many connections as it may", none, func(n *team, first *member) {
		limits := Default().Limits
		limits.MaxConnections = 1
		first.opened.SetLimits(limits)
		browse(n.t, first.point, "demo").until(6)
	})
}

// A player who is not let in where it comes is not passed; one who is passed is not asked
// again.
func TestPassedPlayerIsAdmittedOnce(t *testing.T) {
	a := newUpstream(t, "a")
	a.air(demo).send(t, 0, 7)
	n := startTeam(t, "edge", 2, quick().upstreams(a.rtmp), nil)
	order := n.workers[0].edge.siblings.order(demo)
	first, second := n.workers[order[0]], n.workers[order[1]]
	first.admit.Store(&verdict{err: &session.Refusal{Code: session.Denied, Text: "Nobody comes in here."}})
	browse(t, second.point, "demo").until(6)
	first.awaitSessions(t, "play", 1)

	second.admit.Store(first.admit.Load())
	v := browse(t, second.point, "demo")
	if v.status != http.StatusForbidden {
		t.Errorf("status %d", v.status)
	}
	if got := first.sessions("play"); got != 1 {
		t.Errorf("%d players", got)
	}
}

// The worker that is offered a player answers what no player is meant by.
func TestOffersOfNothing(t *testing.T) {
	n := startTeam(t, "edge", 2, quick().upstreams("127.0.0.1:1"), nil)
	c, err := n.dial(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET %s?key=nonsense HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n", workerOfferPath)
	within(t, "answer", func() {
		if got, err := io.ReadAll(c); err != nil || len(got) < 12 || string(got[9:12]) != "503" {
			t.Errorf("answered %q, %v", got, err)
		}
	})
}

// A player whose worker has died since its yes is counted as such, and told to come again.
func TestPassToNobody(t *testing.T) {
	n := startTeam(t, "edge", 2, quick().upstreams("127.0.0.1:1"), nil)
	order := n.workers[0].edge.siblings.order(demo)
	first, second := n.workers[order[0]], n.workers[order[1]]
	k, err := vhost.ParseKey(demo)
	if err != nil {
		t.Fatal(err)
	}
	pass := second.edge.Pass(t.Context(), k, netip.MustParseAddrPort("192.0.2.1:1"))
	if pass == nil {
		t.Fatal("nobody wants the player")
	}
	first.kill()
	if pass(conn(t), []byte("GET / HTTP/1.1\r\n\r\n")) == nil || second.edge.metrics.notPassed.Get() != 1 || second.edge.metrics.passed.Get() != 0 {
		t.Errorf("%d players passed to nobody, %d failed", second.edge.metrics.passed.Get(), second.edge.metrics.notPassed.Get())
	}
}

// conn returns a connection of a client.
func conn(t *testing.T) *net.TCPConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); c.Close() })
	return c.(*net.TCPConn)
}

// offer offers a worker a player of demo, who does not come. It returns the connection,
// nil if the worker does not want the player.
func offer(t *testing.T, n *team, to int) net.Conn {
	t.Helper()
	c := n.workers[1-to].edge.siblings.ask(t.Context(), to, workerOfferPath, url.Values{"key": {demo}, "remote": {"192.0.2.1"}})
	if c != nil {
		t.Cleanup(func() { c.Close() })
	}
	return c
}

// A worker that is offered many players before the first of them is there takes no more
// than it may have.
func TestOffersOfACrowd(t *testing.T) {
	f := func(name string, want int, limit func(c *limit.Config)) {
		t.Run(name, func(t *testing.T) {
			n := startTeam(t, "edge", 2, quick().upstreams("127.0.0.1:1"), nil)
			first := n.workers[0].edge.siblings.order(demo)[0]
			limits := Default().Limits
			limit(&limits)
			n.workers[first].opened.SetLimits(limits)
			begun := time.Now()
			var wanted []net.Conn
			for range want + 1 {
				if c := offer(t, n, first); c != nil {
					wanted = append(wanted, c)
				}
			}
			if time.Since(begun) > aliveWithin/2 {
				t.Skip("the worker has waited long enough for the first")
			}
			if len(wanted) != want {
				t.Fatalf("it wants %d, want %d", len(wanted), want)
			}
			wanted[0].Close() // without the player
			within(t, "another offer", func() {
				for offer(t, n, first) == nil {
					runtime.Gosched()
				}
			})
		})
	}
	f("of a stream", fewPlayers, func(*limit.Config) {})
	f("of all", 2, func(c *limit.Config) { c.MaxConnections = 2 })
	f("from an address", 2, func(c *limit.Config) { c.MaxConnectionsPerAddress = 2 })
}
