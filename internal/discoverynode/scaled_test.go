package discoverynode

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"weir/discovery"
	"weir/discovery/autoscale"
)

// Of two servers over one directory one leads; when it is silent the other does, and
// the first does not come between.
func TestOneServerLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := discovery.NewMemory(discovery.DefaultServerConfig().Memory(), nil, nil)
		a := &scaled{engine, "a", "1", discovery.Addr{HTTP: "10.0.0.1:7070"}}
		b := &scaled{engine, "b", "1", discovery.Addr{HTTP: "10.0.0.2:7070"}}
		f := func(s *scaled, group string, want bool) {
			t.Helper()
			if got, err := s.Lead(t.Context(), group); err != nil || got != want {
				t.Errorf("%s leads %q: %v, %v", s.id, group, got, err)
			}
		}
		f(a, "", true)
		f(b, "", false)
		f(b, "other / group", true)
		time.Sleep(8 * time.Second)
		f(a, "", true)
		f(b, "", false)
		time.Sleep(11 * time.Second)
		f(b, "", true)
		f(a, "", false)
	})
}

// What nodes report is what is scaled by, and only edges of the group are.
func TestMembers(t *testing.T) {
	engine := discovery.NewMemory(discovery.DefaultServerConfig().Memory(), nil, nil)
	for i, n := range []discovery.Node{
		{Role: discovery.RoleEdge, State: discovery.StateUp, Labels: map[string]string{"group": "live", "cost": "0.02"}, Addr: discovery.Addr{HTTP: "10.0.0.1:8080"},
			Load: map[string]float64{"effective": 0.5, "players": 7, "publishers": 1, "egress_capacity_bps": 1e9}},
		{Role: discovery.RoleEdge, State: discovery.StateDraining, Labels: map[string]string{"group": "live"}, Addr: discovery.Addr{RTMP: "[2001:db8::1]:1935"}},
		{Role: discovery.RoleEdge, State: discovery.StateUp, Addr: discovery.Addr{RTMP: "h:1"}},
		{Role: discovery.RoleOrigin, State: discovery.StateUp, Labels: map[string]string{"group": "live"}, Addr: discovery.Addr{RTMP: "h:1"}},
	} {
		n.ID = fmt.Sprint("n", i)
		if err := engine.Heartbeat(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	got, err := (&scaled{engine: engine}).Nodes(t.Context(), "live")
	want := []autoscale.Member{
		{Node: autoscale.Node{ID: "n0", Up: true, Reported: true, Load: 0.5, Capacity: 1e9, Sessions: 8, Cost: 0.02}, Host: "10.0.0.1"},
		{Node: autoscale.Node{ID: "n1", Draining: true}, Host: "2001:db8::1"},
	}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

// A discovery server whose group is below its minimum asks for a machine.
func TestAMachineIsAskedFor(t *testing.T) {
	asked := make(chan string, 10)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var body struct{ Action, Group, Reason string }
		text, _ := io.ReadAll(r.Body)
		_ = json.Unmarshal(text, &body)
		asked <- body.Action + " " + body.Group + ": " + body.Reason
	}))
	defer hook.Close()
	run(t, fmt.Sprintf("role: discovery\nlisten: 127.0.0.1:0\nautoscale: {driver: webhook, url: %q, group: live, settle: 1s}\n", hook.URL))
	select {
	case got := <-asked:
		if got != "start live: 0 nodes, at least 2" {
			t.Errorf("asked for %q", got)
		}
	case <-time.After(30 * time.Second):
		t.Error("nothing was asked for")
	}
}
