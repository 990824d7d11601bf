package session

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/internal/media"
	"weir/internal/rtmp"
	"weir/internal/stream"
	"weir/internal/units"
	"weir/internal/vhost"
)

// Every refusal is a status with a sentence, one line and one counter.
func TestRefusals(t *testing.T) {
	type want struct {
		rtmp   string // status code
		http   int
		text   string // in the description or the body
		reason string
		stream string
	}
	const def = vhost.DefaultName + "/live/cam"
	stopping := &Refusal{Code: Stopping, Text: "The server is shutting down."}
	conflict := &Refusal{Code: Conflict, Text: "Taken.", Err: errors.New("secret cause")}
	full := &Refusal{Code: Limit, Text: "Full."}
	down := &Refusal{Code: Unavailable, Text: "No upstream."}
	denied := &Refusal{Code: Denied, Text: "Not you."}
	nowhere := &Redirect{}
	plays := []struct {
		name, path, query string
		err               error
		want              want
	}{
		{"unknown vhost", "live/cam", "vhost=x", nil, want{rtmp.CodeConnectInvalid, 404, "vhost", "bad_request", "live/cam"}},
		{"bad name", "live/c%25m", "", nil, want{rtmp.CodePlayNotFound, 404, "name", "bad_request", "live/c%m"}},
		{"not found", "live/cam", "", nil, want{rtmp.CodePlayNotFound, 404, "obody publishes", "not_found", def}},
		{"limit", "live/cam", "", full, want{rtmp.CodePlayFailed, 503, "Full.", "limit", def}},
		{"unavailable", "live/cam", "", down, want{rtmp.CodePlayFailed, 503, "No upstream.", "unavailable", def}},
		{"denied", "live/cam", "", denied, want{rtmp.CodePlayFailed, 403, "Not you.", "denied", def}},
		{"shutdown", "live/cam", "", stopping, want{rtmp.CodeConnectShutdown, 503, "shutting down", "shutdown", def}},
		{"canceled", "live/cam", "", context.Canceled, want{rtmp.CodeConnectShutdown, 503, "shutting down", "shutdown", def}},
		{"other", "live/cam", "", io.ErrUnexpectedEOF, want{rtmp.CodePlayFailed, 503, "cannot be played now", "unavailable", def}},
		{"redirect to nowhere", "live/cam", "", nowhere, want{rtmp.CodePlayFailed, 503, "Another node has the stream", "unavailable", def}},
	}
	for _, c := range plays {
		t.Run("play "+c.name, func(t *testing.T) {
			n := start(t, nil)
			n.role.set(func() { n.role.play = c.err })
			path, _ := url.PathUnescape(c.path)
			_, err := n.play(path+"?key=hush&"+c.query, "")
			checkStatus(t, err, c.want.rtmp, c.want.text)
			n.refused(1, "play", "rtmp", c.want.reason, c.want.stream)

			for protocol, headers := range map[string][]string{"http-flv": nil, "ws-flv": webSocketHeaders} {
				n := start(t, nil)
				n.role.set(func() { n.role.play = c.err })
				resp := n.get("GET", n.http, "/"+c.path+".flv?key=hush&"+c.query, headers...)
				checkAnswer(t, resp, c.want.http, c.want.text)
				stream := c.want.stream
				if !strings.HasPrefix(stream, vhost.DefaultName) {
					stream = "/" + path
				}
				n.refused(1, "play", protocol, c.want.reason, stream)
				if strings.Contains(n.logs.String(), "hush") {
					t.Error("the query is in the log")
				}
			}

			n = start(t, nil)
			n.role.set(func() { n.role.play = c.err })
			if c.err == nil && c.name == "not found" {
				n.role.set(func() { n.role.play = ErrNotFound })
			}
			checkAnswer(t, n.get("GET", n.http, "/"+c.path+".m3u8?"+c.query), c.want.http, c.want.text)
			n.refused(1, "play", "hls", c.want.reason, c.want.stream)
		})
	}
	publishes := []struct {
		name, path string
		err        error
		want       want
	}{
		{"unknown vhost", "live/cam?vhost=x&key=hush", nil, want{rtmp.CodeConnectInvalid, 0, "vhost", "bad_request", "live/cam"}},
		{"bad name", "live/c%m", nil, want{rtmp.CodePublishBadName, 0, "does not name a stream", "bad_request", "live/c%m"}},
		{"no key", "live/cam?vhost=a", nil, want{rtmp.CodePublishDenied, 0, "publish key", "denied", "a/live/cam"}},
		{"wrong key", "live/cam?vhost=a&key=hush", nil, want{rtmp.CodePublishDenied, 0, "publish key", "denied", "a/live/cam"}},
		{"conflict", "live/cam", conflict, want{rtmp.CodePublishBadName, 0, "Taken.", "conflict", def}},
		{"unavailable", "live/cam", down, want{rtmp.CodePublishFailed, 0, "No upstream.", "unavailable", def}},
		{"denied", "live/cam", denied, want{rtmp.CodePublishDenied, 0, "Not you.", "denied", def}},
		{"shutdown", "live/cam", stopping, want{rtmp.CodeConnectShutdown, 0, "shutting down", "shutdown", def}},
		{"canceled", "live/cam", fmt.Errorf("claim: %w", context.Canceled), want{rtmp.CodeConnectShutdown, 0, "shutting down", "shutdown", def}},
		{"other", "live/cam", io.ErrUnexpectedEOF, want{rtmp.CodePublishFailed, 0, "cannot be published now", "unavailable", def}},
	}
	for _, c := range publishes {
		t.Run("publish "+c.name, func(t *testing.T) {
			n := start(t, nil)
			n.role.set(func() { n.role.publish = c.err })
			_, err := n.publish(c.path, "")
			checkStatus(t, err, c.want.rtmp, c.want.text)
			n.refused(1, "publish", "rtmp", c.want.reason, c.want.stream)
			if strings.Contains(n.logs.String(), "hush") {
				t.Error("the query is in the log")
			}
		})
	}
}

// A key behind the app must not come into the log either.
func TestKeysAreNotLogged(t *testing.T) {
	n := start(t, nil)
	c, _, err := n.dial("live/cam", "rtmp://"+n.rtmp+"/live?key=hush")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	u, _ := rtmp.ParseURL("rtmp://" + n.rtmp + "/live/c%m")
	u.App = "live?key=hush"
	if c, err = rtmp.Dial(t.Context(), u, rtmp.DefaultClientConfig()); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Publish(t.Context(), "c%m?key=hush"); err == nil {
		t.Fatal("a bad name was taken")
	}
	n.refused(1, "publish", "rtmp", "bad_request", "live/c%m")
	if strings.Contains(n.logs.String(), "hush") {
		t.Errorf("the key is in the log: %s", n.logs)
	}
}

func checkStatus(t *testing.T, err error, code, text string) {
	t.Helper()
	var status *rtmp.StatusError
	if !errors.As(err, &status) || status.Code != code || !strings.Contains(status.Description, text) {
		t.Errorf("the answer is %v, want %s with %q", err, code, text)
	}
	if strings.Contains(fmt.Sprint(err), "secret cause") {
		t.Errorf("the client is told the cause: %v", err)
	}
}

func checkAnswer(t *testing.T, resp *http.Response, status int, text string) {
	t.Helper()
	b := body(t, resp)
	if resp.StatusCode != status || !strings.Contains(b, text) || len(b) > 200 || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("answer %d %q %v, want %d with %q", resp.StatusCode, b, resp.Header, status, text)
	}
	if (status == 503) != (resp.Header.Get("Retry-After") != "") {
		t.Errorf("%d with Retry-After %q", status, resp.Header.Get("Retry-After"))
	}
}

func TestRedirects(t *testing.T) {
	n := start(t, nil)
	n.role.set(func() { n.role.play = &Redirect{RTMP: "owner:1935", HTTP: "owner:8080"} })
	nth := 0
	f := func(path, query, host, wantPath, wantQuery string) {
		t.Helper()
		name := path
		if query != "" {
			name += "?" + query
		}
		tcURL := ""
		if host != "" {
			tcURL = "rtmp://" + host + "/live"
		}
		c, err := n.play(name, tcURL)
		if err == nil { // the 302 comes behind Play.Start
			_, err = c.ReadTag()
			c.Close()
		}
		var redirect *rtmp.RedirectError
		if !errors.As(err, &redirect) || redirect.URL != "rtmp://owner:1935/"+path+wantQuery || redirect.Addr != "owner:1935" {
			t.Errorf("RTMP %s: %v", name, err)
		}
		nth++
		n.refused(nth, "play", "rtmp", "redirect", (&url.URL{Path: wantPath}).Path)

		escaped := (&url.URL{Path: "/" + path}).EscapedPath()
		if query != "" {
			query = "?" + query
		}
		var headers []string
		if host != "" {
			headers = []string{"Host", host}
		}
		for _, ext := range []string{".flv", ".m3u8", "-7-19.ts"} {
			resp := n.get("GET", n.http, escaped+ext+query, headers...)
			where, err := url.Parse(resp.Header.Get("Location"))
			if err != nil || resp.StatusCode != 302 || where.Host != "owner:8080" || where.Path != "/"+path+ext ||
				"?"+where.RawQuery != cmpOr(wantQuery, "?") {
				t.Errorf("HTTP %s%s: %d %q", path, ext, resp.StatusCode, resp.Header.Get("Location"))
			}
			if resp.Header.Get("Cache-Control") != "no-store" {
				t.Error("a redirect that may be cached")
			}
			if ext == ".flv" {
				nth++
				n.refused(nth, "play", "http-flv", "redirect", wantPath)
			}
		}
	}
	const def = vhost.DefaultName + "/"
	f("live/cam", "", "", def+"live/cam", "")
	f("live/cam", "token=a%20b&x", "", def+"live/cam", "?token=a%20b&x")
	f("live/eu/cam", "", "a.example", "a/live/eu/cam", "?vhost=a")
	f("live/cam", "token=1", "a.example", "a/live/cam", "?token=1&vhost=a")
	f("live/cam", "vhost=a.example&z=%3D", "", "a/live/cam", "?vhost=a.example&z=%3D")
	f("live/ü+&=;,:@!$'()*~", "", "", def+"live/ü+&=;,:@!$'()*~", "")

	// An escape that was escaped is no name, and not unescaped twice.
	resp := n.get("GET", n.http, "/live/c%2561m.flv")
	checkAnswer(t, resp, 404, "does not name a stream")
	// A space has no place in an RTMP URL of ours, but browsers ask for it.
	resp = n.get("GET", n.http, "/live/my%20cam.flv")
	if l := resp.Header.Get("Location"); l != "http://owner:8080/live/my%20cam.flv" {
		t.Errorf("Location %q", l)
	}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// One stream by every protocol, to its end.
func TestPlayEveryProtocol(t *testing.T) {
	n := start(t, nil)
	key := vhost.DefaultName + "/live/cam"
	s, _ := n.role.live(t, key)
	want := someTags()

	head := n.get("HEAD", n.http, "/live/cam.flv")
	if head.StatusCode != 200 || head.Header.Get("Content-Type") != "video/x-flv" || head.ContentLength != -1 || head.Header.Get("Cache-Control") != "no-store" || body(t, head) != "" {
		t.Errorf("HEAD: %d %v, length %d", head.StatusCode, head.Header, head.ContentLength)
	}
	if len(n.sessions.Sessions()) != 0 {
		t.Error("HEAD is a session")
	}

	player, err := n.play("live/cam", "")
	if err != nil {
		t.Fatal(err)
	}
	node, err := n.play("live/cam", "", "node-2")
	if err != nil {
		t.Fatal(err)
	}
	flv := n.get("GET", n.http, "/live/cam.flv", "User-Agent", "tester")
	nodeFLV := n.get("GET", n.http, "/live/cam.flv", HeaderNode, "node-3", HeaderVia, "node-2")
	worker := n.get("GET", n.worker, WorkerFLVPath+"?"+url.Values{"key": {key}, "query": {"x=y"}}.Encode(), HeaderNode, "node-1")
	ws := n.get("GET", n.http, "/live/cam.flv", webSocketHeaders...)
	if ws.StatusCode != 101 || flv.StatusCode != 200 || nodeFLV.StatusCode != 200 || worker.StatusCode != 200 {
		t.Fatal(ws.Status, flv.Status, nodeFLV.Status, worker.Status)
	}
	if flv.Header.Get(HeaderEpoch) != "" || nodeFLV.Header.Get(HeaderEpoch) != "7" || worker.Header.Get(HeaderEpoch) != "7" {
		t.Error("the epoch is for nodes")
	}

	n.eventually("six sessions", func() bool { return len(n.sessions.Sessions()) == 6 })
	var ids []string
	for _, i := range n.sessions.Sessions() {
		if !strings.HasPrefix(i.ID, "w0-") || i.Kind != "play" || i.Stream != key || i.Since.IsZero() || i.Remote == "" {
			t.Errorf("session %+v", i)
		}
		ids = append(ids, i.ID)
	}
	if slices.Sort(ids); len(slices.Compact(ids)) != 6 {
		t.Errorf("ids %v", ids)
	}
	if p := n.sessions.Players(vhost.Key{Vhost: vhost.DefaultName, App: "live", Name: "cam"}); p != 5 { // the worker's are counted there
		t.Errorf("%d players", p)
	}
	s.Close(nil)

	for name, c := range map[string]*rtmp.Client{"player": player, "node": node} {
		var got []media.Tag
		for {
			tag, err := c.ReadTag()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("RTMP %s: %v", name, err)
			}
			got = append(got, tag)
		}
		if !sameTags(got, want) {
			t.Errorf("RTMP %s: %d tags", name, len(got))
		}
		c.Close()
	}
	for name, resp := range map[string]*http.Response{"player": flv, "node": nodeFLV, "worker": worker} {
		got := tagsOf(t, body(t, resp))
		if name != "player" {
			if last := len(got) - 1; !media.IsEndMark(got[last]) {
				t.Errorf("HTTP-FLV %s: no end mark", name)
			} else {
				got = got[:last]
			}
		}
		if !sameTags(got, want) {
			t.Errorf("HTTP-FLV %s: %d tags", name, len(got))
		}
	}
	frames := body(t, ws)
	if !strings.HasSuffix(frames, "\x88\x02\x03\xe8") || frames[0] != 0x82 {
		t.Errorf("WebSocket: %q", frames)
	}
	ws.Body.Close()

	lines := n.ended(6)
	for _, l := range lines {
		if l["reason"] != "stream_ended" || l["stream"] != key || l["remote"] == "" || l["duration"] == "" || l["bytes"].(float64) < 50 || l["lost_frames"] != 0.0 || l["err"] != nil {
			t.Errorf("line %v", l)
		}
	}
	n.eventually("no sessions", func() bool { return len(n.sessions.Sessions()) == 0 })
	if p := n.sessions.Players(vhost.Key{Vhost: vhost.DefaultName, App: "live", Name: "cam"}); p != 0 {
		t.Errorf("%d players", p)
	}
	m := n.metrics()
	for _, want := range []string{
		`weir_sessions_ended_total{kind="play",protocol="rtmp",peer="client",reason="stream_ended"} 1`,
		`weir_sessions_ended_total{kind="play",protocol="rtmp",peer="node",reason="stream_ended"} 1`,
		`weir_sessions_ended_total{kind="play",protocol="http-flv",peer="client",reason="stream_ended"} 1`,
		`weir_sessions_ended_total{kind="play",protocol="http-flv",peer="node",reason="stream_ended"} 1`,
		`weir_sessions_ended_total{kind="play",protocol="ws-flv",peer="client",reason="stream_ended"} 1`,
		`weir_sessions_ended_total{kind="play",protocol="worker",peer="node",reason="stream_ended"} 1`,
	} {
		if !strings.Contains(m, want) {
			t.Errorf("no %s in\n%s", want, m)
		}
	}
	n.stop()
}

// A stream that ends while players join: each gets an answer and an end.
func TestJoinAtTheEnd(t *testing.T) {
	n := start(t, nil)
	for i := range 20 {
		key := fmt.Sprintf("%s/live/cam%d", vhost.DefaultName, i)
		s, _ := n.role.live(t, key)
		var joiners sync.WaitGroup
		joiners.Go(func() { s.Close(nil) })
		joiners.Go(func() { tagsOf(t, body(t, n.get("GET", n.http, fmt.Sprintf("/live/cam%d.flv", i)))) })
		joiners.Go(func() {
			c, err := n.play(fmt.Sprintf("live/cam%d", i), "")
			if err != nil {
				t.Error(err)
				return
			}
			for err == nil {
				_, err = c.ReadTag()
			}
			if err != io.EOF {
				t.Error(err)
			}
			c.Close()
		})
		joiners.Wait()
	}
	for _, l := range n.ended(40) {
		if l["reason"] != "stream_ended" {
			t.Errorf("line %v", l)
		}
	}
}

// One connection publishes three times in a row.
func TestPublishAgainAndAgain(t *testing.T) {
	n := start(t, nil)
	nc, err := net.Dial("tcp", n.rtmp)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	e := newEncoder(t, nc)
	for i := range 3 {
		e.publish(fmt.Sprintf("cam%d", i))
		n.eventually("the publisher is in", func() bool {
			all := n.sessions.Sessions()
			return len(all) == 1 && all[0].Kind == "publish" && all[0].Stream == fmt.Sprintf("%s/live/cam%d", vhost.DefaultName, i)
		})
		for _, tag := range someTags() {
			e.send(tag)
		}
		n.eventually("the tags", func() bool { return n.role.tags.Load() == int64(4*(i+1)) })
		e.unpublish()
		n.ended(i + 1)
		n.eventually("it is out", func() bool { return len(n.sessions.Sessions()) == 0 })
	}
	nc.Close()
	n.stop()
	for i, l := range n.ended(3) {
		if l["reason"] != Unpublished || l["bytes"].(float64) < 100 || l["kind"] != "publish" || l["stream"] != fmt.Sprintf("%s/live/cam%d", vhost.DefaultName, i) {
			t.Errorf("line %v", l)
		}
	}
	if r := n.lines("session refused"); len(r) != 0 {
		t.Errorf("refused: %v", r)
	}
}

// all starts one session of each kind on a live stream and returns how many.
func (n *testNode) all(key string) int {
	t := n.t
	t.Helper()
	path := strings.TrimPrefix(key, vhost.DefaultName+"/")
	if _, err := n.publish("live/published", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := n.play(path, ""); err != nil {
		t.Fatal(err)
	}
	n.get("GET", n.http, "/"+path+".flv")
	n.get("GET", n.http, "/"+path+".flv", webSocketHeaders...)
	n.get("GET", n.worker, WorkerFLVPath+"?"+url.Values{"key": {key}}.Encode(), HeaderNode, "n")
	n.eventually("five sessions", func() bool { return len(n.sessions.Sessions()) == 5 })
	return 5
}

func TestKick(t *testing.T) {
	n := start(t, nil)
	key := vhost.DefaultName + "/live/cam"
	n.role.live(t, key)
	count := n.all(key)
	if n.sessions.Kick("nobody") || n.sessions.Kick("") {
		t.Error("kicked nobody")
	}
	for _, s := range n.sessions.Sessions() {
		if !n.sessions.Kick(s.ID) {
			t.Errorf("no session %s", s.ID)
		}
	}
	n.eventually("all are gone", func() bool { return len(n.sessions.Sessions()) == 0 })
	for _, l := range n.ended(count) {
		if l["reason"] != "kicked" {
			t.Errorf("line %v", l)
		}
	}
}

// A session can be kicked before its connection was taken over.
func TestLateConn(t *testing.T) {
	var c lateConn
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	near, far := net.Pipe()
	defer near.Close()
	c.set(near)
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection is open: %v", err)
	}
	c.Close()
}

func TestStop(t *testing.T) {
	n := start(t, nil)
	key := vhost.DefaultName + "/live/cam"
	n.role.live(t, key)
	count := n.all(key)
	// And those that wait for the role, or have said nothing yet.
	n.role.set(func() { n.role.hold = true })
	var waiters sync.WaitGroup
	waiters.Go(func() {
		if _, err := n.play("live/other", ""); err == nil {
			t.Error("played")
		}
	})
	waiters.Go(func() {
		if _, err := n.publish("live/other", ""); err == nil {
			t.Error("published")
		}
	})
	waiters.Go(func() {
		checkAnswer(t, n.get("GET", n.http, "/live/other.flv"), 503, "shutting down")
	})
	waiters.Go(func() {
		checkAnswer2(t, n.get("GET", n.worker, WorkerFLVPath+"?"+url.Values{"key": {key}}.Encode()))
	})
	n.eventually("all wait", func() bool { return n.role.waiting.Load() == 4 })
	silent, err := net.Dial("tcp", n.rtmp)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	unfinished, err := net.Dial("tcp", n.http)
	if err != nil {
		t.Fatal(err)
	}
	defer unfinished.Close()
	fmt.Fprint(unfinished, "GET /live/cam.flv HTTP/1.1\r\n")

	begin := time.Now()
	n.sessions.Stop() // as the door does; a second time does nothing
	n.stop()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	waiters.Wait()
	for _, l := range n.ended(count) {
		if l["reason"] != "shutdown" {
			t.Errorf("line %v", l)
		}
	}
	for _, l := range n.lines("session refused") {
		if l["reason"] != "shutdown" {
			t.Errorf("line %v", l)
		}
	}
}

// The door alone, without a call of Stop before: its own order must give players
// the right reason, whichever listener notices the end first.
func TestDoorEndsWithTheRightReason(t *testing.T) {
	for range 10 {
		n := start(t, nil)
		key := vhost.DefaultName + "/live/cam"
		n.role.live(t, key)
		for range 5 {
			n.get("GET", n.http, "/live/cam.flv")
			n.get("GET", n.http, "/live/cam.flv", webSocketHeaders...)
		}
		n.eventually("ten sessions", func() bool { return len(n.sessions.Sessions()) == 10 })
		n.stop()
		for _, l := range n.ended(10) {
			if l["reason"] != "shutdown" {
				t.Fatalf("line %v", l)
			}
		}
	}
}

func checkAnswer2(t *testing.T, resp *http.Response) {
	t.Helper()
	if b := body(t, resp); resp.StatusCode != 503 || b == "" {
		t.Errorf("answer %d %q", resp.StatusCode, b)
	}
}

// Nothing begins once all sessions were ended: its end would never come.
func TestNothingBeginsAfterStop(t *testing.T) {
	n := start(t, nil)
	n.sessions.Stop()
	l := newLive(traits{kind: KindPublish, protocol: protoRTMP}, netip.AddrPort{})
	err := n.sessions.ledger.begin(l, "v", bounds{})
	if r := (*Refusal)(nil); !errors.As(err, &r) || r.Code != Stopping {
		t.Errorf("begin after the end: %v", err)
	}
}

func TestLimits(t *testing.T) {
	n := start(t, func(o *Options, _ *Door) { o.Config.MaxSessions = 4 })
	n.role.live(t, "a/live/one")
	n.role.live(t, "a/live/two")
	n.role.live(t, vhost.DefaultName+"/live/cam")
	pull := func(key string) *http.Response {
		return n.get("GET", n.worker, WorkerFLVPath+"?"+url.Values{"key": {key}}.Encode(), HeaderNode, "n")
	}
	for range 6 { // workers of the node count in no limit
		if resp := pull("a/live/one"); resp.StatusCode != 200 {
			t.Fatalf("a worker was refused: %s", resp.Status)
		}
	}
	get := func(path string) *http.Response { return n.get("GET", n.http, path+".flv", "Host", "a.example") }
	ok := func(resp *http.Response) *http.Response {
		t.Helper()
		if resp.StatusCode != 200 {
			t.Fatal(resp.Status, body(t, resp))
		}
		return resp
	}
	first := ok(get("/live/one"))
	if _, err := n.play("live/one", "rtmp://a.example/live"); err != nil {
		t.Fatal(err)
	}
	checkAnswer(t, get("/live/one"), 503, "This stream has as many players")
	_, err := n.play("live/one?vhost=a", "")
	checkStatus(t, err, rtmp.CodePlayFailed, "This stream has as many players")
	ok(get("/live/two"))
	checkAnswer(t, get("/live/two"), 503, "This vhost has as many players")
	ok(n.get("GET", n.http, "/live/cam.flv")) // another tenant
	checkAnswer(t, n.get("GET", n.http, "/live/cam.flv"), 503, "as many sessions")
	_, err = n.publish("live/new", "")
	checkStatus(t, err, rtmp.CodePublishFailed, "as many sessions")
	if resp := pull("a/live/two"); resp.StatusCode != 200 {
		t.Errorf("a worker was refused: %s", resp.Status)
	}
	first.Body.Close()
	n.eventually("the place is free", func() bool { return n.sessions.Players(vhost.Key{Vhost: "a", App: "live", Name: "one"}) == 1 })
	ok(get("/live/one"))
	for _, l := range n.lines("session refused") {
		if l["reason"] != "limit" {
			t.Errorf("line %v", l)
		}
	}
}

func TestTooManyConnections(t *testing.T) {
	n := start(t, func(_ *Options, d *Door) { d.Limits.MaxConnections = 1 })
	n.role.live(t, vhost.DefaultName+"/live/cam")
	c, err := n.play("live/cam", "")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, err := n.play("live/cam", "")
		checkStatus(t, err, rtmp.CodeConnectRejected, "takes no more connections")
	}
	silent, err := net.Dial("tcp", n.rtmp) // which is to be told, but does not shake hands
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c.Close()
	n.ended(1)
	n.eventually("a place", func() bool {
		c, err := n.play("live/cam", "")
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// A player that goes while its stream stalls is noticed at once.
func TestGonePlayerOfAStalledStream(t *testing.T) {
	n := start(t, nil)
	key := vhost.DefaultName + "/live/cam"
	n.role.live(t, key)
	player, err := n.play("live/cam", "")
	if err != nil {
		t.Fatal(err)
	}
	flv := n.get("GET", n.http, "/live/cam.flv")
	ws := n.get("GET", n.http, "/live/cam.flv", webSocketHeaders...)
	worker := n.get("GET", n.worker, WorkerFLVPath+"?"+url.Values{"key": {key}}.Encode())
	n.eventually("four sessions", func() bool { return len(n.sessions.Sessions()) == 4 })
	player.Close()
	flv.Body.Close()
	ws.Body.Close()
	worker.Body.Close()
	for _, l := range n.ended(4) {
		if l["reason"] != "left" || l["err"] != nil {
			t.Errorf("line %v", l)
		}
	}
	n.eventually("none is left", func() bool { return len(n.sessions.Sessions()) == 0 })
}

// The close frame of a WebSocket player is answered (RFC 6455, section 5.5.1).
func TestWebSocketClose(t *testing.T) {
	n := start(t, nil)
	n.role.live(t, vhost.DefaultName+"/live/cam")
	for _, c := range []struct{ say, answer string }{
		{"\x88\x82\x00\x00\x00\x00\x03\xe9", "\x88\x02\x03\xe9"}, // 1001, masked with zeros
		{"\x82\x01x", "\x88"}, // not masked
	} {
		nc, err := net.Dial("tcp", n.http)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		fmt.Fprint(nc, "GET /live/cam.flv HTTP/1.1\r\nHost: h\r\n")
		for i := 0; i < len(webSocketHeaders); i += 2 {
			fmt.Fprintf(nc, "%s: %s\r\n", webSocketHeaders[i], webSocketHeaders[i+1])
		}
		fmt.Fprint(nc, "\r\n\x89\x80\x00\x00\x00\x00"+c.say) // behind a ping
		_ = nc.SetReadDeadline(time.Now().Add(patience))
		b, err := io.ReadAll(nc)
		if err != nil {
			t.Fatal(err)
		}
		_, frames, _ := strings.Cut(string(b), "\r\n\r\n")
		i := strings.Index(frames, c.answer)
		if pong := strings.Index(frames, "\x8a\x00"); pong < 0 || i < pong {
			t.Errorf("the answer is %q, want a pong and %q", frames, c.answer)
		}
	}
	for _, l := range n.ended(2) {
		if l["reason"] != "left" {
			t.Errorf("line %v", l)
		}
	}
}

// A handshake that is none is refused, not served as FLV, and gives all back.
func TestBrokenWebSocketHandshake(t *testing.T) {
	n := start(t, nil)
	n.role.live(t, vhost.DefaultName+"/live/cam")
	headers := slices.Clone(webSocketHeaders)
	headers[len(headers)-1] = "x"
	if resp := n.get("GET", n.http, "/live/cam.flv", headers...); resp.StatusCode != 400 {
		t.Errorf("a bad key: %s", resp.Status)
	}
	if resp := n.get("GET", n.http, "/live/cam.flv", webSocketHeaders[:6]...); resp.StatusCode != 400 {
		t.Errorf("no key: %s", resp.Status)
	}
	n.refused(2, "play", "ws-flv", "bad_request", vhost.DefaultName+"/live/cam")
	if len(n.sessions.Sessions()) > 0 {
		t.Error("a session is left")
	}
}

// Connections that never ask for a stream.
func TestConnectionsWithoutARequest(t *testing.T) {
	n := start(t, func(o *Options, _ *Door) { o.RTMP.HandshakeTimeout = 200 * time.Millisecond })
	dial := func(say string) net.Conn {
		nc, err := net.Dial("tcp", n.rtmp)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		fmt.Fprint(nc, say)
		return nc
	}
	dial("").Close() // a port check leaves no line
	garbage := dial("GET / HTTP/1.1\r\nHost: h\r\n\r\n" + strings.Repeat("x", 4000))
	if _, err := io.Copy(io.Discard, garbage); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	n.eventually("a line", func() bool { return len(n.lines("session refused")) == 1 })
	silent := dial("")
	if _, err := io.Copy(io.Discard, silent); err != nil {
		t.Error(err)
	}
	n.eventually("two lines", func() bool { return len(n.lines("session refused")) == 2 })
	var reasons []string
	for _, l := range n.lines("session refused") {
		if l["kind"] != "connect" {
			t.Errorf("line %v", l)
		}
		reasons = append(reasons, l["reason"].(string))
	}
	if want := []string{"protocol_error", "handshake_timeout"}; !slices.Equal(reasons, want) {
		t.Errorf("reasons %v, want %v", reasons, want)
	}
}

// A client that neither reads its refusal nor leaves is let go.
func TestDeafClientIsRefused(t *testing.T) {
	n := start(t, nil)
	nc, err := net.Dial("tcp", n.rtmp)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	e := newEncoder(t, nc)
	e.command("publish", "cam?vhost=nobody")
	n.refused(1, "publish", "rtmp", "bad_request", "live/cam")
	n.eventually("the connection is closed", func() bool {
		return regexp.MustCompile(`(?m)^weir_connections{.*} 0$`).MatchString(n.metrics())
	})
}

// No word of a client ever becomes a label.
func TestLabelsAreOurOwnWords(t *testing.T) {
	n := start(t, nil)
	n.role.live(t, vhost.DefaultName+"/live/evil")
	n.get("GET", n.http, "/live/evil.flv", "User-Agent", "evil", HeaderNode, "evil", HeaderVia, "evil,evil")
	n.get("GET", n.http, "/evil/evil.flv?vhost=evil", "Host", "evil")
	n.get("GET", n.http, "/evil")
	n.get("GET", n.http, "/evil/evil.m3u8?vhost=evil")
	n.get("GET", n.worker, WorkerFLVPath+"?key=evil&query=evil")
	if _, err := n.play("live/evil?evil", "rtmp://evil/evil", "evil"); err != nil {
		t.Fatal(err)
	}
	n.play("evil/evil", "rtmp://evil/evil", "evil")
	n.publish("evil/evil?vhost=evil&key=evil", "")
	n.eventually("two sessions", func() bool { return len(n.sessions.Sessions()) == 2 })
	n.stop()
	m := n.metrics()
	if strings.Contains(m, "evil") {
		t.Errorf("a client's word is a label:\n%s", m)
	}
	words := map[string]bool{}
	for _, w := range []string{
		"play", "publish", "connect", "rtmp", "http-flv", "ws-flv", "hls", "worker", "client", "node", "shutdown", "left", "bad_request", "not_found",
	} {
		words[w] = true
	}
	for _, line := range strings.Split(m, "\n") {
		if !strings.HasPrefix(line, "weir_sessions") && !strings.HasPrefix(line, "weir_session_") && !strings.HasPrefix(line, "weir_refused") {
			continue
		}
		for _, v := range regexp.MustCompile(`="([^"]*)"`).FindAllStringSubmatch(line, -1) {
			if !words[v[1]] {
				t.Errorf("label %q in %s", v[1], line)
			}
		}
	}
}

// A player of an HTTP/1.0 client, without a Host.
func TestOldHTTP(t *testing.T) {
	n := start(t, nil)
	s, _ := n.role.live(t, vhost.DefaultName+"/live/cam")
	nc, err := net.Dial("tcp", n.http)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	fmt.Fprint(nc, "GET /live/cam.flv HTTP/1.0\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Close(nil)
	if got := tagsOf(t, body(t, resp)); !sameTags(got, someTags()) {
		t.Errorf("%d tags", len(got))
	}
	for path, want := range map[string]int{"/": 404, "/live/cam": 404, "/live/cam.mp4": 404, "/live/cam.m3u8": 200} {
		if resp := n.get("GET", n.http, path); resp.StatusCode != want {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

func TestConfig(t *testing.T) {
	good := DefaultConfig(time.Second)
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	if l := good.LogLimits(); l != (stream.Limits{MaxBytes: 32 << 20, MaxTime: 8 * time.Second, MinTime: 2120 * time.Millisecond}) {
		t.Errorf("limits %+v", l)
	}
	late := good // what a batch has is there for who does not get all of it
	if late.MaxLatency = 5 * time.Second; late.LogLimits().MinTime != 7*time.Second {
		t.Errorf("limits %+v", late.LogLimits())
	}
	for key, change := range map[string]func(c *Config){
		"max_lag":        func(c *Config) { c.MaxLag = 0 },
		"write_timeout":  func(c *Config) { c.WriteTimeout = time.Hour },
		"max_log_bytes":  func(c *Config) { c.MaxLogBytes = units.KiB },
		"max_slow_bytes": func(c *Config) { c.MaxSlowBytes = units.KiB },
		"wait_publisher": func(c *Config) { c.WaitPublisher = -1 },
		"max_sessions":   func(c *Config) { c.MaxSessions = -1 },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), key+": ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestRemoteOf(t *testing.T) {
	if a := remoteOf(&net.TCPAddr{IP: net.ParseIP("::ffff:10.0.0.1"), Port: 5}); a != netip.MustParseAddrPort("10.0.0.1:5") {
		t.Error(a)
	}
	if a := remoteOf(&net.UnixAddr{}); remoteName(a) != "local" {
		t.Error(a)
	}
}
