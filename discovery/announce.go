package discovery

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

// Announce tells members the node's state every interval, with jitter, until ctx
// ends; then it says goodbye within one interval or a second, whichever is more.
// node is called for each heartbeat. A silent directory is logged once, and once
// when it is back. It returns nil. An origin's Holder does this itself.
func Announce(ctx context.Context, members Members, interval time.Duration, node func() Node, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	heartbeats(ctx, members, interval, node, log)

	last := node()
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(interval, time.Second))
	defer cancel()
	if err := members.Goodbye(bye, last.ID, last.Instance); err != nil {
		log.Warn("goodbye to the directory failed", "err", err)
	}
	return nil
}

func heartbeats(ctx context.Context, members Members, interval time.Duration, node func() Node, log *slog.Logger) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	heard := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := members.Heartbeat(ctx, node())
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && heard:
			log.Warn("heartbeats do not reach the directory", "err", err)
		case err == nil && !heard:
			log.Info("heartbeats reach the directory again")
		}
		heard = err == nil
		timer.Reset(jittered(interval))
	}
}

// jittered returns a time between 0.8 and 1.0 of d: nodes that were started, or
// lost their directory, together do not stay in step.
func jittered(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/5+1))
}
