package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// handoverVariable is the environment variable in which a supervisor tells its
// child what it has inherited, as the JSON of a handover. Inherit takes it out
// of the environment, and a supervisor never passes its own on, so that a
// supervisor can itself be the child of another one.
const handoverVariable = "WEIR_CHILD"

// handoverVersion changes with the meaning of any field of handover. Parent
// and child are the same program, except during an upgrade.
const handoverVersion = 1

// maxConfig bounds the configuration of a child in bytes.
const maxConfig = 16 << 20

// handover is what a supervisor tells its child. Numbers called fd are
// descriptors that the child has inherited.
type handover struct {
	Version int    `json:"version"`
	Name    string `json:"name"`
	Index   int    `json:"index"`
	Count   int    `json:"count"`
	Token   string `json:"token"`

	// ConfigFD is a sealed memory file with the effective configuration. It
	// may hold keys, so it is never on a disk nor in the environment, which
	// /proc shows.
	ConfigFD int `json:"config_fd"`
	// LifelineFD is the read end of a pipe to which nothing is ever written
	// and whose write end only the supervisor has: it ends when the supervisor
	// does, however it dies.
	LifelineFD int `json:"lifeline_fd"`
	// ReadyFD is the write end of a pipe. The first byte means ready, the second
	// retired.
	ReadyFD int `json:"ready_fd"`
	// ListenerFDs are listening sockets by the names of their addresses.
	ListenerFDs map[string]int `json:"listener_fds,omitempty"`

	// Grace is how long the child may live on without its supervisor.
	Grace time.Duration `json:"grace_ns"`
}

func (h *handover) validate() error {
	if h.Version != handoverVersion {
		return fmt.Errorf("version %d, this binary speaks %d", h.Version, handoverVersion)
	}
	if h.Index < 0 || h.Index >= h.Count {
		return fmt.Errorf("process %d of %d", h.Index, h.Count)
	}
	if h.Grace <= 0 {
		return fmt.Errorf("grace of %v", h.Grace)
	}
	fds := []int{h.ConfigFD, h.LifelineFD, h.ReadyFD}
	for _, fd := range h.ListenerFDs {
		fds = append(fds, fd)
	}
	slices.Sort(fds)
	if fds[0] < 3 || len(slices.Compact(slices.Clone(fds))) != len(fds) {
		return fmt.Errorf("descriptors %v", fds)
	}
	return nil
}

var (
	// ErrNotChild is the error of Inherit in a process that no supervisor
	// started.
	ErrNotChild = errors.New("not the child of a supervisor")
	// ErrSupervisorGone is the cause of the end of a child's context when its
	// supervisor has died.
	ErrSupervisorGone = errors.New("the supervisor is gone")
	// ErrTerminated is the cause of the end of a child's context when its
	// supervisor (or somebody else) asked it to stop by SIGTERM.
	ErrTerminated = errors.New("asked to stop by SIGTERM")
)

// Child is what a process has inherited from its supervisor.
type Child struct {
	// Name is the name of the Spec.
	Name string
	// Index is the process's number among the Count processes of its Spec.
	Index, Count int
	// Token names the group of siblings for ListenSibling and DialSibling.
	Token string
	// Config is the configuration as the supervisor gave it.
	Config []byte
	// Listeners are the process's own listening sockets by the names of their
	// addresses. Closing one here leaves the supervisor's open: what connects
	// then waits for the next process.
	Listeners map[string]net.Listener

	// Static.
	ctx      context.Context
	cancel   context.CancelCauseFunc
	grace    time.Duration
	lifeline *os.File
	signals  chan os.Signal
	closed   chan struct{} // closed by Close
	running  sync.WaitGroup

	retire chan os.Signal // SIGUSR1

	mu      sync.Mutex
	ready   *os.File // guarded by mu; nil when it is closed
	isReady bool     // guarded by mu
}

// Inherit takes over what the supervisor handed to this process, or returns
// ErrNotChild. It can succeed once in a process, so main calls it, early.
//
// From then on SIGINT and SIGHUP are ignored: a terminal sends them to the
// whole group of processes, and what they mean is the supervisor's to decide.
// (A process that wants SIGHUP calls signal.Notify after Inherit.) SIGUSR1 is how
// the supervisor asks to retire; see Child.Retire. SIGTERM and
// the death of the supervisor end the Child's context. A process that still
// runs Config.StopGrace after its supervisor's death kills itself.
//
// The caller calls Close at its end, when all it has started has stopped.
func Inherit() (*Child, error) {
	text, ok := os.LookupEnv(handoverVariable)
	if !ok {
		return nil, ErrNotChild
	}
	os.Unsetenv(handoverVariable)
	keepName()
	c, err := inherit([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("inherit from the supervisor: %w", err)
	}
	return c, nil
}

func inherit(text []byte) (_ *Child, err error) {
	var h handover
	if err := json.Unmarshal(text, &h); err != nil {
		return nil, err
	}
	if err := h.validate(); err != nil {
		return nil, err
	}
	c := &Child{
		Name: h.Name, Index: h.Index, Count: h.Count, Token: h.Token,
		Listeners: make(map[string]net.Listener, len(h.ListenerFDs)),
		grace:     h.Grace,
		ready:     inheritedFile(h.ReadyFD, "ready"),
	}
	defer func() {
		if err != nil {
			c.ready.Close()
			for _, l := range c.Listeners {
				l.Close()
			}
		}
	}()
	if c.Config, err = readConfig(h.ConfigFD); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	for name, fd := range h.ListenerFDs {
		file := inheritedFile(fd, name)
		l, err := net.FileListener(file)
		file.Close()
		if err != nil {
			return nil, fmt.Errorf("take listener %s: %w", name, err)
		}
		c.Listeners[name] = l
	}
	// Only a non-blocking descriptor goes to the poller, where Close can
	// interrupt a read.
	if err := unix.SetNonblock(h.LifelineFD, true); err != nil {
		return nil, fmt.Errorf("take lifeline: %w", err)
	}
	c.lifeline = inheritedFile(h.LifelineFD, "lifeline")
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.signals, c.retire = make(chan os.Signal, 1), make(chan os.Signal, 1)
	c.closed = make(chan struct{})
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP)
	signal.Notify(c.signals, syscall.SIGTERM)
	signal.Notify(c.retire, syscall.SIGUSR1)
	c.running.Go(c.watchLifeline)
	c.running.Go(c.watchSignals)
	return c, nil
}

func inheritedFile(fd int, name string) *os.File {
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}

func readConfig(fd int) ([]byte, error) {
	file := inheritedFile(fd, "config")
	defer file.Close()
	config, err := io.ReadAll(io.NewSectionReader(file, 0, maxConfig+1))
	if err == nil && len(config) > maxConfig {
		err = fmt.Errorf("longer than %d bytes", maxConfig)
	}
	return config, err
}

// watchLifeline ends the context when the supervisor is gone, and the process
// if it is still there after the grace. It ends with Close.
func (c *Child) watchLifeline() {
	n, err := c.lifeline.Read(make([]byte, 1))
	if n == 0 && errors.Is(err, os.ErrClosed) {
		return
	}
	c.cancel(ErrSupervisorGone)
	late := time.NewTimer(c.grace)
	defer late.Stop()
	select {
	case <-late.C:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case <-c.closed:
	}
}

// watchSignals ends the context on SIGTERM. It ends with Close.
func (c *Child) watchSignals() {
	select {
	case <-c.signals:
		c.cancel(ErrTerminated)
	case <-c.closed:
	}
}

// Close ends the context and releases what Inherit has set up, except for the
// listeners, which are their users' to close. To be called once, last.
func (c *Child) Close() {
	close(c.closed)
	signal.Stop(c.signals)
	signal.Stop(c.retire)
	c.lifeline.Close()
	c.cancel(context.Canceled)
	c.mu.Lock()
	if c.ready != nil {
		c.ready.Close()
		c.ready = nil
	}
	c.mu.Unlock()
	c.running.Wait()
}

// Context ends when the process has to stop: on SIGTERM (its cause is
// ErrTerminated), when the supervisor is gone (ErrSupervisorGone), and on
// Close.
func (c *Child) Context() context.Context { return c.ctx }

// Ready tells the supervisor that this process serves. Only the first call
// does. Safe for concurrent use.
func (c *Child) Ready() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ready != nil && !c.isReady {
		c.isReady = true
		_, _ = c.ready.Write([]byte{1}) // a supervisor that is gone is the lifeline's business
	}
}

// Retire returns a channel that gets a signal when another process is to take this
// one's place (Spec.RollGrace). This one then stops taking connections and leaves
// its sibling address, calls Retired, and ends when what it has is done; after the
// grace it is stopped as always.
func (c *Child) Retire() <-chan os.Signal { return c.retire }

// Retired tells the supervisor that the next process may start, and returns a
// listener at which the supervisor still finds this one (State.Sibling).
func (c *Child) Retired(log *slog.Logger) (net.Listener, error) {
	l, err := ListenSibling(c.Token, retiringIndex(os.Getpid()), log)
	if err != nil {
		return nil, fmt.Errorf("retire: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ready != nil && c.isReady {
		_, _ = c.ready.Write([]byte{2})
	}
	return l, nil
}

// retiringIndex is a process's number among its siblings once it has given its own
// away.
func retiringIndex(pid int) int { return 1_000_000 + pid }

// ListenSibling listens on this process's own address; see ListenSibling.
func (c *Child) ListenSibling(log *slog.Logger) (net.Listener, error) {
	return ListenSibling(c.Token, c.Index, log)
}

// DialSibling connects to another process of the same Spec; see DialSibling.
func (c *Child) DialSibling(ctx context.Context, index int) (net.Conn, error) {
	return DialSibling(ctx, c.Token, index)
}
