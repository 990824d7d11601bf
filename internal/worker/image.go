package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ownImage is the program that this process runs, also when its file has been
// replaced or deleted (proc(5)).
const ownImage = "/proc/self/exe"

// highFD is above all descriptors that children inherit: those of an Image are not
// overwritten between fork and exec.
const highFD = 512

// Image is a program file that is held open: what is started from it is the same
// program, whatever becomes of its path. nil is the program that this process runs.
type Image struct {
	fd   int
	path string
}

// OpenImage opens the program file at a path.
func OpenImage(path string) (*Image, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open program: %w", err)
	}
	defer file.Close()
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("open program %s: %w", path, err)
	}
	image := &Image{path: path}
	if e := raw.Control(func(fd uintptr) { image.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, highFD) }); e != nil || err != nil {
		return nil, fmt.Errorf("open program %s: %w", path, errors.Join(e, err))
	}
	return image, nil
}

// Close closes the file. What was started from it goes on; nothing can be any more.
func (i *Image) Close() error { return unix.Close(i.fd) }

// exec is the path by which this process, and one that it has just forked, execute
// the program.
func (i *Image) exec() string {
	if i == nil {
		return ownImage
	}
	return fmt.Sprintf("/proc/self/fd/%d", i.fd)
}

// Program returns the path of the program file that this process was started by, as
// it is to be started again: symbolic links are followed anew, and a name without a
// slash is sought in PATH.
func Program() (string, error) {
	path, err := exec.LookPath(os.Args[0])
	if err != nil {
		return "", fmt.Errorf("find own program: %w", err)
	}
	return filepath.Abs(path)
}

// keepName makes the process's name in ps and top that of its first argument: the
// kernel takes it from the path that was executed, which is one of /proc here.
func keepName() {
	_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
}

// maxTrialOutput bounds in bytes what is kept of what a program says on trial.
const maxTrialOutput = 4 << 10

// Try runs the program of an image with this process's arguments and the
// configuration as it would be run by Replace, but only on trial (Takeover.Trial):
// it has to say its version on standard output and end with success within
// Config.ReadyTimeout. The error has what it says on standard error.
func (s *Supervisor) Try(ctx context.Context, image *Image, config []byte) (version string, err error) {
	file, err := memoryFile(config)
	if err != nil {
		return "", fmt.Errorf("hand over configuration: %w", err)
	}
	defer file.Close()
	const firstFD = 3 // of ExtraFiles in the child
	text, err := json.Marshal(&takeover{Version: takeoverVersion, Trial: true, ConfigFD: firstFD})
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ReadyTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, image.exec(), os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(environment(), takeoverVariable+"="+string(text))
	cmd.ExtraFiles = []*os.File{file}
	cmd.WaitDelay = time.Second
	var said, failed bounded
	cmd.Stdout, cmd.Stderr = &said, &failed
	if err := cmd.Run(); err != nil {
		if ctx.Err() == context.DeadlineExceeded {
			err = fmt.Errorf("no end after %v", s.cfg.ReadyTimeout)
		}
		if words := strings.TrimSpace(failed.String()); words != "" {
			err = fmt.Errorf("%w: %s", err, words)
		}
		return "", fmt.Errorf("try %s: %w", image.path, err)
	}
	version = strings.TrimSpace(said.String())
	if version == "" || strings.ContainsAny(version, "\n") {
		return "", fmt.Errorf("try %s: it is no weir that can take over: it says %q, not its version", image.path, version)
	}
	return version, nil
}

// bounded keeps the first bytes that are written to it.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	_, _ = b.Buffer.Write(p[:min(len(p), maxTrialOutput-b.Len())])
	return len(p), nil
}

// environment is what children inherit: without what this process itself was handed.
func environment() []string {
	var env []string
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, handoverVariable+"=") && !strings.HasPrefix(variable, takeoverVariable+"=") {
			env = append(env, variable)
		}
	}
	return env
}
