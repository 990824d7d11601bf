package model

import (
	"maps"
	"slices"
)

// Rule is a promise.
type Rule string

// The rules. docs/chaos.md says what each means for a user.
const (
	// RuleOwner: at most one node holds an epoch of a stream.
	RuleOwner Rule = "one-owner-per-epoch"
	// RuleEpochs: of all epochs that a node has of a stream, the next is larger.
	RuleEpochs Rule = "epochs-grow"
	// RuleOneLive: in a calm a stream has one live owner at most.
	RuleOneLive Rule = "one-live-owner"
	// RuleHomeless: in a calm each publisher publishes.
	RuleHomeless Rule = "publishers-have-a-home"
	// RuleOlder: a player that has seen a frame of an incarnation sees none of an
	// earlier one.
	RuleOlder Rule = "never-an-older-epoch"
	// RuleOrder: within an incarnation each frame of a kind is later than the one before.
	RuleOrder Rule = "frames-in-order"
	// RuleGap: after a gap in the video comes a key frame.
	RuleGap Rule = "gaps-end-at-key-frames"
	// RuleDamaged: frames are what was published.
	RuleDamaged Rule = "frames-unchanged"
	// RuleTime: time stamps do not run back.
	RuleTime Rule = "time-goes-on"
	// RuleHeaders: decoder headers come before frames, and a key frame first.
	RuleHeaders Rule = "headers-first"
	// RuleAnswer: requests are answered within their bound.
	RuleAnswer Rule = "answered-in-time"
	// RuleNamed: requests that are not granted get an error with a name.
	RuleNamed Rule = "errors-have-names"
	// RuleCut: players are not cut while their stream lives.
	RuleCut Rule = "players-are-not-cut"
	// RuleStuck: in a calm players get new frames.
	RuleStuck Rule = "players-are-not-stuck"
	// RuleMerge: in a calm a node pulls each stream once.
	RuleMerge Rule = "one-pull-per-node"
	// RuleHops: a node that is sent in a circle goes a few steps and gives up.
	RuleHops Rule = "few-hops"
	// RuleDeaf: in a calm nodes are ready and answer.
	RuleDeaf Rule = "nodes-answer"
	// RuleDied: processes do not end by themselves.
	RuleDied Rule = "nodes-live"
	// RuleLeft: nothing is left of the load.
	RuleLeft Rule = "nothing-is-left"
	// RuleHistory: the history itself makes sense.
	RuleHistory Rule = "history"
)

func (m *Model) own(e Event, n *node, s *stream) {
	old, had := n.owned[e.Stream]
	if len(m.live(e.Stream)) <= 1 {
		s.doubled = e.T // if it is by this event that there are two
	}
	if e.Own == nil {
		delete(n.owned, e.Stream)
		return
	}
	n.owned[e.Stream] = *e.Own
	if e.Own.Epoch == 0 {
		return
	}
	if other := s.epochs[e.Own.Epoch]; other != "" && other != e.Node {
		m.breach(RuleOwner, e, "epoch %d of %s is held by %s and by %s", e.Own.Epoch, e.Stream, other, e.Node)
	}
	s.epochs[e.Own.Epoch] = e.Node
	if had && e.Own.Epoch < old.Epoch {
		m.breach(RuleEpochs, e, "%s had epoch %d of %s and then %d", e.Node, old.Epoch, e.Stream, e.Own.Epoch)
	}
	if inc := s.incs[s.byLocal[e.Own.From]]; inc != nil && e.Own.Live {
		if inc.least == 0 || e.Own.Epoch < inc.least {
			inc.least = e.Own.Epoch
		}
		inc.most = max(inc.most, e.Own.Epoch)
	}
}

func (m *Model) publish(e Event, s *stream) {
	switch e.Kind {
	case KindPublish:
		m.counts.Publishes++
		m.players[e.Conn] = &player{stream: e.Stream, node: e.Node, asked: e.T}
		s.incs[e.Inc] = &incarnation{}
	case KindPublishing:
		if p := m.players[e.Conn]; p != nil {
			p.answered = true
			m.inTime(e, p, m.setup.Bounds.Accept, "a publisher was let in")
		}
		if inc := s.incs[e.Inc]; inc != nil {
			inc.begun = e.T
		}
		s.byLocal[e.Local] = e.Inc
		s.publisher, s.last = e.Conn, e.T
	case KindUnpublished:
		p := m.players[e.Conn]
		delete(m.players, e.Conn)
		if s.publisher == e.Conn {
			s.publisher, s.last = 0, e.T
		}
		if p != nil && !p.answered {
			m.inTime(e, p, m.setup.Bounds.Accept, "a publisher was refused")
			m.named(e, p, "publisher")
		}
	}
}

// inTime judges how long an answer took.
func (m *Model) inTime(e Event, p *player, bound int64, what string) {
	if e.End != nil && e.End.Why == "left" {
		return
	}
	if took := m.inOrder(p.node, p.asked, e.T); took > bound {
		e.Stream, e.Node = p.stream, p.node
		m.breach(RuleAnswer, e, "%s by %s after %d ms in which that was in order, which is more than %d ms (%s)", what, p.node, took, bound, p.stream)
	}
}

// named judges the answer to a request that was not granted.
func (m *Model) named(e Event, p *player, who string) {
	if e.End.Why == "left" || e.End.Why == "redirected" || e.End.Why == "refused" && e.End.Code != "" || m.excused(p.node, e.T) {
		return
	}
	e.Stream, e.Node = p.stream, p.node
	m.breach(RuleNamed, e, "a %s of %s got no answer from %s: %s (%s)", who, p.stream, p.node, e.End.Why, e.Text)
}

func (m *Model) play(e Event, p *player) {
	e.Stream, e.Node = p.stream, p.node
	s := m.streams[p.stream]
	switch e.Kind {
	case KindPlaying:
		if !p.answered {
			p.answered = true
			m.inTime(e, p, m.setup.Bounds.Answer, "a player was let in")
		}
		if s.Absent || s.Circle {
			m.breach(RuleNamed, e, "%s has %s, which nobody publishes", p.node, p.stream)
		}
	case KindRun:
		m.frames(e, p, s)
	case KindDamaged:
		m.breach(RuleDamaged, e, "a player of %s at %s got what was not published: %s", p.stream, p.node, e.Text)
	case KindEnd:
		m.ended(e, p, s)
		delete(m.players, e.Conn)
	}
}

// hop judges a redirect by those of the second before it.
func (m *Model) hop(e Event, s *stream) {
	m.counts.Hops++
	recent := append(s.hops[e.Peer], e.T)
	for e.T-recent[0] >= 1000 {
		recent = recent[1:]
	}
	if len(recent) > m.setup.Bounds.Hops {
		m.breach(RuleHops, e, "%s followed %d redirects of %s in a second, which is more than %d", e.Peer, len(recent), e.Stream, m.setup.Bounds.Hops)
		recent = nil // told once a second at most
	}
	s.hops[e.Peer] = recent
}

func (m *Model) ended(e Event, p *player, s *stream) {
	if !p.answered {
		m.inTime(e, p, m.setup.Bounds.Answer, "a player was refused")
		m.named(e, p, "player")
		return
	}
	// At an origin a stream may end because its publisher has gone to another one.
	if e.End.Why == "left" || s.Contested || m.nodes[p.node].role != "edge" || m.excused(p.node, e.T) {
		return
	}
	away := s.publisher == 0 && e.T-s.last >= m.setup.Bounds.Absence
	switch {
	case away:
	case e.End.Why == "silent":
		// Faults elsewhere may be the reason; calms tell.
	default:
		m.breach(RuleCut, e, "%s cut a player of %s: %s %s (%s)", p.node, p.stream, e.End.Why, e.End.Code, e.Text)
	}
}

func (m *Model) frames(e Event, p *player, s *stream) {
	r := e.Run
	m.counts.Frames += r.To - r.From + 1
	m.counts.ByNode[p.node] += r.To - r.From + 1
	l := &p.lines[0]
	if r.Video {
		l = &p.lines[1]
	}
	if r.To < r.From || r.Inc <= 0 {
		m.breach(RuleHistory, e, "a run from %d to %d", r.From, r.To)
		return
	}
	if r.Back || l.begun && int32(r.First-l.stamp) < 0 || int32(r.Last-r.First) < 0 {
		m.breach(RuleTime, e, "the time of a player of %s at %s ran back to %d ms at frame %d (video: %t)", p.stream, p.node, r.First, r.From, r.Video)
	}
	switch {
	case r.Inc < p.newest && s.Contested:
		s.returns = append(s.returns, step{e.T, e.Conn, p.newest, r.Inc})
	case r.Inc < p.newest:
		m.breach(RuleOlder, e, "a player of %s at %s saw frame %d of incarnation %d after incarnation %d", p.stream, p.node, r.From, r.Inc, p.newest)
	case l.begun && r.Inc == l.inc && r.From <= l.seq:
		m.breach(RuleOrder, e, "a player of %s at %s saw frame %d of incarnation %d after frame %d (video: %t)", p.stream, p.node, r.From, r.Inc, l.seq, r.Video)
	}
	if inc := s.incs[r.Inc]; p.framed && r.Inc > p.newest && inc != nil && inc.begun > p.asked && m.nodes[p.node].role == "edge" {
		m.counts.Waits = append(m.counts.Waits, max(0, r.At-inc.begun))
	}
	next := l.begun && r.Inc == l.inc && r.From == l.seq+1
	switch {
	case !r.Header:
		m.breach(RuleHeaders, e, "a player of %s at %s saw frame %d before the decoder header (video: %t)", p.stream, p.node, r.From, r.Video)
	case !r.Video || next || r.Key:
	case !l.begun:
		m.breach(RuleHeaders, e, "a player of %s at %s began with frame %d, which is no key frame", p.stream, p.node, r.From)
	default:
		m.breach(RuleGap, e, "a player of %s at %s saw frame %d of incarnation %d, which is no key frame, after frame %d of incarnation %d",
			p.stream, p.node, r.From, r.Inc, l.seq, l.inc)
	}
	*l = line{begun: true, inc: r.Inc, seq: r.To, stamp: r.Last}
	p.newest = max(p.newest, r.Inc)
	if s.Contested {
		p.newest = r.Inc
	}
	p.framed, p.fresh = true, e.T
}

// judgeReturns judges players of a contested stream that have come back to the
// publisher before: its epoch must have become the later one.
func (m *Model) judgeReturns(name string, s *stream) {
	for _, r := range s.returns {
		from, to := s.incs[r.from], s.incs[r.to]
		if from == nil || to == nil || from.least == 0 || to.most == 0 || to.most > from.least {
			continue
		}
		m.breach(RuleOlder, Event{T: r.t, Stream: name, Conn: r.conn}, "a player of %s saw incarnation %d of epoch %d after incarnation %d of epoch %d",
			name, r.to, to.most, r.from, from.least)
	}
}

func (m *Model) calmBegins(e Event) {
	m.calm = &calm{from: e.T, players: map[int]bool{}, publishers: map[string]bool{}}
	for conn, p := range m.players {
		if s := m.streams[p.stream]; p.framed && !s.Contested {
			m.calm.players[conn] = true
		}
	}
}

func (m *Model) calmEnds(e Event) {
	c := m.calm
	m.calm = nil
	if c == nil {
		m.breach(RuleHistory, e, "a calm ends that has not begun")
		return
	}
	if m.lagged(c.from, e.T) || len(m.faults) > 0 {
		return // nobody was there to see it, or it was none
	}
	m.counts.Calms++
	for _, conn := range slices.Sorted(maps.Keys(c.players)) {
		if p := m.players[conn]; p != nil && p.fresh < c.from {
			e := e
			e.Conn, e.Stream, e.Node = conn, p.stream, p.node
			m.breach(RuleStuck, e, "a player of %s at %s got no frame in a calm of %d ms, and none for %d ms", p.stream, p.node, e.T-c.from, e.T-p.fresh)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.streams)) {
		m.judgeStream(e, name, m.streams[name])
	}
	for _, name := range slices.Sorted(maps.Keys(m.nodes)) {
		if n := m.nodes[name]; n.deaf != "" && e.T-n.deafened > moment {
			e := e
			e.Node = name
			m.breach(RuleDeaf, e, "%s does not answer for %d ms: %s", name, e.T-n.deafened, n.deaf)
		}
	}
}

// moment is how long, in ms, two nodes may seem to have a stream, or a stream to
// be pulled twice, because it moves and not all were asked at the same instant.
const moment = 1500

// live returns the nodes that say that they have a stream's publisher.
func (m *Model) live(name string) []string {
	var live []string
	for node, n := range m.nodes {
		if n.owned[name].Live {
			live = append(live, node)
		}
	}
	slices.Sort(live)
	return live
}

// pulls are the pulls of a stream by one node.
type pulls struct {
	from map[string]int // how many, by the node where they are
	many int64          // since when there is more than one
}

func (p *pulls) sum() int {
	sum := 0
	for _, n := range p.from {
		sum += n
	}
	return sum
}

func (m *Model) pulled(e Event, s *stream) {
	p := s.pulls[e.Peer]
	if p == nil {
		p = &pulls{from: map[string]int{}}
		s.pulls[e.Peer] = p
	}
	was := p.sum()
	p.from[e.Node] = e.Count
	if was <= 1 {
		p.many = e.T
	}
}

// judgeStream judges who has a stream at the end of a calm.
func (m *Model) judgeStream(e Event, name string, s *stream) {
	e.Stream = name
	if s.Absent || s.Circle {
		return
	}
	if live := m.live(name); len(live) > 1 && e.T-s.doubled > moment {
		m.breach(RuleOneLive, e, "%s is live at %v, for %d ms", name, live, e.T-s.doubled)
	}
	for _, peer := range slices.Sorted(maps.Keys(s.pulls)) {
		if p := s.pulls[peer]; p.sum() > 1 && e.T-p.many > moment {
			e := e
			e.Peer = peer
			m.breach(RuleMerge, e, "%s pulls %s %d times, for %d ms", peer, name, p.sum(), e.T-p.many)
		}
	}
	if !s.Contested && s.publisher == 0 && m.calmSince(s.last) {
		m.breach(RuleHomeless, e, "the publisher of %s has found no node for %d ms", name, e.T-s.last)
	}
}

// calmSince reports whether a publisher that lost its place at t has had the
// time of an answer to find another one.
func (m *Model) calmSince(t int64) bool { return m.now-t > m.setup.Bounds.Accept }

func (m *Model) left(e Event) {
	l := e.Left
	if l.After > l.Before+m.setup.Bounds.Allowed(l.What) {
		m.breach(RuleLeft, e, "%s: %d %s before the load, %d after it", e.Text, l.Before, l.What, l.After)
	}
}
