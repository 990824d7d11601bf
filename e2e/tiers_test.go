package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// upstreamNodes is an edge's configuration whose upstreams are nodes, for pulls by
// protocol (rtmp, http-flv) and for HLS.
func upstreamNodes(protocol string, nodes ...addresses) string {
	var urls []string
	for _, n := range nodes {
		urls = append(urls, "rtmp://"+n.rtmp, "http://"+n.http)
	}
	return "pull: {protocol: " + protocol + "}\nvhosts:\n  __defaultVhost__:\n    upstreams: " + yamlList(urls) + "\n"
}

func free(t *testing.T) addresses {
	t.Helper()
	var a addresses
	a.fill(t)
	return a
}

// Edges that lead in a circle: whoever asks for a stream that nobody can have is told
// so, by name and soon, and each node says it in its log.
func TestCircles(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 2, 3} { // its own upstream; two of each other; a ring
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			places := make([]addresses, size)
			for i := range places {
				places[i] = free(t)
			}
			ring := make([]*node, size)
			for i := range ring {
				ring[i] = launch(t, "edge", fmt.Sprintf("edge-%d", i), places[i], "workers: 2\n"+upstreamNodes("rtmp", places[(i+1)%size]))
			}
			for _, n := range ring {
				n.awaitReady()
				n.awaitWorkers(2)
			}
			first := ring[0]
			quickly := func(what string, ask func() error) {
				t.Helper()
				begun := time.Now()
				if err := ask(); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				// No wait for a publisher (5 s) and no time-out (15 s) is in it.
				if d := time.Since(begun); d > 4*time.Second {
					t.Errorf("%s: answered after %v", what, d)
				}
			}
			pull := func(url string) func() error {
				return func() error {
					r := weir(t, time.Minute, "pull", url)
					if r.code != 4 || !strings.Contains(r.stderr, "circle") {
						return fmt.Errorf("exit code %d, %s", r.code, r.stderr)
					}
					return nil
				}
			}
			quickly("play over RTMP", pull(first.rtmpURL("live/a")))
			quickly("play over HTTP-FLV", pull(first.httpURL("live/b.flv")))
			quickly("HLS", func() error {
				f := get(t, first.httpURL("live/c.m3u8"))
				if f.status != http.StatusServiceUnavailable || !strings.Contains(string(f.body), "circle") {
					return fmt.Errorf("%d %s", f.status, f.body)
				}
				return nil
			})
			quickly("publish", func() error {
				r := weir(t, time.Minute, "push", file(t, clipFile), first.rtmpURL("live/d"))
				if r.code != 4 || !strings.Contains(r.stderr, "circle") {
					return fmt.Errorf("exit code %d, %s", r.code, r.stderr)
				}
				return nil
			})
			first.sees("the request goes in a circle")
		})
	}
}
