package upgrade

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

func options() Options {
	return Options{Version: "1", Log: slog.New(slog.DiscardHandler), Set: metrics.NewSet()}
}

// One upgrade runs at a time; what it failed of can be asked for.
func TestUpgradesFailOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options()
		begun, end := 0, make(chan error)
		o.Do = func(_ context.Context, a *Attempt) error {
			begun++
			a.To = "2"
			return <-end
		}
		n := New(o)
		if s := n.Status(); s.Running || s.Last != nil || s.Version != "1" {
			t.Errorf("before: %+v", s)
		}
		ctx, cancel := context.WithCancel(t.Context())
		signals, served := make(chan struct{}), make(chan error)
		go func() { served <- n.Serve(ctx, signals) }()
		if s, err := n.Start("test"); err != nil || !s.Running {
			t.Errorf("%+v, %v", s, err)
		}
		synctest.Wait()
		if _, err := n.Start("test"); !errors.Is(err, errRunning) {
			t.Errorf("the second: %v", err)
		}
		time.Sleep(3 * time.Second)
		end <- errors.New("no such file")
		synctest.Wait()
		if s := n.Status(); s.Running || s.Last.Result != Failed || s.Last.Error != "no such file" || s.Last.To != "2" || s.Last.Seconds != 3 {
			t.Errorf("after: %+v, %+v", s, s.Last)
		}
		signals <- struct{}{}
		end <- errors.New("again")
		synctest.Wait()
		if s := n.Status(); begun != 2 || s.Last.Error != "again" {
			t.Errorf("begun %d times: %+v", begun, s.Last)
		}
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if got := o.Set.GetOrCreateCounter(`weir_upgrades_total{result="failed"}`).Get(); got != 2 {
			t.Errorf("%d failures counted", got)
		}
	})
}

func TestANodeThatCannotBeUpgradedSaysWhy(t *testing.T) {
	o := options()
	o.Refused = errors.New("it is one process")
	n := New(o)
	if s, err := n.Start("test"); !errors.Is(err, o.Refused) || s.Running {
		t.Errorf("%+v, %v", s, err)
	}
}

// The program after an upgrade knows what it is.
func TestTheNextProgramTells(t *testing.T) {
	o := options()
	o.Version, o.Last = "2", &Attempt{At: time.Now().Add(-time.Minute), From: "1"}
	n := New(o)
	if s := n.Status(); s.Running || s.Version != "2" || s.Last.Result != Upgraded || s.Last.From != "1" || s.Last.To != "2" || s.Last.Seconds < 60 {
		t.Errorf("%+v, %+v", s, s.Last)
	}
}
