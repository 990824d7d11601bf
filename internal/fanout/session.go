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

// A batch is what is taken from the log and formatted at a time. Its bounds are
// also those of what a slow player keeps in memory besides the log, of what must
// be sent before a jump, and of the wait of what is injected.
const (
	batchTags  = 64
	batchBytes = 128 << 10 // the tag that exceeds it included

	writePiece = 64 << 10        // bytes of one write
	maxScratch = 256 << 10       // bytes that are kept for the next batch
	endLinger  = 2 * time.Second // for a player to close after the farewell
)

// sender is what run owns.
type sender struct {
	*Session

	tags    []media.Tag     // the batch
	entry   [1]stream.Entry // taken from the log one by one, to stop at batchBytes
	pending net.Buffers     // the batch in the player's format; shares memory with the log
	scratch []byte          // framing made for this player
	piece   net.Buffers     // of pending, while it is being written

	paused  bool
	probe   stream.Cursor // while paused: reads on to see the stream's end
	video   bool          // frames of video are sent
	waiting bool          // for the key frame that video goes on with
	pauses  uint64        // tags that pauses passed over
}

// run is one player's whole life.
func (s *Session) run() Result {
	s.p.Stream.Subscribe(s.wake)
	defer s.p.Stream.Unsubscribe(s.wake)

	r := sender{Session: s, video: true}
	for {
		inject, wish, reason := s.take()
		if reason != "" {
			return s.finish(reason, nil)
		}
		r.pending = r.pending[:0]
		if len(inject) > 0 {
			r.pending = append(r.pending, inject)
		}
		if wish.leave != "" {
			if err := r.write(); err != nil {
				return s.finish(classify(err), err)
			}
			return s.finish(wish.leave, nil)
		}
		taken, end := r.gather(wish)
		r.pending, r.scratch = s.p.Format.append(r.pending, r.scratch[:0], r.tags)
		if err := r.write(); err != nil {
			return s.finish(classify(err), err)
		}
		r.release()
		if taken {
			continue // until the log is read to its end
		}
		if end != nil {
			s.settle(Ended) // before the player can know it and leave
			if r.pending = r.pending[:0]; len(s.p.Farewell) > 0 {
				r.pending = append(r.pending, s.p.Farewell)
			}
			_ = r.write() // the session is over either way
			s.linger()
			return s.finish(Ended, end)
		}
		<-s.wake
	}
}

func (s *Session) take() (inject []byte, w wish, reason Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	inject, s.inject = s.inject, nil
	return inject, s.wish, s.reason
}

// gather takes the next batch from the log. It reports whether there was
// anything; end is the cause that the stream was closed with, after all was read.
func (r *sender) gather(w wish) (taken bool, end error) {
	cursor := r.p.Cursor
	switch {
	case w.paused && !r.paused:
		r.probe = *cursor
	case !w.paused && r.paused:
		before := cursor.Skipped()
		cursor.Jump()
		r.pauses += cursor.Skipped() - before
	}
	if r.paused = w.paused; r.paused {
		run, err := r.probe.Next(r.entry[:])
		return len(run.Entries) > 0, err
	}
	if _, behind := cursor.Behind(); time.Duration(behind)*time.Millisecond > r.p.Limits.MaxLag {
		cursor.Jump()
	}
	for size := 0; len(r.tags) < batchTags && size < batchBytes; {
		run, err := cursor.Next(r.entry[:])
		if len(run.Entries) == 0 {
			end = err
			break
		}
		taken = true
		e := &run.Entries[0]
		if run.Headers != nil {
			for _, t := range run.Headers.At(e.Tag.Time()) {
				r.tags = append(r.tags, t)
				size += len(t)
			}
		}
		if r.wants(e, w.muted) {
			r.tags = append(r.tags, e.Tag)
			size += len(e.Tag)
		}
	}
	r.skipped.Store(cursor.Skipped() - r.pauses)
	return taken, end
}

// wants reports whether the player is to get an entry.
func (r *sender) wants(e *stream.Entry, m muted) bool {
	if e.Info.IsHeader() {
		return true
	}
	switch e.Info.Kind {
	case media.Audio:
		return !m.audio
	case media.Video:
		if m.video {
			r.video, r.waiting = false, false
			return false
		}
		if !r.video {
			r.video, r.waiting = true, true
		}
		if r.waiting && e.Info.IsKeyFrame() {
			r.waiting = false
		}
		return !r.waiting
	}
	return true
}

// release lets go of the batch, so that an idle player holds nothing of the log.
func (r *sender) release() {
	clear(r.tags)
	r.tags = r.tags[:0]
	r.entry[0] = stream.Entry{}
	if cap(r.scratch) > maxScratch {
		r.scratch = nil
	}
}

// write sends what is pending, with writev where the connection can. The write
// timeout counts from the last progress, so that a slow player is not cut while
// it takes something.
func (r *sender) write() error {
	for rest := r.pending; ; {
		r.piece = r.piece[:0]
		for size := 0; len(r.piece) < len(rest) && size < writePiece; {
			b := rest[len(r.piece)]
			b = b[:min(len(b), writePiece-size)]
			r.piece = append(r.piece, b)
			size += len(b)
		}
		if len(r.piece) == 0 {
			return nil
		}
		if err := r.p.Conn.SetWriteDeadline(time.Now().Add(r.p.Limits.WriteTimeout)); err != nil {
			return err
		}
		piece := r.piece
		n, err := piece.WriteTo(r.p.Conn)
		clear(r.piece)
		r.bytes.Add(uint64(n))
		if err != nil && (n == 0 || !errors.Is(err, os.ErrDeadlineExceeded)) {
			return err
		}
		rest = consume(rest, int(n))
	}
}

// consume returns what is left of b after its first n bytes, letting go of the
// others.
func consume(b net.Buffers, n int) net.Buffers {
	for len(b) > 0 && n >= len(b[0]) {
		n -= len(b[0])
		b[0] = nil
		b = b[1:]
	}
	if n > 0 {
		b[0] = b[0][n:]
	}
	return b
}

// linger closes the sending side and waits until the player has closed its own,
// which whoever reads from it says by End.
func (s *Session) linger() {
	half, ok := s.p.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	timer := time.NewTimer(endLinger)
	defer timer.Stop()
	select {
	case <-s.gone:
	case <-timer.C:
	}
}

// settle makes why the reason unless there is one, and returns the reason.
func (s *Session) settle(why Reason) Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reason == "" {
		s.reason = why
	}
	return s.reason
}

func (s *Session) finish(why Reason, err error) Result {
	if why = s.settle(why); why == TooSlow {
		// What lies in the socket would be kept for a peer that does not read.
		if c, ok := s.p.Conn.(interface{ SetLinger(seconds int) error }); ok {
			_ = c.SetLinger(0)
		}
	}
	s.p.Conn.Close()
	return Result{Reason: why, Err: err, Bytes: s.bytes.Load(), Skipped: s.skipped.Load()}
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
