package httpdns

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"weir/discovery/schedule"
	"weir/internal/limit"
)

// scheduled is a placer of n edges whose reports never grow old.
type scheduled struct{ s *schedule.Scheduler }

func newScheduled(n int) scheduled {
	s := schedule.New(schedule.DefaultConfig(), nil, 1)
	nodes := make([]schedule.Node, n)
	for i := range nodes {
		nodes[i] = schedule.Node{
			ID: fmt.Sprintf("edge-%03d", i), Role: "edge", State: "up", RTMP: fmt.Sprintf("10.0.0.%d:1935", i%250), HTTP: "10.0.0.1:8080",
			Load: float64(i%80) / 200, Reported: true, Capacity: 100e9, Seen: time.Now().Add(24 * time.Hour), Region: []string{"eu", "us"}[i%2],
		}
	}
	s.Update(time.Now(), nodes)
	return scheduled{s}
}

func (p scheduled) Place(_ context.Context, r schedule.Request, why bool) (schedule.Choice, error) {
	return p.s.Decide(time.Now(), r, why)
}

// TestServeForBenchmark is the server's process of BenchmarkResolve.
func TestServeForBenchmark(t *testing.T) {
	const variable = "WEIR_TEST_RESOLVE_NODES"
	var nodes int
	if _, err := fmt.Sscan(os.Getenv(variable), &nodes); err != nil {
		return // an ordinary run of the tests
	}
	cfg := DefaultConfig()
	var loopback limit.Prefix
	if err := loopback.UnmarshalText([]byte("127.0.0.0/8")); err != nil {
		t.Fatal(err)
	}
	cfg.Trusted = []limit.Prefix{loopback}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	fmt.Fprintln(os.Stderr, l.Addr())
	if err := NewServer(cfg, newScheduled(nodes), nil).Serve(ctx, l); err != nil {
		t.Fatal(err)
	}
}

// readAnswer reads one answer, cheaply: the client has one core as well.
func readAnswer(r *bufio.Reader) error {
	length := -1
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		switch {
		case err != nil:
			return err
		case first && !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")):
			return fmt.Errorf("answer %q", line)
		case bytes.HasPrefix(line, []byte("Content-Length: ")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[16:]))); err != nil {
				return err
			}
		case len(line) == 2:
			_, err := r.Discard(length)
			return err
		}
	}
}

// A server process with one core answers 32 connections. answers/s is what came
// back; cpu-us is the server's processor time for an answer, of which a million
// make a core.
func BenchmarkResolve(b *testing.B) {
	for _, nodes := range []int{10, 100} {
		b.Run(fmt.Sprintf("%d-nodes", nodes), func(b *testing.B) {
			server := exec.Command(os.Args[0], "-test.run", "^TestServeForBenchmark$")
			server.Env = append(os.Environ(), "GOMAXPROCS=1", fmt.Sprint("WEIR_TEST_RESOLVE_NODES=", nodes))
			out, err := server.StderrPipe()
			if err != nil {
				b.Fatal(err)
			}
			if err := server.Start(); err != nil {
				b.Fatal(err)
			}
			addr, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				b.Fatal(err)
			}
			addr = strings.TrimSpace(addr)

			var left atomic.Int64
			left.Store(int64(b.N))
			var clients sync.WaitGroup
			b.ResetTimer()
			for range 32 {
				clients.Go(func() {
					c, err := net.Dial("tcp", addr)
					if err != nil {
						b.Error(err)
						return
					}
					defer c.Close()
					r := bufio.NewReader(c)
					var request []byte
					for i := 0; left.Add(-1) >= 0; i++ {
						request = fmt.Appendf(request[:0], "GET /resolve?domain=v&stream=live/%d&ip=10.1.2.3&role=play HTTP/1.1\r\nHost: x\r\n\r\n", i%100)
						if _, err := c.Write(request); err != nil {
							b.Error(err)
							return
						}
						if err := readAnswer(r); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			clients.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "answers/s")
			_ = server.Process.Signal(syscall.SIGTERM)
			if err := server.Wait(); err != nil {
				b.Fatal(err)
			}
			used := server.ProcessState.UserTime() + server.ProcessState.SystemTime()
			b.ReportMetric(float64(used.Microseconds())/float64(b.N), "cpu-us")
		})
	}
}
