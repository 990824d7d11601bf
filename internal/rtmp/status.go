package rtmp

import (
	"fmt"
	"strconv"
	"strings"

	"weir/internal/rtmp/amf"
)

// Codes of status objects (Adobe ActionScript reference, NetStatusEvent; RTMP
// 1.0, sections 7.2.1 and 7.2.2).
const (
	CodeConnectSuccess   = "NetConnection.Connect.Success"
	CodeConnectRejected  = "NetConnection.Connect.Rejected"
	CodeConnectInvalid   = "NetConnection.Connect.InvalidApp"
	CodeConnectClosed    = "NetConnection.Connect.Closed"
	CodeConnectShutdown  = "NetConnection.Connect.AppShutdown"
	CodeReconnect        = "NetConnection.Connect.ReconnectRequest" // Enhanced RTMP v2
	CodeCallFailed       = "NetConnection.Call.Failed"
	CodePublishStart     = "NetStream.Publish.Start"
	CodePublishBadName   = "NetStream.Publish.BadName"
	CodePublishDenied    = "NetStream.Publish.Denied"
	CodePublishFailed    = "NetStream.Publish.Failed"
	CodeUnpublishSuccess = "NetStream.Unpublish.Success"
	CodePlayReset        = "NetStream.Play.Reset"
	CodePlayStart        = "NetStream.Play.Start"
	CodePlayStop         = "NetStream.Play.Stop"
	CodePlayComplete     = "NetStream.Play.Complete"
	CodePlayFailed       = "NetStream.Play.Failed"
	CodePlayNotFound     = "NetStream.Play.StreamNotFound"
	CodePlayUnpublish    = "NetStream.Play.UnpublishNotify"
	CodePauseNotify      = "NetStream.Pause.Notify"
	CodeUnpauseNotify    = "NetStream.Unpause.Notify"
	CodeSeekFailed       = "NetStream.Seek.Failed"
)

// Status is a refusal: a code of the specification and a sentence for people.
type Status struct {
	Code        string
	Description string
}

// String returns the code and the sentence.
func (s Status) String() string { return s.Code + ": " + s.Description }

// StatusBadName refuses a publish because the name is taken or not allowed.
func StatusBadName(sentence string) Status { return Status{CodePublishBadName, sentence} }

// StatusPublishDenied refuses a publisher that may not publish.
func StatusPublishDenied(sentence string) Status { return Status{CodePublishDenied, sentence} }

// StatusPublishFailed ends a publish for a reason on the server's side.
func StatusPublishFailed(sentence string) Status { return Status{CodePublishFailed, sentence} }

// StatusStreamNotFound refuses a play of a stream that nobody publishes.
func StatusStreamNotFound(sentence string) Status { return Status{CodePlayNotFound, sentence} }

// StatusPlayFailed refuses or ends a play for any other reason.
func StatusPlayFailed(sentence string) Status { return Status{CodePlayFailed, sentence} }

// StatusRejected refuses a connection, for example one over a limit.
func StatusRejected(sentence string) Status { return Status{CodeConnectRejected, sentence} }

// StatusInvalidApp refuses a connection to an app or vhost that does not exist.
func StatusInvalidApp(sentence string) Status { return Status{CodeConnectInvalid, sentence} }

// StatusShutdown refuses or ends a session because the server stops.
func StatusShutdown() Status {
	return Status{CodeConnectShutdown, "The server is shutting down."}
}

// StatusDraining refuses a publish or play because the server takes no new ones, or
// none now.
func StatusDraining(sentence string) Status { return Status{CodeConnectRejected, sentence} }

// StatusMoved tells a player that its session ends and that it should connect
// again.
func StatusMoved() Status {
	return Status{CodeConnectShutdown, "This server is being taken out of service: connect again."}
}

// StatusOverloaded tells a player that its session ends because the server is full.
func StatusOverloaded() Status {
	return Status{CodeConnectShutdown, "This server is full: connect again, if you can to another one."}
}

// StatusError is a refusal that a client got from a server, in any of its forms.
type StatusError struct {
	Level       string // "error", seldom "warning"
	Code        string
	Description string
}

// Error returns the code that the server answered, and its sentence if it gave one. What
// the server sent stands in it as it came.
func (e *StatusError) Error() string {
	if e.Description == "" {
		return "server answered " + e.Code
	}
	return fmt.Sprintf("server answered %s: %s", e.Code, e.Description)
}

// RedirectError tells a client to go elsewhere: RTMP 302. A server may send it
// in answer to connect and at any time later, even while media flows.
type RedirectError struct {
	// URL is where the stream is, as sent: the whole URL (redirect2) when the
	// server gave it, else that of the app (redirect).
	URL string
	// Addr is the host:port of URL.
	Addr string
	// TLS says that the scheme of URL is rtmps.
	TLS bool
	// Epoch is that of the stream's ownership there; 0 if the server does not say.
	Epoch uint64
}

// InfoEpoch is the property by which nodes of weir tell each other the epoch of a
// stream's ownership: in decimal digits, in the status of a play or publish that
// starts and in the ex object of a redirect.
const InfoEpoch = "weirEpoch"

// Error returns where the server redirects to, as it was sent: a query is in it.
func (e *RedirectError) Error() string { return "server redirects to " + e.URL }

// Target returns u on the host that the server named. Only host and port of a
// redirect are followed, as SRS edges do, and whether it is under TLS: app, name and
// query stay those that were asked for, and the tcUrl keeps its host, which may carry
// a vhost. Who asked for TLS is not led out of it: that is an error.
func (e *RedirectError) Target(u URL) (URL, error) {
	if u.TLS && !e.TLS {
		return u, fmt.Errorf("%w, which is out of TLS: not followed", e)
	}
	u.Addr, u.TLS = e.Addr, e.TLS
	return u, nil
}

// statusError returns the error that an info object stands for, nil if none.
func statusError(info amf.Value) error {
	if level := info.Get("level").Text(); level != "error" {
		return nil
	}
	return refusal(info)
}

// refusal returns the error of an info object that is known to be a refusal.
func refusal(info amf.Value) error {
	if ex := info.Get("ex"); ex.IsObject() {
		target := ex.Get("redirect2").Text()
		if target == "" {
			target = ex.Get("redirect").Text()
		}
		if addr, secure, err := hostPort(target); err == nil {
			epoch, _ := strconv.ParseUint(ex.Get(InfoEpoch).Text(), 10, 64)
			return &RedirectError{URL: target, Addr: addr, TLS: secure, Epoch: epoch}
		}
	}
	e := &StatusError{
		Level:       info.Get("level").Text(),
		Code:        info.Get("code").Text(),
		Description: strings.ToValidUTF8(info.Get("description").Text(), "?"),
	}
	if e.Code == "" {
		e.Code = "an error without a code"
	}
	return e
}
