package stream

import (
	"bytes"
	"slices"
	"unsafe"

	"weir/internal/media"
)

// Headers is the decoder state at one place of a log: metadata and the sequence
// headers of each track. A Headers never changes; a new header makes a new one.
type Headers struct {
	list []header // in the order in which a player must get them
}

type header struct {
	kind media.Kind
	slot uint16
	tag  media.Tag
}

// Bounds against a hostile publisher: headers outlive the log's limits. One
// that does not fit is an entry of the log like any other but not kept as state.
const (
	maxHeaders     = 32      // tracks
	maxHeaderBytes = 1 << 20 // of all tags
)

const headerCost = int64(unsafe.Sizeof(header{}))

// cost is the memory of h without the tags.
func (h *Headers) cost() int64 { return int64(unsafe.Sizeof(*h)) + headerCost*int64(len(h.list)) }

// before is the order in which a player gets headers.
func (n header) before(o header) bool {
	if n.kind != o.kind {
		return order(n.kind) < order(o.kind)
	}
	return n.slot < o.slot
}

// order of the kinds for a player that joins: metadata names the codecs, and
// players that look at the first tags only want video before audio.
func order(k media.Kind) int {
	switch k {
	case media.Data:
		return 0
	case media.Video:
		return 1
	}
	return 2
}

// with returns the headers after tag came: h itself if the tag repeats what is
// in force, so that readers which jump need not get it again, or does not fit.
func (h *Headers) with(info media.Info, tag media.Tag) *Headers {
	if h.Has(info, tag) {
		return h
	}
	list := make([]header, 0, len(h.list)+1)
	added, size := false, cap(tag)
	n := header{info.Kind, info.Slot, slices.Clone(tag)} // it outlives what the tag's memory is shared with
	for _, o := range h.list {
		if o.kind == n.kind && o.slot == n.slot {
			continue
		}
		if !added && n.before(o) {
			list, added = append(list, n), true
		}
		list = append(list, o)
		size += cap(o.tag)
	}
	if !added {
		list = append(list, n)
	}
	if len(list) > maxHeaders || size > maxHeaderBytes {
		return h
	}
	return &Headers{list: list}
}

// Has reports whether a header with the same body is in force.
func (h *Headers) Has(info media.Info, tag media.Tag) bool {
	for _, o := range h.list {
		if o.kind == info.Kind && o.slot == info.Slot {
			return bytes.Equal(o.tag.Body(), tag.Body())
		}
	}
	return false
}

// Len returns the number of headers.
func (h *Headers) Len() int { return len(h.list) }

// Tag returns the nth header in the order in which players get them. It is
// shared and must not be changed.
func (h *Headers) Tag(n int) media.Tag { return h.list[n].tag }

// Find returns the first header of a kind (the main track's sequence header when
// there is one), nil if there is none.
func (h *Headers) Find(kind media.Kind) media.Tag {
	for _, o := range h.list {
		if o.kind == kind {
			return o.tag
		}
	}
	return nil
}

// At returns copies of all headers with the time of the frame that follows, as
// a reader that joins there sends them. Metadata gets time 0 instead: ffmpeg takes
// a later one for the first text of a subtitle stream.
func (h *Headers) At(ms uint32) []media.Tag {
	tags := make([]media.Tag, len(h.list))
	for i, o := range h.list {
		at := ms
		if o.kind == media.Data {
			at = 0
		}
		tags[i] = o.tag.At(at)
	}
	return tags
}

// Codecs returns the names of the codecs that the sequence headers are of, video
// first, each once.
func (h *Headers) Codecs() []string {
	names := []string{}
	for _, o := range h.list {
		if o.kind == media.Data {
			continue
		}
		if name := media.Sniff(o.kind, o.tag.Body()).Codec.String(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
