package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	network "weir/internal/chaos/wire"
)

// Hosts of these stories, each with an address of its own. clients has the publisher
// and the players.
var powerHosts = []string{"discovery", "origin-a", "origin-b", "edge", "clients"}

// powerNet is the prefix of the names of their network namespaces.
const powerNet = "weir-e2e"

// The power of an origin is cut: no packet leaves it any more, nobody is told. Its
// publisher is soon let in at the other origin. The edge learns of that from the
// directory, or finds its upstream silent by pull.read_timeout, or its machine dead by
// pull.dead_after, and goes on for its players on the same connections.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	if _, err := network.RemoveStale(powerNet); err != nil {
		t.Fatal(err)
	}
	const slack = 3 * time.Second // for a busy machine and the race detector
	f := func(name, edge string, discovered bool, notices time.Duration) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hosts, err := network.New(network.RunName(powerNet, name), powerHosts, 1)
			if err != nil {
				t.Fatalf("%v (root and /dev/net/tun are needed)", err)
			}
			t.Cleanup(func() {
				if err := hosts.Close(); err != nil {
					t.Error(err)
				}
			})
			addr := func(host string) string { return hosts.Host(host).Addr.String() }
			directory := ""
			if discovered {
				directory = fmt.Sprintf("discovery: {urls: [%q], lease_ttl: 2s}\n", "http://"+addr("discovery")+":7070")
				startAt(t, hosts.Host("discovery"), "discovery", "listen: 0.0.0.0:7070\n")
			}
			more := noHLS + directory
			a := startAt(t, hosts.Host("origin-a"), "origin", more)
			startAt(t, hosts.Host("origin-b"), "origin", more)
			if discovered { // that of upstreams is another key
				edge += fmt.Sprintf("discovery: {urls: [%q]}\n", "http://"+addr("discovery")+":7070")
			}
			startAt(t, hosts.Host("edge"), "edge", edge+fmt.Sprintf(
				"workers: 2\nvhosts: {__defaultVhost__: {hls: {enabled: false}, upstreams: [%q, %q]}}\n", "rtmp://"+addr("origin-a"), "rtmp://"+addr("origin-b")))

			clients := hosts.Host("clients")
			dial := func(ctx context.Context, protocol, addr string) (net.Conn, error) {
				return clients.DialContext(network.WithUserTimeout(ctx, time.Second), protocol, addr)
			}
			s := &show{t: t, dial: dial, began: map[uint32]time.Time{}}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() {
				defer close(done)
				s.publish(ctx, addr("origin-a")+":1935", addr("origin-b")+":1935")
			}()
			t.Cleanup(func() {
				cancel()
				<-done
			})
			var audience []*watcher
			for range 6 {
				audience = append(audience, watchShowFrom(t, "http://"+addr("edge")+":8080/live/demo.flv", dial))
			}
			for _, w := range audience {
				w.since(t, 1)
			}

			cut := time.Now()
			for _, other := range powerHosts {
				if other != "origin-a" {
					hosts.Set("origin-a", other, network.Path{Block: true})
					hosts.Set(other, "origin-a", network.Path{Block: true})
				}
			}
			a.kill()
			var waits []time.Duration
			for _, w := range audience {
				waits = append(waits, w.since(t, 2).Sub(cut))
			}
			s.mu.Lock()
			back := s.began[2].Sub(cut)
			s.mu.Unlock()
			longest := quantile(waits, 1)
			t.Logf("the publisher was back after %v, the players had new frames after %v at most", back, longest)
			if bound := max(back, notices) + slack; longest > bound {
				t.Errorf("a player had to wait for %v, want at most %v", longest, bound)
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
	f("told", "pull: {read_timeout: 1m, dead_after: 1m}\n", true, 0)
	f("silent", "pull: {read_timeout: 1500ms, dead_after: 1m}\n", false, 1500*time.Millisecond)
	f("dead", "pull: {read_timeout: 1m, dead_after: 5s}\n", false, 5*time.Second)
}

// startAt starts a node in a host and waits until it is ready. It listens on the
// default ports.
func startAt(t *testing.T, host *network.Host, role, more string) *process {
	t.Helper()
	const admin = "127.0.0.1:9090"
	config := fmt.Sprintf("role: %s\nnode: {id: %s}\nadmin: {listen: %q}\n%s", role, host.Name, admin, more)
	if role != "discovery" {
		config += fmt.Sprintf("rtmp: {listen: 0.0.0.0:1935}\nhttp: {listen: 0.0.0.0:8080}\nadvertise: {rtmp: %q, http: %q}\nload: {soft_limit: 0, hard_limit: 0}\n",
			host.Addr.String()+":1935", host.Addr.String()+":8080")
	}
	cmd := host.Command(weirBinary(t), role, "-c", writeConfig(t, host.Name, config))
	cmd.Env = append(cmd.Environ(), raceOptions)
	p := startWith(t, host.Name, cmd)
	p.raceFree = true
	inside := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: host.DialContext, DisableKeepAlives: true}}
	eventually(t, startTimeout, host.Name+" is ready", func() error {
		if !p.running() {
			t.Fatalf("%s has ended: %v", host.Name, p.err)
		}
		response, err := inside.Get("http://" + admin + "/readyz")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(response.Body)
			return errors.New(string(body))
		}
		return nil
	})
	return p
}
