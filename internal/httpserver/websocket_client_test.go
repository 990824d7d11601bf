package httpserver

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/valyala/fasthttp"
)

// A WebSocket client that no one here wrote plays, pings and says good-bye.
func TestWebSocketWithAClient(t *testing.T) {
	result := make(chan error, 1)
	n := start(t, setup{handler: func(s *Server, ctx *fasthttp.RequestCtx) {
		s.TakeoverWebSocket(ctx, func(conn net.Conn) {
			defer conn.Close()
			// One unmasked binary frame, as the fan-out writes them.
			conn.Write(append([]byte{0x82, 5}, "media"...))
			result <- ServeControl(conn, func(frame []byte) { conn.Write(frame) })
		})
	}})
	dialer := websocket.Dialer{HandshakeTimeout: patience}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, resp, err := dialer.DialContext(ctx, "ws://"+n.addr+"/a.flv", http.Header{"Origin": {"https://any.example"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if resp.StatusCode != 101 || resp.Header.Get("Content-Length") != "" {
		t.Errorf("handshake answered with %v", resp.Header)
	}
	c.SetReadDeadline(time.Now().Add(patience))
	kind, data, err := c.ReadMessage()
	if kind != websocket.BinaryMessage || string(data) != "media" || err != nil {
		t.Errorf("message %d %q, %v", kind, data, err)
	}
	pong := ""
	c.SetPongHandler(func(data string) error {
		pong = data
		return c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4000, "enough"), time.Now().Add(patience))
	})
	if err := c.WriteMessage(websocket.TextMessage, []byte("chatter")); err != nil {
		t.Error(err)
	}
	if err := c.WriteControl(websocket.PingMessage, []byte("are you there"), time.Now().Add(patience)); err != nil {
		t.Error(err)
	}
	if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, 4000) {
		t.Errorf("the close frame came back as %v", err)
	}
	if pong != "are you there" {
		t.Errorf("pong %q", pong)
	}
	if err := <-result; err != nil {
		t.Errorf("ServeControl: %v", err)
	}
}
