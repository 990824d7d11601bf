package load

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
)

// groups are the directories of a process's cgroups that can limit it, its own first
// and then those above it: a limit of any of them counts. Formats: cgroup-v2 and
// cgroup-v1/memory, sched-bwc, cpuacct of the kernel's documentation.
type groups struct {
	unified []string // version 2
	cpu1    []string // version 1, by controller
	cpuacct []string
	memory1 []string
}

// findGroups looks where the process is in each hierarchy. What cannot be found is
// left out.
func findGroups(p procfs.Proc, root string) groups {
	var g groups
	member, err := p.Cgroups()
	if err != nil {
		return g
	}
	mounts, err := p.MountInfo()
	if err != nil {
		return g
	}
	for _, m := range mounts {
		for _, c := range member {
			dirs := func() []string { return above(root, m, c.Path) }
			switch {
			case m.FSType == "cgroup2" && c.HierarchyID == 0 && len(c.Controllers) == 0:
				g.unified = dirs()
			case m.FSType != "cgroup":
			case has(m, c, "memory"):
				g.memory1 = dirs()
			default: // one hierarchy may have both
				if has(m, c, "cpu") {
					g.cpu1 = dirs()
				}
				if has(m, c, "cpuacct") {
					g.cpuacct = dirs()
				}
			}
		}
	}
	return g
}

// has reports whether a mount is that of the hierarchy of a group with a controller.
func has(m *procfs.MountInfo, c procfs.Cgroup, controller string) bool {
	_, mounted := m.SuperOptions[controller]
	return mounted && slices.Contains(c.Controllers, controller)
}

// above returns the directories of a group and of all above it that can be seen, by
// the mount of its hierarchy. In a container the mount may show the container's group
// as its root, while the process's path begins above it, or at it.
func above(root string, m *procfs.MountInfo, path string) []string {
	if rest, ok := strings.CutPrefix(path, m.Root); ok && (rest == "" || rest[0] == '/' || m.Root == "/") {
		path = rest
	} else if m.Root != "/" {
		path = ""
	}
	top := filepath.Join(root, m.MountPoint)
	dir := filepath.Join(top, filepath.Clean("/"+path))
	dirs := []string{dir}
	for dir != top {
		dir = filepath.Dir(dir)
		dirs = append(dirs, dir)
	}
	return dirs
}

// cpu returns the quota in processors and the time used of it, of the group whose
// quota is the smallest; a quota of 0 says that there is none. What is used may not be
// known, and stays 0 then.
func (g groups) cpu() (quota float64, used time.Duration, err error) {
	at := "" // of the group with the quota
	for _, dir := range g.unified {
		q, err := quota2(filepath.Join(dir, "cpu.max"))
		if err != nil {
			return 0, 0, err
		}
		if q > 0 && (quota == 0 || q < quota) {
			quota, at = q, dir
		}
	}
	if quota > 0 {
		usec, err := field(filepath.Join(at, "cpu.stat"), "usage_usec")
		return quota, time.Duration(usec) * time.Microsecond, err
	}
	for i, dir := range g.cpu1 {
		q, err := quota1(dir)
		if err != nil {
			return 0, 0, err
		}
		if q > 0 && (quota == 0 || q < quota) {
			quota, at = q, ""
			if len(g.cpuacct) == len(g.cpu1) { // else the hierarchies are not of one shape
				at = g.cpuacct[i]
			}
		}
	}
	if at != "" {
		nsec, err := number(filepath.Join(at, "cpuacct.usage"))
		return quota, time.Duration(nsec), err
	}
	return quota, 0, nil
}

// quota2 reads cpu.max, "QUOTA PERIOD" in microseconds, where QUOTA may be "max".
// The group at the root has none.
func quota2(name string) (float64, error) {
	text, err := readFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	first, second, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	if first == "max" {
		return 0, nil
	}
	return ratio(name, first, second)
}

// quota1 reads cpu.cfs_quota_us, which is -1 for none, and cpu.cfs_period_us.
func quota1(dir string) (float64, error) {
	name := filepath.Join(dir, "cpu.cfs_quota_us")
	quota, err := readFile(name)
	if errors.Is(err, fs.ErrNotExist) { // the scheduler has no quotas
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if strings.HasPrefix(string(quota), "-") {
		return 0, nil
	}
	period, err := readFile(filepath.Join(dir, "cpu.cfs_period_us"))
	if err != nil {
		return 0, err
	}
	return ratio(name, strings.TrimSpace(string(quota)), strings.TrimSpace(string(period)))
}

func ratio(name, quota, period string) (float64, error) {
	q, err := strconv.ParseUint(quota, 10, 63)
	p, perr := strconv.ParseUint(period, 10, 63)
	if err != nil || perr != nil || q == 0 || p == 0 {
		return 0, fmt.Errorf("read %s: %q of %q is no quota", name, quota, period)
	}
	return float64(q) / float64(p), nil
}

// memory returns the limits of the groups and what is used of each. Cached files that
// nobody has used lately can be given back: they do not count.
func (g groups) memory() ([]Space, error) {
	var all []Space
	var errs []error
	add := func(dirs []string, limit, usage, cold string) {
		for _, dir := range dirs {
			s, err := groupMemory(dir, limit, usage, cold)
			switch {
			case err != nil:
				errs = append(errs, err)
			case s.Limit > 0:
				all = append(all, s)
			}
		}
	}
	add(g.unified, "memory.max", "memory.current", "inactive_file")
	add(g.memory1, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
	return all, errors.Join(errs...)
}

// unlimited is what version 1 says at least where there is no limit: the largest
// number of whole pages.
const unlimited = 1 << 60

func groupMemory(dir, limit, usage, cold string) (Space, error) {
	text, err := readFile(filepath.Join(dir, limit))
	if errors.Is(err, fs.ErrNotExist) { // the group at the root, or no such controller
		return Space{}, nil
	}
	if err != nil {
		return Space{}, err
	}
	word := strings.TrimSpace(string(text))
	if word == "max" {
		return Space{}, nil
	}
	n, err := strconv.ParseUint(word, 10, 64)
	if err != nil || n == 0 {
		return Space{}, fmt.Errorf("read %s: %q is no limit", filepath.Join(dir, limit), word)
	}
	if n >= unlimited {
		return Space{}, nil
	}
	used, err := number(filepath.Join(dir, usage))
	if err != nil {
		return Space{}, err
	}
	idle, err := field(filepath.Join(dir, "memory.stat"), cold)
	if err != nil {
		return Space{}, err
	}
	return Space{Used: used - min(idle, used), Limit: n}, nil
}

// number reads a file that holds one number.
func number(name string) (uint64, error) {
	text, err := readFile(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 63)
	if err != nil {
		return 0, fmt.Errorf("read %s: %.40q is no number", name, text)
	}
	return n, nil
}

// field reads one number of a file of lines "NAME NUMBER".
func field(name, key string) (uint64, error) {
	text, err := readFile(name)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
		if k != key {
			continue
		}
		n, err := strconv.ParseUint(v, 10, 63)
		if err != nil {
			return 0, fmt.Errorf("read %s: %s is %.40q, which is no number", name, key, v)
		}
		return n, nil
	}
	return 0, fmt.Errorf("read %s: no %s", name, key)
}
