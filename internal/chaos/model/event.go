// Package model says whether the history of a cluster under faults is one that
// weir promises. It reads events in their order and knows no clock, no network
// and no files, so that a history can be written by hand, judged while it
// happens, or judged again from a file.
package model

import "encoding/json"

// Event is one line of a history. Which fields an event has depends on its kind;
// the others are left out. Times are milliseconds since the run began.
type Event struct {
	T    int64 `json:"t"`
	Kind Kind  `json:"e"`

	Node   string `json:"node,omitempty"`
	Stream string `json:"stream,omitempty"`
	Conn   int    `json:"conn,omitempty"` // of a player or publisher; never used twice
	Text   string `json:"text,omitempty"` // for people

	Setup *Setup `json:"setup,omitempty"`
	Fault *Fault `json:"fault,omitempty"`
	Own   *Own   `json:"own,omitempty"`
	Ask   *Ask   `json:"ask,omitempty"`
	End   *End   `json:"end,omitempty"`
	Run   *Run   `json:"run,omitempty"`
	Left  *Left  `json:"left,omitempty"`

	Inc   int    `json:"inc,omitempty"`   // of a publisher
	Local string `json:"local,omitempty"` // its address, as nodes see it
	Peer  string `json:"peer,omitempty"`
	Count int    `json:"count,omitempty"`
}

// Kind is what an event is about.
type Kind string

// The kinds of events.
const (
	// KindSetup is the first event: what runs. Setup.
	KindSetup Kind = "setup"
	// KindUp: a node is ready, KindDown: a node's process has ended. Node.
	// KindDown without a fault on the node is an error.
	KindUp   Kind = "up"
	KindDown Kind = "down"
	// KindFault is the begin of a fault and KindHeal its end. Fault; the end has
	// its ID only.
	KindFault Kind = "fault"
	KindHeal  Kind = "heal"
	// KindLag: the checker itself did not run for Count ms, so that it is no
	// witness of that time.
	KindLag Kind = "lag"
	// KindOwn is what a node says of a stream that is published to it, when that
	// changes. Own; without it the node has the stream no more. Node, Stream.
	KindOwn Kind = "own"
	// KindPulls: Count connections of Peer pull a stream from a node, when that
	// changes. Node, Stream, Peer.
	KindPulls Kind = "pulls"
	// KindHop: a server that only redirects has redirected Peer. Stream.
	KindHop Kind = "hop"
	// KindDeaf: a node does not answer its operator, or is not ready: Text. KindHears:
	// it does and is again. Node.
	KindDeaf  Kind = "deaf"
	KindHears Kind = "hears"
	// KindPublish: a publisher asks. Conn, Stream, Node, Inc. KindPublishing: it was
	// let in, from address Local. KindUnpublished: its stay or its try is over. End.
	KindPublish     Kind = "publish"
	KindPublishing  Kind = "publishing"
	KindUnpublished Kind = "unpublished"
	// KindPlay: a player asks. Conn, Stream, Node, Ask. KindPlaying: it was let in.
	// KindRun: it got frames. Run. KindDamaged: it got one that is not what was
	// published: Text. KindEnd: it does not play any more. End.
	KindPlay    Kind = "play"
	KindPlaying Kind = "playing"
	KindRun     Kind = "run"
	KindDamaged Kind = "damaged"
	KindEnd     Kind = "end"
	// KindCalm is the begin of a time in which all faults are over and all nodes
	// have had the time to settle, KindStorm its end.
	KindCalm  Kind = "calm"
	KindStorm Kind = "storm"
	// KindLeft: what a process holds after the load has gone. Left, Node.
	KindLeft Kind = "left"
)

// Setup is what runs, and what it promises.
type Setup struct {
	Seed    uint64            `json:"seed"`
	Streams map[string]Stream `json:"streams"`
	Nodes   map[string]Node   `json:"nodes"`
	Bounds  Bounds            `json:"bounds"`
}

// Stream is what is asked of a stream.
type Stream struct {
	// Contested streams have two publishers, which both try. Their players may
	// be cut, because publishers leave for good.
	Contested bool `json:"contested,omitempty"`
	// Absent streams are not published: who asks for them gets an error.
	Absent bool `json:"absent,omitempty"`
	// Circle streams are redirected in a circle.
	Circle bool `json:"circle,omitempty"`
}

// Node is a node of the cluster.
type Node struct {
	Role string `json:"role"` // origin, edge, discovery, etcd
}

// Bounds are the times, in milliseconds, and numbers that are promised.
type Bounds struct {
	// Answer is how long a play request may take while its node is in order.
	Answer int64 `json:"answer"`
	// Accept is how long a publish request may take while its node is in order.
	Accept int64 `json:"accept"`
	// Recovery is how long a node and its connections may suffer from a fault
	// after its end; what happens to them meanwhile is excused.
	Recovery int64 `json:"recovery"`
	// Absence is how long a publisher may be away without its players being cut.
	Absence int64 `json:"absence"`
	// Hops is how many redirects of a circle a node may follow in a second. It gives
	// up after a few, but tries again as long as somebody waits for the stream.
	Hops int `json:"hops"`
	// What a process may hold more of after the load than before it.
	Goroutines  int64 `json:"goroutines"`
	Descriptors int64 `json:"descriptors"`
	Memory      int64 `json:"memory"` // bytes
	// Void is what a run must have at least: see Model.Void.
	MinFrames, MinPlays, MinCalms, MinFaults int
}

// Allowed returns how much more of something a process may hold after the load.
func (b Bounds) Allowed(what string) int64 {
	return map[string]int64{"goroutines": b.Goroutines, "descriptors": b.Descriptors, "memory": b.Memory}[what]
}

// Fault is something that is done to the cluster.
type Fault struct {
	ID   int    `json:"id"`
	What string `json:"what,omitempty"` // such as "kill"; see the package chaos
	// On are the nodes that suffer: what they and their connections do is excused
	// until the fault is healed and Bounds.Recovery is over.
	On []string `json:"on,omitempty"`
}

// Own is what a node says of a stream of which it is an origin.
type Own struct {
	Epoch uint64 `json:"epoch"`
	Live  bool   `json:"live"`           // a publisher is there
	From  string `json:"from,omitempty"` // its address
}

// Ask is how a player asks.
type Ask struct {
	Protocol string `json:"protocol"`
}

// End is how something ended.
type End struct {
	// Why is "left" (by its own will), "refused" (an answer with a name: Code),
	// "redirected", "lost" (the other end closed or broke the connection) or
	// "silent" (it gave up because nothing came).
	Why  string `json:"why"`
	Code string `json:"code,omitempty"`
}

// Run is a row of frames of one kind that a player got, with one number after
// the other, all as they were published. Time stamps did not run back.
type Run struct {
	Video bool `json:"video,omitempty"`
	Inc   int  `json:"inc"`
	From  int  `json:"from"` // number of the first one
	To    int  `json:"to"`   // of the last one
	// Key: the first one is a key frame. Header: the decoder header of its kind
	// had come before the first one.
	Key    bool `json:"key,omitempty"`
	Header bool `json:"header,omitempty"`
	// Back: the time stamp of the first one is before that of the frame before it,
	// of whatever kind that was.
	Back bool `json:"back,omitempty"`
	// At is when the first one came, in ms since the run began; the event's time is
	// that of the last one.
	At int64 `json:"at,omitempty"`
	// First and Last are their time stamps in ms.
	First uint32 `json:"first"`
	Last  uint32 `json:"last"`
}

// Left is what a process holds, before the load and after it.
type Left struct {
	What   string `json:"what"` // goroutines, descriptors, memory
	Before int64  `json:"before"`
	After  int64  `json:"after"`
}

// String is the event as a line of a history file.
func (e Event) String() string {
	b, err := json.Marshal(e)
	if err != nil {
		return err.Error() // cannot happen: all fields are plain
	}
	return string(b)
}
