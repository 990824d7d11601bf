package load

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tree is a machine of two processors as files; a test changes some of them. An empty
// text takes a file away.
var tree = map[string]string{
	"proc/stat": "cpu  300 0 100 1600 0 0 0 0 0 0\n" +
		"cpu0 200 0 100 700 0 0 0 0 0 0\ncpu1 100 0 0 900 0 0 0 0 0 0\n" +
		"intr 0\nctxt 1\nbtime 1700000000\nprocesses 1\nprocs_running 1\nprocs_blocked 0\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n",
	"proc/meminfo": "MemTotal:        1000 kB\nMemFree:          100 kB\nMemAvailable:     400 kB\n",
	"proc/7/status": "Name:\tweir\nCpus_allowed:\t3\nCpus_allowed_list:\t0-1\n" +
		"voluntary_ctxt_switches:\t1\n",
	"proc/7/limits": "Limit                     Soft Limit           Hard Limit           Units     \n" +
		"Max open files            200                  1000                 files     \n",
	"proc/7/fd/0": "x", "proc/7/fd/1": "x", "proc/7/fd/2": "x", "proc/7/fd/17": "x",
	"proc/7/net/dev": "Inter-|   Receive                                                |  Transmit\n" +
		" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n" +
		"    lo: 900 1 0 0 0 0 0 0 900 1 0 0 0 0 0 0\n" +
		"  eth0: 100 1 0 0 0 0 0 0 2000 1 0 0 0 0 0 0\n" +
		"  br0: 100 1 0 0 0 0 0 0 2000 1 0 0 0 0 0 0\n",
	"proc/7/cgroup":    "",
	"proc/7/mountinfo": "",

	"sys/class/net/lo/flags": "0x9\n", "sys/class/net/eth0/flags": "0x1003\n", "sys/class/net/br0/flags": "0x1003\n",
	"sys/class/net/eth0/speed": "1000\n", "sys/class/net/eth0/device/vendor": "x", "sys/class/net/br0/speed": "10000\n",
}

// cgroup version 2, as in a container that sees its own group as the root.
var version2 = map[string]string{
	"proc/7/cgroup":    "0::/\n",
	"proc/7/mountinfo": "30 20 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n",

	"sys/fs/cgroup/cpu.max": "150000 100000\n", "sys/fs/cgroup/cpu.stat": "usage_usec 3000000\nuser_usec 1\n",
	"sys/fs/cgroup/memory.max": "1000000\n", "sys/fs/cgroup/memory.current": "800000\n",
	"sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 300000\n",
}

// cgroup version 2 on a host: the limits are those of a group above.
var version2Above = map[string]string{
	"proc/7/cgroup":    "0::/a.slice/weir.service\n",
	"proc/7/mountinfo": "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",

	"sys/fs/cgroup/a.slice/cpu.max": "50000 100000\n", "sys/fs/cgroup/a.slice/cpu.stat": "usage_usec 7\n",
	"sys/fs/cgroup/a.slice/weir.service/cpu.max":    "max 100000\n",
	"sys/fs/cgroup/a.slice/weir.service/memory.max": "max\n",
	"sys/fs/cgroup/a.slice/memory.max":              "500\n", "sys/fs/cgroup/a.slice/memory.current": "100\n",
	"sys/fs/cgroup/a.slice/memory.stat": "inactive_file 0\n",
}

// cgroup version 1 in a container whose mounts show its own groups: the paths in
// proc/7/cgroup are the host's.
var version1 = map[string]string{
	"proc/7/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/docker/abc\n",
	"proc/7/mountinfo": "40 30 0:30 /docker/abc /sys/fs/cgroup/memory ro shared:1 - cgroup cgroup rw,memory\n" +
		"41 30 0:31 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n",

	"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000\n", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "200000\n",
	"sys/fs/cgroup/cpu,cpuacct/cpuacct.usage":     "5000\n",
	"sys/fs/cgroup/memory/memory.limit_in_bytes":  "2000\n",
	"sys/fs/cgroup/memory/memory.usage_in_bytes":  "1500\n",
	"sys/fs/cgroup/memory/memory.stat":            "cache 5\ntotal_inactive_file 100\n",
	"sys/fs/cgroup/memory/docker/abc/memory.stat": "", // not here
}

func write(t *testing.T, files ...map[string]string) string {
	t.Helper()
	all := maps.Clone(tree)
	for _, f := range files {
		maps.Copy(all, f)
	}
	root := t.TempDir()
	for name, text := range all {
		if text == "" && !strings.HasPrefix(name, "proc/7/") {
			continue
		}
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func read(t *testing.T, cfg Config, files ...map[string]string) (*Reader, Machine, error) {
	t.Helper()
	r, err := NewReader(write(t, files...), 7, cfg)
	if err != nil {
		t.Fatal(err)
	}
	m, err := r.Machine()
	return r, m, err
}

func TestMachine(t *testing.T) {
	kernel := Space{Used: 600 << 10, Limit: 1000 << 10}
	eth0 := Link{Name: "eth0", Egress: 2000, Ingress: 100, BitsPerSecond: 1e9}
	whole := Machine{CPUs: 2, Busy: 4 * time.Second, Idle: 16 * time.Second, Memory: []Space{kernel}, Links: []Link{eth0}}
	with := func(change func(*Machine)) Machine {
		m := whole
		change(&m)
		return m
	}
	for name, c := range map[string]struct {
		files map[string]string
		cfg   func(*Config)
		want  Machine
	}{
		"plain": {want: whole},
		"bound to one processor": {
			files: map[string]string{"proc/7/status": "Cpus_allowed_list:\t1\n"},
			want:  with(func(m *Machine) { m.CPUs, m.Busy, m.Idle = 1, time.Second, 9*time.Second }),
		},
		"version 2": {files: version2, want: with(func(m *Machine) {
			m.CPUs, m.Quota, m.Used = 1.5, 1.5, 3*time.Second
			m.Memory = []Space{{500000, 1000000}, kernel}
		})},
		"version 2, limits above": {files: version2Above, want: with(func(m *Machine) {
			m.CPUs, m.Quota, m.Used = 0.5, 0.5, 7*time.Microsecond
			m.Memory = []Space{{100, 500}, kernel}
		})},
		"version 1": {files: version1, want: with(func(m *Machine) {
			m.CPUs, m.Quota, m.Used = 0.5, 0.5, 5*time.Microsecond
			m.Memory = []Space{{1400, 2000}, kernel}
		})},
		"version 1 without limits": {
			files: map[string]string{
				"proc/7/cgroup": version1["proc/7/cgroup"], "proc/7/mountinfo": version1["proc/7/mountinfo"],
				"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
			}, want: whole,
		},
		"chosen interfaces, loopback among them": {
			cfg: func(c *Config) { c.Network.Interfaces = []string{"l*", "br0"} },
			want: with(func(m *Machine) {
				m.Links = []Link{{"br0", 2000, 100, 1e10}, {"lo", 900, 900, 0}}
			}),
		},
		"no hardware, as in a container": {
			files: map[string]string{"sys/class/net/eth0/device/vendor": "", "sys/class/net/eth0/speed": "-1\n"},
			want: with(func(m *Machine) {
				m.Links = []Link{{"br0", 2000, 100, 1e10}, {"eth0", 2000, 100, 0}}
			}),
		},
		"stolen time is not free": {
			files: map[string]string{"proc/stat": "cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 100 0 0 0 100 0 0\n"},
			want:  with(func(m *Machine) { m.CPUs, m.Busy, m.Idle = 1, time.Second, time.Second }),
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			if c.cfg != nil {
				c.cfg(&cfg)
			}
			_, got, err := read(t, cfg, c.files)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestProcess(t *testing.T) {
	r, _, _ := read(t, DefaultConfig(), version2)
	r.clock = func(pid int) (time.Duration, error) {
		if pid != 7 {
			t.Errorf("asked for process %d", pid)
		}
		return 2 * time.Second, nil
	}
	u, err := r.Process()
	if err != nil {
		t.Fatal(err)
	}
	if want := (Usage{CPU: 2 * time.Second, Descriptors: Space{4, 200}}); u != want {
		t.Errorf("got %+v, want %+v", u, want)
	}
	if n, err := r.CPUs(); n != 1.5 || err != nil {
		t.Errorf("may use %v processors, %v", n, err)
	}
}

// Descriptors are listed where the kernel does not count them or may not be asked.
func TestDescriptors(t *testing.T) {
	r, _, _ := read(t, DefaultConfig())
	r.kernel = true
	f := func(n uint64, err error, want uint64) {
		t.Helper()
		r.size = func(string) (uint64, error) { return n, err }
		if got, err := r.descriptors(); got != want || err != nil {
			t.Errorf("%d, %v: got %d, %v, want %d", n, err, got, err, want)
		}
	}
	f(17, nil, 17)
	f(0, nil, 4)
	f(0, unix.EPERM, 4)
	f(0, unix.ENOSYS, 4)
}

func TestDisk(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Disk.Path = "/data"
	r, _, err := read(t, cfg)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "load.disk.path") {
		t.Errorf("no such path: %v", err)
	}
	r.statfs = func(path string, s *unix.Statfs_t) error {
		if path != filepath.Join(r.root, "data") {
			return fmt.Errorf("asked for %s", path)
		}
		s.Frsize, s.Blocks, s.Bfree, s.Bavail = 4096, 1000, 400, 300
		return nil
	}
	m, err := r.Machine()
	if err != nil {
		t.Fatal(err)
	}
	if want := (Space{600 * 4096, 900 * 4096}); m.Disk == nil || *m.Disk != want {
		t.Errorf("got %+v, want %+v", m.Disk, want)
	}
}

// What cannot be read is an error that names the file; the rest is there.
func TestBadFiles(t *testing.T) {
	for name, c := range map[string]struct {
		base  map[string]string
		file  string
		text  string
		wants string
	}{
		"stat":             {file: "proc/stat", text: "cpu0 x\n", wants: "proc/stat"},
		"stat without":     {file: "proc/stat", text: "ctxt 1\n", wants: "no processor"},
		"stat, short":      {file: "proc/stat", text: "cpu  1 1 1 1 1 1 1 1\ncpu0 1 1 1 1 1 1 1\n", wants: "no line of a processor"},
		"stat, one word":   {file: "proc/stat", text: "cpu", wants: "no line of a processor"},
		"stat, negative":   {file: "proc/stat", text: "cpu0 1 1 -1 1 1 1 1 1\n", wants: "no line of a processor"},
		"allowed":          {file: "proc/7/status", text: "Cpus_allowed_list:\t1-0\n", wants: "no list of processors"},
		"allowed, huge":    {file: "proc/7/status", text: "Cpus_allowed_list:\t0-18446744073709551615\n", wants: "no list of processors"},
		"allowed, absent":  {file: "proc/7/status", text: "Name: x\n", wants: "no Cpus_allowed_list"},
		"meminfo":          {file: "proc/meminfo", text: "MemTotal: many kB\n", wants: "proc/meminfo"},
		"meminfo, bytes":   {file: "proc/meminfo", text: "MemTotal: 5 B\n", wants: "no line of memory"},
		"meminfo, no free": {file: "proc/meminfo", text: "MemTotal: 5 kB\n", wants: "MemAvailable"},
		"meminfo, nothing": {file: "proc/meminfo", text: "MemTotal: 0 kB\nMemAvailable: 0 kB\n", wants: "MemTotal"},
		"net/dev":          {file: "proc/7/net/dev", text: "a\nb\neth0: 1 2\n", wants: "network interfaces"},
		"cpu.max":          {version2, "sys/fs/cgroup/cpu.max", "fast 100000\n", "cpu.max"},
		"cpu.max, zero":    {version2, "sys/fs/cgroup/cpu.max", "100000 0\n", "cpu.max"},
		"cpu.stat":         {version2, "sys/fs/cgroup/cpu.stat", "usage_usec -3\n", "usage_usec"},
		"cpu.stat, absent": {version2, "sys/fs/cgroup/cpu.stat", "other 1\n", "no usage_usec"},
		"memory.max":       {version2, "sys/fs/cgroup/memory.max", "0\n", "memory.max"},
		"memory.current":   {version2, "sys/fs/cgroup/memory.current", "\n", "memory.current"},
		"memory.stat":      {version2, "sys/fs/cgroup/memory.stat", "anon 1\n", "inactive_file"},
		"quota":            {version1, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "x\n", "cfs_quota_us"},
		"period":           {version1, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "0\n", "cfs_quota_us"},
		"cpuacct":          {version1, "sys/fs/cgroup/cpu,cpuacct/cpuacct.usage", "x\n", "cpuacct.usage"},
		"limit":            {version1, "sys/fs/cgroup/memory/memory.limit_in_bytes", "-5\n", "limit_in_bytes"},
		"usage":            {version1, "sys/fs/cgroup/memory/memory.usage_in_bytes", "x", "usage_in_bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, m, err := read(t, DefaultConfig(), c.base, map[string]string{c.file: c.text})
			if err == nil || !strings.Contains(err.Error(), c.wants) {
				t.Errorf("error %v, want one with %q", err, c.wants)
			}
			if m.CPUs <= 0 {
				t.Errorf("%v processors", m.CPUs)
			}
			if known := m.Busy+m.Idle > 0; !known && c.file != "proc/stat" {
				t.Error("the processors are missing too")
			}
			if len(m.Links) == 0 && c.file != "proc/7/net/dev" {
				t.Error("the interfaces are missing too")
			}
		})
	}
	for name, c := range map[string]struct{ file, text string }{
		"limits": {"proc/7/limits", "a\nMax open files none\n"}, "limits, none": {"proc/7/limits", "a\nMax open files"},
		"limits, absent": {"proc/7/limits", "a\n"},
	} {
		t.Run("process "+name, func(t *testing.T) {
			r, _, _ := read(t, DefaultConfig(), map[string]string{c.file: c.text})
			r.clock = func(int) (time.Duration, error) { return time.Second, nil }
			if u, err := r.Process(); err == nil || u.CPU != time.Second {
				t.Errorf("%+v, %v", u, err)
			}
		})
	}
	// Where a process is among the groups decides nothing but its limits.
	for name, files := range map[string]map[string]string{
		"cgroup":    {"proc/7/cgroup": "nonsense\n", "proc/7/mountinfo": version2["proc/7/mountinfo"]},
		"mountinfo": {"proc/7/cgroup": version2["proc/7/cgroup"], "proc/7/mountinfo": "nonsense\n"},
		"outside":   {"proc/7/cgroup": "0::/../../etc\n", "proc/7/mountinfo": version2["proc/7/mountinfo"]},
	} {
		t.Run("place, "+name, func(t *testing.T) {
			if _, m, err := read(t, DefaultConfig(), files); err != nil || m.CPUs != 2 {
				t.Errorf("%v processors, %v", m.CPUs, err)
			}
		})
	}
	if _, err := NewReader(t.TempDir(), 7, DefaultConfig()); err == nil {
		t.Error("no error without /proc")
	}
	if _, err := NewReader(write(t), 8, DefaultConfig()); err == nil {
		t.Error("no error without the process")
	}
}

// The files of the machine that the test runs on can be read.
func TestThisMachine(t *testing.T) {
	r, err := NewReader("/", os.Getpid(), DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	m, err := r.Machine()
	if err != nil {
		t.Error(err)
	}
	if m.CPUs <= 0 || m.Busy <= 0 || m.Idle <= 0 || len(m.Memory) == 0 || m.Memory[len(m.Memory)-1].share() <= 0 {
		t.Errorf("read %+v", m)
	}
	for _, l := range m.Links {
		if l.Name == "lo" {
			t.Error("loopback counts")
		}
	}
	u, err := r.Process()
	if err != nil || u.CPU <= 0 || u.Descriptors.Used == 0 || u.Descriptors.Limit == 0 {
		t.Errorf("read %+v, %v", u, err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if more, err := r.Process(); err != nil || more.Descriptors.Used != u.Descriptors.Used+1 || more.CPU < u.CPU {
		t.Errorf("read %+v and with one more descriptor %+v, %v", u, more, err)
	}
	// The time is this process's own.
	for end := u.CPU + 20*time.Millisecond; ; {
		now, err := r.clock(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now >= end { // the loop used it
			break
		}
	}
}

func FuzzParsers(f *testing.F) {
	for _, s := range []string{"0-3,8\n", "1-0", "0-65535", "max 100000", tree["proc/7/net/dev"], tree["proc/stat"], tree["proc/meminfo"], tree["proc/7/limits"], "150000 100000", "usage_usec 12\n", ",,-", "9223372036854775807 1"} {
		f.Add(s)
	}
	dir := f.TempDir()
	name := filepath.Join(dir, "file")
	f.Fuzz(func(t *testing.T, text string) {
		if all, err := parseCPUList(text); err == nil {
			for _, n := range all {
				if n < 0 || n >= maxCPU {
					t.Errorf("processor %d", n)
				}
			}
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if q, err := quota2(name); err == nil && q < 0 {
			t.Errorf("quota %v", q)
		}
		if all, err := parseDevices(text); err == nil {
			for _, l := range all {
				if l.Name == "" {
					t.Error("an interface without a name")
				}
			}
		}
		if busy, idle, n, err := processors([]byte(text), nil); err == nil && (busy < 0 || idle < 0 || n < 0) {
			t.Errorf("%v processors, busy %v, idle %v", n, busy, idle)
		}
		if total, _, err := machineMemory([]byte(text)); err == nil && total == 0 {
			t.Error("no memory")
		}
		_, _ = openFiles([]byte(text))
		_, _ = number(name)
		_, _ = field(name, "usage_usec")
	})
}
