// Package discovery is the directory of a cluster: which origin owns which
// stream, and which nodes live. It never sees media.
//
// A Directory answers for ownership: Memory keeps it in one process, Client
// speaks to a discovery server over HTTP, Peers asks the other origins. Server
// puts an Engine on the network. Origins keep their leases through a Holder,
// edges find owners through a Resolver; both go on when the directory is gone.
//
// The words: a stream's owner holds its lease; a lease ends unless it is renewed
// within its TTL; each new ownership has a larger epoch, so that everybody can
// tell the later owner from the earlier one without asking.
package discovery

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Errors that callers branch on. They arrive wrapped: use errors.Is.
var (
	// ErrNotFound: nobody owns the stream.
	ErrNotFound = errors.New("no owner")
	// ErrUnavailable: the directory could not be asked. Nothing is known about
	// the stream, and a claim or renewal may or may not have been carried out.
	ErrUnavailable = errors.New("directory unavailable")
	// ErrFull: the directory answers, but it has as many streams or nodes as
	// its configuration allows.
	ErrFull = errors.New("directory full")
	// ErrRefused: the directory answers, but not to this node: its token is
	// missing or wrong, or the server does not know the call.
	ErrRefused = errors.New("directory refused the call")
	// ErrInvalid: the request breaks a rule of the API; repeating it is useless.
	ErrInvalid = errors.New("invalid request")
)

// ConflictError says that another node holds the stream.
type ConflictError struct {
	Lease Lease // of the owner
}

// Error names the stream, its owner and the epoch.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("stream %s is owned by node %s (epoch %d)", e.Lease.Stream, e.Lease.Node, e.Lease.Epoch)
}

// Addr holds the advertised addresses of a node, each as host:port or empty.
type Addr struct {
	RTMP string `json:"rtmp,omitempty"` // for RTMP pulls and RTMP 302
	HTTP string `json:"http,omitempty"` // for HTTP-FLV and HLS and HTTP 302
	API  string `json:"api,omitempty"`  // the HTTP API of the node, as in SRS's clusters answer
}

// Lease is the ownership of one stream by one node. It is a value: changing a
// copy changes nothing in the directory.
type Lease struct {
	Stream   string // vhost/app/name
	Node     string // id of the owner
	Instance string // which run of that node: a restarted node is a new owner
	// Epoch is larger than that of every earlier ownership of the stream. Engines
	// count in microseconds since 1970 or above (see epochClock), so that epochs
	// of different engines and provisional ones compare. 0: not known (SRS peers).
	Epoch uint64
	Addr  Addr // where the owner is reached
	// Publisher names who publishes, in a way that only the publisher itself can
	// prove; empty if it does not. See Claim.
	Publisher string
	// Idle: the publisher is gone and the owner keeps the name for a while.
	// Another node may claim an idle lease.
	Idle    bool
	Expires time.Time // on the clock of whoever holds this value
}

// Role is what a node does.
type Role string

// The roles of nodes.
const (
	RoleOrigin    Role = "origin"
	RoleEdge      Role = "edge"
	RoleDiscovery Role = "discovery"
)

// State is where a node is in its life.
type State string

// The states of nodes. Only a node that is up takes new sessions.
const (
	StateStarting State = "starting"
	StateUp       State = "up"
	StateDraining State = "draining"
)

// Node is what a node says about itself in each heartbeat.
type Node struct {
	ID       string
	Instance string // random for each run of the node
	Role     Role
	Addr     Addr
	State    State
	// Load holds the node's load by dimension ("cpu", "network", "players", ...).
	// The directory stores it as it is; schedulers give it meaning.
	Load map[string]float64
	// Labels say where and what the node is ("region", "group", ...).
	Labels  map[string]string
	Version string
	// TTL is how long after Seen the node counts as alive; 0 in a heartbeat
	// asks for the directory's default.
	TTL time.Duration
	// Seen is when the directory got the last heartbeat. Ignored in heartbeats.
	Seen time.Time
}

// Claim asks for the ownership of a stream.
type Claim struct {
	Stream   string
	Node     string
	Instance string
	Addr     Addr
	TTL      time.Duration // 0: the directory's default
	Replace  bool          // take the stream from a live owner
	// Publisher names the publisher that is at the claimant. If the lease in force
	// names the same, its owner has lost the publisher, and the stream goes over:
	// nobody could know it better. Empty if not known.
	Publisher string
	// Dead is the epoch of a lease whose owner the claimant has found dead, or 0. If that
	// is the lease in force, it goes over: of several who found so, to the first.
	Dead uint64
	// Held is the epoch of the lease that the claimant believes it has, or 0.
	// A directory that lost its data keeps it if nobody else came between.
	Held uint64
}

// Held names one lease that a node holds, in a Renewal.
type Held struct {
	Stream string `json:"stream"`
	Epoch  uint64 `json:"epoch"`
	Idle   bool   `json:"idle,omitempty"` // as in Lease
	// Publisher is as in Claim.
	Publisher string `json:"publisher,omitempty"`
}

// Renewal prolongs leases of one node in one call.
type Renewal struct {
	Node     string
	Instance string
	Addr     Addr
	TTL      time.Duration // 0: the directory's default
	Leases   []Held
}

// Lost says that a lease of a Renewal was not prolonged.
type Lost struct {
	Stream string `json:"stream"`
	Epoch  uint64 `json:"epoch"` // as in the renewal
	// Now is the lease in force. It is nil if nobody holds the stream, but the
	// old epoch cannot come back: claim again for a new one.
	Now *Lease `json:"now"`
	// Kicked is set if an operator ended the ownership: its publisher is to be cut,
	// and the stream not to be claimed for it again.
	Kicked *Kicked `json:"kicked,omitempty"`
}

// Leases is the ownership half of a directory.
//
// Claim gives the lease to a node if nobody holds the stream, or its holder has
// marked it idle, or the publisher is the same, or the owner is dead, or Replace is set: that is a new
// ownership with a new epoch.
// The holder itself (same node and instance) keeps its epoch, so a claim may be
// repeated. The same node with another instance is a restart: it gets a new
// epoch. Otherwise the error is a *ConflictError. While a ban is on the stream it is a
// *BannedError, for everybody.
//
// Renew prolongs all leases of the renewal that the node still holds, and sets
// their idle marks and publishers. A lease that the directory does not know is restored with its
// epoch. Where another node holds the stream, the later epoch wins: this is how
// leases taken while the directory was away are settled. It returns the leases
// that were not prolonged. With an error, what it returns is still true and the
// others are undecided.
//
// Release ends the lease of that stream, node and epoch. It is no error if the
// lease has ended already; it is a *ConflictError if another is in force.
type Leases interface {
	Claim(ctx context.Context, c Claim) (Lease, error)
	Renew(ctx context.Context, r Renewal) ([]Lost, error)
	Release(ctx context.Context, l Lease) error
}

// Finder finds the owner of a stream. The error is ErrNotFound if nobody owns
// it and ErrUnavailable if that is not known.
type Finder interface {
	Lookup(ctx context.Context, stream string) (Lease, error)
}

// Members is the node half of a directory. Heartbeat makes the node known for
// its TTL. Goodbye removes it and ends all leases of that instance; an empty
// instance stands for any. It is no error if the node is not known.
type Members interface {
	Heartbeat(ctx context.Context, n Node) error
	Goodbye(ctx context.Context, id, instance string) error
}

// Directory is what nodes need of a directory. Implementations are safe for
// concurrent use. Client, Peers and every Engine are directories.
type Directory interface {
	Leases
	Finder
	Members
}

// StreamQuery selects leases for a listing, in the order of their streams.
type StreamQuery struct {
	Prefix string // of the stream's key; "vhost/" selects a vhost
	Node   string // owner; empty for all
	After  string // the last stream of the page before, or empty
	Limit  int    // 1 to MaxPage; 0 for MaxPage
}

// NodeQuery selects nodes for a listing, in the order of their ids.
type NodeQuery struct {
	Role  Role   // empty for all
	After string // the last id of the page before, or empty
	Limit int    // 1 to MaxPage; 0 for MaxPage
}

// MaxPage is the largest number of entries in one page of a listing.
const MaxPage = 1000

// Engine is a directory that a Server can put on the network. next is the After
// of the following page, or empty at the end. Nodes may list them as they were a
// moment ago: a server over a RemoteEngine answers from its copy. Run does the
// engine's upkeep and blocks until ctx ends.
type Engine interface {
	Directory
	Kicker
	Streams(ctx context.Context, q StreamQuery) (page []Lease, next string, err error)
	Nodes(ctx context.Context, q NodeQuery) (page []Node, next string, err error)
	Run(ctx context.Context) error
}

// epochClock hands out epochs: the wall clock in microseconds since 1970, or one
// more than the largest epoch given or seen if that is not less. The clock makes
// a directory that restarts empty go on above what it gave out before (unless
// its wall clock was set back by more than it was away), and makes epochs of
// different nodes comparable. Values stay exact in a JSON number until the year
// 2255. The owner of the clock guards it.
type epochClock struct {
	last uint64
}

func (c *epochClock) next(now time.Time) uint64 {
	c.last = max(c.last+1, uint64(now.UnixMicro()))
	return c.last
}

func (c *epochClock) see(epoch uint64, now time.Time) {
	if plausible(epoch, now) {
		c.last = max(c.last, epoch)
	}
}

// plausible reports whether an epoch that came from outside may be taken over.
// One broken clock must not push all later epochs to the end of their range.
func plausible(epoch uint64, now time.Time) bool {
	return epoch != 0 && epoch <= uint64(now.AddDate(1, 0, 0).UnixMicro())
}
