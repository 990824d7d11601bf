package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// processes are those of the server under test.
type processes []int

// usage is what processes have used up to a moment.
type usage struct {
	user, system time.Duration
	gone         []int // processes that could not be asked
}

func (u usage) total() time.Duration { return u.user + u.system }

// cpu returns the processor time of all threads that the processes have and had.
func (p processes) cpu() usage {
	var u usage
	for _, pid := range p {
		total, err := cpuClock(pid)
		if err != nil {
			u.gone = append(u.gone, pid)
			continue
		}
		// The clock knows nanoseconds but not how they were spent; the other way
		// round for the file.
		user, system, err := cpuStat(pid)
		if err != nil || user+system == 0 {
			u.user += total
			continue
		}
		share := float64(user) / float64(user+system)
		mine := time.Duration(share * float64(total))
		u.user += mine
		u.system += total - mine
	}
	return u
}

// cpuClock reads the CPU clock of a process, whose number is made from its pid
// (clock_getcpuclockid(3), CPUCLOCK_SCHED).
func cpuClock(pid int) (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		return 0, fmt.Errorf("read CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// userHZ is the unit of times in /proc, fixed by the kernel's ABI.
const userHZ = 100

func cpuStat(pid int) (user, system time.Duration, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	return parseStat(b)
}

// parseStat reads utime and stime (proc_pid_stat(5), fields 14 and 15).
func parseStat(b []byte) (user, system time.Duration, err error) {
	// The name, in parentheses, may hold anything.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0, 0, errors.New("parse /proc/PID/stat: too few fields")
	}
	u, err1 := strconv.ParseUint(f[11], 10, 63)
	s, err2 := strconv.ParseUint(f[12], 10, 63)
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, fmt.Errorf("parse /proc/PID/stat: %w", err)
	}
	return time.Duration(u) * time.Second / userHZ, time.Duration(s) * time.Second / userHZ, nil
}

// rss returns the resident memory of the processes in bytes.
func (p processes) rss() uint64 {
	var sum uint64
	for _, pid := range p {
		// status has counters that lag by up to some pages per core; the roll-up
		// counts, but not everybody may read it.
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		n, ok := kilobytes(b, "Rss:")
		if err != nil || !ok {
			b, _ = os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			n, _ = kilobytes(b, "VmRSS:")
		}
		sum += n << 10
	}
	return sum
}

// kilobytes returns the value of a line "key   123 kB".
func kilobytes(b []byte, key string) (uint64, bool) {
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() {
		if rest, ok := strings.CutPrefix(s.Text(), key); ok {
			n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 50)
			return n, err == nil
		}
	}
	return 0, false
}

func (p processes) check() error {
	for _, pid := range p {
		if _, err := cpuClock(pid); err != nil {
			return err
		}
		if _, _, err := cpuStat(pid); err != nil {
			return fmt.Errorf("look at process %d: %w", pid, err)
		}
	}
	return nil
}

// Machine is where a measurement ran.
type Machine struct {
	Cores  int    `json:"cores"`
	Model  string `json:"model"`
	Kernel string `json:"kernel"`
	Memory uint64 `json:"memory_bytes"`
}

// ThisMachine describes this machine.
func ThisMachine() Machine {
	m := Machine{Cores: runtime.NumCPU(), Model: "unknown", Kernel: "unknown"}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				m.Model = strings.TrimSpace(value)
				break
			}
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		kb, _ := kilobytes(b, "MemTotal:")
		m.Memory = kb << 10
	}
	return m
}

// idle returns how long the cores of the machine were idle, all together, since
// it was started.
func idle() time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line) // cpu user nice system idle iowait ...
	if len(f) < 6 || f[0] != "cpu" {
		return 0
	}
	a, _ := strconv.ParseUint(f[4], 10, 63)
	w, _ := strconv.ParseUint(f[5], 10, 63)
	return time.Duration(a+w) * time.Second / userHZ
}
