package rtmp

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

// strangerMemory is what one peer that is not authenticated may cost at most.
const strangerMemory = 256 << 10

// endless repeats a burst up to a number of bytes; it costs no memory itself.
type endless struct {
	script
	burst  []byte
	left   int
	paused func()
}

func (e *endless) Read(p []byte) (int, error) {
	for len(e.bursts) > 0 {
		if len(e.bursts[0]) > 0 {
			return e.script.Read(p)
		}
		e.bursts = e.bursts[1:]
	}
	if e.left <= 0 {
		if e.paused != nil {
			e.paused()
			e.paused = nil
		}
		return 0, io.EOF
	}
	n := copy(p, e.burst[len(e.burst)-1-(e.left-1)%len(e.burst):])
	n = min(n, e.left)
	e.left -= n
	return n, nil
}

func (e *endless) Write(p []byte) (int, error) { return len(p), nil }

// TestStrangerMemory measures what hostile peers make the server hold while
// their connection is open, and that floods of small things do not add up.
func TestStrangerMemory(t *testing.T) {
	hello := make([]byte, 1+handshakePacket)
	hello[0] = version
	connect := connectCall("live")
	size := func(n uint32) []byte {
		return msg(2, chunk.TypeSetChunkSize, 0, []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	}
	huge := func(prefix []byte, fill []byte, n int) []byte { // one connect of n bytes
		p := join(amf.Append(nil, amf.Str("connect"), amf.Num(1)), prefix, bytes.Repeat(fill, n/len(fill)))
		return join(size(1<<24), chunk.AppendMessage(nil, 3, 20, 0, 0, p, 1<<24))
	}
	unfinished := func(typ uint8, n int, arrived int) []byte {
		var b []byte
		for id := range 60 {
			m := chunk.AppendMessage(nil, uint32(3+id), typ, 0, 0, make([]byte, n), 1<<24)
			b = append(b, m[:12+arrived]...)
		}
		return join(size(uint32(arrived)), b)
	}
	wide := amf.Value{Kind: amf.Object}
	for range 500 {
		wide.Props = append(wide.Props, amf.P(strings.Repeat("n", 100), amf.Str("v")))
	}
	longest := amf.Str(strings.Repeat("x", 4096))
	full := amf.Obj(amf.P("app", longest), amf.P("tcUrl", longest), amf.P("flashVer", longest), amf.P("pageUrl", longest),
		amf.P("swfUrl", longest), amf.P("weirNode", longest), amf.P("weirVia", longest), amf.P("rest", amf.Str(strings.Repeat("y", 30000))))

	f := func(name string, head, flood []byte, bytesOfFlood int) {
		t.Helper()
		e := &endless{script: script{bursts: [][]byte{hello, make([]byte, handshakePacket), head}}, burst: flood}
		if flood != nil {
			e.left = bytesOfFlood / len(flood) * len(flood) // whole rounds
		}
		// Held: what the connection keeps alive when the peer has said all and waits.
		var held int64
		var base, now runtime.MemStats
		e.paused = func() {
			runtime.GC()
			runtime.ReadMemStats(&now)
			held = int64(now.HeapAlloc) - int64(base.HeapAlloc)
		}
		runtime.GC()
		runtime.ReadMemStats(&base)
		total := base.TotalAlloc
		c := NewServerConn(e, DefaultServerConfig())
		r, err := c.ReadRequest()
		runtime.ReadMemStats(&now)
		if err == nil {
			t.Errorf("%s: request %+v", name, r)
		}
		if held > strangerMemory {
			t.Errorf("%s: the connection holds %d bytes", name, held)
		}
		if flood == nil && now.TotalAlloc-total > 2*strangerMemory { // what the collector may have to find
			t.Errorf("%s: %d bytes were allocated in all", name, now.TotalAlloc-total)
		}
		runtime.KeepAlive(head)
		t.Logf("%-40s held %7d, allocated %8d: %.100v", name, held, now.TotalAlloc-total, err)
	}
	f("nothing", nil, nil, 0)
	f("15 MiB connect of nested arrays", huge(nil, []byte{0x0a, 0, 0, 0, 1}, 15<<20), nil, 0)
	f("60 KiB connect of nested arrays", huge(nil, []byte{0x0a, 0, 0, 0, 1}, 60<<10), nil, 0)
	f("28 bytes for 2^31 elements", huge([]byte{0x0a, 0x80, 0, 0, 0}, []byte{5}, 23), nil, 0)
	f("60 KiB connect of nulls", huge(nil, []byte{5}, 60<<10), nil, 0)
	f("60 KiB connect, most values", huge(amf.Append(nil, wide), []byte{'x'}, 0+1), nil, 0)
	f("60 KiB connect, longest texts", join(size(1<<24), chunk.AppendMessage(nil, 3, 20, 0, 0, encodeCommand("connect", 1, full), 1<<24)), nil, 0)
	f("longest texts, then an unfinished command", join(size(1<<24), chunk.AppendMessage(nil, 3, 20, 0, 0, encodeCommand("connect", 1, full), 1<<24),
		chunk.AppendMessage(nil, 3, 20, 0, 0, make([]byte, 64<<10), 1<<24)[:64<<10]), nil, 0)
	f("60 unfinished messages of 8 MiB", unfinished(9, 8<<20, 1), nil, 0)
	f("60 unfinished messages of 64 KiB, a byte each", join(connect, unfinished(9, 64<<10, 1)), nil, 0)
	f("60 unfinished messages of 64 KiB, half each", join(connect, unfinished(9, 64<<10, 32<<10)), nil, 0)
	f("60 unfinished commands of 64 KiB", unfinished(20, 64<<10, 1), nil, 0)
	f("chunk size 0", join(connect, size(0)), nil, 0)
	f("chunk size 2^31", join(connect, size(1<<31)), nil, 0)
	var ids []byte
	for id := range uint32(1000) {
		ids = append(ids, chunk.AppendMessage(nil, 2+id, 9, 0, 0, nil, 128)...)
	}
	f("1000 chunk streams", join(connect, ids), nil, 0)
	const flood = 1 << 20
	f("zero-length media", connect, msg(4, 9, 0, nil), flood)
	f("media before publish", connect, msg(4, 9, 0, make([]byte, 1000)), flood)
	f("aborts", connect, join(chunk.AppendMessage(nil, 4, 9, 0, 0, make([]byte, 60000), 128)[:12+128], msg(2, chunk.TypeAbort, 0, []byte{0, 0, 0, 4})), flood)
	f("createStream", connect, call(0, "createStream", 2, null), flood)
	f("pings", connect, msg(2, chunk.TypeUserControl, 0, []byte{0, 6, 0, 0, 0, 0}), flood)
	f("unknown calls", connect, call(0, "x", 2, null), flood)
	f("window of one byte", join(connect, msg(2, chunk.TypeWindowAckSize, 0, []byte{0, 0, 0, 1})), msg(4, 9, 0, make([]byte, 100)), flood)
}

// TestSlowClients: however slowly a client goes, from the accept to its request
// it has the handshake timeout, all steps together.
func TestSlowClients(t *testing.T) {
	hello := make([]byte, 1+2*handshakePacket)
	hello[0] = version
	f := func(name string, input []byte, every time.Duration) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			var wg sync.WaitGroup
			defer wg.Wait()
			defer theirs.Close()
			wg.Go(func() { _, _ = io.Copy(io.Discard, theirs) })
			wg.Go(func() {
				for _, b := range input {
					if _, err := theirs.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(every)
				}
			})
			start := time.Now()
			c := NewServerConn(ours, DefaultServerConfig())
			defer c.Close()
			if _, err := c.ReadRequest(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(start); took != DefaultServerConfig().HandshakeTimeout {
				t.Errorf("%s: took %v", name, took)
			}
		})
	}
	f("silent", nil, 0)
	f("slow handshake", hello, 10*time.Millisecond)
	f("slow connect", join(hello, connectCall("live")), 3*time.Millisecond)
	f("no request", join(hello, connectCall("live")), 0)
}

// TestIdlePublisher: bytes keep a publish alive, silence ends it.
func TestIdlePublisher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		var wg sync.WaitGroup
		defer wg.Wait()
		defer theirs.Close()
		wg.Go(func() { _, _ = io.Copy(io.Discard, theirs) })
		wg.Go(func() {
			hello := make([]byte, 1+2*handshakePacket)
			hello[0] = version
			_, _ = theirs.Write(join(hello, connectCall("live"), call(0, "createStream", 2, null), call(1, "publish", 3, null, amf.Str("cam"))))
			for range 10 {
				time.Sleep(10 * time.Second)
				_, _ = theirs.Write(msg(6, 9, 1, []byte("v")))
			}
		})
		c := NewServerConn(ours, DefaultServerConfig())
		defer c.Close()
		if _, err := c.ReadRequest(); err != nil {
			t.Fatal(err)
		}
		if err := c.AcceptPublish(); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for range 10 {
			if _, err := c.ReadTag(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.ReadTag(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("silent: %v", err)
		}
		idle := DefaultServerConfig().PublishIdleTimeout
		if silent := time.Since(start) - 100*time.Second; silent < idle || silent > idle+idle/idleShare {
			t.Errorf("ended after %v of silence, want %v", silent, idle)
		}
	})
}

// TestDeafClient: a client that reads no answers is cut by the write timeout.
func TestDeafClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		var wg sync.WaitGroup
		defer wg.Wait()
		defer theirs.Close()
		wg.Go(func() {
			hello := make([]byte, 1+2*handshakePacket)
			hello[0] = version
			_, _ = theirs.Write(hello[:1+handshakePacket])
			_, _ = io.ReadFull(theirs, make([]byte, 1+2*handshakePacket))
			_, _ = theirs.Write(join(hello[:handshakePacket], connectCall("live")))
		})
		c := NewServerConn(ours, DefaultServerConfig())
		defer c.Close()
		if _, err := c.ReadRequest(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

// TestPlayerFlood: answers for a player wait in memory, so a player that wants
// many is cut.
func TestPlayerFlood(t *testing.T) {
	c := player(t, playCam, bytes.Repeat(msg(2, chunk.TypeUserControl, 0, []byte{0, 6, 0, 0, 0, 0}), 10000))
	l := newListener()
	if !overhear(c, l, 4<<10) {
		t.Error("it was not cut")
	}
	if len(l.injected) > 16<<10 {
		t.Errorf("%d bytes of answers", len(l.injected))
	}
}

// TestNotRTMP: other protocols are told apart at once.
func TestNotRTMP(t *testing.T) {
	for _, in := range []string{"GET / HTTP/1.1\r\n", "\x16\x03\x01\x02\x00", "\x06" + strings.Repeat("x", 1536)} {
		s := &script{bursts: [][]byte{[]byte(in)}}
		if _, err := NewServerConn(s, DefaultServerConfig()).ReadRequest(); !errors.Is(err, chunk.ErrProtocol) {
			t.Errorf("%.10q: %v", in, err)
		}
		if s.out.Len() > 0 {
			t.Errorf("%.10q: answered", in)
		}
	}
}

// TestPublisherBound: an authorised publisher is bounded too.
func TestPublisherBound(t *testing.T) {
	publish := join(connectCall("live"), call(0, "createStream", 2, null), call(1, "publish", 3, null, amf.Str("cam")),
		msg(2, chunk.TypeSetChunkSize, 0, []byte{0, 0x80, 0, 0}))
	var b []byte
	for id := range uint32(5) { // each arrives but for its last byte
		m := chunk.AppendMessage(nil, 10+id, 9, 1, 0, make([]byte, 8<<20), 8<<20-1)
		b = append(b, m[:len(m)-2]...)
	}
	c, _ := scripted(publish, msg(2, chunk.TypeSetChunkSize, 0, []byte{0, 0x7f, 0xff, 0xff}), b)
	if _, err := c.ReadRequest(); err != nil {
		t.Fatal(err)
	}
	if err := c.AcceptPublish(); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	tag, err := c.ReadTag()
	runtime.ReadMemStats(&after)
	if !errors.Is(err, chunk.ErrProtocol) || tag != nil {
		t.Errorf("%d bytes, %v; want a protocol error", len(tag), err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 3*uint64(DefaultServerConfig().MaxUnfinished) {
		t.Errorf("%d bytes allocated", got)
	}
}
