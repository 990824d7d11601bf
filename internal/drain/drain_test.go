package drain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// crowd is the sessions of a process: players leave at once when they are moved.
type crowd struct {
	mu         sync.Mutex
	players    map[string]bool
	publishers int
	moved      []time.Time
	cutAt      time.Time
}

func newCrowd(players, publishers int) *crowd {
	c := &crowd{players: map[string]bool{}, publishers: publishers}
	for i := range players {
		c.players[fmt.Sprint(i)] = true
	}
	return c
}

func (c *crowd) Census() (int, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.players), c.publishers
}

func (c *crowd) Movable() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []string
	for id := range c.players {
		ids = append(ids, id)
	}
	return ids
}

func (c *crowd) Move(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.players[id] {
		return false
	}
	delete(c.players, id)
	c.moved = append(c.moved, time.Now())
	return true
}

func (c *crowd) Cut(publishers bool) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.players)
	if publishers {
		n += c.publishers
		c.publishers = 0
	}
	if n > 0 {
		c.cutAt = time.Now()
	}
	clear(c.players)
	return n
}

func (c *crowd) times() []time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.moved)
}

// leave takes n players out as if they had left by themselves.
func (c *crowd) leave(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.players {
		if n--; n < 0 {
			return
		}
		delete(c.players, id)
	}
}

// start runs a process in a bubble of synctest.
func start(t *testing.T, c *crowd) *Process {
	p := NewProcess(c, slog.New(slog.DiscardHandler), metrics.NewSet())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return p
}

// perSecond returns the largest number of moves in any second.
func perSecond(moved []time.Time) (most int) {
	for i, from := range moved {
		n := 0
		for _, at := range moved[i:] {
			if at.Sub(from) < time.Second {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// However many players there are and whatever rate is asked for, they leave evenly
// and before the deadline.
func TestPlayersAreMovedEvenly(t *testing.T) {
	f := func(name string, players int, deadline time.Duration, rate float64, wantLast time.Duration, wantPerSecond int) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCrowd(players, 0)
				p := start(t, c)
				begin := time.Now()
				p.Apply(&Order{Since: begin, Until: begin.Add(deadline), KickRate: rate})
				time.Sleep(deadline - time.Millisecond)
				synctest.Wait()
				if left, _ := c.Census(); left != 0 {
					t.Fatalf("%d players are left at the deadline", left)
				}
				times := c.times()
				last := times[len(times)-1].Sub(begin)
				if last > wantLast || last < wantLast*6/10 {
					t.Errorf("the last one left after %v, want about %v", last, wantLast)
				}
				if most := perSecond(c.times()); most > wantPerSecond {
					t.Errorf("%d players left in one second, want at most %d", most, wantPerSecond)
				}
				if n := p.Apply(&Order{Since: begin, Until: begin.Add(deadline), KickRate: rate}); n.Moved != players || n.Cut != 0 {
					t.Errorf("progress %+v", n)
				}
			})
		})
	}
	f("a minute", 1000, time.Minute, 0, 58*time.Second, 2*1000/60)
	f("few", 3, time.Minute, 0, 58*time.Second, 1)
	f("short", 100, time.Second, 0, 900*time.Millisecond, 100)
	f("fixed rate", 100, time.Minute, 10, 10*time.Second, 20)
}

func TestWhoLeavesByItselfLeavesNoHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(1000, 0)
		p := start(t, c)
		p.Apply(&Order{Since: time.Now(), Until: time.Now().Add(time.Minute)})
		time.Sleep(10 * time.Second)
		c.leave(700)
		time.Sleep(49 * time.Second)
		if most := perSecond(c.times()); most > 2*1000/60 {
			t.Errorf("%d players left in one second", most)
		}
		if left, _ := c.Census(); left != 0 {
			t.Errorf("%d players are left", left)
		}
	})
}

func TestWhatIsLeftIsCutAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(100, 5)
		p := start(t, c)
		begin := time.Now()
		o := &Order{Since: begin, Until: begin.Add(10 * time.Second), KickRate: 1}
		p.Apply(o)
		time.Sleep(9900 * time.Millisecond)
		if n := p.Apply(o); n.Cut != 0 || n.Publishers != 5 || n.Players < 85 {
			t.Errorf("before the deadline: %+v", n)
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if n := p.Apply(o); n.left() != 0 || n.Cut+n.Moved != 105 {
			t.Errorf("after the deadline: %+v", n)
		}
		if d := c.cutAt.Sub(begin); d != 10*time.Second {
			t.Errorf("cut after %v", d)
		}
	})
}

// The shares of a drain's time are over one after the other, the last when the last
// player should have been moved.
func TestSharesOfADrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewProcess(newCrowd(0, 0), slog.New(slog.DiscardHandler), metrics.NewSet())
		if p.Past(0) {
			t.Error("a process that serves is past something")
		}
		begin := time.Now()
		p.Apply(&Order{Since: begin, Until: begin.Add(10 * time.Second)})
		for _, c := range []struct {
			after time.Duration
			share float64
			want  bool
		}{{0, 0, true}, {0, 0.01, false}, {4 * time.Second, 0.4, true}, {4 * time.Second, 0.5, false}, {9 * time.Second, 1, true}} {
			time.Sleep(c.after - time.Since(begin))
			if got := p.Past(c.share); got != c.want {
				t.Errorf("after %v: past %v is %v", c.after, c.share, got)
			}
		}
	})
}

// A process that retires keeps its publishers for longer than its players, and for no
// longer than a drain of the node lasts.
func TestARetiringProcessKeepsPublishers(t *testing.T) {
	f := func(drained, want time.Duration) { // a drain of the node, 0 for none
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			c, begin := newCrowd(3, 2), time.Now()
			p := start(t, c)
			p.Retire(Order{Since: begin, Until: begin.Add(time.Minute), Publishers: begin.Add(time.Hour)})
			p.Apply(nil)
			if p.Draining() {
				t.Error("whom it has accepted is turned away")
			}
			time.Sleep(61 * time.Second)
			if n := p.Apply(nil); n.Players != 0 || n.Publishers != 2 {
				t.Errorf("at the end of the players' time: %+v", n)
			}
			if drained > 0 {
				p.Apply(&Order{Since: begin, Until: begin.Add(drained)})
				if !p.Draining() {
					t.Error("the node drains, and takes new sessions")
				}
				p.Apply(nil)
			}
			time.Sleep(3 * time.Hour)
			synctest.Wait()
			if got := c.cutAt.Sub(begin); got.Round(time.Second) != want {
				t.Errorf("the publishers were cut after %v, want %v", got, want)
			}
		})
	}
	f(0, time.Hour)
	f(2*time.Minute, 2*time.Minute)
	f(2*time.Hour, time.Hour)
}

func TestADrainThatIsTakenBackMovesNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(100, 5)
		p := start(t, c)
		o := &Order{Since: time.Now(), Until: time.Now().Add(10 * time.Second)}
		p.Apply(o)
		if !p.Draining() {
			t.Error("does not drain")
		}
		time.Sleep(5 * time.Second)
		left := p.Apply(nil)
		if left.Players < 40 || left.Players > 55 || p.Draining() {
			t.Errorf("after half of the time: %+v", left)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := p.Apply(nil); n.Players != left.Players || n.Publishers != 5 {
			t.Errorf("before %+v, after %+v", left, n)
		}
	})
}

// node is a Node over a crowd in a bubble of synctest; acts are what it did.
func node(t *testing.T, c *crowd, fail func() error) (n *Node, acts func() []string, log func() string) {
	p := start(t, c)
	var mu sync.Mutex
	var list []string
	note := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		if len(list) == 0 || list[len(list)-1] != what {
			list = append(list, what)
		}
	}
	var text strings.Builder
	n = NewNode(Options{
		Config: Config{Deadline: 10 * time.Second},
		Apply: func(_ context.Context, o *Order) (Progress, error) {
			if err := fail(); err != nil {
				return Progress{}, err
			}
			note(map[bool]string{true: "drain", false: "serve"}[o != nil])
			return p.Apply(o), nil
		},
		Announce: func(context.Context) { note(map[bool]string{true: "say draining", false: "say up"}[n.Draining()]) },
		Log: slog.New(slog.NewTextHandler(writerFunc(func(b []byte) {
			mu.Lock()
			defer mu.Unlock()
			text.Write(b)
		}), nil)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return n, func() []string {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(list)
		}, func() string {
			mu.Lock()
			defer mu.Unlock()
			return text.String()
		}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

func healthy() error { return nil }

// Discovery is told first, the log has a line a second, the estimate is right, and
// in the end the node says so.
func TestANodeDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(600, 0)
		n, acts, log := node(t, c, healthy)
		if s := n.Status(); s.State != Serving || n.CheckReady(t.Context()) != nil {
			t.Errorf("before: %+v", s)
		}
		d := time.Minute
		if _, err := n.Start(&d, nil, "test"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		s := n.Status()
		if s.State != Draining || s.Began != 600 || s.Players < 270 || s.Players > 310 || s.Rate < 8 || s.Rate > 13 || s.Estimate < 22 || s.Estimate > 30 {
			t.Errorf("in the middle: %+v", s)
		}
		if err := n.CheckReady(t.Context()); err == nil || !strings.Contains(err.Error(), "sessions left") {
			t.Errorf("readiness: %v", err)
		}
		if err := n.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		if s := n.Status(); s.State != Drained || s.Moved != 600 || s.Cut != 0 {
			t.Errorf("after: %+v", s)
		}
		if got := acts(); !slices.Equal(got, []string{"say draining", "drain"}) {
			t.Errorf("acts %q", got)
		}
		if lines := strings.Count(log(), "msg=draining"); lines < 50 || lines > 61 {
			t.Errorf("%d lines of progress in a minute", lines)
		}
		if !strings.Contains(log(), "msg=drained") {
			t.Errorf("log %s", log())
		}
		n.Undrain()
		synctest.Wait()
		if got := acts(); !slices.Equal(got[2:], []string{"say up", "serve"}) || n.Status().State != Serving {
			t.Errorf("acts %q, %+v", got, n.Status())
		}
	})
}

func TestANodeWithoutSessionsIsDrainedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _, _ := node(t, newCrowd(0, 0), healthy)
		terminate, finished, begin := make(chan struct{}), false, time.Now()
		close(terminate)
		if err := n.EndAfter(t.Context(), terminate, func() { finished = true }); err != nil || !finished {
			t.Errorf("finished %v, %v", finished, err)
		}
		if d := time.Since(begin); d != 0 {
			t.Errorf("took %v", d)
		}
	})
}

// A drain that is taken back keeps a node that was asked to end.
func TestUndrainKeepsANodeThatWasToEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _, _ := node(t, newCrowd(0, 1), healthy)
		terminate := make(chan struct{})
		close(terminate)
		ended := make(chan error)
		go func() { ended <- n.EndAfter(t.Context(), terminate, func() { t.Error("the node ends") }) }()
		time.Sleep(time.Second)
		n.Undrain()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// A process that does not answer is asked until it does, also to serve again.
func TestAProcessThatDoesNotAnswerIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var failure error
		set := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			failure = err
		}
		c := newCrowd(0, 0)
		n, acts, log := node(t, c, func() error {
			mu.Lock()
			defer mu.Unlock()
			return failure
		})
		set(errors.New("away"))
		if _, err := n.Start(nil, nil, "test"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if s := n.Status(); s.State != Draining {
			t.Errorf("drained without an answer: %+v", s)
		}
		if !strings.Contains(log(), "err=away") {
			t.Errorf("log %s", log())
		}
		set(nil)
		time.Sleep(time.Second)
		set(errors.New("away"))
		n.Undrain()
		time.Sleep(time.Second)
		set(nil)
		time.Sleep(time.Second)
		if got := acts(); !slices.Equal(got, []string{"say draining", "drain", "say up", "serve"}) {
			t.Errorf("acts %q", got)
		}
	})
}

func TestBadOrders(t *testing.T) {
	n := NewNode(Options{Log: slog.New(slog.DiscardHandler)})
	f := func(d time.Duration, rate float64, want string) {
		t.Helper()
		if _, err := n.Start(&d, &rate, ""); !errors.Is(err, ErrBadOrder) || !strings.Contains(err.Error(), want) {
			t.Errorf("Start(%v, %v): %v, want %s", d, rate, err, want)
		}
	}
	f(-1, 0, "deadline: -1ns is not between 0s and 24h")
	f(25*time.Hour, 0, "deadline: 25h0m0s is not")
	f(0, -1, "kick_rate: -1 is not between 0 and 1000000")
	f(0, 2e6, "kick_rate: 2e+06 is not")
	if n.Draining() {
		t.Error("a bad order drains")
	}
	c := DefaultConfig()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

// A process stays to be asked until what it has cut is known: that is, until it is asked
// again after it has said so.
func TestWhatWasCutIsToldBeforeTheProcessEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, begin := newCrowd(2, 3), time.Now()
		p := start(t, c)
		p.Retire(Order{Since: begin, Until: begin.Add(time.Second), Publishers: begin.Add(time.Hour)})
		time.Sleep(time.Minute) // the players are moved by the retirement
		o := &Order{Since: time.Now(), Until: time.Now().Add(10 * time.Second)}
		for _, want := range []struct {
			after       time.Duration
			cut, untold int
		}{{0, 0, 0}, {11 * time.Second, 3, 3}, {time.Second, 3, 0}} {
			time.Sleep(want.after)
			if n := p.Apply(o); n.Cut != want.cut || n.Moved != 0 || p.Untold() != want.untold {
				t.Errorf("%+v, %d untold, want %+v", n, p.Untold(), want)
			}
		}
		p.Apply(nil)
		if n := p.Untold(); n != 0 {
			t.Errorf("%d untold, and the node serves", n)
		}
	})
}
