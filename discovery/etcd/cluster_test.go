package etcd

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"weir/discovery"
)

func TestMain(m *testing.M) {
	// One cluster for the tests that only use it: starting one takes seconds.
	code := func() int {
		defer shared.stop()
		return m.Run()
	}()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

var shared sharedCluster

type sharedCluster struct {
	once sync.Once
	c    *cluster
	dir  string
}

// get returns the shared cluster, which no test may break.
func (s *sharedCluster) get(t *testing.T) *cluster {
	t.Helper()
	s.once.Do(func() {
		dir, err := os.MkdirTemp("", "weir-etcd")
		if err != nil {
			t.Fatal(err)
		}
		s.dir = dir
		s.c = startCluster(t, dir)
	})
	if s.c == nil {
		t.Fatal("the shared cluster has not started")
	}
	return s.c
}

func (s *sharedCluster) stop() {
	if s.c != nil {
		s.c.stop()
	}
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
}

// cluster is three real etcd servers.
type cluster struct {
	dir     string
	members [3]*member
	peers   string
}

type member struct {
	name         string
	client, peer string
	cmd          *exec.Cmd
	log          bytes.Buffer
	stopped      bool
}

// newCluster starts a cluster for one test, which may do with it what it likes.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := startCluster(t, t.TempDir())
	t.Cleanup(c.stop)
	return c
}

func startCluster(t *testing.T, dir string) *cluster {
	t.Helper()
	c := &cluster{dir: dir}
	var open []net.Listener // all at once, so that no two are the same
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, l)
		return "http://" + l.Addr().String()
	}
	var peers []string
	for i := range c.members {
		m := &member{name: fmt.Sprint("m", i), client: free(), peer: free()}
		c.members[i] = m
		peers = append(peers, m.name+"="+m.peer)
	}
	for _, l := range open {
		l.Close()
	}
	c.peers = strings.Join(peers, ",")
	for _, m := range c.members {
		c.start(t, m)
	}
	c.await(t)
	return c
}

func (c *cluster) start(t *testing.T, m *member) {
	t.Helper()
	m.log.Reset()
	m.cmd = exec.Command("etcd", "--name", m.name, "--data-dir", filepath.Join(c.dir, m.name),
		"--listen-client-urls", m.client, "--advertise-client-urls", m.client,
		"--listen-peer-urls", m.peer, "--initial-advertise-peer-urls", m.peer,
		"--initial-cluster", c.peers, "--initial-cluster-state", "new", "--initial-cluster-token", filepath.Base(c.dir),
		"--heartbeat-interval", "100", "--election-timeout", "1000", "--logger", "zap", "--log-level", "error")
	m.cmd.Stderr = &m.log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatalf("start etcd: %v", err)
	}
	m.stopped = false
}

// await waits until the cluster takes writes.
func (c *cluster) await(t *testing.T) {
	t.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: c.endpoints(), DialTimeout: 2 * time.Second, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	eventually(t, 60*time.Second, "etcd takes writes", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := cli.Put(ctx, "/test/up", "1")
		return err == nil
	})
}

func (c *cluster) endpoints() (list []string) {
	for _, m := range c.members {
		list = append(list, m.client)
	}
	return list
}

func (c *cluster) kill(m *member) {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	m.cmd = nil
}

func (c *cluster) stop() {
	for _, m := range c.members {
		if m != nil {
			c.kill(m)
		}
	}
}

// leader returns the member that leads.
func (c *cluster) leader(t *testing.T) *member {
	t.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: c.endpoints(), DialTimeout: 2 * time.Second, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	var leader *member
	eventually(t, 30*time.Second, "there is a leader", func() bool {
		for _, m := range c.members {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			s, err := cli.Status(ctx, m.client)
			cancel()
			if err == nil && s.Leader == s.Header.MemberId {
				leader = m
				return true
			}
		}
		return false
	})
	return leader
}

func eventually(t *testing.T, d time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !f(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, d)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
}

var prefixes struct {
	mu sync.Mutex
	n  int
}

// open returns a directory in a part of etcd of its own, or that of another one.
func (c *cluster) open(t *testing.T, prefix string, change ...func(*discovery.EtcdConfig)) *Directory {
	t.Helper()
	if prefix == "" {
		prefixes.mu.Lock()
		prefixes.n++
		prefix = fmt.Sprintf("/weir-%d/", prefixes.n)
		prefixes.mu.Unlock()
	}
	cfg := discovery.DefaultEtcdConfig()
	cfg.Endpoints, cfg.Prefix, cfg.Timeout = c.endpoints(), prefix, 5*time.Second // the machine of the tests is busy
	for _, f := range change {
		f(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	d, err := Open(cfg, discovery.DefaultServerConfig().Memory(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}
