package model

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
)

// setup is what all histories of testdata begin with.
func setup() Event {
	return Event{Kind: KindSetup, Setup: &Setup{
		Seed: 1,
		Streams: map[string]Stream{
			"s": {}, "fight": {Contested: true}, "absent": {Absent: true}, "circle": {Circle: true},
		},
		Nodes: map[string]Node{
			"o1": {"origin"}, "o2": {"origin"}, "e1": {"edge"}, "e2": {"edge"}, "d": {"discovery"},
		},
		Bounds: Bounds{
			Answer: 1000, Accept: 1000, Recovery: 500, Absence: 3000, Hops: 3,
			Goroutines: 10, Descriptors: 5, Memory: 1000,
		},
	}}
}

// history is a case of testdata.
type history struct {
	name  string
	lines []string
}

func histories(t *testing.T) []history {
	t.Helper()
	text, err := os.ReadFile("testdata/rules.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []history
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch name, begins := strings.CutPrefix(line, "== "); {
		case begins:
			all = append(all, history{name: name})
		case line != "" && line[0] != '#':
			h := &all[len(all)-1]
			h.lines = append(h.lines, line)
		}
	}
	return all
}

func TestHistories(t *testing.T) {
	all := histories(t)
	if len(all) < 20 {
		t.Fatalf("only %d histories were read", len(all))
	}
	for _, h := range all {
		t.Run(h.name, func(t *testing.T) {
			var m Model
			m.Apply(setup())
			var found []Violation
			for i, line := range h.lines {
				rule, expected := strings.CutPrefix(line, "! ")
				if !expected {
					for _, v := range found {
						t.Errorf("line %d: not expected: %v", i, v)
					}
					found = m.step(t, line)
					continue
				}
				at := slices.IndexFunc(found, func(v Violation) bool { return v.Rule == Rule(rule) })
				if at < 0 {
					t.Errorf("line %d: %s does not break %s; found %v", i, h.lines[i-1], rule, found)
					continue
				}
				found = slices.Delete(slices.Clone(found), at, at+1)
			}
			for _, v := range found {
				t.Errorf("at the end: not expected: %v", v)
			}
		})
	}
}

func (m *Model) step(t *testing.T, line string) []Violation {
	t.Helper()
	if line == "end" {
		return m.Finish()
	}
	var e Event
	d := json.NewDecoder(strings.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return m.Apply(e)
}

// Each rule has a history that breaks it.
func TestEachRuleHasAHistory(t *testing.T) {
	text, err := os.ReadFile("testdata/rules.txt")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("rules.go")
	if err != nil {
		t.Fatal(err)
	}
	rules := 0
	for line := range strings.Lines(string(source)) {
		if _, value, ok := strings.Cut(line, ` Rule = "`); ok {
			rules++
			if name := value[:strings.IndexByte(value, '"')]; !strings.Contains(string(text), "\n! "+name+"\n") {
				t.Errorf("no history breaks the rule %q", name)
			}
		}
	}
	if rules < 15 {
		t.Errorf("only %d rules were found in the source", rules)
	}
}

func TestVoid(t *testing.T) {
	begin := setup()
	begin.Setup.Bounds.MinFrames, begin.Setup.Bounds.MinPlays, begin.Setup.Bounds.MinFaults, begin.Setup.Bounds.MinCalms = 10, 1, 1, 1
	f := func(want string, lines ...string) {
		t.Helper()
		var m Model
		m.Apply(begin)
		for _, line := range lines {
			for _, v := range m.step(t, line) {
				if v.Rule != RuleHomeless {
					t.Error(v)
				}
			}
		}
		if got := m.Void(); got != want {
			t.Errorf("void: %q, want %q", got, want)
		}
	}
	f("0 frames are less than 10; 0 play requests are less than 1; 0 calms are less than 1; 0 faults are less than 1;" +
		" no player got a frame from e1; no player got a frame from e2")
	enough := []string{
		`{"t":0,"e":"play","conn":1,"stream":"s","node":"e1","ask":{"protocol":"rtmp"}}`,
		`{"t":0,"e":"play","conn":2,"stream":"s","node":"e2","ask":{"protocol":"rtmp"}}`,
		`{"t":1,"e":"run","conn":1,"run":{"header":true,"inc":1,"from":1,"to":9,"first":0,"last":90}}`,
		`{"t":2,"e":"run","conn":2,"run":{"header":true,"inc":1,"from":1,"to":1,"first":0,"last":0}}`,
		`{"t":3,"e":"fault","fault":{"id":1,"on":["o1"]}}`,
		`{"t":4,"e":"heal","fault":{"id":1}}`,
		`{"t":5,"e":"calm"}`,
		`{"t":6,"e":"storm"}`,
	}
	f("", append(enough[:6:6], `{"t":5,"e":"end","conn":1,"end":{"why":"left"}}`, `{"t":5,"e":"end","conn":2,"end":{"why":"left"}}`, enough[6], enough[7])...)
	f("1 frames are less than 10; no player got a frame from e1", append([]string{enough[1]}, append(enough[3:6:6],
		`{"t":5,"e":"end","conn":2,"end":{"why":"left"}}`, enough[6], enough[7])...)...)
	f("9 frames are less than 10; 0 calms are less than 1; 0 faults are less than 1; no player got a frame from e2", enough[0], enough[2])
}

// What is written is what is read.
func TestEventsSurviveTheFile(t *testing.T) {
	e := Event{T: 5, Kind: KindRun, Conn: 3, Run: &Run{Video: true, Inc: 1, From: 0, To: 0, Key: true, Header: true}}
	var got Event
	if err := json.Unmarshal([]byte(e.String()), &got); err != nil {
		t.Fatal(err)
	}
	if *got.Run != *e.Run || got.Conn != 3 || got.T != 5 {
		t.Errorf("%v became %v", e, got)
	}
}

// A player waits for a publisher from when that was let in, if it was there then.
func TestWaits(t *testing.T) {
	var m Model
	m.Apply(setup())
	for _, line := range []string{
		`{"t":0,"e":"play","conn":1,"stream":"s","node":"e1","ask":{"protocol":"rtmp"}}`,
		`{"t":1,"e":"run","conn":1,"run":{"header":true,"inc":1,"from":0,"to":9,"first":0,"last":90,"at":1}}`,
		`{"t":100,"e":"publish","conn":2,"stream":"s","node":"o1","inc":2}`,
		`{"t":120,"e":"publishing","conn":2,"stream":"s","node":"o1","inc":2,"local":"p:1"}`,
		`{"t":130,"e":"play","conn":3,"stream":"s","node":"e1","ask":{"protocol":"rtmp"}}`,
		`{"t":300,"e":"run","conn":1,"run":{"header":true,"inc":2,"from":0,"to":9,"first":90,"last":190,"at":200}}`,
		`{"t":300,"e":"run","conn":3,"run":{"header":true,"inc":2,"from":0,"to":9,"first":90,"last":190,"at":200}}`,
		`{"t":400,"e":"run","conn":1,"run":{"header":true,"inc":2,"from":10,"to":19,"first":190,"last":190,"at":300}}`,
	} {
		for _, v := range m.step(t, line) {
			t.Error(v)
		}
	}
	c := m.Counts()
	if len(c.Waits) != 1 || c.Wait(0.99) != 80 {
		t.Errorf("waits are %v, want one of 80 ms", c.Waits)
	}
	c.Waits = []int64{3, 1, 2}
	if c.Wait(0) != 1 || c.Wait(0.5) != 2 || c.Wait(1) != 3 {
		t.Errorf("the waits %v are wrong in their order", c.Waits)
	}
}
