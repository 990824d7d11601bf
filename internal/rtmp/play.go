package rtmp

import (
	"fmt"
	"io"
	"time"

	"github.com/yutopp/go-rtmp/message"

	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

// PlayControl is a wish of a player about the stream that it plays.
type PlayControl struct {
	Kind PlayControlKind
	// On says pause or resume, receive or do not.
	On bool
	// Buffer is the length of the player's buffer.
	Buffer time.Duration
}

// PlayControlKind is the kind of a PlayControl.
type PlayControlKind uint8

// The kinds of wishes.
const (
	ControlPause PlayControlKind = iota + 1
	ControlAudio
	ControlVideo
	ControlBuffer
)

// AcceptPlay tells the player that its stream starts, in one write. The info
// properties are added to the Play.Start status of weir nodes; other players do
// not get them. From now on the writing side of NetConn belongs to the caller.
func (c *ServerConn) AcceptPlay(info ...Property) error {
	c.sendPlayStart(c.ForNodes(info...)...)
	c.phase, c.pending = phasePlay, nil
	c.deadline, c.idle = time.Time{}, 0
	if err := c.flush(); err != nil {
		return fmt.Errorf("accept play: %w", err)
	}
	c.ears = newEars()
	_ = c.nc.SetDeadline(time.Time{})
	return nil
}

func (c *ServerConn) sendPlayStart(info ...Property) {
	c.sendControl(&message.UserCtrl{Event: &message.UserCtrlEventStreamBegin{StreamID: c.streamID}})
	c.sendStatus("status", CodePlayReset, "Playing and resetting stream.")
	c.sendStatus("status", CodePlayStart, "Started playing stream.", info...)
	c.send(chunk.StreamStatus, chunk.TypeData, c.streamID,
		amf.Append(nil, amf.Str("|RtmpSampleAccess"), amf.Bool(true), amf.Bool(true)))
}

func (c *ServerConn) playerCommand(cmd *command, p Playing) error {
	switch cmd.name {
	case "deleteStream":
		if id := cmd.arg(1); id.Kind == amf.Number && id.Uint32() != c.streamID {
			return nil
		}
		return io.EOF
	case "closeStream":
		return io.EOF
	case "pause", "pauseRaw":
		on := cmd.arg(1).True()
		p.Control(PlayControl{Kind: ControlPause, On: on})
		if on {
			c.sendStatus("status", CodePauseNotify, "Paused stream.")
		} else {
			c.sendStatus("status", CodeUnpauseNotify, "Unpaused stream.")
		}
	case "receiveAudio":
		p.Control(PlayControl{Kind: ControlAudio, On: cmd.arg(1).True()})
	case "receiveVideo":
		p.Control(PlayControl{Kind: ControlVideo, On: cmd.arg(1).True()})
	case "seek":
		c.sendStatus("error", CodeSeekFailed, "A live stream cannot be searched.")
	case "play", "play2":
		c.otherStream(cmd, CodePlayFailed)
	case "publish":
		c.otherStream(cmd, CodePublishFailed)
	case "connect":
		return fmt.Errorf("second connect: %w", chunk.ErrProtocol)
	default:
		c.answerCall(cmd)
	}
	return nil
}

// answerBudget bounds how many messages that can want an answer a player may
// send: the answers wait in memory for a socket that may be full.
type answerBudget struct {
	since time.Time
	count int
}

// messagesPerSecond is far above what any player needs.
const messagesPerSecond = 100

func (b *answerBudget) take(now time.Time) error {
	if now.Sub(b.since) > time.Second {
		b.since, b.count = now, 0
	}
	if b.count++; b.count > messagesPerSecond {
		return fmt.Errorf("more than %d messages in a second: %w", messagesPerSecond, chunk.ErrProtocol)
	}
	return nil
}

// EndOfStream returns what a player gets when its stream ends, as chunks for
// the writing side of NetConn.
func EndOfStream(streamID uint32, chunkSize int) []byte {
	status := encodeStatus("status", CodePlayUnpublish, "The stream has ended.")
	eof := &message.UserCtrl{Event: &message.UserCtrlEventStreamEOF{StreamID: streamID}}
	b := chunk.AppendMessage(nil, chunk.StreamStatus, chunk.TypeCommand, streamID, 0, status, chunkSize)
	return chunk.AppendMessage(b, chunk.StreamControl, chunk.TypeUserControl, 0, 0, encodeControl(eof), chunkSize)
}
