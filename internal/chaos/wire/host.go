package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Host is a network namespace. Its methods are safe for concurrent use.
type Host struct {
	// Static.
	Name      string
	Namespace string // its name for `ip netns exec`
	Addr      netip.Addr
	ns        *os.File // the namespace
	tun       *os.File
}

// namespaces is where `ip netns` keeps them.
const namespaces = "/run/netns"

func newHost(run, name string, addr netip.Addr) (*Host, error) {
	h := &Host{Name: name, Namespace: run + "-" + name, Addr: addr}
	if err := ip("netns", "add", h.Namespace); err != nil {
		return nil, err
	}
	err := h.open()
	if err == nil {
		err = ipBatch(h.Namespace,
			"link set lo up",
			"addr add "+addr.String()+"/24 dev "+device,
			"link set "+device+" up",
		)
	}
	if err != nil {
		return nil, errors.Join(err, h.closeDevice(), h.remove())
	}
	return h, nil
}

// device is the name of the TUN device in each namespace.
const device = "wire0"

func (h *Host) open() error {
	ns, err := os.Open(filepath.Join(namespaces, h.Namespace))
	if err != nil {
		return fmt.Errorf("open namespace: %w", err)
	}
	h.ns = ns
	return h.inside(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		request, err := unix.NewIfreq(device)
		if err == nil {
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("make TUN device: %w", err)
		}
		h.tun = os.NewFile(uintptr(fd), "tun of "+h.Namespace)
		return nil
	})
}

func (h *Host) closeDevice() error {
	if h.tun == nil {
		return nil
	}
	return h.tun.Close()
}

// remove deletes the namespace.
func (h *Host) remove() error {
	if h.ns != nil {
		h.ns.Close()
	}
	return ip("netns", "del", h.Namespace)
}

// inside calls f on a thread that is in the host's namespace. What f makes of
// sockets stays in it.
func (h *Host) inside(f func() error) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own namespace: %w", err)
	}
	defer own.Close()
	if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter namespace %s: %w", h.Namespace, err)
	}
	err = f()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread must not run anything else. It stays locked, and ends with
		// the goroutine; children that it started may end with it.
		return errors.Join(err, fmt.Errorf("leave namespace %s: %w", h.Namespace, back))
	}
	runtime.UnlockOSThread()
	return err
}

// DialContext connects from the host to addr, an IPv4 address with a port; network
// is "tcp". The connection is given up by the kernel when what was sent is not
// acknowledged for UserTimeout of ctx, see WithUserTimeout.
func (h *Host) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil || network != "tcp" || !to.Addr().Is4() {
		return nil, fmt.Errorf("dial %s %s from %s: want tcp and an IPv4 address", network, addr, h.Name)
	}
	var fd int
	err = h.inside(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial %s from %s: make socket: %w", addr, h.Name, err)
	}
	if d, ok := ctx.Value(userTimeout{}).(time.Duration); ok {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	f := os.NewFile(uintptr(fd), addr)
	defer f.Close() // FileConn has one of its own
	if errors.Is(err, unix.EINPROGRESS) {
		err = connected(ctx, f)
	}
	if err != nil {
		return nil, fmt.Errorf("dial %s from %s: connect: %w", addr, h.Name, err)
	}
	return net.FileConn(f)
}

type userTimeout struct{}

// WithUserTimeout returns a context with which DialContext sets TCP_USER_TIMEOUT.
func WithUserTimeout(ctx context.Context, d time.Duration) context.Context {
	return context.WithValue(ctx, userTimeout{}, d)
}

// connected waits for the end of a connect that is under way.
func connected(ctx context.Context, f *os.File) error {
	if deadline, ok := ctx.Deadline(); ok {
		_ = f.SetWriteDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			failed = err
		case code != 0:
			failed = unix.Errno(code)
		default:
			_, err := unix.Getpeername(int(fd))
			return err == nil // not yet: wait until it is writable
		}
		return true
	})
	if err == nil {
		err = failed
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil: // a moment before that of ctx
		return context.DeadlineExceeded
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	}
	return err
}

// Listen listens on a TCP port of the host.
func (h *Host) Listen(port int) (net.Listener, error) {
	var l net.Listener
	err := h.inside(func() (err error) {
		// The address is one of numbers, so that no other thread looks it up.
		l, err = net.Listen("tcp4", netip.AddrPortFrom(h.Addr, uint16(port)).String())
		return err
	})
	return l, err
}

// Command returns a command that runs in the host. Its process is that of the
// program itself.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", h.Namespace, name}, args...)...)
}

func ip(args ...string) error { return run("", args...) }

func ipBatch(namespace string, lines ...string) error {
	return run(strings.Join(lines, "\n")+"\n", "-n", namespace, "-batch", "-")
}

func run(stdin string, args ...string) error {
	cmd := exec.Command("ip", args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// RunName returns a name for a run of this process that no other process has; run
// tells its runs at the same time apart and may be empty. It tells RemoveStale whose
// namespaces they are.
func RunName(prefix, run string) string {
	name := prefix + "-" + strconv.Itoa(os.Getpid())
	if run != "" {
		name += "-" + run
	}
	return name
}

// RemoveStale deletes the namespaces of runs with names of RunName whose process
// is gone: it was killed. It returns how many there were.
func RemoveStale(prefix string) (int, error) {
	entries, err := os.ReadDir(namespaces)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("list namespaces: %w", err)
	}
	removed := 0
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), prefix+"-")
		if !ok {
			continue
		}
		text, _, _ := strings.Cut(rest, "-")
		pid, err := strconv.Atoi(text)
		if err != nil || pid == os.Getpid() || unix.Kill(pid, 0) != unix.ESRCH {
			continue
		}
		if err := ip("netns", "del", e.Name()); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}
