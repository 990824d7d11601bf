package schedule

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// A decision over 1000 nodes, with regions, a stream, reservations and a record.
func BenchmarkDecide(b *testing.B) {
	for _, nodes := range []int{10, 100, 1000} {
		for _, policy := range []PolicyName{LeastLoad, RoundRobin, Hash} {
			b.Run(fmt.Sprintf("%d/%s", nodes, policy), func(b *testing.B) {
				s := New(configured(func(c *Config) { c.Policy = policy }), nil, 1)
				in := make([]Node, nodes)
				for i := range in {
					in[i] = edge(fmt.Sprintf("edge-%04d", i), float64(i%80)/100, func(n *Node) {
						n.Region = []string{"eu", "us", "asia", "sa"}[i%4]
						n.Egress, n.Sessions, n.Cost = 1e8, 100, 0.01
					})
				}
				s.Update(t0, in)
				streams := make([]string, 1000)
				for i := range streams {
					streams[i] = fmt.Sprintf("v/live/%d", i)
				}
				r := Request{Action: Play, Region: "eu", Client: netip.MustParseAddr("10.0.0.1")}
				now := t0
				b.ReportAllocs()
				for i := range b.N {
					if i%5000 == 4999 { // a second's worth
						b.StopTimer()
						now = now.Add(time.Second)
						for j := range in {
							in[j].Seen = now
							in[j].Sessions += float64(5000 / nodes)
						}
						s.Update(now, in)
						b.StartTimer()
					}
					r.Stream = streams[i%len(streams)]
					if _, err := s.Decide(now, r, false); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkUpdate(b *testing.B) {
	s := New(configured(nil), nil, 1)
	in := make([]Node, 1000)
	for i := range in {
		in[i] = edge(fmt.Sprintf("edge-%04d", i), float64(i%80)/100)
	}
	now := t0
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Second)
		for j := range in {
			in[j].Seen = now
		}
		s.Update(now, in)
	}
}
