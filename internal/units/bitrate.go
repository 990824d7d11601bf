package units

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// BitRate is a number of bits per second. In configuration it is a number with a
// unit, of powers of 1000: bit, kbit, Mbit or Gbit, as in "10Gbit" or "2.5Gbit".
// It is never negative.
type BitRate int64

// Powers of 1000.
const (
	Kbit BitRate = 1e3
	Mbit BitRate = 1e6
	Gbit BitRate = 1e9
)

var bitUnits = []struct {
	name string
	size BitRate
}{{"Gbit", Gbit}, {"Mbit", Mbit}, {"kbit", Kbit}, {"bit", 1}}

// maxBitRate is far above what a machine has, in bits per second.
const maxBitRate = 1e15

// ParseBitRate reads a rate such as "10Gbit", "2.5 Gbit" or "0".
func ParseBitRate(s string) (BitRate, error) {
	number, unit := strings.TrimSpace(s), BitRate(0)
	for _, u := range bitUnits {
		if n, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = strings.TrimSpace(n), u.size
			break
		}
	}
	if number == "0" {
		return 0, nil
	}
	x, err := strconv.ParseFloat(number, 64)
	if err != nil || unit == 0 || strings.ContainsAny(number, "xXpP_eEiInN+-") || x*float64(unit) > maxBitRate {
		return 0, fmt.Errorf("%q is not a bit rate (a number with bit, kbit, Mbit or Gbit)", s)
	}
	return BitRate(math.Round(x * float64(unit))), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *BitRate) UnmarshalText(text []byte) error {
	v, err := ParseBitRate(string(text))
	if err == nil {
		*r = v
	}
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (r BitRate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// String writes r with the largest unit that divides it.
func (r BitRate) String() string {
	if r != 0 {
		for _, u := range bitUnits {
			if r%u.size == 0 {
				return strconv.FormatInt(int64(r/u.size), 10) + u.name
			}
		}
	}
	return "0bit"
}
