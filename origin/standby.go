package origin

import (
	"time"

	"weir/internal/session"
	"weir/internal/stream"
)

// standby is a second publisher of a name, which is read and kept ready to go on with
// the stream when the first one stops.
type standby struct {
	// Static.
	s     *session.Publisher
	name  string         // as in leases
	since time.Time      // when it came
	gone  chan struct{}  // closed when it has let go of the publication
	log   *stream.Stream // what it sends, from its newest key frame on; nobody else has a cursor in it
}

// newStandby expects o.mu to be held.
func (p *publication) newStandby(s *session.Publisher, name string) *standby {
	limits := p.o.cfg.Play.LogLimits()
	limits.MaxTime = 0 // but for the newest group of pictures
	return &standby{s: s, name: name, since: time.Now(), gone: make(chan struct{}), log: stream.New(limits)}
}

// stand reads the standby publisher until it has become the stream's publisher, or has
// ended. It takes over with one of its own frames: one that sends nothing has nothing
// to go on with.
func (p *publication) stand(sb *standby) (took bool, end session.PublishEnd) {
	o := p.o
	pub, err := sb.log.Publish()
	if err != nil { // never of a new log
		return false, session.PublishEnd{Err: err}
	}
	o.mu.Lock()
	sb.s.Epoch = o.told(p.epoch)
	o.mu.Unlock()
	if err := sb.s.Accept(); err != nil {
		return false, session.ReadEnd(err)
	}
	o.log.Info("publisher stands by", "stream", p.key, "session", sb.s.ID(), "remote", sb.s.Remote.String(), "encoder", sb.s.Encoder)
	after := p.target.Vhost.Config.Publish.StandbyAfter
	watch := vigil{after: after, last: time.Now()}
	for {
		t, err := sb.s.ReadTag()
		if err != nil {
			return false, session.ReadEnd(err)
		}
		if err := pub.Append(t); err != nil {
			return false, session.PublishEnd{Reason: "stream_closed", Err: err}
		}
		silent := watch.silent(p.stream.Stats().TagsIn, time.Now())
		if !sb.log.Joinable() {
			continue
		}
		if silent {
			p.relieve(sb)
		}
		if p.publishedBy(sb.s) {
			return true, session.PublishEnd{}
		}
	}
}

// vigil measures how long a publisher has sent nothing, by the frames of another one:
// time in which neither sent anything, as when this process or the network stood
// still, counts for half of the wait at most.
type vigil struct {
	after time.Duration // static; what counts as silence

	sent  uint64 // tags of the publisher so far
	last  time.Time
	quiet time.Duration
}

// silent is called with each tag of the other publisher.
func (v *vigil) silent(sent uint64, now time.Time) bool {
	v.quiet += min(now.Sub(v.last), v.after/2)
	v.last = now
	if sent != v.sent {
		v.sent, v.quiet = sent, 0
	}
	return v.quiet >= v.after
}

// relieve ends the publisher that has stopped sending, and waits until it has let go:
// the standby is then the publisher, unless the stream has ended meanwhile.
func (p *publication) relieve(sb *standby) {
	p.o.mu.Lock()
	if p.standby != sb || p.publisher == nil { // it goes on already, or the stream has ended
		p.o.mu.Unlock()
		return
	}
	first, gone := p.publisher, p.gone
	p.o.mu.Unlock()
	first.End(session.Relieved)
	<-gone
}

func (p *publication) publishedBy(s *session.Publisher) bool {
	p.o.mu.Lock()
	defer p.o.mu.Unlock()
	return p.publisher == s && !p.ended
}

// promote makes the standby the publisher in the place of one that has left. o.mu is
// held.
func (p *publication) promote() {
	sb := p.standby
	p.standby = nil
	p.publisher, p.name, p.gone = sb.s, sb.name, sb.gone
	p.o.owner.SetPublisher(p.key, sb.name)
	p.o.owner.SetIdle(p.key, false) // as it is while a publisher is asked to go elsewhere
	p.o.takeovers.Inc()
	p.o.log.Info("standby publisher takes over", "stream", p.key, "session", sb.s.ID(), "remote", sb.s.Remote.String(), "epoch", p.epoch)
}

// publishers returns the publisher and the standby publisher, those that there are.
// o.mu is held.
func (p *publication) publishers() (all []*session.Publisher) {
	if p.publisher != nil {
		all = append(all, p.publisher)
	}
	if p.standby != nil {
		all = append(all, p.standby.s)
	}
	return all
}

// dismiss ends the stay of a standby publisher that has not become the publisher, and
// reports whether it was one still.
func (p *publication) dismiss(sb *standby) bool {
	p.o.mu.Lock()
	defer p.o.mu.Unlock()
	if p.standby != sb {
		return false
	}
	p.standby = nil
	close(sb.gone)
	return true
}

// goOn appends what the standby has sent since its newest key frame. The tags are its
// own: their times are put on the stream's timeline where they are.
func goOn(pub *stream.Publisher, kept *stream.Stream) error {
	cursor := kept.Join()
	var batch [segmentBatch]stream.Entry
	for {
		run, _ := cursor.Next(batch[:])
		if len(run.Entries) == 0 {
			return nil
		}
		if run.Headers != nil {
			for _, t := range run.Headers.At(run.Entries[0].Tag.Time()) {
				if err := pub.Append(t); err != nil {
					return err
				}
			}
		}
		for i := range run.Entries {
			if err := pub.Append(run.Entries[i].Tag); err != nil {
				return err
			}
		}
	}
}
