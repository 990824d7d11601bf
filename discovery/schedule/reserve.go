package schedule

import "time"

// reservedFor is how long a session may take from its choice to a report. After it
// the session is taken to have gone elsewhere.
const reservedFor = 10 * time.Second

// measuredOver is the time over which a node measures its rates. A session that
// came at the end of it is in the count of a report, but its rate is not yet.
const measuredOver = time.Second

// reservations are the sessions that were sent to a node and that its load does not
// have yet. Of a session that a report counts, the part that is not in the report's
// rates is kept until the next report.
type reservations struct {
	bits float64 // all together, in bits per second

	pending []reservation // that no report has shown, the oldest first
	arrived []reservation // what is missing in the last report
}

type reservation struct {
	at   time.Time
	bits float64
}

func (r *reservations) add(now time.Time, bits float64) {
	r.pending = append(r.pending, reservation{now, bits})
	r.bits += bits
}

// shown takes a report of a time at which the node had more sessions than before.
func (r *reservations) shown(at time.Time, more float64) {
	for _, a := range r.arrived {
		r.bits -= a.bits
	}
	r.arrived = r.arrived[:0]
	n := 0
	for n < len(r.pending) && float64(n+1) <= more && r.pending[n].at.Before(at) {
		n++
	}
	for _, p := range r.pending[:n] {
		r.bits -= p.bits
		if missing := 1 - float64(at.Sub(p.at))/float64(measuredOver); missing > 0 {
			r.arrived = append(r.arrived, reservation{p.at, p.bits * missing})
			r.bits += p.bits * missing
		}
	}
	r.cut(n)
}

// expire drops sessions that have not come, and reports whether there were any.
func (r *reservations) expire(now time.Time) bool {
	before := len(r.pending) + len(r.arrived)
	if before == 0 {
		return false
	}
	n := 0
	for n < len(r.pending) && now.Sub(r.pending[n].at) >= reservedFor {
		r.bits -= r.pending[n].bits
		n++
	}
	r.cut(n)
	n = 0
	for n < len(r.arrived) && now.Sub(r.arrived[n].at) >= reservedFor {
		r.bits -= r.arrived[n].bits
		n++
	}
	r.arrived = r.arrived[n:]
	r.settle()
	return len(r.pending)+len(r.arrived) < before
}

// cut removes the n oldest of pending.
func (r *reservations) cut(n int) {
	r.pending = r.pending[n:]
	r.settle()
}

// settle ends rounding errors when nothing is left.
func (r *reservations) settle() {
	if len(r.pending) == 0 && len(r.arrived) == 0 {
		r.bits, r.pending, r.arrived = 0, nil, nil
	}
}
