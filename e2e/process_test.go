package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// output collects what a process writes. Safe for concurrent use.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// outputLimit bounds what is kept of a process that writes without end.
const outputLimit = 4 << 20

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.buf.Len() < outputLimit {
		o.buf.Write(p)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// process is a running program. Its output is shown if the test fails; it is
// killed, if it has not ended, when the test does.
type process struct {
	t      testing.TB
	name   string
	cmd    *exec.Cmd
	stdout *output
	stderr *output
	done   chan struct{} // closed when it has ended
	err    error         // of Wait; valid after done
	// raceFree says that the process is ours: a report of the race detector or
	// a panic in its output fails the test.
	raceFree bool
}

// start runs a program until it ends or the test does.
func start(t testing.TB, name, path string, args ...string) *process {
	t.Helper()
	return startWith(t, name, exec.Command(path, args...))
}

// raceOptions is the variable of the environment by which a race ends a process at
// once, so that it cannot go unnoticed.
const raceOptions = "GORACE=halt_on_error=1 exitcode=66"

// startWeir runs the binary under test.
func startWeir(t testing.TB, name string, args ...string) *process {
	t.Helper()
	return startProgram(t, name, weirBinary(t), args...)
}

// startProgram runs a weir at a path of its own.
func startProgram(t testing.TB, name, path string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), raceOptions)
	p := startWith(t, name, cmd)
	p.raceFree = true
	return p
}

func startWith(t testing.TB, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, name: name, cmd: cmd, stdout: new(output), stderr: new(output), done: make(chan struct{})}
	cmd.Stdin = nil
	if cmd.Stdout == nil {
		cmd.Stdout = p.stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.stderr
	}
	// Whatever a process leaves open, Wait returns soon after it has ended.
	cmd.WaitDelay = 3 * time.Second
	// If the test binary is killed, its processes go too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v (see \"make tools\")", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(p.cleanup)
	return p
}

func (p *process) cleanup() {
	if p.running() {
		// Ours stop by themselves, so that a race in stopping is found too.
		if p.raceFree {
			_ = p.cmd.Process.Signal(syscall.SIGINT) // at once: a SIGTERM drains
			select {
			case <-p.done:
			case <-time.After(stopTimeout):
				p.t.Errorf("%s (pid %d) does not stop on SIGINT", p.name, p.pid())
				_ = p.cmd.Process.Signal(syscall.SIGQUIT) // shows its goroutines
			}
		}
		select {
		case <-p.done:
		case <-time.After(time.Second):
		}
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	log := p.stderr.String() + p.stdout.String()
	if p.raceFree {
		for _, sign := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
			if strings.Contains(log, sign) {
				p.t.Errorf("%s wrote %q", p.name, sign)
			}
		}
	}
	if p.t.Failed() {
		p.t.Logf("---- stderr of %s (pid %d, ended: %v)\n%s", p.name, p.pid(), p.err, tail(p.stderr.String(), 12<<10))
		if out := p.stdout.String(); out != "" {
			p.t.Logf("---- stdout of %s\n%s", p.name, tail(out, 4<<10))
		}
	}
}

// tail returns the last n bytes of s.
func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "...\n" + s[len(s)-n:]
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// stop sends SIGTERM and waits for a good end.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	if code := p.wait(stopTimeout); code != 0 {
		p.t.Errorf("%s ended with exit code %d after SIGTERM, want 0", p.name, code)
	}
}

// kill ends the process as a power cut would, and waits for its end.
func (p *process) kill() {
	p.t.Helper()
	p.signal(syscall.SIGKILL)
	p.wait(stopTimeout)
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("signal %s: %v", p.name, err)
	}
}

// wait returns the exit code; -1 after a signal.
func (p *process) wait(timeout time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(timeout):
		p.t.Fatalf("%s still runs after %v", p.name, timeout)
		return 0
	}
}

// sees waits until the process has written the text.
func (p *process) sees(text string) {
	p.t.Helper()
	eventually(p.t, waitTimeout, fmt.Sprintf("%s writes %q", p.name, text), func() error {
		if strings.Contains(p.stdout.String(), text) || strings.Contains(p.stderr.String(), text) {
			return nil
		}
		if !p.running() {
			return fmt.Errorf("it has ended: %v", p.err)
		}
		return errors.New("not written yet")
	})
}

// result is what a program left that ran to its end.
type result struct {
	stdout, stderr string
	code           int
}

// runFor runs a program to its end and returns what it wrote and its exit code.
func runFor(t testing.TB, timeout time.Duration, path string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		t.Fatalf("%s %s: not done after %v\n%s", path, strings.Join(args, " "), timeout, tail(stderr.String(), 4<<10))
	case err != nil && !errors.As(err, &exit):
		t.Fatalf("run %s: %v (see \"make tools\")", path, err)
	}
	return result{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
}

// weir runs the binary under test to its end.
func weir(t testing.TB, timeout time.Duration, args ...string) result {
	t.Helper()
	return runFor(t, timeout, weirBinary(t), args...)
}

// alive reports whether a process of that id exists.
func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// peakBytes is the most memory that the process has ever held.
func peakBytes(t testing.TB, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var kib int64
	_, after, ok := strings.Cut(string(text), "VmHWM:")
	if _, err := fmt.Sscan(after, &kib); !ok || err != nil {
		t.Fatalf("read VmHWM of process %d: %v", pid, err)
	}
	return kib << 10
}
