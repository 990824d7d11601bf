package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"text/template"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"weir/internal/clip"
	"weir/internal/node"
	"weir/internal/rtmp"
	"weir/internal/worker"
)

func clusterCommand() *cli.Command {
	return &cli.Command{
		Name:  "cluster",
		Usage: "run a whole local cluster in the foreground: discovery, two origins, one edge node",
		Description: "Publishes a test clip as live/demo and prints the URLs to publish to and to play.\n" +
			"Each node is a process of its own that can be killed; it is started again.\n" +
			"Ctrl-C stops everything.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Value: "127.0.0.1", Usage: "`ADDRESS` that all nodes listen on, their admin interfaces and discovery included, which ask for no token"},
			&cli.StringFlag{Name: "advertise", Usage: "`HOST` that others reach this machine by; by default that of --listen"},
			&cli.IntFlag{Name: "port-offset", Usage: "add `N` to all ports"},
			&cli.IntFlag{Name: "workers", Usage: "worker processes of the edge; 0 means one per core"},
			&cli.BoolFlag{Name: "no-demo", Usage: "do not publish the test clip"},
			&cli.StringFlag{Name: "write-configs", Usage: "write the nodes' configuration files into `DIR` and stop"},
		},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			l, err := newLayout(c)
			if err != nil {
				return err
			}
			if dir := c.String("write-configs"); dir != "" {
				return l.write(dir, c.App.Writer)
			}
			log, err := logger(c)
			if err != nil {
				return err
			}
			return runCluster(c.Context, l, !c.Bool("no-demo"), logEnvironment(c), c.App.Writer, c.App.ErrWriter, log)
		},
	}
}

// layout is where the nodes of a local cluster listen.
type layout struct {
	Host      string // of publishers and players
	Advertise string
	Workers   int
	Discovery int // ports
	Edge      ports
	A, B      ports
}

type ports struct{ RTMP, HTTP, Admin int }

func newLayout(c *cli.Context) (layout, error) {
	off := c.Int("port-offset")
	l := layout{
		Host: c.String("listen"), Advertise: c.String("advertise"), Workers: c.Int("workers"),
		Discovery: 7070 + off,
		Edge:      ports{1935 + off, 8080 + off, 9090 + off},
		A:         ports{19351 + off, 18081 + off, 19091 + off},
		B:         ports{19352 + off, 18082 + off, 19092 + off},
	}
	ip := net.ParseIP(l.Host)
	if ip == nil {
		return l, usage("--listen: %q is not an IP address", l.Host)
	}
	if off < -1000 || off > 45000 {
		return l, usage("--port-offset: %d is not between -1000 and 45000", off)
	}
	if l.Workers < 0 || l.Workers > 256 {
		return l, usage("--workers: %d is not between 0 and 256", l.Workers)
	}
	if l.Advertise == "" {
		l.Advertise = l.Host
		if ip.IsUnspecified() {
			l.Advertise = "127.0.0.1"
		}
	}
	reach := node.Advertise{RTMP: l.Reach(l.Edge.RTMP)}
	if err := reach.Validate(); err != nil {
		return l, usage("--advertise: %q is neither an IP address that others can reach nor a host's name", l.Advertise)
	}
	return l, nil
}

// At joins the listening host and a port, for the templates.
func (l layout) At(port int) string { return net.JoinHostPort(l.Host, strconv.Itoa(port)) }

// Reach joins the advertised host and a port, for the templates.
func (l layout) Reach(port int) string { return net.JoinHostPort(l.Advertise, strconv.Itoa(port)) }

// member is one node of the local cluster.
type member struct {
	name, role string
	config     *template.Template
	ports      ports
}

func parse(text string) *template.Template { return template.Must(template.New("").Parse(text)) }

// unlimited keeps the nodes of a local cluster from turning players away because the
// machine is busy with something else.
const unlimited = `# All nodes and whatever else runs are on one machine: its being busy says nothing.
load: {soft_limit: 0, hard_limit: 0}
`

func (l layout) members() []member {
	originConfig := func(id, p string) *template.Template {
		return parse(`role: origin
node: {id: ` + id + `}
rtmp: {listen: "{{.At .` + p + `.RTMP}}"}
http: {listen: "{{.At .` + p + `.HTTP}}"}
admin: {listen: "{{.At .` + p + `.Admin}}"}
advertise:
  rtmp: "{{.Reach .` + p + `.RTMP}}"
  http: "{{.Reach .` + p + `.HTTP}}"
discovery: {urls: ["http://{{.Local .Discovery}}"]}
` + unlimited)
	}
	return []member{
		{"discovery", "discovery", parse("role: discovery\nlisten: \"{{.At .Discovery}}\"\n"), ports{HTTP: l.Discovery}},
		{"origin-a", "origin", originConfig("origin-a", "A"), l.A},
		{"origin-b", "origin", originConfig("origin-b", "B"), l.B},
		{"edge", "edge", parse(`role: edge
node: {id: edge-1}
rtmp: {listen: "{{.At .Edge.RTMP}}"}
http: {listen: "{{.At .Edge.HTTP}}"}
admin: {listen: "{{.At .Edge.Admin}}"}
advertise:
  rtmp: "{{.Reach .Edge.RTMP}}"
  http: "{{.Reach .Edge.HTTP}}"
workers: {{.Workers}}
discovery: {urls: ["http://{{.Local .Discovery}}"]}
` + unlimited + `vhosts:
  __defaultVhost__:
    upstreams: ["rtmp://{{.Local .A.RTMP}}", "rtmp://{{.Local .B.RTMP}}"]
`), l.Edge},
	}
}

func (l layout) render(m member) []byte {
	var b bytes.Buffer
	if err := m.config.Execute(&b, l); err != nil {
		panic(err) // the templates are ours
	}
	return b.Bytes()
}

// write writes the configuration files into a folder.
func (l layout) write(dir string, out io.Writer) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, m := range l.members() {
		name := filepath.Join(dir, m.name+".yaml")
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return fail(exitUsage, err)
		}
		_, err = f.Write(l.render(m))
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		fmt.Fprintf(out, "weir %s -c %s\n", m.role, name)
	}
	return nil
}

// checkPorts makes a port that is taken one clear error before anything starts.
func (l layout) checkPorts(ctx context.Context) error {
	try := func(name, key, addr string) error {
		s, err := node.Listen(ctx, name+" "+key, addr)
		if err != nil {
			return fail(exitFailed, fmt.Errorf("%w; stop what uses it, or move all ports with --port-offset N", err))
		}
		return s.Close()
	}
	for _, m := range l.members() {
		if m.role == "discovery" {
			continue // its listener is opened here for good
		}
		if err := try(m.name, "rtmp.listen", l.At(m.ports.RTMP)); err != nil {
			return err
		}
		if err := try(m.name, "http.listen", l.At(m.ports.HTTP)); err != nil {
			return err
		}
		if err := try(m.name, "admin.listen", l.At(m.ports.Admin)); err != nil {
			return err
		}
	}
	return nil
}

// runCluster runs the nodes until ctx ends.
func runCluster(ctx context.Context, l layout, demo bool, env []string, out, errOut io.Writer, log *slog.Logger) error {
	if err := l.checkPorts(ctx); err != nil {
		return err
	}
	supervision := worker.DefaultConfig()
	supervision.StopGrace *= 2 // an edge needs its own for its workers
	open := func(role func(string) bool) (*worker.Supervisor, error) {
		var specs []worker.Spec
		for _, m := range l.members() {
			if !role(m.role) {
				continue
			}
			s := worker.Spec{Name: m.name, Args: []string{m.role}, Env: env, Config: l.render(m)}
			if m.role == "discovery" {
				s.Listen = []worker.Address{{
					Name: discoveryListener, Key: "discovery listen; --port-offset N moves all ports",
					Address: l.At(l.Discovery),
				}}
			}
			specs = append(specs, s)
		}
		return worker.Open(ctx, worker.Options{Config: supervision, Specs: specs, Output: errOut, Log: log})
	}
	directory, err := open(func(role string) bool { return role == "discovery" })
	if err != nil {
		return fail(exitFailed, err)
	}
	nodes, err := open(func(role string) bool { return role != "discovery" })
	if err != nil {
		directory.Close()
		return err
	}

	// Discovery stops last: the nodes say goodbye to it.
	directoryCtx, stopDirectory := context.WithCancel(context.WithoutCancel(ctx))
	defer stopDirectory()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return directory.Run(directoryCtx) })
	g.Go(func() error {
		defer stopDirectory()
		return nodes.Run(ctx)
	})
	g.Go(func() error {
		select {
		case <-nodes.Ready():
		case <-ctx.Done():
			return nil
		}
		if demo {
			g.Go(func() error { return publishDemo(ctx, l, log) })
		}
		fmt.Fprint(out, l.banner(append(directory.States(), nodes.States()...), demo))
		return nil
	})
	return g.Wait()
}

// publishDemo publishes the test clip at the edge, again whenever it is lost.
func publishDemo(ctx context.Context, l layout, log *slog.Logger) error {
	u, err := rtmp.ParseURL("rtmp://" + l.Local(l.Edge.RTMP) + "/live/demo")
	if err != nil {
		return err
	}
	for {
		p := pusher{open: func() io.Reader { return clip.Reader() }, loop: true}
		_, err := p.run(ctx, u)
		if ctx.Err() != nil {
			return nil
		}
		log.Warn("the demo is published again", "err", err)
		timer := time.NewTimer(time.Second)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// Local is how the nodes themselves reach a port.
func (l layout) Local(port int) string {
	host := l.Host
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

func (l layout) banner(states []worker.State, demo bool) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "\nweir %s: the cluster runs. Ctrl-C stops it.\n\n", versionText())
	edge, web := l.Reach(l.Edge.RTMP), l.Reach(l.Edge.HTTP)
	if l.Edge.RTMP == 1935 {
		edge = l.Advertise
	}
	fmt.Fprintf(&b, "  Publish with OBS   server rtmp://%s/live   stream key NAME\n", edge)
	fmt.Fprintf(&b, "  Publish with ffmpeg  ffmpeg -re -i FILE -c:v libx264 -c:a aac -f flv rtmp://%s/live/NAME\n\n", edge)
	name := "NAME"
	if demo {
		name = "demo"
		fmt.Fprintf(&b, "  A test clip is live as live/demo. Play it:\n")
	} else {
		fmt.Fprintf(&b, "  Play:\n")
	}
	fmt.Fprintf(&b, "    RTMP      ffplay rtmp://%s/live/%s\n", edge, name)
	fmt.Fprintf(&b, "    HTTP-FLV  ffplay http://%s/live/%s.flv\n", web, name)
	fmt.Fprintf(&b, "    HLS       ffplay http://%s/live/%s.m3u8\n", web, name)
	fmt.Fprintf(&b, "    here      bin/weir pull http://%s/live/%s.flv\n\n", web, name)
	pids := map[string]int{}
	for _, s := range states {
		pids[s.Spec] = s.PID
	}
	fmt.Fprintf(&b, "  node       pid      RTMP    HTTP    admin\n")
	for _, m := range l.members() {
		if m.role == "discovery" {
			fmt.Fprintf(&b, "  %-10s %-8d         %-7d\n", m.name, pids[m.name], m.ports.HTTP)
			continue
		}
		fmt.Fprintf(&b, "  %-10s %-8d %-7d %-7d http://%s/\n", m.name, pids[m.name], m.ports.RTMP, m.ports.HTTP, l.Reach(m.ports.Admin))
	}
	if ip := net.ParseIP(l.Host); ip == nil || !ip.IsLoopback() {
		fmt.Fprintf(&b, "\n  Others reach the admin interfaces and discovery too, and no token is asked for.\n")
	}
	fmt.Fprintf(&b, "\n  Try: kill -9 an origin, and watch the players go on.\n\n")
	return b.String()
}
