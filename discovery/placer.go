package discovery

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/discovery/schedule"
	"weir/internal/repeat"
)

// ErrNoNode says that the directory has no node that can take a session now.
// Asking again later may find one. It arrives wrapped.
var ErrNoNode = schedule.ErrNoNode

// Placer chooses nodes for sessions from those that an engine lists. Run keeps its
// picture of them; until the first one it has no node. Safe for concurrent use.
type Placer struct {
	engine Engine
	sched  *schedule.Scheduler
	log    *slog.Logger

	placed, refused map[schedule.Action]*metrics.Counter

	said repeat.Filter[schedule.Action] // refusals
}

// placerRefresh is how often the nodes are listed anew. Sessions placed meanwhile
// are counted as reservations.
const placerRefresh = 200 * time.Millisecond

// NewPlacer returns a placer of the nodes of engine. cfg must be valid; locate, log
// and set may be nil.
func NewPlacer(engine Engine, cfg schedule.Config, locate schedule.Locator, log *slog.Logger, set *metrics.Set) *Placer {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if set == nil {
		set = metrics.NewSet()
	}
	p := &Placer{
		engine: engine, sched: schedule.New(cfg, locate, uint64(time.Now().UnixNano())), log: log,
		said:   repeat.Filter[schedule.Action]{Every: 10 * time.Second},
		placed: make(map[schedule.Action]*metrics.Counter), refused: make(map[schedule.Action]*metrics.Counter),
	}
	for _, a := range []schedule.Action{schedule.Play, schedule.Publish} {
		p.placed[a] = set.GetOrCreateCounter(`weir_schedule_decisions_total{role="` + string(a) + `",result="placed"}`)
		p.refused[a] = set.GetOrCreateCounter(`weir_schedule_decisions_total{role="` + string(a) + `",result="no_node"}`)
	}
	return p
}

// Run lists the nodes until ctx ends. It returns nil.
func (p *Placer) Run(ctx context.Context) error {
	tick := time.NewTicker(placerRefresh)
	defer tick.Stop()
	failed := false
	for {
		err := p.Refresh(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failed:
			p.log.Warn("nodes for scheduling cannot be listed", "err", err)
		case err == nil && failed:
			p.log.Info("nodes for scheduling are listed again")
		}
		failed = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Refresh takes over the nodes that the engine lists now. With an error those from
// before stay, until their reports are too old.
func (p *Placer) Refresh(ctx context.Context) error {
	nodes, err := AllNodes(ctx, p.engine)
	if err != nil {
		return err
	}
	known := make([]schedule.Node, len(nodes))
	for i := range nodes {
		known[i] = schedulable(&nodes[i])
	}
	p.sched.Update(time.Now(), known)
	return nil
}

// AllNodes returns all nodes of an engine, page by page.
func AllNodes(ctx context.Context, engine Engine) ([]Node, error) {
	var all []Node
	for q := (NodeQuery{}); ; {
		page, next, err := engine.Nodes(ctx, q)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		if next == "" {
			return all, nil
		}
		q.After = next
	}
}

// The keys of Node.Load and Node.Labels that count for scheduling.
const (
	LoadEffective = "effective" // 1 is all that the node can take; without it the node counts as full
	LoadPlayers   = "players"
	LoadPublished = "publishers"
	LoadEgress    = "egress_bps" // bits per second
	LoadCapacity  = "egress_capacity_bps"

	LabelRegion = "region"
	LabelGroup  = "group"
	LabelTier   = "tier"
	LabelCost   = "cost"   // of a gigabyte, a number
	LabelWeight = "weight" // for the policy weighted, a number
)

// schedulable returns a node as the scheduler knows it.
func schedulable(n *Node) schedule.Node {
	load, reported := n.Load[LoadEffective]
	return schedule.Node{
		ID: n.ID, Instance: n.Instance, Role: string(n.Role), State: string(n.State),
		RTMP: n.Addr.RTMP, HTTP: n.Addr.HTTP, API: n.Addr.API,
		Region: n.Labels[LabelRegion], Group: n.Labels[LabelGroup], Tier: n.Labels[LabelTier],
		Cost: number(n.Labels[LabelCost]), Weight: number(n.Labels[LabelWeight]),
		Load: max(0, load), Reported: reported,
		Capacity: max(0, n.Load[LoadCapacity]), Egress: max(0, n.Load[LoadEgress]),
		Sessions: max(0, n.Load[LoadPlayers]) + max(0, n.Load[LoadPublished]), Seen: n.Seen,
	}
}

// number returns the value of a label that should be a number from 0 on; 0 if it is
// none.
func number(s string) float64 {
	x, err := strconv.ParseFloat(s, 64)
	if err != nil || !(x >= 0 && x <= 1e12) {
		return 0
	}
	return x
}

// Place chooses nodes. The error is ErrNoNode if there is none. why asks for the
// reasons in the choice's decision.
func (p *Placer) Place(ctx context.Context, r schedule.Request, why bool) (schedule.Choice, error) {
	if r.Action == schedule.Publish && r.Stream != "" && r.Owner == "" {
		// Who comes back should meet the node that keeps its name. Without an answer
		// it is placed like any other.
		if l, err := p.engine.Lookup(ctx, r.Stream); err == nil {
			r.Owner = l.Node
		}
	}
	c, err := p.sched.Decide(time.Now(), r, why)
	if r.Peek {
		return c, err
	}
	if err == nil {
		p.placed[r.Action].Inc()
		return c, nil
	}
	p.refused[r.Action].Inc()
	p.noteRefusal(r, err)
	return c, err
}

// Decisions returns decisions that were made; see schedule.Scheduler.
func (p *Placer) Decisions(after uint64, limit, maxNodes int) (page []schedule.Decision, last uint64) {
	return p.sched.Decisions(after, limit, maxNodes), p.sched.LastDecision()
}

// Node returns what is known of a node, by its id in lower case; nil if there is
// none.
func (p *Placer) Node(id string) *schedule.Facts { return p.sched.Node(id) }

// noteRefusal logs the first of 10 s.
func (p *Placer) noteRefusal(r schedule.Request, err error) {
	if n, _ := p.said.Due(r.Action, time.Now()); n > 0 {
		p.log.Warn("no node for a session", "role", r.Action, "stream", r.Stream, "sessions", n, "err", err)
	}
}

// placeRequest checks what a client asks for.
func placeRequest(q map[string]string) (r schedule.Request, err error) {
	bad := func(format string, args ...any) (schedule.Request, error) {
		return r, fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
	}
	switch r.Action = schedule.Action(q["role"]); r.Action {
	case schedule.Play, schedule.Publish:
	default:
		return bad("role %q is not play or publish", q["role"])
	}
	if r.Stream = q["stream"]; r.Stream != "" {
		if err := CheckStream(r.Stream); err != nil {
			return r, err
		}
	}
	if r.Vhost = q["vhost"]; len(r.Vhost) > maxValueLen || !printable(r.Vhost) {
		return bad("vhost is longer than %d bytes or not printable", maxValueLen)
	}
	if r.Region = q["region"]; len(r.Region) > maxValueLen || !printable(r.Region) {
		return bad("region is longer than %d bytes or not printable", maxValueLen)
	}
	switch r.NodeRole = q["node_role"]; r.NodeRole {
	case "", string(RoleEdge), string(RoleOrigin):
	default:
		return bad("node_role %q is not edge or origin", r.NodeRole)
	}
	switch r.Protocol = q["protocol"]; r.Protocol {
	case "", "rtmp", "http":
	default:
		return bad("protocol %q is not rtmp or http", r.Protocol)
	}
	if r.Client, err = clientAddr(q["ip"]); err != nil {
		return r, err
	}
	if r.Exclude, err = nodeList(q["exclude"]); err != nil {
		return r, err
	}
	if s := q["bit_rate"]; s != "" {
		x, err := strconv.ParseFloat(s, 64)
		if err != nil || !(x >= 0 && x <= 1e12) {
			return bad("bit_rate %q is not a number of bits per second", s)
		}
		r.BitRate = x
	}
	if s := q["limit"]; s != "" {
		if r.Limit, err = strconv.Atoi(s); err != nil || r.Limit < 1 || r.Limit > schedule.MaxChoice {
			return bad("limit %q is not between 1 and %d", s, schedule.MaxChoice)
		}
	}
	if r.Peek, err = flag("peek", q["peek"]); err != nil {
		return r, err
	}
	return r, nil
}
