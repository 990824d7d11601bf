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

const firstPort, lastPort = 20000, 32000

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
