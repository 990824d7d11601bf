package chaos

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// disk is what nodes write their logs to: a file system in memory, which can be full
// without filling that of the machine. It is mounted nowhere, so that it goes with the
// checker however that ends.
type disk struct {
	mount *os.File
}

// diskBytes is its size. Only what is written takes memory.
const diskBytes = 4 << 30

func newDisk() (*disk, error) {
	fail := func(err error) (*disk, error) { return nil, fmt.Errorf("make a disk in memory: %w", err) }
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fs)
	if err := errors.Join(unix.FsconfigSetString(fs, "size", strconv.Itoa(diskBytes)), unix.FsconfigCreate(fs)); err != nil {
		return fail(err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	return &disk{os.NewFile(uintptr(fd), "disk")}, nil
}

// open opens a file to append to it.
func (d *disk) open(name string) (*os.File, error) {
	fd, err := unix.Openat(int(d.mount.Fd()), name, unix.O_CREAT|unix.O_APPEND|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// fill leaves no room: the disk is made as small as what is on it.
func (d *disk) fill() error {
	var err error
	for range 100 { // what is on it grows meanwhile
		var s unix.Statfs_t
		if err := unix.Fstatfs(int(d.mount.Fd()), &s); err != nil {
			return fmt.Errorf("ask what is on the disk: %w", err)
		}
		if err = d.resize(int64(max(s.Blocks-s.Bfree, 1)) * s.Bsize); err == nil {
			return nil
		}
	}
	return err
}

// free makes it as large as it was.
func (d *disk) free() error { return d.resize(diskBytes) }

func (d *disk) resize(bytes int64) error {
	fs, err := unix.Fspick(int(d.mount.Fd()), "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("resize the disk: %w", err)
	}
	defer unix.Close(fs)
	if err := errors.Join(unix.FsconfigSetString(fs, "size", strconv.FormatInt(bytes, 10)), unix.FsconfigReconfigure(fs)); err != nil {
		return fmt.Errorf("resize the disk to %d bytes: %w", bytes, err)
	}
	return nil
}

// save copies a file into a folder.
func (d *disk) save(name, dir string) error {
	from, err := d.open(name)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}

func (d *disk) close() error { return d.mount.Close() }
