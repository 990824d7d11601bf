package bench

import "slices"

// summarize judges what all players got.
func (r *run) summarize() {
	rep := &r.report
	rep.TLS = r.t.tls
	rep.Protocol, rep.Streams, rep.Players, rep.Form = r.t.protocol, r.cfg.Streams, r.cfg.Players, r.cfg.Form
	rep.Errors = map[string]int{}
	ends := r.ends()
	for _, l := range r.lines {
		rep.PublishLateMS = max(rep.PublishLateMS, millis(l.latest()))
	}
	var joins, crowdJoins histogram
	r.summarizeLight(ends, &joins, &crowdJoins)
	r.summarizeProbes(ends, &joins)
	rep.FirstKeyFrame = joins.delays()
	if rep.Crowd != nil {
		rep.Crowd.FirstKeyFrame = crowdJoins.delays()
		rep.Crowd.Delay = r.delays(rep.Crowd.phase)
	}
	r.summarizeHLS()
	r.summarizeSlow()
}

func (r *run) summarizeLight(ends []position, joins, crowdJoins *histogram) {
	rep := &r.report
	var shares []float64
	r.eachLight(func(p *player) {
		if p.kind == stalled {
			if p.state == playerClosed {
				rep.Slow.StalledCut++
			}
			return
		}
		if p.err != nil {
			rep.Errors[p.err.Error()]++
		}
		switch {
		case p.state == playerClosed:
			rep.Closed++
		case p.firstKF == 0 && p.kind == ofCrowd:
			rep.Crowd.Failed++
		case p.firstKF == 0:
			rep.Failed++
		}
		if p.firstKF == 0 {
			return
		}
		if p.kind == ofCrowd {
			crowdJoins.add(p.firstKF)
		} else {
			joins.add(p.firstKF)
		}
		if p.headers != hasAllHeaders {
			rep.HeadersMissing++
		}
		at, ok := r.lines[p.stream].behindKey(p.from)
		if !ok || !p.marked {
			rep.Unmarked++
			return
		}
		if due := ends[p.stream].of(r.t.protocol) - at.of(r.t.protocol); due > 0 && p.kind == ofRun {
			shares = append(shares, float64(p.counted)/float64(due))
		}
	})
	rep.Light = sharesOf(shares)
}

func (r *run) summarizeProbes(ends []position, joins *histogram) {
	rep := &r.report
	var shares []float64
	for _, p := range r.probes {
		s := p.snapshot()
		rep.Probes.add(&s)
		rep.noteEnd(&s)
		if !s.playing {
			continue
		}
		joins.add(s.firstKF)
		if s.headers != hasAllHeaders {
			rep.HeadersMissing++
		}
		if at, ok := r.lines[p.stream].behindKey(s.from); ok && ends[p.stream].flv > at.flv {
			shares = append(shares, float64(s.bytes)/float64(ends[p.stream].flv-at.flv))
		}
	}
	rep.Probes.Share = sharesOf(shares)
}

func (r *run) summarizeSlow() {
	slow := r.report.Slow
	if slow == nil {
		return
	}
	var lasted histogram
	for _, p := range r.slow {
		s := p.snapshot()
		slow.Seen.add(&s)
		if s.ended != nil {
			slow.Cut++
			lasted.add(s.lasted)
		}
	}
	slow.CutAfter = lasted.delays()
}

// noteEnd counts a player that did not play to the end of the run, and why.
func (r *Report) noteEnd(s *sight) {
	switch {
	case s.playing && s.ended != nil:
		r.Closed++
	case !s.playing:
		r.Failed++
	}
	if s.ended != nil {
		r.Errors[s.ended.Error()]++
	}
}

func (p *Sight) add(s *sight) {
	p.Count++
	p.Frames += s.frames
	p.Gaps += s.gaps
	p.LostFrames += s.lost
	p.Torn += s.torn
	p.Disorder += s.disorder
	p.Foreign += s.foreign
}

// sharesOf sorts and sums up shares.
func sharesOf(s []float64) Shares {
	if len(s) == 0 {
		return Shares{}
	}
	slices.Sort(s)
	r := Shares{Count: len(s), Min: s[0], P1: s[len(s)/100]}
	for _, v := range s {
		r.Mean += v / float64(len(s))
		if v < enough {
			r.Slow++
		}
	}
	return r
}
