package discovery

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// lister is a directory that lists nodes; asked counts the questions.
type lister struct {
	Directory
	nodes atomic.Pointer[[]Node] // nil: away
	asked atomic.Int64
	slow  time.Duration
}

func (l *lister) Nodes(ctx context.Context, q NodeQuery) ([]Node, string, error) {
	l.asked.Add(1)
	select {
	case <-time.After(l.slow):
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
	list := l.nodes.Load()
	if list == nil {
		return nil, "", errors.New("away")
	}
	var found []Node
	for _, n := range *list {
		if n.Role == q.Role {
			found = append(found, n)
		}
	}
	return found, "", nil
}

func TestElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := Addr{RTMP: "host:1935"}
		l := &lister{slow: 10 * time.Millisecond}
		l.nodes.Store(&[]Node{
			{ID: "me", Role: RoleEdge, State: StateUp, Addr: at},
			{ID: "a", Role: RoleEdge, State: StateUp, Addr: at},
			{ID: "b", Role: RoleEdge, State: StateUp, Addr: at},
			{ID: "leaves", Role: RoleEdge, State: StateDraining, Addr: at},
			{ID: "comes", Role: RoleEdge, State: StateStarting, Addr: at},
			{ID: "hidden", Role: RoleEdge, State: StateUp},
			{ID: "o", Role: RoleOrigin, State: StateUp, Addr: at},
		})
		e := NewElsewhere(l, "me")
		counts := map[string]int{}
		found := make(chan string)
		const many = 100
		for range many { // at once
			go func() {
				n, _ := e.Node(t.Context(), RoleEdge)
				found <- n.ID
			}()
		}
		for range many {
			counts[<-found]++
		}
		if counts["a"] != many/2 || counts["b"] != many/2 {
			t.Errorf("picked %v, want a and b in turn", counts)
		}
		if n := l.asked.Load(); n != 1 {
			t.Errorf("%d questions at once", n)
		}
		if n, ok := e.Node(t.Context(), RoleEdge, "a"); !ok || n.ID != "b" {
			t.Errorf("except a: %v", n.ID)
		}
		if n, ok := e.Node(t.Context(), RoleEdge, "a", "b"); ok {
			t.Errorf("except all: %v", n.ID)
		}
		if n, ok := e.Node(t.Context(), RoleOrigin); !ok || n.ID != "o" {
			t.Errorf("origin: %v", n.ID)
		}
		time.Sleep(neighboursFor)
		l.nodes.Store(nil)
		if n, ok := e.Node(t.Context(), RoleOrigin); !ok || n.ID != "o" {
			t.Errorf("while the directory is away: %v", n.ID)
		}
		time.Sleep(neighboursFor)
		l.nodes.Store(&[]Node{})
		if n, ok := e.Node(t.Context(), RoleOrigin); ok {
			t.Errorf("nobody is left: %v", n.ID)
		}
		if _, ok := NewElsewhere(nil, "me").Node(t.Context(), RoleEdge); ok {
			t.Error("found a node without a directory")
		}
	})
}

// Nobody waits for a directory that is slow, once there is a list; one asks it all the
// same, and for a list that is too old it is waited for.
func TestElsewhereDoesNotWaitForASlowDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lister{slow: 10 * time.Millisecond}
		l.nodes.Store(&[]Node{{ID: "a", Role: RoleEdge, State: StateUp, Addr: Addr{RTMP: "host:1935"}}})
		e := NewElsewhere(l, "me")
		took := func() time.Duration {
			t.Helper()
			begin := time.Now()
			if n, ok := e.Node(t.Context(), RoleEdge); !ok || n.ID != "a" {
				t.Errorf("found %q", n.ID)
			}
			return time.Since(begin)
		}
		took()
		l.slow = 5 * time.Second
		time.Sleep(neighboursFor)
		asker := make(chan time.Duration)
		go func() { asker <- took() }()
		synctest.Wait()
		if d := took(); d != 0 {
			t.Errorf("another one waited %v", d)
		}
		if d := <-asker; d != neighboursPatience {
			t.Errorf("the one that asked waited %v", d)
		}
		if n := l.asked.Load(); n != 2 {
			t.Errorf("%d questions", n)
		}
		time.Sleep(neighboursStale)
		if d := took(); d != l.slow {
			t.Errorf("with an old list it waited %v", d)
		}
	})
}
