package e2e

import (
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
)

// ports hands out ports of 127.0.0.1 from below the range from which the kernel
// takes those of outgoing connections, so that none is taken between the moment
// it is found free and the moment a process listens on it.
var ports = struct {
	mu   sync.Mutex
	next int
}{next: firstPort + os.Getpid()*37%(lastPort-firstPort)}

const firstPort, lastPort = 20000, 28000

// freeOffset returns a number to add to the fixed ports of a local cluster so
// that all of them are free and none is one that freeAddr gives away.
func freeOffset(t testing.TB, fixed []int) int {
	t.Helper()
	const low, high = 10_000, 12_500
	for n := range high - low {
		offset := low + (os.Getpid()*41+n*7)%(high-low)
		if allFree(offset, fixed) {
			return offset
		}
	}
	t.Fatal("no free ports for a cluster")
	return 0
}

func allFree(offset int, fixed []int) bool {
	for _, port := range fixed {
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port+offset))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// freeAddr returns an address of 127.0.0.1 that nobody listens on and that no
// other caller gets.
func freeAddr(t testing.TB) string {
	t.Helper()
	ports.mu.Lock()
	defer ports.mu.Unlock()
	for range lastPort - firstPort {
		addr := fmt.Sprintf("127.0.0.1:%d", ports.next)
		if ports.next++; ports.next == lastPort {
			ports.next = firstPort
		}
		l, err := net.Listen("tcp4", addr)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return addr
	}
	t.Fatal("no free port")
	return ""
}
