package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

const demo = "__defaultVhost__/live/demo" // key of the stream of most stories

// redirectMessage is the RTMP message that sends a player to another origin, as
// protocols.md records it from the wire: an AMF0 command on chunk stream 5,
// message stream 0, in one chunk.
func redirectMessage(app, stream string) []byte {
	str := func(s string) []byte {
		return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
	}
	text := func(s string) []byte { return append([]byte{2}, str(s)...) }
	number := func(f float64) []byte { return binary.BigEndian.AppendUint64([]byte{0}, math.Float64bits(f)) }
	end := []byte{0, 0, 9}
	payload := bytes.Join([][]byte{
		text("onStatus"), number(0), {5}, {3},
		str("level"), text("error"),
		str("code"), text("NetConnection.Connect.Rejected"),
		str("description"), text("RTMP 302 Redirect"),
		str("ex"), {3},
		str("code"), number(302),
		str("redirect"), text(app),
		str("redirect2"), text(stream),
		end, end,
	}, nil)
	header := []byte{5, 0, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), 20, 0, 0, 0, 0}
	return append(header, payload...)
}

// The message has to be the one of the page byte for byte, or the stories
// below compare with something that no SRS understands.
func TestRedirectMessageIsTheRecordedOne(t *testing.T) {
	got := redirectMessage("rtmp://127.0.0.1:13950/live", "rtmp://127.0.0.1:13950/live/livestream")
	if len(got) != 12+227 {
		t.Errorf("payload has %d bytes, recorded 227", len(got)-12)
	}
	if want := "050000000000e31400000000"; fmt.Sprintf("%x", got[:12]) != want {
		t.Errorf("chunk header %x, recorded %s", got[:12], want)
	}
}

// alice publishes at origin a. bob plays from an edge that knows only origin b,
// in every way there is: b sends the edge to a with a 302, and bob sees every
// frame of alice's.
func TestPlayThroughRedirect(t *testing.T) {
	t.Parallel()
	discovery := startDiscovery(t, "")
	a := startOrigin(t, "origin-a", addresses{}, discoveryAt(discovery))
	b := startOrigin(t, "origin-b", addresses{}, discoveryAt(discovery))
	wire := tap(t, b.rtmp)
	edge := startEdge(t, "edge-1", 2, upstreamsOf(wire.addr()))

	publishClip(t, a.rtmpURL("live/demo"))
	a.awaitStream(demo, "live")

	flvPlayer := playFLV(t, edge.httpURL("live/demo.flv"), "")
	flvPlayer.await(25, 0)

	// The redirect, on the wire and in the counters: a node is told the epoch too,
	// before the end of the inner object; all others get the recorded form.
	_, fromB := wire.said()
	message := redirectMessage("rtmp://"+a.rtmp+"/live", "rtmp://"+a.rtmp+"/live/demo")
	const head, ends = 12, 6
	said := bytes.Join(fromB, nil)
	if n := bytes.Count(said, append(message[head:len(message)-ends:len(message)-ends], "\x00\x09weirEpoch\x02"...)); n != 1 {
		t.Errorf("origin b sent the redirect %d times, want once; it said\n%q", n, said)
	}
	if r := weir(t, waitTimeout, "pull", "rtmp://"+wire.addr()+"/live/demo", "--duration", "1s"); r.code != 0 {
		t.Errorf("pull at origin b: exit code %d\n%s", r.code, r.stderr)
	}
	_, fromB = wire.said()
	if said = bytes.Join(fromB, nil); bytes.Count(said, message) != 1 {
		t.Errorf("origin b did not send the recorded redirect to who is no node; it said\n%q", said)
	}
	requireCounted(t, b, 1, "redirect")
	requireCounted(t, edge, 1, "redirect")

	// Four more kinds of players; one pull for all of them.
	clipPackets := ffmpegSource(t, file(t, clipFile), packets, clipKeyEvery)
	clipPackets.require(t, "ffmpeg over RTMP", ffmpegFrames(t, edge.rtmpURL("live/demo"), 3*time.Second, packets), 70, rules{})
	clipPackets.require(t, "ffmpeg over HTTP-FLV", ffmpegFrames(t, edge.httpURL("live/demo.flv"), 3*time.Second, packets), 70, rules{})
	clipSource(t).require(t, "rtmpdump", rtmpdumpFrames(t, edge.rtmpURL("live/demo"), 3*time.Second), 75, rules{})
	clipSource(t).require(t, "WebSocket-FLV", webSocketFrames(t, edge.http, "/live/demo.flv", 75), 75, rules{})
	a.awaitSessions("play", demo, 1)

	clipSource(t).require(t, "HTTP-FLV", flvPlayer.end(), 125, rules{})
	flvPlayer.requireHeaders()
}

// requireCounted fails unless the node has counters whose name contains the
// word and that add up to at least n.
func requireCounted(t *testing.T, n *node, min float64, word string) {
	t.Helper()
	eventually(t, waitTimeout, fmt.Sprintf("%s counts %q", n.id, word), func() error {
		total := 0.0
		for series, value := range scrape(t, n.admin) {
			if strings.Contains(series, word) {
				total += value
			}
		}
		if total < min {
			return fmt.Errorf("the counters add up to %v, want at least %v", total, min)
		}
		return nil
	})
}

// Players that ask the wrong origin over HTTP are sent on with a 302 that keeps
// their query; of a stream that nobody has they are told so.
func TestHTTPRedirect(t *testing.T) {
	t.Parallel()
	discovery := startDiscovery(t, "")
	// The advertised address is another than the one listened on.
	aAddr := freeAddr(t)
	front := tap(t, aAddr)
	a := startOrigin(t, "origin-a", addresses{http: aAddr, advertiseHTTP: front.addr()}, discoveryAt(discovery))
	b := startOrigin(t, "origin-b", addresses{}, discoveryAt(discovery))
	publishClip(t, a.rtmpURL("live/demo"))
	a.awaitStream(demo, "live")

	for _, path := range []string{"live/demo.flv?token=a%20b&x=1", "live/demo.m3u8?token=a%20b&x=1"} {
		answer := get(t, b.httpURL(path))
		want := "http://" + front.addr() + "/" + path
		if got := answer.header.Get("Location"); answer.status != http.StatusFound || got != want {
			t.Errorf("%s at origin b: status %d, Location %q, want 302, %q", path, answer.status, got, want)
		}
	}
	for _, path := range []string{"live/nobody.flv", "live/nobody.m3u8"} {
		answer := get(t, b.httpURL(path))
		if answer.status != http.StatusNotFound || len(answer.body) == 0 || len(answer.body) > 500 {
			t.Errorf("%s at origin b: status %d, %d bytes, want 404 and a short body", path, answer.status, len(answer.body))
		}
	}

	p := playFLV(t, b.httpURL("live/demo.flv"), "")
	p.await(50, 0)
	clipSource(t).require(t, "player that follows", p.end(), 50, rules{})
}

// Without a discovery server the origins ask each other. One of the peers
// answers nothing, ever: it must not delay anybody for long.
func TestPeersFindEachOther(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp4", "127.0.0.1:0") // accepts in the kernel, never reads
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	httpA, httpB := freeAddr(t), freeAddr(t)
	peers := func(addrs ...string) string {
		return "discovery: {peers: " + yamlList(addrs) + "}\n"
	}
	dead := silent.Addr().String()
	a := launchOrigin(t, "origin-a", addresses{http: httpA}, peers(dead, httpB))
	b := launchOrigin(t, "origin-b", addresses{http: httpB}, peers(dead, httpA))
	a.awaitReady()
	b.awaitReady()

	publishClip(t, a.rtmpURL("live/demo"))
	a.awaitStream(demo, "live")

	begin := time.Now()
	answer := get(t, b.httpURL("live/demo.flv"))
	if want := "http://" + a.http + "/live/demo.flv"; answer.status != http.StatusFound || answer.header.Get("Location") != want {
		t.Errorf("origin b: status %d, Location %q, want 302, %q", answer.status, answer.header.Get("Location"), want)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the answer took %v although only one peer is silent", took)
	}

	// The same conversation as SRS has it.
	query := "vhost=__defaultVhost__&ip=127.0.0.1&app=live&stream=%s&coworker=" + httpA
	requireClusters(t, "http://"+httpA+"/api/v1/clusters?"+fmt.Sprintf(query, "demo"), "demo", a.rtmp)
	requireClusters(t, "http://"+httpA+"/api/v1/clusters?"+fmt.Sprintf(query, "nobody"), "nobody", "")

	edge := startEdge(t, "edge-1", 1, upstreamsOf(b.rtmp))
	p := playFLV(t, edge.httpURL("live/demo.flv"), "")
	p.await(50, 0)
	clipSource(t).require(t, "player", p.end(), 50, rules{})
}

// requireClusters checks the answers of SRS's clusters API at url; owner is the
// RTMP address of the origin that has the stream, empty for none.
func requireClusters(t *testing.T, url, stream, owner string) {
	t.Helper()
	for _, method := range []string{http.MethodPost, http.MethodGet} { // SRS asks with POST and no body
		request, err := http.NewRequest(method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := do(request)
		if err != nil {
			t.Fatal(err)
		}
		requireClustersAnswer(t, method, answer, stream, owner)
	}
}

func requireClustersAnswer(t *testing.T, method string, answer fetched, stream, owner string) {
	t.Helper()
	var body struct {
		Code *int
		Data struct {
			Query  struct{ IP, Vhost, App, Stream string }
			Origin *struct {
				IP      string
				Port    int
				Vhost   string
				API     string
				Routers []string
			}
		}
	}
	if answer.status != http.StatusOK {
		t.Errorf("clusters API, "+method+": status %d: %s", answer.status, answer.body)
		return
	}
	if err := json.Unmarshal(answer.body, &body); err != nil {
		t.Errorf("clusters API, "+method+": %v in %s", err, answer.body)
		return
	}
	if body.Code == nil || *body.Code != 0 || body.Data.Query.Stream != stream || body.Data.Query.App != "live" {
		t.Errorf("clusters API, "+method+": code or query in %s", answer.body)
	}
	got := ""
	if o := body.Data.Origin; o != nil {
		got = fmt.Sprintf("%s:%d", o.IP, o.Port)
	} else if !bytes.Contains(answer.body, []byte(`"origin":null`)) {
		t.Errorf("clusters API, "+method+": no origin and no null in %s", answer.body)
	}
	if got != owner {
		t.Errorf("clusters API, "+method+": owner %q, want %q", got, owner)
	}
}

// The discovery server answers SRS's question as well.
func TestDiscoveryAnswersSRS(t *testing.T) {
	t.Parallel()
	discovery := startDiscovery(t, "")
	a := startOrigin(t, "origin-a", addresses{}, discoveryAt(discovery))
	publishClip(t, a.rtmpURL("live/demo"))
	a.awaitStream(demo, "live")
	query := "/api/v1/clusters?vhost=__defaultVhost__&ip=127.0.0.1&app=live&stream=%s&coworker=127.0.0.1:1"
	for _, n := range []string{discovery.http, a.http} {
		requireClusters(t, "http://"+n+fmt.Sprintf(query, "demo"), "demo", a.rtmp)
		requireClusters(t, "http://"+n+fmt.Sprintf(query, "nobody"), "nobody", "")
	}
}
