// Package bench measures what players cost a server: it publishes marked
// streams, plays them as many times as it is told, and says how much of them
// arrived, how late, and what processor time and memory that took.
//
// Publisher and players are one process, so that one clock times both ends. Most
// players are light: one thread takes what has come for thousands of them, and
// has the kernel drop it. A few, the probes, read every frame.
package bench

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"weir/internal/rtmp"
)

// Protocol is what streams are played over.
type Protocol string

// The protocols.
const (
	HTTPFLV Protocol = "http-flv"
	WSFLV   Protocol = "ws-flv"
	RTMP    Protocol = "rtmp"
	HLS     Protocol = "hls"
)

// Config is what is measured.
type Config struct {
	// Publish is where the streams are published: rtmp[s]://HOST[:PORT]/APP[?QUERY].
	Publish string
	// Play is where they are played: http, ws or rtmp, or under TLS https, wss or rtmps,
	// HOST[:PORT], /APP[?QUERY].
	Play string
	// TLS is how TLS is spoken; nil trusts the CAs of the system.
	TLS *tls.Config
	// Protocol is what they are played over; "" means that of the scheme of Play,
	// which is HTTP-FLV for http.
	Protocol Protocol
	// Name is the name of the streams, to which their number is added.
	Name string
	// Form is the shape of the streams.
	Form Form
	// AnyTarget allows servers that are not on this machine's loopback.
	AnyTarget bool

	// Streams is the number of streams; 1 to 100000.
	Streams int
	// Players is the number of players, probes included; 0 to 1000000. They are
	// dealt to the streams in turn.
	Players int
	// Probes is how many of the players read every frame.
	Probes int
	// Ramp is how many players join per second.
	Ramp float64
	// Fill is the time after the first hundred joined in which the server's logs fill
	// up: what they come to is not what the other players cost. It passes only if the
	// server's memory is measured, and there are more players.
	Fill time.Duration
	// Settle is the time between the last join and the measuring window.
	Settle time.Duration
	// Duration is the length of the measuring window.
	Duration time.Duration

	// Slow is the number of players that read SlowRate bits per second, and
	// Stalled of those that read nothing, beside Players.
	Slow     int
	SlowRate int64
	Stalled  int
	// Crowd is the number of players that join within CrowdTime, beside Players,
	// after the measuring window.
	Crowd     int
	CrowdTime time.Duration

	// Limit, if not nil, has players added until it breaks.
	Limit *Limit

	// PIDs are the processes of the server under test; none means that its cost
	// is not measured.
	PIDs []int

	// Floor is at which intervals the bare loop is measured, FloorTime for how
	// long each.
	Floor     []time.Duration
	FloorTime time.Duration
	// FloorCommand is the command line of the bare loop: what calls ServeFloor.
	FloorCommand []string

	// Loops is the number of load threads; 0 means one per 5000 players, at most
	// one per core.
	Loops int

	// Progress, if not nil, is called about once a second.
	Progress func(Progress)
}

// DefaultConfig returns a run of moderate size; Publish and Play are missing.
func DefaultConfig() Config {
	return Config{
		Name: "bench", Form: DefaultForm(), Streams: 1, Players: 500, Probes: 20, Ramp: 1000,
		Fill: 12 * time.Second, Settle: 3 * time.Second, Duration: 10 * time.Second,
		SlowRate: 64_000, CrowdTime: 5 * time.Second, FloorTime: 5 * time.Second,
	}
}

// Progress is the state of a run.
type Progress struct {
	Step    string // what is done at present
	Players int    // that play
	Waiting int    // for their first key frame
	Failed  int    // got no stream or lost it
	BitRate float64
}

// String is one line for a person.
func (p Progress) String() string {
	s := fmt.Sprintf("%s: %d players, %.0f Mbit/s", p.Step, p.Players, p.BitRate/1e6)
	if p.Waiting > 0 {
		s += fmt.Sprintf(", %d join", p.Waiting)
	}
	if p.Failed > 0 {
		s += fmt.Sprintf(", %d failed", p.Failed)
	}
	return s
}

// ErrUsage marks errors of the configuration.
var ErrUsage = errors.New("bad configuration")

// Validate returns all that is wrong; the errors wrap ErrUsage.
func (c *Config) Validate() error {
	var errs []error
	wrong := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	if err := c.Form.Validate(); err != nil {
		errs = append(errs, err)
	}
	wrong(c.Streams < 1 || c.Streams > 100_000, "streams: %d is not between 1 and 100000", c.Streams)
	wrong(c.Players < 0 || c.Players > 1_000_000, "players: %d is not between 0 and 1000000", c.Players)
	wrong(c.Probes < 0, "probes: must not be negative")
	wrong(c.Ramp <= 0 || c.Ramp > 1e6, "ramp: %v players per second is not between 0 and 1000000", c.Ramp)
	wrong(c.Fill < 0, "fill: must not be negative")
	wrong(c.Settle < 0, "settle: must not be negative")
	wrong(c.Duration < time.Second, "duration: %v is less than 1s", c.Duration)
	wrong(c.Slow < 0 || c.Stalled < 0 || c.Crowd < 0, "slow, stalled, crowd: must not be negative")
	wrong(c.Slow > 0 && (c.SlowRate < 8_000 || c.SlowRate > 1e9), "slow rate: %d bit/s is not between 8k and 1G", c.SlowRate)
	wrong(c.Crowd > 0 && c.CrowdTime < 100*time.Millisecond, "crowd time: %v is less than 100ms", c.CrowdTime)
	if c.Limit != nil {
		if err := c.Limit.Validate(); err != nil {
			errs = append(errs, err)
		}
		wrong(c.Players < 1, "players: the search for the capacity begins with at least one")
		wrong(c.Slow+c.Stalled+c.Crowd > 0 || len(c.Floor) > 0, "the search for the capacity goes with no slow players, crowd or floor")
	}
	wrong(c.Probes == 0 && c.Limit != nil && c.Limit.P99 > 0, "probes: a limit of the delay needs some")
	wrong(strings.ContainsAny(c.Name, "/?# ") || c.Name == "", "name: %q is no name of a stream", c.Name)
	wrong(len(c.Floor) > 0 && len(c.FloorCommand) == 0, "floor: no command for it")
	for _, d := range c.Floor {
		wrong(d < time.Millisecond || d > 10*time.Second, "floor interval: %v is not between 1ms and 10s", d)
	}
	wrong(len(c.Floor) > 0 && c.FloorTime < time.Second, "floor time: %v is less than 1s", c.FloorTime)
	if t, err := c.targets(); err != nil {
		errs = append(errs, err)
	} else {
		wrong(t.protocol == HLS && (c.Slow+c.Stalled+c.Crowd > 0 || c.Limit != nil), "HLS goes with no slow players, crowd or search for the capacity")
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	return nil
}

// targets are the two URLs of a run in parts.
type targets struct {
	publish  rtmp.URL // Name is the query only
	protocol Protocol
	play     *url.URL // without the name
	playAddr string   // host:port
	tls      bool     // of the players
}

func (c *Config) targets() (targets, error) {
	var t targets
	var err error
	base, query, has := strings.Cut(c.Publish, "?")
	if has {
		query = "?" + query
	}
	if t.publish, err = rtmp.ParseURL(strings.TrimSuffix(base, "/") + "/" + c.Name + query); err != nil {
		return t, fmt.Errorf("publish: want rtmp://HOST/APP: %w", err)
	}
	if t.play, err = url.Parse(c.Play); err != nil {
		return t, fmt.Errorf("url: %w", err)
	}
	ports := map[string]string{
		"http": "80", "ws": "80", "rtmp": rtmp.DefaultPort, "https": "443", "wss": "443", "rtmps": rtmp.DefaultTLSPort,
	}
	port, ok := ports[t.play.Scheme]
	if !ok || t.play.Host == "" || strings.Trim(t.play.Path, "/") == "" {
		return t, fmt.Errorf("url: %q is not http://HOST/APP, ws://HOST/APP or rtmp://HOST/APP, nor https, wss or rtmps", c.Play)
	}
	if t.play.Port() != "" {
		port = t.play.Port()
	}
	t.playAddr = net.JoinHostPort(t.play.Hostname(), port)
	fits := map[string][]Protocol{"http": {HTTPFLV, WSFLV, HLS}, "ws": {WSFLV}, "rtmp": {RTMP}}[plainScheme(t.play.Scheme)]
	t.tls = plainScheme(t.play.Scheme) != t.play.Scheme
	t.protocol = c.Protocol
	if t.protocol == "" {
		t.protocol = fits[0]
	}
	if !slices.Contains(fits, t.protocol) {
		return t, fmt.Errorf("protocol: %q cannot be played from a URL of %s", t.protocol, t.play.Scheme)
	}
	return t, nil
}

// plainScheme returns a scheme without TLS.
func plainScheme(s string) string {
	if s == "ws" {
		return s
	}
	return strings.TrimSuffix(s, "s")
}

func (c *Config) streamName(i int) string { return fmt.Sprintf("%s%d", c.Name, i) }

// publishURL is where a stream is published.
func (t *targets) publishURL(c *Config, i int) rtmp.URL {
	u := t.publish
	u.Name = c.streamName(i) + strings.TrimPrefix(u.Name, c.Name)
	return u
}

// playTarget is the path and query of a stream over HTTP.
func (t *targets) playTarget(c *Config, i int, ext string) string {
	s := strings.TrimSuffix(t.play.EscapedPath(), "/") + "/" + c.streamName(i) + ext
	if t.play.RawQuery != "" {
		s += "?" + t.play.RawQuery
	}
	return s
}

// ErrForeign is returned for a server that is not on this machine's loopback.
var ErrForeign = errors.New("the target is not on the loopback of this machine")

// resolve returns the address of host:port that is used from then on. Unless any
// is allowed, all that the name stands for must be loopback addresses.
func (c *Config) resolve(addr string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	ips, err := net.LookupIP(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("look up %s: %w", host, err)
	}
	for _, ip := range ips {
		if !ip.IsLoopback() && !c.AnyTarget {
			return netip.AddrPort{}, fmt.Errorf("%v: %w", ip, ErrForeign)
		}
	}
	n, err := net.LookupPort("tcp", port)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	// IPv4 first: weir listens there by default.
	best := ips[0]
	for _, ip := range ips {
		if ip.To4() != nil {
			best = ip
			break
		}
	}
	a, _ := netip.AddrFromSlice(best)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}
