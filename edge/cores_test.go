package edge

import "testing"

func TestCoresAreShared(t *testing.T) {
	for _, c := range []struct{ cores, processes, want int }{
		{1, 1, 1}, {2, 2, 1}, {2, 1, 2}, {8, 3, 3}, {2, 8, 1}, {64, 64, 1},
	} {
		if got := coresOf(c.cores, c.processes); got != c.want {
			t.Errorf("%d cores, %d processes: %d", c.cores, c.processes, got)
		}
	}
}
