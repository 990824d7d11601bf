package rtmp

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

// heldEncoder is an encoder in a bubble of its own time, and all that it was sent.
type heldEncoder struct {
	net.Conn
	server *ServerConn

	mu  sync.Mutex
	got []byte
}

// publishing runs story with an encoder that has asked to publish and was let in.
func publishing(t *testing.T, understands []Property, story func(t *testing.T, e *heldEncoder)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		e := &heldEncoder{Conn: theirs, server: NewServerConn(ours, DefaultServerConfig())}
		var wg sync.WaitGroup
		defer wg.Wait()
		defer theirs.Close()
		wg.Go(func() {
			defer ours.Close()
			_, err := e.server.ReadRequest()
			if err == nil {
				err = e.server.AcceptPublish()
			}
			for err == nil {
				_, err = e.server.ReadTag()
			}
			if errors.Is(err, ErrInterrupted) {
				_ = e.server.Refuse(StatusShutdown())
			}
		})
		wg.Go(func() {
			p := make([]byte, 1<<16)
			for {
				n, err := theirs.Read(p)
				if err != nil {
					return
				}
				e.mu.Lock()
				e.got = append(e.got, p[:n]...)
				e.mu.Unlock()
			}
		})
		hello := make([]byte, 1+2*handshakePacket)
		hello[0] = version
		e.send(t, hello, connectCall("live", understands...), call(0, "createStream", 2, null), call(1, "publish", 3, null, amf.Str("cam")))
		story(t, e)
	})
}

func (e *heldEncoder) send(t *testing.T, parts ...[]byte) {
	t.Helper()
	if _, err := e.Write(join(parts...)); err != nil {
		t.Fatal(err)
	}
}

// after returns what has come when d has passed: the last whole messages, and how many
// bytes of one that is not whole.
func (e *heldEncoder) after(t *testing.T, d time.Duration) (last string, part int) {
	t.Helper()
	time.Sleep(d)
	synctest.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	b := e.got[1+2*handshakePacket:]
	cfg := DefaultServerConfig()
	r := chunk.NewReader(iotest.OneByteReader(bytes.NewReader(b)), cfg.publisherLimits())
	whole := 0
	for {
		if _, err := r.ReadMessage(); err != nil {
			break
		}
		whole = int(r.Received())
	}
	lines := strings.SplitAfter(trace(t, b[:whole]), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], ""), len(b) - whole
}

// An encoder that may come from a GoAway gets a message that does not end before it has
// begun, and nothing in between. All of this OBS 29 depends on.
func TestHold(t *testing.T) {
	const (
		start  = "5 20 1 onStatus 0 null status:NetStream.Publish.Start [1500]\n"
		held   = "2 33 0 4096 bytes\n"
		goAway = "2 32 0 00\n"
	)
	goesAway := []Property{amf.P("supportsGoAway", amf.Bool(true))}
	meta := msg(4, chunk.TypeData, 1, amf.Append(nil, amf.Str("@setDataFrame"), amf.Str("onMetaData"), amf.Obj()))
	f := func(t *testing.T, e *heldEncoder, d time.Duration, last string, least, most int) {
		t.Helper()
		if got, part := e.after(t, d); !strings.HasSuffix(got, last) || part < least || part > most {
			t.Errorf("last messages:\n%sthen %d bytes; want:\n%sthen %d to %d", got, part, last, least, most)
		}
	}
	t.Run("begins", func(t *testing.T) {
		publishing(t, goesAway, func(t *testing.T, e *heldEncoder) {
			f(t, e, 0, start, 0, 0) // alone: OBS must not read the two together
			f(t, e, 10*holdStep, start, 8, 12)
			if err := e.server.Tell(GoAwayNotice(e.server.OutChunkSize())); err != nil {
				t.Error(err)
			}
			f(t, e, 90*holdStep, start, 80, 110)
			e.send(t, meta)
			f(t, e, holdSettle-1, start, 80, 110)
			f(t, e, 1, held+goAway, 0, 0)
			e.send(t, call(0, "FCUnpublish", 4, null, amf.Str("cam")))
			f(t, e, 0, "onStatus 0 null status:NetStream.Unpublish.Success\n", 0, 0)
		})
	})
	t.Run("says nothing", func(t *testing.T) {
		publishing(t, goesAway, func(t *testing.T, e *heldEncoder) {
			f(t, e, holdTimeout-1, start, heldBytes, heldBytes+11)
			f(t, e, 1, held, 0, 0)
		})
	})
	t.Run("is refused", func(t *testing.T) {
		publishing(t, goesAway, func(t *testing.T, e *heldEncoder) {
			f(t, e, 10*holdStep, start, 8, 12)
			e.server.Interrupt()
			f(t, e, 0, held+"5 20 1 onStatus 0 null error:"+StatusShutdown().Code+"\n", 0, 0)
		})
	})
	t.Run("ends at once", func(t *testing.T) {
		publishing(t, goesAway, func(t *testing.T, e *heldEncoder) {
			e.send(t, meta, call(0, "FCUnpublish", 4, null, amf.Str("cam")))
			f(t, e, 0, "onStatus 0 null status:NetStream.Unpublish.Success\n", 0, 0)
		})
	})
	t.Run("understands no GoAway", func(t *testing.T) {
		publishing(t, nil, func(t *testing.T, e *heldEncoder) {
			f(t, e, holdTimeout, "5 20 1 onStatus 0 null status:NetStream.Publish.Start\n", 0, 0)
		})
	})
}
