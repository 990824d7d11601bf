package discovery

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
)

// srsHas is the stream of the recorded conversation: an SRS 7 origin on port
// 13950 asked under 127.0.0.1:13990.
func srsHas(_ context.Context, stream string) (Lease, error) {
	switch stream {
	case "__defaultVhost__/live/livestream", "v/a/b/c+d":
		return Lease{Stream: stream, Node: "a", Instance: "a1", Epoch: 7, Addr: Addr{RTMP: "127.0.0.1:13950", HTTP: "127.0.0.1:13980"}}, nil
	case "v/live/http-only":
		return Lease{Stream: stream, Node: "a", Epoch: 7, Addr: Addr{HTTP: "127.0.0.1:13980", API: "127.0.0.1:13991"}}, nil
	case "v/live/down":
		return Lease{}, errors.New("engine is gone")
	}
	return Lease{}, ErrNotFound
}

func TestClustersAnswersAreThoseOfSRS(t *testing.T) {
	f := func(query string, status int, want string) {
		t.Helper()
		gotStatus, got := AnswerClusters(t.Context(), query, srsHas)
		if gotStatus != status || string(got) != want {
			t.Errorf("%s\n got %d %s\nwant %d %s", query, gotStatus, got, status, want)
		}
	}
	// As recorded.
	f("vhost=__defaultVhost__&ip=127.0.0.1&app=live&stream=livestream&coworker=127.0.0.1:13990", 200,
		`{"code":0,"data":{"query":{"ip":"127.0.0.1","vhost":"__defaultVhost__","app":"live","stream":"livestream"},"origin":{"ip":"127.0.0.1","port":13950,"vhost":"__defaultVhost__","api":"127.0.0.1:13990","routers":["127.0.0.1:13990"]}}}`)
	f("vhost=__defaultVhost__&ip=127.0.0.1&app=live&stream=nobody&coworker=127.0.0.1:13990", 200,
		`{"code":0,"data":{"query":{"ip":"127.0.0.1","vhost":"__defaultVhost__","app":"live","stream":"nobody"},"origin":null}}`)

	// No vhost is the default vhost; further keys and repeated ones are ignored.
	f("ip=&app=live&stream=livestream&stream=other&x=%zz&coworker=c:1", 200,
		`{"code":0,"data":{"query":{"ip":"","vhost":"","app":"live","stream":"livestream"},"origin":{"ip":"127.0.0.1","port":13950,"vhost":"__defaultVhost__","api":"c:1","routers":["c:1"]}}}`)
	// Not escaped, or escaped: an app with slashes, a plus sign that stands for itself.
	const plus = `{"code":0,"data":{"query":{"ip":"","vhost":"v","app":"a/b","stream":"c+d"},"origin":{"ip":"127.0.0.1","port":13950,"vhost":"v","api":"","routers":[""]}}}`
	f("vhost=v&app=a/b&stream=c+d", 200, plus)
	f("vhost=v&app=a%2Fb&stream=c%2Bd", 200, plus)
	f("vhost=v&app=live&stream=<%zz&", 200,
		`{"code":0,"data":{"query":{"ip":"","vhost":"v","app":"live","stream":"<%zz"},"origin":null}}`)
	// What names no stream has no owner.
	const nothing = `{"code":0,"data":{"query":{"ip":"","vhost":"","app":"","stream":""},"origin":null}}`
	f("", 200, nothing)
	f("&&==&", 200, nothing)
	f("vhost=v/live&app=http-only&stream=", 200,
		`{"code":0,"data":{"query":{"ip":"","vhost":"v/live","app":"http-only","stream":""},"origin":null}}`)
	f("vhost=v/a&app=b&stream=c+d", 200,
		`{"code":0,"data":{"query":{"ip":"","vhost":"v/a","app":"b","stream":"c+d"},"origin":null}}`)
	// Between weir nodes.
	f("vhost=v&app=live&stream=http-only&weir=1", 200,
		`{"code":0,"data":{"query":{"ip":"","vhost":"v","app":"live","stream":"http-only"},"origin":null,"weir":{"node":"a","epoch":7,"http":"127.0.0.1:13980","idle":false}}}`)
	f("vhost=v&app=live&stream=down", 503, `{"code":503,"data":null}`)
}

func TestClustersHandler(t *testing.T) {
	h := ClustersHandler(srsHas)
	f := func(method string, status int) {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, ClustersPath+"?vhost=__defaultVhost__&app=live&stream=livestream", nil))
		if w.Code != status {
			t.Errorf("%s: status %d, want %d", method, w.Code, status)
		}
		if status == http.StatusOK && (w.Header().Get("Content-Type") != "application/json" || !json.Valid(w.Body.Bytes())) {
			t.Errorf("%s: %v %s", method, w.Header(), w.Body)
		}
	}
	f(http.MethodGet, 200)
	f(http.MethodPost, 200)
	f(http.MethodPut, 405)
	f(http.MethodDelete, 405)
}

func TestClustersAnswersOfPeers(t *testing.T) {
	f := func(body string, want Lease, found, ok bool) {
		t.Helper()
		l, gotFound, err := parseClustersAnswer(demo, []byte(body))
		if gotFound != found || (err == nil) != ok || found && l != want {
			t.Errorf("%s\n got %+v %v %v", body, l, gotFound, err)
		}
	}
	f(`{"code":0,"data":{"origin":{"ip":"10.0.0.9","port":1935}}}`,
		Lease{Stream: demo, Node: "10.0.0.9:1935", Addr: Addr{RTMP: "10.0.0.9:1935"}}, true, true)
	f(`{"code":0,"data":{"origin":{"ip":"::1","port":1935,"api":"nonsense"},"x":1}}`,
		Lease{Stream: demo, Node: "[::1]:1935", Addr: Addr{RTMP: "[::1]:1935"}}, true, true)
	f(`{"code":0,"data":{"origin":{"ip":"h","port":1,"api":"h:2"},"weir":{"node":"a","instance":"i","epoch":5,"http":"h:3","idle":true}}}`,
		Lease{Stream: demo, Node: "a", Instance: "i", Epoch: 5, Idle: true, Addr: Addr{"h:1", "h:3", "h:2"}}, true, true)
	f(`{"code":0,"data":{"origin":null}}`, Lease{}, false, true)
	f(`{"code":0,"data":{}}`, Lease{}, false, true)

	f(`{"code":100}`, Lease{}, false, false)
	f(`{"code":0}`, Lease{}, false, false)
	f(``, Lease{}, false, false)
	f(`<html>`, Lease{}, false, false)
	f(`{"code":0,"data":{"origin":{"ip":"","port":1935}}}`, Lease{}, false, false)
	f(`{"code":0,"data":{"origin":{"ip":"a/b","port":1935}}}`, Lease{}, false, false)
	f(`{"code":0,"data":{"origin":{"ip":"user@a","port":1935}}}`, Lease{}, false, false)
	f(`{"code":0,"data":{"origin":{"ip":"a","port":0}}}`, Lease{}, false, false)
	f(`{"code":0,"data":{"origin":{"ip":"a","port":65536}}}`, Lease{}, false, false)
	f(`{"code":0,"data":{"origin":{"ip":"a","port":"1935"}}}`, Lease{}, false, false)
	f(`{"code":0,"data":{"origin":{"ip":"h","port":1},"weir":{"node":"","epoch":5}}}`, Lease{}, false, false)
	f(`{"code":0,"data":{"weir":{"node":"a","epoch":5}}}`, Lease{}, false, false)
}

// Whatever comes in, the answer is JSON, and a lookup gets only good keys; the
// query that weir asks with comes back as it was.
func FuzzClustersQuery(f *testing.F) {
	f.Add("vhost=__defaultVhost__&ip=127.0.0.1&app=live&stream=livestream&coworker=127.0.0.1:13990")
	f.Add("vhost=v&app=a%2Fb&stream=%zz%00&weir=1")
	f.Fuzz(func(t *testing.T, raw string) {
		status, body := AnswerClusters(t.Context(), raw, func(_ context.Context, stream string) (Lease, error) {
			vhost, app, name, err := SplitStream(stream)
			if err != nil {
				t.Fatalf("looked up %q: %v", stream, err)
			}
			got := parseClustersQuery(clustersQueryString(vhost, app, name, "c:1"))
			if got["vhost"] != vhost || got["app"] != app || got["stream"] != name || got["coworker"] != "c:1" {
				t.Fatalf("%q is asked for as %q", stream, got)
			}
			return Lease{Stream: stream, Node: "a", Epoch: 1, Addr: addrA}, nil
		})
		if status != http.StatusOK || !json.Valid(body) {
			t.Fatalf("%d %s", status, body)
		}
	})
}

func FuzzClustersAnswer(f *testing.F) {
	_, found := AnswerClusters(context.Background(), "app=live&stream=livestream&coworker=127.0.0.1:13990&weir=1", srsHas)
	f.Add(found)
	f.Add([]byte(`{"code":0,"data":{"origin":null}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		l, found, err := parseClustersAnswer(demo, body)
		if found && err != nil {
			t.Fatal("found and failed")
		}
		if found && (l.Stream != demo || l.Node == "" || l.Addr.check() != nil || l.Addr == (Addr{})) {
			t.Fatalf("took %+v", l)
		}
	})
}
