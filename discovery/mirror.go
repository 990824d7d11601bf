package discovery

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"time"
	"unsafe"
)

// mirror is the copy of a directory that a watch keeps. Whoever has it guards it.
type mirror struct {
	maxBytes int64 // static

	streams map[string]mirrored
	owners  map[ownerKey]*mirrorOwner
	nodes   map[string]mirroredNode
	bytes   int64 // of streams and nodes
	// round is the number of the snapshot that is being told or was told last.
	// What is of an earlier one does not exist any more once that is complete.
	round uint32
	// mark is where the watch can go on; empty while there is no whole copy.
	mark string
	// whole: there was a Synced since the last Reset. caughtUp: and since the watch
	// began last. heard is when the last event came, and since is from when on the
	// copy has been in step without a break.
	whole, caughtUp bool
	heard, since    time.Time
}

// mirrored is the lease of one stream. What many leases have in common is kept
// once: it takes about 200 bytes with the key.
type mirrored struct {
	owner *mirrorOwner
	epoch uint64
	// publisher is that of the lease.
	publisher string
	ttl       time.Duration // what the lease had left when it was told
	round     uint32
	idle      bool
}

type ownerKey struct {
	node, instance string
	addr           Addr
}

type mirrorOwner struct {
	ownerKey
	leases int
}

type mirroredNode struct {
	node  Node
	round uint32
}

var errMapFull = errors.New("the directory is larger than map_size")

func newMirror(maxBytes int64) mirror {
	return mirror{
		maxBytes: maxBytes, streams: make(map[string]mirrored), owners: make(map[ownerKey]*mirrorOwner),
		nodes: make(map[string]mirroredNode),
	}
}

// inStep reports whether the copy is what the directory has, but for what is on
// its way.
func (m *mirror) inStep(now time.Time) bool { return m.caughtUp && now.Sub(m.heard) < watchSilence }

// broken notes that the watch has ended. What is there is kept.
func (m *mirror) broken() { m.caughtUp = false }

// apply takes an event over, and returns the leases that it ended.
func (m *mirror) apply(e *Event, now time.Time) (ended []End, err error) {
	if m.caughtUp && !m.inStep(now) {
		// This process was stopped, or the directory. What comes now may have been
		// on its way for as long.
		return nil, errWatchSilent
	}
	m.heard = now
	switch {
	case e.Reset:
		m.round++
		m.mark, m.whole, m.caughtUp = "", false, false
	case e.Synced != "":
		if !m.whole {
			ended = m.sweep()
		}
		if !m.caughtUp {
			m.since = now
		}
		m.mark, m.whole, m.caughtUp = e.Synced, true, true
	case e.Lease != nil:
		m.put(e.Lease, now)
	case e.Ended != nil:
		// An end that is told late says nothing about an ownership that began since.
		if l, ok := m.streams[e.Ended.Stream]; !ok || l.epoch <= e.Ended.Epoch {
			m.remove(e.Ended.Stream)
			ended = []End{*e.Ended}
		}
	case e.Node != nil:
		m.removeNode(e.Node.ID)
		m.nodes[e.Node.ID] = mirroredNode{*e.Node, m.round}
		m.bytes += e.Node.size()
	case e.Left != "":
		m.removeNode(e.Left)
	}
	if m.bytes > m.maxBytes {
		return ended, errMapFull
	}
	return ended, nil
}

func (m *mirror) put(l *Lease, now time.Time) {
	m.remove(l.Stream)
	key := ownerKey{l.Node, l.Instance, l.Addr}
	o := m.owners[key]
	if o == nil {
		// The strings may be parts of a larger buffer.
		key = ownerKey{strings.Clone(l.Node), strings.Clone(l.Instance), Addr{strings.Clone(l.Addr.RTMP), strings.Clone(l.Addr.HTTP), strings.Clone(l.Addr.API)}}
		o = &mirrorOwner{ownerKey: key}
		m.owners[key] = o
	}
	o.leases++
	m.streams[strings.Clone(l.Stream)] = mirrored{o, l.Epoch, strings.Clone(l.Publisher), l.Expires.Sub(now), m.round, l.Idle}
	m.bytes += leaseSize(l.Stream, l.Publisher)
}

// leaseSize is the memory of a mirrored lease: key and value, and as much again
// for the map, which is between 1/2 and 7/8 full.
func leaseSize(stream, publisher string) int64 {
	return 2*int64(unsafe.Sizeof(stream)+unsafe.Sizeof(mirrored{})) + int64(len(stream)+15+len(publisher))
}

func (m *mirror) remove(stream string) {
	l, ok := m.streams[stream]
	if !ok {
		return
	}
	delete(m.streams, stream)
	m.bytes -= leaseSize(stream, l.publisher)
	if l.owner.leases--; l.owner.leases == 0 {
		delete(m.owners, l.owner.ownerKey)
	}
}

func (m *mirror) removeNode(id string) {
	if n, ok := m.nodes[id]; ok {
		m.bytes -= n.node.size()
		delete(m.nodes, id)
	}
}

// size is about the memory of a node.
func (n *Node) size() int64 {
	size := 2*int64(unsafe.Sizeof(*n)) + int64(len(n.ID)+len(n.Instance)+len(n.Version)+len(n.Addr.RTMP)+len(n.Addr.HTTP)+len(n.Addr.API))
	for name := range n.Load {
		size += 64 + int64(len(name))
	}
	for name, v := range n.Labels {
		size += 64 + int64(len(name)+len(v))
	}
	return size
}

// sweep drops what the last snapshot did not tell.
func (m *mirror) sweep() (ended []End) {
	for stream, l := range m.streams {
		if l.round != m.round {
			ended = append(ended, End{stream, l.epoch})
			m.remove(stream)
		}
	}
	for id, n := range m.nodes {
		if n.round != m.round {
			m.removeNode(id)
		}
	}
	return ended
}

// lease returns the lease of a stream that is in the copy. It lasts for as long as
// it would if its owner died now, or had when the watch broke.
func (m *mirror) lease(stream string) (l Lease, ok bool) {
	s, ok := m.streams[stream]
	if !ok {
		return Lease{}, false
	}
	return Lease{
		Stream: stream, Node: s.owner.node, Instance: s.owner.instance, Epoch: s.epoch, Addr: s.owner.addr,
		Publisher: s.publisher, Idle: s.idle, Expires: m.heard.Add(s.ttl),
	}, true
}

// list returns the nodes of a page, in the order of their ids.
func (m *mirror) list(q NodeQuery, limit int) (page []Node, next string) {
	ids := slices.Sorted(maps.Keys(m.nodes))
	for _, id := range ids {
		n := m.nodes[id].node
		if id <= q.After || q.Role != "" && n.Role != q.Role {
			continue
		}
		if len(page) == limit {
			return page, page[limit-1].ID
		}
		page = append(page, n)
	}
	return page, ""
}
