package discovery

import (
	"sync"
	"time"
)

// refusals says which refused calls are worth a line of the log: the first of
// each minute from each host. Safe for concurrent use.
type refusals struct {
	mu     sync.Mutex
	byHost map[string]*refusal // guarded by mu; at most maxRefused
}

type refusal struct {
	logged time.Time
	since  int // calls that were not logged since
}

const (
	refusalEvery = time.Minute
	// maxRefused bounds the hosts that are told apart. Beyond it new ones are
	// only counted until a minute has passed for others.
	maxRefused = 1000
)

// add notes a call and returns the number of calls that a line stands for, or 0
// if none is due.
func (r *refusals) add(host string, now time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.byHost[host]
	if e == nil {
		if len(r.byHost) >= maxRefused {
			for h, old := range r.byHost {
				if now.Sub(old.logged) >= refusalEvery {
					delete(r.byHost, h)
				}
			}
			if len(r.byHost) >= maxRefused {
				return 0
			}
		}
		e = &refusal{}
		r.byHost[host] = e
	}
	e.since++
	if now.Sub(e.logged) < refusalEvery {
		return 0
	}
	n := e.since
	*e = refusal{logged: now}
	return n
}
