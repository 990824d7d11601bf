package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// loadInfo is the load of a node in the admin API.
type loadInfo struct {
	Dimensions map[string]float64 `json:"dimensions"`
	Effective  float64            `json:"effective"`
	Players    int                `json:"players"`
	Publishers int                `json:"publishers"`
	Soft       bool               `json:"over_soft_limit"`
	Hard       bool               `json:"over_hard_limit"`
	Processes  []struct {
		Worker  int `json:"worker"`
		Players int `json:"players"`
	} `json:"processes"`
}

func (n *node) load() (loadInfo, error) {
	var answer struct{ Load *loadInfo }
	if err := n.ask("/api/v1/node", &answer); err != nil {
		return loadInfo{}, err
	}
	if answer.Load == nil {
		return loadInfo{}, fmt.Errorf("%s does not know its load yet", n.id)
	}
	return *answer.Load, nil
}

// knownNode is a node as discovery lists it.
type knownNode struct {
	ID      string             `json:"id"`
	State   string             `json:"state"`
	Load    map[string]float64 `json:"load"`
	Labels  map[string]string  `json:"labels"`
	Version string             `json:"version"`
}

// knows returns what a discovery server says of a node.
func (n *node) knows(id string) (knownNode, error) {
	f, err := tryGet("http://" + n.http + "/api/v1/nodes")
	if err != nil {
		return knownNode{}, err
	}
	if f.status != http.StatusOK {
		return knownNode{}, fmt.Errorf("nodes: HTTP status %d", f.status)
	}
	var answer struct{ Nodes []knownNode }
	if err := json.Unmarshal(f.body, &answer); err != nil {
		return knownNode{}, err
	}
	for _, k := range answer.Nodes {
		if k.ID == id {
			return k, nil
		}
	}
	return knownNode{}, fmt.Errorf("discovery does not know %s", id)
}

// burn starts a process for each processor that does nothing but take time.
func burn(t *testing.T) (stop func()) {
	t.Helper()
	var all []*process
	for i := range runtime.NumCPU() {
		all = append(all, startWith(t, fmt.Sprintf("dd %d", i), exec.Command("dd", "if=/dev/zero", "of=/dev/null")))
	}
	return func() {
		for _, p := range all {
			p.kill()
		}
	}
}

// Somebody runs dd beside an edge. The edge does nothing, but its load rises, and
// discovery hears of it; when dd is gone it falls again.
func TestBurnerBesideNode(t *testing.T) {
	discovery := startDiscovery(t, "")
	edge := startEdge(t, "edge", 2, discoveryAt(discovery)+"load: {hold: 1s}\n")
	cpu := func(what string, good func(float64) bool) {
		t.Helper()
		eventually(t, time.Minute, what, func() error {
			k, err := discovery.knows("edge")
			if err != nil {
				return err
			}
			if v, ok := k.Load["cpu"]; !ok || !good(v) || k.Load["effective"] < v {
				return fmt.Errorf("discovery knows %v", k.Load)
			}
			return nil
		})
	}
	cpu("a moment without others' work", func(v float64) bool { return v < 0.9 })
	stop := burn(t)
	begin := time.Now()
	cpu("the load rises", func(v float64) bool { return v > 0.97 })
	t.Logf("discovery knew after %v", time.Since(begin).Round(time.Millisecond))
	l, err := edge.load()
	if err != nil {
		t.Fatal(err)
	}
	if p := l.Dimensions["process_cpu"]; p > 0.5 {
		t.Errorf("the edge itself is said to take %v", p)
	}
	edge.sees("load is over the soft limit")
	stop()
	cpu("the load falls", func(v float64) bool { return v < 0.9 })
}

// What workers do is the node's: players on all workers, and the labels of the file.
func TestLoadOfNode(t *testing.T) {
	discovery := startDiscovery(t, "")
	origin := startOrigin(t, "origin", addresses{labels: "group: live, region: eu-west, cost: 0.02, labels: {rack: \"7\"}"}, discoveryAt(discovery))
	edge := startEdge(t, "edge", 2, discoveryAt(discovery)+"load:\n  network: {interfaces: [lo], capacity: 1Gbit}\n  disk: {path: /}\n")
	publishClip(t, origin.rtmpURL("live/demo"))
	for _, group := range byWorker(t, edge, 2, 1) {
		for _, p := range group {
			p.await(1, 0)
		}
	}
	eventually(t, waitTimeout, "the edge tells all dimensions and its players", func() error {
		l, err := edge.load()
		if err != nil {
			return err
		}
		for _, name := range []string{"cpu", "process_cpu", "network", "memory", "descriptors", "disk", "lateness"} {
			if _, ok := l.Dimensions[name]; !ok {
				return fmt.Errorf("no %s in %v", name, l.Dimensions)
			}
		}
		byWorker := map[int]int{}
		for _, p := range l.Processes {
			byWorker[p.Worker] = p.Players
		}
		if len(byWorker) != 3 || byWorker[0] < 1 || byWorker[1] < 1 || byWorker[0]+byWorker[1] != l.Players || l.Dimensions["network"] <= 0 {
			return fmt.Errorf("load is %+v", l)
		}
		k, err := discovery.knows("edge")
		if err != nil {
			return err
		}
		if k.Load["players"] != float64(l.Players) || k.Load["egress_bps"] <= 0 || k.Load["egress_capacity_bps"] != 1e9 {
			return fmt.Errorf("discovery knows %v", k.Load)
		}
		o, err := discovery.knows("origin")
		if err != nil {
			return err
		}
		if want := map[string]string{"group": "live", "region": "eu-west", "cost": "0.02", "rack": "7"}; !maps.Equal(o.Labels, want) || o.Version == "" {
			t.Fatalf("the origin announces %v, version %q", o.Labels, o.Version)
		}
		if o.Load["publishers"] != 1 {
			return fmt.Errorf("discovery knows of the origin %v", o.Load)
		}
		return nil
	})
}

// head asks for what a player would get first, without following redirects.
func head(url string) (fetched, error) {
	request, err := http.NewRequest(http.MethodHead, url, nil)
	if err != nil {
		return fetched{}, err
	}
	return do(request)
}

// The node becomes full while players are there: they are asked to leave one by one,
// new ones are told to come back, publishers are let in; and then there is room again.
// What is full are the descriptors of its worker, because that can be had on any
// machine.
func TestOverloadIsSurvived(t *testing.T) {
	origin := startOrigin(t, "origin", addresses{}, "")
	edge := startEdge(t, "edge", 1, upstreamsOf(origin.rtmp)+
		"load:\n  after: 500ms\n  hold: 1s\n  cpu: {weight: 0}\n  process_cpu: {weight: 0}\n  memory: {weight: 0}\n  network: {weight: 0}\n"+
		"  lateness: {weight: 0}\nadmission: {shed_after: 1s, shed_rate: 0.1}\n")
	publishClip(t, origin.rtmpURL("live/demo"))
	var players []*player
	for range 12 {
		p := playFLV(t, edge.httpURL("live/demo.flv"), "")
		p.await(1, 0)
		players = append(players, p)
	}
	edge.awaitSessions("play", demo, len(players))

	const most = 200 // descriptors
	pid := edge.awaitWorkers(1)[0].PID
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: most, Max: most}, nil); err != nil {
		t.Fatal(err)
	}
	var idle []net.Conn
	release := func() {
		for _, c := range idle {
			c.Close()
		}
	}
	defer release()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for range most*95/100 - len(open) {
		c, err := net.Dial("tcp", edge.http)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	edge.sees("load is over the hard limit")
	eventually(t, waitTimeout, "a new player is told to come back", func() error {
		f, err := head(edge.httpURL("live/demo.flv"))
		if err != nil {
			return err
		}
		if f.status != http.StatusServiceUnavailable || f.header.Get("Retry-After") == "" {
			return fmt.Errorf("HTTP status %d, %v", f.status, f.header)
		}
		return nil
	})
	publishClip(t, edge.rtmpURL("live/second"))
	edge.awaitSessions("publish", "__defaultVhost__/live/second", 1)
	edge.sees("players are asked to leave: the node is full")
	eventually(t, waitTimeout, "players leave", func() error {
		left := 0
		for _, p := range players {
			if p.playing() != nil {
				left++
			}
		}
		if left == 0 {
			return errors.New("none has")
		}
		return nil
	})
	if n := scrape(t, edge.admin).sum("weir_sessions_ended_total", `kind="play"`, `reason="overload"`); n < 1 {
		t.Errorf("%v sessions ended by overload", n)
	}
	release()
	edge.sees("load is under the hard limit again")
	eventually(t, waitTimeout, "a new player is let in", func() error {
		f, err := head(edge.httpURL("live/demo.flv"))
		if err == nil && f.status != http.StatusOK {
			err = fmt.Errorf("HTTP status %d: %s", f.status, f.body)
		}
		return err
	})
}

// A busy edge sends new players to a better one, which serves them because they come
// with a ticket, although it is busy too; a full one sends on everybody it can.
func TestBusyEdgesRedirect(t *testing.T) {
	discovery := startDiscovery(t, "token: secret\n")
	at := fmt.Sprintf("discovery: {urls: [%q], token: secret}\n", "http://"+discovery.http)
	origin := startOrigin(t, "origin", addresses{}, at)
	// Memory is in use on every machine, and hardly moves.
	only := func(weight float64, limits string) string {
		return at + fmt.Sprintf("load:\n  %s\n  after: 0s\n  memory: {weight: %v}\n  cpu: {weight: 0}\n  process_cpu: {weight: 0}\n"+
			"  descriptors: {weight: 0}\n  network: {weight: 0}\n  lateness: {weight: 0}\n", limits, weight)
	}
	busy := startEdge(t, "busy", 2, only(10, "soft_limit: 0.001\n  hard_limit: 0"))
	better := startEdge(t, "better", 1, only(0.5, "soft_limit: 0.001\n  hard_limit: 0"))
	full := startEdge(t, "full", 1, only(10, "soft_limit: 0.001\n  hard_limit: 0.002"))
	publishClip(t, origin.rtmpURL("live/demo"))
	for _, n := range []*node{busy, better, full} {
		n.sees("load is over the soft limit")
	}
	for _, path := range []string{"live/demo.flv?a=b", "live/demo.m3u8?a=b"} {
		for _, from := range []*node{busy, full} {
			var to string
			eventually(t, waitTimeout, from.id+" redirects "+path, func() error {
				f, err := head(from.httpURL(path))
				if err != nil {
					return err
				}
				if to = f.header.Get("Location"); f.status != http.StatusFound || !strings.HasPrefix(to, better.httpURL(path)+"&weir-ticket=") {
					return fmt.Errorf("HTTP status %d to %q: %s", f.status, to, f.body)
				}
				return nil
			})
			eventually(t, waitTimeout, "the better one serves "+path, func() error {
				f, err := head(to)
				if err == nil && f.status != http.StatusOK {
					err = fmt.Errorf("%s: HTTP status %d: %s", to, f.status, f.body)
				}
				return err
			})
		}
	}
	p := playFLV(t, busy.httpURL("live/demo.flv"), "")
	p.await(25, 0)
	better.awaitSessions("play", demo, 1)
	busy.awaitSessions("play", demo, 0)
	if n := scrape(t, busy.admin).sum("weir_load_redirects_total"); n < 3 {
		t.Errorf("%v redirects were counted", n)
	}
	// The ticket goes no further than the edge.
	if strings.Contains(origin.stderr.String(), "weir-ticket") {
		t.Error("the origin saw a ticket")
	}
}
