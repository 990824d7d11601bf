package edge

import (
	"os"
	"runtime"
)

// shareCores has Go run code of this process on no more cores at a time than fall to
// it if so many processes share them: with a worker for each core that is one. A
// worker's work is one goroutine that sends. With more cores than it needs, each
// wake-up has Go look for work on all of them, which took a sixth of what players cost
// at long batches. GOMAXPROCS in the environment overrides it.
func shareCores(processes int) {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(coresOf(runtime.GOMAXPROCS(0), processes))
	}
}

// coresOf returns the share of one of so many processes, rounded up.
func coresOf(cores, processes int) int { return (cores + processes - 1) / max(processes, 1) }
