package media

import "testing"

// Tags of a slab do not touch each other, whatever is appended to them.
func TestSlab(t *testing.T) {
	var s Slab
	sizes := []int{0, 1, 100, slabSize / 4, slabSize/4 + 1, 3000, 3000, 3000, 3000, 3000, 3000}
	var all [][]byte
	for i, n := range sizes {
		b := s.Make(n)
		if len(b) != n || cap(b) > len(b) && n <= slabSize/4 {
			t.Errorf("%d bytes of capacity %d, want %d", len(b), cap(b), n)
		}
		for j := range b {
			if b[j] != 0 {
				t.Fatalf("byte %d of %d is %d", j, n, b[j])
			}
			b[j] = byte(i + 1)
		}
		_ = append(b, 0xff)
		all = append(all, b)
	}
	for i, b := range all {
		for j := range b {
			if b[j] != byte(i+1) {
				t.Fatalf("byte %d of piece %d is %d", j, i, b[j])
			}
		}
	}
}

// Small tags share what is taken.
func TestSlabAllocations(t *testing.T) {
	var s Slab
	const tags = 1000
	n := testing.AllocsPerRun(10, func() {
		for range tags {
			_ = s.Make(slabSize / 16)
		}
	})
	if n > tags/16+1 {
		t.Errorf("%v allocations for %d tags", n, tags)
	}
}
