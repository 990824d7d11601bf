package media

import (
	"strings"
	"testing"
)

func TestMarks(t *testing.T) {
	if e, ok := EpochOf(EpochMark(1795332477685326)); !ok || e != 1795332477685326 {
		t.Errorf("epoch %d, %v", e, ok)
	}
	if a, e, ok := MovedTo(MovedMark("10.0.0.1:8080", 7)); !ok || a != "10.0.0.1:8080" || e != 7 {
		t.Errorf("moved to %q %d, %v", a, e, ok)
	}
	if !IsEndMark(EndMark()) || IsEndMark(EpochMark(7)) {
		t.Error("an end mark is not known")
	}
	if i := Sniff(Data, EpochMark(7).Body()); i != (Info{Kind: Data, Flags: Header, Slot: SlotEpoch}) {
		t.Errorf("an epoch mark is %+v", i)
	}
	for _, m := range []Tag{EndMark(), EpochMark(7), MovedMark("a:1", 7)} {
		if !IsMark(m) {
			t.Errorf("%q is no mark", m.Body())
		}
	}
	f := func(body string) {
		t.Helper()
		tag := NewTag(Data, 0, len(body))
		copy(tag.Body(), body)
		_, epoch := EpochOf(tag)
		_, _, moved := MovedTo(tag)
		if epoch || moved || IsEndMark(tag) {
			t.Errorf("%q is taken for a mark that means something", body)
		}
		if want := strings.Contains(body, "onWeir"); IsMark(tag) != want {
			t.Errorf("%q: a mark is %v, want %v", body, !want, want)
		}
	}
	f("")
	f("\x02\x00\x0aonMetaData\x08")
	f("\x02\x00\x0bonWeirEpoch")
	f("\x02\x00\x0bonWeirEpoch\x02\x00\x01x")
	f("\x02\x00\x0bonWeirEpoch\x02\x00\x017\x05")
	f("\x02\x00\x0bonWeirMoved\x02\x00\x03a:1")
	f("\x02\x00\x09onWeirEnd\x05")
	if IsMark(NewTag(Video, 0, 20)) {
		t.Error("video is a mark")
	}
}

func FuzzMarks(f *testing.F) {
	for _, m := range []Tag{EndMark(), EpochMark(7), MovedMark("a:1", 7)} {
		f.Add(m.Body())
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		tag := NewTag(Data, 0, len(body))
		copy(tag.Body(), body)
		if e, ok := EpochOf(tag); ok {
			if again, ok := EpochOf(EpochMark(e)); !ok || again != e || !IsMark(tag) {
				t.Errorf("epoch %d", e)
			}
		}
		if a, e, ok := MovedTo(tag); ok {
			if b, f, ok := MovedTo(MovedMark(a, e)); !ok || a != b || e != f {
				t.Errorf("moved to %q %d", a, e)
			}
		}
	})
}
