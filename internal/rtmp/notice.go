package rtmp

import (
	"weir/internal/rtmp/amf"
	"weir/internal/rtmp/chunk"
)

// Notices are whole messages for a session under way, as chunks for the writing
// side of NetConn. They go between two other messages.

// RedirectNotice sends a node elsewhere in mid-stream, by the RTMP 302 of SRS. The
// connection has to be closed behind it. info is for nodes of weir (see ForNodes).
func RedirectNotice(rtmpURL string, chunkSize int, info ...Property) []byte {
	return chunk.AppendMessage(nil, chunk.StreamStatus, chunk.TypeCommand, 0, 0, encodeRedirect(rtmpURL, info...), chunkSize)
}

// ReconnectNotice asks a client that advertised CapsReconnect to connect to tcURL
// (Enhanced RTMP v2, "Reconnect Request"); an empty one means the URL that it has.
func ReconnectNotice(tcURL string, chunkSize int) []byte {
	info := []Property{
		Text("level", "status"), Text("code", CodeReconnect),
		Text("description", "This server is being taken out of service."),
	}
	if tcURL != "" {
		info = append(info, Text("tcUrl", tcURL))
	}
	p := encodeCommand("onStatus", 0, amf.Value{}, amf.Obj(info...))
	return chunk.AppendMessage(nil, chunk.StreamCommand, chunk.TypeCommand, 0, 0, p, chunkSize)
}

// GoAwayNotice asks an encoder that supports it (Request.SupportsGoAway) to connect again
// to the URL that it has, at its next key frame: a protocol control message of type
// 0x20, as live services send it to OBS 27.2 to 29. Its body means nothing, but OBS
// passes over messages without one.
func GoAwayNotice(chunkSize int) []byte {
	return chunk.AppendMessage(nil, chunk.StreamControl, chunk.TypeGoAway, 0, 0, []byte{0}, chunkSize)
}

// StatusNotice is a status of level "status": it ends nothing.
func StatusNotice(streamID uint32, s Status, chunkSize int) []byte {
	p := encodeStatus("status", s.Code, s.Description)
	return chunk.AppendMessage(nil, chunk.StreamStatus, chunk.TypeCommand, streamID, 0, p, chunkSize)
}
