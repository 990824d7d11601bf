package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"weir/internal/chaos/model"
	"weir/internal/chaos/wire"
)

// cluster is the nodes under test, and the members of the etcd if that has their
// directory.
type cluster struct {
	// Static.
	cfg   *Config
	net   *wire.Net
	rec   *recorder
	disk  *disk
	nodes []*process // in the order of their start
}

// lifetime is lease_ttl and node_ttl. As other timers of the configuration on which
// the promises and the length of a round rest it is shorter than the default, so that
// a minute has several rounds. In etcd it is as short as can be.
func (c *Config) lifetime() time.Duration {
	if c.Engine == EngineEtcd {
		return 2 * time.Second
	}
	return 1500 * time.Millisecond
}

func newCluster(cfg *Config, net *wire.Net, rec *recorder) (c *cluster, err error) {
	d, err := newDisk()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	c = &cluster{cfg: cfg, net: net, rec: rec, disk: d}
	for role, names := range map[string][]string{"discovery": {nodeDiscovery}, "origin": cfg.origins(), "edge": cfg.edges()} {
		for _, name := range names {
			path := filepath.Join(cfg.Dir, name+".yaml")
			if err := os.WriteFile(path, []byte(c.config(role, name)), 0o644); err != nil {
				return nil, fmt.Errorf("write configuration: %w", err)
			}
			p := newProcess(name, role, net.Host(name), rec, d)
			p.command = func() *exec.Cmd { return p.host.Command(cfg.Weir, role, "-c", path) }
			p.health = "/readyz"
			c.nodes = append(c.nodes, p)
		}
	}
	for _, name := range cfg.members() {
		if err := os.RemoveAll(c.etcdData(name)); err != nil { // of a run before this one
			return nil, fmt.Errorf("remove data of etcd: %w", err)
		}
		p := newProcess(name, roleEtcd, net.Host(name), rec, d)
		p.command = func() *exec.Cmd { return p.host.Command("etcd", c.etcdArgs(name)...) }
		p.health = "/health"
		c.nodes = append(c.nodes, p)
	}
	return c, nil
}

// roleEtcd is that of a member of the etcd.
const roleEtcd = "etcd"

// etcdArgs are the arguments of a member, which answers its operator where nodes do.
func (c *cluster) etcdArgs(name string) []string {
	at := func(member string, port int) string { return fmt.Sprintf("http://%s:%d", c.addr(member), port) }
	var peers []string
	for _, m := range c.cfg.members() {
		peers = append(peers, m+"="+at(m, 2380))
	}
	return []string{
		"--name", name, "--data-dir", c.etcdData(name),
		"--listen-client-urls", at(name, etcdPort) + ",http://" + adminAddr, "--advertise-client-urls", at(name, etcdPort),
		"--listen-peer-urls", at(name, 2380), "--initial-advertise-peer-urls", at(name, 2380),
		"--initial-cluster", strings.Join(peers, ","), "--initial-cluster-state", "new",
		"--heartbeat-interval", "100", "--election-timeout", "1000", "--pre-vote", "--logger", "zap", "--log-level", "warn",
	}
}

func (c *cluster) etcdData(name string) string { return filepath.Join(c.cfg.Dir, name+".etcd") }

// etcdPort is where clients reach a member.
const etcdPort = 2379

// etcd is the value of the key etcd of a configuration file.
func (c *cluster) etcd() string {
	var urls []string
	for _, m := range c.cfg.members() {
		urls = append(urls, fmt.Sprintf("%q", fmt.Sprintf("http://%s:%d", c.addr(m), etcdPort)))
	}
	return "{endpoints: [" + strings.Join(urls, ", ") + "], dial_timeout: 700ms, timeout: 700ms}"
}

func (c *cluster) addr(host string) string { return c.net.Host(host).Addr.String() }

// config writes the configuration file of a node.
func (c *cluster) config(role, name string) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("role: %s\nnode: {id: %s}\nadmin: {listen: %q, pprof: true}", role, name, adminAddr)
	if role == "discovery" {
		p("listen: 0.0.0.0:7070\nlease_ttl: %v\nnode_ttl: %v", c.cfg.lifetime(), c.cfg.lifetime())
		if c.cfg.Engine == EngineEtcd {
			p("engine: etcd\netcd: %s", c.etcd())
		}
		return b.String()
	}
	// An encoder whose host is gone holds its name until its connection counts as idle.
	p("rtmp: {listen: 0.0.0.0:1935, publish_idle_timeout: 2500ms}\nhttp: {listen: 0.0.0.0:8080}")
	p("advertise: {rtmp: %q, http: %q}", c.addr(name)+":1935", c.addr(name)+":8080")
	p("load: {soft_limit: 0, hard_limit: 0}") // all hosts are one machine: its being busy says nothing
	p("discovery:\n  timeout: 700ms\n  heartbeat: 400ms")
	if role == "origin" && c.cfg.Engine == EngineEtcd {
		p("  engine: etcd\n  etcd: %s", c.etcd())
	} else {
		p("  urls: [%q]", "http://"+c.addr(nodeDiscovery)+":7070")
	}
	if role == "origin" {
		p("  lease_ttl: %v\npublish: {resume_window: 10s}\nvhosts:\n  __defaultVhost__:\n    hls: {linger: 2s}", c.cfg.lifetime())
		return b.String()
	}
	p("workers: %d\nplay: {wait_publisher: 3s}", c.cfg.Workers)
	p("pull: {linger: 2s, connect_timeout: 1s, read_timeout: 2s, retry_max: 500ms, eject: 1s}")
	p("vhosts:\n  __defaultVhost__:\n    upstreams:")
	for _, o := range c.cfg.origins() {
		p("    - rtmp://%s:1935", c.addr(o))
	}
	return b.String()
}

// node returns a node by its name; it panics if there is none.
func (c *cluster) node(name string) *process {
	for _, n := range c.nodes {
		if n.name == name {
			return n
		}
	}
	panic("chaos: no node " + name)
}

// door returns the addresses at which clients come to a node.
func (c *cluster) door(name string) nodeAddr {
	return nodeAddr{name, c.addr(name) + ":1935", c.addr(name) + ":8080"}
}

// startTimeout is how long a node may take to be ready.
const startTimeout = 20 * time.Second

// start starts all nodes, the directory first, and waits until they are ready.
func (c *cluster) start(ctx context.Context) error {
	for _, role := range []string{roleEtcd, "discovery", "origin", "edge"} {
		for _, n := range c.nodes {
			if n.role == role {
				if err := n.start(); err != nil {
					return err
				}
			}
		}
		for _, n := range c.nodes {
			if n.role == role {
				if err := n.awaitReady(ctx, startTimeout); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// stop stops all nodes of weir properly.
func (c *cluster) stop() error {
	var mu sync.Mutex
	var errs []error // guarded by mu
	var all sync.WaitGroup
	for i, n := range c.nodes {
		if n.role == roleEtcd { // no promise of weir; kill ends it
			continue
		}
		c.rec.event(model.Event{Kind: model.KindFault, Fault: &model.Fault{ID: stopID - i, What: "stop for good", On: []string{n.name}}})
		all.Go(func() {
			err := n.stop(15 * time.Second)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// stopID and below are the numbers of the faults that end a run.
const stopID = -1

// kill makes sure that no node runs, and saves their logs.
func (c *cluster) kill() error {
	var errs []error
	for _, n := range c.nodes {
		n.kill()
		n.admin.CloseIdleConnections()
		errs = append(errs, c.disk.save(n.log, c.cfg.Dir))
	}
	return errors.Join(append(errs, c.disk.close())...)
}
