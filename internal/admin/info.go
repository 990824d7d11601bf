package admin

import (
	"fmt"
	"strconv"
	"time"
)

// NodeInfo says what a node is. It does not change while the node runs.
type NodeInfo struct {
	// ID is the node's name in the cluster.
	ID string
	// Role is "origin", "edge" or "discovery".
	Role string
	// Version is that of the binary.
	Version string
	// Started is when the node was started.
	Started time.Time
	// Addresses are where the node listens, by what for ("rtmp", "http").
	Addresses map[string]string
	// Labels are what the node announces of itself ("group", "region").
	Labels map[string]string
}

// WorkerInfo is the state of one of a node's worker processes.
type WorkerInfo struct {
	// Index is the number of the worker, from 0.
	Index int `json:"index"`
	// State is "starting", "ready", "stopping", "restarting", "failed", "stopped"
	// or, of one that another has taken the place of, "retiring".
	State string `json:"state"`
	// PID is its process, 0 while there is none.
	PID int `json:"pid"`
	// Restarts counts the starts after the first one.
	Restarts int `json:"restarts"`
	// StartedAt is when its process was started, or the last one.
	StartedAt time.Time `json:"started_at"`
	// LastExit says how its last process ended; empty if none has.
	LastExit string `json:"last_exit,omitempty"`
	// Sibling is what DialWorker finds it by.
	Sibling int `json:"-"`
}

// name tells a worker from all others, those that retire included.
func (i *WorkerInfo) name() string {
	if i.State == workerRetiring {
		return fmt.Sprintf("%d-%d", i.Index, i.PID)
	}
	return strconv.Itoa(i.Index)
}

// States of workers that answer.
const (
	workerReady    = "ready"
	workerRetiring = "retiring"
)

// StreamInfo is one stream as one process sees it.
type StreamInfo struct {
	// Key is vhost/app/name.
	Key string `json:"key"`
	// State is "live" (tags come), "waiting" (players wait for the first tag)
	// or "resuming" (the publisher or the upstream is gone, its return is
	// waited for).
	State string `json:"state"`
	// Publisher is the session that publishes it here, or nil.
	Publisher *PublisherInfo `json:"publisher,omitempty"`
	// Standby is the session that stands by to go on with it here, or nil.
	Standby *PublisherInfo `json:"standby,omitempty"`
	// Players counts the sessions that play it. Workers that attach to this
	// one for their own players are not counted.
	Players int `json:"players"`
	// BytesIn counts bytes of FLV tags since the stream began here.
	BytesIn uint64 `json:"bytes_in"`
	// Bitrate is what came in, in bits per second, over the last seconds.
	Bitrate uint64 `json:"bitrate"`
	// Codecs are the names of what was seen in it, such as "h264", "aac".
	Codecs []string `json:"codecs"`
	// Epoch is that of the ownership; 0 if it is not known.
	Epoch uint64 `json:"epoch"`
	// Source says where the tags come from: "publish", the URL of the
	// upstream without its query, or "worker 2".
	Source string `json:"source"`
	// Worker is the worker that says so. The server fills it in.
	Worker *int `json:"worker,omitempty"`
}

// PublisherInfo is who publishes a stream.
type PublisherInfo struct {
	// Session is the ID of its session.
	Session string `json:"session"`
	// Remote is its address, host:port.
	Remote string `json:"remote"`
	// Protocol is "rtmp".
	Protocol string `json:"protocol"`
	// Since is when it began.
	Since time.Time `json:"since"`
	// Encoder is what it calls itself, as far as it does.
	Encoder string `json:"encoder,omitempty"`
}

// SessionInfo is one connection that moves a stream.
type SessionInfo struct {
	// ID names the session. No two sessions of a node have the same one, of
	// whichever of its workers they are.
	ID string `json:"id"`
	// Kind is "publish" or "play".
	Kind string `json:"kind"`
	// Stream is the stream's key.
	Stream string `json:"stream"`
	// Remote is the address of the other end, host:port.
	Remote string `json:"remote"`
	// Protocol is "rtmp", "http-flv", "ws-flv" or "hls".
	Protocol string `json:"protocol"`
	// Since is when it began.
	Since time.Time `json:"since"`
	// Bytes counts what was sent to a player or came from a publisher.
	Bytes uint64 `json:"bytes"`
	// LostFrames counts the tags that a player was too slow for.
	LostFrames uint64 `json:"lost_frames"`
	// Worker is the worker that has the session. The server fills it in.
	Worker *int `json:"worker,omitempty"`
}
