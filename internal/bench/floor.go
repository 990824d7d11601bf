package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// The floor is the least that sending can cost: a process that does nothing but
// give each of its connections, every interval, the bytes of that interval, with
// one system call each. A server that sends as seldom cannot be cheaper, unless
// it finds another system call.

// Floor is the bare loop's outcome at one interval.
type Floor struct {
	IntervalMS float64 `json:"interval_ms"`
	Players    int     `json:"players"`
	Bytes      uint64  `json:"bytes"` // received
	CPU        float64 `json:"cpu_seconds"`
	CPUPerGB   float64 `json:"cpu_seconds_per_gb"`
	// Rounds were sent late by more than an interval, ShortSends took less than
	// was due: either means that the loop itself was overloaded.
	LateRounds int `json:"late_rounds"`
	ShortSends int `json:"short_sends"`
	// Ratio is the server's CPU per byte against this one; 0 if it was not measured.
	Ratio float64 `json:"ratio"`
}

// ServeFloor is the bare loop's process: it takes commands from in, one a line,
// and answers each with a line on out, until in ends.
//
//	accept N              takes N connections; answers "ok"
//	send INTERVAL BYTES   sends BYTES to each every INTERVAL (ns); answers "ok"
//	stop                  answers "stopped LATE SHORT"
//
// Before the first command it says "listen ADDRESS".
func ServeFloor(in io.Reader, out io.Writer) error {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for the bare loop: %w", err)
	}
	l := listener.(*net.TCPListener)
	defer l.Close()
	fmt.Fprintf(out, "listen %s\n", l.Addr())
	commands := make(chan string)
	var g errgroup.Group
	defer func() {
		for range commands { // until in ends
		}
		_ = g.Wait()
	}()
	g.Go(func() error {
		defer close(commands)
		lines := bufio.NewScanner(in)
		for lines.Scan() {
			commands <- lines.Text()
		}
		return nil
	})
	var f floorLoop
	defer f.close()
	for line := range commands {
		var n, bytes int
		var interval time.Duration
		switch {
		case scan(line, "accept %d", &n):
			if err := f.accept(l, n); err != nil {
				return err
			}
			fmt.Fprintln(out, "ok")
		case scan(line, "send %d %d", &interval, &bytes) && interval > 0 && bytes > 0:
			fmt.Fprintln(out, "ok")
			if !f.run(interval, bytes, commands) {
				return nil
			}
			fmt.Fprintf(out, "stopped %d %d\n", f.late, f.short)
		default:
			return fmt.Errorf("bare loop: unknown command %q", line)
		}
	}
	return nil
}

func scan(line, format string, args ...any) bool {
	n, err := fmt.Sscanf(line, format, args...)
	return err == nil && n == len(args)
}

type floorLoop struct {
	fds         []int
	owed        []int // bytes that a connection did not take in time
	late, short int
}

func (f *floorLoop) close() {
	for _, fd := range f.fds {
		unix.Close(fd)
	}
}

func (f *floorLoop) accept(l *net.TCPListener, n int) error {
	for range n {
		c, err := l.AcceptTCP()
		if err != nil {
			return fmt.Errorf("accept for the bare loop: %w", err)
		}
		fd, err := takeOver(c)
		if err != nil {
			return err
		}
		f.fds = append(f.fds, fd)
		f.owed = append(f.owed, 0)
	}
	return nil
}

// takeOver takes the socket of a connection away from Go's poller, which would
// look at it for every packet.
func takeOver(c *net.TCPConn) (int, error) {
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("take over connection: %w", err)
	}
	fd := -1
	var dupErr error
	err = raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(err, dupErr); err != nil {
		return -1, fmt.Errorf("take over connection: %w", err)
	}
	return fd, nil
}

// maxOwed bounds what a connection is behind, in intervals.
const maxOwed = 4

// run sends until a command comes; it is false if none comes any more.
func (f *floorLoop) run(interval time.Duration, size int, commands <-chan string) bool {
	f.late, f.short = 0, 0
	data := make([]byte, size*maxOwed)
	next := time.Now()
	for {
		select {
		case _, ok := <-commands:
			return ok
		default:
		}
		for i, fd := range f.fds {
			want := min(f.owed[i]+size, len(data))
			n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&data[0])), uintptr(want),
				unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
			if errno != 0 {
				n = 0
			}
			if f.owed[i] = want - int(n); f.owed[i] > 0 {
				f.short++
			}
		}
		next = next.Add(interval)
		if d := time.Until(next); d > 0 {
			time.Sleep(d)
		} else if -d > interval {
			f.late++
			next = time.Now()
		}
	}
}

// floorProcess is the bare loop as its parent sees it.
type floorProcess struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Reader
	addr  netip.AddrPort
}

func startFloor(ctx context.Context, command []string) (*floorProcess, error) {
	p := &floorProcess{cmd: exec.CommandContext(ctx, command[0], command[1:]...)}
	p.cmd.WaitDelay = time.Second
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start bare loop: %w", err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start bare loop: %w", err)
	}
	p.in, p.lines = in, bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start bare loop: %w", err)
	}
	line, err := p.lines.ReadString('\n')
	if err == nil {
		addr, _ := strings.CutPrefix(strings.TrimSpace(line), "listen ")
		p.addr, err = netip.ParseAddrPort(addr)
	}
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("start bare loop: %w", err)
	}
	return p, nil
}

// ask sends a command and returns the answer.
func (p *floorProcess) ask(format string, args ...any) (string, error) {
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		return "", fmt.Errorf("command the bare loop: %w", err)
	}
	line, err := p.lines.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("command the bare loop: %w", err)
	}
	return strings.TrimSpace(line), nil
}

func (p *floorProcess) stop() {
	_ = p.in.Close() // its loop ends with its input
	_ = p.cmd.Wait()
}

// floorSettle is the time between a change of the interval and the measurement.
const floorSettle = time.Second

// measureFloor runs the bare loop for as many players as the server had, which
// receive as the light players did.
func (r *run) measureFloor(ctx context.Context) error {
	p, err := startFloor(ctx, r.cfg.FloorCommand)
	if err != nil {
		return err
	}
	defer p.stop()
	loadCtx, stop := context.WithCancel(ctx)
	defer r.running.Wait()
	defer stop()
	r.addr, r.sources = p.addr, sourcesFor(p.addr)
	r.loops, r.probes, r.publishers = nil, nil, nil
	r.probeBytes.Store(0)
	if err := r.startLoops(loadCtx); err != nil {
		return err
	}
	n := r.cfg.Players
	for i := range n {
		r.loops[i%len(r.loops)].add(&player{kind: ofFloor})
	}
	if _, err := p.ask("accept %d", n); err != nil {
		return err
	}
	for _, interval := range r.cfg.Floor {
		step := fmt.Sprintf("floor %v", interval)
		size := int(r.cfg.Form.BitRate * int64(interval) / 8 / int64(time.Second))
		if _, err := p.ask("send %d %d", interval, size); err != nil {
			return err
		}
		if err := r.pause(ctx, step, floorSettle); err != nil {
			return err
		}
		server := processes{p.cmd.Process.Pid}
		cpu0, c0 := server.cpu(), r.count()
		if err := r.pause(ctx, step, r.cfg.FloorTime); err != nil {
			return err
		}
		cpu1, c1 := server.cpu(), r.count()
		answer, err := p.ask("stop")
		if err != nil {
			return err
		}
		f := Floor{
			IntervalMS: millis(interval), Players: c1.playing,
			Bytes: c1.bytes - c0.bytes, CPU: (cpu1.total() - cpu0.total()).Seconds(),
		}
		if !scan(answer, "stopped %d %d", &f.LateRounds, &f.ShortSends) {
			return fmt.Errorf("command the bare loop: answer is %q", answer)
		}
		if f.Bytes > 0 {
			f.CPUPerGB = f.CPU / (float64(f.Bytes) / 1e9)
		}
		if f.CPUPerGB > 0 {
			f.Ratio = r.report.Window.CPUPerGB / f.CPUPerGB
		}
		r.report.Floor = append(r.report.Floor, f)
	}
	return nil
}
