package units

import "testing"

func TestBytes(t *testing.T) {
	f := func(in string, want Bytes, out string) {
		t.Helper()
		got, err := ParseBytes(in)
		if err != nil || got != want || got.String() != out {
			t.Errorf("ParseBytes(%q) = %d %q, %v; want %d %q", in, got, got, err, want, out)
		}
	}
	f("0", 0, "0B")
	f("4096", 4096, "4KiB")
	f("64KiB", 64<<10, "64KiB")
	f("10 MB", 10e6, "10MB")
	f("3GiB", 3<<30, "3GiB")
	f("17B", 17, "17B")

	bad := func(in string) {
		t.Helper()
		if got, err := ParseBytes(in); err == nil {
			t.Errorf("ParseBytes(%q) = %d, want an error", in, got)
		}
	}
	bad("")
	bad("-1")
	bad("1.5MiB")
	bad("12 parsecs")
	bad("9223372036854775807GiB")
}
