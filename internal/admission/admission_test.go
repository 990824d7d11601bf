package admission

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/discovery"
	"weir/internal/load"
	"weir/internal/session"
	"weir/internal/ticket"
	"weir/internal/vhost"
)

func newcomer(kind, protocol string) session.Newcomer {
	v := vhost.NewTable(nil).All()[0]
	return session.Newcomer{
		Kind: kind, Protocol: protocol, Remote: netip.MustParseAddrPort("192.0.2.7:1234"),
		Target: vhost.Target{Key: vhost.Key{Vhost: v.Name, App: "live", Name: "x"}, Vhost: v},
	}
}

// refused returns the refusal of a newcomer, nil if it was let in.
func refused(t *testing.T, g *Gate, n session.Newcomer) *session.Refusal {
	t.Helper()
	err := g.Admit(t.Context(), n)
	var r *session.Refusal
	if err != nil && !errors.As(err, &r) {
		t.Fatalf("error %v", err)
	}
	return r
}

func TestWhoIsLetIn(t *testing.T) {
	node := func(n session.Newcomer) session.Newcomer { n.Peer.Node = "edge-2"; return n }
	over := func(n session.Newcomer) session.Newcomer { n.OverQuota = true; return n }
	play, hls, publish := newcomer(session.KindPlay, "http-flv"), newcomer(session.KindHLS, "hls"), newcomer(session.KindPublish, "rtmp")
	soft, hard := load.Status{Effective: 0.85, Soft: true}, load.Status{Effective: 0.95, Soft: true, Hard: true}
	back := play.Target.Key
	back.Name = "back"
	returning := publish
	returning.Target.Key = back
	for name, c := range map[string]struct {
		status       load.Status
		newcomer     session.Newcomer
		edge, origin bool // is let in
	}{
		"player, calm":               {load.Status{}, play, true, true},
		"player over quota, calm":    {load.Status{}, over(play), true, true},
		"player, busy":               {soft, play, true, true},
		"player over quota, busy":    {soft, over(play), false, false},
		"player, full":               {hard, play, false, false},
		"viewer, busy":               {soft, hls, true, true},
		"viewer, full":               {hard, hls, false, false},
		"node, busy":                 {soft, node(play), true, true},
		"node, full":                 {hard, node(play), false, true},
		"publisher, busy":            {soft, publish, true, true},
		"publisher, full":            {hard, publish, true, false},
		"publisher of a node, full":  {hard, node(publish), true, false},
		"publisher comes back, full": {hard, returning, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			for role, want := range map[string]bool{"edge": c.edge, "origin": c.origin} {
				o := GateOptions{Config: DefaultConfig(), Status: func() load.Status { return c.status }, Set: metrics.NewSet()}
				if role == "edge" {
					o.TakePublishers = true
				} else {
					o.KeepNodes = true
					o.Returns = func(_ context.Context, n session.Newcomer) bool { return n.Target.Key == back }
				}
				r := refused(t, NewGate(o), c.newcomer)
				if (r == nil) != want {
					t.Errorf("%s: %v", role, r)
				}
				if r != nil && (r.Code != session.Overload || r.Text == "" || r.RetryAfter < time.Second || r.RetryAfter > time.Minute) {
					t.Errorf("%s: refused with %+v", role, r)
				}
			}
		})
	}
}

// scheduler chooses one node, or fails.
type scheduler struct {
	mu    sync.Mutex
	load  float64 // of the node
	err   error
	asked []discovery.PlaceQuery
}

func (s *scheduler) Place(_ context.Context, q discovery.PlaceQuery) (discovery.Placement, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, q)
	if s.err != nil {
		return discovery.Placement{}, s.err
	}
	return discovery.Placement{Nodes: []discovery.Placed{
		{ID: "edge-2", Addr: discovery.Addr{RTMP: "edge-2:1935", HTTP: "edge-2:8080"}, Load: s.load},
	}}, nil
}

func (s *scheduler) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

func TestWhoIsSentElsewhere(t *testing.T) {
	soft, hard := load.Status{Effective: 0.85, Soft: true}, load.Status{Effective: 0.95, Soft: true, Hard: true}
	with := func(n session.Newcomer, change func(*session.Newcomer)) session.Newcomer { change(&n); return n }
	node := func(n *session.Newcomer) { n.Peer.Node = "edge-9" }
	play, publish := newcomer(session.KindPlay, "http-flv"), newcomer(session.KindPublish, "rtmp")
	returns := publish
	returns.Target.Key.Name = "there already"
	key := ticket.NewKey("secret")
	told := func(to string, hops int) func(*session.Newcomer) {
		return func(n *session.Newcomer) {
			n.Ticket = key.Sign(n.Target.Key.String(), ticket.Ticket{Node: to, Hops: hops, Expires: time.Now().Add(ticket.Life)})
		}
	}
	const in, sent, out = "in", "sent", "refused"
	for name, c := range map[string]struct {
		status       load.Status
		newcomer     session.Newcomer
		other        float64 // load of the other node
		edge, origin string
	}{
		"calm":                          {load.Status{}, play, 0.1, in, in},
		"busy":                          {soft, play, 0.1, sent, sent},
		"busy, and the other one, too":  {soft, play, 0.82, in, in},
		"full":                          {hard, play, 0.1, sent, sent},
		"full, and the other one busy":  {hard, play, 0.94, sent, sent},
		"viewer, busy":                  {soft, newcomer(session.KindHLS, "hls"), 0.1, sent, sent},
		"viewer, full":                  {hard, newcomer(session.KindHLS, "hls"), 0.1, sent, sent},
		"WebSocket, busy":               {soft, newcomer(session.KindPlay, "ws-flv"), 0.1, in, in},
		"WebSocket, full":               {hard, newcomer(session.KindPlay, "ws-flv"), 0.1, out, out},
		"TLS, busy":                     {soft, with(play, func(n *session.Newcomer) { n.Secure = true }), 0.1, in, in},
		"TLS, full":                     {hard, with(play, func(n *session.Newcomer) { n.Secure = true }), 0.1, out, out},
		"RTMP player, busy":             {soft, newcomer(session.KindPlay, "rtmp"), 0.1, in, in},
		"RTMP player, full":             {hard, newcomer(session.KindPlay, "rtmp"), 0.1, sent, sent},
		"RTMP player that leaves, busy": {soft, with(newcomer(session.KindPlay, "rtmp"), func(n *session.Newcomer) { n.Leaving = true }), 0.84, sent, sent},
		"node that pulls, busy":         {soft, with(newcomer(session.KindPlay, "rtmp"), node), 0.1, in, in},
		"node that pulls, full":         {hard, with(newcomer(session.KindPlay, "rtmp"), node), 0.1, out, in},
		"publisher of a node, busy":     {soft, with(publish, node), 0.1, in, sent},
		"publisher of a node, full":     {hard, with(publish, node), 0.1, in, sent},
		"publisher, busy":               {soft, publish, 0.1, in, in},
		"publisher, full":               {hard, publish, 0.1, in, sent},
		"publisher that returns, busy":  {soft, with(returns, node), 0.1, in, in},
		"publisher that returns, full":  {hard, with(returns, node), 0.1, in, in},
		"chosen, busy":                  {soft, with(play, told("self", 1)), 0.1, in, in},
		"chosen, full":                  {hard, with(play, told("self", 1)), 0.1, sent, sent},
		"chosen after two, full":        {hard, with(play, told("self", 2)), 0.1, out, out},
		"meant for another, busy":       {soft, with(play, told("edge-3", 1)), 0.1, sent, sent},
		"meant for another after two":   {soft, with(play, told("edge-3", 2)), 0.1, in, in},
		"forged, busy":                  {soft, with(play, func(n *session.Newcomer) { n.Ticket = "1~self~1~9999999999~x" }), 0.1, sent, sent},
	} {
		t.Run(name, func(t *testing.T) {
			for role, want := range map[string]string{"edge": c.edge, "origin": c.origin} {
				s := &scheduler{load: c.other}
				o := GateOptions{
					Config: DefaultConfig(), Status: func() load.Status { return c.status }, Set: metrics.NewSet(),
					Node: "self", Placer: s, Secret: "secret", TakePublishers: role == "edge", KeepNodes: role == "origin",
				}
				if role == "origin" {
					o.Returns = func(_ context.Context, n session.Newcomer) bool { return n.Target.Key == returns.Target.Key }
				}
				err := NewGate(o).Admit(t.Context(), c.newcomer)
				var r *session.Redirect
				got := in
				switch {
				case errors.As(err, &r):
					got = sent
				case err != nil:
					got = out
				}
				if got != want {
					t.Errorf("%s: %s, want %s (%v)", role, got, want, err)
				}
				if r == nil {
					continue
				}
				wantHops := 1
				if t, err := key.Read(c.newcomer.Ticket, c.newcomer.Target.Key.String(), time.Now()); err == nil {
					wantHops = t.Hops + 1
				}
				if note, err := key.Read(r.Ticket, c.newcomer.Target.Key.String(), time.Now()); err != nil || note.Node != "edge-2" || note.Hops != wantHops {
					t.Errorf("%s: ticket %+v, %v", role, note, err)
				}
				if q := s.asked[0]; q.Exclude[0] != "self" || q.Stream != c.newcomer.Target.Key.String() || q.IP != c.newcomer.Remote.Addr() {
					t.Errorf("asked %+v", q)
				}
			}
		})
	}
}

// A scheduler that fails, or has nobody better, is left alone for a moment, and the
// newcomers are served or refused here.
func TestSchedulerIsLeftAlone(t *testing.T) {
	for name, s := range map[string]*scheduler{
		"fails":          {err: discovery.ErrUnavailable},
		"has none":       {err: discovery.ErrNoNode},
		"none is better": {load: 0.9},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := NewGate(GateOptions{
					Config: DefaultConfig(), Status: func() load.Status { return load.Status{Effective: 0.85, Soft: true} },
					Set: metrics.NewSet(), Node: "self", Placer: s,
				})
				for range 100 {
					if err := g.Admit(t.Context(), newcomer(session.KindPlay, "http-flv")); err != nil {
						t.Fatal(err)
					}
				}
				if s.count() != 1 {
					t.Errorf("asked %d times", s.count())
				}
				time.Sleep(pauseFailed)
				_ = g.Admit(t.Context(), newcomer(session.KindPlay, "http-flv"))
				if s.count() != 2 {
					t.Errorf("asked %d times in all", s.count())
				}
			})
		})
	}
}

// A viewer that was sent elsewhere and asks here for each playlist is sent to the same
// node each time, as long as this one is busy.
func TestViewersAreSentToOneNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		status, s := load.Status{Effective: 0.85, Soft: true}, &scheduler{load: 0.1}
		g := NewGate(GateOptions{Config: DefaultConfig(), Status: func() load.Status { return status }, Set: metrics.NewSet(), Node: "self", Placer: s})
		n := newcomer(session.KindHLS, "hls")
		for range 20 {
			var r *session.Redirect
			if err := g.Admit(t.Context(), n); !errors.As(err, &r) || r.HTTP != "edge-2:8080" {
				t.Fatalf("error %v", err)
			}
			if note, err := ticket.NewKey("").Read(r.Ticket, n.Target.Key.String(), time.Now()); err != nil || note.Hops != 1 {
				t.Fatalf("ticket %+v, %v", note, err)
			}
			time.Sleep(10 * time.Second)
		}
		if s.count() != 1 {
			t.Errorf("the scheduler was asked %d times", s.count())
		}
		status = load.Status{}
		if err := g.Admit(t.Context(), n); err != nil {
			t.Error(err)
		}
		status.Soft = true
		if err := g.Admit(t.Context(), n); err != nil {
			t.Errorf("a viewer that is here now: %v", err)
		}
	})
}

// Who watches HLS when the node becomes full goes on; who was away is new.
func TestViewersStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var status load.Status
		g := NewGate(GateOptions{Config: DefaultConfig(), Status: func() load.Status { return status }, Set: metrics.NewSet()})
		old, other := newcomer(session.KindHLS, "hls"), newcomer(session.KindHLS, "hls")
		other.Remote = netip.MustParseAddrPort("192.0.2.8:1")
		if refused(t, g, old) != nil {
			t.Fatal("refused by a calm node")
		}
		status = load.Status{Soft: true, Hard: true}
		old.Remote = netip.MustParseAddrPort("192.0.2.7:4321") // another connection
		for range 10 {
			time.Sleep(10 * time.Second)
			if r := refused(t, g, old); r != nil {
				t.Fatalf("a viewer that is here is refused: %v", r)
			}
			if refused(t, g, other) == nil {
				t.Fatal("a new viewer is let in")
			}
		}
		time.Sleep(viewerStays)
		if refused(t, g, old) == nil {
			t.Error("a viewer that was away is let in")
		}
	})
}

// audience is viewers of HLS that ask for a playlist every two seconds, as long as they
// are served here. It returns how many are left after the time, at most one question
// each.
func audience(t *testing.T, n int, during time.Duration, ask func(session.Newcomer) error) (left int) {
	t.Helper()
	away := map[int]bool{}
	for begin := time.Now(); time.Since(begin) < during; time.Sleep(2 * time.Second) {
		for i := range n {
			v := newcomer(session.KindHLS, "hls")
			v.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1)
			if away[i] {
				continue
			}
			err := ask(v)
			var r *session.Redirect
			switch {
			case errors.As(err, &r):
				away[i] = true
			case err != nil:
				t.Fatalf("viewer %d: %v", i, err)
			}
		}
	}
	return n - len(away)
}

// Viewers of HLS leave a node that is full for a better one, a share of them in each
// second, as players do, and only while it is full; none leaves if there is no other.
func TestViewersAreAskedToLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var status load.Status
		s := &scheduler{load: 0.1}
		cfg := DefaultConfig() // 2 % per second, after 5 s
		g := NewGate(GateOptions{Config: cfg, Status: func() load.Status { return status }, Set: metrics.NewSet(), Node: "self", Placer: s})
		const n = 2000
		admit := func(v session.Newcomer) error { return g.Admit(t.Context(), v) }
		if left := audience(t, n, 10*time.Second, admit); left != n {
			t.Errorf("calm: %d of %d are left", left, n)
		}
		status = load.Status{Effective: 0.95, Soft: true, Hard: true} // others burn the processors
		if left := audience(t, n, 20*time.Second, admit); left != n {
			t.Errorf("full through others: %d of %d are left", left, n)
		}
		status.Shed = true
		if left := audience(t, n, 5*time.Second, admit); left != n {
			t.Errorf("full for a moment: %d of %d are left", left, n)
		}
		// Of what is left each second 2 % go: after 20 s two thirds.
		left := audience(t, n, 20*time.Second, admit)
		if share := float64(left) / n; share < 0.6 || share > 0.75 {
			t.Errorf("full: %d of %d are left", left, n)
		}
		if got := g.shed.Get(); got != uint64(n-left) {
			t.Errorf("%d counted, %d left", got, n-left)
		}
		s.mu.Lock()
		s.err = discovery.ErrNoNode
		s.mu.Unlock()
		g = NewGate(GateOptions{Config: cfg, Status: func() load.Status { return status }, Set: metrics.NewSet(), Node: "self", Placer: s})
		status = load.Status{}
		audience(t, n, 2*time.Second, admit)
		status = load.Status{Effective: 0.95, Soft: true, Hard: true, Shed: true}
		if left := audience(t, n, 60*time.Second, admit); left != n {
			t.Errorf("without another node: %d of %d are left", left, n)
		}
	})
}

// In a drain viewers go when their share of the time is over, evenly; others than
// viewers that are here do not stay.
func TestViewersStayForTheirShareOfADrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(GateOptions{Config: DefaultConfig(), Status: func() load.Status { return load.Status{} }, Set: metrics.NewSet()})
		const n = 2000
		audience(t, n, 2*time.Second, func(v session.Newcomer) error { return g.Admit(t.Context(), v) })
		for share := range 11 {
			over := float64(share) / 10
			left := audience(t, n, 2*time.Second, func(v session.Newcomer) error {
				if g.Stays(v, func(share float64) bool { return over >= share }) {
					return nil
				}
				return &session.Redirect{HTTP: "edge-2:8080"}
			})
			if got := float64(left) / n; math.Abs(got-(1-over)) > 0.03 {
				t.Errorf("after %v of the time %v are left", over, got)
			}
		}
		stranger := newcomer(session.KindHLS, "hls")
		player := newcomer(session.KindPlay, "http-flv")
		for _, v := range []session.Newcomer{stranger, player} {
			if g.Stays(v, func(float64) bool { return false }) {
				t.Errorf("%s of %s stays", v.Kind, v.Remote)
			}
		}
	})
}

// A storm of players is let in at the rate, in order; publishers and nodes do not
// wait, and players of tenants over their quota are the first to be refused.
func TestStormIsSmoothed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.Rate, cfg.Burst, cfg.MaxWait = 200, 40, 2*time.Second
		// Half of the rate is for this process.
		g := NewGate(GateOptions{Config: cfg, Processes: 2, Status: func() load.Status { return load.Status{} }, Set: metrics.NewSet()})
		begin := time.Now()
		var mu sync.Mutex
		var in []time.Duration
		var later []time.Duration
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() {
				r := refused(t, g, newcomer(session.KindPlay, "http-flv"))
				mu.Lock()
				defer mu.Unlock()
				if r != nil {
					later = append(later, r.RetryAfter)
				} else {
					in = append(in, time.Since(begin))
				}
			})
		}
		time.Sleep(time.Millisecond)
		quota := newcomer(session.KindPlay, "http-flv")
		quota.OverQuota = true
		if r := refused(t, g, quota); r == nil || time.Since(begin) > time.Millisecond {
			t.Errorf("over quota: %v after %v", r, time.Since(begin))
		}
		node := newcomer(session.KindPlay, "rtmp")
		node.Peer.Node = "edge-2"
		for _, n := range []session.Newcomer{newcomer(session.KindPublish, "rtmp"), node} {
			if r := refused(t, g, n); r != nil || time.Since(begin) > time.Millisecond {
				t.Errorf("%s of node %q: %v after %v", n.Kind, n.Peer.Node, r, time.Since(begin))
			}
		}
		wg.Wait()
		// 20 at once, and 100 a second for two seconds.
		if len(in) < 215 || len(in) > 221 {
			t.Errorf("%d were let in", len(in))
		}
		slices.Sort(in)
		for i, at := range in {
			if due := max(0, time.Duration(i-19)*10*time.Millisecond); at < due-10*time.Millisecond || at > due+10*time.Millisecond {
				t.Fatalf("player %d was let in after %v, due after %v", i, at, due)
			}
		}
		for _, d := range later {
			if d < 2*time.Second || d > 10*time.Second {
				t.Fatalf("told to come back in %v", d)
			}
		}
		time.Sleep(10 * time.Second)
		at := time.Now()
		if r := refused(t, g, quota); r != nil || time.Since(at) != 0 {
			t.Errorf("after the storm: %v", r)
		}
	})
}

func TestWhoWaitsCanLeave(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Rate, cfg.Burst, cfg.MaxWait = 0.1, 1, time.Minute
	g := NewGate(GateOptions{Config: cfg, Status: func() load.Status { return load.Status{} }, Set: metrics.NewSet()})
	if r := refused(t, g, newcomer(session.KindPlay, "rtmp")); r != nil {
		t.Fatal(r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Admit(ctx, newcomer(session.KindPlay, "rtmp")); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestNoRateIsNoLimit(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Rate, cfg.MaxWait = 0, 0
	g := NewGate(GateOptions{Config: cfg, Status: func() load.Status { return load.Status{} }, Set: metrics.NewSet()})
	for range 10_000 {
		if r := refused(t, g, newcomer(session.KindPlay, "rtmp")); r != nil {
			t.Fatal(r)
		}
	}
}

// crowd is players that leave when they are asked.
type crowd struct {
	mu   sync.Mutex
	ids  []string
	left map[string]time.Time
}

func (c *crowd) Sheddable() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.ids)
}

func (c *crowd) Shed(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.ids, id)
	if i < 0 {
		return false
	}
	c.ids = slices.Delete(c.ids, i, i+1)
	c.left[id] = time.Now()
	return true
}

func TestPlayersAreAskedToLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &crowd{left: map[string]time.Time{}}
		for i := range 500 {
			c.ids = append(c.ids, fmt.Sprint(i))
		}
		var mu sync.Mutex
		var status load.Status
		set := func(s load.Status) { mu.Lock(); defer mu.Unlock(); status = s }
		s := NewShedder(DefaultConfig(), func() load.Status { mu.Lock(); defer mu.Unlock(); return status }, c,
			slog.New(slog.DiscardHandler), metrics.NewSet())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		count := func() int { c.mu.Lock(); defer c.mu.Unlock(); return len(c.left) }

		set(load.Status{Soft: true})
		time.Sleep(time.Minute)
		set(load.Status{Soft: true, Hard: true}) // but it is not the node's own doing
		time.Sleep(time.Minute)
		if n := count(); n != 0 {
			t.Fatalf("%d were asked although the node is not full", n)
		}
		set(load.Status{Soft: true, Hard: true, Shed: true})
		begin := time.Now()
		time.Sleep(4900 * time.Millisecond)
		if n := count(); n != 0 {
			t.Errorf("%d were asked before shed_after", n)
		}
		time.Sleep(10 * time.Second)
		if n := count(); n < 60 || n > 110 { // 2 % of 500 each second, and then fewer
			t.Errorf("%d were asked in ten seconds", n)
		}
		c.mu.Lock()
		for i := range 60 { // in the order that the sessions say
			if _, ok := c.left[fmt.Sprint(i)]; !ok {
				t.Errorf("%d was passed over", i)
			}
		}
		var times []time.Duration
		for _, at := range c.left {
			times = append(times, at.Sub(begin))
		}
		c.mu.Unlock()
		slices.Sort(times)
		for i := 1; i < len(times); i++ {
			if times[i] == times[i-1] {
				t.Fatalf("two were asked at once, after %v", times[i])
			}
		}
		set(load.Status{Soft: true})
		time.Sleep(2 * time.Second)
		before := count()
		time.Sleep(time.Minute)
		if n := count(); n != before {
			t.Errorf("%d were asked when the node was no more full", n-before)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Few players leave too: of two one after some 30 s, the other after 50 s more.
func TestFewPlayersLeaveSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &crowd{ids: []string{"a", "b"}, left: map[string]time.Time{}}
		s := NewShedder(DefaultConfig(), func() load.Status { return load.Status{Hard: true, Shed: true} }, c,
			slog.New(slog.DiscardHandler), metrics.NewSet())
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
		defer cancel()
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
		if len(c.left) != 1 {
			t.Errorf("%d left", len(c.left))
		}
	})
}

func TestConfig(t *testing.T) {
	good := DefaultConfig()
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for key, change := range map[string]func(*Config){
		"rate":       func(c *Config) { c.Rate = math.NaN() },
		"burst":      func(c *Config) { c.Burst = 0 },
		"max_wait":   func(c *Config) { c.MaxWait = time.Hour },
		"shed_after": func(c *Config) { c.ShedAfter = -1 },
		"shed_rate":  func(c *Config) { c.ShedRate = 2 },
	} {
		c := DefaultConfig()
		change(&c)
		if err := c.Validate(); err == nil || err.Error()[:len(key)] != key {
			t.Errorf("%s: %v", key, err)
		}
	}
}
