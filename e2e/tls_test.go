package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"weir/internal/secure/securetest"
)

// secured is a node whose doors speak TLS too.
type secured struct {
	*node
	files *securetest.Files
	rtmps string // host:port
	https string
}

// startSecured starts an origin or an edge and waits until it is ready. weir check
// must be content with its file.
func startSecured(t *testing.T, role, id string, more string) *secured {
	t.Helper()
	s := &secured{files: securetest.New(t), rtmps: freeAddr(t), https: freeAddr(t)}
	var a addresses
	a.fill(t)
	s.node = &node{id: id, rtmp: a.rtmp, http: a.http, admin: a.admin}
	under := func(addr string) string {
		return fmt.Sprintf("tls: {listen: %q, cert_file: %q, key_file: %q, check_files: 1s}", addr, s.files.Cert, s.files.Key)
	}
	config := fmt.Sprintf("role: %s\nnode: {id: %s}\nrtmp: {listen: %q, %s}\nhttp: {listen: %q, %s}\nadmin: {listen: %q}\nload: {soft_limit: 0, hard_limit: 0}\n%s",
		role, id, a.rtmp, under(s.rtmps), a.http, under(s.https), a.admin, more)
	path := writeConfig(t, id, config)
	if r := weir(t, waitTimeout, "check", "-c", path); r.code != 0 {
		t.Fatalf("weir check: %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	s.process = startWeir(t, id, role, "-c", path)
	s.awaitReady()
	return s
}

// Publishers and players over TLS, through an origin and an edge of two workers:
// ffmpeg, curl and weir itself.
func TestTLS(t *testing.T) {
	t.Parallel()
	origin := startSecured(t, "origin", "origin-1", "")
	edge := startSecured(t, "edge", "edge-1", "workers: 2\nvhosts:\n  __defaultVhost__:\n    upstreams: "+
		yamlList([]string{"rtmp://" + origin.rtmp, "http://" + origin.http})+"\n")
	edge.awaitWorkers(2)
	src := ffmpegSource(t, file(t, clipFile), packets, clipKeyEvery)

	// ffmpeg publishes at the edge under TLS, which forwards to the origin.
	publishClip(t, "rtmps://"+edge.rtmps+"/live/cam")
	origin.awaitStream("__defaultVhost__/live/cam", "live")

	for _, url := range []string{"https://" + edge.https + "/live/cam.flv", "rtmps://" + edge.rtmps + "/live/cam", "https://" + origin.https + "/live/cam.flv"} {
		// ffmpeg does not check certificates unless it is told to.
		src.require(t, "ffmpeg at "+url, ffmpegFrames(t, url, 2*time.Second, packets), 40, rules{})
	}
	_, port, _ := net.SplitHostPort(edge.https)
	eventually(t, waitTimeout, "curl gets a playlist over https", func() error {
		r := runFor(t, waitTimeout, "curl", "-sS", "--max-time", "10", "--cacert", edge.files.CA, "https://localhost:"+port+"/live/cam.m3u8")
		if r.code != 0 || !strings.Contains(r.stdout, "#EXTINF") {
			return fmt.Errorf("%d %s%s", r.code, r.stdout, r.stderr)
		}
		return nil
	})
	r := runFor(t, waitTimeout, "curl", "-sS", "--max-time", "10", "https://localhost:"+port+"/live/cam.m3u8")
	if r.code != 60 {
		t.Errorf("curl without the CA: %d %s", r.code, r.stderr)
	}

	// Our own tools.
	host := strings.NewReplacer("127.0.0.1", "localhost")
	for _, url := range []string{host.Replace("https://" + edge.https + "/live/cam.flv"), host.Replace("rtmps://" + edge.rtmps + "/live/cam")} {
		if r := weir(t, time.Minute, "pull", url, "--duration", "1s", "--ca", edge.files.CA); r.code != 0 {
			t.Errorf("pull %s: %d %s", url, r.code, r.stderr)
		}
		if r := weir(t, time.Minute, "pull", url, "--duration", "1s", "--insecure"); r.code != 0 {
			t.Errorf("pull --insecure %s: %d %s", url, r.code, r.stderr)
		}
		if r := weir(t, time.Minute, "pull", url, "--duration", "1s"); r.code != 3 || !strings.Contains(r.stderr, "certificate") {
			t.Errorf("pull %s without the CA: %d %s", url, r.code, r.stderr)
		}
	}
	push := startWeir(t, "push", "push", file(t, clipFile), "rtmps://"+origin.rtmps+"/live/pushed", "--loop", "--insecure")
	origin.awaitStream("__defaultVhost__/live/pushed", "live")
	push.stop()

	// Plain bytes at the ports of TLS get an answer.
	if f := get(t, "http://"+edge.https+"/live/cam.flv"); f.status != http.StatusBadRequest || !strings.Contains(string(f.body), "use https://") {
		t.Errorf("plain request: %d %s", f.status, f.body)
	}
	if r := weir(t, time.Minute, "pull", "rtmp://"+edge.rtmps+"/live/cam"); r.code != 4 || !strings.Contains(r.stderr, "use rtmps://") {
		t.Errorf("plain pull: %d %s", r.code, r.stderr)
	}
	edge.awaitMetric(1, "weir_tls_handshake_failures_total", `door="http"`, `reason="not_tls"`)
	edge.awaitMetric(1, "weir_tls_handshake_failures_total", `door="rtmp"`, `reason="not_tls"`)
}

// A certificate is renewed under load: whoever plays goes on, whoever comes gets the
// new one, from every worker. A bad pair changes nothing.
func TestCertificateChangeUnderLoad(t *testing.T) {
	t.Parallel()
	origin := startOrigin(t, "origin-1", addresses{}, "")
	edge := startSecured(t, "edge", "edge-1", "workers: 2\n"+upstreamsOf(origin.rtmp))
	edge.awaitWorkers(2)
	publishClip(t, origin.rtmpURL("live/cam"))
	const key = "__defaultVhost__/live/cam"
	origin.awaitStream(key, "live")

	const present = 8
	players := make([]*tls.Conn, present)
	for i := range players {
		c, err := tls.Dial("tcp", edge.https, edge.files.Client())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /live/cam.flv HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		players[i] = c
	}
	edge.awaitSessions("play", key, present)

	// serials returns those of the certificates that many new connections get.
	serials := func() (map[string]int, error) {
		got := map[string]int{}
		for range 16 {
			c, err := tls.Dial("tcp", edge.https, edge.files.Client())
			if err != nil {
				return nil, err
			}
			got[c.ConnectionState().PeerCertificates[0].SerialNumber.String()]++
			c.Close()
		}
		return got, nil
	}
	all := func(want *big.Int) func() error {
		return func() error {
			got, err := serials()
			if err != nil {
				return err
			}
			if len(got) != 1 || got[want.String()] == 0 {
				return fmt.Errorf("serial numbers %v, want %v", got, want)
			}
			return nil
		}
	}
	second := edge.files.Renew(time.Now().Add(time.Hour))
	eventually(t, waitTimeout, "all workers have the new certificate", all(second))

	if err := os.WriteFile(edge.files.Key, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	edge.awaitMetric(2, "weir_tls_reloads_total", `door="http"`, `result="failed"`)
	if err := all(second)(); err != nil {
		t.Error(err)
	}
	edge.sees("the changed TLS certificate cannot be used")
	third := edge.files.Renew(time.Now().Add(time.Hour))
	eventually(t, waitTimeout, "all workers have the third certificate", all(third))

	// Those who were there all the time still get frames.
	for i, c := range players {
		c.SetReadDeadline(time.Now().Add(waitTimeout))
		if _, err := io.CopyN(io.Discard, c, 1<<10); err != nil {
			t.Errorf("player %d: %v", i, err)
		}
	}
	edge.awaitSessions("play", key, present)
	if n := bytes.Count([]byte(edge.stderr.String()), []byte("PRIVATE")); n > 0 {
		t.Error("a key is in the log")
	}
}

// weir check says which file is wrong, and a node does not start with it.
func TestCheckOfCertificates(t *testing.T) {
	t.Parallel()
	files, other := securetest.New(t), securetest.New(t)
	for _, c := range []struct{ cert, key, want string }{
		{files.Cert, other.Key, "http.tls.key_file"},
		{"/nowhere/cert.pem", files.Key, "http.tls.cert_file"},
		{files.Key, files.Key, "http.tls.cert_file"},
	} {
		path := writeConfig(t, "edge", fmt.Sprintf("role: edge\nhttp:\n  tls: {listen: \"127.0.0.1:0\", cert_file: %q, key_file: %q}\n", c.cert, c.key))
		r := weir(t, waitTimeout, "check", "-c", path)
		if r.code == 0 || !strings.Contains(r.stdout+r.stderr, c.want) {
			t.Errorf("check: %d\n%s%s\nwant %s", r.code, r.stdout, r.stderr, c.want)
		}
		if r := weir(t, waitTimeout, "edge", "-c", path); r.code == 0 || !strings.Contains(r.stderr, c.want) {
			t.Errorf("edge: %d\n%s", r.code, r.stderr)
		}
	}
}

// weir bench plays over TLS in every protocol, and its light players stay although
// they do not decrypt any more.
func TestBenchUnderTLS(t *testing.T) {
	t.Parallel()
	edge := startSecured(t, "origin", "origin-1", "")
	for _, url := range []string{"https://" + edge.https + "/live", "wss://" + edge.https + "/live", "rtmps://" + edge.rtmps + "/live"} {
		r := weir(t, 2*time.Minute, "bench", "--publish", "rtmps://"+edge.rtmps+"/live", "--url", url, "--insecure",
			"--players", "12", "--probes", "3", "--stalled", "2", "--slow", "1", "--slow-rate", "2M",
			"--duration", "1s", "--settle", "500ms", "--json", "-")
		if r.code != 0 {
			t.Fatalf("%s: %d\n%s", url, r.code, r.stderr)
		}
		var report struct {
			TLS    bool `json:"tls"`
			Failed int  `json:"failed"`
			Closed int  `json:"closed_early"`
			Light  struct {
				Count int     `json:"count"`
				Mean  float64 `json:"mean"`
			} `json:"light_share"`
			Probes struct {
				Count    int `json:"count"`
				Disorder int `json:"disorder"`
				Foreign  int `json:"foreign_frames"`
			} `json:"probes"`
		}
		if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
			t.Fatal(err)
		}
		if !report.TLS || report.Failed+report.Closed > 0 || report.Light.Count != 9 || report.Light.Mean < 0.9 || report.Light.Mean > 1.1 ||
			report.Probes.Count != 3 || report.Probes.Disorder+report.Probes.Foreign > 0 {
			t.Errorf("%s: %+v\n%s", url, report, r.stdout)
		}
	}
}
