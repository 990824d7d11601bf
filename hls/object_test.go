package hls

import (
	"strconv"
	"testing"

	"github.com/valyala/fasthttp"
)

func respond(o Object, method string, headers ...string) *fasthttp.Response {
	var ctx fasthttp.RequestCtx
	ctx.Request.Header.SetMethod(method)
	for i := 0; i < len(headers); i += 2 {
		ctx.Request.Header.Set(headers[i], headers[i+1])
	}
	o.Respond(&ctx, "*")
	return &ctx.Response
}

func TestRespond(t *testing.T) {
	o := NewObject(200, SegmentType, segmentCaching, []byte("0123456789"))
	again := NewObject(200, SegmentType, segmentCaching, []byte("0123456789"))
	if o.ETag == "" || o.ETag != again.ETag {
		t.Fatalf("tags of the same bytes are %s and %s", o.ETag, again.ETag)
	}
	for _, test := range []struct {
		name    string
		method  string
		headers []string
		status  int
		body    string
		rng     string // Content-Range
	}{
		{"whole", "GET", nil, 200, "0123456789", ""},
		{"not modified", "GET", []string{"If-None-Match", o.ETag}, 304, "", ""},
		{"not modified, of several", "GET", []string{"If-None-Match", `"x", W/` + o.ETag}, 304, "", ""},
		{"not modified, any", "HEAD", []string{"If-None-Match", "*"}, 304, "", ""},
		{"modified", "GET", []string{"If-None-Match", `"x"`}, 200, "0123456789", ""},
		{"range", "GET", []string{"Range", "bytes=2-4"}, 206, "234", "bytes 2-4/10"},
		{"range to the end", "GET", []string{"Range", "bytes=7-"}, 206, "789", "bytes 7-9/10"},
		{"range over the end", "GET", []string{"Range", "bytes=7-99"}, 206, "789", "bytes 7-9/10"},
		{"last bytes", "GET", []string{"Range", "bytes=-3"}, 206, "789", "bytes 7-9/10"},
		{"more last bytes than there are", "GET", []string{"Range", "bytes=-30"}, 206, "0123456789", "bytes 0-9/10"},
		{"range outside", "GET", []string{"Range", "bytes=10-"}, 416, "", "bytes */10"},
		{"no last bytes", "GET", []string{"Range", "bytes=-0"}, 416, "", "bytes */10"},
		{"backward range", "GET", []string{"Range", "bytes=4-2"}, 200, "0123456789", ""},
		{"several ranges", "GET", []string{"Range", "bytes=1-2,4-5"}, 200, "0123456789", ""},
		{"another unit", "GET", []string{"Range", "seconds=1-2"}, 200, "0123456789", ""},
		{"signed", "GET", []string{"Range", "bytes=+1-2"}, 200, "0123456789", ""},
		{"huge", "GET", []string{"Range", "bytes=0-99999999999999999999"}, 200, "0123456789", ""},
		{"largest", "GET", []string{"Range", "bytes=0-" + strconv.Itoa(1<<63-1)}, 206, "0123456789", "bytes 0-9/10"},
		{"if-range holds", "GET", []string{"Range", "bytes=2-4", "If-Range", o.ETag}, 206, "234", "bytes 2-4/10"},
		{"if-range does not hold", "GET", []string{"Range", "bytes=2-4", "If-Range", `"x"`}, 200, "0123456789", ""},
		{"range of HEAD", "HEAD", []string{"Range", "bytes=2-4"}, 200, "0123456789", ""},
		{"preflight", "OPTIONS", nil, 204, "", ""},
		{"POST", "POST", nil, 405, "only GET and HEAD are answered here\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := respond(o, test.method, test.headers...)
			if r.StatusCode() != test.status || string(r.Body()) != test.body {
				t.Errorf("%d %q, want %d %q", r.StatusCode(), r.Body(), test.status, test.body)
			}
			if got := string(r.Header.Peek("Content-Range")); got != test.rng {
				t.Errorf("Content-Range is %q, want %q", got, test.rng)
			}
			if got := string(r.Header.Peek("Access-Control-Allow-Origin")); got != "*" {
				t.Errorf("Access-Control-Allow-Origin is %q", got)
			}
			if test.status == 200 || test.status == 206 || test.status == 304 {
				if string(r.Header.Peek("ETag")) != o.ETag || string(r.Header.Peek("Cache-Control")) != segmentCaching {
					t.Errorf("headers:\n%s", r.Header.String())
				}
			}
			if test.status == 200 && string(r.Header.ContentType()) != SegmentType {
				t.Errorf("Content-Type is %s", r.Header.ContentType())
			}
		})
	}
	if r := respond(NotFound("no such stream"), "GET", "If-None-Match", "*", "Range", "bytes=0-1"); r.StatusCode() != 404 || string(r.Body()) != "no such stream\n" {
		t.Errorf("%d %q", r.StatusCode(), r.Body())
	}
}
