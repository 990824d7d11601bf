package discovery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Pauses between two watches. They are drawn at random up to these, so that the
// nodes do not all come back at once when a directory does.
const (
	firstPause   = 250 * time.Millisecond
	longestPause = 2 * time.Second
	// cannotPause is for a directory that refuses, knows no watching, or is too large.
	cannotPause = time.Minute
)

// Run keeps the copy of the directory by watching it, until ctx ends; it returns
// nil. Without a Watcher, and with a MapSize of 0, it returns at once. Call it once.
func (r *Resolver) Run(ctx context.Context) error {
	if r.watcher == nil {
		return nil
	}
	pause := firstPause
	was := "" // the last failure that was logged
	for {
		r.mu.Lock()
		since := r.mirror.mark
		r.mu.Unlock()
		worked := false
		err := r.watcher.Watch(ctx, WatchQuery{Since: since, Role: RoleOrigin}, func(events []Event) error {
			err := r.apply(events)
			if !worked && err == nil && r.InStep() {
				worked = true
				r.log.Info("directory is watched", "streams", r.mapped())
				was = ""
			}
			return err
		})
		r.mu.Lock()
		r.mirror.broken()
		r.mu.Unlock()
		if ctx.Err() != nil {
			return nil
		}
		if worked {
			pause = firstPause
		}
		wait := firstPause/10 + rand.N(pause)
		kind := failure(err)
		switch {
		case errors.Is(err, errMapFull):
			r.mu.Lock()
			r.mirror = newMirror(r.mirror.maxBytes)
			r.mu.Unlock()
			kind, wait = "too large", jittered(cannotPause)
		case errors.Is(err, ErrNotFound), errors.Is(err, ErrRefused), errors.Is(err, ErrInvalid):
			wait = jittered(cannotPause)
		}
		if kind != was {
			r.log.Warn("directory is not watched: lookups ask it", "err", err)
			was = kind
		}
		pause = min(2*pause, longestPause)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// apply takes events over and tells those who follow their streams.
func (r *Resolver) apply(events []Event) error {
	err := r.take(events)
	r.followers.deliver()
	for i := range events {
		if k := events[i].Kicked; k != nil && r.kicked != nil {
			r.kicked(*k)
		}
	}
	if r.told != nil {
		r.told(events)
	}
	return err
}

func (r *Resolver) take(events []Event) error {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range events {
		e := &events[i]
		ended, err := r.mirror.apply(e, now)
		if err != nil {
			return fmt.Errorf("copy the directory: %w", err)
		}
		if e.Lease != nil {
			r.followers.note(*e.Lease, 0)
			// What was found before is outdone, but a doubt is not dispelled by what
			// was known then.
			if old, ok := r.entries.Peek(e.Lease.Stream); ok && e.Lease.Epoch >= old.lease.Epoch && !sameOwnership(*e.Lease, old.lease) {
				r.entries.Remove(e.Lease.Stream)
			}
		}
		for _, end := range ended {
			r.followers.end(end.Stream, end.Epoch)
			if old, ok := r.entries.Peek(end.Stream); ok && old.lease.Epoch <= end.Epoch {
				r.entries.Remove(end.Stream)
			}
		}
	}
	return nil
}

// InStep reports whether there is a copy of the directory that is as new as can be.
func (r *Resolver) InStep() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mirror.inStep(time.Now())
}

// mapped returns the number of streams in the copy.
func (r *Resolver) mapped() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.mirror.streams)
}

// Nodes lists origins as an Engine does. While the copy is in step it needs no
// call; else the directory is asked, and where that is unavailable the copy answers
// with the nodes that were there when the watch broke. Only origins are copied: of
// other roles the directory is asked. The nodes' maps must not be changed.
func (r *Resolver) Nodes(ctx context.Context, q NodeQuery) ([]Node, string, error) {
	limit, err := pageLimit(q.Limit)
	if err != nil {
		return nil, "", fmt.Errorf("list nodes: %w", err)
	}
	copied := func(may func() bool) (page []Node, next string, ok bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if q.Role != RoleOrigin || !may() {
			return nil, "", false
		}
		page, next = r.mirror.list(q, limit)
		return page, next, true
	}
	if page, next, ok := copied(func() bool { return r.mirror.inStep(time.Now()) }); ok {
		return page, next, nil
	}
	l, ok := r.finder.(nodeLister)
	if !ok {
		return nil, "", fmt.Errorf("list nodes: %w: this directory lists none", ErrUnavailable)
	}
	page, next, err := l.Nodes(ctx, q)
	if errors.Is(err, ErrUnavailable) || err != nil && ctx.Err() != nil {
		if page, next, ok := copied(func() bool { return r.mirror.whole && time.Since(r.mirror.heard) < r.staleFor }); ok {
			return page, next, nil
		}
	}
	return page, next, err
}
