package rtmp

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"

	"github.com/yutopp/go-rtmp/handshake"

	"weir/internal/rtmp/chunk"
)

// The simple handshake (RTMP 1.0, section 5.2). The parts come from go-rtmp;
// the order is ours, so that each side's packets go out in one write and C2 and
// S2 are not compared: clients that use the digest handshake (librtmp, ffmpeg)
// put a digest there instead of an echo, and take a server whose version is
// zero for one that does not know it.
const (
	version         = 3
	handshakePacket = 1536
)

func serverHandshake(nc net.Conn) error {
	var in [1 + handshakePacket]byte
	if _, err := io.ReadFull(nc, in[:1]); err != nil {
		return fmt.Errorf("read C0: %w", err)
	}
	if in[0] != version {
		return fmt.Errorf("read C0: version %d is not RTMP: %w", in[0], chunk.ErrProtocol)
	}
	if _, err := io.ReadFull(nc, in[1:]); err != nil {
		return fmt.Errorf("read C1: %w", err)
	}
	var c1 handshake.S1C1
	if err := handshake.NewDecoder(bytes.NewReader(in[1:])).DecodeS1C1(&c1); err != nil {
		return fmt.Errorf("decode C1: %w", err)
	}
	// S2 repeats C1 byte for byte, its second time field (C1's version) included:
	// that is the echo that librtmp compares.
	s2 := handshake.S2C2{Time: c1.Time, Random: c1.Random}
	s2.Time2 = uint32(c1.Version[0])<<24 | uint32(c1.Version[1])<<16 | uint32(c1.Version[2])<<8 | uint32(c1.Version[3])
	var out bytes.Buffer
	out.Grow(1 + 2*handshakePacket)
	if err := encodeHello(&out, &s2); err != nil {
		return err
	}
	if _, err := nc.Write(out.Bytes()); err != nil {
		return fmt.Errorf("write S0, S1 and S2: %w", err)
	}
	if _, err := io.ReadFull(nc, in[1:]); err != nil {
		return fmt.Errorf("read C2: %w", err)
	}
	return nil
}

// clientHandshake leaves C2 to the caller, who sends it with the first commands.
func clientHandshake(nc net.Conn) (c2 []byte, err error) {
	var out bytes.Buffer
	out.Grow(1 + handshakePacket)
	if err := encodeHello(&out, nil); err != nil {
		return nil, err
	}
	if _, err := nc.Write(out.Bytes()); err != nil {
		return nil, fmt.Errorf("write C0 and C1: %w", err)
	}
	in := make([]byte, 1+2*handshakePacket)
	if _, err := io.ReadFull(nc, in); err != nil {
		return nil, fmt.Errorf("read S0, S1 and S2: %w", err)
	}
	if in[0] != version {
		return nil, fmt.Errorf("read S0: version %d is not RTMP: %w", in[0], chunk.ErrProtocol)
	}
	return in[1 : 1+handshakePacket], nil
}

// encodeHello writes the version, a random packet and, if not nil, the echo.
func encodeHello(out *bytes.Buffer, echo *handshake.S2C2) error {
	e := handshake.NewEncoder(out)
	hello := handshake.S0C0(version)
	var packet handshake.S1C1
	if _, err := rand.Read(packet.Random[:]); err != nil {
		return fmt.Errorf("make handshake: %w", err)
	}
	if err := e.EncodeS0C0(&hello); err != nil {
		return fmt.Errorf("encode handshake: %w", err)
	}
	if err := e.EncodeS1C1(&packet); err != nil {
		return fmt.Errorf("encode handshake: %w", err)
	}
	if echo != nil {
		if err := e.EncodeS2C2(echo); err != nil {
			return fmt.Errorf("encode handshake: %w", err)
		}
	}
	return nil
}
