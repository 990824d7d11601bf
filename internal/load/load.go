// Package load measures how busy a node is, truthfully: what of the machine and of
// each of the node's processes is used, as a share of what may be used, and how
// late players get what they are to get. The largest share, weighted, is the node's
// load. It goes out with heartbeats, and decides when the node takes no more.
//
// Three layers: a Reader reads the kernel's files (below a root, so that tests have
// trees of their own); a Meter turns readings, with their times, into a Load and does
// no I/O; a Node does both twice a second for as long as it runs. A Process is what a
// worker of a node measures of itself and tells its supervisor.
package load

import "time"

// Name is the name of a dimension, as in configuration, heartbeats and metrics.
type Name string

// The dimensions.
const (
	CPU         Name = "cpu"
	ProcessCPU  Name = "process_cpu"
	Network     Name = "network"
	Memory      Name = "memory"
	Descriptors Name = "descriptors"
	Disk        Name = "disk"
	Lateness    Name = "lateness"
)

// Names are all dimensions, in the order in which they are shown.
var Names = [...]Name{CPU, ProcessCPU, Network, Memory, Descriptors, Disk, Lateness}

// Keys of Load.Report beside the names of the dimensions.
const (
	KeyEffective      = "effective"
	KeyPlayers        = "players"
	KeyPublishers     = "publishers"
	KeyEgress         = "egress_bps"
	KeyIngress        = "ingress_bps"
	KeyEgressCapacity = "egress_capacity_bps"
)

// Load is how busy a node is at one moment. It is a value; the map is not changed
// after the Load was made.
type Load struct {
	At time.Time `json:"at"`
	// Dimensions are 1 when all is used; more is possible where it is not the kernel
	// that sets the limit. What is not known is not in it.
	Dimensions map[Name]float64 `json:"dimensions"`
	// Effective is the largest dimension, each multiplied by its weight, and Worst is
	// which it is. Worst is empty, and the load not known, until the first rates are
	// there, about a second after the start.
	Effective float64 `json:"effective"`
	Worst     Name    `json:"worst"`
	// Soft and Hard say whether the limits count as crossed.
	Soft bool `json:"over_soft_limit"`
	Hard bool `json:"over_hard_limit"`

	Players    int `json:"players"`    // sessions of clients, HLS viewers not counted
	Publishers int `json:"publishers"` // likewise

	// Bits per second over the interfaces that count. EgressCapacity is 0 if it is not
	// known.
	Egress         float64 `json:"egress_bps"`
	Ingress        float64 `json:"ingress_bps"`
	EgressCapacity float64 `json:"egress_capacity_bps"`

	// Processes are the reports of the node's processes that this is made of.
	Processes []Report `json:"processes,omitempty"`
}

// Known reports whether the load was measured.
func (l *Load) Known() bool { return l.Worst != "" }

// Report returns the load as heartbeats carry it: the dimensions, KeyEffective and
// the other keys above. It is nil as long as the load is not known, so that the node
// counts as full.
func (l *Load) Report() map[string]float64 {
	if !l.Known() {
		return nil
	}
	m := map[string]float64{
		KeyEffective: l.Effective,
		KeyPlayers:   float64(l.Players), KeyPublishers: float64(l.Publishers),
		KeyEgress: l.Egress, KeyIngress: l.Ingress,
	}
	if l.EgressCapacity > 0 {
		m[KeyEgressCapacity] = l.EgressCapacity
	}
	for name, v := range l.Dimensions {
		m[string(name)] = v
	}
	return m
}

// Status is what the processes of a node have to know of its load.
type Status struct {
	Effective float64 `json:"effective"`
	Soft      bool    `json:"soft"`
	Hard      bool    `json:"hard"`
	// Shed: Hard, and it would help if players left.
	Shed bool `json:"shed"`
}

// ownShare is the least share of the processor time that the node must take for itself
// to be relieved by less work.
const ownShare = 0.2

// Status returns the part of l that decides about sessions.
func (l *Load) Status() Status {
	s := Status{Effective: l.Effective, Soft: l.Soft, Hard: l.Hard, Shed: l.Hard}
	if l.Worst == CPU && l.Dimensions[ProcessCPU] < ownShare*l.Dimensions[CPU] {
		s.Shed = false // it is others who take it
	}
	return s
}

// Report is what one process of a node measures of itself.
type Report struct {
	// Worker is the number of the process among the node's workers, -1 for their
	// supervisor and for a node of one process.
	Worker int `json:"worker"`
	// Cores is processor seconds per second. CPU is the same as a share of what the
	// process may use.
	Cores float64 `json:"cores"`
	CPU   float64 `json:"process_cpu"`
	// Descriptors is the share of RLIMIT_NOFILE that is open.
	Descriptors float64 `json:"descriptors"`
	// Lateness is the delay that 99 of 100 rounds of the fan-out were below.
	Lateness time.Duration `json:"lateness_ns"`

	Players    int `json:"players"`
	Publishers int `json:"publishers"`
}
