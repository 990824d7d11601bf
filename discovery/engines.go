package discovery

import "time"

// What engines in packages of their own need of the rules of this one.

// Check returns an ErrInvalid if the claim breaks a rule of the API.
func (c Claim) Check() error { return c.check() }

// Check returns an ErrInvalid if the renewal breaks a rule of the API.
func (r Renewal) Check() error { return r.check() }

// Check returns an ErrInvalid if the node breaks a rule of the API.
func (n Node) Check() error { return n.check() }

// Check returns an ErrInvalid if the lease breaks a rule of the API.
func (l Lease) Check() error { return l.check() }

// Check returns an ErrInvalid if the query breaks a rule of the API.
func (q WatchQuery) Check() error { return q.check() }

// Check returns an ErrInvalid if the kick breaks a rule of the API.
func (k Kick) Check() error { return k.check() }

// Ends reports whether an ownership of that epoch is one that the kick has ended.
func (k *Kicked) Ends(epoch uint64, now time.Time) bool { return k.ends(epoch, now) }

// PageLimit returns the size of a page for the Limit of a query, or ErrInvalid.
func PageLimit(limit int) (int, error) { return pageLimit(limit) }

// Plausible reports whether an epoch that came from outside may be taken over: one
// broken clock must not push all later epochs to the end of their range.
func Plausible(epoch uint64, now time.Time) bool { return plausible(epoch, now) }

// SameOwnership reports whether two leases are of one owner at one place with one
// epoch. Idle or not makes no difference.
func SameOwnership(a, b Lease) bool { return sameOwnership(a, b) }

// Differs reports whether two states of a node differ in more than load and time.
func (n Node) Differs(o Node) bool { return n.differs(&o) }
