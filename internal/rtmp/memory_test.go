package rtmp

import (
	"runtime"
	"sync"
	"testing"

	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

// parked is a script whose peer stays silent at its end until it is released.
type parked struct {
	script
	idle    *sync.WaitGroup
	release chan struct{}
}

func (p *parked) Read(b []byte) (int, error) {
	n, err := p.script.Read(b)
	if err != nil {
		p.idle.Done()
		<-p.release
	}
	return n, err
}

func (p *parked) Write(b []byte) (int, error) { return len(b), nil }

// TestSessionMemory: what a session costs beside its stream, goroutine stack
// included.
func TestSessionMemory(t *testing.T) {
	const sessions = 500
	f := func(kind Kind, limit uint64) {
		t.Helper()
		hello := make([]byte, 1+handshakePacket)
		hello[0] = version
		talk := join(connectCall("live"), call(0, "createStream", 2, null), call(1, kind.String(), 3, null, amf.Str("cam")))
		var idle, ended sync.WaitGroup
		var players sync.Map // of *ServerConn: nothing else keeps them
		release := make(chan struct{})
		inUse := func() uint64 {
			runtime.GC()
			runtime.GC() // what the first one found to be unused is free now
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc + m.StackInuse
		}
		before := inUse()
		idle.Add(sessions)
		for range sessions {
			p := &parked{script: script{bursts: [][]byte{hello, hello[1:], talk}}, idle: &idle, release: release}
			ended.Go(func() {
				c := NewServerConn(p, DefaultServerConfig())
				r, err := c.ReadRequest()
				switch {
				case err != nil:
					t.Error(err)
				case r.Kind == Publish:
					_ = c.AcceptPublish()
					_, _ = c.ReadTag()
				default:
					_ = c.AcceptPlay()
					l := newListener()
					c.Hear(nil, l)
					c.Hear(msg(4, chunk.TypeAudio, 1, []byte{0xaf, 1, 2}), l) // as no player does
					l.hasLeft(c)                                              // the buffers are gone then
					players.Store(c, true)
					idle.Done()
				}
			})
		}
		idle.Wait()
		each := (inUse() - before) / sessions
		close(release)
		ended.Wait()
		players.Clear() // until now
		t.Logf("%v: %d bytes each", kind, each)
		if each > limit {
			t.Errorf("%v: %d bytes each, want at most %d", kind, each, limit)
		}
	}
	f(Play, 4_000)
	f(Publish, 40_000)
}
