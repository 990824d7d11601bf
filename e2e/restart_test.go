package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// The only origin is killed and started again. To the players at an edge that is a
// short freeze: on the same connection the new frames follow, with new decoder headers,
// times that go on, and none of before.
func TestOriginRestarts(t *testing.T) {
	f := func(name string, discovered, forwarded bool) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			directory := ""
			if discovered {
				directory = discoveryAt(startDiscovery(t, ""))
			}
			at := free(t)
			start := func() *node { return startOrigin(t, "origin-1", at, noHLS+directory) }
			origin := start()
			edge := startEdge(t, "edge-1", 2, directory+fmt.Sprintf(
				"vhosts: {__defaultVhost__: {hls: {enabled: false}, upstreams: [%q]}}\nplay: {wait_publisher: 20s}\n", "rtmp://"+at.rtmp))
			s := &show{t: t, began: map[uint32]time.Time{}}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() {
				defer close(done)
				if forwarded {
					s.publish(ctx, edge.rtmp)
				} else {
					s.publish(ctx, at.rtmp)
				}
			}()
			t.Cleanup(func() {
				cancel()
				<-done
			})
			var audience []*watcher
			for range 8 {
				audience = append(audience, watchShow(t, edge.httpURL("live/demo.flv")))
			}
			for _, w := range audience {
				w.since(t, 1)
			}
			for run := uint32(2); run <= 3; run++ {
				origin.kill()
				gone := time.Now()
				if forwarded { // its connection stays
					s.run.Add(1)
				}
				origin = start()
				back := time.Since(gone)
				var waits []time.Duration
				for _, w := range audience {
					waits = append(waits, w.since(t, run).Sub(gone))
				}
				t.Logf("the origin was back after %v, players had new frames after %v at most", back, quantile(waits, 1))
			}
			for _, w := range audience {
				select {
				case <-w.done:
					t.Errorf("a player was cut: %v", w.err)
				default:
				}
				w.require(t)
			}
		})
	}
	f("alone, publisher at the origin", false, false)
	f("alone, publisher at the edge", false, true)
	f("discovery, publisher at the origin", true, false)
	f("discovery, publisher at the edge", true, true)
}
