package etcd

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weir/discovery"
	"weir/discovery/etcd/etcdtest"
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
	c    *etcdtest.Cluster
	dir  string
}

// get returns the shared cluster, which no test may break.
func (s *sharedCluster) get(t *testing.T) *etcdtest.Cluster {
	t.Helper()
	s.once.Do(func() {
		dir, err := os.MkdirTemp("", "weir-etcd")
		if err != nil {
			t.Fatal(err)
		}
		s.dir = dir
		s.c = etcdtest.Start(t, dir)
	})
	if s.c == nil {
		t.Fatal("the shared cluster has not started")
	}
	return s.c
}

func (s *sharedCluster) stop() {
	if s.c != nil {
		s.c.Stop()
	}
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
}

// newCluster starts a cluster for one test, which may do with it what it likes.
func newCluster(t *testing.T) *etcdtest.Cluster {
	t.Helper()
	c := etcdtest.Start(t, t.TempDir())
	t.Cleanup(c.Stop)
	return c
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

// openAt returns a directory in a part of etcd of its own, or that of another one.
func openAt(t *testing.T, c *etcdtest.Cluster, prefix string, change ...func(*discovery.EtcdConfig)) *Directory {
	t.Helper()
	if prefix == "" {
		prefixes.mu.Lock()
		prefixes.n++
		prefix = fmt.Sprintf("/weir-%d/", prefixes.n)
		prefixes.mu.Unlock()
	}
	cfg := discovery.DefaultEtcdConfig()
	cfg.Endpoints, cfg.Prefix, cfg.Timeout = c.Endpoints(), prefix, 5*time.Second // the machine of the tests is busy
	for _, f := range change {
		f(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	d, err := Open(cfg, discovery.DefaultServerConfig().Memory(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}
