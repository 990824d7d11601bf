package units

import "testing"

func TestBitRate(t *testing.T) {
	for text, want := range map[string]BitRate{
		"0": 0, "0bit": 0, "1bit": 1, "10Gbit": 10 * Gbit, "2.5 Gbit": 2500 * Mbit, "100Mbit": 100 * Mbit, "64kbit": 64 * Kbit,
		"": -1, "10": -1, "10GB": -1, "-1Mbit": -1, "1e3bit": -1, "0x1bit": -1, "NaNbit": -1, "InfGbit": -1, "99999999Gbit": -1, "10gbit": -1,
	} {
		got, err := ParseBitRate(text)
		if (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
		if err == nil {
			if again, err := ParseBitRate(got.String()); err != nil || again != got {
				t.Errorf("%q is written %q, which is %d, %v", text, got, again, err)
			}
		}
	}
}
