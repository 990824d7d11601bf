package discovery

import (
	"math/rand/v2"
	"slices"
)

// busyLoad is from where on a node is taken only if there is no other: the default of
// `load.soft_limit`.
const busyLoad = 0.80

// ByLoad puts nodes into the order in which they should be tried for a new session:
// first the less loaded of two that are chosen at random from those that are not busy,
// so that many who choose by the same reports do not choose the same node; then the
// others, the least loaded first. A node that has not reported its load counts as full.
// It changes the slice and returns it.
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
	i, j := rand.IntN(free), rand.IntN(free-1)
	if j >= i {
		j++
	}
	first := min(i, j) // the less loaded
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
