// Package units holds the types of configuration values that have a unit of
// their own. Times are plain time.Duration ("5s", "300ms").
package units

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a number of bytes. In configuration and on the command line it is a
// whole number with an optional unit: B, KiB, MiB, GiB (powers of 1024) or kB,
// MB, GB (powers of 1000), as in "16MiB". It is never negative.
type Bytes int64

// Powers of 1024.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
)

var byteUnits = []struct {
	name string
	size Bytes
}{
	{"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB},
	{"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

// ParseBytes reads a size such as "64KiB", "10 MB" or "4096".
func ParseBytes(s string) (Bytes, error) {
	number, unit := strings.TrimSpace(s), Bytes(1)
	for _, u := range byteUnits {
		if n, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = strings.TrimSpace(n), u.size
			break
		}
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil || n > uint64(math.MaxInt64/int64(unit)) {
		return 0, fmt.Errorf("%q is not a size (a whole number with B, KiB, MiB, GiB, kB, MB or GB)", s)
	}
	return Bytes(n) * unit, nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bytes) UnmarshalText(text []byte) error {
	v, err := ParseBytes(string(text))
	if err == nil {
		*b = v
	}
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// String writes b with the largest unit that divides it.
func (b Bytes) String() string {
	if b != 0 {
		for _, u := range byteUnits {
			if b%u.size == 0 {
				return strconv.FormatInt(int64(b/u.size), 10) + u.name
			}
		}
	}
	return "0B"
}
