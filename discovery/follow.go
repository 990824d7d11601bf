package discovery

import (
	"slices"
	"sync"
)

// followers tells those who follow a stream of each change of its ownership. Who
// learns of a change notes it, under whatever locks keep what it learns in order,
// and delivers when it has left them.
type followers struct {
	mu sync.Mutex // guards all below, and the followers' fields; not held while telling
	by map[string][]*follower
	// due are followers who have something to be told.
	due []*follower
}

type follower struct {
	tell func(Lease) // static

	// now is what the follower knows once all has been told. Node is empty before
	// anything was told, and after the end of the lease of that epoch.
	now              Lease
	waiting, telling bool
	stopped          bool
}

// add registers f and notes what is known, if anything is.
func (fs *followers) add(stream string, f func(Lease), known *Lease) (stop func()) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.by == nil {
		fs.by = make(map[string][]*follower)
	}
	fo := &follower{tell: f, now: Lease{Stream: stream}}
	fs.by[stream] = append(fs.by[stream], fo)
	if known != nil {
		fs.put(fo, *known)
	}
	return func() {
		fs.mu.Lock()
		defer fs.mu.Unlock()
		if fo.stopped {
			return
		}
		fo.stopped = true
		rest := slices.DeleteFunc(fs.by[stream], func(other *follower) bool { return other == fo })
		if len(rest) == 0 {
			delete(fs.by, stream)
			return
		}
		fs.by[stream] = rest
	}
}

// latest returns the largest epoch of a stream that its followers know. What is
// asked of the directory now says nothing about later ones.
func (fs *followers) latest(stream string) (epoch uint64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, fo := range fs.by[stream] {
		epoch = max(epoch, fo.now.Epoch)
	}
	return epoch
}

// note has the followers told of an owner. Nobody is led back to an earlier epoch,
// except from epochs up to overrule.
func (fs *followers) note(l Lease, overrule uint64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, fo := range fs.by[l.Stream] {
		back := l.Epoch != 0 && l.Epoch < fo.now.Epoch
		if sameOwnership(l, fo.now) || back && fo.now.Epoch > overrule {
			continue
		}
		fs.put(fo, l)
	}
}

// end has the followers told that nobody owns the stream, if what they know is of
// that epoch or an earlier one.
func (fs *followers) end(stream string, epoch uint64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, fo := range fs.by[stream] {
		if fo.now.Node != "" && fo.now.Epoch <= epoch {
			fs.put(fo, Lease{Stream: stream, Epoch: fo.now.Epoch})
		}
	}
}

// put expects mu to be held.
func (fs *followers) put(fo *follower, l Lease) {
	fo.now = l
	if !fo.waiting {
		fo.waiting = true
		fs.due = append(fs.due, fo)
	}
}

// deliver tells what was noted. The caller holds no locks.
func (fs *followers) deliver() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for len(fs.due) > 0 {
		fo := fs.due[0]
		if fs.due = fs.due[1:]; len(fs.due) == 0 {
			fs.due = nil
		}
		if fo.telling {
			continue // whoever is at it goes on with this
		}
		fo.telling = true
		for fo.waiting && !fo.stopped {
			fo.waiting = false
			l := fo.now
			fs.mu.Unlock()
			fo.tell(l)
			fs.mu.Lock()
		}
		fo.telling = false
	}
}

// sameOwnership reports whether two leases are of the same owner at the same
// place and of one epoch. Idle or not makes no difference.
func sameOwnership(a, b Lease) bool {
	return a.Epoch == b.Epoch && a.Node == b.Node && a.Instance == b.Instance && a.Addr == b.Addr
}
