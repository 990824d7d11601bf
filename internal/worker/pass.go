package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"weir/internal/quiet"
)

// maxPassed bounds what comes along with a connection, in bytes.
const maxPassed = 1 << 20

// PassConn gives the descriptor of a connection to the process at the other end of a
// sibling's socket, with what was read from it already (at most 1 MiB). The caller closes
// its own descriptor whatever comes of it. With an error the connection may be open, but
// nobody will serve it.
func PassConn(to net.Conn, c syscall.Conn, read []byte) error {
	socket, err := unixSocket(to)
	if err != nil {
		return fmt.Errorf("pass a connection: %w", err)
	}
	if len(read) > maxPassed {
		return fmt.Errorf("pass a connection: %d bytes were read from it", len(read))
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("pass a connection: %w", err)
	}
	size := binary.BigEndian.AppendUint32(nil, uint32(len(read)))
	var sent error
	if err = raw.Control(func(fd uintptr) {
		_, _, sent = socket.WriteMsgUnix(size, syscall.UnixRights(int(fd)), nil)
	}); err == nil {
		err = sent
	}
	if err == nil {
		_, err = socket.Write(read)
	}
	if err != nil {
		return fmt.Errorf("pass a connection: %w", err)
	}
	return nil
}

// ReceiveConn returns what PassConn has sent.
func ReceiveConn(from net.Conn) (c *net.TCPConn, read []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("receive a connection: %w", err)
			if c != nil {
				c.Close()
				c = nil
			}
		}
	}()
	socket, err := unixSocket(from)
	if err != nil {
		return nil, nil, err
	}
	var size [4]byte
	rights := make([]byte, syscall.CmsgSpace(4))
	n, nrights, _, _, err := socket.ReadMsgUnix(size[:], rights)
	if err != nil {
		return nil, nil, err
	}
	if c, err = connOf(rights[:nrights]); err != nil {
		return nil, nil, err
	}
	if _, err = io.ReadFull(socket, size[n:]); err != nil {
		return c, nil, err
	}
	if n := binary.BigEndian.Uint32(size[:]); n > maxPassed {
		return c, nil, fmt.Errorf("%d bytes come with it", n)
	}
	read = make([]byte, binary.BigEndian.Uint32(size[:]))
	_, err = io.ReadFull(socket, read)
	return c, read, err
}

// unixSocket returns the socket of a connection between siblings.
func unixSocket(c net.Conn) (*net.UnixConn, error) {
	if q, ok := c.(*quiet.Conn); ok {
		c = q.Conn
	}
	socket, ok := c.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("over a %T", c)
	}
	return socket, nil
}

// connOf returns the connection of a control message.
func connOf(rights []byte) (*net.TCPConn, error) {
	messages, err := syscall.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, errors.New("no descriptor came")
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fds[0]), "passed")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("it is a %T", c)
	}
	return tcp, nil
}
