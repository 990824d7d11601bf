package simulate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"weir/discovery/autoscale"
	"weir/discovery/schedule"
)

// ReadDecisions reads answers of GET /api/v1/decisions, one after the other.
func ReadDecisions(r io.Reader) ([]schedule.Decision, error) {
	var all []schedule.Decision
	for d := json.NewDecoder(r); ; {
		var page struct {
			Decisions []schedule.Decision `json:"decisions"`
		}
		switch err := d.Decode(&page); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, fmt.Errorf("read decisions: %w", err)
		}
		all = append(all, page.Decisions...)
	}
}

// Replayed is what another scheduler made of recorded decisions.
type Replayed struct {
	Policy    schedule.PolicyName
	Decisions int
	Same      int // that chose the same node
	// Refused counts those without a node, recorded and replayed.
	Refused [2]int
	// Chosen counts choices by node, recorded and replayed.
	Chosen map[string][2]int
}

// Replay has a scheduler of cfg decide what was decided, on the loads that were
// reported then. Those are the loads that the recorded choices led to: what differs
// shows in reservations, not in later reports. Regions are those that were recorded.
func Replay(cfg schedule.Config, seed uint64, decisions []schedule.Decision) Replayed {
	s := schedule.New(cfg, nil, seed)
	r := Replayed{Policy: cfg.Policy, Decisions: len(decisions), Chosen: make(map[string][2]int)}
	last := make(map[string]schedule.Node)
	count := func(id string, which int) {
		n := r.Chosen[id]
		n[which]++
		r.Chosen[id] = n
	}
	for i := range decisions {
		d := &decisions[i]
		nodes := make([]schedule.Node, len(d.Candidates))
		for j := range d.Candidates {
			nodes[j] = recorded(&d.Candidates[j], d.Time, last)
		}
		s.Update(d.Time, nodes)
		c, err := s.Decide(d.Time, schedule.Request{
			Action: d.Action, NodeRole: d.NodeRole, Stream: d.Stream, Vhost: d.Vhost, Client: d.Client, Region: d.Region, Protocol: d.Protocol,
			Exclude: d.Exclude, BitRate: d.BitRate, Owner: d.Owner,
		}, false)
		was, is := "", ""
		if len(d.Chosen) > 0 {
			was = d.Chosen[0]
			count(was, 0)
		} else {
			r.Refused[0]++
		}
		if err == nil {
			is = c.Nodes[0].ID
			count(is, 1)
		} else {
			r.Refused[1]++
		}
		if was == is {
			r.Same++
		}
	}
	return r
}

// recorded returns a node as it was reported before a decision. A report is new when
// something in it is, or a second has passed.
func recorded(c *schedule.Considered, at time.Time, last map[string]schedule.Node) schedule.Node {
	n := schedule.Node{
		ID: c.ID, Role: c.Role, State: "up", RTMP: c.RTMP, HTTP: c.HTTP, API: c.API, Region: c.Region, Group: c.Group, Tier: c.Tier,
		Cost: c.Cost, Weight: c.Weight, Capacity: c.Capacity, Load: c.Reported, Reported: true, Egress: c.Egress, Sessions: c.Sessions, Seen: at,
	}
	switch c.Filtered {
	case schedule.Starting:
		n.State = "starting"
	case schedule.Draining:
		n.State = "draining"
	case schedule.NoReport:
		n.Reported = false
	case schedule.Silent:
		n.Seen = at.Add(-time.Hour)
		return n
	}
	old, ok := last[n.ID]
	if ok && old.Load == n.Load && old.Sessions == n.Sessions && old.Egress == n.Egress && at.Sub(old.Seen) < time.Second {
		n.Seen = old.Seen
	}
	last[n.ID] = n
	return n
}

// WriteTable prints how often each node was chosen.
func (r *Replayed) WriteTable(w io.Writer) error {
	var ids []string
	width, most, sum := len("node"), [2]int{}, [2]int{}
	for id, n := range r.Chosen {
		ids = append(ids, id)
		width = max(width, len(id))
		for i := range n {
			most[i], sum[i] = max(most[i], n[i]), sum[i]+n[i]
		}
	}
	slices.Sort(ids)
	p := func(format string, args ...any) (err error) { _, err = fmt.Fprintf(w, format, args...); return err }
	if err := p("%-*s  recorded  %s\n", width, "node", r.Policy); err != nil {
		return err
	}
	for _, id := range ids {
		if err := p("%-*s  %8d  %*d\n", width, id, r.Chosen[id][0], len(r.Policy), r.Chosen[id][1]); err != nil {
			return err
		}
	}
	ratio := func(i int) float64 { return float64(most[i]) * float64(len(ids)) / float64(max(1, sum[i])) }
	return p("\n%d decisions, %d with the same node; without a node %d, now %d; most over mean of these nodes %.2f, now %.2f\n",
		r.Decisions, r.Same, r.Refused[0], r.Refused[1], ratio(0), ratio(1))
}

// DryRun reads answers of GET /api/v1/nodes that were taken every some time, and
// prints what autoscaling would have done. It cannot know what would have come of it:
// a machine that it starts does not come, and one that it stops goes on.
func DryRun(cfg autoscale.Config, r io.Reader, every time.Duration, w io.Writer) error {
	core := autoscale.NewCore(cfg)
	begin := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	d := json.NewDecoder(r)
	actions := 0
	for i := 0; ; i++ {
		var page struct {
			Nodes []struct {
				ID     string
				Role   string
				State  string
				Load   map[string]float64
				Labels map[string]string
			}
			Next string
		}
		switch err := d.Decode(&page); {
		case errors.Is(err, io.EOF):
			_, err := fmt.Fprintf(w, "%d listings, %d actions\n", i, actions)
			return err
		case err != nil:
			return fmt.Errorf("read listing %d of nodes: %w", i+1, err)
		case page.Next != "":
			return fmt.Errorf("read listing %d of nodes: it is one page of several", i+1)
		}
		var nodes []autoscale.Node
		for _, n := range page.Nodes {
			if n.Role != "edge" || n.Labels["group"] != cfg.Group {
				continue
			}
			load, reported := n.Load["effective"]
			nodes = append(nodes, autoscale.Node{
				ID: n.ID, Up: n.State == "up", Draining: n.State == "draining", Reported: reported, Load: load,
				Capacity: n.Load["egress_capacity_bps"], Sessions: n.Load["players"] + n.Load["publishers"],
			})
		}
		at := time.Duration(i) * every
		if a, ok := core.Step(begin.Add(at), nodes); ok {
			actions++
			if _, err := fmt.Fprintf(w, "%10v  %v\n", at, a); err != nil {
				return err
			}
		}
	}
}
