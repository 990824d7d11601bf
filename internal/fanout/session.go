package fanout

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"weir/internal/media"
	"weir/internal/stream"
)

const (
	batchTags  = 64       // entries taken from the log at a time
	writePiece = 64 << 10 // bytes for which the connection has one write timeout
)

// run is one player's whole life.
func (s *Session) run() Result {
	s.p.Stream.Subscribe(s.wake)
	defer s.p.Stream.Unsubscribe(s.wake)

	var (
		batch   [batchTags]stream.Entry
		pending net.Buffers // to be written; shares memory with the log
		scratch []byte      // framing made for this player
		paused  bool
	)
	for {
		inject, pause, muted, reason := s.take()
		if reason != "" {
			return s.finish(reason, nil)
		}
		pending, scratch = pending[:0], scratch[:0]
		if len(inject) > 0 {
			pending = append(pending, inject)
		}
		if paused && !pause {
			s.p.Cursor.Jump()
		}
		paused = pause

		var err error
		if !paused {
			var run stream.Run
			if _, behind := s.p.Cursor.Behind(); time.Duration(behind)*time.Millisecond > s.p.Limits.MaxLag {
				s.p.Cursor.Jump()
			}
			run, err = s.p.Cursor.Next(batch[:])
			s.skipped.Store(s.p.Cursor.Skipped())
			pending, scratch = s.p.Format.append(pending, scratch, run, muted)
		}
		if len(pending) > 0 {
			if werr := s.write(pending); werr != nil {
				return s.finish(classify(werr), werr)
			}
			clear(batch[:])
			continue // until the log is read to its end
		}
		if err != nil {
			if len(s.p.Farewell) > 0 {
				_ = s.write(net.Buffers{s.p.Farewell}) // the session is over either way
			}
			return s.finish(Ended, err)
		}
		<-s.wake
	}
}

func (s *Session) take() (inject []byte, paused bool, muted [2]bool, reason Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	inject, s.inject = s.inject, nil
	return inject, s.paused, s.muted, s.reason
}

// write sends all buffers. The write timeout counts from the last piece that
// the connection took, so that a slow player that makes progress is not cut.
func (s *Session) write(buffers net.Buffers) error {
	for len(buffers) > 0 {
		n, size := 0, 0
		for n < len(buffers) && (n == 0 || size+len(buffers[n]) <= writePiece) {
			size += len(buffers[n])
			n++
		}
		piece := buffers[:n:n]
		var rest []byte
		if n == 1 && size > writePiece {
			piece, rest = net.Buffers{buffers[0][:writePiece]}, buffers[0][writePiece:]
		}
		if err := s.p.Conn.SetWriteDeadline(time.Now().Add(s.p.Limits.WriteTimeout)); err != nil {
			return err
		}
		written, err := piece.WriteTo(s.p.Conn)
		s.bytes.Add(uint64(written))
		if err != nil {
			return err
		}
		if rest != nil {
			buffers[0] = rest
		} else {
			buffers = buffers[n:]
		}
	}
	return nil
}

func (s *Session) finish(why Reason, err error) Result {
	s.mu.Lock()
	if s.reason == "" {
		s.reason = why
	}
	why = s.reason
	s.mu.Unlock()
	s.p.Conn.Close()
	return Result{Reason: why, Err: err, Bytes: s.bytes.Load(), Skipped: s.p.Cursor.Skipped()}
}

func classify(err error) Reason {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return TooSlow
	case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe):
		return Left
	}
	return Failed
}

func isMuted(muted [2]bool, kind media.Kind) bool {
	return kind == media.Audio && muted[0] || kind == media.Video && muted[1]
}
