package discovery

import (
	"math/rand/v2"
	"slices"
)

// busyLoad is from where on a node is taken only if there is no other: the default of
// `load.soft_limit`.
const busyLoad = 0.80

// ByLoad puts nodes into the order in which they should be tried for a new session:
// first one of those that are not busy, by chance, the more probably the more room it
// has, because many choose by the same reports and are not to choose the same; then
// the others, the least loaded first. A node that has not reported its load counts as
// full. It changes the slice and returns it.
func ByLoad(nodes []Node) []Node {
	slices.SortStableFunc(nodes, func(a, b Node) int {
		switch x, y := a.effective(), b.effective(); {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	free := slices.IndexFunc(nodes, func(n Node) bool { return n.effective() >= busyLoad })
	if free < 0 {
		free = len(nodes)
	}
	if free < 2 {
		return nodes
	}
	room := 0.0
	for i := range free {
		room += busyLoad - nodes[i].effective()
	}
	first, at := 0, rand.Float64()*room
	for first < free-1 {
		if at -= busyLoad - nodes[first].effective(); at < 0 {
			break
		}
		first++
	}
	chosen := nodes[first]
	copy(nodes[1:first+1], nodes[:first])
	nodes[0] = chosen
	return nodes
}

// effective is the node's load; 1 is all that it can take.
func (n *Node) effective() float64 {
	if l, ok := n.Load[LoadEffective]; ok {
		return max(0, l)
	}
	return 1
}
