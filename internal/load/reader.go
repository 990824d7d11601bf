package load

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// Reader reads the kernel's files for one process. Not safe for concurrent use.
type Reader struct {
	// Static.
	root       string // "/" but in tests
	fs         procfs.FS
	proc       procfs.Proc
	interfaces []string // patterns; empty: hardware
	disk       string   // path; empty: none
	groups     groups

	settled settled // what hardly ever changes

	statfs func(path string, s *unix.Statfs_t) error // unix.Statfs but in tests
}

// settled is what was read of things that hardly ever change, to be read again after
// settledFor: a node measures itself all the time, and most of what that cost was
// these.
type settled struct {
	until       time.Time
	allowed     []int
	quota       bool   // the cgroup had one
	bounded     bool   // it had a limit of memory
	descriptors uint64 // RLIMIT_NOFILE; 0: not read yet
	devices     map[string]device
}

// device is what the kernel says of an interface of the network.
type device struct {
	loopback, hardware bool
	speed              float64 // see Reader.speed
}

// settledFor is how soon other processors, quotas, limits and cards are noticed.
const settledFor = 5 * time.Second

// settle forgets what was read too long ago.
func (r *Reader) settle() {
	if now := time.Now(); now.After(r.settled.until) {
		r.settled = settled{until: now.Add(settledFor), quota: true, bounded: true}
	}
}

// NewReader returns a reader of the files below root, which is "/" but in tests, for
// the process pid and what cfg names. It fails where there is no /proc or no such
// process.
func NewReader(root string, pid int, cfg Config) (*Reader, error) {
	r := &Reader{root: root, interfaces: cfg.Network.Interfaces, disk: cfg.Disk.Path, statfs: unix.Statfs}
	var err error
	if r.fs, err = procfs.NewFS(filepath.Join(root, "proc")); err != nil {
		return nil, fmt.Errorf("measure load: %w", err)
	}
	if r.proc, err = r.fs.Proc(pid); err != nil {
		return nil, fmt.Errorf("measure load: %w", err)
	}
	// A process is not moved between groups as a rule, and what cannot be read of
	// them is no limit that could be found out.
	r.groups = findGroups(r.proc, root)
	return r, nil
}

// Machine reads the machine. With an error, what could be read is returned all the
// same; CPUs always is.
func (r *Reader) Machine() (Machine, error) {
	r.settle()
	var m Machine
	var errs []error
	allowed, err := r.allowed()
	if err != nil {
		errs = append(errs, fmt.Errorf("read processors: %w", err))
	}
	stat, err := r.fs.Stat()
	if err == nil {
		m.Busy, m.Idle, m.CPUs = processors(stat.CPU, allowed)
		if m.CPUs == 0 {
			err = errors.New("no processor that the node may run on is in it")
		}
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("read proc/stat: %w", err))
	}
	if m.CPUs == 0 {
		m.CPUs = float64(max(len(allowed), 1))
	}
	if m.Quota, m.Used, err = r.quota(); err != nil {
		errs = append(errs, err)
	}
	if m.Quota > 0 {
		m.CPUs = min(m.CPUs, m.Quota)
	}
	if m.Memory, err = r.memory(); err != nil {
		errs = append(errs, err)
	}
	if m.Links, err = r.links(); err != nil {
		errs = append(errs, fmt.Errorf("read network interfaces: %w", err))
	}
	if r.disk != "" {
		var s unix.Statfs_t
		if err := r.statfs(filepath.Join(r.root, r.disk), &s); err != nil {
			errs = append(errs, fmt.Errorf("read disk space of %s (load.disk.path): %w", r.disk, err))
		} else {
			// What only root may use counts as used.
			size := uint64(s.Frsize)
			used := s.Blocks - min(s.Bfree, s.Blocks)
			m.Disk = &Space{Used: used * size, Limit: (used + s.Bavail) * size}
		}
	}
	return m, errors.Join(errs...)
}

// Usage is one reading of a process.
type Usage struct {
	// CPU is the processor time that it has used.
	CPU time.Duration
	// Descriptors are open, of as many as RLIMIT_NOFILE allows.
	Descriptors Space
}

// Process reads the process. With an error, what could be read is returned.
func (r *Reader) Process() (Usage, error) {
	r.settle()
	var u Usage
	stat, err := r.proc.Stat()
	if err != nil {
		return u, fmt.Errorf("read processor time: %w", err)
	}
	u.CPU = seconds(stat.CPUTime())
	if r.settled.descriptors == 0 {
		limits, err := r.proc.Limits()
		if err != nil {
			return u, fmt.Errorf("read limits: %w", err)
		}
		r.settled.descriptors = limits.OpenFiles
	}
	open, err := r.proc.FileDescriptorsLen()
	if err != nil {
		return u, fmt.Errorf("count descriptors: %w", err)
	}
	u.Descriptors = Space{Used: uint64(open), Limit: r.settled.descriptors}
	return u, nil
}

// CPUs returns how many processors the process may use: those that it may run on,
// and its cgroup's quota.
func (r *Reader) CPUs() (float64, error) {
	r.settle()
	allowed, err := r.allowed()
	if err != nil {
		return 0, fmt.Errorf("read processors: %w", err)
	}
	n := float64(len(allowed))
	quota, _, err := r.quota()
	if quota > 0 {
		n = min(n, quota)
	}
	return n, err
}

// quota returns what groups.cpu does.
func (r *Reader) quota() (quota float64, used time.Duration, err error) {
	if !r.settled.quota {
		return 0, 0, nil
	}
	quota, used, err = r.groups.cpu()
	r.settled.quota = quota > 0 || err != nil
	return quota, used, err
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// maxFile bounds what is read of a file, in bytes.
const maxFile = 1 << 20

// readFile reads a file of the kernel. os.ReadFile would cost twice as many system
// calls, for trying to wait for it with the runtime's poller.
func readFile(name string) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	b := make([]byte, 4<<10)
	n := 0
	for {
		k, err := unix.Read(fd, b[n:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, &os.PathError{Op: "read", Path: name, Err: err}
		case k == 0:
			return b[:n], nil
		}
		switch n += k; {
		case n >= maxFile:
			return nil, fmt.Errorf("%s: longer than %d bytes", name, maxFile)
		case n == len(b):
			b = append(b, make([]byte, len(b))...)
		}
	}
}

// allowed returns the processors that the process may run on: its affinity, which
// counts its cpuset in.
func (r *Reader) allowed() ([]int, error) {
	if r.settled.allowed != nil {
		return r.settled.allowed, nil
	}
	text, err := readFile(filepath.Join(r.root, "proc", strconv.Itoa(r.proc.PID), "status"))
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(text) {
		if list, ok := bytes.CutPrefix(line, []byte("Cpus_allowed_list:")); ok {
			r.settled.allowed, err = parseCPUList(string(list))
			return r.settled.allowed, err
		}
	}
	return nil, errors.New("status has no Cpus_allowed_list")
}

// maxCPU is above the largest number of a processor.
const maxCPU = 8192

// parseCPUList reads a list of processors as in "0-3,8" (cpuset(7), list format).
func parseCPUList(s string) ([]int, error) {
	var all []int
	for part := range strings.SplitSeq(strings.TrimSpace(s), ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(first, 10, 16)
		b := a
		if err == nil && isRange {
			b, err = strconv.ParseUint(last, 10, 16)
		}
		if err != nil || b < a || b >= maxCPU || len(all) > maxCPU {
			return nil, fmt.Errorf("%q is no list of processors", s)
		}
		for n := a; n <= b; n++ {
			all = append(all, int(n))
		}
	}
	return all, nil
}

// processors adds up the time of the processors that are allowed; all if there is no
// list. Time that the hypervisor gave to others was not free: it counts as busy.
func processors(stat map[int64]procfs.CPUStat, allowed []int) (busy, idle time.Duration, n float64) {
	for number, c := range stat {
		if allowed != nil && !slices.Contains(allowed, int(number)) {
			continue
		}
		n++
		busy += seconds(c.User + c.Nice + c.System + c.IRQ + c.SoftIRQ + c.Steal)
		idle += seconds(c.Idle + c.Iowait)
	}
	return busy, idle, n
}

// memory reads the memory of the machine and of the cgroup's limits.
func (r *Reader) memory() ([]Space, error) {
	var all []Space
	var err error
	if r.settled.bounded {
		all, err = r.groups.memory()
		r.settled.bounded = len(all) > 0 || err != nil
	}
	info, merr := r.fs.Meminfo()
	switch {
	case merr != nil:
	case info.MemTotalBytes == nil || info.MemAvailableBytes == nil || *info.MemTotalBytes == 0:
		merr = errors.New("no MemTotal or MemAvailable")
	default:
		total := *info.MemTotalBytes
		all = append(all, Space{Used: total - min(*info.MemAvailableBytes, total), Limit: total})
	}
	if merr != nil {
		err = errors.Join(err, fmt.Errorf("read proc/meminfo: %w", merr))
	}
	return all, err
}

// links reads the counters and speeds of the interfaces that count.
func (r *Reader) links() ([]Link, error) {
	// The process's own network namespace.
	text, err := readFile(filepath.Join(r.root, "proc", strconv.Itoa(r.proc.PID), "net/dev"))
	if err != nil {
		return nil, err
	}
	devices, err := parseDevices(string(text))
	if err != nil {
		return nil, err
	}
	var all, hardware []Link
	for _, l := range devices {
		d := r.device(l.Name)
		switch {
		case len(r.interfaces) > 0 && !matches(r.interfaces, l.Name), len(r.interfaces) == 0 && d.loopback:
			continue
		}
		l.BitsPerSecond = d.speed
		all = append(all, l)
		if d.hardware {
			hardware = append(hardware, l)
		}
	}
	// Bridges, bonds and tunnels carry what a card carries too: it would count twice.
	if len(r.interfaces) == 0 && len(hardware) > 0 {
		all = hardware
	}
	slices.SortFunc(all, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// parseDevices reads /proc/net/dev: two lines of headings and then one for each
// interface, with eight counters of what it received and eight of what it sent.
// (procfs panics on lines that are too short.)
func parseDevices(text string) ([]Link, error) {
	var all []Link
	number := 0
	for line := range strings.Lines(text) {
		if number++; number <= 2 || strings.TrimSpace(line) == "" {
			continue
		}
		colon := strings.LastIndexByte(line, ':') // an alias has one in its name
		counters := strings.Fields(line[colon+1:])
		name := strings.TrimSpace(line[:max(colon, 0)])
		if name == "" || len(counters) < 9 {
			return nil, fmt.Errorf("%.80q is no line of net/dev", line)
		}
		in, err := strconv.ParseUint(counters[0], 10, 64)
		out, oerr := strconv.ParseUint(counters[8], 10, 64)
		if err != nil || oerr != nil {
			return nil, fmt.Errorf("%.80q is no line of net/dev", line)
		}
		all = append(all, Link{Name: name, Egress: out, Ingress: in})
	}
	return all, nil
}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := filepath.Match(p, name)
		return ok
	})
}

// device returns what the kernel says of an interface.
func (r *Reader) device(name string) device {
	d, ok := r.settled.devices[name]
	if !ok {
		d = device{loopback: r.isLoopback(name), hardware: r.isHardware(name), speed: r.speed(name)}
		if r.settled.devices == nil {
			r.settled.devices = map[string]device{}
		}
		r.settled.devices[name] = d
	}
	return d
}

func (r *Reader) deviceFile(name, file string) string {
	return filepath.Join(r.root, "sys/class/net", name, file)
}

// isLoopback goes by the kernel's flags (IFF_LOOPBACK), and by the usual name where
// there is no /sys.
func (r *Reader) isLoopback(name string) bool {
	text, err := readFile(r.deviceFile(name, "flags"))
	if err != nil {
		return name == "lo"
	}
	flags, err := strconv.ParseUint(strings.TrimSpace(string(text)), 0, 32)
	return err == nil && flags&unix.IFF_LOOPBACK != 0
}

func (r *Reader) isHardware(name string) bool {
	_, err := os.Stat(r.deviceFile(name, "device"))
	return err == nil
}

// speed returns what the kernel says of an interface in bits per second, 0 if it
// does not know: then the file holds -1 or cannot be read.
func (r *Reader) speed(name string) float64 {
	text, err := readFile(r.deviceFile(name, "speed"))
	if err != nil {
		return 0
	}
	mbit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 32)
	if err != nil || mbit <= 0 {
		return 0
	}
	return float64(mbit) * 1e6
}
