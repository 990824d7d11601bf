package quiet

import (
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The functions below are for what the kernel has at hand: files of /proc, and clocks.
// Anything that has to be waited for, such as a disk or a driver, would block a
// processor of the Go runtime.

// ReadFile returns what is in a file, of at most limit bytes. buf is used if there is
// room in it.
func ReadFile(name string, buf []byte, limit int) ([]byte, error) {
	path, err := unix.BytePtrFromString(name)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	at := unix.AT_FDCWD
	fd, _, errno := syscall.RawSyscall6(unix.SYS_OPENAT, uintptr(at), uintptr(unsafe.Pointer(path)), unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		return nil, &os.PathError{Op: "open", Path: name, Err: errno}
	}
	defer func() { _, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, fd, 0, 0) }()
	b := buf[:0]
	for {
		if len(b) == cap(b) {
			b = append(b, make([]byte, max(len(b), 4<<10))...)[:len(b)]
		}
		room := b[len(b):cap(b)]
		n, _, errno := syscall.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(room))), uintptr(len(room)))
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return nil, &os.PathError{Op: "read", Path: name, Err: errno}
		case n == 0:
			return b, nil
		}
		if b = b[:len(b)+int(n)]; len(b) > limit {
			return nil, fmt.Errorf("read %s: longer than %d bytes", name, limit)
		}
	}
}

// FileSize returns the size of a file in bytes, as the kernel gives it (statx(2)).
func FileSize(name string) (uint64, error) {
	path, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, &os.PathError{Op: "statx", Path: name, Err: err}
	}
	var s unix.Statx_t
	at := unix.AT_FDCWD
	_, _, errno := syscall.RawSyscall6(unix.SYS_STATX, uintptr(at), uintptr(unsafe.Pointer(path)), 0, unix.STATX_SIZE, uintptr(unsafe.Pointer(&s)), 0)
	if errno != 0 {
		return 0, &os.PathError{Op: "statx", Path: name, Err: errno}
	}
	return s.Size, nil
}

// CPUTime returns the processor time that all threads of a process have used, those
// that have ended among them (clock_getcpuclockid(3)).
func CPUTime(pid int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED: all time, to the nanosecond
	clock := int32(^pid<<3 | scheduled)
	var ts unix.Timespec
	if _, _, errno := syscall.RawSyscall(unix.SYS_CLOCK_GETTIME, uintptr(clock), uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return 0, os.NewSyscallError("clock_gettime", errno)
	}
	return time.Duration(ts.Nano()), nil
}
