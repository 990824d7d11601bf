package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"weir/internal/media"
)

// webSocketFrames plays a WebSocket-FLV path of a node until it has n video
// frames. The payloads of the binary messages, put together, are an FLV stream.
// The client's side is written here after RFC 6455, so that the server's library
// is not tested against itself.
func webSocketFrames(t testing.TB, addr, path string, n int) []frame {
	t.Helper()
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(waitTimeout)); err != nil {
		t.Fatal(err)
	}
	// Key and answer are the example of RFC 6455, section 1.3.
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", path, addr)
	r := bufio.NewReader(conn)
	response, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusSwitchingProtocols || !strings.EqualFold(response.Header.Get("Upgrade"), "websocket") ||
		response.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("upgrade of %s: %s %v", path, response.Status, response.Header)
	}
	var stream bytes.Buffer
	for {
		payload, err := readWebSocket(r)
		if err != nil {
			t.Fatalf("read WebSocket of %s: %v", path, err)
		}
		stream.Write(payload)
		if stream.Len() < n*1000 { // the clip has about 2 kB a frame
			continue
		}
		tags, _ := readTags(bytes.NewReader(stream.Bytes())) // the last may be cut
		if frames := framesOf(tags); count(frames, media.Video) >= n {
			return frames
		}
	}
}

// readWebSocket reads one frame of a server (RFC 6455, section 5.2) and returns
// the payload of a binary one or of its continuation, nil of a ping or pong.
func readWebSocket(r *bufio.Reader) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := uint64(head[1] & 0x7f)
	switch size {
	case 126:
		var b [2]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, err
		}
		size = uint64(binary.BigEndian.Uint16(b[:]))
	case 127:
		var b [8]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, err
		}
		size = binary.BigEndian.Uint64(b[:])
	}
	switch {
	case head[0]&0x70 != 0:
		return nil, fmt.Errorf("reserved bits are set: % x", head)
	case head[1]&0x80 != 0:
		return nil, fmt.Errorf("a server must not mask: % x", head)
	case size > 64<<20:
		return nil, fmt.Errorf("frame of %d bytes", size)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(r, payload); err != nil {
		return nil, err
	}
	switch opcode := head[0] & 0x0f; opcode {
	case 0, 2: // continuation, binary
		return payload, nil
	case 9, 10: // ping, pong
		return nil, nil
	case 8:
		return nil, fmt.Errorf("closed by the server: %q", payload)
	default:
		return nil, fmt.Errorf("frame with opcode %d, want binary", opcode)
	}
}
