package fanout

import (
	"errors"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pages is a file in memory (memfd_create(2)) by which a block is sent to many sockets:
// sendfile(2) has all of them refer to the same pages, where send(2) makes a copy for
// each. That saves a sixth of what a player of 16 KB batches costs, and a third of one
// of 48 KB; players that do not take their bytes share the memory, too.
//
// What a socket still refers to is never written to again: each block gets new pages,
// and the kernel frees those of the one before when the last socket has let go of them.
//
// A pages belongs to one goroutine. The zero value is ready.
type pages struct {
	open bool  // there is a file
	file int   // its descriptor
	err  error // why it cannot be had here
	told bool  // trouble has returned err
}

// From these sizes on pages save more than they cost: a block of fewer bytes is copied
// more quickly than its pages are counted, and one for fewer players than it is put into
// the file.
const (
	pagedBytes   = 8 << 10
	pagedPlayers = 16
)

// worthPages reports whether a block of so many bytes for so many players is to be sent
// by pages.
func worthPages(bytes, players int) bool { return bytes >= pagedBytes && players >= pagedPlayers }

// errNoPages says that a kernel, or who confines the process, does not let it send from
// a file in memory.
var errNoPages = errors.New("a file in memory cannot be sent from here")

// put makes b what send sends. If it reports false there is nothing to send from.
func (p *pages) put(b []byte) bool {
	if p.err != nil {
		return false
	}
	if !p.open {
		if p.file, p.err = memoryFile(); p.err != nil {
			return false
		}
		p.open = true
	}
	// Neither call can block; entering Go's scheduler would wake its watcher thread.
	if _, _, errno := unix.RawSyscall(unix.SYS_FTRUNCATE, uintptr(p.file), 0, 0); errno != 0 {
		return false
	}
	for off := 0; off < len(b); {
		n, _, errno := unix.RawSyscall6(unix.SYS_PWRITE64, uintptr(p.file), uintptr(unsafe.Pointer(&b[off])), uintptr(len(b)-off), uintptr(off), 0, 0)
		switch {
		case errno == unix.EINTR:
		case errno != 0 || n == 0: // no memory
			return false
		}
		off += int(n)
	}
	return true
}

// send sends to a socket what it takes, without waiting, of the first n bytes of what was
// put. An error is one of the socket, or errNoPages: nothing was sent then.
func (p *pages) send(to uintptr, n int) (sent int, err error) {
	for {
		var from int64
		r, _, errno := unix.RawSyscall6(unix.SYS_SENDFILE, to, uintptr(p.file), uintptr(unsafe.Pointer(&from)), uintptr(n), 0, 0)
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR:
			continue
		case unix.EAGAIN, unix.ENOBUFS:
			return 0, nil
		case unix.ENOMEM, unix.EIO: // of this time
			return 0, errNoPages
		case unix.EINVAL, unix.ENOSYS, unix.EPERM, unix.EACCES, unix.EOPNOTSUPP:
			p.err = errors.Join(errNoPages, errno)
			return 0, errNoPages
		}
		return 0, syscall.Errno(errno)
	}
}

// trouble returns why nothing can be sent by pages here, once.
func (p *pages) trouble() error {
	if p.told {
		return nil
	}
	p.told = p.err != nil
	return p.err
}

// close frees the file.
func (p *pages) close() {
	if p.open {
		_ = unix.Close(p.file)
		p.open = false
	}
}

// memoryFile opens a file in memory.
func memoryFile() (int, error) {
	// Without a word about execution Linux from 6.3 on complains in its log; before, it
	// does not know the word.
	f, err := unix.MemfdCreate("weir-fanout", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		f, err = unix.MemfdCreate("weir-fanout", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return -1, errors.Join(errNoPages, err)
	}
	return f, nil
}
