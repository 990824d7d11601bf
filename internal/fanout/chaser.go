package fanout

import (
	"errors"
	"math"
	"net"
	"os"
	"sync"
	"time"

	"weir/internal/media"
	"weir/internal/stream"
)

// A batch is what a chaser takes from the log and formats at a time. Its bounds
// are also those of what a slow player keeps in memory besides the log (see debts),
// of what must be sent before a jump, and of the wait of what is injected.
const (
	chaseTags  = 64
	chaseBytes = 32 << 10 // the tag that exceeds it included

	writePiece = 64 << 10        // bytes of one write
	lookEvery  = time.Second     // at a player that takes nothing
	endLinger  = 2 * time.Second // for a player to close after the last words
)

// chaser is the goroutine of a player that cannot be served by a shard, or not
// now: it writes with deadlines from a cursor of the player's own. It gives the
// player back when it has caught up.
type chaser struct {
	*Session
	signals *signals // the session's

	tags  []media.Tag     // the batch
	entry [1]stream.Entry // taken from the log one by one, to stop at chaseBytes
	woken bool            // the stream tells wake
	begun time.Time       // when the chase began
	full  bool            // because the socket was full
	stuck bool            // the player has taken nothing for a while
	owed  int             // in the socket at the last look

	sent  time.Time   // when the last batch began to be written, of players without a shard
	timer *time.Timer // nil before the first pause

	paused  bool
	probe   stream.Cursor // while paused: reads on to see the stream's end
	video   bool          // frames of video are sent
	waiting bool          // for the key frame that video goes on with
	pauses  uint64        // tags that pauses passed over
}

// signals are how others reach a chaser.
type signals struct {
	wake chan struct{} // capacity 1: something was asked, or the stream has grown
	room chan struct{} // capacity 1: the socket takes bytes again
	gone chan struct{} // closed by End
}

func newSignals() *signals {
	return &signals{wake: make(chan struct{}, 1), room: make(chan struct{}, 1), gone: make(chan struct{})}
}

// chase starts the session's chaser, which goes on at the session's cursor. rest, in a
// shared block if that is not nil, is to be written before; it may begin in the middle
// of a tag.
func (s *Session) chase(rest []byte, in *shared) {
	s.mu.Lock()
	s.place = chased
	asked := s.ask()
	if asked.signals == nil {
		asked.signals = newSignals()
		if asked.ended {
			close(asked.signals.gone)
		}
	}
	signals := asked.signals
	s.mu.Unlock()
	s.cursor.Hold()
	s.e.running.Go(func() {
		c := chaser{Session: s, signals: signals, video: true, begun: time.Now(), full: len(rest) > 0}
		err := c.write(rest, in)
		rest, in = nil, nil // a frame may be large
		c.run(err)
	})
}

// run writes until the player is over or has caught up. err is that of the rest.
func (c *chaser) run(err error) {
	s := c.Session
	defer c.sleep()
	if s.shard == nil {
		s.e.solo.enter(1)
		defer s.e.solo.enter(-1)
	}
	if err != nil {
		s.finish(classify(err), err)
		return
	}
	for {
		inject, wish, reason := s.take()
		if reason != "" {
			s.finish(reason, nil)
			return
		}
		if err := c.write(inject, nil); err != nil {
			s.finish(classify(err), err)
			return
		}
		if wish.leave != "" {
			if wish.leave == Moved { // it is to read what it was told
				s.settle(Moved)
				c.linger()
			}
			s.finish(wish.leave, nil)
			return
		}
		taken, end := c.gather(wish)
		if len(c.tags) > 0 {
			var begin []byte
			if !s.started {
				s.started = true
				begin = s.p.Format.begin(c.tags)
			}
			err := c.writeBatch(begin)
			if err != nil {
				s.finish(classify(err), err)
				return
			}
		} else {
			c.release()
		}
		switch {
		case taken: // until the log is read to its end
		case end != nil:
			s.settle(Ended) // before the player can know it and leave
			if s.p.Farewell != nil {
				_ = c.write(s.p.Farewell(end), nil) // the session is over either way
			}
			c.linger()
			s.finish(Ended, end)
			return
		case s.shard != nil && !wish.special() && !c.apart():
			c.giveBack()
			return
		default:
			c.listen()
			if s.shard == nil {
				c.pause()
			}
			<-c.signals.wake
		}
	}
}

// writeBatch formats the batch, writes it and lets go of it.
func (c *chaser) writeBatch(begin []byte) error {
	scratch := scratches.Get().(*[]byte)
	b := c.p.Format.append((*scratch)[:0], begin, c.tags)
	c.release() // a waiting player holds nothing of the log
	c.sent = time.Now()
	err := c.write(b, nil)
	if c.shard == nil {
		c.e.solo.took(time.Since(c.sent))
	}
	if cap(b) <= 2*chaseBytes {
		*scratch = b
		scratches.Put(scratch)
	}
	return err
}

// release lets go of the batch.
func (c *chaser) release() {
	clear(c.tags)
	c.tags = c.tags[:0]
	c.entry[0] = stream.Entry{}
	c.cursor.Release()
}

// scratches are the buffers that batches are formatted into: an idle player has none.
var scratches = sync.Pool{New: func() any { return new([]byte) }}

// pause waits until the next batch of a player without a shard is due, or the
// session was ended.
func (c *chaser) pause() {
	left := time.Until(c.sent.Add(c.e.solo.interval(c.urgent)))
	if left <= 0 {
		return
	}
	if c.timer == nil {
		c.timer = time.NewTimer(left)
	} else {
		c.timer.Reset(left)
	}
	select {
	case <-c.timer.C:
	case <-c.signals.gone:
		c.timer.Stop()
	}
}

// apart reports that the player waits for a key frame that its group does not
// wait for: video is still left out although it was asked for again, or the log
// has dropped what would be next and has no join point now.
func (c *chaser) apart() bool { return !c.video || c.waiting || c.started && c.cursor.Seeking() }

// listen has the stream wake the chaser, from the first wait on.
func (c *chaser) listen() {
	if !c.woken {
		c.woken = true
		c.p.Stream.Subscribe(c.signals.wake)
		c.attend() // what came before is not told
	}
}

func (c *chaser) sleep() {
	if c.woken {
		c.p.Stream.Unsubscribe(c.signals.wake)
	}
}

// giveBack hands the session to its shard. The chaser must not touch it after.
func (c *chaser) giveBack() {
	s := c.Session
	s.cursor.LetGo()
	_ = s.p.Conn.SetWriteDeadline(time.Time{}) // the shard's writes know none
	if c.full && !c.stuck && time.Since(c.begun) < lookEvery && s.unsent < unsentMost {
		s.unsent *= 2
		limitUnsent(s.raw, s.unsent)
	}
	s.skipBase += s.cursor.Skipped() - c.pauses
	s.skipped.Store(s.skipBase)
	if s.cursor.Headers() != nil {
		s.cursor = s.p.Stream.At(s.cursor.Seq(), s.cursor.Headers()) // what it lost is counted
	}
	s.mu.Lock()
	s.place, s.asked.signals = arriving, nil
	s.forget()
	s.mu.Unlock()
	s.mail()
}

// gather takes the next batch from the log. It reports whether there was
// anything; end is the cause that the stream was closed with, after all was read.
func (c *chaser) gather(w wish) (taken bool, end error) {
	cursor := c.cursor
	switch {
	case w.paused && !c.paused:
		c.probe = *cursor
	case !w.paused && c.paused:
		before := cursor.Skipped()
		cursor.Jump()
		c.pauses += cursor.Skipped() - before
	}
	if c.paused = w.paused; c.paused {
		run, err := c.probe.Next(c.entry[:])
		c.probe.Release()
		return len(run.Entries) > 0, err
	}
	if _, behind := cursor.Behind(); time.Duration(behind)*time.Millisecond > c.p.Limits.MaxLag && cursor.Jump() > 0 {
		c.e.opt.OnJump(Lagged)
	}
	before := cursor.Skipped()
	for size := 0; len(c.tags) < chaseTags && size < chaseBytes; {
		run, err := cursor.NextUntil(c.entry[:], c.until(w))
		if len(run.Entries) == 0 {
			end = err
			break
		}
		taken = true
		e := &run.Entries[0]
		if run.Headers != nil {
			for _, t := range run.Headers.At(e.Tag.Time()) {
				c.tags = append(c.tags, t)
				size += len(t)
			}
		}
		if c.wants(e, w.muted) {
			c.tags = append(c.tags, e.Tag)
			size += len(e.Tag)
		}
	}
	if cursor.Skipped() > before {
		c.e.opt.OnJump(Passed)
	}
	c.skipped.Store(c.skipBase + cursor.Skipped() - c.pauses)
	return taken, end
}

// until returns the entry that the chaser does not go beyond: where its group is,
// so that it can be given back there. A player of the shard's that is given back
// early would have to wait for its group.
func (c *chaser) until(w wish) uint64 {
	if c.group == nil || w.special() || c.apart() {
		return math.MaxUint64
	}
	return c.group.next.Load()
}

// wants reports whether the player is to get an entry.
func (c *chaser) wants(e *stream.Entry, m muted) bool {
	if e.Info.IsHeader() {
		return true
	}
	switch e.Info.Kind {
	case media.Audio:
		return !m.audio
	case media.Video:
		if m.video {
			c.video, c.waiting = false, false
			return false
		}
		if !c.video {
			c.video, c.waiting = true, true
		}
		if c.waiting && e.Info.IsKeyFrame() {
			c.waiting = false
		}
		return !c.waiting
	}
	return true
}

// write sends b, which is a part of a shared block if in is not nil. The write
// timeout counts from the last progress, so that a slow player is not cut while it
// takes something.
func (c *chaser) write(b []byte, in *shared) error {
	if len(b) == 0 {
		return nil
	}
	own := cap(b)
	if in != nil {
		own = 0
	}
	c.e.cut(c.e.debts.owe(c.Session, own, in))
	defer c.e.debts.paid(c.Session)
	c.takes()
	// Only TLS calls back, and not always while this goroutine waits for it.
	var mu sync.Mutex
	last := time.Now() // guarded by mu; when the player took something
	until := func() time.Time {
		until := last.Add(c.p.Limits.WriteTimeout)
		if look := time.Now().Add(c.e.opt.hooks.look); c.raw != nil && look.Before(until) {
			until = look
		}
		return until
	}
	// judge looks at the player after a write, and reports whether it may have more
	// time.
	judge := func(n int, late bool) bool {
		switch {
		case c.takes() || n > 0:
			last = time.Now()
			c.e.debts.progressed(c.Session)
		case late && time.Since(last) >= c.p.Limits.WriteTimeout:
			return false
		}
		if late {
			c.tighten()
		}
		return true
	}
	under, ok := c.p.Conn.(patient)
	if ok {
		under.OnLateWrite(func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			if !judge(0, true) {
				return time.Time{}
			}
			return until()
		})
		defer under.OnLateWrite(nil)
	}
	for len(b) > 0 {
		mu.Lock()
		deadline := until()
		mu.Unlock()
		n, err := c.push(b[:min(len(b), writePiece)], deadline)
		c.bytes.Add(uint64(n))
		b = b[n:]
		late := errors.Is(err, os.ErrDeadlineExceeded)
		if err != nil && (!late || under != nil) {
			return err
		}
		mu.Lock()
		goOn := judge(n, late)
		mu.Unlock()
		if !goOn {
			return err
		}
	}
	return nil
}

// push writes some of b, waiting for room until a deadline, which is the error then.
func (c *chaser) push(b []byte, deadline time.Time) (int, error) {
	if c.fd < 0 || !c.watched.Load() {
		if err := c.p.Conn.SetWriteDeadline(deadline); err != nil {
			return 0, err
		}
		return c.p.Conn.Write(b)
	}
	for {
		n, err := c.pushNow(b)
		if n > 0 || err != nil {
			return n, err
		}
		timer := time.NewTimer(time.Until(deadline))
		select {
		case <-c.signals.room:
			timer.Stop()
		case <-c.signals.gone:
			timer.Stop()
			return 0, net.ErrClosed
		case <-timer.C:
			return 0, os.ErrDeadlineExceeded
		}
	}
}

// pushNow writes what the engine's own descriptor takes of b. If that is nothing, room
// will tell when it does. The lock keeps End from closing the descriptor meanwhile.
func (c *chaser) pushNow(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isEnded() {
		return 0, net.ErrClosed
	}
	n, err := c.shard.out.now(uintptr(c.fd), b)
	if n == 0 && err == nil {
		err = c.e.reader.await(c.Session)
	}
	return n, err
}

// patient is a connection that is broken by a write that was late, such as one under
// TLS: it asks for a later deadline while it writes. f returns that, or zero to give
// up. A nil f ends that; when OnLateWrite returns, the f before is not running.
type patient interface {
	OnLateWrite(f func() time.Time)
}

// takes reports whether the player has taken some of what lies in its socket since
// the last look: the socket takes bytes again only when a third of it is free, which
// a slow player needs long for.
func (c *chaser) takes() bool {
	if c.raw == nil {
		return false
	}
	before := c.owed
	_ = c.raw.Control(func(fd uintptr) { c.owed = c.e.opt.hooks.owed(fd) })
	return c.owed < before
}

// tighten has the socket of a player that is stuck take no more than it needs to.
func (c *chaser) tighten() {
	c.stuck = true
	if c.raw != nil && c.unsent > unsentStuck {
		c.unsent = unsentStuck
		limitUnsent(c.raw, c.unsent)
	}
}

// linger closes the sending side and waits until the player has closed its own,
// which whoever reads from it says by End.
func (c *chaser) linger() {
	gone := c.signals.gone
	half, ok := c.p.Conn.(interface{ CloseWrite() error })
	select {
	case <-gone:
		return
	default:
	}
	if !ok || half.CloseWrite() != nil {
		return
	}
	timer := time.NewTimer(endLinger)
	defer timer.Stop()
	select {
	case <-gone:
	case <-timer.C:
	}
}
