package bench

import (
	"math/bits"
	"time"
)

// histogram counts durations in buckets of at most 1/64 of their value, from
// 1 µs on, in constant memory. The zero value is ready; it is not safe for
// concurrent use.
type histogram struct {
	counts []uint64 // grows up to the highest bucket in use
	n      uint64
	sum    time.Duration
	max    time.Duration
}

// subBits is the binary logarithm of the buckets per power of two.
const subBits = 6

// bucketOf returns the bucket of a duration; negative ones count as zero.
func bucketOf(d time.Duration) int {
	us := uint64(max(d, 0) / time.Microsecond)
	if us < 1<<subBits {
		return int(us)
	}
	shift := bits.Len64(us) - subBits - 1
	return (shift+1)<<subBits + int(us>>shift) - 1<<subBits
}

// bucketTop returns the largest duration of a bucket.
func bucketTop(i int) time.Duration {
	if i < 1<<subBits {
		return time.Duration(i) * time.Microsecond
	}
	shift := i>>subBits - 1
	low := uint64(i&(1<<subBits-1)+1<<subBits) << shift
	return time.Duration(low+1<<shift-1) * time.Microsecond
}

func (h *histogram) add(d time.Duration) {
	i := bucketOf(d)
	for len(h.counts) <= i {
		h.counts = append(h.counts, 0)
	}
	h.counts[i]++
	h.n++
	h.sum += d
	h.max = max(h.max, d)
}

// merge adds what another histogram has counted.
func (h *histogram) merge(o *histogram) {
	for len(h.counts) < len(o.counts) {
		h.counts = append(h.counts, 0)
	}
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.n += o.n
	h.sum += o.sum
	h.max = max(h.max, o.max)
}

// quantile returns the smallest value that at least the share q of all values
// does not exceed, rounded up by at most 1/64 but never over the maximum; 0 if
// nothing was counted. q must be in [0, 1].
func (h *histogram) quantile(q float64) time.Duration {
	want := uint64(q * float64(h.n))
	if float64(want) < q*float64(h.n) || want == 0 {
		want++
	}
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen >= want && n > 0 {
			return min(bucketTop(i), h.max)
		}
	}
	return h.max
}

// Delays are the quantiles of a set of durations, in milliseconds.
type Delays struct {
	Count  uint64  `json:"count"`
	MeanMS float64 `json:"mean_ms"`
	P50MS  float64 `json:"p50_ms"`
	P99MS  float64 `json:"p99_ms"`
	MaxMS  float64 `json:"max_ms"`
}

func (h *histogram) delays() Delays {
	d := Delays{Count: h.n, P50MS: millis(h.quantile(0.5)), P99MS: millis(h.quantile(0.99)), MaxMS: millis(h.max)}
	if h.n > 0 {
		d.MeanMS = millis(h.sum / time.Duration(h.n))
	}
	return d
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
