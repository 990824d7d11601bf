package bench

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// cluster is a local cluster of real processes.
type cluster struct {
	rtmp, http, admin string // host:port of the edge
}

// startCluster builds weir and runs `weir cluster` on free ports.
func startCluster(t *testing.T) cluster {
	t.Helper()
	weir := filepath.Join(t.TempDir(), "weir")
	build := exec.Command("go", "build", "-o", weir, "weir/cmd/weir")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build weir: %v\n%s", err, out)
	}
	offset := freeOffset(t)
	var log lockedBuffer
	cmd := exec.Command(weir, "cluster", "--no-demo", "--workers", "1", "--port-offset", fmt.Sprint(offset))
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(15*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		late.Stop()
		if t.Failed() {
			t.Logf("cluster:\n%s", log.String())
		}
	})
	c := cluster{
		rtmp: fmt.Sprintf("127.0.0.1:%d", 1935+offset), http: fmt.Sprintf("127.0.0.1:%d", 8080+offset),
		admin: fmt.Sprintf("http://127.0.0.1:%d", 9090+offset),
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		// The node answers when its workers do.
		pids, err := NodePIDs(t.Context(), c.admin, "")
		if err == nil && len(pids) == 2 {
			if conn, err := net.Dial("tcp", c.rtmp); err == nil {
				conn.Close()
				return c
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("cluster does not start: %v, processes %v", err, pids)
		}
		timer := time.NewTimer(20 * time.Millisecond)
		<-timer.C
	}
}

// freeOffset returns an offset at which all ports of a local cluster are free.
func freeOffset(t *testing.T) int {
	t.Helper()
	for offset := 3100 + os.Getpid()%97*100; offset < 13000; offset += 100 {
		free := true
		for _, port := range []int{1935, 8080, 9090, 19351, 18081, 19091, 19352, 18082, 19092, 7070} {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+offset))
			if err != nil {
				free = false
				break
			}
			l.Close()
		}
		if free {
			return offset
		}
	}
	t.Fatal("no free ports for a cluster")
	return 0
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// A small load on a real cluster: everything arrives, and the figures are such
// as a healthy server has.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	pids, err := NodePIDs(t.Context(), c.admin, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("all", func(t *testing.T) {
		for _, protocol := range []Protocol{HTTPFLV, WSFLV, RTMP, HLS} {
			t.Run(string(protocol), func(t *testing.T) {
				t.Parallel()
				cfg := DefaultConfig()
				cfg.Name, cfg.Protocol, cfg.PIDs = "t-"+string(protocol)+"-", protocol, pids
				cfg.Publish, cfg.Play = "rtmp://"+c.rtmp+"/live", "http://"+c.http+"/live"
				if protocol == RTMP {
					cfg.Play = "rtmp://" + c.rtmp + "/live"
				}
				cfg.Players, cfg.Probes, cfg.Streams, cfg.Ramp = 20, 4, 2, 100
				cfg.Settle, cfg.Duration = 200*time.Millisecond, time.Second
				cfg.Form.GOP = 500 * time.Millisecond
				if protocol == HTTPFLV {
					cfg.Slow, cfg.Stalled, cfg.Crowd, cfg.CrowdTime = 1, 1, 10, 100*time.Millisecond
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				r, err := Run(ctx, cfg)
				if err != nil {
					t.Fatal(err)
				}
				checkReport(t, r)
				if t.Failed() {
					var b bytes.Buffer
					_ = r.Write(&b)
					t.Log("\n" + b.String())
				}
			})
		}
	})
}

func checkReport(t *testing.T, r *Report) {
	t.Helper()
	wrong := func(bad bool, format string, args ...any) {
		t.Helper()
		if bad {
			t.Errorf(format, args...)
		}
	}
	wrong(r.Failed+r.Closed+r.HeadersMissing+r.Unmarked != 0, "players failed: %d, closed: %d, without headers: %d, unmarked: %d: %v",
		r.Failed, r.Closed, r.HeadersMissing, r.Unmarked, r.Errors)
	p := r.Probes
	wrong(p.Count != 4 || p.Frames == 0, "%d probes saw %d frames", p.Count, p.Frames)
	wrong(p.Gaps+p.Torn+p.Disorder+p.Foreign != 0, "probes: %+v", p)
	wrong(r.Window.CPU <= 0 || r.Window.CPUPerGB <= 0, "no processor time: %+v", r.Window)
	wrong(r.Memory.Before == 0 || r.Memory.After == 0, "no memory: %+v", r.Memory)
	wrong(r.Window.Bytes == 0, "nothing was received")
	wrong(r.FirstKeyFrame.Count != 20, "%d players saw a key frame", r.FirstKeyFrame.Count)
	if r.Protocol == HLS {
		wrong(r.HLS.Segments < 20 || r.HLS.Missed != 0, "HLS: %+v", r.HLS)
		return
	}
	wrong(p.Share.Count != 4 || p.Share.Min != 1, "probes got %+v of their streams", p.Share)
	// Over RTMP the count begins up to 1 KiB late, and the server's own pings may
	// be among the bytes.
	wrong(r.Light.Count != 16 || r.Light.Min < 0.99 || r.Light.Mean > 1.01, "light players got %+v of their streams", r.Light)
	d := r.Window.Delay
	wrong(d.Count < 4*40 || d.P50MS <= 0 || d.P50MS > d.P99MS || d.P99MS > d.MaxMS || d.P50MS > 1000, "delays are %+v", d)
	if r.Slow != nil {
		wrong(r.Slow.Seen.Count != 1 || r.Slow.Window.Delay.Count == 0, "slow players: %+v", r.Slow)
	}
	if r.Crowd != nil {
		wrong(r.Crowd.Failed != 0 || r.Crowd.FirstKeyFrame.Count != 10, "crowd: %+v", r.Crowd)
	}
}
