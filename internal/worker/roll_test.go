package worker

import (
	"context"
	"io"
	"sync"
	"testing"
	"time"
)

func retiring(count int, grace time.Duration) Spec {
	s := workers(count)
	s.RollGrace = grace
	return s
}

// A worker that is rolled goes on with what it has, at an address of its own, while
// the next one takes what comes; when it has nothing any more it ends.
func TestARolledWorkerRetires(t *testing.T) {
	s := run(t, Options{Specs: []Spec{retiring(2, time.Hour)}})
	address := s.Addr("edge", "http")
	old := []*client{connectTo(t, address, 0), connectTo(t, address, 1)}
	if err := s.Roll(t.Context(), "edge", nil, []byte("two")); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckReady(t.Context()); err != nil {
		t.Error(err)
	}
	for i, c := range old {
		c.mustEcho(t, "still here")
		if next := connectTo(t, address, i); next.Config != "two" || next.PID == c.PID {
			t.Errorf("worker %d: process %d with configuration %s", i, next.PID, next.Config)
		}
	}
	states := s.Retiring()
	if len(states) != 2 || states[0].Phase != Retiring || states[0].PID != old[0].PID || states[1].PID != old[1].PID {
		t.Fatalf("retiring: %+v", states)
	}
	conn, err := s.DialWorker(t.Context(), "edge", states[0].Sibling)
	if err != nil {
		t.Errorf("a worker that retires cannot be asked: %v", err)
	} else {
		conn.Close()
	}
	for _, c := range old {
		c.Close()
	}
	eventually(t, "end of the old workers", func() bool { return len(s.Retiring()) == 0 })
}

// At the end of the grace, and of the supervisor, nothing is left of it.
func TestRetiringHasAnEnd(t *testing.T) {
	f := func(grace time.Duration, end bool) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		s, err := Open(ctx, Options{Config: DefaultConfig(), Log: discard(), Specs: []Spec{retiring(1, grace)}})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		<-s.Ready()
		old := mustConnect(t, s.Addr("edge", "http"))
		if err := s.Roll(ctx, "edge", nil, []byte("two")); err != nil {
			t.Fatal(err)
		}
		if end {
			cancel()
		}
		if _, err := io.ReadAll(old); err != nil {
			t.Errorf("the old worker's connection: %v", err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if left := s.Retiring(); len(left) != 0 {
			t.Errorf("left: %+v", left)
		}
	}
	f(100*time.Millisecond, false)
	f(time.Hour, true)
}

// A worker that does not make room is stopped, and the roll goes on.
func TestADeafWorkerIsRolledAllTheSame(t *testing.T) {
	cfg := DefaultConfig()
	cfg.StopGrace = 100 * time.Millisecond
	s := run(t, Options{Config: cfg, Specs: []Spec{{Name: "edge", Args: []string{"deaf"}, RollGrace: time.Hour}}})
	before := s.States()[0].PID
	if err := s.Roll(t.Context(), "edge", nil, nil); err != nil {
		t.Fatal(err)
	}
	if now := s.States()[0]; now.PID == before || now.Phase != Ready || len(s.Retiring()) != 0 {
		t.Errorf("%+v, retiring %+v", now, s.Retiring())
	}
}

func TestOverlappingRollUnderLoadRefusesAndResetsNobody(t *testing.T) {
	s := run(t, Options{Specs: []Spec{retiring(2, time.Hour)}})
	address := s.Addr("edge", "http")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				c, err := connect(address)
				if err != nil {
					t.Errorf("connect during the roll: %v", err)
					return
				}
				c.Close()
			}
		})
	}
	for range 10 {
		if err := s.Roll(ctx, "edge", nil, []byte("next")); err != nil {
			t.Error(err)
		}
	}
	cancel()
	clients.Wait()
	eventually(t, "end of the old workers", func() bool { return len(s.Retiring()) == 0 })
}
