package origin

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"sync"

	"weir/internal/rtmp"
	"weir/internal/session"
)

// carry takes an encoder that came to the wrong origin to the owner of its stream,
// where it stands by: encoders follow no redirect. Nothing is kept of what it sends;
// when the owner is lost the encoder is cut, and connects again like any other.
func (o *Origin) carry(ctx context.Context, s *session.Publisher, to *session.Redirect) session.PublishEnd {
	cfg := rtmp.DefaultClientConfig()
	cfg.Node, cfg.Publisher = o.node, rand.Text()
	u := rtmp.URL{Addr: to.RTMP, TcURL: "rtmp://" + to.RTMP + "/" + s.Target.Key.App, App: s.Target.Key.App, Name: s.Target.Key.Name}
	if q := s.Target.KeptQuery(); q != "" {
		u.Name += "?" + q
	}
	owner, err := rtmp.Dial(ctx, u, cfg)
	if err == nil {
		defer owner.Close()
		err = owner.Publish(ctx, u.Name)
	}
	if err != nil {
		return session.PublishEnd{Err: notCarried(err)}
	}
	if err := s.Accept(); err != nil {
		return session.ReadEnd(err)
	}
	o.carried.Inc()
	defer o.carried.Dec()
	o.log.Info("publisher carried to the owner of its stream", "stream", s.Target.Key.String(), "session", s.ID(), "to", to.RTMP)
	stop := context.AfterFunc(ctx, func() { s.End(reasonShutdown) })
	defer stop()
	left := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-owner.Done():
			s.End(endAt(owner.Err()))
		case <-left:
		}
	})
	leave := sync.OnceFunc(func() { close(left); watching.Wait() })
	defer leave()
	for {
		t, err := s.ReadTag()
		if err != nil {
			leave()
			if errors.Is(err, io.EOF) {
				_ = owner.Unpublish() // it has all; what it says now changes nothing
			}
			return session.ReadEnd(err)
		}
		if err := owner.WriteTags(t); err != nil {
			s.End(endAt(err))
			return session.PublishEnd{Reason: reasonOwnerLost, Err: err}
		}
	}
}

// reasonOwnerLost is the reason of a publisher that was carried to an owner, and cut
// with it.
const reasonOwnerLost = "upstream_lost"

// endAt returns the reason of a publisher that was carried, by what its owner said.
func endAt(err error) string {
	var s *rtmp.StatusError
	switch {
	case !errors.As(err, &s):
	case s.Code == rtmp.CodePublishBadName:
		return session.LostLease
	case s.Code == rtmp.CodePublishDenied:
		return session.Kicked
	}
	return reasonOwnerLost
}

// notCarried is what a publisher is told that an owner does not take.
func notCarried(err error) error {
	r := &session.Refusal{Code: session.Unavailable, Text: "The owner of the stream cannot be reached now.", Err: err}
	var s *rtmp.StatusError
	if !errors.As(err, &s) {
		return r
	}
	switch s.Code {
	case rtmp.CodePublishBadName:
		r.Code = session.Conflict
	case rtmp.CodePublishDenied:
		r.Code = session.Denied
	}
	if r.Text = s.Description; r.Text == "" {
		r.Text = "The owner of the stream refused it."
	}
	return r
}
