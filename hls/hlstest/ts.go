package hlstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

const packetSize = 188

// Stream types of a program map (ISO/IEC 13818-1 table 2-34; 6 is private data,
// here Opus).
const (
	typeMPEG1Audio = 0x03
	typePrivate    = 0x06
	typeAAC        = 0x0f
	typeH264       = 0x1b
	typeH265       = 0x24
)

// Content is what a segment holds.
type Content struct {
	// Independent is false if there is video whose first picture is not a key
	// frame with its parameter sets.
	Independent bool
	Tracks      []*Track

	FirstCounter, LastCounter map[uint16]uint8 // continuity counters by PID
}

// Track is one elementary stream of a segment.
type Track struct {
	PID   uint16
	Type  uint8 // stream type of the program map
	Video bool
	Keys  int     // pictures that are key frames
	PTS   []int64 // of each PES packet, ticks of 90 kHz, 33 bits
	DTS   []int64

	packet []byte // PES packet under way
}

// Track returns the first track of a kind, and nil if there is none.
func (c *Content) Track(video bool) *Track {
	for _, t := range c.Tracks {
		if t.Video == video {
			return t
		}
	}
	return nil
}

// Duration returns how long the track that paces the segment plays, estimated
// from the time stamps of its PES packets: video, or else audio.
func (c *Content) Duration() time.Duration {
	t := c.Track(true)
	if t == nil || len(t.DTS) < 2 {
		t = c.Track(false)
	}
	if t == nil || len(t.DTS) < 2 {
		return 0
	}
	n := len(t.DTS)
	ticks := diff33(t.DTS[n-1], t.DTS[0])
	ticks += ticks / int64(n-1) // the last one's own share
	return time.Duration(ticks) * time.Second / 90000
}

// diff33 returns a-b for time stamps that wrap after 33 bits.
func diff33(a, b int64) int64 {
	d := (a - b) & (1<<33 - 1)
	if d >= 1<<32 {
		d -= 1 << 33
	}
	return d
}

// Inspect reads the packets of one segment and returns what it holds and what is
// wrong with it.
func Inspect(body []byte) (*Content, error) {
	c := &Content{Independent: true, FirstCounter: map[uint16]uint8{}, LastCounter: map[uint16]uint8{}}
	var errs []error
	fail := func(format string, args ...any) {
		if len(errs) < 20 {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	if len(body) == 0 || len(body)%packetSize != 0 {
		fail("%d bytes are not a whole number of packets", len(body))
		return c, errors.Join(errs...)
	}
	tracks := map[uint16]*Track{}
	programMap := uint16(0)
	hasMap := false
	for at := 0; at < len(body); at += packetSize {
		p := body[at : at+packetSize]
		if p[0] != 0x47 {
			fail("packet at %d does not begin with 0x47", at)
			return c, errors.Join(errs...)
		}
		start := p[1]&0x40 != 0
		pid := binary.BigEndian.Uint16(p[1:]) & 0x1fff
		counter := p[3] & 0xf
		payload := p[4:]
		if p[3]&0x20 != 0 {
			size := int(p[4])
			if size > packetSize-5 {
				fail("packet at %d: adaptation field of %d bytes", at, size)
				continue
			}
			payload = p[5+size:]
		}
		if p[3]&0x10 == 0 {
			continue // no payload, the counter stands still
		}
		if last, ok := c.LastCounter[pid]; ok && counter != (last+1)&0xf {
			fail("packet at %d: continuity counter of PID %#x goes from %d to %d", at, pid, last, counter)
		} else if !ok {
			c.FirstCounter[pid] = counter
		}
		c.LastCounter[pid] = counter

		switch {
		case at == 0 && pid != 0:
			fail("the first packet is not the program association")
		case at == packetSize && (programMap == 0 || pid != programMap):
			fail("the second packet is not the program map")
		}
		switch {
		case pid == 0:
			if s := section(payload, start, 0, fail); len(s) >= 9 {
				programMap = binary.BigEndian.Uint16(s[7:]) & 0x1fff
			}
		case pid == programMap:
			if hasMap {
				continue // repeated
			}
			hasMap = true
			for _, t := range readMap(section(payload, start, 2, fail), fail) {
				tracks[t.PID] = t
				c.Tracks = append(c.Tracks, t)
			}
		default:
			t := tracks[pid]
			if t == nil {
				fail("packet at %d: PID %#x is not in the program map", at, pid)
				continue
			}
			if start {
				t.finish(c, fail)
				t.packet = append([]byte{}, payload...)
			} else if t.packet == nil {
				fail("packet at %d: PID %#x goes on with what began in another segment", at, pid)
			} else {
				t.packet = append(t.packet, payload...)
			}
		}
	}
	for _, t := range c.Tracks {
		t.finish(c, fail)
	}
	if !hasMap {
		fail("no program map")
	}
	return c, errors.Join(errs...)
}

// section returns the body of a table section after its length, without the
// checksum.
func section(payload []byte, start bool, id byte, fail func(string, ...any)) []byte {
	if !start || len(payload) < 1 || len(payload) < 4+int(payload[0]) {
		fail("table %d does not begin in its packet", id)
		return nil
	}
	s := payload[1+int(payload[0]):]
	size := int(binary.BigEndian.Uint16(s[1:]) & 0xfff)
	if s[0] != id || size < 9 || len(s) < 3+size {
		fail("table %d is malformed", id)
		return nil
	}
	if crc32MPEG(s[:3+size]) != 0 {
		fail("table %d has a wrong checksum", id)
	}
	return s[3 : 3+size-4]
}

// crc32MPEG is the checksum of ISO/IEC 13818-1 annex A; zero over a section with
// its own checksum.
func crc32MPEG(b []byte) uint32 {
	crc := ^uint32(0)
	for _, v := range b {
		crc ^= uint32(v) << 24
		for range 8 {
			if crc&(1<<31) != 0 {
				crc = crc<<1 ^ 0x04c11db7
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}

func readMap(s []byte, fail func(string, ...any)) []*Track {
	if len(s) < 9 {
		fail("program map is cut short")
		return nil
	}
	skip := int(binary.BigEndian.Uint16(s[7:]) & 0xfff)
	if len(s) < 9+skip {
		fail("program map is cut short")
		return nil
	}
	clock := binary.BigEndian.Uint16(s[5:]) & 0x1fff
	hasClock := false
	var tracks []*Track
	for s = s[9+skip:]; len(s) >= 5; {
		t := &Track{Type: s[0], PID: binary.BigEndian.Uint16(s[1:]) & 0x1fff}
		t.Video = t.Type == typeH264 || t.Type == typeH265
		switch t.Type {
		case typeMPEG1Audio, typePrivate, typeAAC, typeH264, typeH265:
		default:
			fail("stream type %#x is not expected", t.Type)
		}
		hasClock = hasClock || t.PID == clock
		size := 5 + int(binary.BigEndian.Uint16(s[3:])&0xfff)
		if len(s) < size {
			fail("program map is cut short")
			return tracks
		}
		tracks = append(tracks, t)
		s = s[size:]
	}
	if !hasClock {
		fail("the clock reference is on PID %#x, which is no track", clock)
	}
	return tracks
}

// finish takes the PES packet that was collected.
func (t *Track) finish(c *Content, fail func(string, ...any)) {
	p := t.packet
	t.packet = nil
	if p == nil {
		return
	}
	if len(p) < 9 || p[0] != 0 || p[1] != 0 || p[2] != 1 || len(p) < 9+int(p[8]) {
		fail("PES packet of PID %#x is malformed", t.PID)
		return
	}
	if size := int(binary.BigEndian.Uint16(p[4:])); size != 0 && size != len(p)-6 || size == 0 && !t.Video {
		fail("PES packet of PID %#x: length %d, has %d", t.PID, size, len(p)-6)
	}
	header, data := p[9:9+int(p[8])], p[9+int(p[8]):]
	if p[7]&0x80 == 0 || len(header) < 5 {
		fail("PES packet of PID %#x has no time stamp", t.PID)
		return
	}
	pts := stamp(header)
	dts := pts
	if p[7]&0x40 != 0 && len(header) >= 10 {
		dts = stamp(header[5:])
	}
	if diff33(pts, dts) < 0 {
		fail("PID %#x is to be shown before it is decoded", t.PID)
	}
	if n := len(t.DTS); n > 0 && diff33(dts, t.DTS[n-1]) <= 0 {
		fail("decoding time of PID %#x does not grow: %d, %d", t.PID, t.DTS[n-1], dts)
	}
	if t.Video {
		key, sets := keyFrame(data, t.Type)
		if key {
			t.Keys++
		}
		if len(t.DTS) == 0 && !(key && sets) {
			c.Independent = false
		}
	}
	t.PTS, t.DTS = append(t.PTS, pts), append(t.DTS, dts)
}

func stamp(b []byte) int64 {
	return int64(b[0]>>1&7)<<30 | int64(b[1])<<22 | int64(b[2]>>1)<<15 | int64(b[3])<<7 | int64(b[4]>>1)
}

// keyFrame looks for a random access picture and for parameter sets.
func keyFrame(annexB []byte, kind uint8) (key, sets bool) {
	for i := 0; i+3 < len(annexB); i++ {
		if annexB[i] != 0 || annexB[i+1] != 0 || annexB[i+2] != 1 {
			continue
		}
		b := annexB[i+3]
		if kind == typeH265 {
			n := b >> 1 & 0x3f
			key = key || n >= 16 && n <= 21
			sets = sets || n == 33
		} else {
			key = key || b&0x1f == 5
			sets = sets || b&0x1f == 7
		}
	}
	return key, sets
}
