package discovery

import (
	"math"
	"slices"
	"testing"
)

func nodeAt(id string, load float64) Node {
	n := Node{ID: id, Load: map[string]float64{LoadEffective: load}}
	if load < 0 {
		n.Load = nil
	}
	return n
}

func ids(nodes []Node) (all []string) {
	for _, n := range nodes {
		all = append(all, n.ID)
	}
	return all
}

// Free nodes share what comes by the room that they have; those that are busy or have
// not reported come last, and the others in the order of their load.
func TestByLoad(t *testing.T) {
	first := map[string]int{}
	const rounds = 6000
	for range rounds {
		got := ids(ByLoad([]Node{nodeAt("unknown", -1), nodeAt("high", 0.7), nodeAt("busy", 0.9), nodeAt("low", 0.2), nodeAt("mid", 0.5)}))
		first[got[0]]++
		want := slices.DeleteFunc([]string{"low", "mid", "high", "busy", "unknown"}, func(id string) bool { return id == got[0] })
		if !slices.Equal(got[1:], want) {
			t.Fatalf("order %v", got)
		}
	}
	for id, share := range map[string]float64{"low": 0.6, "mid": 0.3, "high": 0.1, "busy": 0, "unknown": 0} {
		if got := float64(first[id]) / rounds; math.Abs(got-share) > 0.04 || share == 0 && got > 0 {
			t.Errorf("%s is first in %.2f, want %.2f", id, got, share)
		}
	}
}

func TestByLoadOfFew(t *testing.T) {
	if got := ByLoad(nil); len(got) != 0 {
		t.Error(got)
	}
	for range 20 {
		if got := ids(ByLoad([]Node{nodeAt("b", 0.95), nodeAt("a", 0.9)})); !slices.Equal(got, []string{"a", "b"}) {
			t.Fatal(got)
		}
		if got := ids(ByLoad([]Node{nodeAt("b", 0.95), nodeAt("a", 0.7)})); !slices.Equal(got, []string{"a", "b"}) {
			t.Fatal(got)
		}
	}
}
