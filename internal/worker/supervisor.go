// Package worker runs the processes of a node: the workers that share an edge's
// ports, and the nodes of a local cluster. A Supervisor starts them, hands each
// its configuration and its listening sockets, restarts the dead and rolls new
// configuration; Inherit is the child's side; ListenSibling and DialSibling
// connect the workers of one node with each other. Linux only.
package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"golang.org/x/sync/errgroup"
)

// Spec describes a group of equal child processes. They run this process's own
// program, or that of Roll.
type Spec struct {
	// Name is what logs, errors and states call the processes. Unique among
	// the specs of a supervisor and not empty.
	Name string
	// Count is the number of processes; 0 means 1.
	Count int
	// Args are the arguments, without the program's name.
	Args []string
	// Env is added to the supervisor's environment, as "KEY=value".
	Env []string
	// Config is what the children find as Child.Config; at most 16 MiB.
	Config []byte
	// RollGrace, if it is more than 0, makes Roll overlap: the old process is asked
	// to retire, the new one starts, and the old one has this long to finish what it
	// has. Its processes have to mind Child.Retire. With 0 Roll stops the old one
	// first.
	RollGrace time.Duration
	// Listen are the addresses on which each of the processes listens with a
	// socket of its own. Names must be unique in the Spec.
	Listen []Address
}

// Options are what a Supervisor is made of.
type Options struct {
	// Config must be valid; see DefaultConfig.
	Config Config
	// Specs are started all at once. At least one.
	Specs []Spec
	// Output gets what the children write, in whole lines, each with the name
	// of its process in front ("edge   | ..."). nil lets the children inherit
	// standard output and error.
	Output io.Writer
	// Log gets one line for each death, restart and roll. Required.
	Log *slog.Logger
	// Metrics, if not nil, gets the counter weir_worker_restarts_total.
	Metrics *metrics.Set
	// From, if not nil, is what the program before has left in this process: Specs of
	// the same name go on with its processes and sockets. Their Count is what it was.
	From *Takeover
}

// Supervisor runs child processes. Its methods are safe for concurrent use.
type Supervisor struct {
	// Static after Open.
	cfg    Config
	log    *slog.Logger
	output *lineWriter // nil: inherited
	groups []*group

	starting sync.Mutex     // held while a process is started, and while Replace decides
	rolling  chan struct{}  // holds a token while a Roll runs
	stopped  chan struct{}  // closed when Run stops its children, or by Close
	ready    chan struct{}  // closed when all processes have been ready
	copying  sync.WaitGroup // goroutines that copy output
	leaving  sync.WaitGroup // goroutines that see retiring processes off

	// Guarded by mu.
	mu       sync.Mutex
	retiring []*retiree // processes whose place another one has
	notReady int        // processes that have never been ready
	running  bool
	closed   bool
}

// group is the running form of a Spec.
type group struct {
	spec      Spec
	token     string
	addresses map[string]net.Addr
	processes []*process
	leaving   []processLeft // retired under the program before; nil once Run has them
}

// ErrStopped is the error of Roll when the supervisor stops or has stopped.
var ErrStopped = errors.New("the supervisor has stopped")

// Open checks the options and opens all listening sockets, so that a port that
// is taken is known before anything is started; its error names the address
// and the configuration key. The caller calls Run, or Close if it does not come
// to that.
func Open(ctx context.Context, o Options) (*Supervisor, error) {
	if err := o.Config.Validate(); err != nil {
		return nil, fmt.Errorf("check supervisor configuration: %w", err)
	}
	s := &Supervisor{
		cfg:     o.Config,
		log:     o.Log,
		rolling: make(chan struct{}, 1),
		stopped: make(chan struct{}),
		ready:   make(chan struct{}),
	}
	if o.Output != nil {
		s.output = &lineWriter{w: o.Output}
	}
	width := 0
	for _, spec := range o.Specs {
		if err := s.add(ctx, spec, o.Metrics, o.From); err != nil {
			s.Close()
			return nil, err
		}
	}
	for p := range s.processes() {
		width = max(width, len(p.name))
		s.notReady++
	}
	if s.notReady == 0 {
		return nil, errors.New("open supervisor: no processes")
	}
	for p := range s.processes() {
		p.prefix = p.name + strings.Repeat(" ", width-len(p.name)) + " | "
	}
	return s, nil
}

func (s *Supervisor) add(ctx context.Context, spec Spec, set *metrics.Set, from *Takeover) error {
	if spec.Count == 0 {
		spec.Count = 1
	}
	left := new(groupLeft)
	if n := from.Count(spec.Name); n > 0 {
		left, spec.Count = from.groups[spec.Name], n
	}
	if spec.Name == "" || spec.Count < 0 || s.group(spec.Name) != nil {
		return fmt.Errorf("open supervisor: bad spec %q of %d processes", spec.Name, spec.Count)
	}
	if len(spec.Config) > maxConfig {
		return fmt.Errorf("open supervisor: configuration of %s has more than %d bytes", spec.Name, maxConfig)
	}
	g := &group{
		spec:      spec,
		token:     rand.Text(),
		addresses: make(map[string]net.Addr, len(spec.Listen)),
		processes: make([]*process, spec.Count),
		leaving:   left.Retiring,
	}
	if left.Token != "" {
		g.token = left.Token
	}
	for i := range g.processes {
		p := &process{
			sup: s, group: g, index: i, name: spec.Name,
			rolls:   make(chan rollRequest),
			program: program{config: spec.Config},
			phase:   Starting,
		}
		if spec.Count > 1 {
			p.name = fmt.Sprintf("%s %d", spec.Name, i)
		}
		if set != nil {
			p.restartCounter = set.NewCounter(fmt.Sprintf(`weir_worker_restarts_total{name=%q,worker="%d"}`, spec.Name, i))
		}
		if i < len(left.Processes) {
			if err := p.take(left.Processes[i]); err != nil {
				return fmt.Errorf("open supervisor: %w", err)
			}
		}
		g.processes[i] = p
	}
	// From here on Close finds and closes what has been opened.
	s.groups = append(s.groups, g)
	for _, a := range spec.Listen {
		if _, twice := g.addresses[a.Name]; twice {
			return fmt.Errorf("open supervisor: two listeners of %s are called %s", spec.Name, a.Name)
		}
		files, bound, err := left.listeners(a.Name)
		if files == nil && err == nil {
			files, bound, err = a.listen(ctx, spec.Count)
		}
		if err != nil {
			return err
		}
		g.addresses[a.Name] = bound
		for i, p := range g.processes {
			p.listeners = append(p.listeners, files[i])
		}
	}
	return nil
}

func (s *Supervisor) group(name string) *group {
	for _, g := range s.groups {
		if g.spec.Name == name {
			return g
		}
	}
	return nil
}

// processes yields all processes in the order of the specs.
func (s *Supervisor) processes() func(yield func(*process) bool) {
	return func(yield func(*process) bool) {
		for _, g := range s.groups {
			for _, p := range g.processes {
				if !yield(p) {
					return
				}
			}
		}
	}
}

// Run starts the processes and keeps them running until ctx ends; then it stops
// them all (SIGTERM, after Config.StopGrace SIGKILL), waits for them, closes
// the listeners and returns nil. Nothing is left behind.
//
// A process that dies or stays silent before it has been ready for the first
// time is an error in what it was given, not an accident: Run stops the others
// and returns an error that names it. From then on a dead process is started
// again, whatever it died of: at once the first time, then with pauses that
// grow; see Config. Its listening sockets stay open meanwhile, so what connects
// waits in their queues.
//
// Run can be called once.
func (s *Supervisor) Run(ctx context.Context) error {
	s.mu.Lock()
	usable := !s.running && !s.closed
	s.running = true
	s.mu.Unlock()
	if !usable {
		return ErrStopped
	}
	g, ctx := errgroup.WithContext(ctx)
	for p := range s.processes() {
		g.Go(func() error { return p.run(ctx) })
	}
	for _, left := range s.groups {
		for _, r := range left.leaving {
			if in, err := adopt(r); err == nil { // or it has ended
				left.processes[r.Index].seeOff(ctx, in, r.Until)
			}
		}
		left.leaving = nil
	}
	g.Go(func() error {
		<-ctx.Done()
		close(s.stopped)
		return nil
	})
	err := g.Wait()
	s.leaving.Wait()
	s.copying.Wait()
	s.closeListeners()
	return err
}

// Close closes the listeners of a supervisor that never ran. After Run it does
// nothing. It must not be called beside Run.
func (s *Supervisor) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running || s.closed {
		return
	}
	s.closed = true
	close(s.stopped)
	s.closeListeners()
}

func (s *Supervisor) closeListeners() {
	for p := range s.processes() {
		closeAll(p.listeners)
	}
}

// Ready returns a channel that is closed when every process has said once that
// it is ready.
func (s *Supervisor) Ready() <-chan struct{} { return s.ready }

// firstReady is called by each process once.
func (s *Supervisor) firstReady() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.notReady--; s.notReady == 0 {
		close(s.ready)
	}
}

// Addr returns where the processes of a Spec listen under the name of one of
// its addresses, with the port that was taken for port 0; nil if there is no
// such address.
func (s *Supervisor) Addr(spec, name string) net.Addr {
	if g := s.group(spec); g != nil {
		return g.addresses[name]
	}
	return nil
}

// DialWorker connects to the sibling socket of a process of a Spec, by its
// State.Sibling; see DialSibling.
func (s *Supervisor) DialWorker(ctx context.Context, spec string, index int) (net.Conn, error) {
	g := s.group(spec)
	if g == nil {
		return nil, fmt.Errorf("dial process %d of %s: no such processes", index, spec)
	}
	return DialSibling(ctx, g.token, index)
}

// Retiring returns the processes that were rolled and still have something to
// finish, oldest first.
func (s *Supervisor) Retiring() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := make([]State, len(s.retiring))
	for i, r := range s.retiring {
		states[i] = r.State
	}
	return states
}

// Rolling reports whether a Roll is under way: that a process is not ready then is
// no failure.
func (s *Supervisor) Rolling() bool { return len(s.rolling) > 0 }

// States returns what the processes are doing, in the order of the specs.
func (s *Supervisor) States() []State {
	var states []State
	for p := range s.processes() {
		states = append(states, p.state())
	}
	return states
}

// CheckReady returns an error that names the processes that are not ready, or
// nil. (The context is not used: the answer is known.)
func (s *Supervisor) CheckReady(context.Context) error {
	var waiting []string
	for _, state := range s.States() {
		if state.Phase != Ready {
			waiting = append(waiting, fmt.Sprintf("%s is %s", state.Process, state.Phase))
		}
	}
	if waiting == nil {
		return nil
	}
	return errors.New(strings.Join(waiting, ", "))
}

// Roll gives the processes of a Spec another program and configuration by restarting
// them one after the other, each when the one before is ready again. What connects to a
// stopping process waits in its queue for the next one. With Spec.RollGrace the old
// process retires beside the new one; Roll does not wait for its end.
//
// If a process does not become ready so, it is started as it was before, those after
// it are left alone, and Roll returns an error that says how many are rolled. When ctx ends Roll returns
// too; the restart that it was waiting for goes on. One Roll runs at a time,
// others wait.
func (s *Supervisor) Roll(ctx context.Context, spec string, image *Image, config []byte) error {
	g := s.group(spec)
	if g == nil {
		return fmt.Errorf("roll %s: no such processes", spec)
	}
	if len(config) > maxConfig {
		return fmt.Errorf("roll %s: configuration has more than %d bytes", spec, maxConfig)
	}
	select {
	case s.rolling <- struct{}{}:
		defer func() { <-s.rolling }()
	case <-ctx.Done():
		return fmt.Errorf("roll %s: %w", spec, ctx.Err())
	case <-s.stopped:
		return fmt.Errorf("roll %s: %w", spec, ErrStopped)
	}
	for i, p := range g.processes {
		if err := p.roll(ctx, program{image, config}); err != nil {
			return fmt.Errorf("roll %s (%d of %d are rolled): %w", p.name, i, len(g.processes), err)
		}
	}
	s.log.Info("rolled", "name", spec, "processes", len(g.processes))
	return nil
}

// Use gives the processes of a Spec a configuration for their next start, without
// starting them: they have it by other means already. It waits for each to be
// ready.
func (s *Supervisor) Use(ctx context.Context, spec string, config []byte) error {
	g := s.group(spec)
	if g == nil {
		return fmt.Errorf("configure %s: no such processes", spec)
	}
	if len(config) > maxConfig {
		return fmt.Errorf("configure %s: configuration has more than %d bytes", spec, maxConfig)
	}
	for _, p := range g.processes {
		if err := p.ask(ctx, rollRequest{program: program{config: config}, quiet: true, done: make(chan error, 1)}); err != nil {
			return fmt.Errorf("configure %s: %w", p.name, err)
		}
	}
	return nil
}

// Phase is what a process is doing.
type Phase string

// The phases of a process.
const (
	Starting   Phase = "starting"   // runs, but has not said yet that it is ready
	Ready      Phase = "ready"      // serves
	Stopping   Phase = "stopping"   // has been asked to stop
	Retiring   Phase = "retiring"   // takes nothing new; another one has its place
	Restarting Phase = "restarting" // died, and will be started again at once or after a pause
	Failed     Phase = "failed"     // the last one died before it was ready; will be started again after a pause
	Stopped    Phase = "stopped"    // ended with the supervisor
)

// State is a view of a process at one moment.
type State struct {
	// Spec is the name of its Spec and Index its number there. Process is how
	// logs call it: the name, with the index if there are several.
	Spec    string
	Index   int
	Process string
	// Sibling is the number that DialWorker finds it by.
	Sibling int

	Phase Phase
	// PID is the running process, or 0.
	PID int
	// Restarts counts the times it was started after the first, rolls
	// included.
	Restarts int
	// StartedAt is when the running process was started, or the last one.
	StartedAt time.Time
	// LastExit says how the last one ended, as in "exit status 2" or
	// "signal: killed"; empty if none has.
	LastExit string
}
