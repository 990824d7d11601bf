package load

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"weir/internal/quiet"
)

// Reader reads the kernel's files for one process. Not safe for concurrent use.
type Reader struct {
	// Static.
	root       string // "/" but in tests
	proc       procfs.Proc
	files      files
	kernel     bool     // the files are the kernel's own
	interfaces []string // patterns; empty: hardware
	disk       string   // path; empty: none
	groups     groups

	settled settled // what hardly ever changes
	text    []byte  // buffer of peek

	statfs func(path string, s *unix.Statfs_t) error // unix.Statfs but in tests
	clock  func(pid int) (time.Duration, error)      // quiet.CPUTime but in tests
	size   func(name string) (uint64, error)         // quiet.FileSize but in tests
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
	r := &Reader{root: root, interfaces: cfg.Network.Interfaces, disk: cfg.Disk.Path, statfs: unix.Statfs, clock: quiet.CPUTime, size: quiet.FileSize}
	fs, err := procfs.NewFS(filepath.Join(root, "proc"))
	if err != nil {
		return nil, fmt.Errorf("measure load: %w", err)
	}
	if r.proc, err = fs.Proc(pid); err != nil {
		return nil, fmt.Errorf("measure load: %w", err)
	}
	r.files = findFiles(root, pid)
	var s unix.Statfs_t
	r.kernel = unix.Statfs(filepath.Join(root, "proc"), &s) == nil && s.Type == unix.PROC_SUPER_MAGIC
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
	stat, err := r.peek(r.files.stat)
	if err == nil {
		if m.Busy, m.Idle, m.CPUs, err = processors(stat, allowed); err == nil && m.CPUs == 0 {
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
	var err error
	if u.CPU, err = r.clock(r.proc.PID); err != nil {
		return u, fmt.Errorf("read processor time: %w", err)
	}
	if r.settled.descriptors == 0 {
		limits, err := r.peek(r.files.limits)
		if err == nil {
			r.settled.descriptors, err = openFiles(limits)
		}
		if err != nil {
			return u, fmt.Errorf("read limits: %w", err)
		}
	}
	open, err := r.descriptors()
	if err != nil {
		return u, fmt.Errorf("count descriptors: %w", err)
	}
	u.Descriptors = Space{Used: open, Limit: r.settled.descriptors}
	return u, nil
}

// descriptors returns how many descriptors the process has open. Since Linux 6.2 the
// kernel gives it as the size of the directory. Before that it is 0, and where the process
// is confined the question may be forbidden (statx(2), by seccomp rules that are older
// than it): they are listed then.
func (r *Reader) descriptors() (uint64, error) {
	if r.kernel {
		if n, err := r.size(r.files.open); err == nil && n > 0 {
			return n, nil
		}
	}
	n, err := r.proc.FileDescriptorsLen()
	return uint64(n), err
}

// openFiles reads the soft limit of open files from /proc/PID/limits.
func openFiles(text []byte) (uint64, error) {
	for line := range bytes.Lines(text) {
		rest, ok := bytes.CutPrefix(line, []byte("Max open files"))
		if !ok {
			continue
		}
		words := bytes.Fields(rest)
		if len(words) == 0 {
			break
		}
		if string(words[0]) == "unlimited" {
			return math.MaxUint64, nil
		}
		return strconv.ParseUint(string(words[0]), 10, 64)
	}
	return 0, errors.New("no limit of open files")
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

// files are the names of the files of /proc that are read all the time.
type files struct {
	stat, meminfo                string // of the machine
	status, limits, open, netDev string // of the process
}

func findFiles(root string, pid int) files {
	proc := filepath.Join(root, "proc")
	own := filepath.Join(proc, strconv.Itoa(pid))
	return files{
		stat: filepath.Join(proc, "stat"), meminfo: filepath.Join(proc, "meminfo"),
		status: filepath.Join(own, "status"), limits: filepath.Join(own, "limits"), open: filepath.Join(own, "fd"),
		netDev: filepath.Join(own, "net/dev"), // of its own network namespace
	}
}

// peek reads one of those files without waking Go's watcher thread (see package
// quiet): they are at hand. The result is valid until the next call.
func (r *Reader) peek(name string) ([]byte, error) {
	var err error
	r.text, err = quiet.ReadFile(name, r.text, maxFile)
	return r.text, err
}

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
	text, err := r.peek(r.files.status)
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

// tick is the unit of times in /proc, fixed by the kernel's ABI (USER_HZ).
const tick = time.Second / 100

// processors adds up the time of the processors that are allowed, from /proc/stat; all
// if there is no list. Time that the hypervisor gave to others was not free: it counts
// as busy.
func processors(stat []byte, allowed []int) (busy, idle time.Duration, n float64, err error) {
	for line := range bytes.Lines(stat) {
		rest, ok := bytes.CutPrefix(line, []byte("cpu"))
		if !ok {
			break // those of the processors are the first lines
		}
		if bytes.HasPrefix(rest, []byte(" ")) {
			continue // all together
		}
		b, i, number, err := processor(rest)
		if err != nil {
			return 0, 0, 0, err
		}
		if allowed != nil && !slices.Contains(allowed, number) {
			continue
		}
		n++
		busy += b
		idle += i
	}
	return busy, idle, n, nil
}

// processor reads the line of one processor behind its "cpu": the number, then the
// time for user, nice, system, idle, iowait, irq, softirq and steal. That of guests is
// in the first two.
func processor(line []byte) (busy, idle time.Duration, number int, err error) {
	words := bytes.Fields(line)
	bad := func() (time.Duration, time.Duration, int, error) {
		return 0, 0, 0, fmt.Errorf("%.80q is no line of a processor", line)
	}
	if len(words) < 9 {
		return bad()
	}
	if number, err = strconv.Atoi(string(words[0])); err != nil {
		return bad()
	}
	for i, word := range words[1:9] {
		n, err := strconv.ParseUint(string(word), 10, 39)
		if err != nil {
			return bad()
		}
		switch t := time.Duration(n) * tick; i {
		case 3, 4: // idle, iowait
			idle += t
		default:
			busy += t
		}
	}
	return busy, idle, number, nil
}

// memory reads the memory of the machine and of the cgroup's limits.
func (r *Reader) memory() ([]Space, error) {
	var all []Space
	var err error
	if r.settled.bounded {
		all, err = r.groups.memory()
		r.settled.bounded = len(all) > 0 || err != nil
	}
	text, merr := r.peek(r.files.meminfo)
	if merr == nil {
		var total, available uint64
		if total, available, merr = machineMemory(text); merr == nil {
			all = append(all, Space{Used: total - min(available, total), Limit: total})
		}
	}
	if merr != nil {
		err = errors.Join(err, fmt.Errorf("read proc/meminfo: %w", merr))
	}
	return all, err
}

// machineMemory reads MemTotal and MemAvailable, in bytes, from /proc/meminfo.
func machineMemory(text []byte) (total, available uint64, err error) {
	found := 0
	for line := range bytes.Lines(text) {
		name, rest, _ := bytes.Cut(line, []byte(":"))
		var into *uint64
		switch string(name) {
		case "MemTotal":
			into = &total
		case "MemAvailable":
			into = &available
		default:
			continue
		}
		words := bytes.Fields(rest)
		if len(words) != 2 || string(words[1]) != "kB" {
			return 0, 0, fmt.Errorf("%.80q is no line of memory", line)
		}
		n, err := strconv.ParseUint(string(words[0]), 10, 53)
		if err != nil {
			return 0, 0, fmt.Errorf("%.80q is no line of memory", line)
		}
		*into = n << 10
		if found++; found == 2 && total > 0 {
			return total, available, nil
		}
	}
	return 0, 0, errors.New("no MemTotal or MemAvailable")
}

// links reads the counters and speeds of the interfaces that count.
func (r *Reader) links() ([]Link, error) {
	text, err := r.peek(r.files.netDev)
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
