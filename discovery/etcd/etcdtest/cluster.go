// Package etcdtest runs clusters of real etcd servers for tests.
package etcdtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Cluster is three members on free ports of the loopback. Its methods fail the
// test that they are called for. Not safe for concurrent use.
type Cluster struct {
	Members [3]*Member

	dir   string
	peers string
}

// Member is one etcd server, which may be killed and started again.
type Member struct {
	// URL is where clients reach it.
	URL string

	name, peer string
	cmd        *exec.Cmd // nil while it does not run
	log        bytes.Buffer
}

// Start starts a cluster with its data in dir and waits until it takes writes.
// Whoever calls it calls Stop.
func Start(t testing.TB, dir string) *Cluster {
	t.Helper()
	c := &Cluster{dir: dir}
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
	for i := range c.Members {
		m := &Member{name: fmt.Sprint("m", i), URL: free(), peer: free()}
		c.Members[i] = m
		peers = append(peers, m.name+"="+m.peer)
	}
	for _, l := range open {
		l.Close()
	}
	c.peers = strings.Join(peers, ",")
	for _, m := range c.Members {
		c.Run(t, m)
	}
	c.Await(t)
	return c
}

// Run starts a member, for the first time or again with the data that it has.
func (c *Cluster) Run(t testing.TB, m *Member) {
	t.Helper()
	m.log.Reset()
	m.cmd = exec.Command("etcd", "--name", m.name, "--data-dir", c.data(m),
		"--listen-client-urls", m.URL, "--advertise-client-urls", m.URL,
		"--listen-peer-urls", m.peer, "--initial-advertise-peer-urls", m.peer,
		"--initial-cluster", c.peers, "--initial-cluster-state", "new", "--initial-cluster-token", filepath.Base(c.dir),
		"--heartbeat-interval", "100", "--election-timeout", "1000", "--logger", "zap", "--log-level", "error")
	m.cmd.Stderr = &m.log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatalf("start etcd: %v (see \"make tools\")", err)
	}
}

func (c *Cluster) data(m *Member) string { return filepath.Join(c.dir, m.name) }

// Signal sends a signal to a member that runs.
func (m *Member) Signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := m.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// Kill ends a member as a power cut does, if it runs.
func (m *Member) Kill() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	m.cmd = nil
}

// Stop kills all members.
func (c *Cluster) Stop() {
	for _, m := range c.Members {
		if m != nil {
			m.Kill()
		}
	}
}

// Forget removes the data of a member that does not run.
func (c *Cluster) Forget(t testing.TB, m *Member) {
	t.Helper()
	if err := os.RemoveAll(c.data(m)); err != nil {
		t.Fatal(err)
	}
}

// Endpoints are the URLs of all members.
func (c *Cluster) Endpoints() (list []string) {
	for _, m := range c.Members {
		list = append(list, m.URL)
	}
	return list
}

// Await waits until the cluster takes writes.
func (c *Cluster) Await(t testing.TB) {
	t.Helper()
	c.eventually(t, 60*time.Second, "etcd takes writes", func(ctx context.Context, cli *clientv3.Client) bool {
		_, err := cli.Put(ctx, "/test/up", "1")
		return err == nil
	})
}

// Leader waits until there is a leader and returns it.
func (c *Cluster) Leader(t testing.TB) (leader *Member) {
	t.Helper()
	c.eventually(t, 30*time.Second, "there is a leader", func(ctx context.Context, cli *clientv3.Client) bool {
		for _, m := range c.Members {
			if m.cmd == nil {
				continue
			}
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			s, err := cli.Status(ctx, m.URL)
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

func (c *Cluster) eventually(t testing.TB, d time.Duration, what string, f func(context.Context, *clientv3.Client) bool) {
	t.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), DialTimeout: 2 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); ; <-tick.C {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		ok := f(ctx, cli)
		cancel()
		switch {
		case ok:
			return
		case time.Now().After(end) || t.Context().Err() != nil:
			t.Fatalf("%s: not within %v", what, d)
		}
	}
}
