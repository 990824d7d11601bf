package main

import (
	"weir/edge"
	"weir/internal/confdoc"
	"weir/internal/discoverynode"
	"weir/origin"
)

// roots lists the kinds of configuration files, one chapter each.
func roots() []confdoc.Root {
	return []confdoc.Root{
		{
			Title:   "Edge",
			Intro:   "A node for players, `weir edge -c FILE`. It also takes publishers and forwards them to an origin.",
			Sample:  "configs/edge.yaml",
			Default: edge.Default(),
		},
		{
			Title:   "Origin",
			Intro:   "A node for publishers, `weir origin -c FILE`. It owns their streams, cuts their HLS and answers for the streams of other origins with a redirect.",
			Sample:  "configs/origin.yaml",
			Default: origin.Default(),
		},
		{
			Title:   "Discovery",
			Intro:   "The directory of a cluster, `weir discovery -c FILE`. It never sees media. All it knows is in memory; the nodes tell it again after a restart.",
			Sample:  "configs/discovery.yaml",
			Default: discoverynode.Default(),
		},
	}
}
