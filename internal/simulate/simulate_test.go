package simulate

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"weir/discovery/autoscale"
	"weir/discovery/schedule"
)

// A small day: nothing flaps, nobody is refused or cut, and it comes out the same
// again; another seed is another day.
func TestDay(t *testing.T) {
	d := DefaultDay()
	d.Players, d.Nodes = 100_000, 20
	r := d.Run()
	if r.Early != 0 || r.Flaps != 0 || r.Refused != 0 || r.Cut != 0 {
		t.Errorf("%d stopped early, %d flaps, %d refused, %d cut", r.Early, r.Flaps, r.Refused, r.Cut)
	}
	if r.MaxLoad >= d.Schedule.HardLimit || r.Peak < 90_000 || len(r.Samples) != 24*6 {
		t.Errorf("max load %.2f, peak %d, %d samples", r.MaxLoad, r.Peak, len(r.Samples))
	}
	least, most := 1000, 0
	for _, s := range r.Samples {
		least, most = min(least, s.Up), max(most, s.Up)
	}
	if least > 7 || most < 15 {
		t.Errorf("from %d to %d nodes", least, most)
	}
	d.Hours = 3
	short := d.Run()
	if again := d.Run(); !reflect.DeepEqual(again, short) {
		t.Error("the same seed gives another day")
	}
	d.Seed = 2
	if other := d.Run(); reflect.DeepEqual(other.Samples, short.Samples) {
		t.Error("another seed gives the same day")
	}
	var table, svg strings.Builder
	if err := r.WriteTable(&table); err != nil || strings.Count(table.String(), "\n") != 1+24+1+3 || !strings.Contains(table.String(), "; 0 flaps ") {
		t.Errorf("%v\n%s", err, &table)
	}
	if err := r.WriteSVG(&svg); err != nil {
		t.Fatal(err)
	}
	lines := 0
	for x := xml.NewDecoder(strings.NewReader(svg.String())); ; {
		token, err := x.Token()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "polyline" {
			lines++
		}
	}
	if lines != 5 {
		t.Errorf("%d lines in the plot", lines)
	}
}

// A day whose autoscaling has no patience flaps: the count of flaps can see it.
func TestFlapsAreSeen(t *testing.T) {
	d := DefaultDay()
	d.Players, d.Nodes, d.Hours = 100_000, 20, 8
	a := &d.Autoscale
	a.ScaleOut, a.ScaleIn = 0.50, 0.49
	a.OutAfter, a.InAfter, a.CoolDown, a.WarmUp = time.Second, time.Second, 0, time.Second
	if r := d.Run(); r.Flaps == 0 {
		t.Error("no flaps are counted")
	}
}

// What was recorded is decided again: by the same policy the same way, by another
// otherwise.
func TestReplay(t *testing.T) {
	cfg := schedule.DefaultConfig()
	cfg.Policy = schedule.RoundRobin
	s := schedule.New(cfg, nil, 1)
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	var nodes []schedule.Node
	for i, state := range []string{"up", "up", "up", "draining", "starting"} {
		nodes = append(nodes, schedule.Node{
			ID: fmt.Sprint("n", i), Role: "edge", State: state, RTMP: "h:1", Load: 0.1 * float64(i+1), Reported: i < 4, Capacity: 1e9, Seen: now,
		})
	}
	s.Update(now, nodes)
	for i := range 300 {
		at := now.Add(time.Duration(i) * 5 * time.Millisecond)
		r := schedule.Request{Action: schedule.Play, Stream: fmt.Sprint("v/live/", i), Client: netip.MustParseAddr("10.0.0.1"), BitRate: 1e5}
		if i%100 == 99 {
			r.NodeRole = "origin"
		}
		_, _ = s.Decide(at, r, false)
	}
	text, err := json.Marshal(map[string]any{"decisions": s.Decisions(0, 1000, 1e6)})
	if err != nil {
		t.Fatal(err)
	}
	decisions, err := ReadDecisions(strings.NewReader(string(text) + "\n" + `{"decisions":[]}`))
	if err != nil || len(decisions) != 300 {
		t.Fatalf("%d decisions, %v", len(decisions), err)
	}
	if r := Replay(cfg, 1, decisions); r.Same != 300 || r.Refused != [2]int{3, 3} {
		t.Errorf("by the same policy: %+v", r)
	}
	cfg.Policy = schedule.MostUsed
	r := Replay(cfg, 1, decisions)
	if r.Chosen["n2"][1] != 297 || r.Chosen["n2"][0] != 99 || r.Same != 99+3 {
		t.Errorf("by another: %+v", r)
	}
	var table strings.Builder
	if err := r.WriteTable(&table); err != nil || !strings.Contains(table.String(), "n2          99        297\n") ||
		!strings.Contains(table.String(), "without a node 3, now 3; most over mean of these nodes 1.00, now 3.00") {
		t.Errorf("%v\n%s", err, &table)
	}
	if _, err := ReadDecisions(strings.NewReader(`{"decisions":[{"number":"x"}]}`)); err == nil {
		t.Error("nonsense is read")
	}
}

func TestDryRun(t *testing.T) {
	listing := func(load float64) string {
		return fmt.Sprintf(`{"nodes":[{"id":"a","role":"edge","state":"up","load":{"effective":%[1]v}},{"id":"b","role":"edge","state":"up","load":{"effective":%[1]v}},`+
			`{"id":"o","role":"origin","state":"up","load":{"effective":0}}]}`+"\n", load)
	}
	cfg := autoscale.DefaultConfig()
	var out strings.Builder
	if err := DryRun(cfg, strings.NewReader(strings.Repeat(listing(0.5), 10)+strings.Repeat(listing(0.9), 20)), 10*time.Second, &out); err != nil {
		t.Fatal(err)
	}
	if want := "     2m40s  start (mean load 0.90 over 0.65 for 1m0s)\n30 listings, 1 actions\n"; out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
	if err := DryRun(cfg, strings.NewReader(`{"nodes":[],"next":"a"}`), time.Second, io.Discard); err == nil {
		t.Error("a part of a listing is taken for all of it")
	}
}
