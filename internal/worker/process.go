package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
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
	program  program   // what is started next
	failures int       // deaths in a row, none of which had lived for RestartReset
	adopted  *instance // was left by the program before; nil once run has it

	// Guarded by mu.
	mu        sync.Mutex
	phase     Phase
	pid       int
	current   *instance // that is running, nil if none is
	starts    int
	startedAt time.Time
	lastExit  string
}

// program is what an instance is started with.
type program struct {
	image  *Image
	config []byte
}

// rollRequest asks for a restart with another program.
type rollRequest struct {
	program program
	quiet   bool       // without the restart: the configuration is for the next one
	done    chan error // gets one answer; has room for it
}

func (p *process) roll(ctx context.Context, to program) error {
	return p.ask(ctx, rollRequest{program: to, done: make(chan error, 1)})
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
		rolling   *rollRequest // the program in use is on trial
		previous  program      // what it was before the trial
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
			rolling, previous = end.roll, p.program
			p.program = rolling.program
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
			rolling.done <- fmt.Errorf("%s; it is started as it was before", end.status)
			rolling, p.program = nil, previous
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
				p.program.config = r.program.config
				r.done <- nil
			} else {
				rolling, previous = &r, p.program
				p.program = r.program
			}
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
	in, err := p.next()
	if err != nil {
		return end{status: err.Error()}
	}
	started := in.started
	e.pid = in.process.Pid
	retires := false
	defer func() {
		e.uptime = time.Since(started)
		p.set(func() { p.current = nil }) // before its files are closed
		if retires {                      // it is seen off by somebody else
			p.set(func() { p.pid = 0 })
			return
		}
		in.release()
		if e.status == "" {
			e.status = in.status
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
				e.status = in.status + " before it was ready"
			}
			return e
		case <-ready:
			late.Stop()
			e.wasReady = true
			p.set(func() { p.phase = Ready })
			if !in.adopted {
				p.sup.log.Info("process ready", "name", p.name, "pid", e.pid, "after", time.Since(started).Round(time.Millisecond))
			}
			onReady()
		case <-late.C:
			if e.wasReady {
				continue
			}
			_ = in.process.Kill()
			<-in.exited
			e.status = fmt.Sprintf("killed, not ready after %v", cfg.ReadyTimeout)
			return e
		case r := <-rolls:
			if r.quiet {
				p.program.config = r.program.config
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
	pid := in.process.Pid
	_ = in.process.Signal(syscall.SIGUSR1)
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
	p.seeOff(ctx, in, time.Now().Add(grace))
	return true
}

// retiree is a process whose place another one has.
type retiree struct {
	State    State
	instance *instance
	until    time.Time // when it is stopped
}

// seeOff waits beside the others for the end of an instance that retires, and stops
// it at the given time or with ctx.
func (p *process) seeOff(ctx context.Context, in *instance, until time.Time) {
	s, pid := p.sup, in.process.Pid
	r := &retiree{
		State: State{
			Spec: p.group.spec.Name, Index: p.index, Process: p.name, Phase: Retiring, PID: pid, StartedAt: in.started,
			Sibling: retiringIndex(pid),
		},
		instance: in, until: until,
	}
	s.mu.Lock()
	s.retiring = append(s.retiring, r)
	s.mu.Unlock()
	s.leaving.Go(func() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		select {
		case <-in.exited:
		case <-timer.C:
			p.end(in)
		case <-ctx.Done():
			p.end(in)
		}
		s.mu.Lock()
		s.retiring = slices.DeleteFunc(s.retiring, func(other *retiree) bool { return other == r })
		s.mu.Unlock()
		in.release()
		s.log.Info("process retired", "name", p.name, "pid", pid, "status", in.status,
			"uptime", time.Since(in.started).Round(time.Millisecond))
	})
}

// stop ends an instance of which no other takes the place yet.
func (p *process) stop(in *instance) {
	p.set(func() { p.phase = Stopping })
	p.end(in)
}

// end ends an instance: SIGTERM, and after the grace SIGKILL.
func (p *process) end(in *instance) {
	_ = in.process.Signal(syscall.SIGTERM)
	grace := time.NewTimer(p.sup.cfg.StopGrace)
	defer grace.Stop()
	select {
	case <-in.exited:
	case <-grace.C:
		p.sup.log.Warn("process killed, it did not stop in time", "name", p.name,
			"pid", in.process.Pid, "grace", p.sup.cfg.StopGrace)
		_ = in.process.Kill()
		<-in.exited
	}
}

// instance is one running child.
type instance struct {
	process  *os.Process
	started  time.Time
	adopted  bool            // by the program before this one
	ready    <-chan struct{} // closed when it has said that it is ready
	retired  <-chan struct{} // closed when it has said that the next one may start
	exited   <-chan struct{} // closed when it was waited for
	status   string          // how it ended; valid after exited
	lifeline *os.File        // the write end
	readyEnd *os.File        // the read end
	output   *os.File        // the read end, or nil
	watching sync.WaitGroup
}

// next returns the instance that the program before has left in this place, or a new
// one, and notes it as the current one.
func (p *process) next() (*instance, error) {
	if in := p.adopted; in != nil {
		p.adopted = nil
		p.set(func() { p.current = in })
		return in, nil
	}
	p.sup.starting.Lock()
	defer p.sup.starting.Unlock()
	in, err := p.start()
	if err != nil {
		return nil, err
	}
	p.set(func() {
		p.phase, p.pid, p.current, p.startedAt = Starting, in.process.Pid, in, in.started
		if p.starts++; p.starts > 1 && p.restartCounter != nil {
			p.restartCounter.Inc()
		}
	})
	return in, nil
}

// take takes over what the program before has left in this place.
func (p *process) take(left processLeft) (err error) {
	p.startedAt, p.starts, p.lastExit = left.StartedAt, left.Starts, left.LastExit
	if p.restartCounter != nil {
		p.restartCounter.Set(uint64(max(0, left.Starts-1)))
	}
	if left.PID == 0 {
		return nil
	}
	if p.adopted, err = adopt(left); err == nil {
		p.phase, p.pid = Ready, left.PID
	}
	return err
}

// adopt returns the instance of a process that the program before has left, which
// was ready.
func adopt(left processLeft) (*instance, error) {
	process, err := os.FindProcess(left.PID)
	if err != nil {
		return nil, fmt.Errorf("adopt process %d: %w", left.PID, err)
	}
	in := &instance{process: process, started: left.StartedAt, adopted: true}
	in.lifeline, in.readyEnd = os.NewFile(uintptr(left.LifelineFD), "lifeline"), os.NewFile(uintptr(left.ReadyFD), "ready")
	in.watch()
	return in, nil
}

// watch begins to listen to the child and to wait for its end.
func (in *instance) watch() {
	ready, retired, exited := make(chan struct{}), make(chan struct{}), make(chan struct{})
	in.ready, in.retired, in.exited = ready, retired, exited
	words := []chan struct{}{ready, retired}
	if in.adopted {
		close(ready)
		words = words[1:]
	}
	in.watching.Go(func() {
		for _, said := range words {
			if n, _ := in.readyEnd.Read(make([]byte, 1)); n == 0 {
				return
			}
			close(said)
		}
	})
	in.watching.Go(func() {
		defer close(exited)
		state, err := in.process.Wait()
		if in.status = "ended"; err == nil {
			in.status = state.String()
		}
	})
}

// start starts an instance with the program in force. See handover.
func (p *process) start() (_ *instance, err error) {
	var theirs []*os.File // closed here as soon as the child has its own
	in := &instance{started: time.Now()}
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
	config, err := memoryFile(p.program.config)
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
	cmd := exec.Command(p.program.image.exec(), p.group.spec.Args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(environment(), p.group.spec.Env...)
	cmd.Env = append(cmd.Env, handoverVariable+"="+string(text))
	cmd.ExtraFiles = append([]*os.File{config, lifelineEnd, ready}, p.listeners...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if output != nil {
		cmd.Stdout, cmd.Stderr = output, output
	}
	if err := startSlack(cmd); err != nil {
		return nil, err
	}
	in.process = cmd.Process // all its files are *os.File: there is nothing else to wait for
	in.watch()
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
