package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tick is how often a load thread looks at its players. What came meanwhile is
// taken at once: a thread that slept in epoll would be woken for every player.
const tick = 4 * time.Millisecond

// player is a light player: after its first key frame it only counts bytes.
type player struct {
	// Static.
	stream  int
	request []byte // written once the connection stands
	kind    playerKind

	// Owned by the loop.
	place   int // number in the loop
	fd      int
	state   playerState
	begun   time.Duration // when the connect began
	firstKF time.Duration // from begun to the first key frame
	join    *joiner       // until then
	from    uint32        // number of that key frame
	marked  bool          // from is valid
	bytes   uint64        // all that came
	counted uint64        // what came behind the first key frame
	headers headerSet
	err     error // why it failed or was closed
}

// playerKind is why a player is there.
type playerKind uint8

const (
	ofRun   playerKind = iota // one of Config.Players
	ofCrowd                   // joins with the flash crowd
	stalled                   // asks for a stream and reads nothing
	ofFloor                   // of the bare loop: no request, no stream, just bytes
)

type playerState uint8

const (
	playerNew playerState = iota
	playerConnecting
	playerJoining // until its first key frame
	playerPlaying
	playerFailed // got no stream
	playerClosed // was closed by the server while it played
	playerGone   // has left by itself
)

// dropped is a player whose bytes are to be dropped, and what epoll said of it.
type dropped struct {
	p      *player
	events uint32
}

// loop is one load thread: it connects, reads and drops for its players.
type loop struct {
	// Static.
	target  netip.AddrPort
	sources []netip.Addr
	clock   clock
	epoll   int

	// Owned by run.
	scratch  []byte
	events   []unix.EpollEvent
	calls    calls     // drops for
	dropping []dropped // these players

	mu      sync.Mutex // held during a round
	players []*player  // guarded by mu; a player's number is its place
	fresh   []*player  // guarded by mu; to connect
	closed  bool       // guarded by mu
}

func newLoop(target netip.AddrPort, sources []netip.Addr, c clock) (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make epoll: %w", err)
	}
	return &loop{
		target: target, sources: sources, clock: c, epoll: fd,
		scratch: make([]byte, drainSize), events: make([]unix.EpollEvent, 512), calls: newCalls(),
	}, nil
}

// add has players connect in the next round.
func (l *loop) add(players ...*player) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range players {
		l.enter(p)
		l.fresh = append(l.fresh, p)
	}
}

func (l *loop) enter(p *player) {
	p.fd, p.place = -1, len(l.players)
	l.players = append(l.players, p)
}

// run serves the players until ctx ends, and then closes all connections. It
// keeps a thread of its own.
func (l *loop) run(ctx context.Context) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	timer := time.NewTicker(tick)
	defer timer.Stop()
	for {
		l.round()
		select {
		case <-timer.C:
		case <-ctx.Done():
			l.close()
			return
		}
	}
}

func (l *loop) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.players {
		if p.fd >= 0 {
			unix.Close(p.fd)
			p.fd = -1
			p.state = playerGone
		}
	}
	if !l.closed {
		l.closed = true
		unix.Close(l.epoll)
		l.calls.close()
	}
}

func (l *loop) round() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.fresh {
		l.connect(p)
	}
	l.fresh = l.fresh[:0]
	// Each player once at most, so that whoever waits for the lock gets it even if
	// there is no end of what comes.
	for range len(l.players)/len(l.events) + 1 {
		// With a time of zero it does not block, and so need not tell the scheduler.
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epoll),
			uintptr(unsafe.Pointer(&l.events[0])), uintptr(len(l.events)), 0, 0, 0)
		if errno != 0 {
			return // EINTR: the next round goes on
		}
		for _, e := range l.events[:n] {
			l.serve(l.players[e.Fd], e.Events)
		}
		l.drop()
		if int(n) < len(l.events) {
			return
		}
	}
}

// connect starts a player.
func (l *loop) connect(p *player) {
	p.begun = l.clock.now()
	p.state = playerConnecting
	window := 0
	if p.kind == stalled {
		window = slowWindow
	}
	fd, err := dialNonblocking(l.target, l.sources, p.place, window)
	if err != nil {
		p.state, p.err = playerFailed, err
		return
	}
	p.fd = fd
	if err := l.watch(p); err != nil {
		l.end(p, playerFailed, err)
	}
}

// watch has epoll report what happens to a player.
func (l *loop) watch(p *player) error {
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | epollET, Fd: int32(p.place)}
	if p.state == playerConnecting {
		event.Events |= unix.EPOLLOUT
	}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, p.fd, &event); err != nil {
		return fmt.Errorf("watch connection: %w", err)
	}
	return nil
}

// epollET is EPOLLET as the type of Events has it.
const epollET = 1 << 31

// slowWindow is the receive buffer of slow and stalled players in bytes, so that
// the server notices them soon.
const slowWindow = 64 << 10

// slowSegment is the segment size of slow and stalled players in bytes: that of
// Ethernet.
const slowSegment = 1448

// prepareSocket sets the options of a player's socket; without any of them it
// works as well, but less well.
func prepareSocket(fd, window int) {
	// The port is chosen by connect, which knows that only the pair must be free.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if window > 0 {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, window)
		// The loopback's segments of 64 KiB would let such a player take bytes only
		// every few seconds, and then many: no line that is slow does that.
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, slowSegment)
	}
}

// dialNonblocking begins a connect. i spreads the connections over the source
// addresses, so that their ports last.
func dialNonblocking(target netip.AddrPort, sources []netip.Addr, i, window int) (int, error) {
	family := unix.AF_INET
	if target.Addr().Is6() {
		family = unix.AF_INET6
	}
	var last error
	for try := range max(1, len(sources)) {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("make socket: %w", err)
		}
		prepareSocket(fd, window)
		if len(sources) > 0 {
			source := sources[(i+try)%len(sources)]
			if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(source, 0))); err != nil {
				unix.Close(fd)
				return -1, fmt.Errorf("bind to %v: %w", source, err)
			}
		}
		err = unix.Connect(fd, sockaddr(target))
		if err == nil || errors.Is(err, unix.EINPROGRESS) {
			return fd, nil
		}
		unix.Close(fd)
		last = fmt.Errorf("connect: %w", err)
		if !errors.Is(err, unix.EADDRNOTAVAIL) {
			break
		}
	}
	return -1, last
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

func (l *loop) end(p *player, s playerState, err error) {
	if p.fd >= 0 {
		unix.Close(p.fd)
		p.fd = -1
	}
	p.state, p.err, p.join = s, err, nil
}

// serve takes all that there is to read of one player.
func (l *loop) serve(p *player, events uint32) {
	if p.fd < 0 {
		return
	}
	if p.state == playerConnecting && !l.request(p) {
		return
	}
	if p.kind == stalled {
		if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
			l.end(p, playerClosed, nil)
		}
		return
	}
	if p.state == playerPlaying {
		if l.calls.full() {
			l.drop()
		}
		l.calls.drop(p.fd)
		l.dropping = append(l.dropping, dropped{p, events})
		return
	}
	l.read(p, events)
}

// drop drops what has come for the players that serve has put aside. What fills a call is
// gone on with alone.
func (l *loop) drop() {
	if len(l.dropping) == 0 {
		return
	}
	for i, result := range l.calls.do() {
		d := &l.dropping[i]
		n, errno := result.Split()
		if l.take(d.p, n, errno) && (n == drainSize || d.events&unix.EPOLLRDHUP != 0) {
			l.read(d.p, d.events)
		}
	}
	clear(l.dropping)
	l.dropping = l.dropping[:0]
}

// read takes all that there is to read of one player. epoll tells of the same bytes, or
// the same end, only once.
func (l *loop) read(p *player, events uint32) {
	for p.fd >= 0 {
		flags := 0
		if p.state == playerPlaying {
			flags = unix.MSG_TRUNC // dropped in the kernel
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(p.fd),
			uintptr(unsafe.Pointer(&l.scratch[0])), uintptr(len(l.scratch)), uintptr(flags), 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if !l.take(p, int(n), errno) || int(n) < len(l.scratch) && events&unix.EPOLLRDHUP == 0 {
			return
		}
	}
}

// take does what follows from a read or drop of n bytes, which are in scratch unless the
// player plays. It reports that there may be more.
func (l *loop) take(p *player, n int, errno syscall.Errno) bool {
	switch {
	case errno == unix.EAGAIN:
		return false
	case errno != 0:
		l.lost(p, fmt.Errorf("read: %w", errno))
		return false
	case n == 0:
		l.lost(p, errors.New("closed by the server"))
		return false
	}
	p.bytes += uint64(n)
	if p.state == playerPlaying {
		p.counted += uint64(n)
	} else {
		l.feed(p, l.scratch[:n])
	}
	return true
}

func (l *loop) lost(p *player, err error) {
	state := playerFailed
	if p.state == playerPlaying {
		state = playerClosed
	}
	l.end(p, state, err)
}

// request sends the request once the connection stands.
func (l *loop) request(p *player) bool {
	code, err := unix.GetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = unix.Errno(code)
	}
	if err != nil {
		l.end(p, playerFailed, fmt.Errorf("connect: %w", err))
		return false
	}
	if p.kind == ofFloor {
		p.state = playerPlaying
		p.firstKF = l.clock.now() - p.begun
		return true
	}
	n, err := unix.Write(p.fd, p.request)
	switch {
	case errors.Is(err, unix.EAGAIN): // not connected yet
		return false
	case err != nil:
		l.end(p, playerFailed, fmt.Errorf("send request: %w", err))
		return false
	case n < len(p.request):
		l.end(p, playerFailed, errors.New("send request: no room"))
		return false
	}
	p.state = playerJoining
	if p.kind == stalled {
		p.state = playerPlaying
	}
	return true
}

func (l *loop) feed(p *player, b []byte) {
	rest, done, err := p.join.feed(b)
	if err != nil {
		l.end(p, playerFailed, err)
		return
	}
	if !done {
		return
	}
	p.state = playerPlaying
	p.firstKF = l.clock.now() - p.begun
	p.from, p.marked, p.headers = p.join.key.Seq, p.join.marked, p.join.headers
	p.join = nil
	p.counted = uint64(len(rest))
}

// count is what the players of a loop have got together.
type count struct {
	waiting, playing, failed, closed int
	bytes                            uint64
}

func (l *loop) count() count {
	l.mu.Lock()
	defer l.mu.Unlock()
	var c count
	for _, p := range l.players {
		if p.kind == stalled {
			continue // nothing is expected of them
		}
		c.bytes += p.bytes
		switch p.state {
		case playerNew, playerConnecting, playerJoining:
			c.waiting++
		case playerPlaying:
			c.playing++
		case playerFailed:
			c.failed++
		case playerClosed:
			c.closed++
		}
	}
	return c
}

// each calls f for every player while none of them reads.
func (l *loop) each(f func(p *player)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.players {
		f(p)
	}
}
