package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// takeoverVariable is the environment variable in which a supervisor tells the
// program that takes its place what it finds, as the JSON of a takeover.
const takeoverVariable = "WEIR_UPGRADE"

// takeoverVersion changes with the meaning of any field of takeover.
const takeoverVersion = 1

// takeover is what one program leaves to the next in the same process. Numbers called
// fd are descriptors that stay open.
type takeover struct {
	Version int `json:"version"`
	// Trial: nothing is left, and nothing is to be touched. The program says its
	// version if it could go on.
	Trial bool `json:"trial,omitempty"`
	// ConfigFD is a memory file with the configuration in force.
	ConfigFD int `json:"config_fd"`
	// Note is the role's own.
	Note json.RawMessage `json:"note,omitempty"`
	// FileFDs are the role's own files by name.
	FileFDs map[string]int `json:"file_fds,omitempty"`
	Groups  []groupLeft    `json:"groups,omitempty"`
}

// groupLeft is a Spec with its sockets and running processes.
type groupLeft struct {
	Name  string `json:"name"`
	Token string `json:"token"`
	// ListenerFDs are one for each process, by the names of their addresses.
	ListenerFDs map[string][]int `json:"listener_fds"`
	// Processes are all places, in order; Retiring those that were rolled and have
	// something to finish.
	Processes []processLeft `json:"processes"`
	Retiring  []processLeft `json:"retiring,omitempty"`
}

// processLeft is one child. Without a PID none runs in the place.
type processLeft struct {
	Index      int       `json:"index"`
	PID        int       `json:"pid,omitempty"`
	LifelineFD int       `json:"lifeline_fd,omitempty"` // see handover
	ReadyFD    int       `json:"ready_fd,omitempty"`
	StartedAt  time.Time `json:"started_at"`
	Starts     int       `json:"starts,omitempty"`
	LastExit   string    `json:"last_exit,omitempty"`
	Until      time.Time `json:"until,omitzero"` // of one that retires
}

// ErrNoTakeover is the error of TakeOver in a process that did not run another
// program before.
var ErrNoTakeover = errors.New("no other program ran here before")

// Takeover is what the program before has left to this one, in the same process: its
// children, their sockets, and what the role has added.
type Takeover struct {
	// Trial says that nothing was left: the program only says its version if it
	// could go on with Config, and ends.
	Trial bool
	// Config is the configuration in force.
	Config []byte
	// Note and Files are what the role gave to Replace.
	Note  json.RawMessage
	Files map[string]*os.File

	groups map[string]*groupLeft
}

// TakeOver takes what the program before has left in this process, or returns
// ErrNoTakeover. It can succeed once, so main calls it, early. What a Supervisor is
// not opened with (Options.From) is lost: children without a supervisor end.
func TakeOver() (*Takeover, error) {
	text, ok := os.LookupEnv(takeoverVariable)
	if !ok {
		return nil, ErrNoTakeover
	}
	os.Unsetenv(takeoverVariable)
	t, err := takeOver([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("take over from the program before: %w", err)
	}
	return t, nil
}

func takeOver(text []byte) (*Takeover, error) {
	var left takeover
	if err := json.Unmarshal(text, &left); err != nil {
		return nil, err
	}
	if left.Version != takeoverVersion {
		return nil, fmt.Errorf("version %d, this program speaks %d", left.Version, takeoverVersion)
	}
	keepName()
	config, err := readConfig(left.ConfigFD)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	t := &Takeover{
		Trial: left.Trial, Config: config, Note: left.Note,
		Files: make(map[string]*os.File, len(left.FileFDs)), groups: make(map[string]*groupLeft, len(left.Groups)),
	}
	for name, fd := range left.FileFDs {
		t.Files[name] = inheritedFile(fd, name)
	}
	for _, g := range left.Groups {
		t.groups[g.Name] = &g
		for _, fd := range g.fds() {
			unix.CloseOnExec(fd)
		}
	}
	return t, nil
}

// Count returns how many processes a Spec has that was left, 0 if there is none; also
// of a nil Takeover.
func (t *Takeover) Count(spec string) int {
	if t == nil || t.groups[spec] == nil {
		return 0
	}
	return len(t.groups[spec].Processes)
}

// fds are all descriptors of a group.
func (g *groupLeft) fds() []int {
	var fds []int
	for _, list := range g.ListenerFDs {
		fds = append(fds, list...)
	}
	for _, p := range slices.Concat(g.Processes, g.Retiring) {
		if p.PID != 0 {
			fds = append(fds, p.LifelineFD, p.ReadyFD)
		}
	}
	return fds
}

// listeners returns the sockets of an address that was left, nil if it is new.
func (g *groupLeft) listeners(name string) (files []*os.File, bound net.Addr, err error) {
	for _, fd := range g.ListenerFDs[name] {
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	if len(files) == 0 {
		return nil, nil, nil
	}
	l, err := net.FileListener(files[0]) // of a descriptor of its own
	if err != nil {
		return files, nil, fmt.Errorf("take listener %s: %w", name, err)
	}
	defer l.Close()
	return files, l.Addr(), nil
}

// Leave is what the role adds to what Replace hands on.
type Leave struct {
	// Config is the configuration in force.
	Config []byte
	// Note is anything that becomes JSON.
	Note any
	// Files stay open under their names.
	Files map[string]*os.File
}

// Replace puts the program of an image in the place of this one, with the same
// process id, arguments and environment. The children that are ready go on, and are
// its children: it finds them, their sockets and what leave returns by TakeOver. All
// other connections and files of this process are closed, and its goroutines end
// where they stand.
//
// leave is called last, when no process can be started any more. If it fails, or the
// program cannot be executed, Replace returns the error and all goes on as before;
// except that in the second case SIGHUP and SIGUSR2 are ignored from then on.
func (s *Supervisor) Replace(image *Image, leave func() (Leave, error)) error {
	s.starting.Lock()
	defer s.starting.Unlock()
	role, err := leave()
	if err != nil {
		return err
	}
	config, err := memoryFile(role.Config)
	if err != nil {
		return fmt.Errorf("hand over configuration: %w", err)
	}
	defer config.Close()
	left := takeover{Version: takeoverVersion, FileFDs: map[string]int{}}
	kept := []*os.File{config}
	fd := func(f *os.File) int {
		kept = append(kept, f)
		return descriptor(f)
	}
	left.ConfigFD = descriptor(config)
	if left.Note, err = json.Marshal(role.Note); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(role.Files)) {
		left.FileFDs[name] = fd(role.Files[name])
	}
	for _, g := range s.groups {
		left.Groups = append(left.Groups, g.left(fd))
	}
	s.mu.Lock()
	for _, r := range s.retiring {
		for i := range left.Groups {
			if left.Groups[i].Name == r.State.Spec {
				left.Groups[i].Retiring = append(left.Groups[i].Retiring, r.left(fd))
			}
		}
	}
	s.mu.Unlock()
	text, err := json.Marshal(&left)
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	defer func() { // or children would hold each other's lifelines
		for _, f := range kept {
			_ = closeOnExec(f, true) // fails for files that are closed
		}
	}()
	for _, f := range kept {
		if err := closeOnExec(f, false); err != nil {
			return fmt.Errorf("hand over %s: %w", f.Name(), err)
		}
	}
	// Until the next program minds them they would end it. SIGTERM may.
	signal.Ignore(syscall.SIGHUP, syscall.SIGUSR2)
	err = syscall.Exec(image.exec(), os.Args, append(environment(), takeoverVariable+"="+string(text)))
	return fmt.Errorf("execute %s: %w", image.path, err)
}

// left describes a group for the next program.
func (g *group) left(fd func(*os.File) int) groupLeft {
	l := groupLeft{Name: g.spec.Name, Token: g.token, ListenerFDs: map[string][]int{}}
	for i, a := range g.spec.Listen {
		for _, p := range g.processes {
			l.ListenerFDs[a.Name] = append(l.ListenerFDs[a.Name], fd(p.listeners[i]))
		}
	}
	for _, p := range g.processes {
		p.mu.Lock()
		place := processLeft{Index: p.index, StartedAt: p.startedAt, Starts: p.starts, LastExit: p.lastExit}
		if p.phase == Ready && p.current != nil {
			place.PID, place.LifelineFD, place.ReadyFD = p.pid, fd(p.current.lifeline), fd(p.current.readyEnd)
		}
		p.mu.Unlock()
		l.Processes = append(l.Processes, place)
	}
	return l
}

// left describes a process that retires for the next program.
func (r *retiree) left(fd func(*os.File) int) processLeft {
	return processLeft{
		Index: r.State.Index, PID: r.State.PID, StartedAt: r.State.StartedAt, Until: r.until,
		LifelineFD: fd(r.instance.lifeline), ReadyFD: fd(r.instance.readyEnd),
	}
}

// descriptor returns a file's number without changing its mode, as File.Fd would.
func descriptor(f *os.File) (n int) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { n = int(fd) })
	}
	return n
}

// closeOnExec sets or clears the mark by which a file does not outlive an exec.
func closeOnExec(f *os.File, on bool) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	flag := 0
	if on {
		flag = unix.FD_CLOEXEC
	}
	if e := raw.Control(func(fd uintptr) { _, err = unix.FcntlInt(fd, unix.F_SETFD, flag) }); e != nil {
		return e
	}
	return err
}
