// Package wire is a network of hosts on one machine, with a wire between them
// that can be made slow, lossy or dead, in each direction by itself.
//
// A host is a network namespace, made by `ip netns`, with a TUN device. The wire
// is this process: it reads the packets of all devices and writes each to the
// device of the host that it is for, or not. So it needs no queueing disciplines
// of the kernel, no bridge, and nothing that it does leaves the namespaces.
// Linux only; root is needed.
package wire

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Path is the state of the wire from one host to another. The zero value is a
// wire without faults.
type Path struct {
	// Delay is added to the way of each packet.
	Delay time.Duration
	// Loss is the share of packets that get lost, 0 to 1. Which ones is drawn
	// from the seed of the network.
	Loss float64
	// Block has all packets get lost.
	Block bool
}

// Net is a network. Its methods are safe for concurrent use.
type Net struct {
	// Static.
	hosts   []*Host
	byAddr  map[netip.Addr]int
	paths   [][]*path // [from][to]
	reading sync.WaitGroup
}

// New makes a network of hosts with these names, at most 200. run is a name of
// this run of letters, digits and hyphens: the namespaces are called RUN-HOST.
// With an error nothing is left behind.
func New(run string, names []string, seed uint64) (*Net, error) {
	if len(names) > 200 {
		return nil, fmt.Errorf("make network: %d hosts are too many", len(names))
	}
	n := &Net{byAddr: map[netip.Addr]int{}}
	for i, name := range names {
		h, err := newHost(run, name, address(i))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make host %s: %w", name, err), n.Close())
		}
		n.hosts = append(n.hosts, h)
		n.byAddr[h.Addr] = i
	}
	for i := range n.hosts {
		row := make([]*path, len(n.hosts))
		for j, to := range n.hosts {
			row[j] = &path{to: to.tun, rand: rand.New(rand.NewPCG(seed, uint64(i)<<32|uint64(j)))}
		}
		n.paths = append(n.paths, row)
	}
	for i, h := range n.hosts {
		n.reading.Go(func() { n.carry(i, h.tun) })
	}
	return n, nil
}

// address returns that of the host with a number. The network is one that nodes
// on one machine are unlikely to be in; it is never seen outside of the namespaces.
func address(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 213, 0, byte(i + 1)}) }

// Close takes the network away: devices, namespaces, and what is under way. What
// runs in the namespaces should have ended before.
func (n *Net) Close() error {
	var errs []error
	for _, row := range n.paths {
		for _, p := range row {
			p.close()
		}
	}
	for _, h := range n.hosts {
		errs = append(errs, h.closeDevice())
	}
	n.reading.Wait()
	for _, h := range n.hosts {
		errs = append(errs, h.remove())
	}
	return errors.Join(errs...)
}

// Host returns the host with a name; it panics if there is none.
func (n *Net) Host(name string) *Host { return n.hosts[n.index(name)] }

func (n *Net) index(name string) int {
	for i, h := range n.hosts {
		if h.Name == name {
			return i
		}
	}
	panic("wire: no host " + name)
}

// Set changes the wire from one host to another, in this direction only. Packets
// that are under way arrive.
func (n *Net) Set(from, to string, p Path) { n.paths[n.index(from)][n.index(to)].set(p) }

// Counts are packets of a path.
type Counts struct{ Carried, Lost uint64 }

// Counts returns how many packets went from one host to another so far.
func (n *Net) Counts(from, to string) Counts {
	return n.paths[n.index(from)][n.index(to)].counted()
}

// maxPacket is more than a packet of the devices has, in bytes.
const maxPacket = 2048

// carry takes what host from sends to where it is for, until its device closes.
func (n *Net) carry(from int, tun *os.File) {
	buf := make([]byte, maxPacket)
	for {
		size, err := tun.Read(buf)
		if err != nil {
			return
		}
		b := buf[:size]
		if size < 20 || b[0]>>4 != 4 { // IPv6 finds no neighbours here
			continue
		}
		if to, ok := n.byAddr[netip.AddrFrom4([4]byte(b[16:20]))]; ok {
			n.paths[from][to].send(b)
		}
	}
}
