package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// client is for short requests to the nodes. It follows no redirects, so that
// tests see them.
var client = &http.Client{
	Timeout:       10 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// node is a running weir process and its addresses.
type node struct {
	*process
	id    string
	rtmp  string // host:port, as are the others; empty for discovery
	http  string
	admin string
}

// yamlList writes values as a YAML list in one line.
func yamlList(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = strconv.Quote(v)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// addresses are where a node listens; those that are empty get a free port.
// Advertised addresses are the same unless they are set.
type addresses struct {
	rtmp, http, admin            string
	advertiseRTMP, advertiseHTTP string
	labels                       string // more keys of the section node, as in "region: eu, cost: 2"
}

func (a *addresses) fill(t testing.TB) {
	for _, addr := range []*string{&a.rtmp, &a.http, &a.admin} {
		if *addr == "" {
			*addr = freeAddr(t)
		}
	}
	if a.advertiseRTMP == "" {
		a.advertiseRTMP = a.rtmp
	}
	if a.advertiseHTTP == "" {
		a.advertiseHTTP = a.http
	}
}

// writeConfig writes a configuration file and returns its path.
func writeConfig(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name+".yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// startDiscovery starts a discovery server and waits until it is ready. more is
// YAML that is added to its file.
func startDiscovery(t testing.TB, more string) *node {
	t.Helper()
	n := &node{id: "discovery", http: freeAddr(t), admin: freeAddr(t)}
	config := fmt.Sprintf("role: discovery\nnode: {id: %s}\nlisten: %q\nadmin: {listen: %q}\n%s", n.id, n.http, n.admin, more)
	n.process = startWeir(t, n.id, "discovery", "-c", writeConfig(t, n.id, config))
	n.awaitReady()
	return n
}

// startOrigin starts an origin and waits until it is ready. more is YAML that is
// added to its file: discovery, vhosts, limits.
func startOrigin(t testing.TB, id string, a addresses, more string) *node {
	t.Helper()
	n := launchOrigin(t, id, a, more)
	n.awaitReady()
	return n
}

// launchOrigin starts an origin and does not wait: for origins that need each
// other.
func launchOrigin(t testing.TB, id string, a addresses, more string) *node {
	t.Helper()
	return launch(t, "origin", id, a, more)
}

// startEdge starts an edge and waits until it and all its workers are ready.
func startEdge(t testing.TB, id string, workers int, more string) *node {
	t.Helper()
	n := launch(t, "edge", id, addresses{}, fmt.Sprintf("workers: %d\n%s", workers, more))
	n.awaitReady()
	n.awaitWorkers(workers)
	return n
}

func launch(t testing.TB, role, id string, a addresses, more string) *node {
	t.Helper()
	a.fill(t)
	if !strings.Contains("\n"+more, "\nload:") { // the machine may be busy with other tests
		more += "load: {soft_limit: 0, hard_limit: 0}\n"
	}
	n := &node{id: id, rtmp: a.rtmp, http: a.http, admin: a.admin}
	config := fmt.Sprintf("role: %s\nnode: {id: %s, %s}\nrtmp: {listen: %q}\nhttp: {listen: %q}\nadmin: {listen: %q}\nadvertise: {rtmp: %q, http: %q}\n%s",
		role, id, a.labels, a.rtmp, a.http, a.admin, a.advertiseRTMP, a.advertiseHTTP, more)
	n.process = startWeir(t, id, role, "-c", writeConfig(t, id, config))
	return n
}

// discoveryAt is the part of a node's configuration that names the discovery
// server.
func discoveryAt(d *node) string {
	return fmt.Sprintf("discovery: {urls: [%q]}\n", "http://"+d.http)
}

// upstreamsOf is an edge's configuration with one vhost, whose upstreams are
// these.
func upstreamsOf(upstreams ...string) string {
	urls := make([]string, len(upstreams))
	for i, u := range upstreams {
		urls[i] = "rtmp://" + u
	}
	return "vhosts:\n  __defaultVhost__:\n    upstreams: " + yamlList(urls) + "\n"
}

func (n *node) awaitReady() {
	n.t.Helper()
	eventually(n.t, startTimeout, n.id+" is ready", func() error {
		if !n.running() {
			n.t.Fatalf("%s has ended: %v", n.id, n.err)
		}
		response, err := client.Get("http://" + n.admin + "/readyz")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz: %s: %s", response.Status, body)
		}
		return nil
	})
}

// rtmpURL and httpURL are where a client of the node publishes and plays.
func (n *node) rtmpURL(path string) string { return "rtmp://" + n.rtmp + "/" + path }
func (n *node) httpURL(path string) string { return "http://" + n.http + "/" + path }

// ask decodes an answer of the node's admin API.
func (n *node) ask(path string, into any) error {
	response, err := client.Get("http://" + n.admin + path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s of %s: %s", path, n.id, response.Status)
	}
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		return fmt.Errorf("decode %s of %s: %w", path, n.id, err)
	}
	return nil
}

// The parts of the admin API (docs/admin-api.md) that tests look at.
type (
	workerInfo struct {
		Index    int    `json:"index"`
		State    string `json:"state"`
		PID      int    `json:"pid"`
		Restarts int    `json:"restarts"`
	}
	streamInfo struct {
		Key    string `json:"key"`
		State  string `json:"state"`
		Source string `json:"source"`
		Worker *int   `json:"worker"`
	}
	sessionInfo struct {
		ID       string `json:"id"`
		Kind     string `json:"kind"`
		Stream   string `json:"stream"`
		Protocol string `json:"protocol"`
		Worker   *int   `json:"worker"`
	}
)

func (n *node) workers() ([]workerInfo, error) {
	var answer struct{ Workers []workerInfo }
	err := n.ask("/api/v1/node", &answer)
	return answer.Workers, err
}

// awaitWorkers waits until count workers are ready and returns them.
func (n *node) awaitWorkers(count int) []workerInfo {
	n.t.Helper()
	var workers []workerInfo
	eventually(n.t, startTimeout, fmt.Sprintf("%d workers of %s are ready", count, n.id), func() error {
		var err error
		if workers, err = n.workers(); err != nil {
			return err
		}
		ready := 0
		for _, w := range workers {
			if w.State == "ready" {
				ready++
			}
		}
		if ready != count || len(workers) != count {
			return fmt.Errorf("workers are %+v", workers)
		}
		return nil
	})
	return workers
}

// sessions returns the node's sessions of a kind ("publish", "play") of a stream, without those by which its workers serve each other.
func (n *node) sessions(kind, stream string) ([]sessionInfo, error) {
	var answer struct{ Sessions []sessionInfo }
	if err := n.ask("/api/v1/sessions", &answer); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(answer.Sessions, func(s sessionInfo) bool { return s.Kind != kind || s.Stream != stream || s.Protocol == "worker" }), nil
}

// awaitSessions waits until the node has exactly count sessions of that kind.
func (n *node) awaitSessions(kind, stream string, count int) []sessionInfo {
	n.t.Helper()
	var sessions []sessionInfo
	eventually(n.t, waitTimeout, fmt.Sprintf("%s has %d %s sessions of %s", n.id, count, kind, stream), func() error {
		var err error
		if sessions, err = n.sessions(kind, stream); err != nil {
			return err
		}
		if len(sessions) != count {
			return fmt.Errorf("it has %d: %+v", len(sessions), sessions)
		}
		return nil
	})
	return sessions
}

// streams returns what each process of the node says of a stream.
func (n *node) streams(key string) ([]streamInfo, error) {
	var answer struct{ Streams []streamInfo }
	if err := n.ask("/api/v1/streams", &answer); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(answer.Streams, func(s streamInfo) bool { return s.Key != key }), nil
}

// awaitStream waits until a process of the node has the stream in that state.
func (n *node) awaitStream(key, state string) streamInfo {
	n.t.Helper()
	var found streamInfo
	eventually(n.t, waitTimeout, fmt.Sprintf("%s has %s %s", n.id, key, state), func() error {
		streams, err := n.streams(key)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(streams, func(s streamInfo) bool { return s.State == state })
		if i < 0 {
			return fmt.Errorf("streams: %+v", streams)
		}
		found = streams[i]
		return nil
	})
	return found
}

// puller returns the worker of an edge that pulls the stream from upstream; the
// others get it from that one.
func (n *node) puller(key string) int {
	n.t.Helper()
	index := -1
	eventually(n.t, waitTimeout, "one worker of "+n.id+" pulls "+key, func() error {
		streams, err := n.streams(key)
		if err != nil {
			return err
		}
		pulls := slices.DeleteFunc(slices.Clone(streams), func(s streamInfo) bool {
			return s.State != "live" || strings.HasPrefix(s.Source, "worker ")
		})
		if len(pulls) != 1 || pulls[0].Worker == nil {
			return fmt.Errorf("streams: %+v", streams)
		}
		index = *pulls[0].Worker
		return nil
	})
	return index
}

// awaitMetric waits until the series of a metric add up to want.
func (n *node) awaitMetric(want float64, name string, labels ...string) {
	n.t.Helper()
	eventually(n.t, waitTimeout, fmt.Sprintf("%s of %s is %v", name, n.id, want), func() error {
		if got := scrape(n.t, n.admin).sum(name, labels...); got != want {
			return fmt.Errorf("it is %v", got)
		}
		return nil
	})
}

// fetched is the answer to a request.
type fetched struct {
	status int
	header http.Header
	body   []byte
}

// get fetches a URL, without following redirects.
func get(t testing.TB, url string) fetched {
	t.Helper()
	f, err := tryGet(url)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// bodyLimit bounds what get reads; no test fetches more.
const bodyLimit = 32 << 20

func tryGet(url string) (fetched, error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return fetched{}, err
	}
	return do(request)
}

func do(request *http.Request) (fetched, error) {
	response, err := client.Do(request)
	if err != nil {
		return fetched{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, bodyLimit+1))
	if err != nil {
		return fetched{}, fmt.Errorf("read %s: %w", request.URL, err)
	}
	if len(body) > bodyLimit {
		return fetched{}, fmt.Errorf("answer of %s is too large", request.URL)
	}
	return fetched{response.StatusCode, response.Header, body}, nil
}
