// Package chaos runs a cluster of real processes in network namespaces, publishes
// and plays marked frames, injects faults that are drawn from a seed, writes a
// history of all that it sees, and has package model judge it. docs/chaos.md is
// its manual; scripts/chaos its command.
package chaos

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"weir/internal/chaos/model"
)

// Config is what a run does.
type Config struct {
	// Weir is the path of the binary under test.
	Weir string
	// Dir is where configuration, logs and the history go; it must exist.
	Dir string
	// Name tells runs of one process at the same time apart: letters, digits and
	// hyphens. It may be empty.
	Name string
	// Seed decides on the faults, when they come, and what clients do.
	Seed uint64
	// Faulty is for how long faults are injected, 10 s to 24 h. Before it comes a
	// time of load without faults, and behind it one for the leftovers.
	Faulty time.Duration
	// Origins and Edges are how many of them there are: 2 to 5, and 1 to 4. Each edge has
	// Workers processes, 1 to 8.
	Origins, Edges, Workers int
	// Engine is where the directory is: EngineMemory, in one discovery server, or
	// EngineEtcd, in three members of an etcd. That is used by the discovery server,
	// which the edges ask, and by the origins directly.
	Engine string
	// Streams is the number of streams with one publisher each, Contested that of
	// streams with two that fight for the name; 1 to 50, and 0 to 10.
	Streams, Contested int
	// Players is how many play at a time; 4 to 1000.
	Players int
	// Only, if not empty, are the kinds of faults that are injected.
	Only []string
	// KeepGoing goes on after a violation.
	KeepGoing bool
	// Bounds are what is promised.
	Bounds model.Bounds
	// Out gets lines for a person.
	Out io.Writer
}

// The engines of the directory.
const (
	EngineMemory = "memory"
	EngineEtcd   = "etcd"
)

// Default returns a run that fits into two cores.
func Default() Config {
	return Config{
		Faulty: time.Minute, Origins: 3, Edges: 2, Workers: 2, Engine: EngineMemory, Streams: 6, Contested: 2, Players: 40,
		Bounds: model.Bounds{
			Answer: 8000, Accept: 8000, Recovery: 2500, Absence: 8000, Hops: 40,
			Goroutines: 24, Descriptors: 24, Memory: 48 << 20,
		},
		Out: io.Discard,
	}
}

// Validate returns all that is out of range.
func (c *Config) Validate() error {
	var errs []error
	in := func(what string, v, low, high int) {
		if v < low || v > high {
			errs = append(errs, fmt.Errorf("%s: %d is not between %d and %d", what, v, low, high))
		}
	}
	if c.Faulty < 10*time.Second || c.Faulty > 24*time.Hour {
		errs = append(errs, fmt.Errorf("time: %v is not between 10s and 24h", c.Faulty))
	}
	in("origins", c.Origins, 2, 5)
	in("edges", c.Edges, 1, 4)
	in("workers", c.Workers, 1, 8)
	if c.Engine != EngineMemory && c.Engine != EngineEtcd {
		errs = append(errs, fmt.Errorf("engine: %q is neither %s nor %s", c.Engine, EngineMemory, EngineEtcd))
	}
	in("streams", c.Streams, 1, 50)
	in("contested", c.Contested, 0, 10)
	in("players", c.Players, 4, 1000)
	for _, k := range c.Only {
		if !slices.Contains(faultKinds, k) {
			errs = append(errs, fmt.Errorf("faults: %q is none of %s", k, strings.Join(faultKinds, ", ")))
		}
	}
	return errors.Join(errs...)
}

// minimum sets what the run must have to prove something, where that was not set.
func (c *Config) minimum() {
	s, b := int(c.Faulty/time.Second), &c.Bounds
	b.MinFrames = max(b.MinFrames, s*c.Players*5) // about a fifth of what is published to them
	b.MinPlays = max(b.MinPlays, c.Players+s)
	b.MinCalms = max(b.MinCalms, s/25)
	b.MinFaults = max(b.MinFaults, s/15)
}

// Names of the hosts that are not nodes.
const (
	hostPublishers = "publishers"
	hostViewers    = "viewers"
	hostLiarA      = "liar-a"
	hostLiarB      = "liar-b"
	nodeDiscovery  = "discovery"
)

func (c *Config) origins() []string { return numbered("origin", c.Origins) }
func (c *Config) edges() []string   { return numbered("edge", c.Edges) }

// members returns the names of the members of the etcd, none without.
func (c *Config) members() []string {
	if c.Engine == EngineEtcd {
		return numbered("etcd", etcdMembers)
	}
	return nil
}

// etcdMembers is how many members the etcd has: it bears the loss of one.
const etcdMembers = 3

func numbered(word string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", word, i+1)
	}
	return names
}

func (c *Config) hosts() []string {
	return slices.Concat([]string{nodeDiscovery}, c.origins(), c.edges(), c.members(), []string{hostPublishers, hostViewers, hostLiarA, hostLiarB})
}

// Names of the streams without publishers. All streams are in the app live of
// the default vhost.
const (
	streamAbsent = "absent"
	streamCircle = "circle" // the directory says that a liar has it, who says that the other one has it
	streamSelf   = "self"   // the directory says that the first edge has it, which so is its own upstream
)

// streams returns the names of the streams that are published, the contested
// ones last. Their index is their number in the marks.
func (c *Config) streams() []string {
	return slices.Concat(numbered("stream", c.Streams), numbered("fight", c.Contested))
}

func (c *Config) contested(stream int) bool { return stream >= c.Streams }

// setup is the first event of the history.
func (c *Config) setup() model.Event {
	s := model.Setup{Seed: c.Seed, Streams: map[string]model.Stream{}, Nodes: map[string]model.Node{}, Bounds: c.Bounds}
	for i, name := range c.streams() {
		s.Streams[name] = model.Stream{Contested: c.contested(i)}
	}
	s.Streams[streamAbsent] = model.Stream{Absent: true}
	s.Streams[streamSelf] = model.Stream{Absent: true}
	s.Streams[streamCircle] = model.Stream{Circle: true}
	s.Nodes[nodeDiscovery] = model.Node{Role: "discovery"}
	for _, name := range c.origins() {
		s.Nodes[name] = model.Node{Role: "origin"}
	}
	for _, name := range c.edges() {
		s.Nodes[name] = model.Node{Role: "edge"}
	}
	for _, name := range c.members() {
		s.Nodes[name] = model.Node{Role: roleEtcd}
	}
	return model.Event{Kind: model.KindSetup, Setup: &s}
}
