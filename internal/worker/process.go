package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"golang.org/x/sys/unix"
)

// outputLinger is how long output is read on after the death of the process
// that wrote it: its own children may have inherited the pipe.
const outputLinger = time.Second

// process is one place among the children of a supervisor, in which one
// instance runs after the other.
type process struct {
	// Static after Open.
	sup            *Supervisor
	group          *group
	index          int
	name           string // for logs: the spec's, with the index if there are several
	prefix         string // of its lines of output
	listeners      []*os.File
	rolls          chan rollRequest
	restartCounter *metrics.Counter // may be nil

	// Owned by run.
	config   []byte
	failures int // deaths in a row, none of which had lived for RestartReset

	// Guarded by mu.
	mu        sync.Mutex
	phase     Phase
	pid       int
	starts    int
	startedAt time.Time
	lastExit  string
}

// rollRequest asks for a restart with another configuration.
type rollRequest struct {
	config []byte
	quiet  bool       // without the restart: for the next one
	done   chan error // gets one answer; has room for it
}

func (p *process) roll(ctx context.Context, config []byte) error {
	return p.ask(ctx, rollRequest{config: config, done: make(chan error, 1)})
}

func (p *process) ask(ctx context.Context, r rollRequest) error {
	select {
	case p.rolls <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-p.sup.stopped:
		return ErrStopped
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-p.sup.stopped:
		return ErrStopped
	}
}

// run is the whole life of the place. See Supervisor.Run.
func (p *process) run(ctx context.Context) error {
	defer p.set(func() { p.phase = Stopped })
	var (
		everReady bool
		rolling   *rollRequest // the configuration in use is on trial
		previous  []byte       // what it was before the trial
	)
	for {
		end := p.runOnce(ctx, func() {
			if !everReady {
				everReady = true
				p.sup.firstReady()
			}
			if rolling != nil {
				rolling.done <- nil
				rolling = nil
			}
		})
		if ctx.Err() != nil {
			return nil
		}
		if end.roll != nil {
			rolling, previous = end.roll, p.config
			p.config = rolling.config
			p.failures = 0
			continue
		}
		if !everReady {
			return fmt.Errorf("start %s: %s", p.name, end.status)
		}
		pause := p.pause(end.uptime)
		phase := Restarting
		if !end.wasReady {
			phase = Failed
		}
		if rolling != nil {
			rolling.done <- fmt.Errorf("%s; it is started with the configuration it had", end.status)
			rolling, p.config = nil, previous
			pause = 0
		}
		p.set(func() { p.phase = phase })
		p.sup.log.Warn("process died", "name", p.name, "pid", end.pid, "status", end.status,
			"uptime", end.uptime.Round(time.Millisecond), "restart_in", pause.Round(time.Millisecond))
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case r := <-p.rolls:
			if r.quiet {
				r.done <- nil
			} else {
				rolling, previous = &r, p.config
			}
			p.config = r.config
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

// pause returns the time to wait before the next start after an instance that
// has lived for uptime, and counts the death.
func (p *process) pause(uptime time.Duration) time.Duration {
	cfg := &p.sup.cfg
	if uptime >= cfg.RestartReset {
		p.failures = 0
	}
	p.failures++
	if p.failures == 1 {
		return 0
	}
	pause := cfg.RestartMin
	for range p.failures - 2 {
		if pause *= 2; pause >= cfg.RestartMax {
			pause = cfg.RestartMax
			break
		}
	}
	return pause - rand.N(pause/2+1)
}

// end says how an instance ended.
type end struct {
	pid      int
	status   string
	uptime   time.Duration
	wasReady bool
	roll     *rollRequest // it was stopped for this
}

// runOnce starts an instance and returns when it has ended: by itself, for a
// roll, because it was not ready in time, or with ctx. onReady is called when
// it says that it is ready.
func (p *process) runOnce(ctx context.Context, onReady func()) (e end) {
	cfg := &p.sup.cfg
	started := time.Now()
	in, err := p.start()
	if err != nil {
		return end{status: err.Error()}
	}
	e.pid = in.cmd.Process.Pid
	p.set(func() {
		p.phase, p.pid, p.startedAt = Starting, e.pid, started
		if p.starts++; p.starts > 1 && p.restartCounter != nil {
			p.restartCounter.Inc()
		}
	})
	retires := false
	defer func() {
		e.uptime = time.Since(started)
		if retires { // it is seen off by somebody else
			p.set(func() { p.pid = 0 })
			return
		}
		in.release()
		if e.status == "" {
			e.status = in.cmd.ProcessState.String()
		}
		p.set(func() { p.pid, p.lastExit = 0, e.status })
	}()

	late := time.NewTimer(cfg.ReadyTimeout)
	defer late.Stop()
	for {
		ready, rolls := in.ready, p.rolls
		if e.wasReady {
			ready = nil
		} else {
			rolls = nil // one change at a time: this one is on trial
		}
		select {
		case <-in.exited:
			if !e.wasReady {
				e.status = in.cmd.ProcessState.String() + " before it was ready"
			}
			return e
		case <-ready:
			late.Stop()
			e.wasReady = true
			p.set(func() { p.phase = Ready })
			p.sup.log.Info("process ready", "name", p.name, "pid", e.pid, "after", time.Since(started).Round(time.Millisecond))
			onReady()
		case <-late.C:
			if e.wasReady {
				continue
			}
			_ = in.cmd.Process.Kill()
			<-in.exited
			e.status = fmt.Sprintf("killed, not ready after %v", cfg.ReadyTimeout)
			return e
		case r := <-rolls:
			if r.quiet {
				p.config = r.config
				r.done <- nil
				continue
			}
			e.roll = &r
			if retires = p.retire(ctx, in, started); !retires {
				p.stop(in)
			}
			return e
		case <-ctx.Done():
			p.stop(in)
			return e
		}
	}
}

// retire asks an instance to make room for the next one and has it seen off. It
// reports false if the instance does not: it has to be stopped first then.
func (p *process) retire(ctx context.Context, in *instance, started time.Time) bool {
	grace := p.group.spec.RollGrace
	if grace <= 0 {
		return false
	}
	p.set(func() { p.phase = Stopping })
	pid := in.cmd.Process.Pid
	_ = in.cmd.Process.Signal(syscall.SIGUSR1)
	late := time.NewTimer(p.sup.cfg.StopGrace)
	defer late.Stop()
	select {
	case <-in.retired:
	case <-in.exited:
		return false
	case <-ctx.Done():
		return false
	case <-late.C:
		p.sup.log.Warn("process gives no way to the next one: it is stopped", "name", p.name, "pid", pid)
		return false
	}
	s := p.sup
	s.mu.Lock()
	s.retiring = append(s.retiring, State{
		Spec: p.group.spec.Name, Index: p.index, Process: p.name, Phase: Retiring, PID: pid, StartedAt: started,
		Sibling: retiringIndex(pid),
	})
	s.mu.Unlock()
	s.leaving.Go(func() {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-in.exited:
		case <-timer.C:
			p.end(in)
		case <-ctx.Done():
			p.end(in)
		}
		in.release()
		s.mu.Lock()
		s.retiring = slices.DeleteFunc(s.retiring, func(r State) bool { return r.PID == pid })
		s.mu.Unlock()
		s.log.Info("process retired", "name", p.name, "pid", pid, "status", in.cmd.ProcessState.String(),
			"uptime", time.Since(started).Round(time.Millisecond))
	})
	return true
}

// stop ends an instance of which no other takes the place yet.
func (p *process) stop(in *instance) {
	p.set(func() { p.phase = Stopping })
	p.end(in)
}

// end ends an instance: SIGTERM, and after the grace SIGKILL.
func (p *process) end(in *instance) {
	_ = in.cmd.Process.Signal(syscall.SIGTERM)
	grace := time.NewTimer(p.sup.cfg.StopGrace)
	defer grace.Stop()
	select {
	case <-in.exited:
	case <-grace.C:
		p.sup.log.Warn("process killed, it did not stop in time", "name", p.name,
			"pid", in.cmd.Process.Pid, "grace", p.sup.cfg.StopGrace)
		_ = in.cmd.Process.Kill()
		<-in.exited
	}
}

// instance is one running child.
type instance struct {
	cmd      *exec.Cmd
	ready    <-chan struct{} // closed when it has said that it is ready
	retired  <-chan struct{} // closed when it has said that the next one may start
	exited   <-chan struct{} // closed when it was waited for; then cmd.ProcessState is set
	lifeline *os.File        // the write end
	readyEnd *os.File        // the read end
	output   *os.File        // the read end, or nil
	watching sync.WaitGroup
}

// start starts an instance with the configuration in force. See handover.
func (p *process) start() (_ *instance, err error) {
	var theirs []*os.File // closed here as soon as the child has its own
	in := new(instance)
	defer func() {
		closeAll(theirs)
		if err != nil {
			closeAll([]*os.File{in.lifeline, in.readyEnd, in.output}) // of a nil *os.File Close only returns an error
		}
	}()
	pipe := func() (r, w *os.File) {
		if err == nil {
			r, w, err = os.Pipe()
		}
		return r, w
	}
	config, err := memoryFile(p.config)
	if err != nil {
		return nil, fmt.Errorf("hand over configuration: %w", err)
	}
	theirs = append(theirs, config)
	lifelineEnd, lifeline := pipe()
	in.lifeline = lifeline
	readyEnd, ready := pipe()
	in.readyEnd = readyEnd
	theirs = append(theirs, lifelineEnd, ready)
	var output *os.File
	if p.sup.output != nil {
		in.output, output = pipe()
		theirs = append(theirs, output)
	}
	if err != nil {
		return nil, fmt.Errorf("make pipes: %w", err)
	}

	const firstFD = 3 // of ExtraFiles in the child
	h := handover{
		Version: handoverVersion,
		Name:    p.group.spec.Name, Index: p.index, Count: len(p.group.processes), Token: p.group.token,
		ConfigFD: firstFD, LifelineFD: firstFD + 1, ReadyFD: firstFD + 2,
		ListenerFDs: make(map[string]int, len(p.listeners)),
		Grace:       p.sup.cfg.StopGrace,
	}
	for i, a := range p.group.spec.Listen {
		h.ListenerFDs[a.Name] = firstFD + 3 + i
	}
	text, err := json.Marshal(&h)
	if err != nil {
		return nil, err
	}
	in.cmd = exec.Command(p.sup.executable, p.group.spec.Args...)
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, handoverVariable+"=") {
			in.cmd.Env = append(in.cmd.Env, variable)
		}
	}
	in.cmd.Env = append(in.cmd.Env, p.group.spec.Env...)
	in.cmd.Env = append(in.cmd.Env, handoverVariable+"="+string(text))
	in.cmd.ExtraFiles = append([]*os.File{config, lifelineEnd, ready}, p.listeners...)
	in.cmd.Stdout, in.cmd.Stderr = os.Stdout, os.Stderr
	if output != nil {
		in.cmd.Stdout, in.cmd.Stderr = output, output
	}
	if err := in.cmd.Start(); err != nil {
		return nil, err
	}

	readyCh, retired, exited := make(chan struct{}), make(chan struct{}), make(chan struct{})
	in.ready, in.retired, in.exited = readyCh, retired, exited
	in.watching.Go(func() {
		for _, said := range []chan struct{}{readyCh, retired} {
			if n, _ := readyEnd.Read(make([]byte, 1)); n == 0 {
				return
			}
			close(said)
		}
	})
	in.watching.Go(func() {
		defer close(exited)
		_ = in.cmd.Wait() // the status is in ProcessState
	})
	if in.output != nil {
		p.sup.copying.Go(func() {
			defer in.output.Close()
			p.sup.output.copyLines(p.prefix, in.output)
		})
	}
	return in, nil
}

// release closes what belongs to an instance that has exited, and waits for
// its goroutines, except for the one that copies what is left of its output.
func (in *instance) release() {
	in.lifeline.Close()
	in.readyEnd.Close()
	if in.output != nil {
		_ = in.output.SetReadDeadline(time.Now().Add(outputLinger))
	}
	in.watching.Wait()
}

// memoryFile returns a sealed file in memory that holds data, to be inherited.
func memoryFile(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("weir-config", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "config")
	if _, err := file.Write(data); err != nil {
		file.Close()
		return nil, err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		file.Close()
		return nil, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	return file, nil
}

// set changes fields under mu.
func (p *process) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

func (p *process) state() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return State{
		Spec: p.group.spec.Name, Index: p.index, Process: p.name, Sibling: p.index,
		Phase: p.phase, PID: p.pid, Restarts: max(0, p.starts-1), StartedAt: p.startedAt, LastExit: p.lastExit,
	}
}
