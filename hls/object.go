package hls

import (
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/valyala/fasthttp"
)

// Media types of what is served (RFC 8216 sections 4 and 3.2).
const (
	PlaylistType = "application/vnd.apple.mpegurl"
	SegmentType  = "video/mp2t"
	textType     = "text/plain; charset=utf-8"
)

// segmentCaching is the Cache-Control of a segment: a name is never used for
// other bytes.
const segmentCaching = "public, max-age=86400, immutable"

// Object is an answer to a request: a playlist, a segment, or a short text that
// says why there is none. An Object and its Body never change and are safe for
// concurrent use.
type Object struct {
	// Status is an HTTP status code.
	Status int
	// ContentType is the media type of the body.
	ContentType string
	// CacheControl is the value of the header of that name.
	CacheControl string
	// ETag is derived from the body alone, so that every node that has the same
	// bytes has the same tag. Empty where Status is not 200.
	ETag string
	// Body is shared by all requests and must not be changed.
	Body []byte
}

// NewObject returns an object with the ETag of its body.
func NewObject(status int, contentType, cacheControl string, body []byte) Object {
	o := Object{Status: status, ContentType: contentType, CacheControl: cacheControl, Body: body}
	if status == fasthttp.StatusOK {
		o.ETag = `"` + strconv.FormatUint(xxhash.Sum64(body), 36) + `"`
	}
	return o
}

// NotFound returns a 404 with a sentence as its body.
func NotFound(sentence string) Object {
	return NewObject(fasthttp.StatusNotFound, textType, "max-age=1", []byte(sentence+"\n"))
}

func playlistObject(target int, body []byte) Object {
	age := max(1, target/2)
	return NewObject(fasthttp.StatusOK, PlaylistType, "public, max-age="+strconv.Itoa(age), body)
}

// Respond writes o as the response of ctx: GET and HEAD, conditional requests
// (RFC 9110 section 13) and a single byte range (section 14) of an object that
// is there, CORS with allowOrigin unless it is empty, and the preflight of
// pages that send a Range. The body is not copied.
func (o Object) Respond(ctx *fasthttp.RequestCtx, allowOrigin string) {
	h := &ctx.Response.Header
	if allowOrigin != "" {
		h.Set(fasthttp.HeaderAccessControlAllowOrigin, allowOrigin)
		h.Set(fasthttp.HeaderAccessControlExposeHeaders, "Content-Length, Content-Range")
	}
	switch {
	case ctx.IsOptions():
		h.Set(fasthttp.HeaderAllow, "GET, HEAD, OPTIONS")
		if allowOrigin != "" {
			h.Set(fasthttp.HeaderAccessControlAllowMethods, "GET, HEAD")
			h.Set(fasthttp.HeaderAccessControlAllowHeaders, "Range, If-None-Match")
			h.Set(fasthttp.HeaderAccessControlMaxAge, "86400")
		}
		ctx.SetStatusCode(fasthttp.StatusNoContent)
		return
	case !ctx.IsGet() && !ctx.IsHead():
		h.Set(fasthttp.HeaderAllow, "GET, HEAD, OPTIONS")
		ctx.SetStatusCode(fasthttp.StatusMethodNotAllowed)
		ctx.SetContentType(textType)
		ctx.SetBodyString("only GET and HEAD are answered here\n")
		return
	}

	h.Set(fasthttp.HeaderCacheControl, o.CacheControl)
	if o.Status != fasthttp.StatusOK {
		ctx.SetStatusCode(o.Status)
		ctx.SetContentType(o.ContentType)
		ctx.Response.SetBodyRaw(o.Body)
		return
	}
	h.Set(fasthttp.HeaderETag, o.ETag)
	if matches(string(ctx.Request.Header.Peek(fasthttp.HeaderIfNoneMatch)), o.ETag) {
		ctx.SetStatusCode(fasthttp.StatusNotModified)
		h.SetContentTypeBytes(nil)
		h.SetNoDefaultContentType(true)
		return
	}
	h.Set(fasthttp.HeaderAcceptRanges, "bytes")
	ctx.SetContentType(o.ContentType)
	ctx.SetStatusCode(fasthttp.StatusOK)
	body := o.Body
	if r := string(ctx.Request.Header.Peek(fasthttp.HeaderRange)); r != "" && o.rangeApplies(ctx) {
		switch from, to, verdict := parseRange(r, len(body)); verdict {
		case rangeGood:
			h.Set(fasthttp.HeaderContentRange,
				"bytes "+strconv.Itoa(from)+"-"+strconv.Itoa(to-1)+"/"+strconv.Itoa(len(body)))
			ctx.SetStatusCode(fasthttp.StatusPartialContent)
			body = body[from:to]
		case rangeOutside:
			h.Set(fasthttp.HeaderContentRange, "bytes */"+strconv.Itoa(len(body)))
			ctx.SetStatusCode(fasthttp.StatusRequestedRangeNotSatisfiable)
			body = nil
		}
	}
	ctx.Response.SetBodyRaw(body)
}

// rangeApplies reports whether the If-Range of the request, if any, names this
// very object (RFC 9110 section 13.1.5; a date never does). A range of HEAD is
// ignored (section 14.2).
func (o Object) rangeApplies(ctx *fasthttp.RequestCtx) bool {
	if ctx.IsHead() {
		return false
	}
	condition := ctx.Request.Header.Peek(fasthttp.HeaderIfRange)
	return len(condition) == 0 || string(condition) == o.ETag
}

// matches reports whether an If-None-Match value names the tag, by the weak
// comparison (RFC 9110 sections 8.8.3.2 and 13.1.2). The tags of this package
// contain no comma.
func matches(header, etag string) bool {
	if header == "" {
		return false
	}
	for candidate := range strings.SplitSeq(header, ",") {
		candidate = strings.TrimSpace(candidate)
		if candidate == "*" || strings.TrimPrefix(candidate, "W/") == etag {
			return true
		}
	}
	return false
}

type rangeVerdict uint8

const (
	rangeIgnored rangeVerdict = iota // malformed, another unit, or several ranges: answer with the whole
	rangeGood
	rangeOutside
)

// parseRange reads the value of a Range header for an object of size bytes and
// returns a half-open interval (RFC 9110 section 14.1.2).
func parseRange(s string, size int) (from, to int, verdict rangeVerdict) {
	spec, ok := strings.CutPrefix(s, "bytes=")
	if !ok {
		return 0, 0, rangeIgnored
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return 0, 0, rangeIgnored
	}
	if first == "" { // the last bytes
		n, ok := parseOffset(last)
		if !ok {
			return 0, 0, rangeIgnored
		}
		if n == 0 || size == 0 {
			return 0, 0, rangeOutside
		}
		return size - min(n, size), size, rangeGood
	}
	from, ok = parseOffset(first)
	if !ok {
		return 0, 0, rangeIgnored
	}
	to = size
	if last != "" {
		end, ok := parseOffset(last)
		if !ok || end < from {
			return 0, 0, rangeIgnored
		}
		to = min(size-1, end) + 1 // end may be the largest integer
	}
	if from >= size {
		return 0, 0, rangeOutside
	}
	return from, to, rangeGood
}

func parseOffset(s string) (int, bool) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, false // Atoi takes a sign
	}
	n, err := strconv.Atoi(s)
	return n, err == nil
}

// maxAge returns the max-age of a Cache-Control value, and zero where there is
// none or the object must not be stored.
func maxAge(cacheControl string) time.Duration {
	var age time.Duration
	for directive := range strings.SplitSeq(cacheControl, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch strings.ToLower(name) {
		case "no-store", "no-cache", "private":
			return 0
		case "max-age":
			seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31)
			if err != nil {
				return 0
			}
			age = time.Duration(seconds) * time.Second
		}
	}
	return age
}
