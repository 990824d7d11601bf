package uring

import (
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confined runs f in a thread that is not let make a system call, which fails there with
// an error, as seccomp(2) does it for a container. With submitting no call but those that
// submit nothing fails: io_uring_enter then only waits. The thread ends with f.
func confined(t *testing.T, call uintptr, waiting bool, errno unix.Errno, f func()) {
	t.Helper()
	const (
		load      = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jumpEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret       = unix.BPF_RET | unix.BPF_K

		number, second = 0, 16 + 8 // where struct seccomp_data has the call, and its second argument
	)
	fails := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(errno)}
	passes := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW}
	filter := []unix.SockFilter{
		{Code: load, K: number},
		{Code: jumpEqual, Jt: 1, K: uint32(call)},
		passes,
	}
	if waiting {
		filter = append(filter, unix.SockFilter{Code: load, K: second}, unix.SockFilter{Code: jumpEqual, Jt: 1}, passes)
	}
	filter = append(filter, fails)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the filter stays
		defer close(done)
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			done <- err
			return
		}
		program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
			done <- err
			return
		}
		f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
