package discoverynode

import (
	"context"
	"errors"
	"net"
	"net/url"
	"strconv"
	"time"

	"weir/discovery"
	"weir/discovery/autoscale"
)

// scaled is the directory as autoscaling sees it.
type scaled struct {
	engine       discovery.Engine
	id, instance string
	addr         discovery.Addr
}

// leadTTL is how long a server that is silent keeps another from scaling.
const leadTTL = 10 * time.Second

// leadStream is the key that the server that scales a group owns, like an origin a
// stream. No vhost begins with underscores but the default one.
func leadStream(group string) string { return "__weir/autoscale/group-" + url.QueryEscape(group) }

// Lead implements autoscale.Source: who holds the lease acts.
func (s *scaled) Lead(ctx context.Context, group string) (bool, error) {
	_, err := s.engine.Claim(ctx, discovery.Claim{Stream: leadStream(group), Node: s.id, Instance: s.instance, Addr: s.addr, TTL: leadTTL})
	var other *discovery.ConflictError
	switch {
	case errors.As(err, &other):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, nil
}

// Nodes implements autoscale.Source.
func (s *scaled) Nodes(ctx context.Context, group string) ([]autoscale.Member, error) {
	all, err := discovery.AllNodes(ctx, s.engine)
	if err != nil {
		return nil, err
	}
	var members []autoscale.Member
	for i := range all {
		if n := &all[i]; n.Role == discovery.RoleEdge && n.Labels[discovery.LabelGroup] == group {
			members = append(members, member(n))
		}
	}
	return members, nil
}

func member(n *discovery.Node) autoscale.Member {
	load, reported := n.Load[discovery.LoadEffective]
	cost, err := strconv.ParseFloat(n.Labels[discovery.LabelCost], 64)
	if err != nil {
		cost = 0
	}
	addr := n.Addr.HTTP
	if addr == "" {
		addr = n.Addr.RTMP
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = ""
	}
	return autoscale.Member{
		Node: autoscale.Node{
			ID: n.ID, Up: n.State == discovery.StateUp, Draining: n.State == discovery.StateDraining, Reported: reported, Load: load,
			Capacity: n.Load[discovery.LoadCapacity], Sessions: n.Load[discovery.LoadPlayers] + n.Load[discovery.LoadPublished], Cost: cost,
		},
		Host: host,
	}
}
