package session

import (
	"weir/internal/rtmp"
)

// Way is how a publisher is asked to go to another node in mid-stream. The text is the
// word for it in logs and metrics.
type Way string

// The ways, the best first.
const (
	// ByRedirect: the publisher is forwarded by another node, which publishes to the
	// next origin before it leaves this one. Its encoder notices nothing.
	ByRedirect Way = "redirect"
	// ByReconnect: the encoder is told where to connect (Enhanced RTMP's
	// ReconnectRequest).
	ByReconnect Way = "reconnect"
	// ByGoAway: the encoder is told to connect again to the URL that it has, which may
	// lead to another node now (OBS 27.2 to 29).
	ByGoAway Way = "go_away"
	// Stays: it understands none of these.
	Stays Way = ""
)

// ways are what a publisher's connect said that it understands.
type ways struct{ reconnect, goAway bool }

func waysOf(r *rtmp.Request) ways {
	return ways{reconnect: r.CapsEx&rtmp.CapsReconnect != 0, goAway: r.SupportsGoAway}
}

// Way returns how the publisher can be asked to go to another node.
func (p *Publisher) Way() Way {
	switch {
	case p.Peer.Node != "":
		return ByRedirect
	case p.ways.reconnect:
		return ByReconnect
	case p.ways.goAway:
		return ByGoAway
	}
	return Stays
}

// Ask asks the publisher, by its Way, to go where to says, and returns at the latest
// after the write timeout. The session goes on until the publisher leaves, or is ended;
// its reason is then that it moved. Safe for concurrent use, once the publisher was
// accepted.
func (p *Publisher) Ask(to *Redirect) error {
	size := p.conn.OutChunkSize()
	var notice []byte
	switch p.Way() {
	case ByRedirect:
		notice = rtmp.RedirectNotice(to.rtmpURL(p.Target), size)
	case ByReconnect:
		notice = rtmp.ReconnectNotice(to.appURL(p.Target), size)
	case ByGoAway:
		notice = rtmp.GoAwayNotice(size)
	default:
		return nil
	}
	p.live.told.Store(true)
	return p.conn.Tell(notice)
}

// Dismiss ends the session of a publisher that another node forwards, without a word:
// that node goes on with its next upstream. It reports false if the publisher was
// dismissed or asked before. It does not block, and is safe for concurrent use.
func (p *Publisher) Dismiss() bool {
	if p.live.told.Swap(true) {
		return false
	}
	p.End(Moved)
	return true
}

// Asked reports whether the publisher was asked to go, or dismissed.
func (p *Publisher) Asked() bool { return p.live.told.Load() }

// Stay takes back what Ask has said of the session's end, for a publisher that has not
// gone.
func (p *Publisher) Stay() { p.live.told.Store(false) }

// leftAsAsked reports whether a publisher that was asked to leave did so: by closing its
// connection, or because it is elsewhere already.
func (l *live) leftAsAsked(reason string) bool {
	return l.kind == KindPublish && l.told.Load() && (reason == connectionLost || reason == LostLease || reason == Replaced || reason == Unpublished)
}
