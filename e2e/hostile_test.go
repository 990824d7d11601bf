package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// attack connects to an RTMP server, completes the handshake, sends what it has
// and returns nil if the server closes the connection before the deadline.
func attack(addr string, payload []byte) error {
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(waitTimeout)); err != nil {
		return err
	}
	c0c1 := make([]byte, 1+1536)
	c0c1[0] = 3
	if _, err := conn.Write(c0c1); err != nil {
		return err
	}
	s0s1s2 := make([]byte, 1+2*1536)
	if _, err := io.ReadFull(conn, s0s1s2); err != nil {
		return err
	}
	// The server may close at any moment from here on, which is what is wanted.
	_, err = conn.Write(append(s0s1s2[1:1+1536:1+1536], payload...))
	if err == nil {
		_, err = io.Copy(io.Discard, conn)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("the server keeps the connection")
	}
	return nil
}

// chunked returns one RTMP message in chunks of the given size, as chunk stream
// csid, type and claimed length say; payload may be shorter than claimed.
func chunked(csid, kind byte, chunkSize, claimed int, payload []byte) []byte {
	b := []byte{csid, 0, 0, 0, byte(claimed >> 16), byte(claimed >> 8), byte(claimed), kind, 0, 0, 0, 0}
	for len(payload) > chunkSize {
		b = append(append(b, payload[:chunkSize]...), 0xc0|csid)
		payload = payload[chunkSize:]
	}
	return append(b, payload...)
}

func message(csid, kind byte, payload []byte) []byte {
	return chunked(csid, kind, 128, len(payload), payload)
}

func setChunkSize(n uint32) []byte {
	return message(2, 1, binary.BigEndian.AppendUint32(nil, n))
}

// While somebody plays, others send what has killed servers. Each of them is
// cut, none costs the server more than a little memory, and the player misses
// nothing.
func TestHostilePublishers(t *testing.T) {
	t.Parallel()
	a := startOrigin(t, "origin-a", addresses{}, "")
	publishClip(t, a.rtmpURL("live/demo"))
	a.awaitStream(demo, "live")
	p := playFLV(t, a.httpURL("live/demo.flv"), "")
	p.await(25, 0)

	const mib = 1 << 20
	connect := []byte("\x02\x00\x07connect\x00\x3f\xf0\x00\x00\x00\x00\x00\x00")
	nested := append(bytes.Clone(connect), bytes.Repeat([]byte{10, 0, 0, 0, 1}, 3*mib)...)
	counted := append(bytes.Clone(connect), 10, 0x80, 0, 0, 0)
	var unfinished []byte
	unfinished = append(unfinished, setChunkSize(64*1024)...)
	for csid := byte(3); csid < 63; csid++ {
		unfinished = append(unfinished, chunked(csid, 9, 64*1024, 8*mib, make([]byte, 256*1024))...)
	}
	attacks := map[string][]byte{
		"connect of nested arrays":            append(setChunkSize(64*1024), chunked(3, 20, 64*1024, len(nested), nested)...),
		"array of 2^31 elements":              message(3, 20, counted),
		"messages that are not finished":      unfinished,
		"chunk size 0":                        append(setChunkSize(0), message(3, 20, connect)...),
		"chunk size 2^31":                     append(setChunkSize(1<<31), message(3, 20, connect)...),
		"no RTMP at all":                      bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 1000),
		"continuation of a message unbegun":   {0xc3, 1, 2, 3},
		"connect that is a number, not words": message(3, 20, []byte{0, 1, 2, 3, 4, 5, 6, 7, 8}),
	}
	before := peakBytes(t, a.pid())
	var attackers sync.WaitGroup
	for name, payload := range attacks {
		for range 4 {
			attackers.Go(func() {
				if err := attack(a.rtmp, payload); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
	}
	attackers.Wait()
	// 32 attackers at 256 KiB are 8 MiB; the race detector and the garbage that
	// is not yet collected multiply that. A server that believes what it is told
	// would hold a gigabyte.
	if grown := peakBytes(t, a.pid()) - before; grown > 96*mib {
		t.Errorf("the attacks made the server grow by %d MiB", grown/mib)
	} else {
		t.Logf("the attacks made the server grow by %d MiB", grown/mib)
	}
	p.await(50, p.videoFrames())
	clipSource(t).require(t, "player", p.end(), 75, rules{})
}
