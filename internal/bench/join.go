package bench

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"weir/internal/flv"
	"weir/internal/media"
)

// Errors of a player that gets no stream.
var (
	errRefused   = errors.New("server refused")
	errNotStream = errors.New("server sends no FLV")
)

// joiner reads what a server sends over HTTP-FLV or WebSocket-FLV up to the end
// of the first key frame. It keeps little: there is one for each player that is
// about to join.
type joiner struct {
	webSocket bool
	run       uint32 // frames with marks of other runs are passed over
	stage     joinStage
	head      []byte // of what is read at present, as far as it came
	left      int    // bytes to pass over
	ws        []byte // head of a WebSocket frame, as far as it came
	frame     int    // bytes that are left of the frame
	control   bool   // the frame is none of media

	tag     media.Kind
	size    int  // of the tag's body
	isKey   bool // the tag is a key frame
	key     mark // of the key frame, once it has come
	marked  bool // key is valid
	headers headerSet
}

type joinStage uint8

const (
	stageHTTP joinStage = iota // response head
	stageFile                  // FLV file header
	stageTag                   // tag header
	stageBody                  // first bytes of the body
	stageRest                  // rest of body and trailer
)

// headerSet says which decoder headers came before the first key frame.
type headerSet uint8

const (
	hasMetadata headerSet = 1 << iota
	hasVideoHeader
	hasAudioHeader
	hasAllHeaders = hasMetadata | hasVideoHeader | hasAudioHeader
)

// maxHead bounds a response head in bytes.
const maxHead = 16 << 10

// feed takes what was read next. done says that the first key frame is complete;
// rest is what came behind it.
func (j *joiner) feed(p []byte) (rest []byte, done bool, err error) {
	for len(p) > 0 {
		if j.stage == stageHTTP {
			p, err = j.feedHead(p)
		} else if j.webSocket {
			p, done, err = j.feedFrame(p)
		} else {
			p, done, err = j.feedFLV(p)
		}
		if done || err != nil {
			return p, done, err
		}
	}
	return nil, false, nil
}

// gather moves bytes from p to the head until that has n.
func (j *joiner) gather(p []byte, n int) (rest []byte, whole bool) {
	k := min(n-len(j.head), len(p))
	j.head = append(j.head, p[:k]...)
	return p[k:], len(j.head) == n
}

func (j *joiner) feedHead(p []byte) ([]byte, error) {
	const end = "\r\n\r\n"
	old := len(j.head)
	j.head = append(j.head, p[:min(len(p), maxHead-old)]...)
	from := max(0, old-len(end)+1)
	at := bytes.Index(j.head[from:], []byte(end))
	if at < 0 {
		if len(j.head) == maxHead {
			return nil, fmt.Errorf("%w: response head over %d bytes", errNotStream, maxHead)
		}
		return nil, nil
	}
	used := from + at + len(end) - old
	if err := j.checkStatus(); err != nil {
		return nil, err
	}
	j.head = j.head[:0]
	j.stage = stageFile
	return p[used:], nil
}

func (j *joiner) checkStatus() error {
	line, _, _ := strings.Cut(string(j.head[:min(len(j.head), 256)]), "\r\n")
	proto, status, _ := strings.Cut(line, " ")
	want := "200"
	if j.webSocket {
		want = "101"
	}
	switch {
	case !strings.HasPrefix(proto, "HTTP/1."):
		return fmt.Errorf("%w: no HTTP response", errNotStream)
	case status != want && !strings.HasPrefix(status, want+" "):
		return fmt.Errorf("%w: HTTP %s", errRefused, status)
	}
	return nil
}

// feedFrame unwraps WebSocket frames (RFC 6455, section 5.2).
func (j *joiner) feedFrame(p []byte) (rest []byte, done bool, err error) {
	if j.frame == 0 {
		rest, err = j.feedFrameHead(p)
		return rest, false, err
	}
	n := min(j.frame, len(p))
	part := p[:n]
	if j.control {
		part = nil
	}
	for len(part) > 0 && !done && err == nil {
		part, done, err = j.feedFLV(part)
	}
	used := n - len(part)
	j.frame -= used
	return p[used:], done, err
}

// feedFrameHead takes one byte of a frame's head. The media's own head may be
// half read, so this one is kept beside it.
func (j *joiner) feedFrameHead(p []byte) ([]byte, error) {
	j.ws = append(j.ws, p[0])
	p = p[1:]
	want := 2
	if len(j.ws) >= 2 {
		switch j.ws[1] & 0x7f {
		case 126:
			want = 4
		case 127:
			want = 10
		}
	}
	if len(j.ws) < want {
		return p, nil
	}
	j.frame = int(j.ws[1] & 0x7f)
	if want > 2 {
		j.frame = 0
		for _, c := range j.ws[2:] {
			j.frame = j.frame<<8 | int(c)
		}
	}
	opcode := j.ws[0] & 0x0f
	j.control = opcode > 2
	switch {
	case opcode == 8:
		return nil, fmt.Errorf("%w: WebSocket is closed", errRefused)
	case j.frame < 0:
		return nil, fmt.Errorf("%w: WebSocket frame of impossible size", errNotStream)
	}
	j.ws = j.ws[:0]
	return p, nil
}

// bodyHead is how much of a body is looked at.
const bodyHead = videoHeader + 3 + 4 + markDepth

func (j *joiner) feedFLV(p []byte) (rest []byte, done bool, err error) {
	var whole bool
	switch j.stage {
	case stageFile:
		if p, whole = j.gather(p, flv.HeaderSize); whole {
			if string(j.head[:3]) != "FLV" {
				return nil, false, errNotStream
			}
			j.next(stageTag)
		}
	case stageTag:
		if p, whole = j.gather(p, media.TagHeaderSize); whole {
			h := media.Tag(j.head)
			j.tag = h.Kind()
			j.size = int(h[1])<<16 | int(h[2])<<8 | int(h[3])
			j.next(stageBody)
		}
	case stageBody:
		n := min(j.size, bodyHead)
		if p, whole = j.gather(p, n); whole {
			j.look()
			j.left = j.size - n + media.TagTrailerSize
			j.next(stageRest)
		}
	case stageRest:
		n := min(j.left, len(p))
		j.left -= n
		p = p[n:]
		if j.left == 0 {
			if j.isKey {
				return p, true, nil
			}
			j.next(stageTag)
		}
	}
	return p, false, nil
}

func (j *joiner) next(s joinStage) {
	j.stage = s
	j.head = j.head[:0]
}

// look notes what the tag is.
func (j *joiner) look() {
	info := media.Sniff(j.tag, j.head)
	switch {
	case info.IsHeader() && j.tag == media.Data:
		j.headers |= hasMetadata
	case info.IsHeader() && j.tag == media.Video:
		j.headers |= hasVideoHeader
	case info.IsHeader() && j.tag == media.Audio:
		j.headers |= hasAudioHeader
	case info.IsKeyFrame():
		j.key, j.marked = findMark(j.head)
		j.isKey = !j.marked || j.key.Run == j.run
	}
}
