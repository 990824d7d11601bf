package rtmp

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/yutopp/go-rtmp/message"

	"weir/internal/rtmp/chunk"
)

// Playing is a player in the fan-out, as its own words act on it. The methods must not
// block.
type Playing interface {
	// Inject writes whole messages between two others. It owns the slice.
	Inject([]byte)
	// Control does what the player wishes.
	Control(PlayControl)
	// Leave ends the session: the player has closed its stream, or said what no
	// player says. It is called once at most.
	Leave()
}

// ears hold what a player has said and nobody has read yet. A player says something every
// few seconds, and there are thousands: what reads is a goroutine that lives only as
// long as there is something to read.
type ears struct {
	mu    sync.Mutex
	said  []byte        // guarded by mu; not yet read
	awake bool          // guarded by mu; a goroutine reads
	deaf  bool          // guarded by mu; nothing counts any more
	more  chan struct{} // capacity 1: said has grown, or deaf was set

	reading sync.WaitGroup // of goroutines; none begins once deaf is set
}

// maxSaid bounds what may wait to be read, in bytes. It is read at once: more comes only
// from somebody who sends a stream to a player's end.
const maxSaid = 64 << 10

func newEars() *ears { return &ears{more: make(chan struct{}, 1)} }

// Hear takes what the player has sent since AcceptPlay, piece by piece; nothing, at
// first, has what came with the request be read. It does not wait: p is called by a
// goroutine that reads, but for Leave of a player that says too much at a time. After Leave and Deafen it does nothing. Safe for concurrent use.
func (c *ServerConn) Hear(said []byte, p Playing) {
	if c.ears.hear(said, func() { c.listen(p) }) {
		p.Leave()
	}
}

// hear keeps what was said, for read, which is started if nobody is awake. It reports
// whether that is too much, which ends the reading.
func (e *ears) hear(said []byte, read func()) (full bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.deaf {
		return false
	}
	if len(e.said)+len(said) > maxSaid {
		e.deafen()
		return true
	}
	e.said = append(e.said, said...)
	e.signal()
	if !e.awake {
		e.awake = true
		e.reading.Go(read)
	}
	return false
}

// Deafen ends the reading of what the player says, and waits for it. Safe for concurrent
// use, but not for Playing.
func (c *ServerConn) Deafen() {
	e := c.ears
	e.mu.Lock()
	e.deafen()
	e.mu.Unlock()
	e.reading.Wait()
}

func (e *ears) deafen() { // e.mu is held
	e.deaf, e.said = true, nil
	e.signal()
}

func (e *ears) signal() {
	select {
	case e.more <- struct{}{}:
	default:
	}
}

// errQuiet says that the player has said nothing more, between two chunks.
var errQuiet = errors.New("the player is quiet")

// read reads what was said. Within a chunk it waits for more.
func (e *ears) read(p []byte, between bool) (int, error) {
	for {
		e.mu.Lock()
		n := copy(p, e.said)
		if e.said = e.said[n:]; len(e.said) == 0 {
			e.said = nil
		}
		deaf := e.deaf
		e.mu.Unlock()
		switch {
		case deaf:
			return 0, io.EOF
		case n > 0:
			return n, nil
		case between:
			return 0, errQuiet
		}
		<-e.more
	}
}

// sleep reports whether there is nothing to read: the next to hear something starts
// another goroutine then.
func (e *ears) sleep() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.awake = len(e.said) > 0
	return !e.awake
}

// end ends the reading by who is awake. It reports whether nobody else has ended it.
func (e *ears) end() (first bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	first = !e.deaf
	e.deafen()
	return first
}

// listen reads until the player is quiet.
func (c *ServerConn) listen(p Playing) {
	c.writing.Lock()
	c.inject = p.Inject
	c.writing.Unlock()
	for {
		err := c.listenOnce(p)
		switch {
		case err == nil:
		case errors.Is(err, errQuiet):
			c.in.Rest()
			if c.ears.sleep() {
				return // nothing of the connection's reader is this goroutine's any more
			}
		default:
			if c.ears.end() {
				p.Leave()
			}
			c.ears.sleep()
			return
		}
	}
}

// listenOnce reads one message. io.EOF means that the player has closed its stream, or is
// not listened to any more.
func (c *ServerConn) listenOnce(p Playing) error {
	m, err := c.readMessage()
	if err != nil {
		return err
	}
	if err := c.budget.take(time.Now()); err != nil {
		return fmt.Errorf("serve player: %w", err)
	}
	switch {
	case m.Type == chunk.TypeUserControl:
		if e, ok := userControl(m).(*message.UserCtrlEventSetBufferLength); ok {
			p.Control(PlayControl{Kind: ControlBuffer, Buffer: time.Duration(e.LengthMs) * time.Millisecond})
		}
	case isCommand(m):
		cmd, err := c.parseCommand(m)
		if err != nil {
			return fmt.Errorf("serve player: %w", err)
		}
		return c.playerCommand(&cmd, p)
	}
	return nil
}
