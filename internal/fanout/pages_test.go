package fanout

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// never says that nothing is sent by pages.
func never(int, int) bool { return false }

// letters returns n bytes that differ from place to place, and by seed.
func letters(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8) ^ seed
	}
	return b
}

func descriptor(t testing.TB, c *net.TCPConn) uintptr {
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var its uintptr
	if err := raw.Control(func(fd uintptr) { its = fd }); err != nil {
		t.Fatal(err)
	}
	return its
}

// What lies in the sockets of players that do not read stays what it was, however many
// blocks come after it, and a full socket takes as much of a block as it says.
func TestPagesOnTheirWayStay(t *testing.T) {
	var p pages
	defer p.close()
	type reader struct {
		fd   uintptr
		far  *net.TCPConn
		want []byte
		full bool
	}
	var all []*reader
	for range 4 {
		near, far := tcpPair(t)
		_ = near.SetWriteBuffer(64 << 10)
		_ = far.SetReadBuffer(64 << 10)
		all = append(all, &reader{fd: descriptor(t, near), far: far})
	}
	short := false
	for i, size := range []int{1, 4095, 4096, 4097, 16 << 10, 100 << 10, 3, 300 << 10, 5000, 1 << 20} {
		b := letters(size, byte(i))
		if !p.put(b) {
			t.Fatal("not put: ", p.err)
		}
		for k, r := range all {
			if r.full || k > 0 && i < k { // they begin at different blocks
				continue
			}
			n, err := p.send(r.fd, len(b))
			if err != nil {
				t.Fatal(err)
			}
			r.want = append(r.want, b[:n]...)
			if r.full = n < len(b); r.full {
				short = short || n > 0
				n, err := p.send(r.fd, len(b)) // its reader's buffer may have grown meanwhile
				if err != nil {
					t.Errorf("a full socket: %v", err)
				}
				r.want = append(r.want, b[:n]...)
			}
		}
	}
	if !short {
		t.Error("no socket took a part of a block")
	}
	p.put(letters(1<<20, 0xff)) // and in what was theirs lies something else now
	for k, r := range all {
		got := make([]byte, len(r.want))
		if _, err := io.ReadFull(r.far, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, r.want) {
			t.Errorf("reader %d got other bytes", k)
		}
	}
}

// A broken connection is said by its own error, as send(2) would say it.
func TestPagesToABrokenConnection(t *testing.T) {
	var p pages
	defer p.close()
	b := letters(20<<10, 0)
	near, far := tcpPair(t)
	p.put(b)
	if n, err := p.send(descriptor(t, near), len(b)); n != len(b) || err != nil {
		t.Fatal(n, err)
	}
	far.Close() // with bytes unread: it resets
	err := awaitError(t, func() error { _, err := p.send(descriptor(t, near), len(b)); return err })
	if why := classify(err); why != Left {
		t.Errorf("%v: %s", err, why)
	}
}

// awaitError calls f until it fails.
func awaitError(t *testing.T, f func() error) error {
	for range 1 << 20 {
		if err := f(); err != nil {
			return err
		}
	}
	t.Fatal("it never fails")
	return nil
}

// Where the kernel does not send from a file in memory the shard sends copies, and says
// so once.
func TestWithoutPages(t *testing.T) {
	near, far := tcpPair(t)
	fd := int(descriptor(t, near))
	raw, _ := direct(near)
	w := newSocketWriter(nil)
	defer w.pages.close()
	b := letters(10<<10, 0)
	if !w.pages.put(b) {
		t.Fatal(w.pages.err)
	}
	// sendfile(2) from a directory is EINVAL.
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Dup3(int(dir.Fd()), w.pages.file, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{fd, -1} {
		n, err := w.write(fd, raw, b, true)
		if n != len(b) || err != nil {
			t.Fatal(n, err)
		}
		got := make([]byte, n)
		if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, b) {
			t.Errorf("other bytes: %v", err)
		}
	}
	if w.pages.put(b) {
		t.Error("put although it cannot be sent")
	}
	if err := w.pages.trouble(); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
	if err := w.pages.trouble(); err != nil {
		t.Error("said twice: ", err)
	}
}

// A block goes by pages if it is long enough, and for enough players.
func TestWorthPages(t *testing.T) {
	for _, c := range []struct {
		bytes, players int
		want           bool
	}{
		{pagedBytes, pagedPlayers, true}, {pagedBytes - 1, 10_000, false}, {1 << 20, pagedPlayers - 1, false},
	} {
		if got := worthPages(c.bytes, c.players); got != c.want {
			t.Errorf("%d bytes for %d players: %v", c.bytes, c.players, got)
		}
	}
}

// What a send to each of many sockets costs, and that its bytes are dropped by the reader,
// as copies and by pages. Of one socket alone the copy would always lie in the cache.
func BenchmarkPages(b *testing.B) {
	const players = 1000
	var to, from [players]int
	for i := range players {
		near, far := tcpPair(b)
		to[i], from[i] = int(descriptor(b, near)), int(descriptor(b, far))
	}
	for _, size := range []int{4 << 10, 16 << 10, 48 << 10} {
		for _, paged := range []bool{false, true} {
			b.Run(fmt.Sprintf("%dKB/paged=%v", size>>10, paged), func(b *testing.B) {
				w := newSocketWriter(nil)
				defer w.pages.close()
				data := letters(size, 0)
				b.SetBytes(int64(size) * players)
				b.ReportAllocs()
				for b.Loop() {
					if paged {
						w.pages.put(data)
					}
					for _, fd := range to {
						if n, err := w.write(fd, nil, data, paged); n != size || err != nil {
							b.Fatal(n, err)
						}
					}
					for _, fd := range from {
						for left := size; left > 0; {
							n, _, _ := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, uintptr(left), unix.MSG_TRUNC, 0, 0)
							left -= max(int(n), 0) // EAGAIN until it has come
						}
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/players, "ns/player")
			})
		}
	}
}
