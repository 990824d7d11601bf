package uring

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// What follows is the kernel's interface as in its include/uapi/linux/io_uring.h; see
// io_uring_setup(2), io_uring_enter(2) and io_uring_register(2).

// Operations.
const (
	opSend    = 26
	opReceive = 27
)

const (
	featureSingleMap = 1 << 0 // both queues are in one mapping
	enterGetEvents   = 1 << 0
	registerProbe    = 8
	probeSupported   = 1 << 0

	offsetRings    = 0          // of the mappings
	offsetRequests = 0x10000000 // of the mappings
)

// params are struct io_uring_params.
type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sq                                                                     struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// request is struct io_uring_sqe.
type request struct {
	op, _ uint8
	_     uint16
	fd    int32
	_     uint64
	addr  uint64
	len   uint32
	flags uint32 // of the message
	id    uint64
	_, _  uint16
	_     int32
	_, _  uint64
}

// completion is struct io_uring_cqe.
type completion struct {
	id     uint64
	result int32 // bytes, or the negative errno
	_      uint32
}

// supports reports whether the kernel knows operations (IORING_REGISTER_PROBE).
func supports(fd int, ops ...uint8) bool {
	const most = 64
	var probe struct {
		last, len uint8
		_         uint16
		_         [3]uint32
		ops       [most]struct {
			op, _ uint8
			flags uint16
			_     uint32
		}
	}
	if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), registerProbe, uintptr(unsafe.Pointer(&probe)), most, 0, 0); errno != 0 {
		return false
	}
	for _, op := range ops {
		if op > probe.last || probe.ops[op].flags&probeSupported == 0 {
			return false
		}
	}
	return true
}

// share maps memory of a ring.
func share(fd int, offset int64, size int) ([]byte, error) {
	return unix.Mmap(fd, offset, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
}
