package e2e

import (
	"flag"
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"
)

// An outage is long by the number of leases that run out within it: thirty of a tenth
// of the default are two minutes and a half by that.
var (
	awayLease = flag.Duration("away.lease", 500*time.Millisecond, "lease of the origins in TestDiscoveryIsAway (the default of weir: 5s)")
	awayFor   = flag.Duration("away.for", 15*time.Second, "how long discovery is away in TestDiscoveryIsAway")
)

// awayEnd is how long all may take to agree when it is back; slow machines included.
const awayEnd = 5*time.Second + 5*time.Second

// Discovery is away for a long time, dead or frozen. Nobody is cut, known streams are
// still found, new publishers are taken; readiness says so. When it is back it knows
// everything within a few leases, and nothing has moved.
func TestDiscoveryIsAway(t *testing.T) {
	f := func(name string, leave func(*node), back func(testing.TB, *node)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := startDiscovery(t, "")
			at := fmt.Sprintf("discovery: {urls: [%q], lease_ttl: %s, heartbeat: 200ms}\n", "http://"+d.http, *awayLease)
			a := startOrigin(t, "origin-a", addresses{}, at)
			edge := startEdge(t, "edge-1", 2, fmt.Sprintf("discovery: {urls: [%q]}\n", "http://"+d.http)+upstreamsOf(a.rtmp))
			publishClip(t, a.rtmpURL("live/demo"))
			a.awaitStream(demo, "live")
			publisher := a.awaitSessions("publish", demo, 1)[0].ID
			p := playFLV(t, edge.httpURL("live/demo.flv"), "")
			p.await(25, 0)

			leave(d)
			gone := time.Now()
			eventually(t, waitTimeout, "the origin says that it is not ready", func() error {
				if answer := get(t, "http://"+a.admin+"/readyz"); answer.status != http.StatusServiceUnavailable {
					return fmt.Errorf("readyz: %d %s", answer.status, answer.body)
				}
				return nil
			})
			late := playFLV(t, edge.httpURL("live/demo.flv"), "")
			late.await(25, 0)
			publishClip(t, a.rtmpURL("live/late"))
			a.awaitStream("__defaultVhost__/live/late", "live")
			eventually(t, 2**awayFor+waitTimeout, "the outage is over", func() error {
				if left := *awayFor - time.Since(gone); left > 0 {
					return fmt.Errorf("%v are left", left)
				}
				return nil
			})
			before := p.videoFrames()
			back(t, d)
			returned := time.Now()
			for _, key := range []string{demo, "__defaultVhost__/live/late"} {
				eventually(t, waitTimeout, "discovery knows "+key, func() error {
					answer, err := tryGet("http://" + d.http + "/api/v1/lookup?stream=" + key)
					if err == nil && answer.status != http.StatusOK {
						err = fmt.Errorf("%d %s", answer.status, answer.body)
					}
					return err
				})
			}
			a.awaitReady()
			took := time.Since(returned)
			t.Logf("all agreed again after %v", took)
			if took > awayEnd {
				t.Errorf("it took %v until all agreed, want at most %v", took, awayEnd)
			}
			if id := a.awaitSessions("publish", demo, 1)[0].ID; id != publisher {
				t.Errorf("the publisher's session was %s, is %s now", publisher, id)
			}
			p.await(50, before)
			clipSource(t).require(t, "player from before", p.end(), 100, rules{})
			clipSource(t).require(t, "player from within", late.end(), 25, rules{})
		})
	}
	f("dead", (*node).kill, again)
	f("frozen", func(d *node) { d.signal(syscall.SIGSTOP) }, func(_ testing.TB, d *node) { d.signal(syscall.SIGCONT) })
}

// again starts a discovery server anew at the address of one that was killed.
func again(t testing.TB, d *node) {
	t.Helper()
	config := fmt.Sprintf("role: discovery\nnode: {id: %s}\nlisten: %q\nadmin: {listen: %q}\n", d.id, d.http, d.admin)
	d.process = startWeir(t, d.id, "discovery", "-c", writeConfig(t, d.id, config))
	d.awaitReady()
}
