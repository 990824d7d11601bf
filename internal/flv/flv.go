// Package flv reads and writes FLV streams and files, tag by tag, in the form
// in which weir keeps tags: header, body and trailing size in one slice.
//
// Format: Adobe Flash Video File Format Specification 10.1, annex E.
package flv

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"weir/internal/media"
)

// HeaderSize is the size in bytes of the file header with the PreviousTagSize
// of zero that follows it.
const HeaderSize = 13

// Header returns the file header, ready to be sent before the first tag. The
// flags say which kinds the stream is expected to have; players only use them
// as a hint, and some wait for a kind that was announced and never comes.
func Header(audio, video bool) []byte {
	h := []byte{'F', 'L', 'V', 1, 0, 0, 0, 0, 9, 0, 0, 0, 0}
	if audio {
		h[4] |= 4
	}
	if video {
		h[4] |= 1
	}
	return h
}

// Errors that tell a reader's caller what was wrong with the input.
var (
	ErrNotFLV      = errors.New("not an FLV stream")
	ErrTagTooLarge = errors.New("FLV tag over the size limit")
)

// Reader reads tags. It is not safe for concurrent use.
type Reader struct {
	r       *bufio.Reader
	maxBody int
	started bool
	header  [media.TagHeaderSize]byte
	slab    media.Slab
}

// NewReader returns a Reader that refuses tag bodies of more than maxBody
// bytes (at most media.MaxBodySize; 0 means that maximum).
func NewReader(r io.Reader, maxBody int) *Reader {
	if maxBody <= 0 || maxBody > media.MaxBodySize {
		maxBody = media.MaxBodySize
	}
	br, ok := r.(*bufio.Reader)
	if !ok {
		br = bufio.NewReaderSize(r, 16<<10)
	}
	return &Reader{r: br, maxBody: maxBody}
}

// ReadTag returns the next audio, video or data tag; others are passed over.
// The tag is the caller's to keep. At the end of the input, after a whole tag,
// the error is io.EOF; in the middle of one it is io.ErrUnexpectedEOF.
//
// The trailing size is written anew and not checked: several muxers get it
// wrong, and nothing here reads FLV backwards. Memory for a body grows with
// the bytes that arrive, not with the size that the header claims.
func (r *Reader) ReadTag() (media.Tag, error) {
	if !r.started {
		if err := r.readFileHeader(); err != nil {
			return nil, err
		}
		r.started = true
	}
	for {
		if _, err := io.ReadFull(r.r, r.header[:1]); err != nil {
			return nil, err // io.EOF is a clean end here
		}
		if _, err := io.ReadFull(r.r, r.header[1:]); err != nil {
			return nil, unexpected(err)
		}
		h := media.Tag(r.header[:])
		size := int(h[1])<<16 | int(h[2])<<8 | int(h[3])
		if h[0]&0x20 != 0 {
			return nil, fmt.Errorf("read FLV tag: encrypted tags are not supported: %w", ErrNotFLV)
		}
		kind := h.Kind()
		if kind != media.Audio && kind != media.Video && kind != media.Data {
			if _, err := r.r.Discard(size + media.TagTrailerSize); err != nil {
				return nil, unexpected(err)
			}
			continue
		}
		if size > r.maxBody {
			return nil, fmt.Errorf("read FLV tag of %d bytes: %w", size, ErrTagTooLarge)
		}
		t, err := r.readBody(size)
		if err != nil {
			return nil, err
		}
		t.Init(kind, h.Time())
		return t, nil
	}
}

// Gone lets the memory of a tag that ReadTag has returned be used again (see
// media.Slab.Gone).
func (r *Reader) Gone(t media.Tag, unused bool) { r.slab.Gone(t, unused) }

// trusted is the size up to which a body's memory is taken at once.
const trusted = 256 << 10

func (r *Reader) readBody(size int) (media.Tag, error) {
	whole := media.TagOverhead + size
	t := media.Tag(r.slab.Make(min(whole, trusted)))
	for at := media.TagHeaderSize; ; {
		n, err := io.ReadFull(r.r, t[at:])
		if err != nil {
			return nil, unexpected(err)
		}
		at += n
		if at == whole {
			return t, nil
		}
		grown := make(media.Tag, min(whole, 2*len(t)))
		copy(grown, t)
		t = grown
	}
}

func (r *Reader) readFileHeader() error {
	var h [9]byte
	if _, err := io.ReadFull(r.r, h[:]); err != nil {
		if err == io.EOF {
			return fmt.Errorf("read FLV header: empty input: %w", io.ErrUnexpectedEOF)
		}
		return fmt.Errorf("read FLV header: %w", err)
	}
	offset := binary.BigEndian.Uint32(h[5:])
	if string(h[:3]) != "FLV" || offset < 9 || offset > 1024 {
		return fmt.Errorf("read FLV header: %w", ErrNotFLV)
	}
	if _, err := r.r.Discard(int(offset) - 9 + 4); err != nil {
		return unexpected(err)
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read FLV tag: %w", err)
}

// Writer writes an FLV stream. It is not safe for concurrent use.
type Writer struct {
	w       io.Writer
	started bool
}

// NewWriter returns a Writer on w. Nothing is written before the first tag.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// WriteTag writes one tag, and the file header before the first.
func (w *Writer) WriteTag(t media.Tag) error {
	if !w.started {
		if _, err := w.w.Write(Header(true, true)); err != nil {
			return fmt.Errorf("write FLV header: %w", err)
		}
		w.started = true
	}
	if _, err := w.w.Write(t); err != nil {
		return fmt.Errorf("write FLV tag: %w", err)
	}
	return nil
}
