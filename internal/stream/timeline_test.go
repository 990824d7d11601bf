package stream

import (
	"fmt"
	"strings"
	"testing"

	"weir/internal/media"
)

// TestTimeline gives a publisher's source times and the log times that they must
// get. Letters are those of feed; R is a restart.
func TestTimeline(t *testing.T) {
	f := func(name, script, want string) {
		t.Helper()
		s, p := start(t, roomy)
		var got []string
		for _, word := range strings.Fields(script) {
			if word == "R" {
				p.Restart()
				continue
			}
			feed(t, p, word)
			tag := s.ring[(s.next-1)&uint64(len(s.ring)-1)].Tag
			got = append(got, fmt.Sprint(nameOf(tag)[:1], tag.Time()))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s:\n got %s\nwant %s", name, strings.Join(got, " "), want)
		}
	}
	f("passes unchanged", "M@0 V@0 C@0 K@0 A@5 P@40 A@28", "M0 V0 C0 K0 A5 P40 A28")
	f("may start anywhere", "V@0 K@900000 A@900010", "V0 K900000 A900010")
	f("wrap at 2^32", "K@4294967256 A@4294967290 P@4294967295 A@17 P@44", "K4294967256 A4294967290 P4294967295 A17 P44")
	f("jump back over the wrap", "K@10 A@12 K@4294900000 A@4294900002", "K10 A12 K45 A47")

	f("video jumps back first", "K@10000 A@10010 K@0 A@10033 A@5 P@40 A@28", "K10000 A10010 K10043 A10033 A10048 P10083 A10071")
	f("audio jumps back first", "K@10000 A@10010 A@0 P@10040 K@10 A@23 P@50", "K10000 A10010 A10043 P10040 K10053 A10066 P10093")
	f("both leap ahead", "K@0 A@10 K@500000 A@500010", "K0 A10 K43 A53")
	f("one kind alone jumps and comes back", "K@10000 A@10010 A@100 P@10040 A@10050", "K10000 A10010 A10043 P10040 A10050")
	f("two jumps in a row", "K@10000 A@10000 K@0 A@5 K@90000 A@90005", "K10000 A10000 K10033 A10038 K10071 A10076")
	f("a hole of less than a minute stays", "K@0 A@10 K@50000 A@50010", "K0 A10 K50000 A50010")
	f("audio that pauses two minutes is no jump", "K@0 A@0 K@40000 K@80000 K@120000 A@120010", "K0 A0 K40000 K80000 K120000 A120010")

	f("jitter is held", "K@1000 P@1040 P@1020 P@1080 A@1000", "K1000 P1040 P1040 P1080 A1000")
	f("slow retreat is a jump in the end", "K@10000 P@9600 P@9200 P@8800 P@8840", "K10000 P10000 P10033 P10033 P10033")

	f("header with time 0 in mid-stream", "V@0 C@0 K@5000 A@5010 V@0 C@0 M@0 K@5040", "V0 C0 K5000 A5010 V5000 C5010 M5010 K5040")
	f("header with a time of its own", "K@5000 A@5010 V@5040 K@5040", "K5000 A5010 V5040 K5040")
	f("header far ahead", "K@5000 V@50000 K@5040", "K5000 V5000 K5040")
	f("header never before its kind's frames", "K@5000 A@5400 V@4900 P@5040", "K5000 A5400 V5000 P5040")
	f("metadata never goes back", "K@5000 M@5300 M@5000 P@5040", "K5000 M5300 M5300 P5040")

	f("restart from zero", "K@10000 A@10010 R V@0 C@0 K@0 A@5 P@40", "K10000 A10010 V10010 C10010 K10043 A10048 P10083")
	f("restart from far ahead", "K@10000 A@10010 R V@0 A@900000 K@900010", "K10000 A10010 V10010 A10043 K10053")
	f("restart with the same clock", "K@1000 R K@1040", "K1000 K1033")
	f("restart before anything", "R K@700", "K700")
	f("restart twice", "K@1000 R R K@0", "K1000 K1033")
	f("restart, other kind a little earlier", "K@1000 A@1010 R A@80 K@50 P@90", "K1000 A1010 A1043 K1013 P1053")
	f("restart, kinds with different clocks", "K@1000 A@1000 R A@500000 K@0 A@500020 P@40", "K1000 A1000 A1033 K1066 A1053 P1106")
	f("restart, video comes late", "K@1000 A@1000 R A@0 A@4000 A@8000 A@20000 K@20010", "K1000 A1000 A1033 A5033 A9033 A21033 K21043")
}

func TestUnknownKindsDoNotMoveTheTimeline(t *testing.T) {
	s, p := start(t, roomy)
	feed(t, p, "K1@1000")
	odd := media.NewTag(15, 900000, 1)
	if err := p.Append(odd); err != nil {
		t.Fatal(err)
	}
	feed(t, p, "A1@1010")
	if odd.Time() != 1000 || s.Stats().LastTime != 1010 {
		t.Errorf("the odd tag is at %d, the log at %d", odd.Time(), s.Stats().LastTime)
	}
}
