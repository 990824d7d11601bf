package bench

import (
	"bytes"
	"hash/crc32"
	"time"

	"golang.org/x/sys/unix"
)

// mark is what the publisher writes into each frame, so that a player can say
// which frame it got and how long that took.
type mark struct {
	Run    uint32        // of the tool: a server may still have frames of an earlier one
	Stream uint32        // number of the stream
	Seq    uint32        // of the frame among those of its kind in its stream, from 0
	Sent   time.Duration // on the clock of the process, when it was handed to the connection
}

// markID is the UUID of the marks: that of an H.264 SEI message of user data
// (ITU-T H.264, D.1.7).
const markID = "\xb5weir\xf1bench\xe7mark"

// markSize is the size of a mark with its UUID, in bytes.
const markSize = len(markID) + 3*5 + 9 + 5

// appendMark appends a mark. It has no byte of zero, so that nothing in it looks
// like a start code: numbers are groups of 7 bits, the high bit set.
func appendMark(b []byte, m mark) []byte {
	begin := len(b)
	b = append(b, markID...)
	b = appendGroups(b, uint64(m.Run), 5)
	b = appendGroups(b, uint64(m.Stream), 5)
	b = appendGroups(b, uint64(m.Seq), 5)
	b = appendGroups(b, uint64(m.Sent), 9)
	return appendGroups(b, uint64(crc32.ChecksumIEEE(b[begin:])), 5)
}

func appendGroups(b []byte, v uint64, n int) []byte {
	for i := n - 1; i >= 0; i-- {
		b = append(b, 0x80|byte(v>>(7*i)))
	}
	return b
}

func groups(b []byte) (v uint64, ok bool) {
	for _, c := range b {
		if c < 0x80 {
			return 0, false
		}
		v = v<<7 | uint64(c&0x7f)
	}
	return v, true
}

// markDepth is how far into a frame a mark is looked for. Servers may put a few
// units of their own in front of it.
const markDepth = 256

// findMark returns the first mark in the beginning of a frame.
func findMark(frame []byte) (mark, bool) {
	head := frame[:min(len(frame), markDepth)]
	at := bytes.Index(head, []byte(markID))
	if at < 0 || len(head) < at+markSize {
		return mark{}, false
	}
	b := head[at : at+markSize]
	sum, ok := groups(b[markSize-5:])
	if !ok || sum != uint64(crc32.ChecksumIEEE(b[:markSize-5])) {
		return mark{}, false
	}
	b = b[len(markID):]
	run, ok0 := groups(b[:5])
	stream, ok1 := groups(b[5:10])
	seq, ok2 := groups(b[10:15])
	sent, ok3 := groups(b[15:24])
	if !ok0 || !ok1 || !ok2 || !ok3 || max(run, stream, seq) >= 1<<32 {
		return mark{}, false
	}
	return mark{Run: uint32(run), Stream: uint32(stream), Seq: uint32(seq), Sent: time.Duration(sent)}, true
}

// clock is the system's monotonic clock, read without a system call.
type clock struct {
	begin  time.Time
	offset time.Duration
}

func newClock() clock {
	var ts unix.Timespec
	// It fails for no clock that Linux has had since 2.6.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return clock{begin: time.Now(), offset: time.Duration(ts.Nano())}
}

// now returns the time since the machine was started.
func (c clock) now() time.Duration { return c.offset + time.Since(c.begin) }
