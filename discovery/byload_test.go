package discovery

import (
	"fmt"
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

// Of three free nodes the most loaded is never the first, the others share; those that
// are busy or have not reported come last.
func TestByLoad(t *testing.T) {
	first := map[string]int{}
	const rounds = 3000
	for range rounds {
		got := ids(ByLoad([]Node{nodeAt("unknown", -1), nodeAt("high", 0.7), nodeAt("busy", 0.9), nodeAt("low", 0.1), nodeAt("mid", 0.5)}))
		first[got[0]]++
		if want := []string{"busy", "unknown"}; !slices.Equal(got[3:], want) {
			t.Fatalf("order %v", got)
		}
		slices.Sort(got)
		if fmt.Sprint(got) != "[busy high low mid unknown]" {
			t.Fatalf("%v: nodes were lost", got)
		}
	}
	if first["high"] > 0 || first["low"] < rounds/2 || first["mid"] < rounds/5 {
		t.Errorf("first: %v", first)
	}
}

func TestByLoadOfFew(t *testing.T) {
	if got := ByLoad(nil); len(got) != 0 {
		t.Error(got)
	}
	if got := ids(ByLoad([]Node{nodeAt("b", 0.95), nodeAt("a", 0.9)})); !slices.Equal(got, []string{"a", "b"}) {
		t.Error(got)
	}
	for range 100 { // the less loaded of both
		if got := ids(ByLoad([]Node{nodeAt("b", 0.5), nodeAt("a", 0.2)})); !slices.Equal(got, []string{"a", "b"}) {
			t.Fatal(got)
		}
	}
}
