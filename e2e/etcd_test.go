package e2e

import (
	"fmt"
	"testing"
	"time"

	"weir/discovery/etcd/etcdtest"
)

// The directory is in three etcd servers; nodes use them directly, or by way of two
// discovery servers. The owner of a stream is killed, then etcd's leader, then, while
// one of three is missing, an owner again, and at last one of the discovery servers:
// players see new frames on the same connection, and none of before.
func TestDirectoryInEtcd(t *testing.T) {
	t.Parallel()
	f := func(name string, directory func(*testing.T, *etcdtest.Cluster) (config string, servers []*node)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := etcdtest.Start(t, t.TempDir())
			t.Cleanup(c.Stop) // after the nodes
			config, servers := directory(t, c)
			h := openTheatreAt(t, config, 12, atEdge)
			lose := func(what string) {
				t.Helper()
				waits := h.killOwner(true)
				t.Logf("%s: players waited for %v at the median, %v at most", what, quantile(waits, 0.5), quantile(waits, 1))
			}
			lose("the owner was killed")
			leader := c.Leader(t)
			leader.Kill()
			c.Await(t)
			lose("the owner was killed, of etcd two of three are there")
			c.Run(t, leader)
			c.Await(t)
			if len(servers) > 0 {
				servers[0].kill()
				lose("the owner was killed, one of two discovery servers is there")
			}

			// A name has one owner, whichever way it is asked for.
			owner := h.owner()
			r := weir(t, waitTimeout, "push", file(t, clipFile), h.origins[1-owner].rtmpURL("live/demo"))
			if r.code != 4 {
				t.Errorf("a second publisher: exit code %d, %s", r.code, r.stderr)
			}
			h.close()
		})
	}
	f("nodes at etcd", func(_ *testing.T, c *etcdtest.Cluster) (string, []*node) {
		return "discovery: {engine: etcd, etcd: " + etcdOf(c) + "}\n", nil
	})
	f("discovery servers at etcd", func(t *testing.T, c *etcdtest.Cluster) (string, []*node) {
		a := startDiscovery(t, "engine: etcd\netcd: "+etcdOf(c)+"\n")
		b := startDiscovery(t, "engine: etcd\netcd: "+etcdOf(c)+"\n")
		return fmt.Sprintf("discovery: {urls: [%q, %q]}\n", "http://"+a.http, "http://"+b.http), []*node{a, b}
	})
}

// etcdOf is the value of a key etcd of a configuration file.
func etcdOf(c *etcdtest.Cluster) string {
	return fmt.Sprintf("{endpoints: %s, timeout: %s}", yamlList(c.Endpoints()), 2*time.Second)
}
