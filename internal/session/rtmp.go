package session

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"weir/internal/bare"
	"weir/internal/fanout"
	"weir/internal/media"
	"weir/internal/rtmp"
	"weir/internal/rtmp/chunk"
	"weir/internal/ticket"
	"weir/internal/vhost"
)

// ServeRTMP serves one RTMP connection, which may carry several publishes one after the
// other. It returns when the connection has ended or is a player's, which the fan-out
// serves; release is called once it has ended.
func (s *Server) ServeRTMP(ctx context.Context, nc net.Conn, release func()) {
	c := rtmp.NewServerConn(nc, s.opt.RTMP)
	ctx, cancel := s.context(ctx)
	defer cancel()
	if !s.serveRTMP(ctx, c, release) {
		c.Close()
		release()
	}
}

// serveRTMP reports whether the connection is a player's that lives on. release is called
// at its end then.
func (s *Server) serveRTMP(ctx context.Context, c *rtmp.ServerConn, release func()) (plays bool) {
	nc := c.NetConn()
	remote := remoteOf(nc.RemoteAddr())
	_, secure := nc.(interface{ ConnectionState() tls.ConnectionState })
	for first := true; ; first = false {
		cut := context.AfterFunc(ctx, func() { c.Close() }) // a session under way is ended by its own means
		req, err := c.ReadRequest()
		cut()
		if err != nil {
			s.noRequest(remote, err, first)
			return false
		}
		if ctx.Err() != nil {
			_ = c.Refuse(rtmp.StatusShutdown())
			return false
		}
		t, err := s.opt.Vhosts.FromRTMP(req.TcURL, req.App, req.Name)
		if err != nil {
			s.ledger.refused(req.Kind.String(), protoRTMP, reasonOf(err), withoutQuery(req.App)+"/"+withoutQuery(req.Name), remote, err)
			_ = c.Refuse(badTarget(req.Kind, err))
			return false
		}
		var hop string
		t.Query, hop = ticket.Take(t.Query) // it goes no further
		visitor := Newcomer{
			Kind: req.Kind.String(), Target: t, Remote: remote, Peer: Peer{Node: req.Node, Via: req.Via},
			Protocol: protoRTMP, Secure: secure, Ticket: hop,
		}
		if req.Kind == rtmp.Play {
			return s.playRTMP(ctx, c, req, visitor, release)
		}
		if !s.publishRTMP(ctx, c, req, visitor) {
			return false
		}
	}
}

// withoutQuery cuts off what must not be logged: queries hold keys.
func withoutQuery(name string) string {
	name, _, _ = strings.Cut(name, "?")
	return name
}

// noRequest counts and logs a connection that ended without a request.
func (s *Server) noRequest(remote netip.AddrPort, err error, first bool) {
	hostile := errors.Is(err, chunk.ErrProtocol)
	if errors.Is(err, io.EOF) || !first && !hostile {
		return // port checks and publishers that are done just leave
	}
	reason := "connection_lost"
	switch {
	case hostile:
		reason = "protocol_error"
	case errors.Is(err, os.ErrDeadlineExceeded):
		reason = "handshake_timeout"
	case errors.Is(err, net.ErrClosed):
		reason = string(Stopping)
	}
	s.ledger.refused("connect", protoRTMP, reason, "", remote, err)
}

func badTarget(kind rtmp.Kind, err error) rtmp.Status {
	switch {
	case errors.Is(err, vhost.ErrUnknown):
		return rtmp.StatusInvalidApp("No such vhost is configured here.")
	case kind == rtmp.Publish:
		return rtmp.StatusBadName("The URL does not name a stream: want rtmp://HOST/APP/NAME.")
	}
	return rtmp.StatusStreamNotFound("The URL does not name a stream: want rtmp://HOST/APP/NAME.")
}

// publishRTMP serves one publish; it reports whether another may follow.
func (s *Server) publishRTMP(ctx context.Context, c *rtmp.ServerConn, req *rtmp.Request, n Newcomer) bool {
	t, remote, peer := n.Target, n.Remote, n.Peer
	l := newLive(traits{kind: KindPublish, protocol: protoRTMP, stream: t.Key.String(), node: peer.Node, encoder: req.FlashVer}, remote)
	l.onEnd(func(why string) {
		if _, told := farewells[why]; told {
			c.Interrupt()
			return
		}
		c.Close()
	})
	refuse := func(err error) bool {
		s.ledger.refused(KindPublish, protoRTMP, reasonOf(err), l.stream, remote, err)
		var r *Redirect
		if errors.As(err, &r) && r.RTMP != "" && peer.Node != "" { // nodes follow, encoders do not
			_ = c.Redirect(r.rtmpURL(t), epochInfo(r.Epoch)...)
			return false
		}
		_ = c.Refuse(publishStatus(err))
		return false
	}
	if !t.Vhost.Config.MayPublish(t.Params().Get("key")) {
		return refuse(&Refusal{Code: Denied, Text: "The publish key is missing or wrong."})
	}
	if err := s.admitted(ctx, n); err != nil {
		if r := (*Redirect)(nil); !errors.As(err, &r) || r.RTMP == "" || peer.Node == "" {
			err = turnedAway(err, t)
		}
		return refuse(err)
	}
	if err := s.ledger.begin(l, t.Vhost.Name, s.bounds(t.Vhost)); err != nil {
		return refuse(err)
	}
	p := &Publisher{
		Target: t, Remote: remote, Peer: peer, Name: req.Name, Encoder: req.FlashVer, Secret: req.Publisher,
		conn: c, ways: waysOf(req), live: l, id: s.ledger.id(l),
	}
	end := s.opt.Role.Publish(ctx, p)
	if !p.accepted && end.Err != nil && l.why.Load() == nil {
		s.ledger.withdraw(l, t.Vhost.Name)
		return refuse(end.Err)
	}
	if errors.Is(end.Err, io.EOF) {
		end.Err = nil
	}
	if errors.Is(end.Err, rtmp.ErrInterrupted) {
		end.Err = nil // the reason says it
	}
	s.ledger.finish(l, t.Vhost.Name, end.Reason, end.Err)
	why := l.why.Load()
	if why == nil {
		return end.Reason == Unpublished
	}
	if status, told := farewells[*why]; told {
		_ = c.Refuse(status)
	}
	return false
}

// Reasons for which a publisher is ended, and told so, by whoever calls End.
const (
	Replaced  = "replaced"   // another publisher took the name
	LostLease = "lost_lease" // another origin owns the stream now
	Relieved  = "relieved"   // it had stopped sending, and the standby publisher goes on
	Kicked    = string(fanout.Kicked)
	Moved     = string(fanout.Moved) // it goes on elsewhere
)

// farewells are what publishers are told that are ended. Those that are ended for
// another reason are cut.
var farewells = map[string]rtmp.Status{
	Replaced:  rtmp.StatusBadName("Another publisher has taken this stream over."),
	Relieved:  rtmp.StatusBadName("Nothing came any more: the standby publisher has taken this stream over."),
	LostLease: rtmp.StatusBadName("This stream has a publisher at another node now."),
	Kicked:    rtmp.StatusPublishDenied("The publisher was ended by an operator."),
}

// Unpublished is the reason of a publish that its encoder ended properly.
const Unpublished = "unpublished"

// ReadEnd returns how a publish ended whose ReadTag failed with err.
func ReadEnd(err error) PublishEnd {
	switch {
	case errors.Is(err, io.EOF):
		return PublishEnd{Reason: Unpublished}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return PublishEnd{Reason: "idle", Err: err}
	case errors.Is(err, chunk.ErrProtocol):
		return PublishEnd{Reason: "protocol_error", Err: err}
	}
	return PublishEnd{Reason: connectionLost, Err: err}
}

// connectionLost is the reason of a publish whose connection ended without a word.
const connectionLost = "connection_lost"

func publishStatus(err error) rtmp.Status {
	var r *Refusal
	switch {
	case errors.As(err, &r):
	case errors.Is(err, context.Canceled):
		return rtmp.StatusShutdown()
	default:
		return rtmp.StatusPublishFailed("The stream cannot be published now.")
	}
	switch r.Code {
	case Conflict, BadRequest:
		return rtmp.StatusBadName(r.Text)
	case Denied, Banned:
		return rtmp.StatusPublishDenied(r.Text)
	case Stopping:
		return rtmp.StatusShutdown()
	case Draining, Overload:
		return rtmp.StatusDraining(r.Text)
	}
	return rtmp.StatusPublishFailed(r.Text)
}

func playStatus(err error) rtmp.Status {
	var r *Refusal
	switch {
	case errors.Is(err, ErrNotFound):
		return rtmp.StatusStreamNotFound("Nobody publishes this stream.")
	case errors.As(err, &r) && r.Code == Stopping, errors.Is(err, context.Canceled):
		return rtmp.StatusShutdown()
	case errors.As(err, &r) && (r.Code == Draining || r.Code == Overload):
		return rtmp.StatusDraining(r.Text)
	case errors.As(err, &r):
		return rtmp.StatusPlayFailed(r.Text)
	}
	return rtmp.StatusPlayFailed("The stream cannot be played now.")
}

// playRTMP begins to serve a player. It reports false if the player was refused or is
// gone; else release is called when it has left or the stream has ended.
func (s *Server) playRTMP(ctx context.Context, c *rtmp.ServerConn, req *rtmp.Request, n Newcomer, release func()) (plays bool) {
	t, remote, peer := n.Target, n.Remote, n.Peer
	var feed Feed
	err := s.admitted(ctx, n)
	if err == nil {
		feed, err = s.opt.Role.Play(ctx, PlayRequest{Target: t, Remote: remote, Peer: peer, OnBeat: peer.Node == "" && !n.Secure})
	}
	if err != nil {
		redirect, err := elsewhere(err, func(r *Redirect) string { return r.RTMP })
		s.ledger.refused(KindPlay, protoRTMP, reasonOf(err), t.Key.String(), remote, err)
		if redirect != nil {
			_ = c.Redirect(redirect.rtmpURL(t), epochInfo(redirect.Epoch)...)
			return false
		}
		_ = c.Refuse(playStatus(err))
		return false
	}
	l := newLive(traits{protocol: protoRTMP, node: peer.Node, encoder: req.FlashVer}, remote)
	l.goodbye = func(why fanout.Reason) []byte { return s.goodbyeRTMP(c, req, n, why) }
	if err := s.admit(l, t, c); err != nil {
		s.ledger.refused(KindPlay, protoRTMP, reasonOf(err), t.Key.String(), remote, err)
		_ = c.Refuse(playStatus(err))
		feed.Release()
		return false
	}
	if err := c.AcceptPlay(epochInfo(feed.Epoch)...); err != nil {
		s.ledger.finish(l, t.Vhost.Name, string(fanout.Left), err)
		feed.Release()
		return false
	}
	session, err := s.play(l, t, feed, ownable(c.NetConn()),
		way{
			format: fanout.RTMP{StreamID: c.StreamID(), ChunkSize: c.OutChunkSize(), Marks: peer.Node != ""},
			farewell: func(cause error) []byte {
				var moved *Redirect
				switch {
				case !errors.As(cause, &moved):
					return rtmp.EndOfStream(c.StreamID(), c.OutChunkSize())
				case moved.RTMP != "":
					return rtmp.RedirectNotice(moved.rtmpURL(t), c.OutChunkSize(), c.ForNodes(epochInfo(moved.Epoch)...)...)
				}
				return nil
			},
			read: func(p *fanout.Session, said []byte) bool { c.Hear(said, playing{p}); return true },
		},
		func() {
			c.Deafen()
			feed.Release()
			release()
		})
	if err == nil {
		c.Hear(nil, playing{session})
	}
	return true
}

// ownable returns a connection with Keep, by which the fan-out has the descriptor to
// itself, if it is one over TCP without TLS.
func ownable(c net.Conn) net.Conn {
	if tcp, ok := c.(*net.TCPConn); ok {
		return tcpConn{tcp}
	}
	return c
}

// tcpConn is a connection that the fan-out may have replaced.
type tcpConn struct{ *net.TCPConn }

// Keep gives the descriptor to the connection that it returns, which alone closes it. The
// one before, which the RTMP side still has, is closed and of no more use.
func (c tcpConn) Keep() (net.Conn, bool) {
	if b, ok := bare.Keep(c.TCPConn); ok {
		return b, true
	}
	return nil, false
}

// playing is a player in the fan-out, as it is controlled over RTMP.
type playing struct{ *fanout.Session }

// Control implements rtmp.Playing.
func (p playing) Control(wish rtmp.PlayControl) {
	switch wish.Kind {
	case rtmp.ControlPause:
		p.Pause(wish.On)
	case rtmp.ControlAudio:
		p.Mute(media.Audio, !wish.On)
	case rtmp.ControlVideo:
		p.Mute(media.Video, !wish.On)
	}
}

// Leave implements rtmp.Playing.
func (p playing) Leave() { p.End(fanout.Left) }

// epochInfo is what nodes are told of an ownership.
func epochInfo(epoch uint64) []rtmp.Property {
	if epoch == 0 {
		return nil
	}
	return []rtmp.Property{rtmp.Text(rtmp.InfoEpoch, strconv.FormatUint(epoch, 10))}
}

// rtmpURL returns where the 302 of an RTMP player leads.
func (r *Redirect) rtmpURL(t vhost.Target) string {
	u := "rtmp://" + r.RTMP + "/" + t.Key.Path()
	if q := r.query(t); q != "" {
		u += "?" + q
	}
	return u
}
