package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"weir/configs"
	"weir/edge"
	"weir/internal/clip"
	"weir/internal/discoverynode"
	"weir/internal/rtmp"
	"weir/origin"
)

// TestMain makes the test binary a worker of an edge when an edge's supervisor
// starts it as one.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == workerName {
		os.Exit(run(os.Args, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// freeAddr returns an address that nobody listened on a moment ago.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func configured[T any](t *testing.T, cfg T, into func(*T) any, text string) T {
	t.Helper()
	if err := configs.Parse("test", []byte(text), into(&cfg)); err != nil {
		t.Fatal(err)
	}
	return cfg
}

var series = regexp.MustCompile(`^(weir_[a-z0-9_]+)(?:\{(.*)\})? \S+$`)

// A discovery server, two origins and an edge with two workers carry a stream.
// Whatever they count is in docs/operations.md, with its labels.
func TestMetricsOfNodesAreInDocument(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	g, ctx := errgroup.WithContext(ctx)
	defer func() {
		stop()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	}()
	log := slog.New(slog.DiscardHandler)
	started := make(chan struct{}, 4)
	ready := func() { started <- struct{}{} }
	awaitReady := func() {
		t.Helper()
		select {
		case <-started:
		case <-ctx.Done():
			t.Fatal("a node has ended")
		case <-time.After(20 * time.Second):
			t.Fatal("a node is not ready after 20 s")
		}
	}

	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0)) // a supervisor lowers it
	directory, admins := freeAddr(t), []string{freeAddr(t)}
	d := configured(t, discoverynode.Default(), func(c *discoverynode.Config) any { return c },
		fmt.Sprintf("role: discovery\nlisten: %s\nadmin: {listen: %s}\n", directory, admins[0]))
	g.Go(func() error { return discoverynode.Run(ctx, d, discoverynode.Options{Log: log, Ready: ready}) })
	awaitReady()

	var originHTTP []string
	for _, id := range []string{"a", "b"} {
		web, admin := freeAddr(t), freeAddr(t)
		originHTTP, admins = append(originHTTP, web), append(admins, admin)
		o := configured(t, origin.Default(), func(c *origin.Config) any { return c }, fmt.Sprintf(
			"role: origin\nnode: {id: %s}\nrtmp: {listen: \"127.0.0.1:0\"}\nhttp: {listen: %s}\nadmin: {listen: %s}\n"+
				"discovery: {urls: [\"http://%s\"]}\n", id, web, admin, directory))
		g.Go(func() error { return origin.Run(ctx, o, origin.NodeOptions{Log: log, Ready: ready}) })
		awaitReady()
	}

	door, web, admin := freeAddr(t), freeAddr(t), freeAddr(t)
	admins = append(admins, admin)
	file := fmt.Sprintf("role: edge\nworkers: 2\nrtmp: {listen: %s}\nhttp: {listen: %s}\nadmin: {listen: %s}\n"+
		"play: {wait_publisher: 1s}\nload: {soft_limit: 0, hard_limit: 0}\ndiscovery: {urls: [\"http://%s\"]}\n", door, web, admin, directory)
	e := configured(t, edge.Default(), func(c *edge.Config) any { return c }, file)
	g.Go(func() error {
		return edge.Run(ctx, e, edge.NodeOptions{
			File: []byte(file), WorkerArgs: []string{workerName}, WorkerEnv: []string{"WEIR_LOG_LEVEL=error"}, Log: log, Ready: ready,
		})
	})
	awaitReady()

	u, err := rtmp.ParseURL("rtmp://" + door + "/live/x")
	if err != nil {
		t.Fatal(err)
	}
	g.Go(func() error {
		p := pusher{open: func() io.Reader { return clip.Reader() }, loop: true}
		_, err := p.run(ctx, u)
		return err
	})

	// What is worth counting happens once.
	client := &http.Client{Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	get := func(url string, status int, bytes int64) {
		t.Helper()
		var got string
		for deadline := time.Now().Add(20 * time.Second); ; {
			resp, err := client.Get(url)
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.CopyN(io.Discard, resp.Body, bytes)
			resp.Body.Close()
			if got = fmt.Sprintf("%s, %d bytes, %v", resp.Status, n, err); resp.StatusCode == status && (err == nil || err == io.EOF) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("GET %s: %s", url, got)
			}
		}
	}
	get("http://"+web+"/live/x.flv", http.StatusOK, 50_000)
	get("http://"+web+"/live/x.m3u8", http.StatusOK, 100)
	get("http://"+web+"/live/nobody.flv", http.StatusNotFound, 10)
	for _, at := range originHTTP {
		resp, err := client.Get("http://" + at + "/live/x.flv")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}

	documented := documentedMetrics(t)
	seen, wrong := map[string]bool{}, map[string]bool{}
	for _, admin := range admins {
		resp, err := client.Get("http://" + admin + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			m := series.FindStringSubmatch(strings.TrimSpace(line))
			if m == nil {
				if strings.HasPrefix(line, "weir_") {
					t.Errorf("%s: a line that cannot be read: %s", admin, line)
				}
				continue
			}
			name := m[1]
			if wrong[name] {
				continue // said once
			}
			want, ok := documented[name]
			for _, part := range []string{"_bucket", "_sum", "_count"} { // of a histogram
				if base, cut := strings.CutSuffix(name, part); cut && !ok {
					name = base
					want, ok = documented[name]
				}
			}
			if !ok {
				wrong[m[1]] = true
				t.Errorf("%s is not in the document", m[1])
				continue
			}
			seen[name] = true
			var labels []string
			for _, l := range regexp.MustCompile(`([a-z]+)="[^"]*"`).FindAllStringSubmatch(m[2], -1) {
				if l[1] != "vmrange" && l[1] != "le" {
					labels = append(labels, l[1])
				}
			}
			slices.Sort(labels)
			if !slices.Equal(labels, want) {
				wrong[m[1]] = true
				t.Errorf("%s has the labels %q, the document says %q", m[1], labels, want)
			}
		}
	}
	if len(seen) < 30 {
		t.Errorf("only %d metrics seen: %v", len(seen), seen)
	}
	for m := range documented {
		if !seen[m] {
			t.Logf("not seen here: %s", m)
		}
	}
}
