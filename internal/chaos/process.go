package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"weir/internal/chaos/model"
	"weir/internal/chaos/wire"
)

// process is a node of the cluster: one program, started again after it was
// killed. Its methods are safe for concurrent use.
type process struct {
	// Static.
	name, role string
	host       *wire.Host
	admin      *http.Client // in the host
	rec        *recorder
	command    func() *exec.Cmd
	health     string // path of what says whether it is ready
	disk       *disk
	log        string // name of the log there

	mu sync.Mutex
	// Guarded by mu.
	cmd  *exec.Cmd     // nil while there is none
	done chan struct{} // closed when it has ended
	code int           // how it ended
	life int           // number of the start
}

// adminAddr is where each node answers its operator: on its loopback, which no
// fault of the wire reaches.
const adminAddr = "127.0.0.1:9090"

// adminTimeout bounds a question to a node.
const adminTimeout = time.Second

func newProcess(name, role string, host *wire.Host, rec *recorder, d *disk) *process {
	p := &process{name: name, role: role, host: host, rec: rec, disk: d, log: name + ".log"}
	p.admin = &http.Client{
		Timeout:   adminTimeout,
		Transport: &http.Transport{DialContext: host.DialContext, MaxIdleConnsPerHost: 2},
	}
	return p
}

// start starts the program and notes its end when that comes.
func (p *process) start() error {
	log, err := p.disk.open(p.log)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	defer log.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(log, "---- start at %d ms\n", p.rec.ms())
	cmd := p.command()
	cmd.Stdout, cmd.Stderr = log, log
	// If the checker is killed, its processes go too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	p.life++
	go func() { // awaited by whoever waits for done
		defer close(done)
		err := cmd.Wait()
		p.mu.Lock()
		p.cmd, p.code = nil, cmd.ProcessState.ExitCode()
		p.mu.Unlock()
		text := "exit code 0"
		if err != nil {
			text = err.Error()
		}
		p.rec.event(model.Event{Kind: model.KindDown, Node: p.name, Text: text})
	}()
	return nil
}

// awaitReady waits until the program is ready, and notes it.
func (p *process) awaitReady(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := p.ask(ctx, p.health, nil)
		if err == nil {
			p.rec.event(model.Event{Kind: model.KindUp, Node: p.name})
			return nil
		}
		if rest(ctx, 50*time.Millisecond); ctx.Err() != nil {
			return fmt.Errorf("%s is not ready: %w (see %s)", p.name, err, p.log)
		}
	}
}

// signal sends a signal to the program, or to all of its processes.
func (p *process) signal(s syscall.Signal, all bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	pid := p.cmd.Process.Pid
	if all {
		pid = -pid // the process group: workers are in that of their supervisor
	}
	_ = syscall.Kill(pid, s)
}

// ended returns a channel that is closed when the program has ended.
func (p *process) ended() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// pid returns the process of the program, 0 while there is none, and how many
// times it was started.
func (p *process) pid() (pid, life int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0, p.life
	}
	return p.cmd.Process.Pid, p.life
}

// note notes an event of a program that still runs since it was started for the
// life-th time: what is known of its predecessor is of no use any more.
func (p *process) note(life int, e model.Event) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil || p.life != life {
		return false
	}
	p.rec.event(e)
	return true
}

// kill ends the program as a power cut would, and waits for its end.
func (p *process) kill() {
	p.signal(syscall.SIGKILL, true)
	if done := p.ended(); done != nil {
		<-done
	}
}

// stop ends the program properly; an error says that it did not end so.
func (p *process) stop(patience time.Duration) error {
	p.signal(syscall.SIGTERM, false)
	done := p.ended()
	if done == nil {
		return nil
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		p.signal(syscall.SIGQUIT, false) // shows its goroutines in the log
		p.kill()
		return fmt.Errorf("%s does not stop on SIGTERM within %v", p.name, patience)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.code != 0 {
		return fmt.Errorf("%s ended with exit code %d after SIGTERM", p.name, p.code)
	}
	return nil
}

// ask decodes an answer of the node's admin API; with nil its status is enough.
func (p *process) ask(ctx context.Context, path string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+adminAddr+path, nil)
	if err != nil {
		return err
	}
	response, err := p.admin.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4<<20))
	switch {
	case err != nil:
		return err
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %s: %s", path, response.Status, body)
	case into == nil:
		return nil
	}
	if text, ok := into.(*string); ok {
		*text = string(body)
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return errors.Join(fmt.Errorf("decode %s of %s", path, p.name), err)
	}
	return nil
}
