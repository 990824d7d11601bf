package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weir/discovery"
	"weir/discovery/dirtest"
)

var (
	addrA = discovery.Addr{RTMP: "10.0.0.1:1935"}
	addrB = discovery.Addr{RTMP: "10.0.0.2:1935"}
)

const demo = "__defaultVhost__/live/demo"

func TestEtcdIsAnEngine(t *testing.T) {
	c := shared.get(t)
	dirtest.Run(t, 1000, func(t *testing.T) dirtest.Engine { return openAt(t, c, "") })
}

// Two discovery servers over one etcd are one directory, also for one node whose
// calls go now to the one and now to the other.
func TestTwoServersOverOneEtcd(t *testing.T) {
	c := shared.get(t)
	one := openAt(t, c, "/two/")
	two := openAt(t, c, "/two/")
	dirtest.Rivals(t, 100, one, two)
	cl := discovery.Claim{Stream: demo, Node: "n", Instance: "1", Addr: addrA, TTL: 2 * time.Second}
	l, err := one.Claim(t.Context(), cl)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	for i := 0; time.Since(begun) < 5*time.Second; i++ {
		d := []*Directory{one, two}[i%2]
		lost, err := d.Renew(t.Context(), discovery.Renewal{Node: "n", Instance: "1", Addr: addrA, TTL: cl.TTL, Leases: []discovery.Held{{Stream: demo, Epoch: l.Epoch}}})
		if err != nil || len(lost) != 0 {
			t.Fatalf("Renew: %v, %v", lost, err)
		}
		if got, err := two.Lookup(t.Context(), demo); err != nil || got.Epoch != l.Epoch {
			t.Fatalf("Lookup = %+v, %v", got, err)
		}
		select {
		case <-time.After(300 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
}

// node is an origin over a directory.
type node struct {
	*discovery.Holder
	lost chan discovery.Lease
}

func startNode(t *testing.T, d discovery.Directory, name string, addr discovery.Addr) *node {
	t.Helper()
	n := &node{lost: make(chan discovery.Lease, 100)}
	cfg := discovery.DefaultConfig()
	cfg.LeaseTTL = 10 * time.Second // longer than an election on a busy machine
	n.Holder = discovery.NewHolder(d, discovery.HolderConfig{
		Config: cfg, Self: discovery.Self{Node: name, Addr: addr},
		OnLost: func(_ string, now discovery.Lease) { n.lost <- now },
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = n.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return n
}

func (n *node) mustClaim(t *testing.T, stream string) discovery.Lease {
	t.Helper()
	l, err := n.Claim(t.Context(), stream, discovery.ClaimOptions{})
	if err != nil {
		t.Fatalf("Claim(%s): %v", stream, err)
	}
	return l
}

// While the leader dies, and a member stands still, and comes back, owners keep
// their streams and what is watched stays true.
func TestMembersDie(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	short := func(cfg *discovery.EtcdConfig) { cfg.Timeout = time.Second }
	a := startNode(t, openAt(t, c, "/weir/", short), "a", addrA)
	b := startNode(t, openAt(t, c, "/weir/", short), "b", addrB)
	l := a.mustClaim(t, demo)
	found := func(n *node, stream string) bool {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		got, err := n.Lookup(ctx, stream)
		return err == nil && got.Node == "a"
	}
	eventually(t, 10*time.Second, "b finds the stream", func() bool { return found(b, demo) })

	// works waits until a stream can be taken at a and is known at b.
	n := 0
	works := func(what string) {
		t.Helper()
		begun := time.Now()
		n++
		stream := fmt.Sprintf("v/live/%d", n)
		a.mustClaim(t, stream) // provisionally, if it must be
		if !found(b, demo) {
			t.Errorf("%s: b does not find what it has found before", what)
		}
		eventually(t, 60*time.Second, what, func() bool { return found(b, stream) && a.Connected() && b.Connected() })
		t.Logf("%s: all is well after %v", what, time.Since(begun))
	}
	leader := c.Leader(t)
	leader.Kill()
	works("the leader was killed")
	c.Run(t, leader)
	c.Await(t)
	works("it is back")

	frozen := c.Leader(t)
	frozen.Signal(t, syscall.SIGSTOP)
	works("the leader stands still")
	frozen.Signal(t, syscall.SIGCONT)
	works("it goes on")
	if own, err := a.Own(t.Context(), demo); err != nil || own.Epoch != l.Epoch {
		t.Errorf("a has %+v, %v; epoch %d before", own, err, l.Epoch)
	}
	select {
	case now := <-a.lost:
		t.Errorf("a has lost a stream to %+v", now)
	default:
	}
}

// Without a majority calls fail within their timeout, known streams are found, new
// ones are taken, and when it is back all agree.
func TestMajorityIsLost(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	short := func(cfg *discovery.EtcdConfig) { cfg.Timeout = 500 * time.Millisecond }
	da := openAt(t, c, "/weir/", short)
	a := startNode(t, da, "a", addrA)
	b := startNode(t, openAt(t, c, "/weir/", short), "b", addrB)
	old := a.mustClaim(t, demo)
	eventually(t, 20*time.Second, "b knows the stream", func() bool {
		l, err := b.Lookup(t.Context(), demo)
		return err == nil && l.Node == "a"
	})
	for _, m := range c.Members[:2] {
		m.Kill()
	}
	calls := map[string]func() error{
		"claim": func() error {
			_, err := da.Claim(t.Context(), discovery.Claim{Stream: "v/a/x", Node: "x", Addr: addrA})
			return err
		},
		"lookup":  func() error { _, err := da.Lookup(t.Context(), demo); return err },
		"renew":   func() error { _, err := da.Renew(t.Context(), discovery.Renewal{Node: "x", Addr: addrA}); return err },
		"release": func() error { return da.Release(t.Context(), old) },
		"heartbeat": func() error {
			return da.Heartbeat(t.Context(), discovery.Node{ID: "x", Role: discovery.RoleEdge, State: discovery.StateUp})
		},
		"goodbye": func() error { return da.Goodbye(t.Context(), "x", "1") },
		"streams": func() error { _, _, err := da.Streams(t.Context(), discovery.StreamQuery{}); return err },
		"nodes":   func() error { _, _, err := da.Nodes(t.Context(), discovery.NodeQuery{}); return err },
		"ready":   func() error { return da.Ready(t.Context()) },
	}
	for name, call := range calls {
		begun := time.Now()
		err := call()
		if took := time.Since(begun); !errors.Is(err, discovery.ErrUnavailable) || took > 5*time.Second {
			t.Errorf("%s: %v after %v", name, err, took)
		}
	}
	if l, err := b.Lookup(t.Context(), demo); err != nil || l.Node != "a" {
		t.Errorf("a known stream is not found: %+v, %v", l, err)
	}
	early := a.mustClaim(t, "v/live/both")
	late := b.mustClaim(t, "v/live/both")
	if late.Epoch <= early.Epoch {
		t.Errorf("epochs %d and then %d", early.Epoch, late.Epoch)
	}
	eventually(t, 20*time.Second, "a node says that it is not ready", func() bool { return !a.Connected() && !b.Connected() })

	for _, m := range c.Members[:2] {
		c.Run(t, m)
	}
	c.Await(t)
	back := time.Now()
	eventually(t, 60*time.Second, "all agree", func() bool {
		l, err := a.Lookup(t.Context(), "v/live/both")
		k, err2 := b.Lookup(t.Context(), demo)
		return err == nil && l.Node == "b" && l.Epoch == late.Epoch && err2 == nil && k.Node == "a" && a.Connected() && b.Connected()
	})
	t.Logf("all agree %v after the majority is back", time.Since(back))
	select {
	case now := <-a.lost:
		if now.Stream != "v/live/both" || now.Node != "b" {
			t.Errorf("a has lost %+v", now)
		}
	case <-time.After(10 * time.Second):
		t.Error("a was not told that it has lost the stream that b took later")
	}
	if l, err := a.Lookup(t.Context(), demo); err != nil || l.Epoch != old.Epoch {
		t.Errorf("the stream that was there before has become %+v, %v", l, err)
	}
}

// All data are lost: the nodes bring them back, and watches notice although the
// members have the same names.
func TestDataAreLost(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := startNode(t, openAt(t, c, "/weir/"), "a", addrA)
	b := startNode(t, openAt(t, c, "/weir/"), "b", addrB)
	old := a.mustClaim(t, demo)
	for i := range 20 { // so that the revision is past what the new data have
		l := b.mustClaim(t, fmt.Sprintf("v/live/%d", i))
		if i > 0 {
			if err := b.Release(t.Context(), l.Stream); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, 20*time.Second, "b knows a's stream", func() bool {
		l, err := b.Lookup(t.Context(), demo)
		return err == nil && l.Node == "a"
	})
	c.Stop()
	for _, m := range c.Members {
		c.Forget(t, m)
		c.Run(t, m)
	}
	c.Await(t)
	back := time.Now()
	check := openAt(t, c, "/weir/")
	eventually(t, 60*time.Second, "the leases are back", func() bool {
		l, err := check.Lookup(t.Context(), demo)
		k, err2 := check.Lookup(t.Context(), "v/live/0")
		return err == nil && l.Epoch == old.Epoch && err2 == nil && k.Node == "b"
	})
	eventually(t, 60*time.Second, "what is new is watched", func() bool {
		stream := fmt.Sprintf("v/new/%d", time.Now().UnixNano())
		if _, err := a.Claim(t.Context(), stream, discovery.ClaimOptions{}); err != nil {
			return false
		}
		l, err := b.Lookup(t.Context(), stream)
		return err == nil && l.Node == "a" && b.Connected()
	})
	t.Logf("all is well %v after the data were lost", time.Since(back))
}

// A watcher whose mark was compacted away is told everything anew.
func TestCompaction(t *testing.T) {
	c := shared.get(t)
	d := openAt(t, c, "")
	cl := discovery.Claim{Stream: demo, Node: "a", Instance: "1", Addr: addrA, TTL: time.Minute}
	l, err := d.Claim(t.Context(), cl)
	if err != nil {
		t.Fatal(err)
	}
	watch := func(since string) (resets, leases int, mark string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		err := d.Watch(ctx, discovery.WatchQuery{Since: since}, func(events []discovery.Event) error {
			for _, e := range events {
				switch {
				case e.Reset:
					resets++
				case e.Lease != nil:
					leases++
				case e.Synced != "":
					mark = e.Synced
					cancel()
				}
			}
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("Watch: %v", err)
		}
		return resets, leases, mark
	}
	resets, leases, mark := watch("")
	if resets != 1 || leases != 1 {
		t.Errorf("%d snapshots with %d leases", resets, leases)
	}
	if resets, leases, _ = watch(mark); resets != 0 || leases != 0 {
		t.Errorf("from the mark: %d snapshots with %d leases", resets, leases)
	}
	var rev int64
	for i := range 4 {
		if _, err := d.Renew(t.Context(), discovery.Renewal{Node: "a", Instance: "1", Addr: addrA, TTL: time.Minute, Leases: []discovery.Held{{Stream: demo, Epoch: l.Epoch, Idle: i%2 == 0}}}); err != nil {
			t.Fatal(err)
		}
		g, err := d.cli.Get(t.Context(), "/x")
		if err != nil {
			t.Fatal(err)
		}
		rev = g.Header.Revision
	}
	if _, err := d.cli.Compact(t.Context(), rev, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if resets, leases, _ = watch(mark); resets != 1 || leases != 1 {
		t.Errorf("after a compaction: %d snapshots with %d leases", resets, leases)
	}
}

// Wrong credentials and files are told apart from an outage.
func TestOpenRefuses(t *testing.T) {
	cfg := discovery.DefaultEtcdConfig()
	cfg.Endpoints = []string{"http://127.0.0.1:1"}
	cfg.TLS.CA = filepath.Join(t.TempDir(), "none.pem")
	if _, err := Open(cfg, discovery.MemoryConfig{}, nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a CA that is not there: %v", err)
	}
	if err := os.WriteFile(cfg.TLS.CA, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg, discovery.MemoryConfig{}, nil, nil); err == nil {
		t.Error("a CA that is none is taken")
	}
	// Nobody listens: no call hangs.
	cfg.TLS.CA, cfg.Timeout = "", 300*time.Millisecond
	d, err := Open(cfg, discovery.MemoryConfig{}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	begun := time.Now()
	if _, err := d.Lookup(t.Context(), demo); !errors.Is(err, discovery.ErrUnavailable) || time.Since(begun) > 5*time.Second {
		t.Errorf("Lookup: %v after %v", err, time.Since(begun))
	}
	err = d.Watch(t.Context(), discovery.WatchQuery{}, func([]discovery.Event) error { return nil })
	if !errors.Is(err, discovery.ErrUnavailable) {
		t.Errorf("Watch: %v", err)
	}
}

// over serves etcd as a discovery server does, and returns a client of it.
func over(t *testing.T, d *Directory) *discovery.Client {
	t.Helper()
	cfg := discovery.DefaultServerConfig()
	cfg.Listen = "127.0.0.1:0"
	hub := discovery.NewHub(d, nil, nil)
	s := discovery.NewServer(cfg, hub, nil)
	l, err := s.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	node := discovery.DefaultConfig()
	node.URLs, node.Timeout = []string{"http://" + l.Addr().String()}, 10*time.Second
	c := discovery.NewClient(node, nil)
	t.Cleanup(func() { c.Close() })
	eventually(t, 30*time.Second, "the server watches etcd", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := c.Watch(ctx, discovery.WatchQuery{}, func([]discovery.Event) error { cancel(); return nil })
		return errors.Is(err, context.Canceled)
	})
	return c
}

// engineOf is a client without the upkeep that an Engine has.
type engineOf struct{ *discovery.Client }

func (engineOf) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// What nodes see through a discovery server is what they see without one.
func TestServerOverEtcdIsAnEngine(t *testing.T) {
	c := shared.get(t)
	dirtest.Run(t, 100, func(t *testing.T) dirtest.Engine { return engineOf{over(t, openAt(t, c, ""))} })
}

// Nodes at two discovery servers over one etcd know of each other, and one of the
// servers may go.
func TestTwoDiscoveryServers(t *testing.T) {
	c := shared.get(t)
	one, two := over(t, openAt(t, c, "/servers/")), over(t, openAt(t, c, "/servers/"))
	a, b := startNode(t, one, "a", addrA), startNode(t, two, "b", addrB)
	l := a.mustClaim(t, demo)
	eventually(t, 20*time.Second, "b knows a's stream", func() bool {
		got, err := b.Lookup(t.Context(), demo)
		return err == nil && got.Epoch == l.Epoch
	})
	if _, err := b.Claim(t.Context(), demo, discovery.ClaimOptions{Replace: true}); err != nil {
		t.Fatal(err)
	}
	select {
	case now := <-a.lost:
		if now.Node != "b" {
			t.Errorf("lost to %+v", now)
		}
	case <-time.After(10 * time.Second):
		t.Error("a was not told that b has its stream")
	}
	dirtest.Rivals(t, 100, one, two)
}

// A directory that is full says so, and what was done is counted.
func TestLimitsAndCounters(t *testing.T) {
	c := shared.get(t)
	set := metrics.NewSet()
	cfg := discovery.DefaultEtcdConfig()
	cfg.Endpoints, cfg.Prefix, cfg.Timeout = c.Endpoints(), "/limits/", 5*time.Second
	limits := discovery.DefaultServerConfig().Memory()
	limits.MaxStreams, limits.MaxNodes = 2, 2
	d, err := Open(cfg, limits, nil, set)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	claim := func(n int, node string) (discovery.Lease, error) {
		return d.Claim(t.Context(), discovery.Claim{Stream: fmt.Sprintf("v/live/%d", n), Node: node, Instance: "1", Addr: addrA, TTL: time.Minute})
	}
	beat := func(id string) error {
		return d.Heartbeat(t.Context(), discovery.Node{ID: id, Instance: "1", Role: discovery.RoleOrigin, State: discovery.StateUp, Addr: addrA, TTL: time.Minute})
	}
	var leases []discovery.Held
	for i := range 2 {
		l, err := claim(i, "a")
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, discovery.Held{Stream: l.Stream, Epoch: l.Epoch})
		if err := beat(fmt.Sprint("n", i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := claim(2, "a"); !errors.Is(err, discovery.ErrFull) {
		t.Errorf("a third stream: %v", err)
	}
	if err := beat("n2"); !errors.Is(err, discovery.ErrFull) {
		t.Errorf("a third node: %v", err)
	}
	if err := beat("n1"); err != nil { // it is there
		t.Error(err)
	}
	if _, err := claim(0, "a"); err != nil {
		t.Error(err)
	}
	if _, err := claim(0, "b"); err == nil {
		t.Error("b has a's stream")
	}
	leases = append(leases, discovery.Held{Stream: "v/live/9", Epoch: 0})
	if _, err := d.Renew(t.Context(), discovery.Renewal{Node: "a", Instance: "1", Addr: addrA, TTL: time.Minute, Leases: leases}); err != nil {
		t.Error(err)
	}
	if _, err := d.Kick(t.Context(), discovery.Kick{Stream: "v/live/0", Ban: time.Minute}); err != nil {
		t.Error(err)
	}
	if _, err := claim(0, "a"); !errors.As(err, new(*discovery.BannedError)) {
		t.Errorf("a claim of a banned stream: %v", err)
	}
	var got strings.Builder
	set.WritePrometheus(&got)
	want := `weir_discovery_claims_total{result="banned"} 1
weir_discovery_claims_total{result="conflict"} 1
weir_discovery_claims_total{result="full"} 1
weir_discovery_claims_total{result="granted"} 2
weir_discovery_claims_total{result="kept"} 1
weir_discovery_kicks_total 1
weir_discovery_renewals_total{result="kept"} 2
weir_discovery_renewals_total{result="lost"} 1
`
	if got.String() != want {
		t.Errorf("counted\n%s\nwant\n%s", got.String(), want)
	}
}
