package media

import (
	"encoding/binary"
	"strconv"
)

// Marks are script tags that nodes of weir send each other in a stream. Their
// names begin with markPrefix. They are not for players, and what a publisher
// sends under such a name is not taken.
const (
	markPrefix = "onWeir"
	endName    = "onWeirEnd"
	epochName  = "onWeirEpoch"
	movedName  = "onWeirMoved"
)

// SlotEpoch is the slot of an epoch mark among the headers of kind Data.
const SlotEpoch = 1

// IsMark reports a tag that is for nodes of weir alone. It does not allocate.
func IsMark(t Tag) bool {
	if t.Kind() != Data {
		return false
	}
	b := t.Body()
	return len(b) >= 3+len(markPrefix) && b[0] == 2 && string(b[3:3+len(markPrefix)]) == markPrefix
}

// EndMark returns the mark of a stream that has ended: a closed connection alone
// does not tell an end from a crash.
func EndMark() Tag { return newMark(endName) }

// IsEndMark reports an EndMark.
func IsEndMark(t Tag) bool {
	_, ok := markArgs(t, endName, 0)
	return ok
}

// EpochMark returns the mark that what follows is of an ownership of the stream
// with that epoch. It is state like a decoder header.
func EpochMark(epoch uint64) Tag { return newMark(epochName, strconv.FormatUint(epoch, 10)) }

// EpochOf returns the epoch of an EpochMark.
func EpochOf(t Tag) (epoch uint64, ok bool) {
	args, ok := markArgs(t, epochName, 1)
	if !ok {
		return 0, false
	}
	epoch, err := strconv.ParseUint(args[0], 10, 64)
	return epoch, err == nil
}

// MovedMark returns the mark of a stream that another node has now: it is at addr
// (host:port), with that epoch.
func MovedMark(addr string, epoch uint64) Tag {
	return newMark(movedName, addr, strconv.FormatUint(epoch, 10))
}

// MovedTo returns what a MovedMark says.
func MovedTo(t Tag) (addr string, epoch uint64, ok bool) {
	args, ok := markArgs(t, movedName, 2)
	if !ok {
		return "", 0, false
	}
	epoch, err := strconv.ParseUint(args[1], 10, 64)
	return args[0], epoch, err == nil
}

// newMark returns a tag with AMF0 strings (AMF0, section 2.4), each shorter than
// 64 KiB.
func newMark(texts ...string) Tag {
	var body []byte
	for _, s := range texts {
		body = append(binary.BigEndian.AppendUint16(append(body, 2), uint16(len(s))), s...)
	}
	t := NewTag(Data, 0, len(body))
	copy(t.Body(), body)
	return t
}

// markArgs returns the n strings behind the name of a mark.
func markArgs(t Tag, name string, n int) ([]string, bool) {
	if t.Kind() != Data {
		return nil, false
	}
	got, rest, ok := cutString(t.Body())
	if !ok || got != name {
		return nil, false
	}
	args := make([]string, n)
	for i := range args {
		if args[i], rest, ok = cutString(rest); !ok {
			return nil, false
		}
	}
	return args, len(rest) == 0
}

// cutString splits an AMF0 string off b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 3 || b[0] != 2 {
		return "", nil, false
	}
	n := int(binary.BigEndian.Uint16(b[1:]))
	if len(b) < 3+n {
		return "", nil, false
	}
	return string(b[3 : 3+n]), b[3+n:], true
}
