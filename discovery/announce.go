package discovery

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"
)

// Announce tells members the node's state every interval, with jitter, until ctx
// ends; then it says goodbye within one interval or a second, whichever is more.
// node is called for each heartbeat. now, if it is not nil, asks for one out of turn. A silent directory is logged once, and again
// when it refuses instead, or is back. It returns nil. An origin's Holder does this itself.
func Announce(ctx context.Context, members Members, interval time.Duration, now <-chan struct{}, node func() Node, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	heartbeats(ctx, members, interval, now, node, log, nil)

	last := node()
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(interval, time.Second))
	defer cancel()
	if err := members.Goodbye(bye, last.ID, last.Instance); err != nil {
		log.Warn("goodbye to the directory failed", "err", err)
	}
	return nil
}

// heartbeats tells told, if it is not nil, how each heartbeat went and when it was
// sent.
func heartbeats(
	ctx context.Context, members Members, interval time.Duration, now <-chan struct{}, node func() Node, log *slog.Logger,
	told func(err error, sent time.Time),
) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-now:
		}
		sent := time.Now()
		err := members.Heartbeat(ctx, node())
		kind := failure(err)
		switch {
		case ctx.Err() != nil:
			return
		case kind == last:
		case kind == "":
			log.Info("heartbeats reach the directory again")
		case kind == failureRefused:
			log.Warn("the directory refuses heartbeats", "err", err)
		default:
			log.Warn("heartbeats do not reach the directory", "err", err)
		}
		last = kind
		if told != nil {
			told(err, sent)
		}
		timer.Reset(jittered(interval))
	}
}

// The kinds of failed calls. A failure is logged when its kind changes: a server
// that comes up and asks for a token is news to who knew that it is silent.
const (
	failureSilent  = "silent"
	failureRefused = "refused"
)

// failure returns the kind of failure of a call, "" for none.
func failure(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, ErrUnavailable):
		return failureSilent
	}
	return failureRefused
}

// jittered returns a time between 0.8 and 1.0 of d: nodes that were started, or
// lost their directory, together do not stay in step.
func jittered(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/5+1))
}
