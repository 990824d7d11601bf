package stream

import (
	"bytes"

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

// maxHeaders bounds the tracks of a hostile publisher.
const maxHeaders = 32

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

// with returns the headers after tag came. A tag that repeats what is in force
// changes nothing, so that readers which jump need not get it again.
func (h *Headers) with(info media.Info, tag media.Tag) *Headers {
	if h.Has(info, tag) {
		return h
	}
	list := make([]header, 0, len(h.list)+1)
	added := false
	n := header{info.Kind, info.Slot, tag}
	for _, o := range h.list {
		if o.kind == n.kind && o.slot == n.slot {
			continue
		}
		if !added && order(o.kind) > order(n.kind) {
			list, added = append(list, n), true
		}
		list = append(list, o)
	}
	if !added {
		list = append(list, n)
	}
	if len(list) > maxHeaders {
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

// Find returns the first header of a kind, nil if there is none.
func (h *Headers) Find(kind media.Kind) media.Tag {
	for _, o := range h.list {
		if o.kind == kind {
			return o.tag
		}
	}
	return nil
}

// At returns copies of all headers with the time of the frame that follows, as
// a reader that joins there sends them.
func (h *Headers) At(ms uint32) []media.Tag {
	tags := make([]media.Tag, len(h.list))
	for i, o := range h.list {
		tags[i] = o.tag.At(ms)
	}
	return tags
}
